"""Everything that a training run is asked for, in one frozen value: for ``fit`` and for the command
line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from pgn_client.checkpoint.card import (
    BackboneCard,
    Card,
    DataCard,
    GeneratorCard,
    Inversion,
    LibraryCard,
    RecipeCard,
)
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.dataset import Task
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping import label_mapping as labels
from pgn_client.prompting import methods
from pgn_client.prompting.inversion import route
from pgn_client.prompting.methods import PGN, RGBMethod
from pgn_client.prompting.token_library import library as token_library
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.degradation import Wire
from pgn_client.training.recipe import Recipe, from_card
from pgn_client.types import ServerProfile
from pgn_client.version import __version__


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, for which server, and with which numbers.

    Attributes:
        method: ``pgn``, or another method of ``methods.REGISTRY`` that can be deployed.
        library: ``pixel`` (deploys exactly), ``smooth`` or ``luma`` (for servers that re-encode as
            JPEG), ``latent`` (as published; deploys by ``inversion``) or ``reachable`` (latent,
            kept within what pixels reach).
        layout: ``ring``, ``corner``, ``rows:N`` or ``full``; ``None`` takes the method's own.
        profile: The server's resize and crop; ``None`` takes the backbone's own preprocessing.
        recipe: All numbers of the training.
        mapping: ``auto`` (chosen on validation among some), or one of ``label_mapping.KINDS``.
        inversion: ``bounded`` or ``pseudo_inverse``, for a latent library.
        top_k: Number of labels that the endpoint returns; ``None`` for all.
        decimals: Decimals to which the endpoint rounds probabilities; ``None`` for no rounding.
        wire: Degradation of the images on their way to the model, for libraries of pixels (see
            ``surrogate.degradation``); ``None`` for a lossless way, where training runs in the
            latent space.
        seed: Seed for all random choices.

    Raises:
        ConfigurationError: An unknown name, a number that makes no sense, or options that exclude
            each other.
    """

    method: str = "pgn"
    library: str = "pixel"
    layout: str | None = None
    profile: ServerProfile | None = None
    recipe: Recipe = field(default_factory=Recipe)
    mapping: str = "auto"
    inversion: str = "bounded"
    top_k: int | None = None
    decimals: int | None = None
    wire: Wire | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse now what could not work after the training."""
        if self.recipe is None:  # as ``fit(recipe=None)`` of version 0.1
            object.__setattr__(self, "recipe", Recipe())
        kind = methods.deployable(self.method)
        route(self.inversion)
        if self.mapping not in ("auto", *labels.KINDS):
            known = ", ".join(labels.KINDS)
            raise ConfigurationError(
                f"mapping: got {self.mapping!r}, expected auto or one of {known}"
            )
        for name, least in (("top_k", 1), ("decimals", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name}: got {value}, expected at least {least}")
        if self.library != "pixel" and not issubclass(kind, PGN):
            raise ConfigurationError(
                f"library: got {self.library} for method {self.method}, which mixes none; "
                "leave it out"
            )

    @classmethod
    def of(cls, config: TrainingConfig | None, options: Mapping[str, Any]) -> TrainingConfig:
        """Return a config, with options by name in its place or beside it.

        Raises:
            ConfigurationError: An option that is unknown, or both a config and options.
        """
        if config is not None and not isinstance(config, cls):
            raise ConfigurationError(
                f"fit: got {type(config).__name__}, expected a TrainingConfig; give a recipe as "
                "recipe=..."
            )
        known = [f.name for f in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            raise ConfigurationError(f"fit: got {unknown[0]!r}, expected one of {', '.join(known)}")
        if config is not None and options:
            raise ConfigurationError(
                f"fit: got a config and {sorted(options)[0]!r}; put it into the config"
            )
        return config if config is not None else cls(**options)

    @classmethod
    def from_card(cls, card: Card | Mapping[str, Any]) -> TrainingConfig:
        """Return what a checkpoint of ``fit`` was trained with, as its card says.

        Raises:
            CheckpointError: It was not trained by ``fit``: an import, or a mapping alone.
        """
        card = Card.of(card)
        recipe = card.recipe
        if recipe is None or not recipe.numbers or card.layout is None or card.profile is None:
            raise CheckpointError(
                f"checkpoint: got method {card.method}, which pgn train did not make, expected "
                "one whose card has its recipe"
            )
        return cls(
            method=card.method,
            library=card.library.kind if card.library else "pixel",
            layout=card.layout,
            profile=ServerProfile.parse(card.profile),
            recipe=from_card(recipe.numbers),
            mapping=recipe.mapping or "auto",
            inversion="pseudo_inverse" if card.inversion == "pseudo_inverse" else "bounded",
            top_k=recipe.top_k,
            decimals=recipe.decimals,
            wire=Wire.parse(recipe.wire) if recipe.wire else None,
            seed=card.seed or 0,
        )

    @property
    def kind(self) -> type[RGBMethod]:
        """The method's class."""
        return methods.deployable(self.method)

    @property
    def mixes(self) -> bool:
        """Whether the method mixes a token library."""
        return issubclass(self.kind, PGN)

    def canvas(self, backbone: Backbone) -> Canvas:
        """Return the canvas for a backbone behind the server's resize and crop.

        Raises:
            ConfigurationError: A library or a wire that does not go with the backbone or the
                canvas.
        """
        profile = self.profile or backbone.profile
        canvas = Canvas.build(
            backbone.input_size, backbone.patch_size, self.layout or self.kind.layout, profile
        )
        if not (token_library(self.library).exact or (backbone.plain and self.wire is None)):
            why = (
                f"the wire {self.wire}"
                if backbone.plain
                else (f"{backbone.name}, which is no plain ViT")
            )
            raise ConfigurationError(
                f"library: got {self.library} for {why}, expected a library of pixels, since there "
                "tokens cannot "
                "stand in for them; use pixel, smooth or luma"
            )
        if self.wire is not None and self.wire.shift >= canvas.size / 2:
            raise ConfigurationError(
                f"wire: got shift:{self.wire.shift:g}, expected less than half of the canvas's "
                f"{canvas.size} pixels"
            )
        return canvas

    def card(self, task: Task, backbone: Backbone, canvas: Canvas) -> Card:
        """Return what a card says of the run before anything is trained; it has no mapping yet."""
        recipe = self.recipe.card() | {"mapping": self.mapping}
        returned = RecipeCard.from_json(recipe)
        wire = None if self.wire is None else str(self.wire)
        return Card(
            method=self.method,
            classes=task.classes,
            backbone=BackboneCard.from_json(backbone.card()),
            profile=str(self.profile or backbone.profile),
            layout=self.layout or self.kind.layout,
            library=LibraryCard(self.library, self.recipe.library_size) if self.mixes else None,
            inversion=self._inversion,
            generator=GeneratorCard(min(self.recipe.resolution, *canvas.box[2:])),
            seed=self.seed,
            recipe=replace(returned, top_k=self.top_k, decimals=self.decimals, wire=wire),
            data=DataCard.from_json(task.card()),
            versions={"pgn_client": __version__, "torch": str(torch.__version__)},
        )

    @property
    def _inversion(self) -> Inversion:
        if token_library(self.library).exact:
            return "exact"
        return "pseudo_inverse" if self.inversion == "pseudo_inverse" else "bounded"
