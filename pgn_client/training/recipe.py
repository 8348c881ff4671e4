"""Recipes: the hyperparameters of a training run, which the checkpoint's metadata records.

Three constants are the same in every recipe: Adam's betas (0.9, 0.99), SGD's momentum 0.9, and the
one-cycle schedule, which rises over the first fifth of the steps.
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
    """The hyperparameters of a training run.

    The default values, which are the preset ``default``, were chosen for this library. The
    published values of PGN are the preset ``paper``.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Number B of images in a training step.
        optimiser: Optimizer: ``adamw`` with a one-cycle schedule, or ``sgd`` (momentum 0.9) with a
            warm-up and a cosine decay to 1 %.
        rates: Learning rates of token library, bias, mixture layer, trunk and label mapping.
        warmup_epochs: Warm-up epochs of the ``sgd`` schedule.
        label_smoothing: Label smoothing of the cross-entropies, in [0, 1).
        augment: Name of the augmentation; see ``training.augment``.
        library_size: Number L of rows in the token library, which are mixed into prompts.
        resolution: Largest side of the generator's input, in pixels.
        peaked_start: Whether prompts start with contrast (see ``PGN.start``).
        warm_mapping: Whether the label mapping starts from a fit to the answers to images without
            a prompt; otherwise a linear mapping starts from zero.
        trunk_epochs: Passes in which the trunk (the generator's small CNN) first learns the task
            alone, as a local classifier; 0 skips this stage.
        trunk_rate: Learning rate of the trunk in that stage (AdamW, one-cycle).
        local_weight: Weight of the local head's loss while the prompt is trained. The loss keeps
            this linear classifier fitted to the changing trunk.
        head_teaches_trunk: Whether the gradient of the local head's loss also reaches the trunk;
            the published PGN has no local head.
        weight_decay: Weight decay of ``adamw``, on all trained parameters.
        trunk_weight_decay: Weight decay of the stage in which the trunk learns the task alone.
        prompt_tokens: Number m of prompt tokens of the white-box methods VPT and EXPRES.
        sites: Places in a transformer block where EXPRES adds learned residuals, such as ``q``; an
            empty tuple adds none.
    """

    # The default values were chosen together, on aerial images. The ablation in benchmarks/LOG.md
    # found none of its changes to one value better, and augmentation and batches of 16 better than
    # none and 8. No search of the learning rates and weight decays is logged.
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
        """Return the recipe as a dict of JSON values, for the checkpoint's metadata."""
        return asdict(self) | {"sites": list(self.sites)}


# The published recipe has no label mapping (it trains a head or uses text labels) and no local
# head. Here the mapping has the same learning rate as the rest. The local head learns on the
# trunk's features, but its loss does not change them.
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

# For tasks with many classes, or for small checkpoints. Most of a PGN's parameters are in its
# mixture, which has K·L outputs, so fewer library rows save most.
SMALL = Recipe(library_size=16)

PRESETS = {"default": Recipe(), "small": SMALL, "paper": PAPER}


def from_card(numbers: Mapping[str, Any]) -> Recipe:
    """Return the recipe that a checkpoint's metadata records.

    A rival can then be trained with the same numbers.

    Args:
        numbers: The result of ``Recipe.card``.
    """
    # ``pgn_client`` of another version may have put other numbers on the card.
    names = {f.name for f in fields(Recipe)}
    values = {name: value for name, value in numbers.items() if name in names}
    values["rates"] = Rates(**numbers["rates"])
    # JSON has lists only, and a frozen recipe holds a tuple.
    if "sites" in values:
        values["sites"] = tuple(values["sites"])
    return Recipe(**values)


def recipe(preset: str = "default", **overrides: Any) -> Recipe:
    """Return a preset recipe, with some of its hyperparameters changed.

    Args:
        preset: Name of the preset, one of ``PRESETS``.
        **overrides: Attributes of ``Recipe`` by name; ``None`` keeps the preset's value.

    Raises:
        ConfigurationError: The preset is unknown, or a number is out of range.
    """
    if preset not in PRESETS:
        raise ConfigurationError(f"preset: got {preset!r}, expected one of {', '.join(PRESETS)}")
    changes = {name: value for name, value in overrides.items() if value is not None}
    chosen = replace(PRESETS[preset], **changes)

    for name, least in (
        ("epochs", 1),
        ("batch_size", 2),  # BatchNorm needs two images in training.
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

    # A preset's warm-up may be longer than a run whose epochs are overridden. A tenth of the run is
    # the published proportion, 50 of 500 epochs.
    if chosen.warmup_epochs >= chosen.epochs:
        return replace(chosen, warmup_epochs=chosen.epochs // 10)
    return chosen
