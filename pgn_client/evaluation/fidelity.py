"""What is left of a prompt on its way: latent → float RGB → clipped → uint8 → the endpoint → lossy
images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from pgn_client.arrays import Floats, Pixels
from pgn_client.checkpoint.card import RecipeCard
from pgn_client.errors import ConfigurationError
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import compose, seen_by_server
from pgn_client.imaging.files import spread
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import generator_input
from pgn_client.prompting.inversion import unclipped
from pgn_client.prompting.methods import PGN
from pgn_client.prompting.methods.published import RESOLUTION, PublishedPGN
from pgn_client.surrogate.backbone import Backbone, float32_convolutions
from pgn_client.surrogate.degradation import jpeg
from pgn_client.surrogate.returned_scores import returned_scores
from pgn_client.surrogate.surrogate import Surrogate

BATCH = 64
STAGES = (
    "published",
    "latent",
    "float",
    "clipped",
    "uint8",
    "http_png",
    "jpeg95_444",
    "jpeg75_420",
)
"""Of the way, in its order."""


def agreement(stages: Mapping[str, Floats]) -> dict[str, float]:
    """Return the share of images at each step of :func:`follow` that have the label of the first
    step.

    That is ``latent``, or ``published`` where it is there.
    """
    labels = {stage: log_p.argmax(axis=1) for stage, log_p in stages.items()}
    first = next(iter(labels.values()))
    return {stage: float((found == first).mean()) for stage, found in labels.items()}


def follow(
    pgn: PromptAdapter,
    backbone: Backbone,
    fitted: Pixels,
    *,
    looked_at: Pixels | None = None,
    over_http: Floats | None = None,
) -> dict[str, Floats]:
    """Follow a prompt from the latent space to lossy images; the mapping is the checkpoint's at
    every step.

    Args:
        pgn: the prompt.
        backbone: the surrogate it was trained through; everything but ``over_http`` is asked of it.
        fitted: (n, h, w, 3) uint8 images, n >= 1, as ``compositor.fit_to_canvas`` makes them.
        looked_at: (n, r, r, 3) uint8, as ``PromptAdapter.looked_at`` makes them; ``None``: the
            fitted images.
        over_http: (n, C) log-probabilities that the real endpoint gave for the PNGs.

    Returns:
        (n, C) log-probabilities at each step: ``published`` (of an imported checkpoint, for a
        backbone of 224 pixels: the sequence that its authors trained, under this backbone's head;
        theirs are not published), ``latent`` (float32 tokens), ``float`` (RGB in float32, of a
        pseudo-inverse before it is clipped), ``clipped`` (within [0, 1]), ``uint8`` (rounded
        images), ``http_png`` (the endpoint), ``jpeg95_444`` and ``jpeg75_420`` (the whole sent
        image re-encoded, then the profile's crop).

    Raises:
        ConfigurationError: a checkpoint whose generator looks at a crop of its own, without
            ``looked_at``.
    """
    eye = _eye(pgn, fitted, looked_at)
    patches, _ = pgn.render(fitted, prompted_by=eye)
    sent = [compose(p, q, pgn.canvas) for p, q in zip(fitted, patches, strict=True)]
    with _asking(pgn, backbone) as surrogate:
        parts = [_answers(pgn, surrogate, fitted[b], eye[b], sent[b]) for b in _batches(fitted)]
    rows = {
        stage: torch.cat([part[stage] for part in parts]).double().numpy() for stage in parts[0]
    }
    found = {stage: pgn.mapping.log_probs(row) for stage, row in rows.items()}
    found |= {} if over_http is None else {"http_png": over_http}
    return {stage: found[stage] for stage in STAGES if stage in found}


def latent_log_probs(pgn: PromptAdapter, backbone: Backbone, fitted: Pixels) -> Floats:
    """Return ``latent`` of :func:`follow` alone: (n, h, w, 3) uint8 → (n, C); it raises the
    same.
    """
    eye, parts = _eye(pgn, fitted, None), []
    with _asking(pgn, backbone) as surrogate:
        for b in _batches(fitted):
            images, code = _coded(pgn, surrogate, fitted[b], eye[b])
            parts.append(pgn.runtime[0].scores(code, images, surrogate).cpu())
    return pgn.mapping.log_probs(torch.cat(parts).double().numpy())


def _eye(pgn: PromptAdapter, fitted: Pixels, looked_at: Pixels | None) -> Pixels:
    if looked_at is None and pgn.generator.profile is not None:
        raise ConfigurationError(
            "retention: got images on the canvas alone, expected also what the generator of this "
            "checkpoint looks "
            "at; give looked_at=adapter.looked_at(images)"
        )
    return fitted if looked_at is None else looked_at


@contextmanager
def _asking(pgn: PromptAdapter, backbone: Backbone) -> Iterator[Surrogate]:
    """Ask the surrogate in float32, with the prompt's model beside it on its device."""
    model, _ = pgn.runtime
    recipe = pgn.card.recipe or RecipeCard()
    model.to(backbone.device)
    try:
        with float32_convolutions(), torch.inference_mode():
            yield Surrogate(backbone, pgn.canvas, recipe.top_k, recipe.decimals)
    finally:
        model.to("cpu")


def _batches(images: Pixels) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, len(images), BATCH))


def _coded(
    pgn: PromptAdapter, surrogate: Surrogate, fitted: Pixels, eye: Pixels
) -> tuple[Tensor, Any]:
    """Return images as a tensor, and what the method says of what it looks at."""
    device = surrogate.backbone.device
    images, seen = (torch.from_numpy(x).permute(0, 3, 1, 2).to(device) for x in (fitted, eye))
    code, _ = pgn.runtime[0](generator_input(seen, pgn.card.resolution))
    return images, code


def _answers(
    pgn: PromptAdapter,
    surrogate: Surrogate,
    fitted: Pixels,
    eye: Pixels,
    sent: Sequence[Image.Image],
) -> dict[str, Tensor]:
    """What the surrogate answers to one batch at each step: (B, S) log-probabilities."""
    (model, own), backbone = pgn.runtime, surrogate.backbone
    embedding, (images, code) = (
        own and own.to(backbone.device),
        _coded(pgn, surrogate, fitted, eye),
    )

    def painted(patches: Tensor) -> Tensor:
        return surrogate.pixel_scores(surrogate.paint(images, patches))

    clipped = painted(model.painted(code, images, embedding, pgn.card.inversion or "exact"))
    found = {
        "latent": model.scores(code, images, surrogate),
        "float": clipped,
        "clipped": clipped,
        "uint8": _as_seen(pgn, surrogate, sent),
        "jpeg95_444": _as_seen(pgn, surrogate, (jpeg(image, 95, 0) for image in sent)),
        "jpeg75_420": _as_seen(pgn, surrogate, (jpeg(image, 75, 2) for image in sent)),
    }
    if pgn.card.inversion == "pseudo_inverse" and isinstance(model, PGN) and embedding is not None:
        found["float"] = painted(unclipped(model.cell_tokens(code, embedding), embedding))
    if isinstance(model, PublishedPGN) and backbone.input_size == RESOLUTION:
        seen = torch.from_numpy(eye).permute(0, 3, 1, 2).to(backbone.device)
        found["published"] = returned_scores(model.published_logits(code, seen, backbone))
    return {stage: answers.cpu() for stage, answers in found.items()}


def _as_seen(pgn: PromptAdapter, surrogate: Surrogate, images: Iterable[Image.Image]) -> Tensor:
    """Send images through the profile's resize and crop, and the surrogate."""
    profile = pgn.profile
    seen = np.stack([seen_by_server(image, profile, surrogate.canvas.size) for image in images])
    return surrogate.pixel_scores(
        torch.from_numpy(seen).permute(0, 3, 1, 2).to(surrogate.backbone.device)
    )


def steps(pgn: PromptAdapter, sent: Sequence[Image.Image]) -> dict[str, list[Image.Image]]:
    """Return what is sent, and what then reaches the model, without and with JPEG, as images to
    look at.

    Args:
        pgn: whose profile the server has.
        sent: RGB, as the adapter makes them.
    """
    profile, size = pgn.profile, pgn.canvas.size

    def seen(images: Iterable[Image.Image]) -> list[Image.Image]:
        return [Image.fromarray(seen_by_server(image, profile, size)) for image in images]

    plain, lossy = seen(sent), seen(jpeg(image, 75, 2) for image in sent)
    error = [
        ImageChops.difference(a, b).point(lambda x: 4 * x)
        for a, b in zip(plain, lossy, strict=True)
    ]
    return {
        "sent": list(sent),
        "seen": plain,
        "JPEG 95 4:4:4": seen(jpeg(image, 95, 0) for image in sent),
        "JPEG 75 4:2:0": lossy,
        "JPEG 75 - seen, x 4": error,
    }


def columns(pgn: PromptAdapter, paths: Sequence[Path]) -> dict[str, list[Image.Image]]:
    """Return what the server sees of a few of these images, step by step: see
    ``retention.steps``.
    """
    return steps(pgn, pgn([open_image(paths[i]) for i in spread(len(paths))]))
