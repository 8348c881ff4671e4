"""Training: pictures and a surrogate become a prompt adapter."""

from __future__ import annotations

from pgn_client.training.data import Split, Task, load_task
from pgn_client.training.loop import fit
from pgn_client.training.recipe import PRESETS, Recipe, recipe

__all__ = ["PRESETS", "Recipe", "Split", "Task", "fit", "load_task", "recipe"]
