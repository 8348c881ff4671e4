"""Turns an endpoint's answer into a prediction, and checks that a checkpoint fits the endpoint."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.checkpoint.card import RAW, ServedBackbone, ServedCard
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.mapping.fusion import fuse
from pgn_client.types import NONE, Answer, ModelInfo, Prediction, Reply
from pgn_client.wire.call_options import Weights
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.prepare import Job
from pgn_client.wire.protocols.base import excerpt
from pgn_client.wire.protocols.options import meaning

_log = logging.getLogger("pgn_client")


def predict(
    checkpoint: LoadedAdapter, weights: Weights, endpoint: Endpoint, job: Job, reply: Reply
) -> Prediction:
    """Return the prediction for one image.

    Its label is ``NONE`` if its score is below ``none_below``, a threshold in the checkpoint.

    Args:
        checkpoint: Checkpoint of the client.
        weights: Weight of the local head.
        endpoint: Endpoint that replied.
        job: The image as it was prepared, with the answer of the local head.
        reply: Reply of the endpoint; of no meaning if the local head answers alone.

    Raises:
        ConfigurationError: The endpoint returns embeddings, and there is no checkpoint.
    """
    prediction = _rank_classes(checkpoint, weights, endpoint, job, reply)
    none_below = checkpoint.card.none_below or 0.0
    return replace(prediction, label=NONE) if prediction.score < none_below else prediction


def _rank_classes(
    checkpoint: LoadedAdapter, weights: Weights, endpoint: Endpoint, job: Job, reply: Reply
) -> Prediction:
    """Return the prediction of the endpoint, the checkpoint's local head, or both fused."""
    adapter = checkpoint.adapter
    if adapter is None:
        if reply.answer.kind == "embedding":
            raise ConfigurationError(
                f"{endpoint.name} returns embeddings, which name no class: got pgn_ckpt=None, "
                "expected a checkpoint that maps embeddings to classes; make one with pgn map"
            )
        return ranked(reply.answer.labels, probabilities(reply.answer), "endpoint", reply)

    mapping = adapter.mapping
    if job.confident and job.local is not None:
        return ranked(mapping.classes, job.local, "local", reply, log=True)

    log_probs = np.asarray(mapping([reply.answer])[0], dtype=np.float64)
    warn_of_few_labels(checkpoint, endpoint, reply.answer)
    alpha = weights.of(checkpoint.card, job.local)
    if alpha == 0.0 or job.local is None:
        return ranked(mapping.classes, log_probs, "endpoint", reply, log=True)

    fused = fuse(log_probs[None], job.local[None], alpha)[0]
    return ranked(mapping.classes, fused, "both", reply, log=True)


def probabilities(answer: Answer) -> Floats:
    """Return an answer's scores, one per label: the softmax of logits, other kinds unchanged.

    Raises:
        ConfigurationError: The meaning of the scores is unknown.
    """
    answer.check_kind()
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
    """Return a prediction with the best label first; labels of equal scores keep their order.

    Args:
        labels: Names of the n classes.
        scores: (n,) probabilities, or log-probabilities if ``log``. Two different log-probabilities
            may round to the same probability; they are still ranked by their log-probabilities.
        source: Origin of the scores: the endpoint, the local head (the checkpoint's own small
            classifier), or both.
        reply: Endpoint's reply, with the number of requests and the request identifier.
        log: Whether scores are log-probabilities.
    """
    order = np.argsort(-scores, kind="stable")
    probabilities = np.exp(scores) if log else scores
    named = {labels[i]: float(probabilities[i]) for i in order}
    best = next(iter(named))
    return Prediction(best, named[best], named, source, reply.attempts, reply.request_id)


def warn_of_few_labels(checkpoint: LoadedAdapter, endpoint: Endpoint, answer: Answer) -> None:
    """Log a warning if an answer has fewer labels than the label mapping was fitted on.

    Log another one if its scores do not have the meaning that the mapping was fitted to. Each is
    logged once per checkpoint.
    """
    # A hosted checkpoint gets the task's own classes from the server, so it maps no labels.
    if checkpoint.adapter is None or checkpoint.hosted is not None:
        return
    _warn_of_other_scores(checkpoint, endpoint, answer)
    if checkpoint.warned:
        return

    mapping = checkpoint.adapter.mapping
    recipe = checkpoint.card.recipe
    # ``ScoreMapping`` does not require ``source`` and ``open``; a user's mapping may lack them.
    source = getattr(mapping, "source", ())
    fitted = len(source)
    if recipe is not None and recipe.top_k is not None:
        # The recipe may request more labels than the endpoint has.
        fitted = min(fitted, recipe.top_k)
    if getattr(mapping, "open", False) or len(answer.labels) >= fitted:
        return

    checkpoint.warned = True
    _log.warning(
        "%s returns %d labels, but the label mapping was fitted on %d and misreads shorter "
        "answers; request all labels, train with --top-k, or fit the mapping to this endpoint "
        "with pgn map --ckpt",
        endpoint.name,
        len(answer.labels),
        fitted,
    )


def _warn_of_other_scores(checkpoint: LoadedAdapter, endpoint: Endpoint, answer: Answer) -> None:
    """Log a warning if sigmoid scores meet a mapping of other scores, or the other way around."""
    fitted = checkpoint.card.scores
    # An answer alone cannot show that its scores in [0, 1] are sigmoid scores.
    read = meaning(endpoint) or answer.kind
    differs = fitted is not None and fitted != read and "sigmoid" in (fitted, read)
    # Answers with other signs of logits are right however the mapping was fitted: it reads the
    # logits of sigmoid scores.
    if not differs or checkpoint.warned_of_scores or (read == "logits" and not meaning(endpoint)):
        return

    checkpoint.warned_of_scores = True
    _log.warning(
        "%s: its scores are read as %s, but the label mapping was fitted to %s; set output = "
        '"%s" in the options of the endpoint file, or fit the mapping again with pgn map --ckpt',
        endpoint.name,
        read,
        fitted,
        fitted,
    )


def verify(card: ServedCard, info: ModelInfo | None, endpoint: Endpoint) -> None:
    """Check that a checkpoint was made for the model that the endpoint serves.

    Fields that the checkpoint's card (its metadata) or the endpoint does not give are skipped. A
    missing patch-embedding fingerprint is logged as a warning.

    Args:
        card: Metadata of the checkpoint.
        info: Model description of the endpoint, or None if it gives none.
        endpoint: Endpoint that was described.

    Raises:
        CheckpointError: The checkpoint was made for another backbone, input size or preprocessing.
    """
    # A raw checkpoint sends images unchanged, so it fits any model whose labels it maps.
    if card.method == RAW:
        return

    backbone = card.backbone or ServedBackbone()
    fingerprint = backbone.patch_embedding_sha256
    published = info.patch_embedding_sha256 if info else None
    # A prompt that was trained through a stand-in on purpose fits no model exactly.
    if card.surrogate == "stand_in":
        fingerprint = published = None
    fields = (
        ("patch embedding", fingerprint, published),
        ("input size", backbone.input_size, info and info.input_size),
        ("profile", card.profile, endpoint.found.profile or (info and info.profile)),
    )
    for what, expected, got in fields:
        if expected is None or got is None or expected == got:
            continue
        shown = excerpt(str(got), endpoint.credential.redact)
        name = excerpt(str(info.name if info else got), endpoint.credential.redact)
        remedy = f"--profile {shown}" if what == "profile" else f"--backbone {name}"
        raise CheckpointError(
            f"the checkpoint was made for another model: {what} of {endpoint.name}: got {shown}, "
            f"expected {expected} (checkpoint for {backbone.name or 'an unnamed backbone'}); "
            f"train again with {remedy}"
        )

    if card.surrogate == "stand_in":
        _log.warning("the checkpoint was trained through a stand-in for the hosted model")
    elif fingerprint is None:
        _log.warning(
            "the checkpoint has no patch-embedding fingerprint (only plain ViTs have one), so it "
            "could not be verified against %s",
            endpoint.name,
        )
    elif published is None:
        _log.warning(
            "%s does not publish a patch-embedding fingerprint (only plain ViTs have one), so the "
            "checkpoint could not be verified against it",
            endpoint.name,
        )
