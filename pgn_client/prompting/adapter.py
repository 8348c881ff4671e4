"""A checkpoint as a callable: pictures in, the images that are sent out.

Reading the card, and mapping answers, need no torch; making prompts does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from pgn_client import checkpoint
from pgn_client.arrays import Floats32, Pixels
from pgn_client.errors import CheckpointError, ConfigurationError, MissingDependencyError
from pgn_client.imaging.compositor import compose, fit_picture, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.types import Hosted, Prepared, ServerProfile

if TYPE_CHECKING:
    from pgn_client.prompting.methods import RGBMethod
    from pgn_client.surrogate.patch_embedding import PatchEmbedding

# always so many at once: torch rounds by the size of a batch, and recorded answers go by the bytes
# sent
BATCH = 8
RAW = "raw"
"""The method on the card of a mapping alone."""


class PromptAdapter:
    """Image → adapted image, with everything that is needed to read the endpoint's answers.

    Args:
        card: see ``pgn_client.checkpoint``.
        tensors: the model's state, ``mapping.weight`` and ``mapping.bias``, and for a latent
            library the surrogate's patch embedding, ``embedding.weight`` and ``embedding.bias``.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.info = dict(card)
        self._tensors = dict(tensors)
        self.mapping = LabelMapping.from_parts(card["mapping"], _below(tensors, "mapping."))
        backbone = card["backbone"]
        self.canvas = Canvas.build(
            backbone["input_size"],
            backbone["patch_size"],
            card["layout"],
            ServerProfile.parse(card["profile"]),
        )

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
                f"checkpoint {path}: got {got}, expected prompts in pictures; use pgn predict, or "
                "pgn train another"
            )
        return found

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically, and take over the fingerprint on its card."""
        self.info = checkpoint.write(path, self.info, self._tensors)

    def with_profile(self, profile: ServerProfile) -> PromptAdapter:
        """Return the same prompts for a server with another resize and crop: only the margin around
        the canvas differs.

        Raises:
            ConfigurationError: the profile ends at another size than the backbone's input.
        """
        card = {**self.info, "profile": str(profile)}
        return PromptAdapter(
            card | {"fingerprint": checkpoint.fingerprint(card, self._tensors)}, self._tensors
        )

    def with_mapping(
        self, mapping: LabelMapping, tensors: Mapping[str, Any], card: Mapping[str, Any]
    ) -> PromptAdapter:
        """Return the same prompts with another label mapping; of a union of tasks nothing but the
        prompts is left.

        Args:
            mapping: of the endpoint's labels to the classes.
            tensors: others to replace, as of a local head for these classes.
            card: other entries to replace.

        Raises:
            CheckpointError: parts that do not fit each other.
        """
        parts = (
            self._tensors | dict(tensors) | {f"mapping.{k}": v for k, v in mapping.arrays().items()}
        )
        own = {k: v for k, v in self.info.items() if k not in ("parts", "part_of")}
        whole = own | {"classes": list(mapping.classes), "mapping": mapping.card()} | dict(card)
        return PromptAdapter(whole | {"fingerprint": checkpoint.fingerprint(whole, parts)}, parts)

    def for_task(self, name: str) -> PromptAdapter:
        """Return one task of a checkpoint for several: same prompts; its own classes, mapping,
        local head and α.

        Raises:
            ConfigurationError: the checkpoint does not know that task.
        """
        parts = self.info.get("parts", {})
        if name not in parts:
            known = ", ".join(parts) or "none: it was trained on one"
            raise ConfigurationError(
                f"task: got {name!r}, expected one of the checkpoint's ({known})"
            )
        columns = [
            i for i, label in enumerate(self.info["classes"]) if label.startswith(f"{name}/")
        ]
        classes = tuple(self.info["classes"][i].removeprefix(f"{name}/") for i in columns)
        whole = self.mapping
        mapping = LabelMapping(
            whole.kind, whole.source, classes, whole.weight[:, columns], whole.bias[columns]
        )
        head = {
            k: v[columns] for k, v in self._tensors.items() if k.startswith("generator.local_head.")
        }
        tensors = self._tensors | head | {f"mapping.{k}": v for k, v in mapping.arrays().items()}
        card = {k: v for k, v in self.info.items() if k != "parts"} | parts[name]
        card |= {
            "classes": list(classes),
            "mapping": mapping.card(),
            "data": self.info["data"]["parts"][name],
        }
        card["part_of"] = list(parts)
        return PromptAdapter(card | {"fingerprint": checkpoint.fingerprint(card, tensors)}, tensors)

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
            pictures = np.stack([fit_picture(image, self.canvas) for image in batch])
            patches, local = self.render(pictures, prompted_by=self.looked_at(batch))
            out.extend(
                Prepared(compose(p, q, self.canvas), row)
                for p, q, row in zip(pictures, patches, local, strict=True)
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
                seen = np.stack([fit_picture(image, self.canvas) for image in batch])
            with torch.inference_mode():
                pictures = torch.from_numpy(seen).permute(0, 3, 1, 2)
                weights, _ = model(generator_input(pictures, self.info["generator"]["resolution"]))
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
            (B, r, r, 3) uint8; ``None`` where it looks at the pictures as they stand on the canvas.
        """
        eye = self.info["generator"]
        if "profile" not in eye:
            return None
        profile, interpolation = ServerProfile.parse(eye["profile"]), eye["interpolation"]
        return np.stack(
            [seen_by_server(image, profile, eye["resolution"], interpolation) for image in images]
        )

    def render(self, pictures: Pixels, *, prompted_by: Pixels | None = None) -> tuple[Any, Any]:
        """Fitted pictures → what ``compositor.compose`` paints around or over them.

        Args:
            pictures: (B, h, w, 3) uint8, from ``compositor.fit_picture``.
            prompted_by: as many pictures, whose prompts are painted instead; a control.

        Returns:
            (B, K, P, P, 3) uint8 prompt patches, or (B, H, W, 3) uint8 whole canvases from a method
            that paints the picture itself; and (B, C) float64 log-probabilities of the local head.
        """
        source = pictures if prompted_by is None else prompted_by
        starts = range(0, len(pictures), BATCH)
        parts = [self._render(pictures[i : i + BATCH], source[i : i + BATCH]) for i in starts]
        return np.concatenate([p for p, _ in parts]), np.concatenate([q for _, q in parts])

    def _render(self, pictures: Pixels, source: Pixels) -> tuple[Any, Any]:
        model, embedding = self.runtime
        import torch

        n, missing = len(pictures), ((0, BATCH - len(pictures)), (0, 0), (0, 0), (0, 0))
        fitted, seen = (
            torch.from_numpy(np.pad(x, missing)).permute(0, 3, 1, 2) for x in (pictures, source)
        )
        patches, local = model.render(
            fitted,
            prompted_by=seen,
            resolution=self.info["generator"]["resolution"],
            embedding=embedding,
            route=self.info["inversion"],
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
        mean, std = (tuple(self.info["backbone"][k]) for k in ("mean", "std"))
        embedding = None
        if "embedding.weight" in state:
            embedding = PatchEmbedding(
                state["embedding.weight"], state["embedding.bias"], mean, std
            )
        parts = {k: v for k, v in state.items() if not k.startswith(("mapping.", "embedding."))}
        try:
            return methods.restorable(self.info["method"]).restore(self.info, parts), embedding
        # torch's say which tensor
        except (KeyError, RuntimeError, TypeError, ZeroDivisionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"checkpoint: its tensors do not fit its card ({reason}); train it again"
            ) from error

    def __repr__(self) -> str:
        info = self.info
        return (
            f"PromptAdapter({info['method']}, {info['backbone']['name']}, "
            f"{len(info['classes'])} classes)"
        )


class MappingAdapter:
    """A checkpoint of a label mapping alone: pictures are sent as they are, and nothing needs
    torch.

    Args:
        card: see ``pgn_client.checkpoint``; its method is ``raw``.
        tensors: ``mapping.weight`` and ``mapping.bias``.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Mapping[str, Any], tensors: Mapping[str, Any]) -> None:
        self.info = dict(card)
        self.mapping = LabelMapping.from_parts(card["mapping"], _below(tensors, "mapping."))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint, atomically, and take over the fingerprint on its card."""
        arrays = {f"mapping.{name}": array for name, array in self.mapping.arrays().items()}
        self.info = checkpoint.write(path, self.info, arrays)

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images as they are."""
        return list(images)

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images as they are; there is no local head."""
        return [Prepared(image) for image in images]

    def __repr__(self) -> str:
        return f"MappingAdapter({self.mapping.kind}, {len(self.mapping.classes)} classes)"


class HostedAdapter:
    """A checkpoint that runs on the server, EXPRES: here pictures are only fitted. Nothing needs
    torch.

    Args:
        card: see ``pgn_client.checkpoint``; its method is ``expres``.
        data: the whole file, which is uploaded.

    Raises:
        CheckpointError: parts are missing or do not fit.
    """

    def __init__(self, card: Mapping[str, Any], data: bytes) -> None:
        self.info = dict(card)
        backbone, profile = card["backbone"], ServerProfile.parse(card["profile"])
        self.canvas = Canvas.build(backbone["input_size"], backbone["patch_size"], "full", profile)
        self.hosted = Hosted(f"expres-{card['fingerprint'][:24]}", data)
        self._reference = self.hosted.reference
        classes = tuple(card["classes"])
        self.mapping = LabelMapping(
            "identity", classes, classes, np.eye(len(classes)), np.zeros(len(classes))
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Return the images to send: squashed as in training, in the size that the card's server
        profile asks for.
        """
        return [compose(fit_picture(image, self.canvas), None, self.canvas) for image in images]

    def prepare(self, images: Sequence[Image.Image]) -> list[Prepared]:
        """Return the images to send, and whom to ask; there is no local head."""
        return [Prepared(image, hosted=self._reference) for image in self(images)]

    def __repr__(self) -> str:
        return (
            f"HostedAdapter(expres, {self.info['backbone']['name']}, "
            f"{len(self.mapping.classes)} classes)"
        )


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
    card, tensors = checkpoint.read(path)
    known = {"profile": profile} if profile else {}
    try:
        if card.get("method") == checkpoint.HOSTED:
            return HostedAdapter(card | known, _whole(path))
        kind = MappingAdapter if card.get("method") == RAW else PromptAdapter
        found = kind(card, tensors)
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {path}: its card is not complete ({error}); train it again"
        ) from error
    if profile and isinstance(found, PromptAdapter) and found.info["profile"] != profile:
        return found.with_profile(ServerProfile.parse(profile))
    return found


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
