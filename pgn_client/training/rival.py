"""Load a checkpoint's task again, and train its rival in the same way.

The rival is one prompt for all images, where the checkpoint may make a prompt for each image.
"""

from __future__ import annotations

from dataclasses import replace

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.dataset import Task, load_task
from pgn_client.imaging.opening import PathLike
from pgn_client.imaging.reader import Dataset
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training.config import TrainingConfig
from pgn_client.training.loop import fit

RIVAL = "input_independent"


def task_of(adapter: PromptAdapter, folder: PathLike | Dataset) -> tuple[Task, bool]:
    """Load a checkpoint's task from a folder of images, or a manifest or data set.

    The seed of the splits and the limit of training images per class are those of the checkpoint.

    Returns:
        The task, and whether its training and validation images equal the checkpoint's byte for
        byte. If they differ, the checkpoint may have been trained on images of this test split.

    Raises:
        ConfigurationError: The checkpoint was imported, the folder has other classes, or it has no
            test images.
    """
    data = adapter.card.data
    if data is None:
        raise ConfigurationError(
            "checkpoint: got an imported one, whose card names no data, expected one made by "
            "pgn train or pgn map; fit it to your classes with pgn map"
        )
    task = load_task(folder, shots=data.shots, seed=data.seed)
    if task.classes != adapter.mapping.classes:
        got = list(task.classes[:3])
        expected = list(adapter.mapping.classes[:3])
        raise ConfigurationError(
            f"data: got classes {got}…, expected the checkpoint's classes {expected}…; give the "
            "data that it was trained on"
        )
    if not len(task.test):
        raise ConfigurationError(
            f"data: got no test images in {folder}, expected some to evaluate on; add test/"
        )
    digest = task.digest()
    same_data = data.digest == digest
    # After pgn map, the card's data are those of the mapping, and ``prompted_on`` those of the
    # prompt; before, the data are those of both.
    prompted_on = adapter.card.prompted_on or data.digest
    return task, same_data and prompted_on == digest


def same_surrogate(backbone: Backbone, adapter: PromptAdapter) -> Backbone:
    """Return the backbone if it is the model that a checkpoint was trained through.

    The backbone's labels are set to the endpoint labels that the checkpoint's mapping reads.

    Raises:
        ConfigurationError: The backbone's weights differ from the checkpoint's, so a rival trained
            through it would not be comparable. Or ``pgn map`` fitted the mapping to labels that
            only the endpoint has.
    """
    if adapter.mapping.open:
        raise ConfigurationError(
            "surrogate: this checkpoint's mapping was fitted by pgn map to labels that only the "
            "endpoint has; drop --backbone and --weights"
        )
    if backbone.weights_sha256 != adapter.backbone.weights_sha256:
        raise ConfigurationError(
            f"surrogate: got {backbone.name} with other weights or another head, expected the "
            f"{adapter.backbone.name} that the checkpoint was trained through; give its "
            "--backbone, --weights and --labels"
        )
    # The same weights may have been loaded with other names, but the rival's mapping is applied to
    # answers of the checkpoint's endpoint, which have the checkpoint's names.
    backbone.labels = adapter.mapping.source
    return backbone


def same_but_input_independent(rival: PromptAdapter, adapter: PromptAdapter) -> PromptAdapter:
    """Return the rival if it differs from the checkpoint only in its method.

    The rival's method must be ``input_independent``, one prompt for all images.

    Raises:
        ConfigurationError: The rival is not an input-independent prompt, or it differs in more than
            the method; the message lists the differences.
    """
    # The profile is not compared: it changes only the margin, and --profile may replace it.
    differences = [
        name
        for name in ("backbone", "layout", "library", "classes", "seed", "recipe", "data")
        if getattr(rival.card, name) != getattr(adapter.card, name)
    ]
    if rival.card.method != RIVAL:
        differences.insert(0, "method")
    if rival.card.interrupted:
        differences.append("interruption")
    if differences:
        raise ConfigurationError(
            f"rival: got a checkpoint that differs in {', '.join(differences)}, expected one "
            f"trained with --method {RIVAL} and otherwise like --ckpt; train it so, or leave "
            "--rival out"
        )
    return rival


def train_rival(
    adapter: PromptAdapter, task: Task, backbone: Backbone, *, progress: bool = False
) -> PromptAdapter:
    """Train the rival of a checkpoint: one prompt for all images.

    All other options, such as recipe, layout and seed, are the checkpoint's.

    Raises:
        KeyboardInterrupt: Ctrl-C ended the training; an unfinished rival would be too weak.
    """
    config = replace(TrainingConfig.from_card(adapter.card), method=RIVAL)
    rival = fit(task, backbone, config, progress=progress)
    if rival.card.interrupted:
        raise KeyboardInterrupt
    return rival
