"""Adapters: checkpoints as callables, from a user's images to the images that are sent.

Making prompts needs torch. Reading the card and mapping the endpoint's scores do not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
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
from pgn_client.checkpoint.entry import shown
from pgn_client.errors import (
    CheckpointError,
    ConfigurationError,
    MissingDependencyError,
    reason,
)
from pgn_client.imaging.compositor import compose, fit_to_canvas, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.imaging.opening import read_regular
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.types import Hosted, Prepared, ServerProfile

if TYPE_CHECKING:
    from pgn_client.prompting.methods import RGBMethod
    from pgn_client.surrogate.patch_embedding import PatchEmbedding

BATCH = 8
"""Number of images in every forward pass of an adapter; short batches are padded.

torch's rounding depends on the batch size, and recorded answers are found by the bytes that were
sent. With a fixed size, an image gives the same bytes each time.
"""


class PromptAdapter:
    """A checkpoint of prompts: image → prompted image, with the label mapping for the scores.

    Args:
        card: Card of the checkpoint; see ``pgn_client.checkpoint``.
        tensors: Arrays by name: the model's state, ``mapping.weight`` and ``mapping.bias``, and for
            a latent library the surrogate's patch embedding, ``embedding.weight`` and
            ``embedding.bias``.

    Attributes:
        card: Card of the checkpoint.
        backbone: Card of the surrogate that the prompts were trained through.
        profile: Resize and crop of the server.
        mapping: Label mapping.
        canvas: Places of prompts and image in the image that is sent.

    Raises:
        CheckpointError: Parts of the checkpoint are missing or do not fit each other.
    """

    def __init__(self, card: Card | Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.card = Card.of(card)
        self.backbone, self.profile, layout = _prompts_of(self.card)
        if self.card.generator and self.card.generator.profile:
            # A profile that cannot be read would fail at the first image.
            ServerProfile.parse(self.card.generator.profile)
        self._tensors = dict(tensors)
        self.mapping = _mapping(self.card, tensors)
        self.canvas = Canvas.build(
            self.backbone.input_size, self.backbone.patch_size, layout, self.profile
        )

    @property
    def info(self) -> dict[str, Any]:
        """The card, the checkpoint's metadata, as JSON."""
        return self.card.to_json()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> PromptAdapter:
        """Read a checkpoint of prompts.

        Raises:
            CheckpointError: The file is unreadable, a pickle, truncated, of a newer schema or
                inconsistent, or holds a label mapping alone or EXPRES.
        """
        adapter = load(path)
        if not isinstance(adapter, cls):
            got = "EXPRES, which runs on the server"
            if isinstance(adapter, MappingAdapter):
                got = "a label mapping alone"
            raise CheckpointError(
                f"checkpoint {path}: got {got}, expected prompts in images; use pgn predict, or "
                "train another checkpoint with pgn train"
            )
        return adapter

    @property
    def generator(self) -> GeneratorCard:
        """The card's entry about the generator's input.

        Raises:
            CheckpointError: The card has no such entry.
        """
        if self.card.generator is None:
            raise CheckpointError("checkpoint: its card has no generator; train it again")
        return self.card.generator

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint atomically, and put its fingerprint on this adapter's card."""
        self.card = Card.from_json(checkpoint.write(path, self.info, self._tensors))

    def with_profile(self, profile: ServerProfile) -> PromptAdapter:
        """Return an adapter with the same prompts for a server with another resize and crop.

        Only the margin that the server crops away changes.

        Raises:
            ConfigurationError: The profile ends at another size than the backbone's input.
        """
        return self.with_card(replace(self.card, profile=str(profile)))

    def with_card(self, card: Card) -> PromptAdapter:
        """Return an adapter with the same arrays and other metadata, whose fingerprint follows.

        Raises:
            CheckpointError: The metadata does not fit the arrays.
        """
        return PromptAdapter(_marked(card, self._tensors), self._tensors)

    def with_mapping(self, mapping: LabelMapping, head: Mapping[str, Any]) -> PromptAdapter:
        """Return an adapter with the same prompts and another label mapping.

        A checkpoint for several tasks becomes one for the mapping's classes alone.

        Args:
            mapping: Mapping of the endpoint's labels to the classes.
            head: Arrays of a local head for these classes; empty to keep the present one.

        Raises:
            CheckpointError: The parts do not fit each other.
        """
        arrays = self._tensors | dict(head)
        arrays |= {f"mapping.{name}": array for name, array in mapping.arrays().items()}

        card = replace(
            self.card,
            parts=None,
            part_of=None,
            classes=mapping.classes,
            mapping=MappingCard.from_json(mapping.card()),
        )
        return PromptAdapter(_marked(card, arrays), arrays)

    def for_task(self, name: str) -> PromptAdapter:
        """Return an adapter for one task of a checkpoint that was trained on several tasks.

        It has the same prompts, and the task's own classes, label mapping, local head and fusion of
        local and endpoint scores.

        Raises:
            ConfigurationError: The checkpoint has no such task.
        """
        parts: Mapping[str, PartCard] = self.card.parts or {}
        if name not in parts:
            tasks = ", ".join(parts) or "none: it was trained on one task"
            raise ConfigurationError(
                f"task: got {name!r}, expected one of the checkpoint's tasks ({tasks})"
            )

        # The classes of a checkpoint for several tasks are named TASK/CLASS.
        prefix = f"{name}/"
        columns = [i for i, label in enumerate(self.card.classes) if label.startswith(prefix)]
        classes = tuple(self.card.classes[i].removeprefix(prefix) for i in columns)
        union = self.mapping
        mapping = LabelMapping(
            union.kind, union.source, classes, union.weight[:, columns], union.bias[columns]
        )

        tensors = dict(self._tensors)
        for key, array in self._tensors.items():
            if key.startswith("generator.local_head."):
                tensors[key] = array[columns]
        tensors |= {f"mapping.{key}": array for key, array in mapping.arrays().items()}

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
        """Return the prompted images to send, RGB, in the size that the server's resize needs."""
        return [prepared.image for prepared in self.prepare(images)]

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the prompted image to send for each image, with the local head's
        log-probabilities.

        Args:
            images: Images of any size and mode; they are converted to RGB.

        Raises:
            MissingDependencyError: The package torch is not installed.
        """
        prepared: list[Prepared] = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            fitted = np.stack([fit_to_canvas(image, self.canvas) for image in batch])
            painted, local = self.render(fitted, prompted_by=self.looked_at(batch))
            for image, pixels, log_probs in zip(fitted, painted, local, strict=True):
                prepared.append(Prepared(compose(image, pixels, self.canvas), log_probs))
        return prepared

    def prompt_tokens(
        self, images: Sequence[Image.Image], embedding: PatchEmbedding | None = None
    ) -> Floats32:
        """Return the prompt tokens of images, without position embedding.

        Args:
            images: Images of any size and mode; they are converted to RGB.
            embedding: Patch embedding of the backbone, which embeds the rows of a pixel library; a
                latent library does not need it.

        Returns:
            (B, K, D) float32. For a published checkpoint, they equal the tokens that the authors'
            code computes.

        Raises:
            ConfigurationError: The method mixes no library, or a pixel library comes without
                ``embedding``.
            MissingDependencyError: The package torch is not installed.
        """
        # First, because it raises a clear error where torch is missing.
        model, saved_embedding = self.runtime
        import torch

        from pgn_client.prompting.generator import generator_input
        from pgn_client.prompting.methods import PGN

        embedding = embedding or saved_embedding
        if not isinstance(model, PGN) or embedding is None:
            raise ConfigurationError(
                f"prompt tokens: got {self!r}, expected a PGN, and for a pixel library the "
                "backbone's patch embedding"
            )
        embedding = embedding.to("cpu")

        # Tokens are not sent, so their last bits do not matter and short batches are not padded.
        parts = []
        for start in range(0, len(images), BATCH):
            batch = images[start : start + BATCH]
            crops = self.looked_at(batch)
            if crops is None:
                crops = np.stack([fit_to_canvas(image, self.canvas) for image in batch])
            with torch.inference_mode():
                pixels = torch.from_numpy(crops).permute(0, 3, 1, 2)
                weights, _ = model(generator_input(pixels, self.generator.resolution))
                parts.append(model.prompt_tokens(weights, embedding).numpy())

        if not parts:
            return np.zeros((0, self.canvas.prompts, embedding.width), np.float32)
        return np.concatenate(parts)

    def looked_at(self, images: Sequence[Image.Image]) -> Pixels | None:
        """Return the images as the prompt generator reads them, if it has a crop of its own.

        The generator of an imported, published checkpoint has one.

        Returns:
            (B, r, r, 3) uint8; ``None`` where the generator reads the images fitted to the canvas.
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
        """Return the prompts' pixels and the local head's scores for fitted images.

        ``compositor.compose`` puts the pixels around or over the images.

        Args:
            images: Images from ``compositor.fit_to_canvas``, (B, h, w, 3) uint8.
            prompted_by: As many images for the generator to read instead of ``images``: the crops
                from :meth:`looked_at`, or other images for a control experiment.

        Returns:
            (B, K, P, P, 3) uint8 prompt patches, K per image, or (B, H, W, 3) uint8 whole images
            from a method that paints on the image itself; and (B, C) float64 log-probabilities of
            the local head.
        """
        source = images if prompted_by is None else prompted_by
        painted = []
        local = []
        # no images still make one empty batch, whose shapes are those of any other
        for start in range(0, max(1, len(images)), BATCH):
            batch = slice(start, start + BATCH)
            pixels, log_probs = self._render(images[batch], source[batch])
            painted.append(pixels)
            local.append(log_probs)
        return np.concatenate(painted), np.concatenate(local)

    def _render(self, images: Pixels, source: Pixels) -> tuple[Any, Any]:
        """Return the prompts' pixels and local scores for up to ``BATCH`` images in one pass."""
        # First, because it raises a clear error where torch is missing.
        model, embedding = self.runtime
        import torch

        n = len(images)
        padding = ((0, BATCH - n), (0, 0), (0, 0), (0, 0))
        painted, local = model.render(
            torch.from_numpy(np.pad(images, padding)).permute(0, 3, 1, 2),
            prompted_by=torch.from_numpy(np.pad(source, padding)).permute(0, 3, 1, 2),
            resolution=self.generator.resolution,
            embedding=embedding,
            route=self.card.inversion or "exact",
        )
        # The local head is fused with the mapping's log-probabilities, which are float64.
        return painted.numpy()[:n], local.double().numpy()[:n]

    @cached_property
    def runtime(self) -> tuple[RGBMethod, PatchEmbedding | None]:
        """The checkpoint's torch model in evaluation mode, and its patch embedding if it has one.

        Raises:
            CheckpointError: The tensors do not fit the card.
            MissingDependencyError: The package torch is not installed.
        """
        try:
            import torch

            from pgn_client.prompting import methods
            from pgn_client.surrogate.patch_embedding import PatchEmbedding
        except ImportError as error:
            raise MissingDependencyError("making prompts from a checkpoint", "train") from error

        # Copies, because `from_numpy` shares memory with an array and warns if it is read-only.
        state = {name: torch.from_numpy(np.array(array)) for name, array in self._tensors.items()}
        model_state = {
            name: tensor
            for name, tensor in state.items()
            if not name.startswith(("mapping.", "embedding."))
        }
        embedding = None
        try:
            if "embedding.weight" in state:
                embedding = PatchEmbedding(
                    state["embedding.weight"],
                    state["embedding.bias"],
                    self.backbone.mean,
                    self.backbone.std,
                )
                _check_embedding(embedding)
            model = methods.restorable(self.card.method).restore(self.card, model_state)
        except (LookupError, RuntimeError, TypeError, ValueError, ZeroDivisionError) as error:
            # A damaged file fails wherever its first bad name, type or size is used. torch's
            # message, a RuntimeError of several lines, names the tensor.
            raise CheckpointError(
                f"checkpoint: its tensors do not fit its card ({reason(error)}); train it again"
            ) from error
        return model, embedding

    def __repr__(self) -> str:
        card = self.card
        return f"PromptAdapter({card.method}, {self.backbone.name}, {len(card.classes)} classes)"


class MappingAdapter:
    """A checkpoint of a label mapping alone: images are sent unchanged. It does not need torch.

    Args:
        card: Card of the checkpoint, with the method ``raw``; see ``pgn_client.checkpoint``.
        tensors: Arrays by name: ``mapping.weight`` and ``mapping.bias``.

    Raises:
        CheckpointError: Parts of the checkpoint are missing or do not fit each other.
    """

    def __init__(self, card: Card | Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.card = Card.of(card)
        self.mapping = _mapping(self.card, tensors)

    @property
    def info(self) -> dict[str, Any]:
        """The card, the checkpoint's metadata, as JSON."""
        return self.card.to_json()

    def with_card(self, card: Card) -> MappingAdapter:
        """Return an adapter with the same mapping and other metadata, whose fingerprint follows."""
        arrays = {f"mapping.{name}": array for name, array in self.mapping.arrays().items()}
        return MappingAdapter(_marked(card, arrays), arrays)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the checkpoint atomically, and put its fingerprint on this adapter's card."""
        arrays = {f"mapping.{name}": array for name, array in self.mapping.arrays().items()}
        self.card = Card.from_json(checkpoint.write(path, self.info, arrays))

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images to send, which are the given images unchanged."""
        return list(images)

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images unchanged, without scores of a local head: this checkpoint has none."""
        return [Prepared(image) for image in images]

    def __repr__(self) -> str:
        return f"MappingAdapter({self.mapping.kind}, {len(self.mapping.classes)} classes)"


class HostedAdapter:
    """A checkpoint that runs on the server (EXPRES); the client only resizes the images.

    The client does not need torch for it.

    Args:
        card: Card of the checkpoint, with the method ``expres``; see ``pgn_client.checkpoint``.
        data: Content of the checkpoint file, which is uploaded to the server.

    Raises:
        CheckpointError: Parts of the checkpoint are missing or do not fit each other.
    """

    def __init__(self, card: Card | Mapping[str, Any], data: bytes) -> None:
        self.card = Card.of(card)
        self.backbone, self.profile, _ = _prompts_of(self.card)
        self.canvas = Canvas.build(
            self.backbone.input_size, self.backbone.patch_size, "full", self.profile
        )
        # A name on the server has at most 64 characters, too few for the whole fingerprint.
        self.hosted = Hosted(f"expres-{(self.card.fingerprint or '')[:24]}", data)
        # Kept, because the property hashes the whole file and every image needs its value.
        self._reference = self.hosted.reference

        # The server returns scores of the task's classes, so no label mapping is needed.
        classes = self.card.classes
        self.mapping = LabelMapping(
            "identity", classes, classes, np.eye(len(classes)), np.zeros(len(classes))
        )

    @property
    def info(self) -> dict[str, Any]:
        """The card, the checkpoint's metadata, as JSON."""
        return self.card.to_json()

    def with_profile(self, profile: ServerProfile) -> HostedAdapter:
        """Return the same adapter for a server with another resize and crop.

        Raises:
            ConfigurationError: The profile ends at another size than the backbone's input.
        """
        # The card keeps its fingerprint, which names the file on the server: another profile
        # changes the images that are sent, but not the file.
        return HostedAdapter(replace(self.card, profile=str(profile)), self.hosted.data)

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images to send: squashed as in training, in the size that the card's server
        profile needs.
        """
        return [compose(fit_to_canvas(image, self.canvas), None, self.canvas) for image in images]

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images to send, each with the reference of the uploaded checkpoint.

        The server processes them with that checkpoint; there is no local head.
        """
        return [Prepared(image, hosted=self._reference) for image in self(images)]

    def __repr__(self) -> str:
        return f"HostedAdapter(expres, {self.backbone.name}, {len(self.mapping.classes)} classes)"


def load(
    path: str | os.PathLike[str], profile: str | None = None
) -> PromptAdapter | MappingAdapter | HostedAdapter:
    """Read a checkpoint of any kind and return the adapter that uses it.

    Args:
        path: Path of the file.
        profile: The server's resize and crop; the images to send get the margin that it needs.
            ``None`` keeps the card's.

    Raises:
        CheckpointError: The file is unreadable, a pickle, truncated, of a newer schema, or
            inconsistent.
        ConfigurationError: The profile ends at another size than the backbone's input.
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
    # Before an adapter makes anything of that size.
    bias = tensors.get("mapping.bias")
    if bias is None or bias.shape != (len(card.classes),):
        raise CheckpointError(
            f"checkpoint {path}: got {len(card.classes)} classes, expected one for each number of "
            "its tensor mapping.bias; train it again"
        )
    try:
        if card.method == RAW:
            return MappingAdapter(card, tensors)
        adapter = (
            HostedAdapter(card, _file_content(path))
            if card.method == HOSTED
            else PromptAdapter(card, tensors)
        )
    # The card's own checks do not compare its parts with each other or with the tensors.
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its card is not complete ({shown(str(error))}); train it again"
        ) from error

    if profile and card.profile != profile:
        return adapter.with_profile(ServerProfile.parse(profile))
    return adapter


def _check_embedding(embedding: PatchEmbedding) -> None:
    """Check the shapes of a patch embedding from a file: (D, 3, P, P) and (D,).

    Raises:
        ValueError: The shapes are others.
    """
    weight = tuple(embedding.weight.shape)
    square = len(weight) == 4 and weight[1] == 3 and weight[2] == weight[3]
    if not square or tuple(embedding.bias.shape) != weight[:1]:
        raise ValueError(f"embedding.weight {weight} and its bias are no patch embedding")


def _prompts_of(card: Card) -> tuple[BackboneCard, ServerProfile, str]:
    """Return backbone, server profile and layout from a card, the metadata of a checkpoint.

    Raises:
        CheckpointError: The card is that of a label mapping alone.
    """
    if card.backbone is None or card.profile is None:
        raise CheckpointError(
            f"checkpoint: got method {card.method} without prompts, expected one with prompts"
        )
    return card.backbone, ServerProfile.parse(card.profile), card.layout or "full"


def _mapping(card: Card, tensors: Mapping[str, Any]) -> LabelMapping:
    """Return the label mapping of a checkpoint that does not run on the server.

    Raises:
        CheckpointError: The card has no label mapping, or the tensors do not fit it.
    """
    if card.mapping is None:
        raise CheckpointError("checkpoint: its card has no label mapping; train it again")
    return LabelMapping.from_parts(card.mapping.to_json(), _below(tensors, "mapping."))


def _marked(card: Card, tensors: Mapping[str, Any]) -> Card:
    """Return the card with a fingerprint of its present content and of the tensors."""
    return replace(card, fingerprint=checkpoint.fingerprint(card.to_json(), tensors))


def _file_content(path: str | os.PathLike[str]) -> bytes:
    """Read a whole file.

    Raises:
        CheckpointError: The file cannot be read.
    """
    try:
        return read_regular(path)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path}: {error.strerror}; expected a file written by pgn train"
        ) from error


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the tensors whose names start with a prefix, without that prefix."""
    return {
        name.removeprefix(prefix): array
        for name, array in tensors.items()
        if name.startswith(prefix)
    }
