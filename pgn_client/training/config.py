"""The options of a training run, one frozen value for both ``fit`` and the command line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

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
    """All options of a training run: the prompt method, the server and the training settings.

    Attributes:
        method: Name of a method that can be deployed: ``pgn`` or another of ``methods.REGISTRY``.
        library: Kind of the token library, the learned rows that are mixed into prompts:
            ``pixel`` (rows are pixels, so they are sent exactly as trained), ``smooth`` or
            ``luma`` (pixels for servers that re-encode as JPEG), ``latent`` (rows are token
            vectors, as published, and are turned into pixels by ``inversion``) or ``reachable``
            (latent, limited to tokens that pixels can produce).
        layout: Place of the prompt patches: ``ring``, ``corner``, ``rows:N`` or ``full``; ``None``
            for the method's default.
        profile: The server's resize and crop; ``None`` for the backbone's own preprocessing.
        recipe: Learning rates, epochs and all other numbers of the training.
        mapping: Kind of the label mapping: ``auto`` (validation chooses among several), or one of
            ``label_mapping.KINDS``.
        inversion: How the tokens of a latent library are turned into pixels: ``bounded`` (least
            squares among valid pixels) or ``pseudo_inverse`` (clips the minimum-norm solution).
        top_k: Number of labels that the endpoint returns; ``None`` for all.
        decimals: Decimals to which the endpoint rounds probabilities; ``None`` for no rounding.
        wire: Degradation of the images on their way to the model, such as JPEG, for pixel
            libraries (see ``surrogate.degradation``). ``None`` for lossless transport; with a plain
            ViT, training then works on token vectors instead of rendered pixels.
        seed: Seed for all random choices.
        surrogate: What the backbone is to the hosted model: the ``same`` model or a ``stand_in``;
            ``None`` if it is not known. ``pgn evaluate`` tests the claim.

    Raises:
        ConfigurationError: A name is unknown, a number is out of range, or two options exclude
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
    surrogate: Literal["same", "stand_in"] | None = None

    def __post_init__(self) -> None:
        """Reject invalid options before any training starts."""
        # Version 0.1 accepted ``fit(recipe=None)``.
        if self.recipe is None:
            object.__setattr__(self, "recipe", Recipe())
        kind = methods.deployable(self.method)
        # Only for the ConfigurationError of an unknown inversion; rendering gets the route itself.
        route(self.inversion)
        if self.mapping not in ("auto", *labels.KINDS):
            kinds = ", ".join(labels.KINDS)
            raise ConfigurationError(
                f"mapping: got {self.mapping!r}, expected auto or one of {kinds}"
            )
        for name, least in (("top_k", 1), ("decimals", 0), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigurationError(f"{name}: got {value}, expected at least {least}")
        # "pixel" is the default, so it may also mean that no library was asked for.
        if self.library != "pixel" and not issubclass(kind, PGN):
            raise ConfigurationError(
                f"library: got {self.library} for method {self.method}, which has no token "
                "library; leave it out"
            )

    @classmethod
    def of(cls, config: TrainingConfig | None, options: Mapping[str, Any]) -> TrainingConfig:
        """Return ``config`` itself, or a new config built from ``options``.

        Args:
            config: A complete config; ``None`` to build one.
            options: Attributes of ``TrainingConfig`` by name.

        Raises:
            ConfigurationError: An option is unknown, or both a config and options are given.
        """
        # A recipe is easily passed as the third argument of fit, so the message names its keyword.
        if config is not None and not isinstance(config, cls):
            raise ConfigurationError(
                f"fit: got {type(config).__name__}, expected a TrainingConfig; pass a recipe "
                "as recipe=..."
            )
        names = [f.name for f in fields(cls)]
        unknown = sorted(set(options) - set(names))
        if unknown:
            raise ConfigurationError(f"fit: got {unknown[0]!r}, expected one of {', '.join(names)}")
        if config is not None and options:
            raise ConfigurationError(
                f"fit: got a config and the option {sorted(options)[0]!r}, expected one of them; "
                "set the option in the config"
            )
        return config if config is not None else cls(**options)

    @classmethod
    def from_card(cls, card: Card | Mapping[str, Any]) -> TrainingConfig:
        """Return the config that a checkpoint was trained with.

        Args:
            card: The checkpoint's metadata.

        Raises:
            CheckpointError: The checkpoint was not trained by ``fit``; it is imported, or holds
                only a mapping.
        """
        card = Card.of(card)
        recipe = card.recipe
        if recipe is None or not recipe.numbers or card.layout is None or card.profile is None:
            raise CheckpointError(
                f"checkpoint: got one of method {card.method} without a training recipe on its "
                "card, expected one made by pgn train"
            )
        # Two options have their default where they do not apply: the library where the method mixes
        # none, and the inversion where the library deploys exactly.
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
        """The class of the prompt method that ``method`` names."""
        return methods.deployable(self.method)

    @property
    def mixes(self) -> bool:
        """Whether the method makes its prompts by mixing the rows of a token library."""
        return issubclass(self.kind, PGN)

    def canvas(self, backbone: Backbone) -> Canvas:
        """Return the canvas: the places of image and prompts in the model's input.

        The canvas takes into account that the server resizes and crops the image that is sent.

        Raises:
            ConfigurationError: The token library does not fit the backbone or the image degradation
                ``wire``, or the shift in ``wire`` does not fit the canvas.
        """
        profile = self.profile or backbone.profile
        canvas = Canvas.build(
            backbone.input_size, backbone.patch_size, self.layout or self.kind.layout, profile
        )
        # Without a plain ViT and a lossless wire, training goes through rendered pixels. The rows
        # of a latent library have no pixels until they are inverted, after the training.
        has_pixels = token_library(self.library).exact
        needs_pixels = self.wire is not None or not backbone.plain
        if needs_pixels and not has_pixels:
            reason = (
                f"the wire {self.wire}"
                if backbone.plain
                else f"{backbone.name}, which is not a plain ViT"
            )
            raise ConfigurationError(
                f"library: got {self.library} for {reason}, expected a library of pixels, because "
                "training goes through the rendered image; use pixel, smooth or luma"
            )
        # A larger shift can move the middle of the image off the canvas.
        if self.wire is not None and self.wire.shift >= canvas.size / 2:
            raise ConfigurationError(
                f"wire: got shift:{self.wire.shift:g}, expected less than half of the canvas's "
                f"{canvas.size} pixels"
            )
        return canvas

    def card(self, task: Task, backbone: Backbone, canvas: Canvas) -> Card:
        """Return the card (the checkpoint's metadata) of a run that has not started.

        It has no label mapping and no metrics yet.
        """
        asked = {"mapping": self.mapping, "top_k": self.top_k, "decimals": self.decimals}
        wire = {} if self.wire is None else {"wire": str(self.wire)}
        library = LibraryCard(self.library, self.recipe.library_size) if self.mixes else None
        return Card(
            method=self.method,
            classes=task.classes,
            backbone=BackboneCard.from_json(backbone.card()),
            profile=str(self.profile or backbone.profile),
            layout=self.layout or self.kind.layout,
            library=library,
            inversion=self._inversion,
            # Never larger than the fitted image, because enlarging it adds no detail.
            generator=GeneratorCard(min(self.recipe.resolution, *canvas.box[2:])),
            seed=self.seed,
            surrogate=self.surrogate,
            recipe=RecipeCard.from_json(self.recipe.card() | asked | wire),
            data=DataCard.from_json(task.card()),
            # torch.load refuses a TorchVersion in a saved run, because it loads weights only.
            versions={"pgn_client": __version__, "torch": str(torch.__version__)},
        )

    @property
    def _inversion(self) -> Inversion:
        if token_library(self.library).exact:
            return "exact"
        # Not self.inversion itself: the type checker needs a Literal, and only two names are valid.
        return "pseudo_inverse" if self.inversion == "pseudo_inverse" else "bounded"
