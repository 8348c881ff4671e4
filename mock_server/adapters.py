"""EXPRES adapters of many tenants: checking, storing, and running them on one frozen model.

An adapter is a safetensors file, specified in ``tests/contract/adapters/README.md``. It holds
learned tokens that pass through the model behind the image's own tokens, and residuals that are
added to the rows of the learned tokens inside each block (Das et al., CVPR 2023, arXiv 2303.15591).

One batch may hold images for the adapters of several tenants. The images of a batch do not
interact, so no output depends on the other images.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from timm.models import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from mock_server.errors import RequestError
from mock_server.preprocess import Preprocessing

# The contract in ``tests/contract/adapters/README.md`` sets the schema, the pattern and the limits.
SCHEMA = 1
MOST_PROMPTS = 128
"""Most prompt tokens: a batch pads all images to the largest adapter, so it slows all tenants."""
MOST_CLASSES = 10_000
LONGEST_NAME = 256
"""Longest class name in characters."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Pattern of an adapter's name."""
PARTS = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2", "mlp": "mlp"}
"""Residual site → submodule of a block whose output gets the residual. The sites ``QKV`` share one
submodule, ``QKV_PART``.
"""
QKV = ("q", "k", "v")
QKV_PART = "attn.qkv"
PROTOTYPES = "prototypes.weight"


# eq=False, because `==` between tensors compares their elements and returns no single bool.
@dataclass(frozen=True, eq=False)
class Adapter:
    """One tenant's EXPRES adapter.

    Attributes:
        name: Name that the tenant chose.
        sha256: SHA-256 of the file.
        classes: Class names, C of them.
        prompts: Learned tokens, (m, D) float32.
        residuals: Submodule of a block → its residuals, (depth, m, D) float32, or (depth, m, 3 D)
            for ``attn.qkv``.
        weight: Weight of the linear head, (D, C) float32.
        bias: Bias of the linear head, (C,) float32.
        prototypes: Weight of the cosine between patch and class prototype in a mask's scores, (1,)
            float32; None if the adapter classifies whole images.
    """

    name: str
    sha256: str
    classes: tuple[str, ...]
    prompts: Tensor
    residuals: Mapping[str, Tensor]
    weight: Tensor
    bias: Tensor
    prototypes: Tensor | None = None

    @property
    def segments(self) -> bool:
        """Whether the adapter returns masks."""
        return self.prototypes is not None

    @property
    def count(self) -> int:
        """Number of prompt tokens, m."""
        return len(self.prompts)

    @property
    def size(self) -> int:
        """Size of tensors and class names in bytes."""
        tensors = [self.prompts, self.weight, self.bias, *self.residuals.values()]
        if self.prototypes is not None:
            tensors.append(self.prototypes)
        tensor_bytes = sum(tensor.nbytes for tensor in tensors)
        name_bytes = sum(len(label.encode()) for label in self.classes)
        return tensor_bytes + name_bytes

    def answer(self, patches: Tensor, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn the model's last tokens into log-probabilities or a mask.

        Args:
            patches: Patch tokens after the final norm, (N, D).
            outputs: Output tokens, the prompts' rows after the final norm, (m, D).
            size: Height and width of the image in pixels.

        Returns:
            Log-probabilities (C,) float32, or a mask (H, W) uint8.
        """
        if self.prototypes is None:
            # The head is a linear map on the mean of the output tokens.
            return (outputs.mean(dim=0) @ self.weight + self.bias).log_softmax(dim=-1)
        return self._mask(patches, outputs, self.prototypes, size)

    def _mask(
        self, patches: Tensor, outputs: Tensor, prototypes: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return the class of each pixel, (H, W) uint8.

        The score of a class for a patch token is a linear map of the token, plus ``prototypes``
        times the cosine between the token and the mean of the class's m / C output tokens. The
        scores are enlarged bilinearly. If a score is not finite, the mask is all NaN, which the
        service rejects.
        """
        means = outputs.unflatten(0, (len(self.classes), -1)).mean(dim=1)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(means, dim=-1).T
        scores = patches @ self.weight + self.bias + prototypes * cosines
        # An exception would fail the pass, and `argmax` would turn NaN into a valid-looking class.
        if not scores.isfinite().all():
            return torch.full(size, math.nan)

        # The patches lie on a grid with the aspect ratio of the image.
        height, width = size
        rows = round(math.sqrt(len(scores) * height / width))
        grid = scores.T.unflatten(1, (rows, -1))
        enlarged = F.interpolate(grid[None], size=size, mode="bilinear", align_corners=False)[0]
        return enlarged.argmax(dim=0).to(torch.uint8)


class Host(Protocol):
    """The part of a hosted model that adapters need; see `model.ServedModel`."""

    @property
    def network(self) -> nn.Module:
        """The model's module."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """The model's own preprocessing."""
        ...

    @property
    def features_sha256(self) -> str:
        """SHA-256 of the weights outside the head; see `features_sha256`."""
        ...

    @property
    def device(self) -> torch.device:
        """Device that runs the model."""
        ...


def read(data: bytes, name: str, model: Host) -> Adapter:
    """Check an adapter file, and move its tensors to the model's device.

    Args:
        data: Bytes of the safetensors file.
        name: Name of the adapter.
        model: Hosted model that the adapter must fit.

    Raises:
        RequestError: ``invalid_request``; the message gives the reason.
    """
    width, depth = _measure(model.network)
    card = _card(data)
    tensors = _tensors(data)
    classes = _classes(card, model.features_sha256)
    _check_preprocessing(card["backbone"], model.preprocessing)
    _check_shapes(tensors, width, depth, len(classes))

    # A mask holds class indices in 8 bits, and 255 is left for unlabeled pixels. The classes share
    # the prompts evenly.
    if PROTOTYPES in tensors and (len(classes) > 255 or len(tensors["prompts"]) % len(classes)):
        raise _rejected(
            "a mask adapter must have at most 255 classes, and the same number of prompts for each "
            "class"
        )

    on_device = {key: tensor.to(model.device) for key, tensor in tensors.items()}
    return Adapter(
        name=name,
        sha256=hashlib.sha256(data).hexdigest(),
        classes=classes,
        prompts=on_device["prompts"],
        residuals=_residuals(on_device),
        weight=on_device["mapping.weight"],
        bias=on_device["mapping.bias"],
        prototypes=on_device.get(PROTOTYPES),
    )


def features_sha256(network: nn.Module) -> str:
    """Return the SHA-256 of all weights outside the head.

    The hash covers each tensor in the order of the names: its name, then its numbers as
    little-endian float32.

    Args:
        network: Model from timm; the names of its head's weights start with ``head.``.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("head."):
            numbers = tensor.detach().float().cpu().numpy().astype("<f4")
            digest.update(name.encode() + numbers.tobytes())
    return digest.hexdigest()


@torch.inference_mode()
def run(network: Any, x: Tensor, adapters: Sequence[Adapter]) -> list[NDArray[Any]]:
    """Run B images, each through its own adapter, in one forward pass.

    Adapters may have different numbers of prompts: padding rows make them equal, and no token
    attends to the padding.

    Args:
        network: Plain ViT from timm.
        x: Model input, (B, 3, H, W) float32 in the normalized space.
        adapters: Adapter of each image, B of them.

    Returns:
        For each image, log-probabilities (C,) float32 or a mask (H, W) uint8.
    """
    size: tuple[int, int] = x.shape[-2], x.shape[-1]
    # These are the steps of timm's `forward_features`, which has no place to insert the prompts.
    # Prompts have no position, so they come after the position embedding.
    tokens = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(x))))
    token_count = tokens.shape[1]
    most = max(adapter.count for adapter in adapters)

    prompts = _padded([adapter.prompts for adapter in adapters], most)
    z = torch.cat([tokens, prompts], dim=1)
    mask = _attention_mask(adapters, token_count, most, x.device)
    with _residuals_added(network, adapters, most):
        for block in network.blocks:
            z = block(z) if mask is None else block(z, attn_mask=mask)

    # Depending on the pooling, timm has the final norm in `norm` or in `fc_norm`; the other one is
    # the identity.
    patches, outputs = network.fc_norm(network.norm(z)).tensor_split([token_count], dim=1)
    # Prefix tokens are the class token and register tokens.
    patches = patches[:, network.num_prefix_tokens :]
    answers = []
    for adapter, image_patches, image_outputs in zip(adapters, patches, outputs, strict=True):
        answers.append(adapter.answer(image_patches, image_outputs[: adapter.count], size))
    return [answer.cpu().numpy() for answer in answers]


class Store:
    """The adapters of all tenants, in memory.

    Tenants share neither names nor limits: no response to one tenant reveals the adapters of
    another.

    Args:
        most: Largest number of adapters per tenant.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_tenant: dict[str, dict[str, Adapter]] = {}

    def of(self, tenant: str) -> dict[str, Adapter]:
        """Return a tenant's adapters by name."""
        # A copy, because the route that lists it runs in a thread beside uploads.
        return dict(self._by_tenant.get(tenant, {}))

    def get(self, tenant: str, reference: str) -> Adapter:
        """Return one adapter of a tenant.

        Args:
            tenant: Name of the tenant.
            reference: ``NAME``, or ``NAME@SHA256`` for exactly this file.

        Raises:
            RequestError: ``not_found``, even if another tenant has an adapter of this name.
        """
        name, _, sha256 = reference.partition("@")
        adapter = self._by_tenant.get(tenant, {}).get(name)
        if adapter is None:
            raise _unknown()
        if sha256 and sha256 != adapter.sha256:
            raise _unknown()
        return adapter

    def require_room(self, tenant: str, name: str) -> None:
        """Check that a tenant may store an adapter under this name.

        Args:
            tenant: Name of the tenant.
            name: Name of the adapter; replacing an adapter needs no room.

        Raises:
            RequestError: ``invalid_request`` if the tenant has reached the limit.
        """
        adapters = self._by_tenant.get(tenant, {})
        if name not in adapters and len(adapters) >= self._most:
            raise RequestError(
                "invalid_request",
                f"you have {self._most} adapters, the largest number allowed; DELETE one first",
            )

    def put(self, tenant: str, adapter: Adapter) -> bool:
        """Store an adapter; return whether its name is new for the tenant.

        Args:
            tenant: Name of the tenant.
            adapter: Adapter to store; it replaces one of the same name.

        Raises:
            RequestError: ``invalid_request`` if the tenant has reached the limit.
        """
        self.require_room(tenant, adapter.name)
        adapters = self._by_tenant.setdefault(tenant, {})
        new = adapter.name not in adapters
        adapters[adapter.name] = adapter
        return new

    def delete(self, tenant: str, name: str) -> None:
        """Delete an adapter; images that are already in the queue still use it.

        Args:
            tenant: Name of the tenant.
            name: Name of the adapter.

        Raises:
            RequestError: ``not_found``.
        """
        if self._by_tenant.get(tenant, {}).pop(name, None) is None:
            raise _unknown()


def _unknown() -> RequestError:
    return RequestError("not_found", "you have no such adapter; PUT it to /v1/adapters/NAME")


def _rejected(reason: str) -> RequestError:
    return RequestError("invalid_request", f"the adapter cannot be used: {reason}")


def _measure(network: Any) -> tuple[int, int]:
    """Return width D and depth of a model, after a check that `run` can run adapters on it."""
    # The exact type, because subclasses change the forward pass, whose steps `run` repeats.
    if type(network) is not VisionTransformer:
        raise _rejected("the model of this server is not a plain ViT")

    # timm builds some plain VisionTransformers from other blocks, for example parallel ones.
    required = {*PARTS.values(), QKV_PART}
    for block in network.blocks:
        paths = {path for path, _ in block.named_modules()}
        if not required <= paths:
            raise _rejected("this server's model has blocks without the parts of a plain ViT")
    return network.embed_dim, len(network.blocks)


def _card(data: bytes) -> Mapping[str, Any]:
    """Return the JSON card in the file's header."""
    # safetensors returns the metadata of a file on disk, but not of bytes. A header is its length
    # in 8 bytes, then JSON.
    try:
        length = int.from_bytes(data[:8], "little")
        card = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pgn_client"])
    except (ValueError, KeyError, TypeError, RecursionError):
        # RecursionError comes from deeply nested JSON.
        raise _rejected(
            "it is not a safetensors file with a card; send one from pgn train --method expres"
        ) from None
    if not isinstance(card, dict) or card.get("method") != "expres":
        raise _rejected("the method on its card is not expres")
    if card.get("schema") != SCHEMA:
        raise _rejected(f"the schema on its card is not {SCHEMA}")
    return card


def _tensors(data: bytes) -> dict[str, Tensor]:
    """Return the file's tensors, after a check that all are finite float32."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError):
        # A damaged header fails in safetensors. An unknown dtype or an impossible shape fails
        # later, with errors of Python and torch.
        raise _rejected("its tensors cannot be read; it may be cut short") from None
    for tensor in tensors.values():
        if tensor.dtype != torch.float32:
            raise _rejected("a tensor is not float32")
        if not tensor.isfinite().all():
            raise _rejected("a tensor holds a number that is not finite")
    return tensors


def _classes(card: Mapping[str, Any], features: str) -> tuple[str, ...]:
    """Return the card's class names.

    Args:
        card: The adapter's card.
        features: ``features_sha256`` of the hosted model, which the card must name.
    """
    backbone = card.get("backbone")
    if not isinstance(backbone, dict) or backbone.get("features_sha256") != features:
        raise _rejected(
            "it was trained on another backbone (features_sha256); train it with the hosted one"
        )

    classes = card.get("classes")
    if not isinstance(classes, list):
        # The check of the length below rejects an empty list.
        classes = []
    if not all(isinstance(label, str) and _is_class_name(label) for label in classes):
        raise _rejected(f"a class must be text of 1 to {LONGEST_NAME} characters")
    if not 2 <= len(classes) <= MOST_CLASSES or len(set(classes)) < len(classes):
        raise _rejected(f"its classes must be 2 to {MOST_CLASSES} different names")
    return tuple(classes)


def _is_class_name(label: str) -> bool:
    """Return whether a class name has a valid length and can be encoded as UTF-8."""
    # JSON can hold a lone surrogate, which UTF-8 cannot encode: no response could contain it.
    return 1 <= len(label) <= LONGEST_NAME and label.encode("utf-8", "ignore").decode() == label


def _check_preprocessing(backbone: Mapping[str, Any], model: Preprocessing) -> None:
    """Check that the card names the model's input size, mean and std, where it names them."""
    expected = {
        "input_size": model.input_size,
        "mean": list(model.mean),
        "std": list(model.std),
    }
    for key, value in expected.items():
        if backbone.get(key, value) != value:
            raise _rejected(f"it was trained with another {key} than the hosted model has")


def _check_shapes(tensors: Mapping[str, Tensor], width: int, depth: int, classes: int) -> None:
    """Check that no tensor is missing, unknown, or of the wrong shape."""
    # 0 is out of range, so missing or misshapen prompts are rejected with the same message.
    count = 0
    if "prompts" in tensors and tensors["prompts"].dim() == 2:
        count = len(tensors["prompts"])
    if not 1 <= count <= MOST_PROMPTS:
        raise _rejected(f"prompts must be (m, {width}), m from 1 to {MOST_PROMPTS}")

    required: dict[str, tuple[int, ...]] = {
        "prompts": (count, width),
        "mapping.weight": (width, classes),
        "mapping.bias": (classes,),
    }
    optional: dict[str, tuple[int, ...]] = {
        f"residuals.{site}": (depth, count, width) for site in (*PARTS, *QKV)
    }
    optional[PROTOTYPES] = (1,)
    shapes = required | optional

    if not required.keys() <= tensors.keys() <= shapes.keys():
        raise _rejected(
            f"it must have {', '.join(required)} and some of {', '.join(optional)}, and nothing "
            "else"
        )
    for key, tensor in tensors.items():
        if tuple(tensor.shape) != shapes[key]:
            raise _rejected(f"{key} must have the shape {shapes[key]}")


def _residuals(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Collect the residuals by submodule; those of q, k and v are concatenated for ``attn.qkv``."""
    by_site = {
        key.removeprefix("residuals."): tensor
        for key, tensor in tensors.items()
        if key.startswith("residuals.")
    }
    residuals = {path: by_site[site] for site, path in PARTS.items() if site in by_site}

    qkv = [by_site[site] for site in QKV if site in by_site]
    if qkv:
        zeros = torch.zeros_like(qkv[0])
        residuals[QKV_PART] = torch.cat([by_site.get(site, zeros) for site in QKV], dim=-1)
    return residuals


def _padded(rows: Sequence[Tensor], most: int) -> Tensor:
    """Stack B tensors (m, W) of different m to (B, most, W), padded with zeros."""
    # `F.pad` takes the last dimension first: none of W, and the missing rows behind m.
    return torch.stack([F.pad(one, (0, 0, 0, most - len(one))) for one in rows])


def _attention_mask(
    adapters: Sequence[Adapter], token_count: int, most: int, device: torch.device
) -> Tensor | None:
    """Return the attention bias (B, 1, 1, T) that hides padding rows; None if there are none."""
    # Without a mask, torch can choose attention kernels that accept none.
    if all(adapter.count == most for adapter in adapters):
        return None
    mask = torch.zeros(len(adapters), 1, 1, token_count + most, device=device)
    for row, adapter in zip(mask, adapters, strict=True):
        row[..., token_count + adapter.count :] = -math.inf
    return mask


@contextlib.contextmanager
def _residuals_added(network: Any, adapters: Sequence[Adapter], most: int) -> Iterator[None]:
    """Add each image's residuals during one forward pass of the unchanged model.

    Args:
        network: Plain ViT from timm.
        adapters: Adapter of each image, B of them.
        most: Number of prompt rows in the batch.
    """
    paths: set[str] = set()
    for adapter in adapters:
        paths.update(adapter.residuals)

    with contextlib.ExitStack() as hooks:
        for path in paths:
            for index, block in enumerate(network.blocks):
                residuals = [_residual(adapter, path, index) for adapter in adapters]
                hook = _adding_hook(_padded(residuals, most))
                handle = block.get_submodule(path).register_forward_hook(hook)
                hooks.callback(handle.remove)
        yield


def _residual(adapter: Adapter, path: str, block: int) -> Tensor:
    """Return the residual (m, W) for one submodule; zeros if the adapter has none for it."""
    if path in adapter.residuals:
        return adapter.residuals[path][block]
    return torch.zeros_like(adapter.prompts).repeat(1, 3 if path == QKV_PART else 1)


def _adding_hook(rows: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a forward hook that adds (B, m, W) to the last rows of the output, the prompts."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        # In place saves a copy, and is safe because a plain ViT's submodules return new tensors.
        output[:, -rows.shape[1] :] += rows
        return output

    return hook
