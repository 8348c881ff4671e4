"""From a checkpoint's card back to what it was trained on, and to rivals that are trained alike."""

from __future__ import annotations

import os
from dataclasses import replace

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.dataset import Task, load_task
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training.config import TrainingConfig
from pgn_client.training.loop import fit

RIVAL = "input_independent"


def task_of(adapter: PromptAdapter, folder: str | os.PathLike[str]) -> tuple[Task, bool]:
    """Read the splits that a checkpoint was trained with: same seed, same shots.

    Returns:
        The task, and whether its training and validation images are the checkpoint's, byte for
        byte. Where they are not, its test images may have been trained on.

    Raises:
        ConfigurationError: other classes, or no test images.
    """
    data = adapter.card.data
    if data is None:
        raise ConfigurationError(
            "checkpoint: got an imported one, which knows no data, expected one of pgn train or "
            "pgn map; fit it to "
            "your classes with pgn map"
        )
    task = load_task(folder, shots=data.shots, seed=data.seed)
    if task.classes != adapter.mapping.classes:
        got, expected = list(task.classes[:3]), list(adapter.mapping.classes[:3])
        raise ConfigurationError(
            f"data: got classes {got}…, expected the checkpoint's {expected}…; give its own data"
        )
    if not len(task.test):
        raise ConfigurationError(
            f"data: got no test images in {folder}, expected some to evaluate on; add test/"
        )
    digest = task.digest()
    return task, digest == data.digest == (adapter.card.prompted_on or digest)


def same_surrogate(backbone: Backbone, adapter: PromptAdapter) -> Backbone:
    """Return the backbone, with the checkpoint's class names, if it is the one the checkpoint was
    trained through.

    Raises:
        ConfigurationError: any of its weights are others: rivals trained through it would not
            compare. Or the mapping reads labels that it does not have.
    """
    if adapter.mapping.open:
        raise ConfigurationError(
            "surrogate: this checkpoint's mapping was fitted by pgn map to labels that only the "
            "endpoint has; drop --backbone and --weights"
        )
    if backbone.weights_sha256 != adapter.backbone.weights_sha256:
        raise ConfigurationError(
            f"surrogate: got {backbone.name} with other weights or another head, expected the "
            f"{adapter.backbone.name} that the checkpoint was made for; give its --backbone, "
            "--weights and --labels"
        )
    backbone.labels = adapter.mapping.source
    return backbone


def same_but_input_independent(rival: PromptAdapter, adapter: PromptAdapter) -> PromptAdapter:
    """Return the rival if it is the input-independent prompt trained as the checkpoint was.

    Raises:
        ConfigurationError: it differs in more than the method; the message says in what.
    """
    differs = [
        name
        for name in ("backbone", "layout", "library", "classes", "seed", "recipe", "data")
        if getattr(rival.card, name) != getattr(adapter.card, name)
    ]
    if rival.card.method != RIVAL:
        differs.insert(0, "method")
    if rival.card.interrupted:
        differs.append("that it was interrupted")
    if differs:
        raise ConfigurationError(
            f"rival: got a checkpoint that differs in {', '.join(differs)}, expected --method "
            f"{RIVAL} with all else "
            "as in --ckpt; train it so, or leave --rival out"
        )
    return rival


def train_rival(
    adapter: PromptAdapter, task: Task, backbone: Backbone, *, progress: bool = False
) -> PromptAdapter:
    """Train the input-independent prompt with a checkpoint's own recipe, layout, profile and seed.

    Raises:
        KeyboardInterrupt: Ctrl-C; a rival that was cut short would be a weak one.
    """
    config = replace(TrainingConfig.from_card(adapter.card), method=RIVAL)
    rival = fit(task, backbone, config, progress=progress)
    if rival.card.interrupted:
        raise KeyboardInterrupt
    return rival
