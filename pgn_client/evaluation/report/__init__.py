"""Show an evaluation to readers: text for the terminal, a page for the browser, example images."""

from __future__ import annotations

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.text import retention_table, table
from pgn_client.evaluation.report.tiles import GAP, TILE, sheet
from pgn_client.evaluation.report.write import write, write_json

__all__ = ["GAP", "TILE", "page", "retention_table", "sheet", "table", "write", "write_json"]
