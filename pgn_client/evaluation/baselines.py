"""Measure the baselines that a prompt must beat, and the prompt itself, on the same validation and
test images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from pgn_client.arrays import Floats, Integers, Pixels
from pgn_client.evaluation.candidate import LOCAL, PROBE, RAW, Candidate, fused_best
from pgn_client.evaluation.queries import Asker
from pgn_client.imaging.codecs import ImageSource, open_image
from pgn_client.imaging.compositor import seen_by_server
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.probability import log_loss
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.methods import linear_probe
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training import Split, Task, augment
from pgn_client.training.examples import FittedSplit
from pgn_client.types import Answer


def raw(ask: Asker, task: Task, augmentation: str, seed: int) -> tuple[Candidate, labels.Fitted]:
    """Send raw images, and fit the best label mapping to the answers.

    Two mappings are fitted: one to the training images, and one to these and augmented copies of
    them, because the prompt saw augmented images too. Validation chooses between the two.

    Args:
        ask: Sends images to the endpoint.
        task: Training, validation and test images.
        augmentation: Name of the augmentation that the prompt was trained with.
        seed: Seed of the augmented copies and of the fit.

    Returns:
        Raw images as a candidate, with log-probabilities of validation and test images; and the
        chosen mapping with the log-losses of all its kinds on validation.
    """
    clean = ask(task.train.paths)
    val = ask(task.val.paths)
    test = ask(task.test.paths)
    copies: list[Answer] = []
    for block in augmented_blocks(task.train, augmentation, seed):
        copies += ask(block)

    source = labels.vocabulary(clean)

    def rows(answers: Sequence[Answer]) -> Floats:
        # Not strict: an answer without any label of the training answers gets a uniform row.
        return labels.log_scores(answers, source, strict=False)

    def fit(answers: Sequence[Answer]) -> labels.Fitted:
        # The copies come in blocks of the whole split. Cross-validation must keep the copies of an
        # image in one fold, so the fit needs the number of blocks.
        times = len(answers) // len(clean)
        targets = np.tile(task.train.labels, times)
        held_out = (rows(val), task.val.labels)
        return labels.fit(
            rows(answers), targets, source, task.classes, val=held_out, copies=times, seed=seed
        )

    fits = (fit(clean), fit([*clean, *copies]))
    fitted = min(fits, key=lambda candidate: min(candidate.log_loss.values()))

    val_rows = fitted.mapping.log_probs(rows(val))
    test_rows = fitted.mapping.log_probs(rows(test))
    queries = len(clean) + len(copies) + len(val) + len(test)
    return Candidate(RAW, val_rows, test_rows, queries), fitted


def augmented_blocks(split: Split, name: str, seed: int) -> Iterator[list[Image.Image]]:
    """Yield augmented copies of a split in ``augment.COPIES`` lists, each with one copy of every
    image; yields nothing if the augmentation is ``none``.
    """
    for block in range(augment.copies(name)):
        # Image i uses the seed plus i, so this offset gives every copy a seed of its own.
        yield augmented_copies(split, name, seed + block * len(split))


def augmented_copies(split: Split, name: str, seed: int) -> list[Image.Image]:
    """Return one augmented copy of each image of a split; image i uses the seed ``seed + i``."""
    augmented = augment.get(name)
    copies = []
    for i, path in enumerate(split.paths):
        # Augmentations draw from torch's global generator. With a seed for each image, a dry run
        # makes exactly the copies whose answers an earlier run has recorded.
        torch.manual_seed(seed + i)
        # Copied, because the array of a Pillow image is read-only, which torch warns about.
        pixels = torch.from_numpy(np.asarray(open_image(path)).copy()).permute(2, 0, 1)[None]
        copies.append(Image.fromarray(augmented(pixels)[0].permute(1, 2, 0).numpy()))
    return copies


def local_head(adapter: PromptAdapter, val: FittedSplit, test: FittedSplit) -> Candidate:
    """Return the local head as a candidate, with log-probabilities of validation and test images.

    The local head is the small classifier in the checkpoint. It runs here and sends nothing.
    """
    val_rows = val.rendered(adapter)[1]
    test_rows = test.rendered(adapter)[1]
    return Candidate(LOCAL, val_rows, test_rows, 0, 0.0)


def probe(backbone: Backbone, task: Task, augmentation: str, seed: int) -> Candidate:
    """Fit a linear probe, a linear classifier on the features of the surrogate, and measure it.

    Images get the surrogate's own preprocessing. Validation chooses whether the probe also learns
    from augmented copies of the training images.

    Args:
        backbone: The surrogate, the local model that the prompt was trained through.
        task: Training, validation and test images.
        augmentation: Name of the augmentation that the prompt was trained with.
        seed: Seed of the augmented copies and of the fit.

    Returns:
        The probe as a candidate, with log-probabilities of validation and test images.
    """

    def features(images: Sequence[ImageSource]) -> Floats:
        seen = [_seen(backbone, image) for image in images]
        return linear_probe.features(backbone, torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2))

    def fit(x: Floats, copies: int) -> linear_probe.LinearProbe:
        targets = np.tile(task.train.labels, copies)
        return linear_probe.LinearProbe.fit(x, targets, len(task.classes), copies=copies, seed=seed)

    clean = features(task.train.paths)
    val = features(task.val.paths)
    test = features(task.test.paths)
    blocks = [clean]
    for block in augmented_blocks(task.train, augmentation, seed):
        blocks.append(features(block))

    fits = (fit(clean, 1), fit(np.concatenate(blocks), len(blocks)))
    fitted = min(fits, key=lambda candidate: log_loss(candidate.log_probs(val), task.val.labels))
    return Candidate(PROBE, fitted.log_probs(val), fitted.log_probs(test), 0, 0.0)


def _seen(backbone: Backbone, image: ImageSource) -> Pixels:
    """Resize and crop an image as the surrogate does; return its pixels, (h, w, 3) uint8."""
    return seen_by_server(
        open_image(image), backbone.profile, backbone.input_size, backbone.interpolation
    )


def without_prompt(
    raw: Candidate, local: Candidate, probe: Candidate | None, val_targets: Integers
) -> list[Candidate]:
    """Return all baselines without a prompt: raw images, the local head and the linear probe, then
    raw images and the probe each fused with the local head.

    Args:
        raw: Raw images with a label mapping.
        local: The local head, the small classifier in the checkpoint.
        probe: The linear probe; ``None`` without a surrogate.
        val_targets: Class indices of the validation images, (n,).
    """
    # The gate of a row spares images, so raw needs a local head and the probe, which sends none,
    # does not.
    raw = replace(raw, local=local)
    probes = [probe] if probe else []
    fusions = [fused_best(row, local, val_targets) for row in (raw, *probes)]
    return [raw, local, *probes, *fusions]


def prompted(name: str, ask: Asker, adapter: PromptAdapter, task: Task) -> Candidate:
    """Send validation and test images with an adapter's prompt, and map the answers to classes.

    Returns:
        The prompt as a candidate titled ``name``.
    """
    val = read(adapter, ask(task.val.paths, adapter))
    test = read(adapter, ask(task.test.paths, adapter))
    return Candidate(name, val, test, len(val) + len(test))


def read(adapter: PromptAdapter, answers: Sequence[Answer]) -> Floats:
    """Map n answers of an endpoint to the adapter's C classes; return (n, C) log-probabilities."""
    # Not strict: an endpoint that returns few labels may return none that the mapping reads.
    return adapter.mapping.log_probs(
        labels.log_scores(answers, adapter.mapping.source, strict=False)
    )
