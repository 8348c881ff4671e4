"""Fit a label mapping to what an endpoint itself answers, to prompted images or to images as
they are: ``pgn map``.

A checkpoint's mapping is fitted anew for another endpoint than the one of the training, one whose
answers have changed, other classes, and for imports, which know no classes of their own.
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
    RecipeCard,
)
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, fuse
from pgn_client.mapping.probability import right
from pgn_client.prompting.adapter import MappingAdapter, PromptAdapter
from pgn_client.prompting.generator import TRUNK_WIDTH
from pgn_client.prompting.methods.linear_probe import LinearProbe
from pgn_client.training import Task
from pgn_client.training.examples import FittedSplit
from pgn_client.types import Answer, Ask
from pgn_client.version import __version__

Arrays = dict[str, Floats32]
FITTED = "fitted to the endpoint's answers"
"""How the card says that the mapping was chosen."""
IMPORTED_RECIPE = RecipeCard(augment="none", mapping="auto")
"""What the comparison may assume of a checkpoint that was not trained here."""


def refit(
    adapter: PromptAdapter,
    task: Task,
    ask: Ask,
    *,
    kinds: Sequence[labels.MappingKind] = labels.AUTO,
    none_below: float | None = None,
) -> PromptAdapter:
    """Send the training and validation images as the checkpoint makes them; fit mapping and α to
    the answers.

    Where the checkpoint's local head does not know these classes, a new one is fitted on its
    trunk's features.

    Args:
        adapter: the checkpoint; its prompts stay as they are.
        task: labelled images, at least two classes and two training images.
        ask: the endpoint.
        kinds: of mapping to choose among, by log-loss on the validation images.
        none_below: see :func:`none_of_these`.

    Returns:
        A checkpoint for the task's classes; the card's ``metrics`` are those of the endpoint on the
        validation images.

    Raises:
        ConfigurationError: no kind is possible, or the task is too small.
    """
    train, val = (ask(split.paths, adapter) for split in (task.train, task.val))
    source, unknown = _source(adapter, [*train, *val])
    rows, val_rows = (labels.log_scores(answers, source, strict=False) for answers in (train, val))
    held_out = val_rows, task.val.labels
    fitted = labels.fit(
        rows, task.train.labels, source, task.classes, val=held_out, kinds=kinds, seed=task.seed
    )
    mapping = replace(fitted.mapping, open=unknown)
    draft = adapter.with_mapping(
        mapping, {} if knows(adapter, task) else new_head(adapter, task), {}
    )
    _, opinions = FittedSplit.of(task.val, draft).rendered(draft)
    deployed = mapping.log_probs(val_rows)
    alpha = best_fusion(deployed, opinions, task.val.labels)
    ways = {"uint8": deployed, "local": opinions, "fused": fuse(deployed, opinions, alpha)}
    measured = {name: float(right(log_p, task.val.labels).mean()) for name, log_p in ways.items()}
    changes = _changes(adapter, task, mapping, measured)
    changes |= {"fusion": alpha, "none_below": none_of_these(ways["fused"], none_below)}
    return draft.with_mapping(mapping, {}, changes)


def fit_raw(
    task: Task,
    ask: Ask,
    *,
    kinds: Sequence[labels.MappingKind] = labels.AUTO,
    none_below: float | None = None,
) -> MappingAdapter:
    """Send the training and validation images as they are, and fit a mapping to the answers: no
    prompt at all.

    Args:
        task: labelled images, at least two classes and two training images.
        ask: the endpoint.
        kinds: of mapping to choose among, by log-loss on the validation images; embeddings take
            ``linear`` alone.
        none_below: see :func:`none_of_these`; ``None`` always names a class.

    Raises:
        ConfigurationError: no kind is possible, or the task is too small.
    """
    train, val = (ask(split.paths) for split in (task.train, task.val))
    source = labels.vocabulary([*train, *val])
    rows, val_rows = (labels.log_scores(answers, source, strict=False) for answers in (train, val))
    held_out = val_rows, task.val.labels
    fitted = labels.fit(
        rows, task.train.labels, source, task.classes, val=held_out, kinds=kinds, seed=task.seed
    )
    mapping, log_p = replace(fitted.mapping, open=True), fitted.mapping.log_probs(val_rows)
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
    marked = replace(card, fingerprint=fingerprint(card.to_json(), arrays))
    return MappingAdapter(marked, arrays)


def none_of_these(log_p: Floats, share: float | None) -> float | None:
    """Choose the probability of the best class below which an image is none of them.

    Args:
        log_p: (n, C) log-probabilities of validation images, which all belong to a class.
        share: of them, in [0, 1), that may be refused; ``None`` refuses none.

    Returns:
        The card's ``none_below``.
    """
    if share is None:
        return None
    return float(np.quantile(np.exp(log_p).max(axis=1), share, method="lower"))


def knows(adapter: PromptAdapter, task: Task) -> bool:
    """Whether the checkpoint's local head was taught these classes; an imported one was taught
    none.
    """
    return adapter.card.imported is None and adapter.card.classes == task.classes


def new_head(adapter: PromptAdapter, task: Task) -> Arrays:
    """Fit a local head for the task's classes: a linear probe on what the generator's trunk makes
    of an image.
    """
    images, features = FittedSplit.of(task.train, adapter), []
    trunk = adapter.runtime[0].generator.trunk
    hook = trunk.register_forward_hook(lambda *call: features.append(call[-1].double().numpy()))
    try:
        images.rendered(adapter)
    finally:
        hook.remove()
    probe = LinearProbe.fit(
        np.concatenate(features), task.train.labels, len(task.classes), seed=task.seed
    )
    weight = probe.weight / probe.scale[:, None]
    arrays = {"weight": weight.T, "bias": probe.bias - probe.mean @ weight}
    return {
        f"generator.local_head.{k}": np.ascontiguousarray(v, dtype=np.float32)
        for k, v in arrays.items()
    }


def _source(adapter: PromptAdapter, answers: Sequence[Answer]) -> tuple[tuple[str, ...], bool]:
    """Keep the surrogate's labels, in its order, where they are all that was answered; otherwise
    what was seen.

    Returns:
        The labels, and whether there may be others.
    """
    known, found = adapter.mapping.source, labels.vocabulary(answers)
    strange = adapter.mapping.open or not set(found) <= set(known)
    return (found, True) if strange else (known, False)


def _changes(
    adapter: PromptAdapter, task: Task, mapping: labels.LabelMapping, measured: dict[str, float]
) -> dict[str, Any]:
    """Return what changes on the card, but for α."""
    card = adapter.card
    learnable = dict(card.learnable or {})
    learnable["mapping"] = mapping.weight.size + mapping.bias.size
    if not knows(adapter, task):
        # an imported checkpoint has no head of its own that is replaced
        replaced = 0 if card.imported else len(card.classes)
        more = len(task.classes) - replaced
        learnable["local"] = learnable.get("local", 0) + (TRUNK_WIDTH + 1) * more
    before = card.metrics
    metrics = MetricsCard(
        n=len(task.val),
        mapping=FITTED,
        epoch=before.epoch if before else None,
        perplexity=before.perplexity if before else None,
        uint8=measured["uint8"],
        local=measured["local"],
        fused=measured["fused"],
    )
    changes: dict[str, Any] = {
        "learnable": learnable,
        "data": DataCard.from_json(task.card()),
        "seed": task.seed,
        "recipe": card.recipe or IMPORTED_RECIPE,
        "metrics": metrics,
        "mapped": True,
    }
    if knows(adapter, task) and card.data:  # images that taught the prompt must not judge it
        changes["prompted_on"] = card.prompted_on or card.data.digest
    return changes
