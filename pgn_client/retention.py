"""What is left of a prompt on its way: latent → float RGB → clipped → uint8 → the endpoint → lossy pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageChops
from torch import Tensor

from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone, float32_convolutions
from pgn_client.compositor import compose, seen_by_server
from pgn_client.generator import generator_input
from pgn_client.inversion import unclipped
from pgn_client.methods import PGN
from pgn_client.methods.published import PublishedPGN
from pgn_client.training.surrogate import Surrogate
from pgn_client.training.wire import jpeg
from pgn_client.types import ServerProfile

BATCH = 64
STAGES = ("published", "latent", "float", "clipped", "uint8", "http_png", "jpeg95_444", "jpeg75_420")
"""Of the way, in its order."""

Floats = NDArray[np.float64]
Pixels = NDArray[np.uint8]


def retain(stages: Mapping[str, Floats], targets: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Say what is left of a prompt.

    Args:
        stages: as :func:`follow` returns them.
        targets: (n,) class indices; without them there is no accuracy to tell.

    Returns:
        Accuracy at each step, and under ``agreement`` the share of pictures whose label is that of ``latent``.
    """
    labels = {stage: log_p.argmax(axis=1) for stage, log_p in stages.items()}
    accuracy = {} if targets is None else {k: float((found == targets).mean()) for k, found in labels.items()}
    return accuracy | {"agreement": {k: float((found == labels["latent"]).mean()) for k, found in labels.items()}}


def follow(
    pgn: PromptAdapter,
    backbone: Backbone,
    fitted: Pixels,
    *,
    looked_at: Pixels | None = None,
    over_http: Floats | None = None,
) -> dict[str, Floats]:
    """Follow a prompt from the latent space to lossy pictures.

    Args:
        pgn: the prompt.
        backbone: the surrogate it was trained through; everything but ``over_http`` is asked of it.
        fitted: (n, h, w, 3) uint8 pictures, as ``compositor.fit_picture`` makes them.
        looked_at: (n, r, r, 3) uint8, as ``PromptAdapter.looked_at`` makes them; ``None``: the fitted pictures.
        over_http: (n, C) log-probabilities that the real endpoint gave for the PNGs.

    Returns:
        (n, C) log-probabilities at each step: ``published`` (the forward pass of the authors' code, for an imported
        checkpoint), ``latent`` (float32 tokens), ``float`` (RGB in float32, of a pseudo-inverse before it is clipped),
        ``clipped`` (within [0, 1]), ``uint8`` (rounded pictures), ``http_png`` (the endpoint), ``jpeg95_444`` and
        ``jpeg75_420`` (the whole sent picture re-encoded, then the profile's crop).
    """
    looked_at = fitted if looked_at is None else looked_at
    patches, _ = pgn.render(fitted, prompted_by=looked_at)
    sent = [compose(p, q, pgn.canvas) for p, q in zip(fitted, patches, strict=True)]
    asked = _Asked(pgn, backbone)
    with float32_convolutions():
        found = {"published": asked.published(looked_at)} if isinstance(pgn.runtime[0], PublishedPGN) else {}
        found["latent"] = asked.latent(fitted, looked_at)
        found["clipped"] = asked.painted(fitted, looked_at)
        unbounded = pgn.info["inversion"] == "pseudo_inverse"
        found["float"] = asked.painted(fitted, looked_at, clipped=False) if unbounded else found["clipped"]
        found["uint8"] = asked.sent(sent)
        found |= {} if over_http is None else {"http_png": over_http}
        found["jpeg95_444"] = asked.sent(jpeg(image, 95, 0) for image in sent)
        found["jpeg75_420"] = asked.sent(jpeg(image, 75, 2) for image in sent)
    return {stage: found[stage] for stage in STAGES if stage in found}


class _Asked:
    """A surrogate that is asked at every step of the way, and what the checkpoint's mapping makes of its answers.

    Args:
        pgn: the prompt.
        backbone: the surrogate.
    """

    def __init__(self, pgn: PromptAdapter, backbone: Backbone) -> None:
        recipe = pgn.info.get("recipe", {})
        self.pgn = pgn
        self.surrogate = Surrogate(backbone, pgn.canvas, recipe.get("top_k"), recipe.get("decimals"))

    def published(self, looked_at: Pixels) -> Floats:
        """As the authors' code answers: see ``methods.published``."""
        model = cast(PublishedPGN, self.pgn.runtime[0])
        return self._answers(
            looked_at, looked_at, lambda code, seen: model.published_logits(code, seen, self.surrogate.backbone)
        )

    def latent(self, fitted: Pixels, looked_at: Pixels) -> Floats:
        """As training computes it, without wire: nothing is rounded."""
        model, _ = self.pgn.runtime
        return self._answers(fitted, looked_at, lambda code, pictures: model.scores(code, pictures, self.surrogate))

    def painted(self, fitted: Pixels, looked_at: Pixels, *, clipped: bool = True) -> Floats:
        """What is painted in float32, before it is rounded."""
        model, own = self.pgn.runtime
        embedding = own and own.to(self.surrogate.backbone.device)

        def answer(code: Any, pictures: Tensor) -> Tensor:
            if not clipped and isinstance(model, PGN) and embedding is not None:
                painted = unclipped(model.cell_tokens(code, embedding), embedding)
            else:
                painted = model.painted(code, pictures, embedding, self.pgn.info["inversion"])
            return self.surrogate.pixel_scores(self.surrogate.paint(pictures, painted))

        return self._answers(fitted, looked_at, answer)

    def sent(self, images: Iterable[Image.Image]) -> Floats:
        """Images through the profile's resize and crop."""
        profile, size = ServerProfile.parse(self.pgn.info["profile"]), self.surrogate.canvas.size
        seen = np.stack([seen_by_server(image, profile, size) for image in images])
        return self._answers(seen, None, lambda _, pixels: self.surrogate.pixel_scores(pixels))

    @torch.inference_mode()
    def _answers(self, pictures: Pixels, looked_at: Pixels | None, answer: Callable[[Any, Tensor], Tensor]) -> Floats:
        """Answer batch by batch, with what the method says of the pictures it looks at; map the answers."""
        model, _ = self.pgn.runtime
        device, parts = self.surrogate.backbone.device, []
        model.to(device)
        for start in range(0, len(pictures), BATCH):
            batch = slice(start, start + BATCH)
            code = None
            if looked_at is not None:
                seen = _tensor(looked_at[batch]).to(device)
                code, _ = model(generator_input(seen, self.pgn.info["generator"]["resolution"]))
            parts.append(answer(code, _tensor(pictures[batch]).to(device)).cpu())
        model.to("cpu")
        return self.pgn.mapping.log_probs(torch.cat(parts).double().numpy())


def _tensor(pictures: Pixels) -> Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


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
    with float32_convolutions():
        return _Asked(pgn, backbone).latent(fitted, fitted)
