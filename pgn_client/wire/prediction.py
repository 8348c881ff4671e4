"""From an endpoint's answer to a prediction, and from its description to whether a checkpoint was
made for it.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.checkpoint.card import RAW, ServedBackbone, ServedCard
from pgn_client.errors import CheckpointError, PGNError
from pgn_client.types import Adapter, Answer, Hosted, ModelInfo, Prediction
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import excerpt

_log = logging.getLogger("pgn_client")


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer, and what it took, now or when it was recorded."""

    answer: Answer
    attempts: int = 0
    request_id: str | None = None


@dataclass(slots=True)
class Upload:
    """How far the upload of a checkpoint's hosted part is; shared by all who ask at the same time.

    Attributes:
        busy: held by the one who uploads.
        done: how often it was found or put there.
        there: whether the server has it, as far as is known.
        failure: of the last try.
    """

    busy: threading.Lock = field(default_factory=threading.Lock)
    done: int = 0
    there: bool = False
    failure: PGNError | None = None

    def forgotten(self, seen: int) -> None:
        """The server does not know what was there after ``seen`` uploads; a newer one stays."""
        if self.done == seen:
            self.there = False


@dataclass(slots=True)
class Checkpoint:
    """What images are adapted with, opened at the first use; shared by copies of a client that
    keep it.
    """

    source: str | os.PathLike[str] | Adapter | None
    adapter: Adapter | None = None
    verified: bool = False
    warned: bool = False
    upload: Upload = field(default_factory=Upload)
    _card: ServedCard | None = None

    @property
    def card(self) -> ServedCard:
        """What the adapter's card says of serving; nothing before it is open."""
        if self.adapter is None:
            return ServedCard()
        if self._card is None:
            self._card = ServedCard.from_json(self.adapter.info)
        return self._card

    @property
    def hosted(self) -> Hosted | None:
        """What of it runs on the server, if any; known once it is opened."""
        return getattr(self.adapter, "hosted", None)


def probabilities(answer: Answer) -> Floats:
    """Return an answer's scores as probabilities: the softmax of logits, anything else as it is."""
    scores = np.asarray(answer.scores, dtype=np.float64)
    return np.exp(scores - np.logaddexp.reduce(scores)) if answer.kind == "logits" else scores


def ranked(
    labels: Sequence[str],
    scores: Floats,
    source: Literal["endpoint", "local", "both"],
    reply: Reply,
    *,
    log: bool = False,
) -> Prediction:
    """Return a prediction, best label first; labels of equal scores stay in their order.

    Args:
        labels: S names.
        scores: (S,) probabilities, or log-probabilities where ``log``: two of these that differ may
            round to the same probability, and must still be ranked as they are.
        source: Who answered.
        reply: What the answer took.
        log: Whether scores are log-probabilities.
    """
    order = np.argsort(-scores, kind="stable")
    probabilities = np.exp(scores) if log else scores
    named = {labels[i]: float(probabilities[i]) for i in order}
    best = next(iter(named))
    return Prediction(best, named[best], named, source, reply.attempts, reply.request_id)


def warn_of_few_labels(checkpoint: Checkpoint, endpoint: Endpoint, answer: Answer) -> None:
    """Warn, once, where an answer holds fewer labels than the checkpoint's mapping was fitted
    on.
    """
    if checkpoint.adapter is None or checkpoint.warned or checkpoint.hosted is not None:
        return
    mapping, recipe = checkpoint.adapter.mapping, checkpoint.card.recipe
    source = getattr(mapping, "source", ())
    fitted = min((recipe and recipe.top_k) or len(source), len(source))
    if getattr(mapping, "open", False) or len(answer.labels) >= fitted:
        return
    checkpoint.warned = True
    _log.warning(
        "%s answers %d labels, the mapping was fitted on %d: answers are misread; ask for all "
        "of them, "
        "train with --top-k, or fit the mapping to this endpoint with pgn map --ckpt",
        endpoint.name,
        len(answer.labels),
        fitted,
    )


def verify(card: ServedCard, info: ModelInfo | None, endpoint: Endpoint) -> None:
    """Compare a checkpoint's card with what the endpoint says; warn where it says nothing.

    Raises:
        CheckpointError: made for another backbone, input size or preprocessing.
    """
    # images go as they are, to any model whose labels the mapping reads
    if card.method == RAW:
        return
    backbone = card.backbone or ServedBackbone()
    made_for = (
        (
            "patch embedding",
            backbone.patch_embedding_sha256,
            info and info.patch_embedding_sha256,
        ),
        ("input size", backbone.input_size, info and info.input_size),
        ("profile", card.profile, endpoint.found.profile or (info and info.profile)),
    )
    for what, expected, got in made_for:
        if expected is not None and got is not None and str(expected) != str(got):
            said, name = (
                excerpt(str(text), endpoint.credential.redact)
                for text in (got, info.name if info else got)
            )
            remedy = f"--profile {said}" if what == "profile" else f"--backbone {name}"
            raise CheckpointError(
                f"the checkpoint was made for another model: {what} of {endpoint.name}: got "
                f"{said}, "
                f"expected {expected} "
                f"(checkpoint for {backbone.name}); train again with "
                f"{remedy}"
            )
    if made_for[0][1] is None or made_for[0][2] is None:
        who = endpoint.name if made_for[0][1] is not None else "the checkpoint"
        _log.warning(
            "%s does not publish a patch-embedding fingerprint (only plain ViTs have one), so the "
            "checkpoint could not be verified against it",
            who,
        )
