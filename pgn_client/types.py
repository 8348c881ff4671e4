"""Frozen values that travel between the layers, and the letters of every shape.

Shapes: **B** batch, **H W** image size in pixels, **P** patch side, **N** = (H/P)(W/P) patches,
**D** embedding width, **K** prompts per image, **L** library rows, **C** task classes, **S** source
classes (of the endpoint).

Spaces: *pixel* uint8 in [0, 255]; *unit* float in [0, 1]; *normalised* (x - mean)/std; *embedding*
(..., D). Colour is RGB. Times are in seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pgn_client.errors import ConfigurationError, PGNError

if TYPE_CHECKING:
    from PIL import Image

    from pgn_client.arrays import Floats

ScoreKind = Literal["probabilities", "logits", "label", "embedding"]
NONE = "none of these"
"""The label of an image that no class is likely enough for, where a checkpoint says how likely
that is.
"""
ProfileKind = Literal["direct", "resize_crop", "shortest_edge", "letterbox"]


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint said about one image, before any label mapping.

    Attributes:
        labels: source labels, best first; all S of them, or the top k that the endpoint returns. Of
            an embedding the names of its D numbers, ``dim 0``, ``dim 1``, ..., in order.
        scores: one number per label. For the kind ``label`` it is ``(1.0,)``.
        kind: ``probabilities`` (sum at most 1), ``logits`` (any real numbers), ``label`` (the best
            label alone) or ``embedding`` (features of the image, which only a label mapping turns
            into classes).
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    kind: ScoreKind = "probabilities"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The task's answer for one image.

    Attributes:
        label: the best class, or ``none of these`` where the checkpoint's ``none_below`` is above
            its probability.
        score: its probability in [0, 1].
        scores: probability of every class, best first.
        source: who answered: the ``endpoint``, the ``local`` head, or ``both`` (fused).
        attempts: requests that the answer took, 0 when answered locally. A recorded answer says
            what it took when it was recorded, so that a run can be repeated exactly; what is really
            sent is in ``usage``.
        request_id: the server's identifier, if it gave one.
    """

    label: str
    score: float
    scores: Mapping[str, float]
    source: Literal["endpoint", "local", "both"] = "endpoint"
    attempts: int = 1
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """Why one image of many has no prediction.

    Attributes:
        image: path, or a description of what was given.
        error: the reason.
    """

    image: str
    error: PGNError


@dataclass(frozen=True, slots=True)
class Usage:
    """What a client has used so far.

    Attributes:
        images: queries: images sent and answered or refused by the endpoint (each counted once).
        requests: HTTP requests, retries included.
        retries: requests beyond the first of a call.
        bytes_sent: request body bytes, retries included.
        cost: ``billable`` times the price per image; ``None`` when no price is known.
        billable: how often an image was sent, retries included: at most what the provider bills,
            and what a budget caps.
    """

    images: int = 0
    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    cost: float | None = None
    billable: int = 0


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What an endpoint says about its model (``GET /v1/model``); fields it does not give are
    ``None``.

    Attributes:
        name: model name.
        input_size: side of the square image that the model sees, in pixels.
        profile: the server's resize and crop, as a profile string.
        classes: source labels, in the model's order.
        patch_embedding_sha256: SHA-256 of little-endian float32 weight, then bias, of the patch
            embedding.
        weights_sha256: SHA-256 of the weights' file.
    """

    name: str
    input_size: int | None = None
    profile: str | None = None
    classes: tuple[str, ...] | None = None
    patch_embedding_sha256: str | None = None
    weights_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """What a server does to an image's geometry before its model sees it.

    Attributes:
        kind: ``direct`` resizes to H x W; ``resize_crop`` brings the shorter edge to ``resize`` and
            crops the centre ``crop``; ``shortest_edge`` is the same without crop; ``letterbox``
            fits, centres, and pads with the mean.
        resize: side after the resize, in pixels; ``None`` for ``direct`` (the model's own input
            size).
        crop: side after the crop, in pixels; only for ``resize_crop``.
    """

    kind: ProfileKind
    resize: int | None = None
    crop: int | None = None

    @classmethod
    def parse(cls, text: str) -> ServerProfile:
        """Read ``direct``, ``resize_crop:256:224``, ``shortest_edge:224`` or ``letterbox:224``.

        Raises:
            ConfigurationError: anything else.
        """
        kind, *numbers = text.split(":")
        wanted = {"direct": 0, "resize_crop": 2, "shortest_edge": 1, "letterbox": 1}.get(kind)
        if (
            wanted is None
            or len(numbers) != wanted
            or not all(n.isdecimal() and int(n) > 0 for n in numbers)
        ):
            raise ConfigurationError(
                f"server profile: got {text!r}, expected direct, resize_crop:R:C, shortest_edge:R "
                "or letterbox:R "
                "with sides in pixels, for example resize_crop:256:224"
            )
        sides = [int(n) for n in numbers]
        if kind == "resize_crop" and sides[0] < sides[1]:
            raise ConfigurationError(
                f"server profile: got {text!r}, expected a crop no larger than the resize"
            )
        return cls(kind, *sides)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ":".join([self.kind, *(str(n) for n in (self.resize, self.crop) if n is not None)])


@dataclass(frozen=True, slots=True)
class Hosted:
    """What of a checkpoint runs on the server: it is uploaded once, and images name it.

    Attributes:
        name: under which the server keeps it; told by its content, so that no other file has it.
        data: the file's bytes.
    """

    name: str
    data: bytes = field(repr=False)

    @property
    def reference(self) -> str:
        """How images name it: the file's hash goes along, so that no other under the same name
        answers.
        """
        return f"{self.name}@{hashlib.sha256(self.data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be sent.

    Attributes:
        image: RGB; exactly what will be sent, in the size the server profile asks for.
        local_log_probs: (C,) float64, log-probabilities of the local head; ``None`` where there is
            none.
        hosted: reference of what answers on the server instead of the model itself; empty for the
            model.
    """

    image: Image.Image
    local_log_probs: Floats | None = None
    hosted: str = ""


class ScoreMapping(Protocol):
    """Endpoint answers to task classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The C task classes."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> Floats:
        """Return (n, C) float64 log-probabilities."""
        ...


class Adapter(Protocol):
    """What a client needs to know of a prompt adapter: images in, images out, and how to read
    the answers.
    """

    @property
    def info(self) -> Mapping[str, Any]:
        """The checkpoint card (see ``pgn_client.checkpoint``)."""
        ...

    @property
    def mapping(self) -> ScoreMapping:
        """Endpoint answers to task classes."""
        ...

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return what will be sent for each RGB image, with the local head's opinion."""
        ...


class Ask(Protocol):
    """Asks an endpoint for its own answers; fitting takes one of these, and so needs no client."""

    def __call__(self, images: Sequence[Any], adapter: Adapter | None = None) -> list[Answer]:
        """Return the answers to images as they are, or as ``adapter`` makes them, in order."""
        ...
