"""A checkpoint as a callable: images in, the images that are sent out.

Reading the card, and mapping answers, need no torch; making prompts does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pgn_client import checkpoint
from pgn_client.arrays import Floats32, Pixels
from pgn_client.checkpoint.card import (
    HOSTED,
    RAW,
    BackboneCard,
    Card,
    GeneratorCard,
    MappingCard,
    PartCard,
)
from pgn_client.errors import CheckpointError, ConfigurationError, MissingDependencyError
from pgn_client.imaging.compositor import compose, fit_to_canvas, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.types import Hosted, Prepared, ServerProfile

if TYPE_CHECKING:
    from pgn_client.prompting.methods import RGBMethod
    from pgn_client.surrogate.patch_embedding import PatchEmbedding

# always so many at once: torch rounds by the size of a batch, and recorded answers go by the bytes
# sent
BATCH = 8


class PromptAdapter:
    """Image → adapted image, with everything that is needed to read the endpoint's answers.

    Args:
        card: see ``pgn_client.checkpoint``.
        tensors: the model's state, ``mapping.weight`` and ``mapping.bias``, and for a latent
            library the surrogate's patch embedding, ``embedding.weight`` and ``embedding.bias``.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Card | Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.card = Card.of(card)
        self.backbone, self.profile, layout = _prompts_of(self.card)
        self._tensors = dict(tensors)
        self.mapping = _mapping(self.card, tensors)
        self.canvas = Canvas.build(
            self.backbone.input_size, self.backbone.patch_size, layout, self.profile
        )

    @property
    def info(self) -> dict[str, Any]:
        """The card as JSON."""
        return self.card.to_json()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptAdapter:
        """Read a checkpoint.

        Raises:
            CheckpointError: a mapping alone, unreadable, a pickle, truncated, of a newer schema, or
                inconsistent.
        """
        found = load(path)
        if not isinstance(found, cls):
            got = (
                "a label mapping alone"
                if isinstance(found, MappingAdapter)
                else ("EXPRES, which runs on the server")
            )
            raise CheckpointError(
                f"checkpoint {path}: got {got}, expected prompts in images; use pgn predict, or "
                "pgn train another"
            )
        return found

    @property
    def generator(self) -> GeneratorCard:
        """What the generator looks at.

        Raises:
            CheckpointError: The card does not say.
        """
        if self.card.generator is None:
            raise CheckpointError("checkpoint: its card has no generator; train it again")
        return self.card.generator

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically, and take over the fingerprint on its card."""
        self.card = Card.from_json(checkpoint.write(path, self.info, self._tensors))

    def with_profile(self, profile: ServerProfile) -> PromptAdapter:
        """Return the same prompts for a server with another resize and crop: only the margin around
        the canvas differs.

        Raises:
            ConfigurationError: the profile ends at another size than the backbone's input.
        """
        card = replace(self.card, profile=str(profile))
        return PromptAdapter(_marked(card, self._tensors), self._tensors)

    def with_mapping(
        self, mapping: LabelMapping, tensors: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> PromptAdapter:
        """Return the same prompts with another label mapping; of a union of tasks nothing but the
        prompts is left.

        Args:
            mapping: of the endpoint's labels to the classes.
            tensors: others to replace, as of a local head for these classes.
            changes: attributes of the card to replace.

        Raises:
            CheckpointError: parts that do not fit each other.
        """
        parts = (
            self._tensors | dict(tensors) | {f"mapping.{k}": v for k, v in mapping.arrays().items()}
        )
        own = replace(
            self.card,
            parts=None,
            part_of=None,
            classes=mapping.classes,
            mapping=MappingCard.from_json(mapping.card()),
        )
        return PromptAdapter(_marked(replace(own, **changes), parts), parts)

    def for_task(self, name: str) -> PromptAdapter:
        """Return one task of a checkpoint for several: same prompts; its own classes, mapping,
        local head and α.

        Raises:
            ConfigurationError: the checkpoint does not know that task.
        """
        parts: Mapping[str, PartCard] = self.card.parts or {}
        if name not in parts:
            known = ", ".join(parts) or "none: it was trained on one"
            raise ConfigurationError(
                f"task: got {name!r}, expected one of the checkpoint's ({known})"
            )
        prefix = f"{name}/"
        columns = [i for i, label in enumerate(self.card.classes) if label.startswith(prefix)]
        classes = tuple(self.card.classes[i].removeprefix(prefix) for i in columns)
        whole = self.mapping
        mapping = LabelMapping(
            whole.kind, whole.source, classes, whole.weight[:, columns], whole.bias[columns]
        )
        head = {
            k: v[columns] for k, v in self._tensors.items() if k.startswith("generator.local_head.")
        }
        tensors = self._tensors | head | {f"mapping.{k}": v for k, v in mapping.arrays().items()}
        data = self.card.data.parts if self.card.data else None
        card = replace(
            self.card,
            parts=None,
            part_of=tuple(parts),
            classes=classes,
            mapping=MappingCard.from_json(mapping.card()),
            data=data[name] if data else None,
            fusion=parts[name].fusion,
            metrics=parts[name].metrics,
        )
        return PromptAdapter(_marked(card, tensors), tensors)

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images to send, RGB, in the size that the card's server profile asks for."""
        return [prepared.image for prepared in self.prepare(images)]

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return what to send for each image, with the local head's log-probabilities.

        Args:
            images: RGB (others are converted), any size.

        Raises:
            MissingDependencyError: torch is not installed.
        """
        out: list[Prepared] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            fitted = np.stack([fit_to_canvas(image, self.canvas) for image in batch])
            patches, local = self.render(fitted, prompted_by=self.looked_at(batch))
            out.extend(
                Prepared(compose(p, q, self.canvas), row)
                for p, q, row in zip(fitted, patches, local, strict=True)
            )
        return out

    def prompt_tokens(
        self, images: Sequence[Image.Image], embedding: PatchEmbedding | None = None
    ) -> Floats32:
        """Return the tokens that the generator makes of images, without position embedding.

        Args:
            images: RGB (others are converted), any size.
            embedding: the backbone's patch embedding, which turns the rows of a pixel library into
                tokens; a latent library needs none.

        Returns:
            (B, K, D) float32. Of a published checkpoint they are what the authors' code computes.

        Raises:
            ConfigurationError: a method that mixes no library, or a pixel library without
                ``embedding``.
            MissingDependencyError: torch is not installed.
        """
        model, own = self.runtime
        import torch

        from pgn_client.prompting.generator import generator_input
        from pgn_client.prompting.methods import PGN

        embedding = embedding or own
        if not isinstance(model, PGN) or embedding is None:
            raise ConfigurationError(
                f"prompt tokens: got {self!r}, expected a PGN, and for a pixel library the "
                "backbone's patch embedding"
            )
        embedding, parts = embedding.to("cpu"), []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            seen = self.looked_at(batch)
            if seen is None:
                seen = np.stack([fit_to_canvas(image, self.canvas) for image in batch])
            with torch.inference_mode():
                fitted = torch.from_numpy(seen).permute(0, 3, 1, 2)
                weights, _ = model(generator_input(fitted, self.generator.resolution))
                parts.append(model.prompt_tokens(weights, embedding).numpy())
        return (
            np.concatenate(parts)
            if parts
            else np.zeros((0, self.canvas.prompts, embedding.width), np.float32)
        )

    def looked_at(self, images: Sequence[Image.Image]) -> Pixels | None:
        """Return what the generator looks at where the card names a crop of its own, as of a
        published checkpoint.

        Returns:
            (B, r, r, 3) uint8; ``None`` where it looks at the images as they stand on the canvas.
        """
        generator = self.generator
        if generator.profile is None:
            return None
        profile = ServerProfile.parse(generator.profile)
        interpolation = generator.interpolation or "bilinear"
        return np.stack(
            [
                seen_by_server(image, profile, generator.resolution, interpolation)
                for image in images
            ]
        )

    def render(self, images: Pixels, *, prompted_by: Pixels | None = None) -> tuple[Any, Any]:
        """Fitted images → what ``compositor.compose`` paints around or over them.

        Args:
            images: (B, h, w, 3) uint8, from ``compositor.fit_to_canvas``.
            prompted_by: as many images, whose prompts are painted instead; a control.

        Returns:
            (B, K, P, P, 3) uint8 prompt patches, or (B, H, W, 3) uint8 whole canvases from a method
            that paints the image itself; and (B, C) float64 log-probabilities of the local head.
        """
        source = images if prompted_by is None else prompted_by
        starts = range(0, len(images), BATCH)
        parts = [self._render(images[i : i + BATCH], source[i : i + BATCH]) for i in starts]
        return np.concatenate([p for p, _ in parts]), np.concatenate([q for _, q in parts])

    def _render(self, images: Pixels, source: Pixels) -> tuple[Any, Any]:
        model, embedding = self.runtime
        import torch

        n, missing = len(images), ((0, BATCH - len(images)), (0, 0), (0, 0), (0, 0))
        fitted, seen = (
            torch.from_numpy(np.pad(x, missing)).permute(0, 3, 1, 2) for x in (images, source)
        )
        patches, local = model.render(
            fitted,
            prompted_by=seen,
            resolution=self.generator.resolution,
            embedding=embedding,
            route=self.card.inversion or "exact",
        )
        return patches.numpy()[:n], local.double().numpy()[:n]

    @cached_property
    def runtime(self) -> tuple[RGBMethod, PatchEmbedding | None]:
        """The torch side: the model in evaluation mode, and the patch embedding where inversion
        needs it.
        """
        try:
            import torch

            from pgn_client.prompting import methods
            from pgn_client.surrogate.patch_embedding import PatchEmbedding
        except ImportError as error:
            raise MissingDependencyError("making prompts from a checkpoint", "train") from error
        state = {k: torch.from_numpy(np.array(v)) for k, v in self._tensors.items()}
        embedding = None
        if "embedding.weight" in state:
            embedding = PatchEmbedding(
                state["embedding.weight"],
                state["embedding.bias"],
                self.backbone.mean,
                self.backbone.std,
            )
        parts = {k: v for k, v in state.items() if not k.startswith(("mapping.", "embedding."))}
        try:
            return methods.restorable(self.card.method).restore(self.card, parts), embedding
        # torch's say which tensor
        except (KeyError, RuntimeError, TypeError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"checkpoint: its tensors do not fit its card ({reason}); train it again"
            ) from error

    def __repr__(self) -> str:
        card = self.card
        return f"PromptAdapter({card.method}, {self.backbone.name}, {len(card.classes)} classes)"


class MappingAdapter:
    """A checkpoint of a label mapping alone: images are sent as they are, and nothing needs
    torch.

    Args:
        card: see ``pgn_client.checkpoint``; its method is ``raw``.
        tensors: ``mapping.weight`` and ``mapping.bias``.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Card | Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.card = Card.of(card)
        self.mapping = _mapping(self.card, tensors)

    @property
    def info(self) -> dict[str, Any]:
        """The card as JSON."""
        return self.card.to_json()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically, and take over the fingerprint on its card."""
        arrays = {f"mapping.{name}": array for name, array in self.mapping.arrays().items()}
        self.card = Card.from_json(checkpoint.write(path, self.info, arrays))

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images as they are."""
        return list(images)

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images as they are; there is no local head."""
        return [Prepared(image) for image in images]

    def __repr__(self) -> str:
        return f"MappingAdapter({self.mapping.kind}, {len(self.mapping.classes)} classes)"


class HostedAdapter:
    """A checkpoint that runs on the server, EXPRES: here images are only fitted. Nothing needs
    torch.

    Args:
        card: see ``pgn_client.checkpoint``; its method is ``expres``.
        data: the whole file, which is uploaded.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Card | Mapping[str, Any], data: bytes) -> None:
        self.card = Card.of(card)
        self.backbone, self.profile, _ = _prompts_of(self.card)
        self.canvas = Canvas.build(
            self.backbone.input_size, self.backbone.patch_size, "full", self.profile
        )
        self.hosted = Hosted(f"expres-{(self.card.fingerprint or '')[:24]}", data)
        self._reference = self.hosted.reference
        classes = self.card.classes
        self.mapping = LabelMapping(
            "identity", classes, classes, np.eye(len(classes)), np.zeros(len(classes))
        )

    @property
    def info(self) -> dict[str, Any]:
        """The card as JSON."""
        return self.card.to_json()

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images to send: squashed as in training, in the size that the card's server
        profile asks for.
        """
        return [compose(fit_to_canvas(image, self.canvas), None, self.canvas) for image in images]

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images to send, and whom to ask; there is no local head."""
        return [Prepared(image, hosted=self._reference) for image in self(images)]

    def __repr__(self) -> str:
        return f"HostedAdapter(expres, {self.backbone.name}, {len(self.mapping.classes)} classes)"


def load(
    path: str | os.PathLike[str], profile: str | None = None
) -> PromptAdapter | MappingAdapter | HostedAdapter:
    """Read a checkpoint of any kind.

    Args:
        path: of the file.
        profile: the server's resize and crop where they are known; prompts then get the margin that
            it wants.

    Raises:
        CheckpointError: unreadable, a pickle, truncated, of a newer schema, or inconsistent.
        ConfigurationError: the profile ends at another size than the backbone's input.
    """
    header, tensors = checkpoint.read(path)
    try:
        card = Card.from_json(header)
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint {path}: its card is not complete ({error}); train it again"
        ) from error
    if card.not_served:
        raise CheckpointError(
            f"checkpoint {path}: got {', '.join(card.not_served)}, which this version cannot "
            "serve; upgrade: pip install -U pgn-client"
        )
    try:
        if card.method == RAW:
            return MappingAdapter(card, tensors)
        if card.method == HOSTED:
            adapted = replace(card, profile=profile or card.profile)
            return HostedAdapter(adapted, _whole(path))
        found = PromptAdapter(card, tensors)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its card is not complete ({error}); train it again"
        ) from error
    if profile and card.profile != profile:
        return found.with_profile(ServerProfile.parse(profile))
    return found


def _prompts_of(card: Card) -> tuple[BackboneCard, ServerProfile, str]:
    """Return what a card of prompts has: backbone, server profile and layout.

    Raises:
        CheckpointError: A mapping alone, which has none.
    """
    if card.backbone is None or card.profile is None:
        raise CheckpointError(
            f"checkpoint: got method {card.method} without prompts, expected one that makes some"
        )
    return card.backbone, ServerProfile.parse(card.profile), card.layout or "full"


def _mapping(card: Card, tensors: Mapping[str, Any]) -> LabelMapping:
    """Return the label mapping of a checkpoint that does not run on the server."""
    if card.mapping is None:
        raise CheckpointError("checkpoint: its card has no label mapping; train it again")
    return LabelMapping.from_parts(card.mapping.to_json(), _below(tensors, "mapping."))


def _marked(card: Card, tensors: Mapping[str, Any]) -> Card:
    """Return the card with the fingerprint of what it now says."""
    return replace(card, fingerprint=checkpoint.fingerprint(card.to_json(), tensors))


def _whole(path: str | os.PathLike[str]) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path}: {error.strerror}; expected a file written by pgn train"
        ) from error


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }
