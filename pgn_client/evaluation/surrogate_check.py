"""Test early whether the endpoint hosts the model that the prompt was trained through.

A prompt trained through another model is worth little, and the images of a whole evaluation would
be paid to learn that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from pgn_client.errors import SurrogateMismatchError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import seen_by_server
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.surrogate.backbone import Backbone, float32_convolutions
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.types import Answer, normal

MOST = 30
"""Largest number of images that the test sends; the evaluation needs their answers anyway."""
BLOCK = 5
"""Number of images between two looks at the result."""
SAME = 0.9
"""Least share of images with the same label if the model is the same.

It is below 1 because of rounding and of images on which two labels are nearly equal.
"""
OTHER = 0.5
"""Largest share of images with the same label if the model is another one."""
ERROR = 0.01
"""Probability of each of the two wrong results, where one of the two shares holds."""

Result = Literal["same", "other", "undecided", "unknown"]


@dataclass(frozen=True)
class SurrogateCheck:
    """Result of comparing the surrogate's labels with the endpoint's, on raw images.

    Attributes:
        claim: What the user called the surrogate at training: the ``same`` model, a ``stand_in``,
            or None for a checkpoint that does not say.
        result: ``same``, ``other``, ``undecided``, or ``unknown`` where the labels cannot be
            compared, because the endpoint uses other names or returns no labels.
        images: Number of images that were compared.
        agreed: Number of images with the same label.
    """

    claim: str | None
    result: Result
    images: int
    agreed: int

    def __str__(self) -> str:
        """Return the result as a sentence."""
        if self.result == "unknown":
            return "the endpoint's labels cannot be compared with the surrogate's"
        counts = f"{self.agreed} of {self.images} images"
        found = f"surrogate and endpoint return the same label for {counts}"
        meaning = {
            "same": "so the endpoint hosts the surrogate's model",
            "other": "so the endpoint hosts another model",
            "undecided": "which does not show whether the endpoint hosts the surrogate's model",
        }
        return f"{found}, {meaning[self.result]}"


def check(
    ask: Callable[[Sequence[Path]], Sequence[Answer]],
    paths: Sequence[Path],
    pgn: PromptAdapter,
    backbone: Backbone,
) -> SurrogateCheck:
    """Compare labels on raw images until the result is clear: Wald's sequential probability ratio.

    The two hypotheses are ``SAME`` and ``OTHER``; both errors have the probability ``ERROR``.

    Args:
        ask: Function that returns the endpoint's answers to raw image files.
        paths: Image files; at most the first ``MOST`` are sent.
        pgn: Checkpoint, with the claim and the server's resize and crop.
        backbone: The surrogate.
    """
    claim = pgn.card.surrogate
    names = [normal(name) for name in backbone.labels]
    limit = math.log((1 - ERROR) / ERROR)
    evidence = 0.0
    images = 0
    agreed = 0
    knows_names = False
    for start in range(0, min(len(paths), MOST), BLOCK):
        block = paths[start : min(start + BLOCK, MOST)]
        answers = ask(block)
        returned = [normal(answer.labels[0]) for answer in answers]
        knows_names |= bool(set(returned) & set(names))
        # A model of another kind may still return a known name now and then.
        if answers[0].kind == "embedding" or not knows_names:
            return SurrogateCheck(claim, "unknown", 0, 0)

        for index, label in zip(_predicted(block, pgn, backbone), returned, strict=True):
            is_same = names[index] == label
            images += 1
            agreed += is_same
            evidence += math.log(SAME / OTHER if is_same else (1 - SAME) / (1 - OTHER))
        if abs(evidence) >= limit:
            return SurrogateCheck(claim, "same" if evidence > 0 else "other", images, agreed)
    return SurrogateCheck(claim, "undecided", images, agreed)


def refuse_other_model(found: SurrogateCheck, endpoint: str) -> None:
    """Raise an error if the user said that the surrogate is the hosted model, and it is not.

    Raises:
        SurrogateMismatchError: The labels disagree, and the checkpoint claims the same model.
    """
    if found.claim == "same" and found.result == "other":
        raise SurrogateMismatchError(
            f"{endpoint}: {found}, but the checkpoint was trained through what was called the "
            "hosted model; train again with its --backbone, or through this one with --stand-in, "
            "or evaluate all the same with --anyway",
            endpoint=endpoint,
            attempts=0,
        )


def _predicted(paths: Sequence[Path], pgn: PromptAdapter, backbone: Backbone) -> list[int]:
    """Return the index of the surrogate's best label for each raw image file."""
    surrogate = Surrogate(backbone, pgn.canvas)
    size = pgn.canvas.size
    seen = np.stack([seen_by_server(open_image(path), pgn.profile, size) for path in paths])
    images = torch.from_numpy(seen).permute(0, 3, 1, 2).to(backbone.device)
    with float32_convolutions(), torch.inference_mode():
        best: list[int] = surrogate.pixel_scores(images).argmax(dim=1).tolist()
    return best
