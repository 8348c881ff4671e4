"""Label mapping: from what an endpoint answers (S source labels) to the task's C classes.

Importing this module and applying a mapping needs NumPy only. Fitting ``flm``, ``ilm`` or
``linear`` needs SciPy, which the extra ``[train]`` installs.

An answer becomes a row of S log-probabilities x (:func:`log_scores`); a :class:`LabelMapping` turns
rows into C log-probabilities; :func:`fit` chooses among several kinds by log-loss on validation
examples. ``identity`` (every class is a source label) and those of ``counting`` (``flm``, ``ilm``,
``blm``, ``blm+``) are additive, log normalise(exp(x) @ weight); ``linear`` is log softmax(x @
weight + bias), pulled to the identity where source labels and classes are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import CheckpointError, ConfigurationError, ShapeError
from pgn_client.mapping.frequency import blm, blm_plus, one_to_one
from pgn_client.mapping.logistic_regression import (
    check_examples,
    logistic_regression_cv,
    stratified,
)
from pgn_client.mapping.probability import log_loss, log_normalised, log_softmax

if TYPE_CHECKING:
    from pgn_client.types import Answer


MappingKind = Literal["identity", "flm", "ilm", "blm", "blm+", "linear"]
KINDS = get_args(MappingKind)
AUTO: tuple[MappingKind, ...] = ("identity", "blm+", "linear")
"""What is tried where nothing is asked for. BLM+ stands for the kinds that count: with 240 images
and all scores, ``linear`` was far above each of them on all of six sets (see the log).
"""
Counting = Callable[[Any, Any, int], Any]
COUNTING: dict[MappingKind, Counting] = {
    "flm": one_to_one,
    "ilm": one_to_one,
    "blm": blm,
    "blm+": blm_plus,
}


def vocabulary(answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the sorted union of all labels in the answers: the S source labels."""
    first = answers[0].labels if answers else ()
    if are_embeddings(first) and all(answer.labels == first for answer in answers):
        return first
    return tuple(sorted({label for answer in answers for label in answer.labels}))


def log_scores(
    answers: Sequence[Answer], source: tuple[str, ...], *, strict: bool = True
) -> Floats:
    """Turn n answers into (n, S) float64 log-probabilities over the source labels.

    Logits go through a softmax over what was returned; a hard label is one-hot; labels that appear
    twice in an answer are summed. The residual mass r = max(0, 1 - sum of what was returned) is
    spread evenly over the labels that were not returned. Every row is then normalised, raised to
    ``FLOOR``, and normalised again; so a model gives the same row whether it sends probabilities or
    logits. Labels outside ``source`` are dropped together with their mass. Embeddings stay as they
    are: their rows are no log-probabilities, and only ``linear`` reads them.

    Deviation: no missing label receives more than the smallest probability that was returned,
    because an answer lists the best labels; without this a small vocabulary would lift the missing
    labels above the best one.

    Args:
        answers: n answers of any kinds.
        source: the S source labels, without repetition.
        strict: whether an answer without a single known label is an error; otherwise its row is
            uniform.

    Raises:
        ConfigurationError: an answer shares no label with ``source``, or has a score that is no
            finite number, or is an embedding of other features.
    """
    if any(answer.kind == "embedding" for answer in answers):
        return _embeddings(answers, source)
    index = {label: s for s, label in enumerate(source)}
    rows = np.zeros((len(answers), len(source)))
    for row, answer in zip(rows, answers, strict=True):
        known = [(index[label], i) for i, label in enumerate(answer.labels) if label in index]
        if strict and not known:
            raise ConfigurationError(
                f"label mapping: got an answer with labels such as {list(answer.labels[:3])}, "
                "expected some of the "
                f"{len(source)} source labels such as {list(source[:3])}; fit the mapping again "
                "for this endpoint"
            )
        _fill(row, known, _probabilities(answer))
    return log_normalised(rows)


def are_embeddings(source: Sequence[str]) -> bool:
    """Whether source labels name the numbers of an embedding, and not classes."""
    return bool(source) and source[0] == "dim 0"


def _embeddings(answers: Sequence[Answer], source: tuple[str, ...]) -> Floats:
    for answer in answers:
        if answer.labels != source or not np.isfinite(answer.scores).all():
            raise ConfigurationError(
                f"label mapping: got {answer.kind} with {len(answer.labels)} numbers, expected "
                "finite ones of the "
                f"{len(source)} source labels such as {list(source[:3])}; fit the mapping again "
                "for this endpoint"
            )
    return np.array([answer.scores for answer in answers], dtype=np.float64)


def _fill(row: Floats, known: list[tuple[int, int]], p: Floats) -> None:
    """Write one answer's probabilities into its row of S zeros, the residual mass into the labels
    not returned.
    """
    places = np.array([s for s, _ in known], dtype=np.int64)
    np.add.at(row, places, p[[i for _, i in known]])  # add: ImageNet has two classes called "crane"
    missing = np.ones(row.size, dtype=bool)
    missing[places] = False
    if missing.any() and p.size:
        row[missing] = min(max(0.0, 1.0 - float(p.sum())) / int(missing.sum()), float(p.min()))


def _probabilities(answer: Answer) -> Floats:
    scores = np.asarray(answer.scores, dtype=np.float64)
    if len(scores) != len(answer.labels) or not np.isfinite(scores).all():
        raise ConfigurationError(
            f"answer: got {len(scores)} scores {answer.scores[:3]} for {len(answer.labels)} "
            "labels, "
            "expected one finite number per label; check the endpoint's protocol"
        )
    if answer.kind == "logits":
        scores = np.exp(scores - scores.max(initial=-np.inf))
        return np.asarray(scores / scores.sum())
    return np.ones_like(scores) if answer.kind == "label" else np.maximum(scores, 0.0)


@dataclass(frozen=True, eq=False)
class LabelMapping:
    """A fitted mapping from source labels to task classes; implements ``types.ScoreMapping``.

    Attributes:
        kind: ``identity``, ``flm`` (fitted once), ``ilm`` (the same, fitted anew after each epoch
            of a training, as all that follow), ``blm``, ``blm+`` or ``linear``.
        source: the S source labels, in the order of the features.
        classes: the C task classes.
        weight: (S, C) float64; non-negative for the additive kinds.
        bias: (C,) float64; zero for the additive kinds.
        open: whether ``source`` is only what an endpoint was seen to say: then an answer of other
            labels is no error, it says nothing.
    """

    kind: MappingKind
    source: tuple[str, ...]
    classes: tuple[str, ...]
    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    open: bool = False

    def __post_init__(self) -> None:
        _check_kinds((self.kind,))
        S, C = len(self.source), len(self.classes)
        if self.weight.shape != (S, C) or self.bias.shape != (C,):
            raise ShapeError(
                f"label mapping: got weight {self.weight.shape} and bias {self.bias.shape}, "
                f"expected {(S, C)} and "
                f"{(C,)} for {S} source labels and {C} classes"
            )

    @property
    def additive(self) -> bool:
        """Whether probabilities are added; only ``linear`` is linear in log-probabilities
        instead.
        """
        return self.kind != "linear"

    def __call__(self, answers: Sequence[Answer]) -> Floats:
        """Map answers to (n, C) float64 log-probabilities; raises as :func:`log_scores`, unless
        ``open``.
        """
        return self.log_probs(log_scores(answers, self.source, strict=not self.open))

    def log_probs(self, features: Floats) -> Floats:
        """Map (n, S) float64 log-probabilities, as of :func:`log_scores`, to (n, C) float64
        log-probabilities.

        Raises:
            ShapeError: not S columns.
        """
        if features.ndim != 2 or features.shape[1] != len(self.source):
            raise ShapeError(
                f"label mapping: got features {features.shape}, expected (n, {len(self.source)})"
            )
        if self.additive:
            return log_normalised(np.exp(features) @ self.weight)
        return log_softmax(features @ self.weight + self.bias)

    def arrays(self) -> dict[str, Floats]:
        """Return the arrays for a checkpoint: ``weight`` (S, C) and ``bias`` (C,), float64,
        contiguous.
        """
        return {
            "weight": np.ascontiguousarray(self.weight),
            "bias": np.ascontiguousarray(self.bias),
        }

    def card(self) -> dict[str, Any]:
        """Return what is no array, ready for JSON: ``kind``, ``source`` and ``classes``, and
        ``open`` if it is.
        """
        card = {"kind": self.kind, "source": list(self.source), "classes": list(self.classes)}
        return card | ({"open": True} if self.open else {})

    @classmethod
    def from_parts(cls, card: Mapping[str, Any], arrays: Mapping[str, Any]) -> LabelMapping:
        """Rebuild a mapping from :meth:`card` and :meth:`arrays`; parts that do not fit raise
        ``CheckpointError``.
        """
        try:
            weight, bias = (
                np.asarray(arrays[name], dtype=np.float64) for name in ("weight", "bias")
            )
            names = tuple(card["source"]), tuple(card["classes"])
            return cls(card["kind"], *names, weight, bias, bool(card.get("open", False)))
        except (
            KeyError,
            TypeError,
            ValueError,
        ) as error:  # ShapeError and ConfigurationError are ValueErrors
            message = (
                f"label mapping in the checkpoint: got {error!s}, expected parts that fit; "
                "save it again"
            )
            raise CheckpointError(message) from error


@dataclass(frozen=True)
class Fitted:
    """What :func:`fit` found.

    Attributes:
        mapping: the chosen mapping, fitted on all examples.
        log_loss: Log-loss of every kind tried, on the validation examples or cross-validated, in
            nats per example.
        l2: strength of the penalty of ``linear`` (see :func:`logistic_regression`), where it was
            tried.
    """

    mapping: LabelMapping
    log_loss: dict[str, float]
    l2: float | None = None


def fit(
    features: Floats,
    labels: Integers,
    source: tuple[str, ...],
    classes: tuple[str, ...],
    *,
    val: tuple[Floats, Integers] | None = None,
    kinds: Sequence[str] = AUTO,
    copies: int = 1,
    folds: int = 5,
    seed: int = 0,
) -> Fitted:
    """Fit every kind of mapping and keep the one with the least log-loss on examples it was not
    fitted on.

    Cross-validation misjudges tasks with two or three examples a class, whose training folds lack
    whole classes: with 240 images of 101 classes it took ``blm+`` (accuracy 0.645, log-loss 1.27
    on others) for ``linear`` (0.725, 1.17). So validation examples decide where there are some.

    Args:
        features: (n, S) float64 log-probabilities, as of :func:`log_scores`; n >= 2.
        labels: (n,) int64 in [0, C), C >= 2; a class may have one example, or none, and then keeps
            a small prior.
        source: the S source labels.
        classes: the C task classes; the identity is tried where every one of them is a source
            label.
        val: features and labels of other examples, which choose the kind; ``None`` cross-validates.
        kinds: which kinds to try; among equals the first wins.
        copies: the examples are so many blocks of versions of the same images; no fold parts the
            versions of one.
        folds: number of stratified folds, at most n.
        seed: of the assignment to folds.

    Raises:
        ConfigurationError: fewer than 2 classes or examples, a score that is not finite, a label
            out of range, an unknown kind, or no kind that is possible.
        MissingDependencyError: scipy is not installed, and ``kinds`` names ``flm``, ``ilm`` or
            ``linear``.
        ShapeError: features and labels do not fit.
    """
    _check_kinds(kinds)
    C = len(classes)
    check_examples(features, labels, C)
    if features.shape[1] != len(source):
        raise ShapeError(
            f"label mapping: got features {features.shape}, expected {len(source)} columns"
        )
    if set(kinds) == {"identity"} and not set(classes) <= set(source):
        absent = sorted(set(classes) - set(source))[:3]
        raise ConfigurationError(
            f"identity mapping: got classes {absent}, expected source labels; allow blm+ or linear"
        )
    if are_embeddings(source):
        kinds = _only_linear(kinds)
    found: dict[str, tuple[float, LabelMapping]] = {}
    names, l2 = _permutation(source, classes), None
    if "identity" in kinds and set(classes) <= set(source):
        mapping = LabelMapping("identity", source, classes, names, np.zeros(C))
        found["identity"] = log_loss(mapping.log_probs(features), labels), mapping
    for kind, count in COUNTING.items():
        if kind in kinds:
            mapping = LabelMapping(
                kind, source, classes, count(np.exp(features), labels, C), np.zeros(C)
            )
            found[kind] = (
                _counted_loss(count, features, labels, C, stratified(labels, folds, seed, copies)),
                mapping,
            )
    if "linear" in kinds:
        # Residual form I + E where the labels are the classes: a strong penalty then means "as it
        # is".
        offset = names if set(source) == set(classes) else None
        mean, scale = (
            _standard(features)
            if are_embeddings(source)
            else (np.zeros(len(source)), np.ones(len(source)))
        )
        X = (features - mean) / scale
        linear = logistic_regression_cv(
            X, labels, C, folds=folds, seed=seed, copies=copies, offset=offset
        )
        weight = linear.weight / scale[:, None]
        mapping, l2 = (
            LabelMapping("linear", source, classes, weight, linear.bias - mean @ weight),
            linear.l2,
        )
        found["linear"] = linear.log_loss, mapping
    losses = {
        kind: loss if val is None else log_loss(mapping.log_probs(val[0]), val[1])
        for kind, (loss, mapping) in found.items()
    }
    best = min((kind for kind in kinds if kind in found), key=losses.__getitem__)
    return Fitted(found[best][1], losses, l2)


def _only_linear(kinds: Sequence[str]) -> Sequence[str]:
    if "linear" not in kinds:
        raise ConfigurationError(
            f"label mapping: got kinds {list(kinds)} for embeddings, expected linear"
        )
    return ("linear",)


def _standard(features: Floats) -> tuple[Floats, Floats]:
    """Return mean and scale of the columns: the features of an embedding differ in size,
    log-probabilities do not.
    """
    return features.mean(axis=0), features.std(axis=0) + 1e-6


def _counted_loss(
    count: Counting,
    features: Floats,
    labels: Integers,
    C: int,
    folds: Iterable[tuple[Integers, Integers]],
) -> float:
    """Cross-validated log-loss of a mapping by counting."""
    p, loss = np.exp(features), 0.0
    for train, held in folds:
        loss += len(held) * log_loss(
            log_normalised(p[held] @ count(p[train], labels[train], C)), labels[held]
        )
    return loss / len(labels)


def _permutation(source: tuple[str, ...], classes: tuple[str, ...]) -> Floats:
    """Return (S, C): 1 where the source label is the class."""
    return np.array([[float(label == name) for name in classes] for label in source])


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigurationError(
            f"label mapping: got kind {unknown}, expected some of {list(KINDS)}"
        )
