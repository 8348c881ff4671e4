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
from dataclasses import dataclass, field
from typing import Any

from pgn_client.types import Answer, ScoreKind
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.protocols.base import (
    MalformedAnswerError,
    best_first,
    checked_scores,
    digest,
    embedding,
)
from pgn_client.wire.protocols.options import choice

# ``displayNames`` and ``confidences`` are the keys of Vertex AI's AutoML models.
CLASSES = ("labels", "classes", "displayNames")
SCORES = ("scores", "confidences", "probabilities")
KINDS = ("probabilities", "logits", "embedding")
FORMS = "scores: a list of numbers, {label: score}, [{label, score}, ...] or {labels, scores}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Turns the scores in an endpoint's responses into answers: labels with scores of a known type.

    A response does not say whether its scores are probabilities or logits. Unless ``kind`` is set,
    they are logits in these cases, and probabilities otherwise:

    - A score is negative.
    - The scores come with labels, and sum to more than 1 + 1e-3. The margin is for rounding in
      float32.
    - The scores come without labels, so for all classes, and do not sum to 1 ± 1e-2. The margin is
      for rounding in float16.

    The first answer decides for all later ones: a server keeps its type of scores, but the logits
    of one image may look like probabilities by chance.

    Attributes:
        labels: Names for scores that come without labels, in the model's order; if empty, the names
            are ``class 0``, ``class 1``, ….
        kind: Type of the scores, configured or measured by a probe; None if unknown.
        learnt: ``{"kind": ...}`` with the type of the scores, once the first answer has decided it
            (a dict, because ``setdefault`` is atomic).
    """

    labels: tuple[str, ...] = ()
    kind: ScoreKind | None = None
    learnt: dict[str, ScoreKind] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Reader:
        """Return the reader for an endpoint's scores.

        The type of the scores comes from the option ``output``, or else from an earlier probe.

        Raises:
            ConfigurationError: The option is none of ``KINDS``.
        """
        configured = endpoint.options.get("output")
        choice("output", configured, KINDS)
        measured = endpoint.found.output if endpoint.found.output in KINDS else None
        return cls(endpoint.labels, configured or measured)  # type: ignore[arg-type]

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
        # The slack allows for rounding; see ``Reader``.
        kind = self._kind(scores, 1e-2 if complete else 1e-3, complete)
        merged = _merged(pairs, kind)

        # Configured as probabilities, but they are independent confidences of several labels.
        total = sum(score for _, score in merged)
        if kind == "probabilities" and self.kind and total > 1:
            merged = [(label, score / total) for label, score in merged]
        return best_first(merged, kind)

    def _kind(self, scores: list[float], slack: float, complete: bool) -> ScoreKind:
        """Return the type of the scores: the configured one, or else that of the first answer.

        ``slack`` is how far a sum of probabilities may be from 1 by rounding. ``complete`` means
        that the scores cover all labels of the model.
        """
        lowest = min(scores)
        total = sum(scores)
        if self.kind is not None:
            if self.kind == "probabilities" and lowest < 0:
                raise MalformedAnswerError(
                    f"the score {lowest:g}",
                    "scores in [0, 1], because the option output says probabilities; if the "
                    "endpoint returns logits, say so there",
                )
            return self.kind

        impossible = lowest < 0 or total > 1 + slack
        are_logits = impossible or (complete and total < 1 - slack)
        kind = self.learnt.setdefault("kind", "logits" if are_logits else "probabilities")
        if impossible and kind == "probabilities":
            raise MalformedAnswerError(
                f"scores from {lowest:g} with the sum {total:g}",
                "probabilities as in the first answer (configure the endpoint to return softmax "
                "probabilities)",
            )
        return kind


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
