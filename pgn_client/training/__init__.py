"""Train a prompt adapter from labeled images.

The gradients come from a surrogate, a local copy of the model behind the hosted classifier.
"""

from __future__ import annotations

from pgn_client.imaging.dataset import Split, Task, load_task, union
from pgn_client.training.config import TrainingConfig
from pgn_client.training.loop import fit
from pgn_client.training.recipe import PRESETS, Recipe, recipe
from pgn_client.training.white_box import fit_white_box

__all__ = [
    "PRESETS",
    "Recipe",
    "Split",
    "Task",
    "TrainingConfig",
    "fit",
    "fit_white_box",
    "load_task",
    "recipe",
    "union",
]
