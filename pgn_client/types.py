"""Immutable values that the package's layers exchange, and the letters used in array shapes.

Shapes: **B** batch, **H W** image size in pixels, **P** patch side, **N** = (H/P)(W/P) patches,
**D** embedding width, **K** prompts per image, **L** rows of the token library, **C** task classes,
**S** source labels (the classes that the endpoint returns).

Spaces: *pixel* uint8 in [0, 255]; *unit* float in [0, 1]; *normalized* (x - mean)/std; *embedding*
(..., D). Color is RGB. Times are in seconds.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from pgn_client.errors import ConfigurationError, PGNError

if TYPE_CHECKING:
    from PIL import Image

    from pgn_client.arrays import Floats

ScoreKind = Literal["probabilities", "logits", "label", "embedding", "unknown"]
NONE = "none of these"
"""Label of an image whose best class is less likely than the checkpoint's ``none_below``."""
ProfileKind = Literal["direct", "resize_crop", "shortest_edge", "letterbox"]


def normal(label: str) -> str:
    """Return a label in the Unicode form NFC, in which labels are compared.

    "é" may be one character or two: the names of folders often have the other form than the labels
    of an endpoint.
    """
    return unicodedata.normalize("NFC", label)


@dataclass(frozen=True, slots=True)
class Answer:
    """Scores that an endpoint returned for one image, before any label mapping.

    Attributes:
        labels: Source labels, best first: all S of them, or the top k that the endpoint returns.
            For an embedding, the names of its D numbers in order: ``dim 0``, ``dim 1``, ….
        scores: One number per label; ``(1.0,)`` for the kind ``label``.
        kind: Type of the scores: ``probabilities`` (sum at most 1), ``logits`` (any real numbers),
            ``label`` (the best label alone), ``embedding`` (features of the image, which only a
            label mapping turns into classes) or ``unknown`` (numbers in [0, 1] that may be sigmoid
            scores or logits; nothing can be computed from them until an option says which).
    """

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    kind: ScoreKind = "probabilities"

    def check_kind(self) -> None:
        """Check that the meaning of the scores is known.

        Raises:
            ConfigurationError: The kind is ``unknown``.
        """
        if self.kind == "unknown":
            raise ConfigurationError(
                f"scores: got numbers in [0, 1] with the sum {sum(self.scores):.4g}, which may be "
                "sigmoid scores or logits, expected an endpoint that is known to return one of "
                'them; set output = "sigmoid" or "logits" in the options of the endpoint file, or '
                "write that file with pgn probe"
            )


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer for one image, with the number of requests that it took.

    Attributes:
        answer: Answer of the endpoint.
        attempts: Number of requests, retries included, now or when the answer was recorded; 0 for a
            local answer.
        request_id: Server's identifier of the request, if it returned one.
        recorded: Whether the answer comes from a cache, so that nothing was sent.
    """

    answer: Answer
    attempts: int = 0
    request_id: str | None = None
    recorded: bool = False


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted task class of one image.

    Attributes:
        label: Best class, or ``none of these`` where its probability is below the checkpoint's
            ``none_below``.
        score: Probability of the best class, in [0, 1].
        scores: Probability of every class, best first.
        source: Origin of the prediction: ``endpoint``, ``local`` (the local head) or ``both``
            (fused).
        attempts: Number of requests that the prediction took, 0 for a local one. A recorded answer
            keeps its number from the recording, so that a run can be repeated exactly; ``usage``
            counts the requests that are really sent.
        request_id: Server's identifier of the request; ``None`` if it returned none.
    """

    label: str
    score: float
    scores: Mapping[str, float]
    source: Literal["endpoint", "local", "both"] = "endpoint"
    attempts: int = 1
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """The error because of which one image of many has no prediction.

    Attributes:
        image: Path of the image, or a description of the object that was passed.
        error: Exception that stopped the prediction.
    """

    image: str
    error: PGNError


@dataclass(frozen=True, slots=True)
class Usage:
    """Images, requests and cost of a client so far.

    Attributes:
        images: Number of queries: images that the endpoint answered or refused, each counted once.
        requests: Number of HTTP requests, retries included.
        retries: Number of requests beyond the first of a call.
        bytes_sent: Size of all request bodies in bytes, retries included.
        cost: ``billable`` times the price per image, and the hours from the first request to the
            last answer times the price per hour; ``None`` without a price.
        billable: Number of images sent, retries included: the upper limit of what the provider
            bills, and the number that a budget caps.
        refused: Number of these images that the endpoint refused with a status 4xx, before it ran
            the model; most providers do not bill them.
    """

    images: int = 0
    requests: int = 0
    retries: int = 0
    bytes_sent: int = 0
    cost: float | None = None
    billable: int = 0
    refused: int = 0

    def price_of_an_image(self, price_per_image: float | None) -> float | None:
        """Return the price of an image with its share of the hours so far; ``None`` without one.

        Args:
            price_per_image: Price that is billed for each image, apart from the hours.
        """
        if self.cost is None or not self.billable:
            return price_per_image
        per_image = price_per_image or 0.0
        hours = self.cost - self.billable * per_image
        # Below, only rounding is left.
        return per_image + hours / self.billable if hours > 1e-9 * self.cost else price_per_image


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """An endpoint's description of its model (``GET /v1/model``).

    Fields that the endpoint does not return are ``None``.

    Attributes:
        name: Model name.
        input_size: Side of the square model input, in pixels.
        profile: Server's resize and crop, as a profile string (see :meth:`ServerProfile.parse`).
        classes: Source labels, in the model's order.
        patch_embedding_sha256: SHA-256 of the patch embedding: its weight, then its bias, as
            little-endian float32.
        weights_sha256: SHA-256 of the weights file.
    """

    name: str
    input_size: int | None = None
    profile: str | None = None
    classes: tuple[str, ...] | None = None
    patch_embedding_sha256: str | None = None
    weights_sha256: str | None = None


MOST_SIDE = 8192
"""Largest side that a server profile may name, in pixels."""


@dataclass(frozen=True, slots=True)
class ServerProfile:
    """Resize and crop that a server applies to an image before its model sees it.

    Attributes:
        kind: ``direct`` resizes to H x W; ``resize_crop`` resizes the shorter edge to ``resize``
            and crops a square of side ``crop`` at the center; ``shortest_edge`` does the same
            without the crop; ``letterbox`` fits the image into a square, centers it, and pads with
            the mean.
        resize: Side after the resize, in pixels; ``None`` for ``direct``, which uses the model's
            input size.
        crop: Side after the crop, in pixels; only for ``resize_crop``.
    """

    kind: ProfileKind
    resize: int | None = None
    crop: int | None = None

    @classmethod
    def parse(cls, text: str) -> ServerProfile:
        """Return the server profile that a text describes, such as ``resize_crop:256:224``.

        The forms are ``direct``, ``resize_crop:256:224``, ``shortest_edge:224`` and
        ``letterbox:224``.

        Raises:
            ConfigurationError: The text has another form.
        """
        kind, *numbers = text.split(":")
        side_counts = {"direct": 0, "resize_crop": 2, "shortest_edge": 1, "letterbox": 1}
        if side_counts.get(kind) != len(numbers) or not all(
            # int() refuses a number of thousands of digits with an error of its own.
            n.isdecimal() and len(n) <= len(str(MOST_SIDE)) and 0 < int(n) <= MOST_SIDE
            for n in numbers
        ):
            raise ConfigurationError(
                f"server profile: got {text!r}, expected direct, resize_crop:R:C, shortest_edge:R "
                "or letterbox:R with sides in pixels, for example resize_crop:256:224"
            )

        sides = [int(n) for n in numbers]
        if kind == "resize_crop" and sides[0] < sides[1]:
            raise ConfigurationError(
                f"server profile: got {text!r}, expected a crop no larger than the resize"
            )
        # The keys of side_counts are the profile kinds, which the type checker cannot see.
        return cls(kind, *sides)  # type: ignore[arg-type]

    def __str__(self) -> str:
        return ":".join([self.kind, *(str(n) for n in (self.resize, self.crop) if n is not None)])


@dataclass(frozen=True, slots=True)
class Hosted:
    """A checkpoint that runs on the server: uploaded once, then named in every request.

    Attributes:
        name: Unique name of the checkpoint on the server, derived from the content.
        data: Content of the checkpoint file.
    """

    name: str
    data: bytes = field(repr=False)

    @property
    def reference(self) -> str:
        """Reference to the uploaded checkpoint, sent with every image: ``NAME@SHA256``.

        The SHA-256 of the file keeps the server from using another file of the same name.
        """
        return f"{self.name}@{hashlib.sha256(self.data).hexdigest()}"


@dataclass(frozen=True, slots=True)
class Prepared:
    """One image, ready to be sent to the endpoint.

    Attributes:
        image: RGB image exactly as it will be sent, in the size that the server profile needs.
        local_log_probs: Log-probabilities of the C classes from the local head, a classifier that
            runs in the client, (C,) float64; ``None`` without a local head.
        hosted: Reference of the uploaded checkpoint that processes the image on the server; empty
            where the hosted model processes it alone.
    """

    image: Image.Image
    local_log_probs: Floats | None = None
    hosted: str = ""


class ScoreMapping(Protocol):
    """Label mapping: turns endpoint answers into scores of the task classes."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The C task classes."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> Floats:
        """Return log-probabilities of the C task classes for n endpoint answers, (n, C) float64."""
        ...


class Adapter(Protocol):
    """The part of a prompt adapter that a client uses: it prepares images and maps the answers."""

    @property
    def info(self) -> Mapping[str, Any]:
        """The checkpoint's card: its metadata as JSON (see ``pgn_client.checkpoint``)."""
        ...

    @property
    def mapping(self) -> ScoreMapping:
        """Label mapping from endpoint answers to task classes."""
        ...

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return each RGB image ready to be sent, with log-probabilities of the local head.

        The local head is a classifier that runs in the client; an adapter may have none.
        """
        ...


class Ask(Protocol):
    """Function that queries an endpoint; fitting takes one as an argument and needs no client."""

    def __call__(self, images: Sequence[Any], adapter: Adapter | None = None) -> list[Answer]:
        """Return the endpoint's answers, in the order of the images.

        Args:
            images: Images to send.
            adapter: Adapter that prepares the images; ``None`` sends them unchanged.
        """
        ...
