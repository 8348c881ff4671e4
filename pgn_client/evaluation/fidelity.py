"""Measure how much of a prompt's effect survives from float32 tokens to the image that is sent.

A prompt is trained as tokens (latent space), painted as RGB pixels, clipped, rounded to uint8, and
possibly compressed as JPEG. Each of these is a step, and each can change what the model predicts.
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
"""Number of images that go through the model at once, so that a large folder fits in memory."""
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
"""Steps from the tokens of a prompt to a JPEG of the sent image, in order; see :func:`follow`."""


def agreement(stages: Mapping[str, Floats]) -> dict[str, float]:
    """Return, for each step from latent space to JPEG, the share of images that still get the label
    of the first step.

    The first step is ``latent``, or ``published`` if ``stages`` has it.

    Args:
        stages: Step → (n, C) log-probabilities, as :func:`follow` returns them.
    """
    labels = {stage: log_p.argmax(axis=1) for stage, log_p in stages.items()}
    first = next(iter(labels.values()))
    return {stage: float((predicted == first).mean()) for stage, predicted in labels.items()}


def follow(
    pgn: PromptAdapter,
    backbone: Backbone,
    fitted: Pixels,
    *,
    looked_at: Pixels | None = None,
    over_http: Floats | None = None,
) -> dict[str, Floats]:
    """Return what the model predicts for images with prompts, at each step from float32 tokens to
    sent pixels and JPEG.

    Every step uses the label mapping of the checkpoint.

    Args:
        pgn: The prompt.
        backbone: The surrogate that the prompt was trained through. It computes every step but
            ``http_png``.
        fitted: Images as ``compositor.fit_to_canvas`` makes them, (n, h, w, 3) uint8, n >= 1.
        looked_at: Input images of the generator as ``PromptAdapter.looked_at`` makes them,
            (n, r, r, 3) uint8; ``None`` uses ``fitted``.
        over_http: Log-probabilities of the real endpoint for the sent PNGs, (n, C); ``None`` leaves
            out the step ``http_png``.

    Returns:
        Step → (n, C) log-probabilities of n images and C classes:

        - ``published``: the token sequence that the authors of an imported checkpoint trained, for
          a backbone of 224 pixels only. The classification head is the backbone's own, because the
          authors have not published theirs.
        - ``latent``: the prompt as float32 tokens.
        - ``float``: the prompt as RGB pixels in float32, before clipping if a pseudo-inverse made
          the pixels.
        - ``clipped``: these pixels clipped to [0, 1].
        - ``uint8``: pixels rounded to whole numbers.
        - ``http_png``: the real endpoint's answers to PNGs.
        - ``jpeg95_444``, ``jpeg75_420``: the whole sent image as JPEG of quality 95 or 75, then
          resized and cropped as the server does.

    Raises:
        ConfigurationError: The generator of the checkpoint takes its own crop of an image, and
            ``looked_at`` is missing.
    """
    prompted_by = _generator_images(pgn, fitted, looked_at)
    patches, _ = pgn.render(fitted, prompted_by=prompted_by)
    sent = [compose(p, q, pgn.canvas) for p, q in zip(fitted, patches, strict=True)]

    parts = []
    with _float32_surrogate(pgn, backbone) as surrogate:
        for b in _batches(fitted):
            parts.append(_scores(pgn, surrogate, fitted[b], prompted_by[b], sent[b]))

    log_probs = {}
    for stage in parts[0]:
        scores = torch.cat([part[stage] for part in parts])
        log_probs[stage] = pgn.mapping.log_probs(scores.double().numpy())
    if over_http is not None:
        log_probs["http_png"] = over_http
    # In order again: ``http_png`` comes before JPEG, and agreement() compares with the first step.
    return {stage: log_probs[stage] for stage in STAGES if stage in log_probs}


def latent_log_probs(pgn: PromptAdapter, backbone: Backbone, fitted: Pixels) -> Floats:
    """Return what the surrogate predicts with the prompt as float32 tokens, before it is painted as
    pixels, (n, C) log-probabilities.

    Args:
        pgn: The prompt.
        backbone: The surrogate that the prompt was trained through.
        fitted: Images as ``compositor.fit_to_canvas`` makes them, (n, h, w, 3) uint8, n >= 1.

    Raises:
        ConfigurationError: The generator of the checkpoint takes its own crop of an image.
    """
    prompted_by = _generator_images(pgn, fitted, None)
    parts = []
    with _float32_surrogate(pgn, backbone) as surrogate:
        for b in _batches(fitted):
            images, code = _coded(pgn, surrogate, fitted[b], prompted_by[b])
            parts.append(pgn.runtime[0].scores(code, images, surrogate).cpu())
    return pgn.mapping.log_probs(torch.cat(parts).double().numpy())


def _generator_images(pgn: PromptAdapter, fitted: Pixels, looked_at: Pixels | None) -> Pixels:
    """Return the images from which the prompts are generated: ``looked_at``, or else ``fitted``.

    Raises:
        ConfigurationError: The generator of the checkpoint takes its own crop of an image, and
            ``looked_at`` is missing.
    """
    if looked_at is None and pgn.generator.profile is not None:
        raise ConfigurationError(
            "retention: got only images fitted to the canvas, expected also the generator's input, "
            "because the generator of this checkpoint takes its own crop of an image; give "
            "looked_at=adapter.looked_at(images)"
        )
    return fitted if looked_at is None else looked_at


@contextmanager
def _float32_surrogate(pgn: PromptAdapter, backbone: Backbone) -> Iterator[Surrogate]:
    """Yield the surrogate, computing in float32; meanwhile the prompt's own network is on the same
    device.
    """
    model, _ = pgn.runtime
    # An imported checkpoint has no recipe; the default one reads all labels, not rounded.
    recipe = pgn.card.recipe or RecipeCard()
    model.to(backbone.device)
    try:
        with float32_convolutions(), torch.inference_mode():
            yield Surrogate(backbone, pgn.canvas, recipe.top_k, recipe.decimals)
    finally:
        # The adapter renders on the CPU, so its model has to be there afterward.
        model.to("cpu")


def _batches(images: Pixels) -> Iterator[slice]:
    return (slice(start, start + BATCH) for start in range(0, len(images), BATCH))


def _coded(
    pgn: PromptAdapter, surrogate: Surrogate, fitted: Pixels, prompted_by: Pixels
) -> tuple[Tensor, Any]:
    """Return a batch of images as a tensor, and the code of its prompts, the generator's output
    from which the prompts are made.
    """
    device = surrogate.backbone.device
    images = torch.from_numpy(fitted).permute(0, 3, 1, 2).to(device)
    seen = torch.from_numpy(prompted_by).permute(0, 3, 1, 2).to(device)
    code, _ = pgn.runtime[0](generator_input(seen, pgn.card.resolution))
    return images, code


def _scores(
    pgn: PromptAdapter,
    surrogate: Surrogate,
    fitted: Pixels,
    prompted_by: Pixels,
    sent: Sequence[Image.Image],
) -> dict[str, Tensor]:
    """Return the surrogate's scores of one batch at each step from latent space to JPEG.

    Returns:
        Step → (B, S) log-probabilities of B images and S endpoint labels.
    """
    model, embedding = pgn.runtime
    backbone = surrogate.backbone
    if embedding is not None:
        embedding = embedding.to(backbone.device)
    images, code = _coded(pgn, surrogate, fitted, prompted_by)

    def painted(patches: Tensor) -> Tensor:
        return surrogate.pixel_scores(surrogate.paint(images, patches))

    # Every card of a prompt in pixels names its inversion; `or` is for the type checker.
    clipped = painted(model.painted(code, images, embedding, pgn.card.inversion or "exact"))
    scores = {
        "latent": model.scores(code, images, surrogate),
        "float": clipped,
        "clipped": clipped,
        "uint8": _as_seen(pgn, surrogate, sent),
        # For Pillow, subsampling 0 is 4:4:4 and 2 is 4:2:0.
        "jpeg95_444": _as_seen(pgn, surrogate, (jpeg(image, 95, 0) for image in sent)),
        "jpeg75_420": _as_seen(pgn, surrogate, (jpeg(image, 75, 2) for image in sent)),
    }

    # Only a pseudo-inverse leaves [0, 1], so for other inversions "float" equals "clipped". The
    # two further tests always hold for it, and tell the type checker so.
    if pgn.card.inversion == "pseudo_inverse" and isinstance(model, PGN) and embedding is not None:
        scores["float"] = painted(unclipped(model.cell_tokens(code, embedding), embedding))
    if isinstance(model, PublishedPGN) and backbone.input_size == RESOLUTION:
        seen = torch.from_numpy(prompted_by).permute(0, 3, 1, 2).to(backbone.device)
        scores["published"] = returned_scores(model.published_logits(code, seen, backbone))
    return {stage: log_p.cpu() for stage, log_p in scores.items()}


def _as_seen(pgn: PromptAdapter, surrogate: Surrogate, images: Iterable[Image.Image]) -> Tensor:
    """Resize and crop images as the server does, and score them with the surrogate.

    Returns:
        Log-probabilities (B, S) of B images and S endpoint labels.
    """
    size = surrogate.canvas.size
    seen = np.stack([seen_by_server(image, pgn.profile, size) for image in images])
    return surrogate.pixel_scores(
        torch.from_numpy(seen).permute(0, 3, 1, 2).to(surrogate.backbone.device)
    )


def steps(pgn: PromptAdapter, sent: Sequence[Image.Image]) -> dict[str, list[Image.Image]]:
    """Return images for display: those sent, and the pixels that reach the model after the server's
    resize and crop, without and with JPEG.

    Args:
        pgn: Prompt whose profile describes how the server resizes and crops.
        sent: RGB images as the adapter makes them.

    Returns:
        Title of the step → its images. The last step shows the error of JPEG 75, times 4.
    """
    profile = pgn.profile
    size = pgn.canvas.size

    def seen(images: Iterable[Image.Image]) -> list[Image.Image]:
        return [Image.fromarray(seen_by_server(image, profile, size)) for image in images]

    plain = seen(sent)
    lossy = seen(jpeg(image, 75, 2) for image in sent)
    # Errors of a few gray levels are invisible unless they are enlarged; point() clips at 255.
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
    """Prompt a few images, evenly spread over the paths, and show them at each step to the model.

    Returns:
        Title of the step → its images, as :func:`steps` returns them.
    """
    images = [open_image(paths[i]) for i in spread(len(paths))]
    return steps(pgn, pgn(images))
