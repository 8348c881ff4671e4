"""The hosted model: building, loading and running a frozen vision model."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
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
    """One image, and the output requested for it.

    Attributes:
        pixels: Model input, (3, H, W) float32 in the normalized space.
        want: Requested output: ``logits`` (S,); ``embedding`` (D,), the pooled features before the
            head; or ``tokens``, the features before the pooling, (N, D) for a ViT.
        adapter: Adapter of a tenant, which returns (C,) log-probabilities or a mask in place of
            ``want``; None runs the model itself.
    """

    pixels: NDArray[np.float32]
    want: Want = "logits"
    adapter: Adapter | None = None


@dataclass(frozen=True)
class ServedModel:
    """A frozen classifier, with the facts that the server publishes about it.

    Attributes:
        name: Public name of the model.
        network: Module in evaluation mode: (B, 3, H, W) float32 in the normalized space → (B, S)
            logits.
        classes: Class names, S different strings.
        preprocessing: The model's own preprocessing.
        patch_size: Side of a patch in pixels; None if the model has no patch embedding.
        weights_sha256: SHA-256 of the weights file; if `host` got no file's hash, SHA-256 of the
            weights in a new serialization.
        patch_embedding_sha256: SHA-256 of the patch embedding's weight (D, 3, P, P) and then its
            bias (D,), as little-endian float32; None if the model has no patch embedding.
        device: Device that runs the network.
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
        """Length of an embedding, D."""
        network: Any = self.network
        # Some heads, for example MobileNetV3's, widen the features before the classifier.
        return int(getattr(network, "head_hidden_size", None) or network.num_features)

    @cached_property
    def features_sha256(self) -> str:
        """SHA-256 of all weights outside the head; see `adapters.features_sha256`."""
        return adapters.features_sha256(self.network)

    @torch.inference_mode()
    def run(self, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
        """Return the requested output of each image, in order.

        Images of equal shape share one forward pass, whichever outputs they request. Images for
        adapters share a separate pass, whichever tenants the adapters belong to.

        Args:
            asked: Images with their requested outputs.
        """
        outputs: dict[int, NDArray[np.float32]] = {}
        # Sorted, because the order of a set may differ between runs.
        for key in sorted({_pass_key(one) for one in asked}):
            members = [i for i, one in enumerate(asked) if _pass_key(one) == key]
            x = torch.from_numpy(np.stack([asked[i].pixels for i in members])).to(self.device)
            member_outputs = self._run_pass(x, [asked[i] for i in members])
            outputs.update(zip(members, member_outputs, strict=True))
        return [outputs[i] for i in range(len(asked))]

    def _run_pass(self, x: torch.Tensor, asked: Sequence[Asked]) -> list[NDArray[np.float32]]:
        row_adapters = [one.adapter for one in asked if one.adapter is not None]
        if row_adapters:
            return adapters.run(self.network, x, row_adapters)

        outputs = self._outputs(x, {one.want for one in asked})
        return [outputs[one.want][row] for row, one in enumerate(asked)]

    def _outputs(self, x: torch.Tensor, wants: set[Want]) -> dict[Want, NDArray[np.float32]]:
        network: Any = self.network
        # Only the other outputs need timm's methods; logits need no more than a call of the module.
        if wants == {"logits"}:
            return {"logits": _array(network(x))}

        features = network.forward_features(x)
        outputs: dict[Want, NDArray[np.float32]] = {}
        if "tokens" in wants:
            outputs["tokens"] = _array(features)
        if "embedding" in wants:
            outputs["embedding"] = _array(network.forward_head(features, pre_logits=True))
        if "logits" in wants:
            outputs["logits"] = _array(network.forward_head(features))
        return outputs


def _pass_key(one: Asked) -> tuple[bool, tuple[int, ...]]:
    """Return a key that is equal for all images of one forward pass."""
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
    """Freeze ``network``, and collect the facts that the server publishes about it.

    Args:
        network: Model from timm; a ViT has its patch embedding at ``network.patch_embed.proj``.
        name: Public name of the model.
        classes: Class names in the model's order, S of them, or none if the model has no head.
            Duplicates get a suffix; see `distinct`.
        preprocessing: The model's own preprocessing.
        weights_sha256: SHA-256 of the weights file. None hashes a new safetensors serialization of
            the weights: this hash identifies the model, but may differ from the hash of a
            downloaded file.
        device: Device for the model: ``auto``, ``cpu`` or ``cuda``.
        needs_head: Whether the model must have a classification head; embeddings need none.

    Raises:
        ConfigurationError: The required classification head is missing, or the device does not
            exist.
    """
    # In timm, 0 classes means no head; modules from elsewhere may not have the attribute.
    if needs_head and getattr(network, "num_classes", None) == 0:
        raise ConfigurationError(
            f"{name} has no classification head; choose a model that was trained to classify, or "
            "serve its features with --output embedding"
        )

    weight, bias = _patch_embedding(network)
    patch_size = None
    patch_embedding_sha256 = None
    if weight is not None:
        patch_size = weight.shape[-1]
        patch_embedding_sha256 = hashlib.sha256(weight.tobytes() + bias).hexdigest()

    if not weights_sha256:
        serialized = safetensors.torch.save(network.state_dict())
        weights_sha256 = hashlib.sha256(serialized).hexdigest()

    torch_device = _device(device)
    return ServedModel(
        name=name,
        network=network.to(torch_device).eval().requires_grad_(False),
        classes=distinct(classes),
        preprocessing=preprocessing,
        patch_size=patch_size,
        weights_sha256=weights_sha256,
        patch_embedding_sha256=patch_embedding_sha256,
        device=torch_device,
    )


def load(settings: Settings) -> ServedModel:
    """Build the model that ``settings`` describe.

    Args:
        settings: The server's options.

    Raises:
        ConfigurationError: The model is unknown, the weights or labels do not fit it, a file is
            missing, or the device does not exist.
    """
    if settings.model == "bundled":
        return _load_bundled(settings)
    return _load_timm(settings)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Make names unique: the second ``crane`` becomes ``crane (2)``, the third ``crane (3)``.

    The first occurrence of a name stays unchanged. A suffix that would make a name of the list is
    skipped.

    Args:
        names: Names, with or without duplicates.
    """
    taken = set(names)
    last_number: dict[str, int] = {}
    result = []
    for name in names:
        if name not in last_number:
            last_number[name] = 1
            result.append(name)
            continue

        unique = name
        while unique in taken:
            last_number[name] += 1
            unique = f"{name} ({last_number[name]})"
        taken.add(unique)
        result.append(unique)
    return tuple(result)


def read_labels(path: Path) -> list[str]:
    """Read class names from a JSON list of strings, or of objects with a ``name``.

    Args:
        path: JSON file.

    Raises:
        ConfigurationError: The file has other contents.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
        names = [entry["name"] if isinstance(entry, dict) else entry for entry in entries]
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
    _load_weights(network, weights, "bundled")

    preprocessing = Preprocessing(
        profile=Profile(),
        input_size=card["architecture"]["img_size"],
        interpolation="bicubic",  # As in `benchmarks/pretrain_backbone.py`, which trained it.
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
    name = settings.model
    weights = settings.weights
    # The part behind the dot names pretrained weights, not an architecture.
    if not timm.is_model(name.partition(".")[0]):
        raise ConfigurationError(f"unknown model {name!r}{_suggestion(name)}")

    options: dict[str, Any] = {"pretrained": weights is None}
    # The labels set the size of the head only if a weights file fills it. With pretrained weights
    # timm would silently replace a head of another size by a random one.
    if settings.labels and weights:
        options["num_classes"] = len(read_labels(settings.labels))

    try:
        network: Any = _create(name, options, _any_shape(settings.profile))
    except Exception as error:
        # A download can fail with exceptions of many types, from the hub, the proxy or timm.
        raise ConfigurationError(
            f"cannot build {name}: {_first_line(error)}; --weights FILE needs no network"
        ) from error
    if weights is not None:
        _load_weights(network, weights, name)

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
    """Translate the model's ``pretrained_cfg`` into a `Preprocessing`."""
    config = resolve_data_config(model=network)
    _, height, width = config["input_size"]
    # timm computes the size before the crop with the same formula.
    resize = math.floor(height / config["crop_pct"])
    # timm's squash with a crop_pct below 1 also crops, which no profile does.
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
        raise ConfigurationError(
            f"{settings.labels} names {len(labels)} classes, but {settings.model} has "
            f"{len(default)}"
        )
    return labels


def _load_weights(network: nn.Module, weights: Path, name: str) -> None:
    """Load a safetensors file strictly; float16 weights are converted to float32."""
    try:
        network.load_state_dict(safetensors.torch.load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ConfigurationError(f"{weights} does not fit {name}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    """Return the first informative line of an exception's text, at most 200 characters."""
    # torch starts its text with the line "Error(s) in loading state_dict", which names no cause.
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if not line.startswith("Error(s) in loading")
    ]
    return (lines[0] if lines else type(error).__name__)[:200]


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, ["bundled", *timm.list_models()], n=3)
    if close:
        return f"; did you mean {', '.join(close)}?"
    return "; choose bundled or the name of a timm ViT"


def _create(name: str, options: dict[str, Any], any_shape: dict[str, bool]) -> nn.Module:
    """Build a timm model, with the options ``any_shape`` if the model accepts them."""
    # Convolutional networks reject these options: they take images of any shape without them.
    try:
        network: nn.Module = timm.create_model(name, **options, **any_shape)
    except TypeError:
        if not any_shape:
            raise
        network = timm.create_model(name, **options)
    return network


def _any_shape(profile: Profile | None) -> dict[str, bool]:
    """Return the timm options with which a ViT accepts images that are not square."""
    if profile is None or profile.kind != "shortest_edge":
        return {}
    # With the padding, the longer edge need not be a multiple of the patch size.
    return {"dynamic_img_size": True, "dynamic_img_pad": True}


def _patch_embedding(network: nn.Module) -> tuple[NDArray[np.float32] | None, bytes]:
    """Return the patch embedding's weight (D, 3, P, P) and the bytes of its bias (D,).

    Both are little-endian float32. A missing bias counts as zeros. The weight is None for a model
    without a patch embedding.
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
        raise ConfigurationError("no CUDA device found; use --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
