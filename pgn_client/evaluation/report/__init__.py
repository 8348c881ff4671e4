"""Reports for readers: a table for the terminal, a page for the browser, images of each step."""

from __future__ import annotations

from pgn_client.evaluation.report.page import page
from pgn_client.evaluation.report.text import retention_table, table
from pgn_client.evaluation.report.tiles import GAP, TILE, sheet
from pgn_client.evaluation.report.write import write

__all__ = ["GAP", "TILE", "page", "retention_table", "sheet", "table", "write"]
