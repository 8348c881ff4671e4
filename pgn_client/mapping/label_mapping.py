"""Label mappings from an endpoint's answers (S source labels) to the task's C classes.

Importing this module and applying a mapping needs NumPy only. Fitting ``flm``, ``ilm`` or
``linear`` needs SciPy, which the extra ``[train]`` installs.

:func:`log_scores` turns an answer into a row x of S log-probabilities. A :class:`LabelMapping`
turns rows into C log-probabilities. :func:`fit` chooses among several kinds of mapping by their
log-loss on validation examples.

The kinds ``identity`` (every class is a source label), ``flm``, ``ilm``, ``blm`` and ``blm+`` (see
``mapping.frequency``) are additive: log normalize(exp(x) @ weight). The kind ``linear`` is
log softmax(x @ weight + bias); its penalty pulls it to the identity where source labels and classes
are the same.
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
from pgn_client.types import normal

if TYPE_CHECKING:
    from pgn_client.types import Answer


MappingKind = Literal["identity", "flm", "ilm", "blm", "blm+", "linear"]
KINDS = get_args(MappingKind)
AUTO: tuple[MappingKind, ...] = ("identity", "blm+", "linear")
"""Kinds of label mapping that :func:`fit` tries by default.

``blm+`` stands for all kinds that count labels (``flm``, ``ilm``, ``blm`` and ``blm+``): with 240
images and all scores, ``linear`` was far more accurate than each of them on all of six sets (see
``benchmarks/LOG.md``).
"""
Counting = Callable[[Any, Any, int], Any]
COUNTING: dict[MappingKind, Counting] = {
    "flm": one_to_one,
    "ilm": one_to_one,
    "blm": blm,
    "blm+": blm_plus,
}


def vocabulary(answers: Sequence[Answer]) -> tuple[str, ...]:
    """Return the source labels: all labels in the endpoint's answers, each once, sorted.

    Labels that differ in their Unicode normalization only are one label, in the form NFC. If all
    answers are embeddings, the result is the names of their numbers, in order.
    """
    first = answers[0].labels if answers else ()
    if are_embeddings(first) and all(answer.labels == first for answer in answers):
        return first

    labels: set[str] = set()
    for answer in answers:
        labels.update(map(normal, answer.labels))
    return tuple(sorted(labels))


def log_scores(
    answers: Sequence[Answer], source: tuple[str, ...], *, strict: bool = True
) -> Floats:
    """Return n endpoint answers as log-probabilities of the S source labels, (n, S).

    Logits go through a softmax over the returned labels. A single label becomes one-hot. Labels
    that appear twice in an answer are summed. The residual mass r = max(0, 1 - sum of the returned
    probabilities) is spread evenly over the labels that were not returned. Every row is then
    normalized, raised to ``FLOOR``, and normalized again, so a model gives the same row whether it
    returns probabilities or logits. Labels outside ``source`` are dropped together with their mass.
    Labels are compared after Unicode normalization (NFC).

    Embeddings are returned unchanged. Their rows are not log-probabilities, and only ``linear``
    can read them.

    Deviation: no missing label receives more than the smallest returned probability, because an
    answer lists the best labels. Otherwise, with few source labels, the missing labels could get
    more than the best one.

    Args:
        answers: The n answers, of any kind.
        source: The S source labels, without repetition.
        strict: Whether an answer without any of the source labels is an error; if not, its row is
            uniform.

    Returns:
        Log-probabilities, (n, S) float64.

    Raises:
        ConfigurationError: An answer has no label of ``source``, has a score that is not finite or
            whose meaning is unknown, or is an embedding with other features.
    """
    if any(answer.kind == "embedding" for answer in answers):
        return _embeddings(answers, source)

    column = {normal(label): s for s, label in enumerate(source)}
    rows = np.zeros((len(answers), len(source)))
    for row, answer in zip(rows, answers, strict=True):
        names = enumerate(map(normal, answer.labels))
        matches = [(column[name], i) for i, name in names if name in column]
        if strict and not matches:
            raise ConfigurationError(
                f"label mapping: got an answer with labels such as {list(answer.labels[:3])}, "
                f"expected some of the {len(source)} source labels such as {list(source[:3])}; fit "
                "the mapping again for this endpoint"
            )
        _fill(row, matches, _probabilities(answer))
    return log_normalised(rows)


def are_embeddings(source: Sequence[str]) -> bool:
    """Return whether source labels name the numbers of an embedding (``dim 0``, …), not classes."""
    # The protocols name the numbers of an embedding so; see `types.Answer`.
    return bool(source) and source[0] == "dim 0"


def _embeddings(answers: Sequence[Answer], source: tuple[str, ...]) -> Floats:
    """Return the S numbers of each of n embedding answers, (n, S) float64."""
    for answer in answers:
        if answer.labels != source or not np.isfinite(answer.scores).all():
            raise ConfigurationError(
                f"label mapping: got {answer.kind} with {len(answer.labels)} numbers, expected a "
                f"finite number for each of the {len(source)} source labels such as "
                f"{list(source[:3])}; fit the mapping again for this endpoint"
            )
    return np.array([answer.scores for answer in answers], dtype=np.float64)


def _fill(row: Floats, matches: list[tuple[int, int]], p: Floats) -> None:
    """Fill the row of one answer: returned probabilities, and the residual mass elsewhere.

    Args:
        row: Row of S zeros, float64; changed in place.
        matches: Pairs of a column of the row and the index of the probability that belongs there.
        p: Returned probabilities, in the order of the answer's labels, float64.
    """
    columns = np.array([s for s, _ in matches], dtype=np.int64)
    # Assignment would keep only one of two equal labels: ImageNet has two classes named "crane".
    np.add.at(row, columns, p[[i for _, i in matches]])

    missing = np.ones(row.size, dtype=bool)
    missing[columns] = False
    # An answer without labels has no smallest probability; its row stays zero, and becomes uniform.
    if missing.any() and p.size:
        residual = max(0.0, 1.0 - float(p.sum()))
        row[missing] = min(residual / int(missing.sum()), float(p.min()))


def _probabilities(answer: Answer) -> Floats:
    """Return the scores of an answer as non-negative probabilities, in the order of its labels."""
    scores = np.asarray(answer.scores, dtype=np.float64)
    if len(scores) != len(answer.labels) or not np.isfinite(scores).all():
        raise ConfigurationError(
            f"answer: got {len(scores)} scores {answer.scores[:3]} for {len(answer.labels)} "
            "labels, expected one finite number per label; check the endpoint's protocol"
        )

    answer.check_kind()
    if answer.kind == "logits":
        # The initial value is for an answer without labels, of which max would raise an error.
        scores = np.exp(scores - scores.max(initial=-np.inf))
        # NumPy types the quotient as Any; asarray changes nothing but the type.
        return np.asarray(scores / scores.sum())
    if answer.kind == "label":
        return np.ones_like(scores)
    return np.maximum(scores, 0.0)


@dataclass(frozen=True, eq=False)
class LabelMapping:
    """A fitted mapping from source labels to task classes; implements ``types.ScoreMapping``.

    Attributes:
        kind: Kind of mapping: ``identity``, ``flm``, ``ilm``, ``blm``, ``blm+`` or ``linear``.
            ``flm`` and ``ilm`` are the same mapping; training fits ``flm`` once, and ``ilm`` and
            the kinds after it again after each epoch.
        source: The S source labels, in the order of the features.
        classes: The C task classes.
        weight: Weights, (S, C) float64; non-negative for the additive kinds.
        bias: Biases, (C,) float64; zero for the additive kinds.
        open: Whether ``source`` has only the labels that an endpoint returned so far. If so, an
            answer with other labels alone is no error; it gives every source label the same score.
    """

    kind: MappingKind
    source: tuple[str, ...]
    classes: tuple[str, ...]
    weight: Floats = field(repr=False)
    bias: Floats = field(repr=False)
    open: bool = False

    def __post_init__(self) -> None:
        _check_kinds((self.kind,))
        S = len(self.source)
        C = len(self.classes)
        if self.weight.shape != (S, C) or self.bias.shape != (C,):
            raise ShapeError(
                f"label mapping: got weight {self.weight.shape} and bias {self.bias.shape}, "
                f"expected {(S, C)} and {(C,)} for {S} source labels and {C} classes"
            )

    @property
    def additive(self) -> bool:
        """Whether a class's score is a weighted sum of probabilities: every kind but ``linear``."""
        return self.kind != "linear"

    def __call__(self, answers: Sequence[Answer]) -> Floats:
        """Return log-probabilities of the C task classes for n endpoint answers, (n, C) float64.

        Raises:
            ConfigurationError: :func:`log_scores` refuses an answer. An answer without any source
                label is refused unless the mapping is ``open``.
        """
        return self.log_probs(log_scores(answers, self.source, strict=not self.open))

    def log_probs(self, features: Floats) -> Floats:
        """Return log-probabilities of task classes for log-probabilities of source labels.

        Args:
            features: Rows of :func:`log_scores`, (n, S) float64.

        Returns:
            Log-probabilities, (n, C) float64.

        Raises:
            ShapeError: The features do not have S columns.
        """
        if features.ndim != 2 or features.shape[1] != len(self.source):
            raise ShapeError(
                f"label mapping: got features {features.shape}, expected (n, {len(self.source)})"
            )
        if self.additive:
            return log_normalised(np.exp(features) @ self.weight)
        return log_softmax(features @ self.weight + self.bias)

    def arrays(self) -> dict[str, Floats]:
        """Return the mapping's arrays for a checkpoint: ``weight``, (S, C), and ``bias``, (C,).

        S is the number of source labels, C that of classes. Both arrays are float64 and contiguous.
        """
        return {
            "weight": np.ascontiguousarray(self.weight),
            "bias": np.ascontiguousarray(self.bias),
        }

    def card(self) -> dict[str, Any]:
        """Return the mapping's metadata for a checkpoint, as JSON.

        The keys are ``kind``, ``source``, ``classes``, and ``open`` if it is true.
        """
        card: dict[str, Any] = {
            "kind": self.kind,
            "source": list(self.source),
            "classes": list(self.classes),
        }
        if self.open:
            card["open"] = True
        return card

    @classmethod
    def from_parts(cls, card: Mapping[str, Any], arrays: Mapping[str, Any]) -> LabelMapping:
        """Return the label mapping that :meth:`card` and :meth:`arrays` of another one describe.

        Raises:
            CheckpointError: A part is missing, or the parts do not match each other.
        """
        try:
            weight = np.asarray(arrays["weight"], dtype=np.float64)
            bias = np.asarray(arrays["bias"], dtype=np.float64)
            source = tuple(card["source"])
            classes = tuple(card["classes"])
            is_open = bool(card.get("open", False))
            return cls(card["kind"], source, classes, weight, bias, is_open)
        # The constructor's ShapeError and ConfigurationError are ValueErrors.
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"label mapping in the checkpoint: its parts do not match each other ({error}); "
                "fit it again, or use an intact copy of the checkpoint"
            ) from error


@dataclass(frozen=True)
class Fitted:
    """Result of :func:`fit`: the chosen label mapping, and the log-loss of every kind tried.

    Attributes:
        mapping: The chosen mapping, fitted on all examples.
        log_loss: Log-loss of every kind that was tried, on the validation examples or by
            cross-validation, in nats per example.
        l2: Strength of the penalty of ``linear`` (see :func:`logistic_regression`); ``None`` where
            ``linear`` was not tried.
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
    """Fit several kinds of label mapping, and return the one with the smallest held-out log-loss.

    The log-loss is measured on the validation examples ``val``, or by cross-validation without
    them. Cross-validation misjudges tasks with two or three examples per class, because the
    training folds lack whole classes: with 240 images of 101 classes it chose ``blm+`` (accuracy
    0.645, log-loss 1.27 on other images) instead of ``linear`` (0.725, 1.17).

    Args:
        features: Rows of :func:`log_scores`, (n, S) float64, n >= 2.
        labels: Class indices, (n,) int64 in [0, C), C >= 2. A class without examples keeps a small
            prior.
        source: The S source labels.
        classes: The C task classes. The identity is tried only where each of them is a source
            label.
        val: Features and labels of the validation examples; ``None`` cross-validates.
        kinds: Kinds to try; among equals the first wins.
        copies: Number of equally long blocks in ``features``, each with another version of the same
            images; all versions of an image are in the same fold.
        folds: Number of stratified folds, at most n.
        seed: Seed of the assignment to folds.

    Raises:
        ConfigurationError: There are fewer than 2 classes or examples, a score is not finite, a
            label is out of range, a kind is unknown, or no kind is possible.
        MissingDependencyError: SciPy is not installed, and ``kinds`` has ``flm``, ``ilm`` or
            ``linear``.
        ShapeError: The shapes of features, labels and ``source`` do not match.
    """
    _check_kinds(kinds)
    C = len(classes)
    check_examples(features, labels, C)
    if features.shape[1] != len(source):
        raise ShapeError(
            f"label mapping: got features {features.shape}, expected {len(source)} columns"
        )
    # Names of folders and labels of an endpoint often differ in their normalization.
    class_names = set(map(normal, classes))
    source_names = set(map(normal, source))
    if set(kinds) == {"identity"} and not class_names <= source_names:
        absent = sorted(class_names - source_names)[:3]
        raise ConfigurationError(
            f"identity mapping: got classes {absent}, expected source labels; allow blm+ or linear"
        )
    if are_embeddings(source):
        kinds = _only_linear(kinds)

    identity = _permutation(source, classes)
    mappings: dict[str, LabelMapping] = {}
    losses: dict[str, float] = {}
    l2: float | None = None

    if "identity" in kinds and class_names <= source_names:
        mapping = LabelMapping("identity", source, classes, identity, np.zeros(C))
        mappings["identity"] = mapping
        # It has nothing to fit, so all examples are held out.
        losses["identity"] = log_loss(mapping.log_probs(features), labels)

    for kind, count in COUNTING.items():
        if kind in kinds:
            weight = count(np.exp(features), labels, C)
            mappings[kind] = LabelMapping(kind, source, classes, weight, np.zeros(C))
            split = stratified(labels, folds, seed, copies)
            losses[kind] = _counted_loss(count, features, labels, C, split)

    if "linear" in kinds:
        # Where the source labels are the classes, a strong penalty must leave the scores unchanged
        # instead of making all classes equal.
        offset = identity if source_names == class_names else None
        mean, scale = _standard(features, source)
        linear = logistic_regression_cv(
            (features - mean) / scale,
            labels,
            C,
            folds=folds,
            seed=seed,
            copies=copies,
            offset=offset,
        )
        weight = linear.weight / scale[:, None]
        bias = linear.bias - mean @ weight
        mappings["linear"] = LabelMapping("linear", source, classes, weight, bias)
        losses["linear"] = linear.log_loss
        l2 = linear.l2

    if val is not None:
        val_features, val_labels = val
        for name, mapping in mappings.items():
            losses[name] = log_loss(mapping.log_probs(val_features), val_labels)
    best = min((kind for kind in kinds if kind in mappings), key=losses.__getitem__)
    return Fitted(mappings[best], losses, l2)


def _only_linear(kinds: Sequence[str]) -> Sequence[str]:
    if "linear" not in kinds:
        raise ConfigurationError(
            f"label mapping: got kinds {list(kinds)} for embeddings, expected linear"
        )
    return ("linear",)


def _standard(features: Floats, source: tuple[str, ...]) -> tuple[Floats, Floats]:
    """Return the mean and the scale, (S,) each, by which the S features are standardized.

    Only embeddings are standardized, because the sizes of their numbers differ; log-probabilities
    get mean 0 and scale 1.
    """
    if not are_embeddings(source):
        return np.zeros(len(source)), np.ones(len(source))
    # The constant keeps the scale of a constant feature above zero.
    return features.mean(axis=0), features.std(axis=0) + 1e-6


def _counted_loss(
    count: Counting,
    features: Floats,
    labels: Integers,
    C: int,
    folds: Iterable[tuple[Integers, Integers]],
) -> float:
    """Return the cross-validated log-loss, in nats per example, of a mapping that counts labels."""
    p = np.exp(features)
    total = 0.0
    for train, held in folds:
        weight = count(p[train], labels[train], C)
        total += len(held) * log_loss(log_normalised(p[held] @ weight), labels[held])
    return total / len(labels)


def _permutation(source: tuple[str, ...], classes: tuple[str, ...]) -> Floats:
    """Return the identity mapping's weight, (S, C): 1 where source label and class are equal."""
    rows: list[list[float]] = []
    for label in source:
        rows.append([float(normal(label) == normal(name)) for name in classes])
    return np.array(rows)


def _check_kinds(kinds: Sequence[str]) -> None:
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise ConfigurationError(
            f"label mapping: got the kinds {unknown}, expected one or more of {list(KINDS)}"
        )
