"""The frozen vision transformer that is hosted, and where it comes from."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from timm.data import resolve_data_config
from torch import nn

from mock_server import adapters
from mock_server.adapters import Adapter
from mock_server.errors import ConfigurationError
from mock_server.preprocess import Preprocessing, Profile
from mock_server.settings import Settings

WEIGHTS = Path(__file__).parent / "weights"
Want = Literal["logits", "embedding", "tokens"]


@dataclass(frozen=True)
class Asked:
    """One image and what is wanted of it.

    Attributes:
        pixels: (3, H, W) float32 in the normalised space.
        want: ``logits`` (S,), ``embedding`` (D,), the pooled features before the head, or
            ``tokens``, the features before the pooling, (N, D) of a ViT.
        adapter: A tenant's, which then answers (C,) log-probabilities instead; None is the model
            itself.
    """

    pixels: NDArray[np.float32]
    want: Want = "logits"
    adapter: Adapter | None = None


@dataclass(frozen=True)
class ServedModel:
    """A frozen classifier and what a client may know of it.

    Attributes:
        name: As `/v1/model` says it.
        network: (B, 3, H, W) float32, normalised space → (B, S) logits; in evaluation mode.
        classes: S names, all different.
        preprocessing: The model's own.
        patch_size: Side of a patch in pixels; None where the model has no patch embedding.
        weights_sha256: Of the weights file, or of the weights serialised anew where `host` was
            given no file's.
        patch_embedding_sha256: Of the little-endian float32 bytes of weight (D, 3, P, P), then bias
            (D,); or None.
        device: Where it runs.
    """

    name: str
    network: nn.Module
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    patch_size: int | None
    weights_sha256: str
    patch_embedding_sha256: str | None
    device: torch.device

    @property
    def width(self) -> int:
        """Numbers in an embedding."""
        network: Any = self.network
        return int(getattr(network, "head_hidden_size", None) or network.num_features)

    @cached_property
    def features_sha256(self) -> str:
        """Of all weights but the head's; see `adapters.features_sha256`."""
        return adapters.features_sha256(self.network)

    @torch.inference_mode()
    def run(self, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
        """Return what is wanted of each image; those of equal shapes share one pass, whatever
        they want.

        Images for adapters share another, whoever's they are.
        """
        rows: dict[int, NDArray[np.float32]] = {}
        for kind in sorted({_kind(one) for one in asked}):
            members = [i for i, one in enumerate(asked) if _kind(one) == kind]
            x = torch.from_numpy(np.stack([asked[i].pixels for i in members])).to(self.device)
            rows.update(zip(members, self._answers(x, [asked[i] for i in members]), strict=True))
        return [rows[i] for i in range(len(asked))]

    def _answers(self, x: torch.Tensor, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
        own = [one.adapter for one in asked if one.adapter is not None]
        if own:
            return adapters.run(self.network, x, own)
        outputs = self._outputs(x, {one.want for one in asked})
        return [outputs[one.want][row] for row, one in enumerate(asked)]

    def _outputs(self, x: torch.Tensor, wants: set[Want]) -> dict[Want, NDArray[np.float32]]:
        network: Any = self.network
        if wants == {"logits"}:
            return {"logits": _array(network(x))}
        features = network.forward_features(x)
        outputs: dict[Want, NDArray[np.float32]] = (
            {"tokens": _array(features)} if "tokens" in wants else {}
        )
        if "embedding" in wants:
            outputs["embedding"] = _array(network.forward_head(features, pre_logits=True))
        if "logits" in wants:
            outputs["logits"] = _array(network.forward_head(features))
        return outputs


def _kind(one: Asked) -> tuple[bool, tuple[int, ...]]:
    """What is the same in all images of one pass."""
    return one.adapter is not None, one.pixels.shape


def _array(output: torch.Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = output.float().cpu().numpy()
    return array


def host(
    network: nn.Module,
    *,
    name: str,
    classes: Sequence[str],
    preprocessing: Preprocessing,
    weights_sha256: str | None = None,
    device: str = "cpu",
    needs_head: bool = True,
) -> ServedModel:
    """Freeze ``network`` and describe it.

    Args:
        network: A timm model; a ViT has its patch embedding at ``network.patch_embed.proj``.
        name: Of the model.
        classes: S names in the model's order, or none where there is no head; the second and later
            of equal ones get a suffix.
        preprocessing: The model's own.
        weights_sha256: Of the file that the weights came from. None hashes the weights as
            safetensors serialises them anew: it tells models apart, but need not equal the hash of
            the file that they were downloaded as.
        device: ``auto``, ``cpu`` or ``cuda``.
        needs_head: Whether a model without a classification head is refused; embeddings need none.

    Raises:
        ConfigurationError: No classification head where one is needed, or no such device.
    """
    weight, bias = _patch_embedding(network)
    if needs_head and getattr(network, "num_classes", None) == 0:
        raise ConfigurationError(
            f"{name} has no classification head; choose a model that was trained to classify, or "
            "serve its features "
            "with --output embedding"
        )
    sha256 = (
        weights_sha256 or hashlib.sha256(safetensors.torch.save(network.state_dict())).hexdigest()
    )
    place = _device(device)
    return ServedModel(
        name=name,
        network=network.to(place).eval().requires_grad_(False),
        classes=distinct(classes),
        preprocessing=preprocessing,
        patch_size=None if weight is None else weight.shape[-1],
        weights_sha256=sha256,
        patch_embedding_sha256=None
        if weight is None
        else hashlib.sha256(weight.tobytes() + bias).hexdigest(),
        device=place,
    )


def load(settings: Settings) -> ServedModel:
    """Build the model that ``settings`` ask for.

    Raises:
        ConfigurationError: Unknown model, weights or labels that do not fit, missing files, no such
            device.
    """
    return _load_bundled(settings) if settings.model == "bundled" else _load_timm(settings)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` with a suffix on the second and later of equal ones: ``crane``, ``crane
    (2)``.
    """
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        seen[name] += 1
        result.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(result)


def read_labels(path: Path) -> list[str]:
    """Read class names from a JSON list of strings, or of objects with a ``name``.

    Raises:
        ConfigurationError: The file holds anything else.
    """
    try:
        rows = json.loads(path.read_text("utf-8"))
        names = [row["name"] if isinstance(row, dict) else row for row in rows]
    except (ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f'{path} is not a JSON list of names or of {{"wnid", "name"}}'
        ) from error
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigurationError(f"{path} is not a JSON list of class names")
    return names


def _load_bundled(settings: Settings) -> ServedModel:
    weights = settings.weights or WEIGHTS / "bundled.safetensors"
    card_file = WEIGHTS / "bundled.json"
    if not weights.is_file() or not card_file.is_file():
        raise ConfigurationError(
            "the bundled weights are not installed; give --model TIMM_NAME and --weights FILE"
        )
    card: dict[str, Any] = json.loads(card_file.read_text("utf-8"))
    classes = _class_names(settings, card["classes"])
    network = timm.models.VisionTransformer(
        num_classes=len(classes), **card["architecture"], **_any_shape(settings.profile)
    )
    _fill(network, weights, "bundled")
    preprocessing = Preprocessing(
        profile=Profile(),
        input_size=card["architecture"]["img_size"],
        interpolation="bicubic",
        mean=tuple(card["mean"]),
        std=tuple(card["std"]),
    )
    return host(
        network,
        name=card["name"],
        classes=classes,
        preprocessing=preprocessing,
        weights_sha256=_file_sha256(weights),
        device=settings.device,
    )


def _load_timm(settings: Settings) -> ServedModel:
    name, weights = settings.model, settings.weights
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigurationError(f"unknown model {name!r}{_suggestion(name)}")
    # Without a file timm would silently replace a head of another size by a random one: then leave
    # its size alone.
    head = {"num_classes": len(read_labels(settings.labels))} if settings.labels and weights else {}
    try:
        network: Any = _create(
            name, {"pretrained": weights is None} | head, _any_shape(settings.profile)
        )
    except Exception as error:  # a download fails in as many ways as there are hubs and proxies
        raise ConfigurationError(
            f"cannot build {name}: {_first_line(error)}; --weights FILE needs no network"
        ) from error
    if weights is not None:
        _fill(network, weights, name)
    return host(
        network,
        name=name,
        classes=_class_names(settings, [f"class_{i}" for i in range(network.num_classes)]),
        preprocessing=_timm_preprocessing(network, name),
        weights_sha256=None if weights is None else _file_sha256(weights),
        device=settings.device,
        needs_head=settings.output != "embedding",
    )


def _timm_preprocessing(network: nn.Module, name: str) -> Preprocessing:
    """Translate the model's ``pretrained_cfg``, with timm's own arithmetic for the size before the
    crop.
    """
    config = resolve_data_config(model=network)
    _, height, width = config["input_size"]
    resize = math.floor(height / config["crop_pct"])
    squash = config["crop_mode"] == "squash" and resize == height
    if height != width or not (squash or config["crop_mode"] == "center"):
        raise ConfigurationError(
            f"the preprocessing of {name} is not supported; choose another model"
        )
    return Preprocessing(
        profile=Profile() if squash else Profile("resize_crop", resize, height),
        input_size=height,
        interpolation=config["interpolation"],
        mean=config["mean"],
        std=config["std"],
    )


def _class_names(settings: Settings, default: Sequence[str]) -> Sequence[str]:
    if settings.labels is None:
        return default
    labels = read_labels(settings.labels)
    if len(labels) != len(default):
        count = f"{len(labels)} classes, but {settings.model} has {len(default)}"
        raise ConfigurationError(f"{settings.labels} names {count}")
    return labels


def _fill(network: nn.Module, weights: Path, name: str) -> None:
    """Load a safetensors file strictly; float16 becomes the network's float32."""
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"{weights} does not fit {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if not line.startswith("Error(s) in loading")
    ]
    return (lines[0] if lines else type(error).__name__)[:200]


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, ["bundled", *timm.list_models()], n=3)
    return (
        (f"; did you mean {', '.join(close)}?")
        if close
        else "; choose bundled or the name of a timm ViT"
    )


def _create(name: str, options: dict[str, Any], any_shape: dict[str, bool]) -> nn.Module:
    """Build a timm model, with the options for any shape where it knows them; convolutions need
    none.
    """
    try:
        network: nn.Module = timm.create_model(name, **options, **any_shape)
    except TypeError:
        if not any_shape:
            raise
        network = timm.create_model(name, **options)
    return network


def _any_shape(profile: Profile | None) -> dict[str, bool]:
    """Return the timm options that let a ViT take images which are not square."""
    wanted = profile is not None and profile.kind == "shortest_edge"
    return {"dynamic_img_size": True, "dynamic_img_pad": True} if wanted else {}


def _patch_embedding(network: nn.Module) -> tuple[NDArray[np.float32] | None, bytes]:
    """Return weight (D, 3, P, P) and the bytes of the bias (D,), zeros where there is none, as
    little-endian float32.

    Models without a patch embedding have no weight.
    """
    projection = getattr(getattr(network, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d):
        return None, b""
    weight = projection.weight.detach().float().cpu().numpy().astype("<f4")
    if projection.bias is None:
        return weight, np.zeros(len(weight), "<f4").tobytes()
    return weight, projection.bias.detach().float().cpu().numpy().astype("<f4").tobytes()


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("no CUDA device here; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
