"""A report as people read it: a table for the terminal, a page for the browser, pictures step by step."""

from __future__ import annotations

from pgn_client.report.page import page
from pgn_client.report.pictures import GAP, TILE, sheet, steps_sheet
from pgn_client.report.text import retention_table, table
from pgn_client.report.write import write

__all__ = ["GAP", "TILE", "page", "retention_table", "sheet", "steps_sheet", "table", "write"]
