"""What is left of a prompt on its way: latent → float RGB → clipped → uint8 → the endpoint → lossy pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops

from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone, float32_convolutions
from pgn_client.compositor import compose, seen_by_server
from pgn_client.generator import generator_input
from pgn_client.inversion import unclipped
from pgn_client.methods import PGN
from pgn_client.training.data import Examples
from pgn_client.training.finish import log_probs
from pgn_client.training.scores import TorchMapping
from pgn_client.training.surrogate import Surrogate
from pgn_client.training.wire import jpeg
from pgn_client.types import ServerProfile

BATCH = 64
Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


def retain(
    pgn: PromptAdapter,
    backbone: Backbone,
    fitted: Pixels,
    patches: Pixels,
    targets: NDArray[np.int64],
    over_http: Floats,
) -> dict[str, Any]:
    """Follow a prompt from the latent space to lossy pictures.

    Args:
        pgn: the prompt.
        backbone: the surrogate it was trained through; everything but ``over_http`` is asked of it.
        fitted: (n, h, w, 3) uint8 pictures, as ``compositor.fit_picture`` makes them.
        patches: (n, K, P, P, 3) uint8, the prompt patches of these pictures.
        targets: (n,) class indices.
        over_http: (n, C) log-probabilities that the real endpoint gave for the PNGs.

    Returns:
        Accuracy of ``latent`` (float32 tokens), ``float`` (RGB in float32, of a pseudo-inverse before it is clipped),
        ``clipped`` (within [0, 1]), ``uint8`` (rounded pictures), ``http_png`` (the endpoint), ``jpeg95_444`` and
        ``jpeg75_420`` (the whole sent picture re-encoded, then the profile's crop), and under ``agreement`` the share
        of pictures whose label is that of ``latent``.
    """
    recipe = pgn.info["recipe"]
    surrogate = Surrogate(backbone, pgn.canvas, recipe["top_k"], recipe["decimals"])
    sent = [compose(p, q, pgn.canvas) for p, q in zip(fitted, patches, strict=True)]
    with float32_convolutions():
        clipped = _painted(pgn, surrogate, fitted)
        inverted = pgn.info["inversion"] == "pseudo_inverse"
        stages = {
            "latent": latent_log_probs(pgn, backbone, fitted),
            "float": _painted(pgn, surrogate, fitted, clipped=False) if inverted else clipped,
            "clipped": clipped,
            "uint8": _as_seen(pgn, surrogate, sent),
            "http_png": over_http,
            "jpeg95_444": _as_seen(pgn, surrogate, (jpeg(image, 95, 0) for image in sent)),
            "jpeg75_420": _as_seen(pgn, surrogate, (jpeg(image, 75, 2) for image in sent)),
        }
    reference = stages["latent"].argmax(axis=1)
    out: dict[str, Any] = {k: float((v.argmax(axis=1) == targets).mean()) for k, v in stages.items()}
    out["agreement"] = {k: float((v.argmax(axis=1) == reference).mean()) for k, v in stages.items()}
    return out


def _as_seen(pgn: PromptAdapter, surrogate: Surrogate, images: Iterable[Image.Image]) -> Floats:
    """Send images through the profile's resize and crop, and the surrogate."""
    profile = ServerProfile.parse(pgn.info["profile"])
    seen = np.stack([seen_by_server(image, profile, surrogate.canvas.size) for image in images])
    pixels = torch.from_numpy(seen).permute(0, 3, 1, 2)
    with torch.inference_mode():
        parts = [surrogate.pixel_scores(x.to(surrogate.backbone.device)).cpu() for x in pixels.split(BATCH)]
    return pgn.mapping.log_probs(torch.cat(parts).double().numpy())


@torch.inference_mode()
def _painted(pgn: PromptAdapter, surrogate: Surrogate, fitted: Pixels, *, clipped: bool = True) -> Floats:
    """Ask for what the prompt paints in float32, before it is rounded."""
    model, embedding = pgn.runtime
    parts = []
    for pictures in torch.from_numpy(fitted).permute(0, 3, 1, 2).split(BATCH):
        code, _ = model(generator_input(pictures, pgn.info["generator"]["resolution"]))
        if not clipped and isinstance(model, PGN) and embedding is not None:
            painted = unclipped(model.cell_tokens(code, embedding), embedding)
        else:
            painted = model.painted(code, pictures, embedding, pgn.info["inversion"])
        canvases = surrogate.paint(pictures, painted)
        parts.append(surrogate.pixel_scores(canvases.to(surrogate.backbone.device)).cpu())
    return pgn.mapping.log_probs(torch.cat(parts).double().numpy())


def steps(pgn: PromptAdapter, sent: Sequence[Image.Image]) -> dict[str, list[Image.Image]]:
    """Return what is sent, and what then reaches the model, without and with JPEG, as pictures to look at.

    Args:
        pgn: whose profile the server has.
        sent: RGB, as the adapter makes them.
    """
    profile, size = ServerProfile.parse(pgn.info["profile"]), pgn.canvas.size

    def seen(images: Iterable[Image.Image]) -> list[Image.Image]:
        return [Image.fromarray(seen_by_server(image, profile, size)) for image in images]

    plain, lossy = seen(sent), seen(jpeg(image, 75, 2) for image in sent)
    error = [ImageChops.difference(a, b).point(lambda x: 4 * x) for a, b in zip(plain, lossy, strict=True)]
    return {
        "sent": list(sent),
        "seen": plain,
        "JPEG 95 4:4:4": seen(jpeg(image, 95, 0) for image in sent),
        "JPEG 75 4:2:0": lossy,
        "its error x 4": error,
    }


def latent_log_probs(pgn: PromptAdapter, backbone: Backbone, fitted: Pixels) -> Floats:
    """(n, h, w, 3) uint8 fitted pictures → (n, C) log-probabilities as training computes them: nothing is rounded."""
    recipe = pgn.info["recipe"]
    surrogate = Surrogate(backbone, pgn.canvas, recipe["top_k"], recipe["decimals"])
    model, _ = pgn.runtime
    device = backbone.device
    pictures = torch.from_numpy(fitted).permute(0, 3, 1, 2).to(device)
    examples = Examples(pictures, torch.zeros(len(fitted), dtype=torch.long))
    mapping = TorchMapping(pgn.mapping).to(device)
    with float32_convolutions():
        log_p = log_probs(model.to(device), mapping, surrogate, examples, pgn.info["generator"]["resolution"])
    model.to("cpu")
    return log_p.cpu().double().numpy()
