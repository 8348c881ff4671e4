"""From a checkpoint's card back to what it was trained on, and to rivals that are trained alike."""

from __future__ import annotations

import os

from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone
from pgn_client.errors import ConfigurationError
from pgn_client.training.data import Task, load_task
from pgn_client.training.loop import fit
from pgn_client.training.recipe import from_card
from pgn_client.types import ServerProfile


def task_of(adapter: PromptAdapter, folder: str | os.PathLike[str]) -> tuple[Task, bool]:
    """Read the splits that a checkpoint was trained with: same seed, same shots.

    Returns:
        The task, and whether its training and validation pictures are the checkpoint's, byte for byte. Where they are
        not, its test pictures may have been trained on.

    Raises:
        ConfigurationError: other classes, or no test pictures.
    """
    card = adapter.info["data"]
    task = load_task(folder, shots=card["shots"], seed=card["seed"])
    if task.classes != adapter.mapping.classes:
        got, expected = list(task.classes[:3]), list(adapter.mapping.classes[:3])
        raise ConfigurationError(f"data: got classes {got}…, expected the checkpoint's {expected}…; give its own data")
    if not len(task.test):
        raise ConfigurationError(f"data: got no test pictures in {folder}, expected some to evaluate on; add test/")
    return task, task.digest() == card["digest"]


def require_same(backbone: Backbone, adapter: PromptAdapter) -> Backbone:
    """Return the backbone if it is the one that the checkpoint was trained through.

    Raises:
        ConfigurationError: its patch embedding is another.
    """
    card = adapter.info["backbone"]
    if backbone.embedding.sha256() != card["patch_embedding_sha256"]:
        raise ConfigurationError(
            f"surrogate: got {backbone.name} with another patch embedding, expected the {card['name']} that the "
            "checkpoint was trained through; give its --backbone and --weights"
        )
    return backbone


def train_alike(
    adapter: PromptAdapter, task: Task, backbone: Backbone, *, method: str, progress: bool = False
) -> PromptAdapter:
    """Train another method with a checkpoint's own recipe, layout, profile and seed: only the method differs."""
    card = adapter.info
    return fit(
        task,
        backbone,
        method=method,
        library=card["library"]["kind"],
        layout=card["layout"],
        profile=ServerProfile.parse(card["profile"]),
        recipe=from_card(card["recipe"]),
        mapping=card["recipe"]["mapping"],
        inversion="bounded" if card["inversion"] == "exact" else card["inversion"],
        top_k=card["recipe"]["top_k"],
        decimals=card["recipe"]["decimals"],
        seed=card["seed"],
        progress=progress,
    )
