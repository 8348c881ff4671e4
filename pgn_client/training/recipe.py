"""Recipes: the numbers of a training run, in one frozen value that ends up on the checkpoint card.

Fixed beside them: Adam's betas (0.9, 0.99), SGD's momentum 0.9, a fifth of the one-cycle schedule
to rise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.methods import Rates
from pgn_client.prompting.methods.base import RESIDUAL_SITES


@dataclass(frozen=True)
class Recipe:
    """How a prompt is trained. The defaults are ours (``default``); the published ones are
    ``paper``.

    Attributes:
        epochs: passes over the training images.
        batch_size: B.
        optimiser: ``adamw`` with a one-cycle schedule, or ``sgd`` (momentum 0.9) with warm-up, then
            cosine to 1 %.
        rates: learning rate of each part.
        warmup_epochs: of the ``sgd`` schedule.
        label_smoothing: of the cross-entropies.
        augment: see ``training.augment``.
        library_size: L.
        resolution: side of the generator's input, at most, in pixels.
        peaked_start: start prompts with contrast (see ``PGN.start``).
        warm_mapping: start the label mapping from a fit on the answers to neutral canvases;
            otherwise from zero.
        trunk_epochs: passes in which the trunk first learns the task alone, as a local classifier;
            0 skips it.
        trunk_rate: its learning rate (AdamW, one-cycle).
        local_weight: weight of the local head's loss while the prompt is trained, so that the head
            stays in step with the trunk.
        head_teaches_trunk: whether that loss also reaches the trunk; published PGN has no such
            head.
        prompt_tokens: m, of VPT and EXPRES. sites: where EXPRES adds residuals; none leaves shallow
            output tokens.
        weight_decay: of ``adamw``, on all parts. trunk_weight_decay: while the trunk learns the
            task alone.
    """

    epochs: int = 12
    batch_size: int = 16
    optimiser: Literal["adamw", "sgd"] = "adamw"
    rates: Rates = field(
        default=Rates(library=0.05, bias=0.05, mixture=3e-3, trunk=5e-4, mapping=5e-4)
    )
    warmup_epochs: int = 0
    label_smoothing: float = 0.05
    augment: str = "shift"
    library_size: int = 64
    resolution: int = 96
    peaked_start: bool = True
    warm_mapping: bool = True
    trunk_epochs: int = 25
    trunk_rate: float = 4e-3
    local_weight: float = 1.0
    head_teaches_trunk: bool = True
    weight_decay: float = 0.01
    trunk_weight_decay: float = 0.05
    prompt_tokens: int = 10
    sites: tuple[str, ...] = RESIDUAL_SITES

    def card(self) -> dict[str, Any]:
        """Return all numbers as JSON has them; see :func:`from_card`."""
        return asdict(self) | {"sites": list(self.sites)}


# The published recipe has no label mapping (it trains a head or uses text labels) and no local
# head. Here the mapping takes the same rate as the rest, and the local head learns on the trunk's
# features without touching them.
PAPER = Recipe(
    epochs=500,
    batch_size=128,
    optimiser="sgd",
    rates=Rates(library=0.1, bias=0.1, mixture=0.1, trunk=0.1, mapping=0.1),
    warmup_epochs=50,
    label_smoothing=0.0,
    augment="paper",
    library_size=256,
    resolution=224,
    peaked_start=False,
    warm_mapping=False,
    trunk_epochs=0,
    head_teaches_trunk=False,
)

# For tasks of many classes, or where a checkpoint must be small: most of a PGN's numbers are the
# mixture's, K·L each.
SMALL = Recipe(library_size=16)

PRESETS = {"default": Recipe(), "small": SMALL, "paper": PAPER}


def from_card(numbers: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a checkpoint card tells, to train a rival alike."""
    known = {f.name for f in fields(Recipe)}
    chosen = {k: v for k, v in numbers.items() if k in known}
    if "sites" in chosen:
        chosen["sites"] = tuple(chosen["sites"])  # JSON has lists
    return Recipe(**chosen | {"rates": Rates(**numbers["rates"])})


def recipe(preset: str = "default", **overrides: Any) -> Recipe:
    """Return a preset with some numbers changed; an override that is ``None`` changes nothing.

    Raises:
        ConfigurationError: an unknown preset, or a number that makes no sense.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    chosen = replace(PRESETS[preset], **{k: v for k, v in overrides.items() if v is not None})
    for name, least in (
        ("epochs", 1),
        ("batch_size", 2),
        ("library_size", 1),
        ("resolution", 1),
        ("prompt_tokens", 1),
    ):
        if getattr(chosen, name) < least:
            raise ConfigurationError(
                f"recipe: got {name} {getattr(chosen, name)}, expected at least {least}"
            )
    if chosen.optimiser not in ("adamw", "sgd"):
        raise ConfigurationError(
            f"recipe: got optimiser {chosen.optimiser!r}, expected adamw or sgd"
        )
    if chosen.warmup_epochs >= chosen.epochs:
        return replace(chosen, warmup_epochs=chosen.epochs // 10)
    return chosen
