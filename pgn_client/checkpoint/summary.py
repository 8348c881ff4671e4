"""A card as a few lines for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pgn_client.checkpoint.card import Card, MetricsCard, ReachCard

_FIRST = 8
"""Number of class names that are shown."""


def summary(card: Card | Mapping[str, Any]) -> str:
    """Return a card as a few lines for people.

    Raises:
        CheckpointError: A card that is not complete.
    """
    card = Card.of(card)
    more = ", …" if len(card.classes) > _FIRST else ""
    classes = ", ".join(card.classes[:_FIRST]) + more
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
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items() if text)


def _prompts(card: Card) -> dict[str, str]:
    """Return what is painted, and for which model."""
    backbone, library = card.backbone, card.library
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
    return ", ".join(f"{count:,} of the {part}" for part, count in counts)


def _fusion(card: Card) -> str:
    if not card.fuses:
        return ""
    return f"α = {card.fusion:.2f} (0 endpoint alone, 1 local head alone)"


def _none_below(card: Card) -> str:
    if card.none_below is None:
        return ""
    return f"where the best class is below {card.none_below:.3f}"


def _training(card: Card) -> dict[str, str]:
    """Return data, way and validation accuracy; nothing for an import."""
    metrics, data, library = card.metrics, card.data, card.library
    if metrics is None or data is None:
        return {}
    mixture = ""
    if library and metrics.perplexity:
        mixture = f"perplexity {metrics.perplexity:.1f} of {library.size} rows"
    return {
        "wire": _wire(card),
        "data": f"{data.train} training, {data.val} validation images; seed {card.seed}",
        "validation": f"{_accuracies(metrics)} ({_how(card)}; chosen on these images, so "
        "optimistic)",
        "mixture": mixture,
    }


def _wire(card: Card) -> str:
    if card.recipe is None or card.recipe.wire is None:
        return ""
    measured = "" if card.mapped else "and measured "
    return f"{card.recipe.wire}: trained {measured}behind it"


def _accuracies(metrics: MetricsCard) -> str:
    if metrics.uint8 is None:
        return "not measured"
    if metrics.local is None or metrics.fused is None:
        return f"{metrics.uint8:.3f}"
    return f"prompt {metrics.uint8:.3f}, local head {metrics.local:.3f}, fused {metrics.fused:.3f}"


def _how(card: Card) -> str:
    if card.mapped or card.metrics is None:
        return "over HTTP"
    return f"epoch {card.metrics.epoch}"


def _reach(reach: ReachCard | None) -> dict[str, str]:
    """Return what inversion can and cannot reach of latent rows (see ``inversion.reach``)."""
    if reach is None:
        return {}
    condition = "pixels cannot reach every direction"
    if reach.condition:
        condition = f"condition {reach.condition:g}"
    return {
        "row norms": f"median {reach.norm:g}, most {reach.norm_most:g}; of random pixels "
        f"{reach.norm_of_pixels:g}",
        "unreached": f"bounded {reach.bounded:.0%}, at most {reach.bounded_most:.0%}; "
        f"pseudo-inverse, clipped, {reach.pseudo_inverse:.0%}, at most "
        f"{reach.pseudo_inverse_most:.0%} (of the rows' norms; {condition})",
    }
