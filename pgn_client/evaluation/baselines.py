"""The rivals that a prompt must beat, and the prompt itself, each measured on the same validation
and test images.
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
    """Images as they are, with the best mapping.

    Fitted on the training answers, and once more with those to augmented copies of each training
    image, as the prompt saw augmented images too; validation chooses between the two.
    """
    clean, val, test = (ask(split.paths) for split in (task.train, task.val, task.test))
    copies = [
        answer
        for block in augmented_blocks(task.train, augmentation, seed)
        for answer in ask(block)
    ]
    source = labels.vocabulary(clean)

    def rows(answers: Sequence[Answer]) -> Floats:
        # a label never seen in training says nothing
        return labels.log_scores(answers, source, strict=False)

    def fit(answers: Sequence[Answer]) -> labels.Fitted:
        times, held_out = len(answers) // len(clean), (rows(val), task.val.labels)
        targets = np.tile(task.train.labels, times)
        return labels.fit(
            rows(answers), targets, source, task.classes, val=held_out, copies=times, seed=seed
        )

    fitted = min(
        (fit(clean), fit([*clean, *copies])), key=lambda found: min(found.log_loss.values())
    )
    val_rows, test_rows = (fitted.mapping.log_probs(rows(answers)) for answers in (val, test))
    return Candidate(
        RAW, val_rows, test_rows, len(clean) + len(copies) + len(val) + len(test)
    ), fitted


def augmented_blocks(split: Split, name: str, seed: int) -> Iterator[list[Image.Image]]:
    """Yield ``augment.COPIES`` times a copy of every image; nothing where the task allows no
    augmentation.
    """
    for block in range(augment.copies(name)):
        yield augmented_copies(split, name, seed + block * len(split))


def augmented_copies(split: Split, name: str, seed: int) -> list[Image.Image]:
    """Return an augmented copy of every image, each drawn with a seed of its own."""
    augmented, copies = augment.get(name), []
    for i, path in enumerate(split.paths):
        torch.manual_seed(seed + i)
        pixels = torch.from_numpy(np.asarray(open_image(path)).copy()).permute(2, 0, 1)[None]
        copies.append(Image.fromarray(augmented(pixels)[0].permute(1, 2, 0).numpy()))
    return copies


def local_head(adapter: PromptAdapter, val: FittedSplit, test: FittedSplit) -> Candidate:
    """Return the local head's opinion, which costs nothing."""
    return Candidate(LOCAL, val.rendered(adapter)[1], test.rendered(adapter)[1], 0, 0.0)


def probe(backbone: Backbone, task: Task, augmentation: str, seed: int) -> Candidate:
    """Fit a linear probe on the surrogate's features of images as its own preprocessing sees
    them.

    As for the raw answers, validation chooses whether it also learns from augmented copies of each
    training image.
    """

    def features(images: Sequence[ImageSource]) -> Floats:
        seen = [_seen(backbone, image) for image in images]
        return linear_probe.features(backbone, torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2))

    def fit(x: Floats, copies: int) -> linear_probe.LinearProbe:
        targets = np.tile(task.train.labels, copies)
        return linear_probe.LinearProbe.fit(x, targets, len(task.classes), copies=copies, seed=seed)

    clean, val, test = (features(split.paths) for split in (task.train, task.val, task.test))
    blocks = [
        clean,
        *(features(block) for block in augmented_blocks(task.train, augmentation, seed)),
    ]
    fits = fit(clean, 1), fit(np.concatenate(blocks), len(blocks))
    fitted = min(fits, key=lambda found: log_loss(found.log_probs(val), task.val.labels))
    return Candidate(PROBE, fitted.log_probs(val), fitted.log_probs(test), 0, 0.0)


def _seen(backbone: Backbone, image: ImageSource) -> Pixels:
    b = backbone
    return seen_by_server(open_image(image), b.profile, b.input_size, b.interpolation)


def without_prompt(
    raw: Candidate, local: Candidate, probe: Candidate | None, val_targets: Integers
) -> list[Candidate]:
    """Return the rivals that need no prompt: those given, and raw answers and probe each fused with
    the local head.
    """
    raw, probes = replace(raw, local=local), [probe] if probe else []
    return [raw, local, *probes, *(fused_best(row, local, val_targets) for row in (raw, *probes))]


def prompted(name: str, ask: Asker, adapter: PromptAdapter, task: Task) -> Candidate:
    """Send images as an adapter makes them, and read the answers with its mapping."""
    val, test = (read(adapter, ask(split.paths, adapter)) for split in (task.val, task.test))
    return Candidate(name, val, test, len(val) + len(test))


def read(adapter: PromptAdapter, answers: Sequence[Answer]) -> Floats:
    """(n,) answers → (n, C) log-probabilities, by an adapter's mapping."""
    return adapter.mapping.log_probs(
        labels.log_scores(answers, adapter.mapping.source, strict=False)
    )
