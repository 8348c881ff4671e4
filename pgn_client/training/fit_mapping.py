"""Fit a label mapping to the answers of a hosted classifier: the command ``pgn map``.

The mapping turns scores of the endpoint's labels into scores of the task's classes. The images are
sent with a checkpoint's prompts, or raw.

A checkpoint needs a new mapping for another endpoint, for an endpoint whose answers have changed,
and for other classes. So does an imported checkpoint, which has no classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pgn_client.arrays import Floats, Floats32
from pgn_client.checkpoint import fingerprint
from pgn_client.checkpoint.card import (
    RAW,
    Card,
    DataCard,
    MappingCard,
    MetricsCard,
)
from pgn_client.imaging.dataset import Task
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, fuse
from pgn_client.mapping.probability import right
from pgn_client.prompting.adapter import MappingAdapter, PromptAdapter
from pgn_client.prompting.generator import TRUNK_WIDTH
from pgn_client.prompting.methods.linear_probe import LinearProbe
from pgn_client.training.examples import FittedSplit
from pgn_client.types import Answer, Ask, normal
from pgn_client.version import __version__

Arrays = dict[str, Floats32]
FITTED = "fitted to the endpoint's answers"
"""Value of ``metrics.mapping`` in the metadata of a checkpoint whose mapping ``pgn map`` fitted."""


def refit(
    adapter: PromptAdapter,
    task: Task,
    ask: Ask,
    *,
    kinds: Sequence[labels.MappingKind] = labels.AUTO,
    none_below: float | None = None,
) -> PromptAdapter:
    """Fit a checkpoint's label mapping to the endpoint's answers to prompted images.

    The training and validation images are sent with the checkpoint's prompts. α, the weight of the
    local head in the served score, is chosen again too. If the local head, the checkpoint's own
    small classifier, was trained on other classes, a new head is fitted.

    Args:
        adapter: The checkpoint; its prompts do not change.
        task: Labeled images, at least two classes and two training images.
        ask: Function that sends images to the endpoint and returns its answers.
        kinds: Kinds of mapping to choose among, by log-loss on the validation images.
        none_below: Share of the validation images that may get the answer "none of these classes",
            in [0, 1). ``None`` always names a class.

    Returns:
        A checkpoint for the task's classes. Its metrics are the endpoint's accuracies on the
        validation images.

    Raises:
        ConfigurationError: No kind of mapping is possible, or the task is too small.
    """
    train_answers = ask(task.train.paths, adapter)
    val_answers = ask(task.val.paths, adapter)
    source, is_open = _source(adapter, [*train_answers, *val_answers])
    fitted, val_features = _fit(task, (train_answers, val_answers), source, kinds)
    mapping = replace(fitted, open=is_open)

    # The card needs the accuracies of the local head, so a draft with the right head comes first.
    head = {} if knows(adapter, task) else new_head(adapter, task)
    draft = adapter.with_mapping(mapping, head)
    _, local = FittedSplit.of(task.val, draft).rendered(draft)
    deployed = mapping.log_probs(val_features)
    alpha = best_fusion(deployed, local, task.val.labels)
    fused = fuse(deployed, local, alpha)

    log_probs = {"uint8": deployed, "local": local, "fused": fused}
    accuracies = {
        name: float(right(log_p, task.val.labels).mean()) for name, log_p in log_probs.items()
    }
    card = replace(
        _mapped_card(adapter, draft, task, accuracies),
        fusion=alpha,
        none_below=none_of_these(fused, none_below),
    )
    return draft.with_card(card)


def fit_raw(
    task: Task,
    ask: Ask,
    *,
    kinds: Sequence[labels.MappingKind] = labels.AUTO,
    none_below: float | None = None,
) -> MappingAdapter:
    """Fit a label mapping to the endpoint's answers to raw images, which have no prompt.

    Args:
        task: Labeled images, at least two classes and two training images.
        ask: Function that sends images to the endpoint and returns its answers.
        kinds: Kinds of mapping to choose among, by log-loss on the validation images; for an
            endpoint that returns embeddings only ``linear`` is possible.
        none_below: Share of the validation images that may get the answer "none of these classes",
            in [0, 1). ``None`` always names a class.

    Returns:
        A checkpoint that holds only the label mapping.

    Raises:
        ConfigurationError: No kind of mapping is possible, or the task is too small.
    """
    train_answers = ask(task.train.paths)
    val_answers = ask(task.val.paths)
    source = labels.vocabulary([*train_answers, *val_answers])
    fitted, val_features = _fit(task, (train_answers, val_answers), source, kinds)
    # The endpoint may have labels that it has not returned yet.
    mapping = replace(fitted, open=True)
    log_p = mapping.log_probs(val_features)
    accuracy = float(right(log_p, task.val.labels).mean())

    card = Card(
        method=RAW,
        classes=task.classes,
        mapping=MappingCard.from_json(mapping.card()),
        learnable={"mapping": mapping.weight.size + mapping.bias.size},
        data=DataCard.from_json(task.card()),
        seed=task.seed,
        metrics=MetricsCard(uint8=accuracy, n=len(task.val), mapping=FITTED),
        versions={"pgn_client": __version__},
        mapped=True,
        none_below=none_of_these(log_p, none_below),
    )
    arrays = {f"mapping.{name}": array for name, array in mapping.arrays().items()}
    with_fingerprint = replace(card, fingerprint=fingerprint(card.to_json(), arrays))
    return MappingAdapter(with_fingerprint, arrays)


def _fit(
    task: Task,
    answers: tuple[Sequence[Answer], Sequence[Answer]],
    source: tuple[str, ...],
    kinds: Sequence[labels.MappingKind],
) -> tuple[labels.LabelMapping, Floats]:
    """Fit a label mapping to an endpoint's answers to the training images.

    Args:
        task: Labeled images.
        answers: Answers to the training images, and to the validation images, which choose the
            kind.
        source: S endpoint labels.
        kinds: Kinds of mapping to try.

    Returns:
        The mapping, and its input for the validation images, (n, S) log-scores.
    """
    # Every label of an answer is a source label. Only an answer without labels has none, and for
    # one such answer a run that is already paid for must not fail.
    train, val = (labels.log_scores(part, source, strict=False) for part in answers)
    fitted = labels.fit(
        train,
        task.train.labels,
        source,
        task.classes,
        val=(val, task.val.labels),
        kinds=kinds,
        seed=task.seed,
    )
    return fitted.mapping, val


def none_of_these(log_p: Floats, share: float | None) -> float | None:
    """Choose the probability threshold for the answer "none of these classes".

    An image whose best class has a probability below the threshold gets that answer.

    Args:
        log_p: Log-probabilities, (n, C), of validation images that all belong to one of the C
            classes.
        share: Share of these images that may fall below the threshold, in [0, 1); ``None`` for no
            threshold.

    Returns:
        The threshold, ``none_below`` in the checkpoint's metadata; ``None`` for no threshold.
    """
    if share is None:
        return None
    # "lower" returns the probability of one of the images. Interpolated, the threshold could lie
    # above it, and then more than the share would fall below.
    return float(np.quantile(np.exp(log_p).max(axis=1), share, method="lower"))


def knows(adapter: PromptAdapter, task: Task) -> bool:
    """Whether a checkpoint's local head was trained on the task's classes.

    The local head is the small classifier beside the prompts. An imported checkpoint has none that
    was trained.
    """
    return adapter.card.imported is None and adapter.card.classes == task.classes


def new_head(adapter: PromptAdapter, task: Task) -> Arrays:
    """Fit a new local head for a task's classes.

    The local head is a linear classifier on the features of the trunk, the small CNN that also
    generates the prompts.

    Returns:
        Weight (C, D) and bias (C,) of the head for C classes and D features, under their names in a
        checkpoint.
    """
    split = FittedSplit.of(task.train, adapter)
    model, _embedding = adapter.runtime
    features: list[Floats] = []

    def collect(_module: Any, _inputs: Any, output: Any) -> None:
        features.append(output.double().numpy())

    # The trunk's features are not among the results of rendering, so a hook collects them. The
    # rendered prompts are not needed.
    hook = model.generator.trunk.register_forward_hook(collect)
    try:
        split.rendered(adapter)
    finally:
        hook.remove()

    # Rendering fills its last batch with blank images, whose features the hook has collected too.
    rows = np.concatenate(features)[: len(task.train)]
    probe = LinearProbe.fit(rows, task.train.labels, len(task.classes), seed=task.seed)

    # The local head reads the features directly, so it includes the probe's standardization.
    weight = probe.weight / probe.scale[:, None]
    arrays = {"weight": weight.T, "bias": probe.bias - probe.mean @ weight}
    return {
        f"generator.local_head.{name}": np.ascontiguousarray(array, dtype=np.float32)
        for name, array in arrays.items()
    }


def _source(adapter: PromptAdapter, answers: Sequence[Answer]) -> tuple[tuple[str, ...], bool]:
    """Choose the source labels of the new mapping: the endpoint's labels that it reads.

    The labels of the checkpoint's old mapping are kept if they are all labels of the endpoint and
    the answers hold no others. Otherwise the labels in the answers are used.

    Returns:
        The source labels, and whether the endpoint may have more labels.
    """
    mapped_labels = adapter.mapping.source
    answered_labels = labels.vocabulary(answers)
    new_labels = set(map(normal, answered_labels)) - set(map(normal, mapped_labels))
    if adapter.mapping.open or new_labels:
        return answered_labels, True
    return mapped_labels, False


def _mapped_card(
    adapter: PromptAdapter, draft: PromptAdapter, task: Task, accuracies: dict[str, float]
) -> Card:
    """Return the metadata of a checkpoint whose label mapping was fitted again.

    Args:
        adapter: The checkpoint before.
        draft: The same with the new mapping and local head; its fusion weight α and its threshold
            ``none_below`` are still those of before.
        task: Labeled images that the mapping was fitted to.
        accuracies: Accuracies on the validation images: ``uint8``, ``local`` and ``fused``.
    """
    card = adapter.card
    learnable = dict(card.learnable or {})
    learnable["mapping"] = draft.mapping.weight.size + draft.mapping.bias.size
    if not knows(adapter, task):
        # An imported checkpoint has no local head yet, so the new head replaces no parameters.
        replaced = 0 if card.imported else len(card.classes)
        added = len(task.classes) - replaced
        learnable["local"] = learnable.get("local", 0) + (TRUNK_WIDTH + 1) * added

    before = card.metrics
    metrics = MetricsCard(
        n=len(task.val),
        mapping=FITTED,
        epoch=before.epoch if before else None,
        perplexity=before.perplexity if before else None,
        uint8=accuracies["uint8"],
        local=accuracies["local"],
        fused=accuracies["fused"],
    )
    mapped = replace(
        draft.card,
        learnable=learnable,
        data=DataCard.from_json(task.card()),
        seed=task.seed,
        metrics=metrics,
        mapped=True,
    )
    # ``data`` now names the images of the mapping. The images that trained the prompt are recorded
    # too, because the prompt must not be evaluated on them.
    if knows(adapter, task) and card.data:
        # After an earlier pgn map, ``data`` names other images than those that trained the prompt.
        return replace(mapped, prompted_on=card.prompted_on or card.data.digest)
    return mapped
