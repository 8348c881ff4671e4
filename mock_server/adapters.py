"""EXPRES adapters: checked, kept by tenant, and run on the one frozen model, those of many tenants
in one batch.

An adapter is a safetensors file, specified in ``tests/contract/adapters/README.md``. It holds
learned tokens that travel through the model behind an image's own, and residuals that are added to
their rows inside each block (Das et al., CVPR 2023, arXiv 2303.15591). Rows do not mix over the
batch, so an answer does not depend on its company.
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

SCHEMA = 1
MOST_PROMPTS = 128
MOST_CLASSES = 10_000
LONGEST_NAME = 256
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
PARTS = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2", "mlp": "mlp"}
"""Residual site → the part of a block whose output it is added to; the sites of ``QKV`` share one
part.
"""
QKV, QKV_PART = ("q", "k", "v"), "attn.qkv"
PROTOTYPES = "prototypes.weight"


@dataclass(frozen=True, eq=False)
class Adapter:
    """One tenant's EXPRES.

    Attributes:
        name: Of the tenant's choice.
        sha256: Of the file.
        classes: C names.
        prompts: (m, D) float32.
        residuals: Part of a block → (depth, m, D) float32, (depth, m, 3 D) of ``attn.qkv``.
        weight: (D, C) float32. bias: (C,) float32.
        prototypes: How much the cosines of patches and class prototypes count; None classifies
            whole images.
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
        """Whether it answers masks."""
        return self.prototypes is not None

    @property
    def count(self) -> int:
        """Number of prompts, m."""
        return len(self.prompts)

    @property
    def size(self) -> int:
        """Bytes of its numbers and names."""
        own = [self.prompts, self.weight, self.bias, *self.residuals.values()]
        own += [] if self.prototypes is None else [self.prototypes]
        return sum(tensor.nbytes for tensor in own) + sum(
            len(label.encode()) for label in self.classes
        )

    def answer(self, patches: Tensor, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Read (N, D) patch tokens and (m, D) output tokens: (C,) log-probabilities, or a mask of
        the image's size.
        """
        if self.prototypes is None:  # a linear map on the mean of the output tokens
            return (outputs.mean(dim=0) @ self.weight + self.bias).log_softmax(dim=-1)
        return self._mask(patches, outputs, self.prototypes, size)

    def _mask(
        self, patches: Tensor, outputs: Tensor, prototypes: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """(N, D) patch tokens and (m, D) output tokens → (H, W) uint8, the class of each pixel.

        A patch's score of a class is linear in it, plus ``prototypes`` times its cosine with the
        mean of the class's m / C output tokens; scores are enlarged bilinearly. Scores that are not
        finite make a mask that is refused.
        """
        means = outputs.unflatten(0, (len(self.classes), -1)).mean(dim=1)
        cosines = F.normalize(patches, dim=-1) @ F.normalize(means, dim=-1).T
        scores = patches @ self.weight + self.bias + prototypes * cosines
        grid = scores.T.unflatten(1, (round(math.sqrt(len(scores) * size[0] / size[1])), -1))
        best = F.interpolate(grid[None], size=size, mode="bilinear", align_corners=False)[0].argmax(
            dim=0
        )
        return best.to(torch.uint8) if scores.isfinite().all() else torch.full(size, math.nan)


class Host(Protocol):
    """What adapters need to know of a hosted model; see `model.ServedModel`."""

    @property
    def network(self) -> nn.Module:
        """The model."""
        ...

    @property
    def preprocessing(self) -> Preprocessing:
        """Its own."""
        ...

    @property
    def features_sha256(self) -> str:
        """Of its weights; see `features_sha256`."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        ...


def read(data: bytes, name: str, model: Host) -> Adapter:
    """Check a file and put its numbers where the model is.

    Args:
        data: The file.
        name: What to call it.
        model: What it must have been made for.

    Raises:
        RequestError: ``invalid_request``; the message says what is wrong with the file.
    """
    width, depth = _measure(model.network)
    card, tensors = _card(data), _tensors(data)
    classes = _classes(card, model.features_sha256)
    _check_preprocessing(card["backbone"], model.preprocessing)
    _check_shapes(tensors, width, depth, len(classes))
    if PROTOTYPES in tensors and (len(classes) > 255 or len(tensors["prompts"]) % len(classes)):
        raise _refused("one for masks must have at most 255 classes, and as many prompts for each")
    own = {key: tensor.to(model.device) for key, tensor in tensors.items()}
    return Adapter(
        name,
        hashlib.sha256(data).hexdigest(),
        classes,
        own["prompts"],
        _residuals(own),
        own["mapping.weight"],
        own["mapping.bias"],
        own.get(PROTOTYPES),
    )


def features_sha256(network: nn.Module) -> str:
    """SHA-256 of all weights but the head's, by name in order: each name, and its numbers as
    little-endian float32.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if not name.startswith("head."):
            digest.update(
                name.encode() + tensor.detach().float().cpu().numpy().astype("<f4").tobytes()
            )
    return digest.hexdigest()


@torch.inference_mode()
def run(network: Any, x: Tensor, adapters: Sequence[Adapter]) -> list[NDArray[Any]]:
    """Answer B images, each by its own adapter, in one pass.

    Adapters of fewer prompts than the batch's most are filled up with rows that nobody attends to.

    Args:
        network: The model.
        x: (B, 3, H, W) float32, normalised space.
        adapters: B of them.

    Returns:
        For each (C,) float32 log-probabilities, or an (H, W) uint8 mask.
    """
    size: tuple[int, int] = x.shape[-2], x.shape[-1]
    own = network.norm_pre(network.patch_drop(network._pos_embed(network.patch_embed(x))))
    most = max(adapter.count for adapter in adapters)
    z = torch.cat([own, _filled([adapter.prompts for adapter in adapters], most)], dim=1)
    mask = _mask(adapters, own.shape[1], most, x.device)
    with _added(network, adapters, most):
        for block in network.blocks:
            z = block(z) if mask is None else block(z, attn_mask=mask)
    patches, outputs = network.fc_norm(network.norm(z)).tensor_split([own.shape[1]], dim=1)
    patches = patches[:, network.num_prefix_tokens :]
    answers = [
        a.answer(p, o[: a.count], size) for a, p, o in zip(adapters, patches, outputs, strict=True)
    ]
    return [answer.cpu().numpy() for answer in answers]


class Store:
    """The adapters of all tenants; each sees its own alone.

    Nothing is shared between tenants, neither names nor room: what one has cannot be told from
    another's answers.

    Args:
        most: Adapters that a tenant may have.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: dict[str, dict[str, Adapter]] = {}

    def of(self, tenant: str) -> dict[str, Adapter]:
        """Return a tenant's adapters by name."""
        return dict(self._kept.get(tenant, {}))

    def get(self, tenant: str, reference: str) -> Adapter:
        """Return one by its name, or by ``NAME@SHA256``, which is that very file.

        Raises:
            RequestError: ``not_found``, whether or not another tenant has one of this name.
        """
        name, _, sha256 = reference.partition("@")
        found = self._kept.get(tenant, {}).get(name)
        if found is None or sha256 not in ("", found.sha256):
            raise _unknown()
        return found

    def require_room(self, tenant: str, name: str) -> None:
        """Refuse another adapter where the tenant has as many as are allowed.

        Raises:
            RequestError: ``invalid_request``.
        """
        own = self._kept.get(tenant, {})
        if name not in own and len(own) >= self._most:
            raise RequestError(
                "invalid_request",
                f"you have {self._most} adapters, and may have no more; DELETE one",
            )

    def put(self, tenant: str, adapter: Adapter) -> bool:
        """Keep one; return whether there was none of this name before.

        Raises:
            RequestError: ``invalid_request`` if the tenant has as many as are allowed.
        """
        self.require_room(tenant, adapter.name)
        own = self._kept.setdefault(tenant, {})
        new = adapter.name not in own
        own[adapter.name] = adapter
        return new

    def delete(self, tenant: str, name: str) -> None:
        """Forget one; images that are on their way are still answered.

        Raises:
            RequestError: ``not_found``.
        """
        if self._kept.get(tenant, {}).pop(name, None) is None:
            raise _unknown()


def _unknown() -> RequestError:
    return RequestError("not_found", "you have no such adapter; PUT it to /v1/adapters/NAME")


def _refused(reason: str) -> RequestError:
    return RequestError("invalid_request", f"the adapter cannot be used: {reason}")


def _measure(network: Any) -> tuple[int, int]:
    """Return D and the depth of a model that runs as ``run`` runs it, with all parts that residuals
    are added to.
    """
    parts = (*PARTS.values(), QKV_PART)
    if type(network) is not VisionTransformer:
        raise _refused("the model of this server is no plain ViT")
    if not all(
        {path for path, _ in block.named_modules()} >= set(parts) for block in network.blocks
    ):
        raise _refused("the blocks of this server's model have other parts than a plain ViT's")
    return network.embed_dim, len(network.blocks)


def _card(data: bytes) -> Mapping[str, Any]:
    """Return the JSON card in the file's header."""
    try:
        length = int.from_bytes(data[:8], "little")
        card = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pgn_client"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _refused(
            "it is no safetensors file with a card; send one that pgn train --method expres wrote"
        ) from None
    if not isinstance(card, dict) or card.get("method") != "expres":
        raise _refused("its card is not one of method expres")
    if card.get("schema") != SCHEMA:
        raise _refused(f"its schema is another than {SCHEMA}")
    return card


def _tensors(data: bytes) -> dict[str, Tensor]:
    """Return the numbers, all finite float32."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError):
        raise _refused("its tensors cannot be read; it may be cut short") from None
    for tensor in tensors.values():
        if tensor.dtype != torch.float32:
            raise _refused("a tensor is not float32")
        if not tensor.isfinite().all():
            raise _refused("a tensor holds a number that is not finite")
    return tensors


def _classes(card: Mapping[str, Any], wanted: str) -> tuple[str, ...]:
    """Return the classes of an adapter that was made for the model."""
    backbone, classes = card.get("backbone"), card.get("classes")
    classes = classes if isinstance(classes, list) else []
    if not isinstance(backbone, dict) or backbone.get("features_sha256") != wanted:
        raise _refused(
            "it was trained on another backbone (features_sha256); train it with the hosted one"
        )
    if not all(isinstance(label, str) and _is_name(label) for label in classes):
        raise _refused(f"a class must be text of 1 to {LONGEST_NAME} characters")
    if not 2 <= len(classes) <= MOST_CLASSES or len(set(classes)) < len(classes):
        raise _refused(f"its classes must be 2 to {MOST_CLASSES} different names")
    return tuple(classes)


def _is_name(label: str) -> bool:
    """Whether it can be answered: JSON may spell half of a pair of surrogates, which no UTF-8
    has.
    """
    return 1 <= len(label) <= LONGEST_NAME and label.encode("utf-8", "ignore").decode() == label


def _check_preprocessing(backbone: Mapping[str, Any], model: Preprocessing) -> None:
    """Refuse an adapter that was trained on other numbers than the model is given, as far as its
    card says.
    """
    for key, own in (
        ("input_size", model.input_size),
        ("mean", list(model.mean)),
        ("std", list(model.std)),
    ):
        told = backbone.get(key, own)
        if told != own:
            raise _refused(f"it was trained with another {key} than the hosted model has")


def _check_shapes(tensors: Mapping[str, Tensor], width: int, depth: int, classes: int) -> None:
    """Refuse missing, unknown and misshapen tensors."""
    count = len(tensors["prompts"]) if "prompts" in tensors and tensors["prompts"].dim() == 2 else 0
    if not 1 <= count <= MOST_PROMPTS:
        raise _refused(f"prompts must be (m, {width}), m from 1 to {MOST_PROMPTS}")
    some: dict[str, tuple[int, ...]] = {
        f"residuals.{site}": (depth, count, width) for site in (*PARTS, *QKV)
    }
    some[PROTOTYPES] = (1,)
    wanted: dict[str, tuple[int, ...]] = {"prompts": (count, width)}
    wanted |= {"mapping.weight": (width, classes), "mapping.bias": (classes,)}
    if not wanted.keys() <= tensors.keys() <= (wanted | some).keys():
        raise _refused(
            f"it must have {', '.join(wanted)} and some of {', '.join(some)}, and nothing else"
        )
    for key, tensor in tensors.items():
        if tuple(tensor.shape) != (wanted | some)[key]:
            raise _refused(f"{key} must have the shape {(wanted | some)[key]}")


def _residuals(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather the residuals by part of a block; those of q, k and v lie side by side."""
    given = {
        key.removeprefix("residuals."): tensor
        for key, tensor in tensors.items()
        if key.startswith("residuals.")
    }
    found = {path: given[site] for site, path in PARTS.items() if site in given}
    beside = [given[site] for site in QKV if site in given]
    if beside:
        found[QKV_PART] = torch.cat(
            [given.get(site, torch.zeros_like(beside[0])) for site in QKV], dim=-1
        )
    return found


def _filled(rows: Sequence[Tensor], most: int) -> Tensor:
    """Stack (m, W) tensors of different m to (B, most, W)."""
    return torch.stack(
        [one if len(one) == most else F.pad(one, (0, 0, 0, most - len(one))) for one in rows]
    )


def _mask(
    adapters: Sequence[Adapter], before: int, most: int, device: torch.device
) -> Tensor | None:
    """Return (B, 1, 1, T), what is added to attention scores so that nobody reads the rows that
    only fill up.
    """
    if all(adapter.count == most for adapter in adapters):
        return None
    mask = torch.zeros(len(adapters), 1, 1, before + most, device=device)
    for row, adapter in zip(mask, adapters, strict=True):
        row[..., before + adapter.count :] = -math.inf
    return mask


@contextlib.contextmanager
def _added(network: Any, adapters: Sequence[Adapter], most: int) -> Iterator[None]:
    """Add each row's residuals for the time of one pass; the model's own code runs."""
    with contextlib.ExitStack() as hooks:
        for path in {path for adapter in adapters for path in adapter.residuals}:
            for number, block in enumerate(network.blocks):
                rows = _filled([_residual(adapter, path, number) for adapter in adapters], most)
                hooks.callback(
                    block.get_submodule(path).register_forward_hook(_adding(rows)).remove
                )
        yield


def _residual(adapter: Adapter, path: str, block: int) -> Tensor:
    """(m, W); zeros where the adapter adds nothing to this part."""
    if path in adapter.residuals:
        return adapter.residuals[path][block]
    return torch.zeros_like(adapter.prompts).repeat(1, 3 if path == QKV_PART else 1)


def _adding(rows: Tensor) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """Return a hook that adds (B, m, W) to the last rows, which are the prompts'."""

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        output[:, -rows.shape[1] :] += rows
        return output

    return hook
