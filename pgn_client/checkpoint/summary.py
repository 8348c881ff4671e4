"""Short text that describes a checkpoint from its card, the metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgn_client.checkpoint.card import Card, MetricsCard, ReachCard
from pgn_client.errors import printable

_SHOWN_CLASSES = 8
"""Largest number of class names in the summary."""


def summary(card: Card | Mapping[str, Any]) -> str:
    """Return a summary of a checkpoint from its card, as aligned lines of text.

    Raises:
        CheckpointError: The card is incomplete.
    """
    card = Card.of(card)
    classes = ", ".join(card.classes[:_SHOWN_CLASSES])
    if len(card.classes) > _SHOWN_CLASSES:
        classes += ", …"

    lines = {
        **_prompts(card),
        "classes": f"{len(card.classes)}: {classes}",
        "mapping": _mapping(card),
        "learnable": _learnable(card),
        "fusion": _fusion(card),
        "none": _none_below(card),
        **_reach(card.reach),
        "imported": card.imported.file if card.imported else "",
        **_training(card),
        "fingerprint": card.fingerprint or "",
    }
    # 13 is the length of the longest name, fingerprint, and two spaces. A class's name may hold
    # line breaks, or sequences that act on the terminal.
    return "\n".join(f"{name:<13}{printable(text)}" for name, text in lines.items() if text)


def _prompts(card: Card) -> dict[str, str]:
    """Return the summary's lines about the prompts and the model they were trained through."""
    backbone = card.backbone
    library = card.library
    if backbone is None:
        return {"method": "raw: images are sent as they are"}
    rows = f", {library.kind} library of {library.size} rows" if library else ""
    return {
        "method": f"{card.method}{rows}, {card.layout}",
        "backbone": f"{backbone.name}, {backbone.input_size} px, server profile {card.profile}",
    }


def _mapping(card: Card) -> str:
    mapping = card.mapping
    if mapping is None:
        return ""
    if mapping.source is None:
        return f"{mapping.kind} over output tokens, on the server"
    return f"{mapping.kind} over {len(mapping.source)} endpoint labels"


def _learnable(card: Card) -> str:
    counts = sorted((card.learnable or {}).items())
    return ", ".join(f"{count:,} ({part})" for part, count in counts)


def _fusion(card: Card) -> str:
    if not card.has_local_head:
        return ""
    return f"α = {card.fusion:.2f} (0: endpoint alone, 1: local head alone)"


def _none_below(card: Card) -> str:
    if card.none_below is None:
        return ""
    return f"none of these, where the best class is below {card.none_below:.3f}"


def _training(card: Card) -> dict[str, str]:
    """Return the summary's lines about training and validation; none for an imported checkpoint."""
    metrics = card.metrics
    data = card.data
    library = card.library
    if metrics is None or data is None:
        return {}

    mixture = ""
    if library and metrics.perplexity:
        mixture = f"perplexity {metrics.perplexity:.1f} of {library.size} rows"
    return {
        "wire": _wire(card),
        "data": f"{data.train} training, {data.val} validation images; seed {card.seed}",
        "validation": f"{_accuracies(metrics)} ({_source(card)}; optimistic, because these images "
        "also chose the checkpoint)",
        "mixture": mixture,
    }


def _wire(card: Card) -> str:
    if card.recipe is None or card.recipe.wire is None:
        return ""
    # pgn map measures its accuracy at the endpoint, not with the simulated degradation.
    steps = "trained" if card.mapped else "trained and measured"
    return f"{card.recipe.wire}: {steps} with this degradation"


def _accuracies(metrics: MetricsCard) -> str:
    if metrics.uint8 is None:
        return "not measured"
    if metrics.local is None or metrics.fused is None:
        return f"{metrics.uint8:.3f}"
    return f"prompt {metrics.uint8:.3f}, local head {metrics.local:.3f}, fused {metrics.fused:.3f}"


def _source(card: Card) -> str:
    """Return where the validation accuracy was measured: at which epoch, or over HTTP."""
    if card.mapped or card.metrics is None:
        return "over HTTP"
    return f"epoch {card.metrics.epoch}"


def _reach(reach: ReachCard | None) -> dict[str, str]:
    """Return the summary's lines about how closely pixels can reproduce a latent library.

    See ``prompting.inversion.reach``.
    """
    if reach is None:
        return {}
    condition = "pixels cannot reach every direction"
    if reach.condition:
        condition = f"condition {reach.condition:g}"
    return {
        "row norms": f"median {reach.norm:g}, maximum {reach.norm_most:g}; random pixels "
        f"{reach.norm_of_pixels:g}",
        "unreached": f"bounded: median {reach.bounded:.0%}, maximum {reach.bounded_most:.0%}; "
        f"clipped pseudo-inverse: median {reach.pseudo_inverse:.0%}, maximum "
        f"{reach.pseudo_inverse_most:.0%} (share of the row's norm; {condition})",
    }
