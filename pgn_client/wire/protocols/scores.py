"""Reads the scores of one image, in any of the forms that endpoints use, into an ``Answer``.

The forms are ``[0.7, 0.3]`` (the labels then come from the config), ``{"cat": 0.7, "dog": 0.3}``,
``[{"label": "cat", "score": 0.7}, ...]`` and ``{"labels": ["cat", "dog"], "scores": [0.7, 0.3]}``.
The last form may have other keys (``CLASSES``, ``SCORES``). Each form may be the only element of a
list.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pgn_client.types import Answer, ScoreKind
from pgn_client.wire.endpoint import Endpoint, Meaning
from pgn_client.wire.protocols.base import (
    MalformedAnswerError,
    best_first,
    checked_scores,
    digest,
    embedding,
)
from pgn_client.wire.protocols.options import meaning

# ``displayNames`` and ``confidences`` are the keys of Vertex AI's AutoML models.
CLASSES = ("labels", "classes", "displayNames")
SCORES = ("scores", "confidences", "probabilities")
KINDS = get_args(Meaning)
# Rounding in float16 changes the sum of all classes' probabilities, rounding in float32 that of the
# best ones.
SLACK_OF_ALL = 1e-2
SLACK_OF_BEST = 1e-3
# The odds of a sigmoid score of 0 or 1 are infinite; float32 cannot tell a score that is closer
# than this to 1.
CLOSEST = 2.0**-24
FORMS = "scores: a list of numbers, {label: score}, [{label, score}, ...] or {labels, scores}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns the scores in an endpoint's responses into answers: labels with scores of a known type.

    A response does not say what its numbers mean. The option ``output`` or a probe settles it for
    all answers:

    - ``probabilities``: Divided by their sum if that exceeds 1.
    - ``logits``: Taken unchanged.
    - ``sigmoid``: Independent probabilities, which need not sum to 1. They become logits,
      log(p / (1 - p)), so that a model gives the same answer whether its server applies a sigmoid
      or returns the logits themselves.
    - ``embedding``: Features of the image.

    Otherwise each answer is read on its own, by a rule that does not depend on earlier answers:

    - A score below 0 or above 1 shows logits.
    - Scores in [0, 1] are probabilities if they come with labels and sum to at most 1 + 1e-3, or if
      they come without labels, so for all classes, and sum to 1 ± 1e-2.
    - Other scores in [0, 1] may be sigmoid scores or logits. Their kind is ``unknown``, and they
      are refused where their meaning is needed.

    Attributes:
        labels: Names for scores that come without labels, in the model's order; if empty, the names
            are ``class 0``, ``class 1``, ….
        kind: Meaning of the numbers, configured or measured by a probe; None if unknown.
        measured: Whether ``kind`` comes from a probe, not from an option.
    """

    labels: tuple[str, ...] = ()
    kind: Meaning | None = None
    measured: bool = False

    @classmethod
    def of(cls, endpoint: Endpoint) -> Reader:
        """Return the reader for an endpoint's scores.

        The meaning of the numbers comes from the option ``output``, or else from an earlier probe.

        Raises:
            ConfigurationError: The option has an unknown value.
        """
        measured = not {"output", "scores"} & endpoint.options.keys()
        return cls(endpoint.labels, meaning(endpoint), measured=measured)

    @property
    def mark(self) -> str:
        """Text for the cache key of a wire format that ignored a probe's finding before.

        Empty unless an option gives the meaning of the numbers, or a probe found sigmoid scores,
        which earlier versions had no name for: the answers that they recorded keep their key.
        """
        is_new = self.kind is not None and (not self.measured or self.kind == "sigmoid")
        return self.kind if is_new and self.kind else ""

    @property
    def digest(self) -> str:
        """Digest of the labels and the type of scores, for a cache key; empty if neither is set."""
        return digest(self.labels, self.kind) if self.labels or self.kind else ""

    def read(self, document: Any) -> Answer:
        """Return the answer, labels with scores, from a response's parsed JSON about one image.

        Raises:
            MalformedAnswerError: The JSON has none of the known forms, or its scores are invalid.
        """
        while (
            isinstance(document, list)
            and len(document) == 1
            and isinstance(document[0], list | dict)
            and not _is_pair(document[0])
        ):
            document = document[0]

        if isinstance(document, list) and document:
            if all(_is_pair(item) for item in document):
                labels = [item["label"] for item in document]
                scores = [item["score"] for item in document]
                return self.pairs(labels, scores)
            if not any(isinstance(item, dict | list) for item in document):
                return self.numbers(document)
        if isinstance(document, dict) and document:
            return self._object(document)
        raise MalformedAnswerError(_as_json(document), FORMS)

    def _object(self, document: dict[Any, Any]) -> Answer:
        """Return the answer from a JSON object, ``{labels, scores}`` or ``{label: score}``."""
        labels = _first_list(document, CLASSES)
        scores = _first_list(document, SCORES)
        if labels is not None and scores is not None:
            return self.pairs(labels, scores)
        if any(isinstance(value, list | dict) for value in document.values()):
            raise MalformedAnswerError(_as_json(document), FORMS)
        return self.pairs(list(document), list(document.values()))

    def numbers(self, scores: Sequence[Any]) -> Answer:
        """Return the answer from scores without labels, one per class in the model's order.

        For an embedding, the numbers are its features.

        Raises:
            MalformedAnswerError: The numbers of scores and labels differ, or a score is not a
                finite number.
        """
        if self.kind == "embedding":
            return embedding(scores)
        labels = self.labels or tuple(f"class {index}" for index in range(len(scores)))
        if len(labels) != len(scores):
            raise MalformedAnswerError(
                f"{len(scores)} scores", f"{len(labels)}, one for each of the configured labels"
            )
        return self._answer(checked_scores(labels, scores), complete=True)

    def pairs(self, labels: Sequence[Any], scores: Sequence[Any]) -> Answer:
        """Return the answer from labels and their scores, of all classes or only of the best ones.

        Raises:
            MalformedAnswerError: There is no label, a label is not text, or a score is not a finite
                number.
        """
        if self.kind == "embedding":
            raise MalformedAnswerError(
                _as_json(list(labels)[:3]),
                "an embedding's numbers without labels",
                "labels such as ",
            )
        return self._answer(checked_scores(labels, scores), complete=False)

    def _answer(self, pairs: list[tuple[str, float]], *, complete: bool) -> Answer:
        """Return the answer from checked (label, score) pairs.

        ``complete`` means that the pairs cover all labels of the model.
        """
        scores = [score for _, score in pairs]
        if self.kind == "sigmoid":
            self._check_range(scores, SLACK_OF_BEST)
            odds = [(label, _log_odds(score)) for label, score in pairs]
            return best_first(_merged(odds, "logits"), "logits")
        if self.kind == "probabilities":
            self._check_range(scores, math.inf)
            merged = _merged(pairs, "probabilities")
            total = sum(score for _, score in merged)
            if total > 1:
                merged = [(label, score / total) for label, score in merged]
            return best_first(merged, "probabilities")

        # An embedding has left before.
        kind: ScoreKind = "logits" if self.kind == "logits" else _kind(scores, complete=complete)
        return best_first(_merged(pairs, kind), kind)

    def _check_range(self, scores: Sequence[float], slack: float) -> None:
        """Check that no score is below 0, or above 1 by more than ``slack``."""
        for score in (min(scores), max(scores)):
            if not 0 <= score <= 1 + slack:
                raise MalformedAnswerError(
                    f"the score {score:g}",
                    f"scores in [0, 1], because output = {self.kind} is configured; if the "
                    "endpoint returns logits, say so there",
                )


def _kind(scores: Sequence[float], *, complete: bool) -> ScoreKind:
    """Return the kind of one answer's scores, as far as they show it; see ``Reader``.

    ``complete`` means that the scores cover all labels of the model.
    """
    total = sum(scores)
    if min(scores) < 0 or max(scores) > 1 + SLACK_OF_BEST:
        return "logits"
    if complete:
        return "probabilities" if abs(total - 1) <= SLACK_OF_ALL else "unknown"
    return "probabilities" if total <= 1 + SLACK_OF_BEST else "unknown"


def _log_odds(p: float) -> float:
    """Return the logit log(p / (1 - p)) of a sigmoid score in [0, 1]."""
    p = min(max(p, CLOSEST), 1 - CLOSEST)
    return math.log(p) - math.log1p(-p)


def _is_pair(item: Any) -> bool:
    return isinstance(item, dict) and {"label", "score"} <= item.keys()


def _first_list(document: dict[Any, Any], keys: Sequence[str]) -> list[Any] | None:
    """Return the value of the first of these keys that holds a list; None if none does."""
    for key in keys:
        value = document.get(key)
        if isinstance(value, list):
            return value
    return None


def _as_json(document: Any) -> str:
    return json.dumps(document, default=str)


def _merged(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> list[tuple[str, float]]:
    """Return one (label, score) pair per label, adding up the probabilities of equal labels.

    Two classes may have one name: ImageNet has two classes "crane".
    """
    merged: dict[str, float] = {}
    for label, score in pairs:
        if label not in merged:
            merged[label] = score
        elif kind == "logits":
            # log(exp(high) + exp(low)), in a form that cannot overflow
            high = max(merged[label], score)
            low = min(merged[label], score)
            merged[label] = high + math.log1p(math.exp(low - high))
        else:
            merged[label] += score
    return list(merged.items())
