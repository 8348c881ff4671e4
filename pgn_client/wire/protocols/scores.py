"""Reads the scores of one image, in any of the forms that endpoints use, into an ``Answer``.

The forms are ``[0.7, 0.3]`` (the S labels then come from the config), ``{"cat": 0.7, "dog": 0.3}``,
``[{"label": "cat", "score": 0.7}, ...]`` and ``{"labels": ["cat", "dog"], "scores": [0.7, 0.3]}``.
The last may use other keys (``CLASSES``, ``SCORES``). Each form may be wrapped in a list of one.
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
    """Reader of one endpoint's scores.

    The forms do not define the type of the scores. Unless ``kind`` is set, the scores are logits in
    these cases, and probabilities otherwise:

    - A score is negative.
    - The scores are named, and sum to more than 1 + 1e-3 (float32 rounding of many classes).
    - The scores are all S without labels, and do not sum to 1 ± 1e-2 (float16 rounding).

    The first answer decides for all later ones: a server keeps its type of scores, but the logits
    of one image may look like probabilities by chance.

    Attributes:
        labels: Names for scores that come without labels, in the model's order; if empty, the names
            are ``class 0``, ``class 1``, ….
        kind: Configured or measured type of the scores; None if unknown.
        learnt: ``{"kind": ...}`` with the type of the scores, once the first answer has decided it
            (a dict, because ``setdefault`` is atomic).
    """

    labels: tuple[str, ...] = ()
    kind: ScoreKind | None = None
    learnt: dict[str, ScoreKind] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Reader:
        """Return the reader for an endpoint.

        The type of the scores is the option ``output``, or else the result of a probe.

        Raises:
            ConfigurationError: The option is none of ``KINDS``.
        """
        configured = endpoint.options.get("output")
        choice("output", configured, KINDS)
        measured = endpoint.found.output if endpoint.found.output in KINDS else None
        return cls(endpoint.labels, configured or measured)  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """Digest of the settings that change the answers; empty if nothing is set."""
        return digest(self.labels, self.kind) if self.labels or self.kind else ""

    def read(self, document: Any) -> Answer:
        """Return the answer in the JSON about one image.

        Raises:
            MalformedAnswerError: The document has none of the forms, or its scores are invalid.
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
        """Return the answer in ``{labels, scores}`` or ``{label: score}``."""
        labels = _first_list(document, CLASSES)
        scores = _first_list(document, SCORES)
        if labels is not None and scores is not None:
            return self.pairs(labels, scores)
        if any(isinstance(value, list | dict) for value in document.values()):
            raise MalformedAnswerError(_as_json(document), FORMS)
        return self.pairs(list(document), list(document.values()))

    def numbers(self, scores: Sequence[Any]) -> Answer:
        """Return the answer in S scores without labels, in the model's order.

        For an embedding these are its D numbers.

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
        """Return the answer in named scores: those of all labels, or of the best.

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
        """Return the answer in checked pairs; ``complete`` means that they cover all S labels."""
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
        """Return the type of the scores; the first answer without a configured one decides."""
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
    """Return the first value that is a list among these keys; None if there is none."""
    for key in keys:
        value = document.get(key)
        if isinstance(value, list):
            return value
    return None


def _as_json(document: Any) -> str:
    return json.dumps(document, default=str)


def _merged(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> list[tuple[str, float]]:
    """Return one score per label, by adding up the probabilities of equal labels.

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
