"""What endpoints say about one image, in all the forms in which they say it, as an ``Answer``.

``[0.7, 0.3]`` (the names of the S labels must be known), ``{"cat": 0.7, "dog": 0.3}``, ``[{"label":
"cat", "score": 0.7}, ...]``, ``{"labels": ["cat", "dog"], "scores": [0.7, 0.3]}`` and the same
under other names (``CLASSES``, ``SCORES``); each may stand in a list of one.
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

CLASSES = ("labels", "classes", "displayNames")
SCORES = ("scores", "confidences", "probabilities")
KINDS = ("probabilities", "logits", "embedding")
FORMS = "scores: a list of numbers, {label: score}, [{label, score}, ...] or {labels, scores}"


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads what one endpoint says.

    No format says what its scores are. Unless ``kind`` is given they are probabilities, but logits
    where one is negative, or they sum to more than 1 + 1e-3 (float32 rounding of many classes), or
    all of them to other than 1 ± 1e-2 (float16). The first answer decides for all: a server does
    not change from image to image, but an unlucky image's logits may look like probabilities.

    Attributes:
        labels: names of bare numbers, in the model's order; empty stands for ``class 0``, ``class
            1``, ...
        kind: what the scores are, where somebody said so.
        learnt: ``{"kind": ...}`` once the first answer has decided it (a dict, because
            ``setdefault`` is atomic).
    """

    labels: tuple[str, ...] = ()
    kind: ScoreKind | None = None
    learnt: dict[str, ScoreKind] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, endpoint: Endpoint) -> Reader:
        """Make the reader for an endpoint; the kind is its option ``output``, or what a probe has
        found.

        Raises:
            ConfigurationError: the option is none of ``KINDS``.
        """
        wish = endpoint.options.get("output")
        choice("output", wish, KINDS)
        found = endpoint.found.output
        return cls(endpoint.labels, wish or (found if found in KINDS else None))  # type: ignore[arg-type]

    @property
    def digest(self) -> str:
        """Tells readers apart whose answers differ; empty for one that was told nothing."""
        return digest(self.labels, self.kind) if self.labels or self.kind else ""

    def read(self, said: Any) -> Answer:
        """Return what was said about one image.

        Raises:
            MalformedAnswerError: none of the forms.
        """
        while (
            isinstance(said, list)
            and len(said) == 1
            and isinstance(said[0], list | dict)
            and not _is_pair(said[0])
        ):
            said = said[0]
        if isinstance(said, list) and said:
            if all(_is_pair(item) for item in said):
                return self.pairs(
                    [item["label"] for item in said], [item["score"] for item in said]
                )
            if not any(isinstance(item, dict | list) for item in said):
                return self.numbers(said)
        if isinstance(said, dict) and said:
            return self._object(said)
        raise MalformedAnswerError(_shown(said), FORMS)

    def _object(self, said: dict[Any, Any]) -> Answer:
        names = next((said[key] for key in CLASSES if isinstance(said.get(key), list)), None)
        scores = next((said[key] for key in SCORES if isinstance(said.get(key), list)), None)
        if names is not None and scores is not None:
            return self.pairs(names, scores)
        if any(isinstance(value, list | dict) for value in said.values()):
            raise MalformedAnswerError(_shown(said), FORMS)
        return self.pairs(list(said), list(said.values()))

    def numbers(self, scores: Sequence[Any]) -> Answer:
        """Return S bare numbers, in the model's order, with their names; or the D numbers of an
        embedding.

        Raises:
            MalformedAnswerError: another number of them than there are labels, or one that is none
                or not finite.
        """
        if self.kind == "embedding":
            return embedding(scores)
        names = self.labels or tuple(f"class {place}" for place in range(len(scores)))
        if len(names) != len(scores):
            raise MalformedAnswerError(
                f"{len(scores)} scores", f"{len(names)}, one for each of the given labels"
            )
        return self._answer(checked_scores(names, scores), complete=True)

    def pairs(self, labels: Sequence[Any], scores: Sequence[Any]) -> Answer:
        """Return named scores: all of them, or the best.

        Raises:
            MalformedAnswerError: a name that is no text, a score that is no finite number, or none
                at all.
        """
        if self.kind == "embedding":
            raise MalformedAnswerError(
                _shown(list(labels)[:3]), "an embedding's bare numbers", "labels such as "
            )
        return self._answer(checked_scores(labels, scores), complete=False)

    def _answer(self, pairs: list[tuple[str, float]], *, complete: bool) -> Answer:
        kind = self._kind([score for _, score in pairs], 1e-2 if complete else 1e-3, complete)
        merged = _merged(pairs, kind)
        total = sum(score for _, score in merged)
        # independent confidences, said to be probabilities
        if kind == "probabilities" and self.kind and total > 1:
            merged = [(label, score / total) for label, score in merged]
        return best_first(merged, kind)

    def _kind(self, scores: list[float], slack: float, complete: bool) -> ScoreKind:
        lowest, total = min(scores), sum(scores)
        impossible = lowest < 0 or total > 1 + slack
        if self.kind is not None:
            if self.kind == "probabilities" and lowest < 0:
                raise MalformedAnswerError(
                    f"the score {lowest:g}", "probabilities, as the option output says"
                )
            return self.kind
        logits = impossible or (complete and total < 1 - slack)
        kind = self.learnt.setdefault("kind", "logits" if logits else "probabilities")
        if impossible and kind == "probabilities":
            raise MalformedAnswerError(
                f"scores from {lowest:g} with the sum {total:g}",
                "probabilities as in the first answer (configure the endpoint to return softmax "
                "probabilities)",
            )
        return kind


def _is_pair(item: Any) -> bool:
    return isinstance(item, dict) and {"label", "score"} <= item.keys()


def _shown(said: Any) -> str:
    return json.dumps(said, default=str)


def _merged(pairs: Iterable[tuple[str, float]], kind: ScoreKind) -> list[tuple[str, float]]:
    """Add up what is said of one label: two classes may have one name (ImageNet has two kinds of
    "crane").
    """
    merged: dict[str, float] = {}
    for label, score in pairs:
        if label not in merged:
            merged[label] = score
        elif kind == "logits":  # log(exp(a) + exp(b))
            high, low = max(merged[label], score), min(merged[label], score)
            merged[label] = high + math.log1p(math.exp(low - high))
        else:
            merged[label] += score
    return list(merged.items())
