"""``pgn benchmark``: run methods on image sets over HTTP, and summarize the runs in a table."""

from __future__ import annotations

from pgn_client.evaluation.benchmark.runs import Bench, Plan, missing_rows
from pgn_client.evaluation.benchmark.summary import Summary, summarise
from pgn_client.evaluation.benchmark.table import draw, markdown

__all__ = ["Bench", "Plan", "Summary", "draw", "markdown", "missing_rows", "summarise"]
