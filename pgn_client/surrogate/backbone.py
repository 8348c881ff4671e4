"""The frozen local classifier that training back-propagates through.

It is a copy of the hosted model, or a stand-in for it. In a plain ViT the patch tokens can be
replaced one by one, so training mixes prompts in the embedding space instead of rendering images
(see ``inversion``). Models with other stems (convolutional, overlapping, Swin, ConvNeXt) are
trained through rendered images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from pgn_client.errors import CheckpointError, ConfigurationError, PGNError, printable, reading
from pgn_client.imaging.opening import read_regular
from pgn_client.surrogate.patch_embedding import PatchEmbedding, _triple, normalised
from pgn_client.types import ServerProfile

CELL = 16
"""Preferred side of a canvas cell, in pixels, for a model without plain patches: the patch side of
the usual ViTs, so that layouts have their usual number of cells.
"""


class Backbone:
    """A frozen timm classifier.

    Args:
        model: Any timm model with a classification head, (B, 3, H, W) → (B, S).
        name: Name of the model on checkpoint cards.
        mean: Mean per channel of its normalized space, for pixels in [0, 1].
        std: Standard deviation per channel of its normalized space, for pixels in [0, 1].
        labels: Names of its S classes; ``None`` names them ``class_0``, ``class_1``, … like the
            mock server.
        profile: Geometry of the model's own preprocessing.
        input_size: H = W, in pixels; required for all models but plain ViTs.
        interpolation: Interpolation of the model's own preprocessing: ``bicubic``, ``bilinear``, …

    Attributes:
        plain: Whether the model is a ViT whose patch embedding is one affine map per patch, so that
            tokens can replace pixels. ``embedding``, ``positions`` and tokens need this.
        weights_sha256: SHA-256 over all weights at the time when this object was made.

    Raises:
        ConfigurationError: The model has no classification head, the number of labels differs from
            its number of classes, or ``input_size`` is missing.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        mean: Sequence[float],
        std: Sequence[float],
        labels: Sequence[str] | None = None,
        profile: ServerProfile | None = None,
        input_size: int | None = None,
        interpolation: str = "bicubic",
    ) -> None:
        self.plain = is_plain(model)
        self.model = cast(Any, model.eval().requires_grad_(False))
        self.name = name
        self.mean = _triple(mean)
        self.std = _triple(std)

        # A timm model without a head has 0 classes, and a single class has nothing to map.
        classes = int(getattr(model, "num_classes", 0))
        if classes < 2:
            raise ConfigurationError(
                f"backbone {name}: got no classification head, expected one; choose a classifier, "
                "or, to import a published checkpoint, give the endpoint's --labels"
            )
        self.labels = unique_labels(labels or [f"class_{i}" for i in range(classes)])
        if len(self.labels) != classes:
            raise ConfigurationError(
                f"labels: got {len(self.labels)}, expected {classes} (the classes of {name})"
            )

        self.profile = profile or ServerProfile("direct")
        self.interpolation = interpolation
        size = int(self.model.patch_embed.img_size[0]) if self.plain else input_size
        if size is None:
            raise ConfigurationError(
                f"backbone {name}: got no input size, expected one for {type(model).__name__}"
            )
        self.input_size = size
        """Side of the model's square input, H = W, in pixels."""

        self._embedding: PatchEmbedding | None = None
        self.weights_sha256 = self._digest()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def patch_size(self) -> int:
        """P, side of a canvas cell, in pixels: the model's patch side if it is plain, else the
        divisor of the input size that is nearest to ``CELL``.
        """
        if self.plain:
            return int(self.model.patch_embed.patch_size[0])

        divisors = (side for side in range(1, self.input_size + 1) if self.input_size % side == 0)
        return min(divisors, key=lambda side: abs(side - CELL))

    @property
    def width(self) -> int:
        """D, the number of features that the model pools for an image."""
        # Some heads, such as MobileNet's, widen the pooled features before they classify.
        return int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    @property
    def embedding(self) -> PatchEmbedding:
        """The patch embedding, which shares the model's weights.

        The same object is returned until :meth:`to` moves the weights.

        Raises:
            ConfigurationError: The model is not a plain ViT.
        """
        if not self.plain:
            raise ConfigurationError(
                f"backbone {self.name}: got {type(self.model).__name__}, expected a plain timm "
                "VisionTransformer (its patch embedding is one convolution with kernel = stride, "
                "and no norm), because prompt tokens replace patch tokens here; use a library of "
                "pixels, or choose a vit_* or deit_* model"
            )

        proj = self.model.patch_embed.proj
        # A copy of this object, as in fine-tuning, has other weights but the same stored embedding.
        if self._embedding is None or self._embedding.weight is not proj.weight:
            bias = proj.bias
            if bias is None:
                bias = torch.zeros(proj.out_channels, device=self.device)
            self._embedding = PatchEmbedding(proj.weight, bias, self.mean, self.std)
        return self._embedding

    @property
    def silent(self) -> bool:
        """Whether the classification head is the all-zeros placeholder that `load` adds; its scores
        then mean nothing.
        """
        return not any(bool(p.any()) for p in self.model.get_classifier().parameters())

    @property
    def depth(self) -> int:
        """Number of transformer blocks of a plain ViT; 0 for other models."""
        return len(self.model.blocks) if self.plain else 0

    @property
    def positions(self) -> Tensor:
        """Position embedding that the model adds to its N patch tokens, (N, D), row-major."""
        # The model adds positions to zeros, since timm stores them in more than one form.
        cells = (self.input_size // self.patch_size) ** 2
        zeros = torch.zeros(1, cells, self.embedding.width, device=self.device)
        with torch.inference_mode():
            sequence: Tensor = self.model._pos_embed(zeros)
        # The model may put a class token and registers in front of the patch tokens. A clone made
        # outside of inference mode is a normal tensor again, which autograd accepts.
        return sequence[0, -cells:].clone()

    def card(self) -> dict[str, Any]:
        """Return the backbone's entry on a checkpoint card, as JSON."""
        return {
            "name": self.name,
            "input_size": self.input_size,
            "patch_size": self.patch_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "patch_embedding_sha256": self.embedding.sha256() if self.plain else None,
            "weights_sha256": self.weights_sha256,
        }

    def to(self, device: torch.device | str) -> Backbone:
        """Move the weights; return self."""
        self.model.to(device)
        self._embedding = None
        return self

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return the patch tokens of images; gradients flow to float pixels.

        Args:
            pixels: Images, (B, 3, H, W) uint8, or float pixel values in [0, 255].

        Returns:
            (B, N, D) patch tokens without position embedding.
        """
        tokens: Tensor = self.model.patch_embed(self.embedding.normalise(pixels.float() / 255))
        return tokens

    def features_from_tokens(self, tokens: Tensor) -> Tensor:
        """Return the pooled features of patch tokens.

        Where the model pools the class token alone, the last block computes only that token's
        query: the result is the same, for less work.

        Args:
            tokens: Patch tokens without position embedding, (B, N, D).

        Returns:
            (B, D) features after the final norm.
        """
        m = self.model
        x = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))
        x = m.blocks[:-1](x)
        x = class_token_block(m.blocks[-1], x) if class_token_alone(m) else m.blocks[-1](x)
        features: Tensor = m.forward_head(m.norm(x), pre_logits=True)
        return features

    def features(self, pixels: Tensor) -> Tensor:
        """Return the (B, D) pooled features of images.

        Args:
            pixels: Images, (B, 3, H, W) uint8, or float pixel values in [0, 255].
        """
        if self.plain:
            return self.features_from_tokens(self.tokens(pixels))
        x = self.model.forward_features(normalised(pixels.float() / 255, self.mean, self.std))
        features: Tensor = self.model.forward_head(x, pre_logits=True)
        return features

    def logits_from_tokens(self, tokens: Tensor) -> Tensor:
        """Return the logits of the S labels, (B, S), for patch tokens.

        Args:
            tokens: Patch tokens without position embedding, (B, N, D).
        """
        logits: Tensor = self.model.head(self.features_from_tokens(tokens))
        return logits

    def logits_with_more_tokens(self, images: Tensor, more: Tensor) -> Tensor:
        """Return the logits of images with more tokens appended behind their patch tokens.

        Args:
            images: Images in the normalized space, (B, 3, H, W) float32.
            more: Tokens to append, (B, K, D) float32; they get no position embedding.

        Returns:
            (B, S) logits.
        """
        m = self.model
        x = torch.cat([m._pos_embed(m.patch_embed(images)), more], dim=1)
        logits: Tensor = m.forward_head(m.norm(m.blocks(m.norm_pre(x))))
        return logits

    def logits(self, pixels: Tensor) -> Tensor:
        """Return the logits of the S labels, (B, S), for images, by the model's own forward pass.

        Args:
            pixels: Images, (B, 3, H, W) uint8, or float pixel values in [0, 255].
        """
        logits: Tensor = self.model(normalised(pixels.float() / 255, self.mean, self.std))
        return logits

    def features_sha256(self) -> str:
        """Return the SHA-256 of all weights but the head's, as an adapter server computes it.

        The digest covers the tensors in the order of their names: first the name, then the values
        as little-endian float32.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if not name.startswith("head."):
                digest.update(name.encode())
                digest.update(tensor.detach().float().cpu().numpy().astype("<f4").tobytes())
        return digest.hexdigest()

    def verify_frozen(self) -> None:
        """Check that no weight has changed since this object was made.

        Raises:
            PGNError: A weight has changed, so training did not use the hosted model's weights.
        """
        if self._digest() != self.weights_sha256:
            raise PGNError(
                f"backbone {self.name}: its weights changed; it must stay frozen; load it again"
            )

    def _digest(self) -> str:
        """Return the SHA-256 over all weights of the model."""
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def class_token_block(block: Any, x: Tensor) -> Tensor:
    """Return a transformer block's output for the class token only: (B, T, D) → (B, 1, D).

    Its query attends to the keys and values of all tokens.
    """
    attn = block.attn
    width = x.shape[-1]
    bias = attn.qkv.bias
    query_bias = None if bias is None else bias[:width]
    key_value_bias = None if bias is None else bias[width:]

    h = block.norm1(x)
    query = F.linear(h[:, :1], attn.qkv.weight[:width], query_bias)
    key, value = F.linear(h, attn.qkv.weight[width:], key_value_bias).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    # (B, heads, 1, D/heads)
    mixed = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)

    y = x[:, :1] + block.ls1(attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2))))
    out: Tensor = y + block.ls2(block.mlp(block.norm2(y)))
    return out


def class_token_alone(model: Any) -> bool:
    """Whether :func:`class_token_block` can replace the model's last block: it needs pooling of the
    class token and timm's standard block.
    """
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    block = model.blocks[-1]
    standard = (
        type(block) is Block
        and type(block.attn) is Attention
        # Newer versions of timm can gate the output, which the shortcut does not compute.
        and getattr(block.attn, "gate", None) is None
    )
    return standard and model.global_pool == "token" and model.attn_pool is None


def is_plain(model: nn.Module) -> bool:
    """Whether the model is a ViT whose patch embedding is one affine map per patch.

    In other models, latent prompts have no equivalent in pixels.
    """
    from timm.layers import PatchEmbed
    from timm.models import VisionTransformer

    if type(model) is not VisionTransformer or type(model.patch_embed) is not PatchEmbed:
        return False  # Exact types: subclasses can change the forward pass.

    embed = cast(Any, model.patch_embed)
    proj = embed.proj
    bare = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride and not any(proj.padding)
    return bare and isinstance(embed.norm, nn.Identity) and bool(embed.flatten)


def unique_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Add a suffix to the second and later of equal class names: ``crane``, ``crane (2)``.

    Servers do the same.
    """
    counts: dict[str, int] = {}
    unique = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        unique.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(unique)


def read_labels(path: Path) -> list[str]:
    """Read class names in the model's order: a JSON list of strings, or of objects with a ``name``.

    Raises:
        ConfigurationError: The file is missing, is not JSON, or has another form.
    """
    remedy = "expected a JSON list of names or of objects with a 'name'"
    with reading(f"labels file {path}", remedy):
        rows = json.loads(read_regular(path))
        if not isinstance(rows, list):
            raise TypeError(f"got {type(rows).__name__}")
        return [row if isinstance(row, str) else str(row["name"]) for row in rows]


def load(
    name: str,
    *,
    weights: Path | None = None,
    labels: Path | None = None,
    device: str | torch.device = "cpu",
    new_head: bool = False,
) -> Backbone:
    """Load a backbone, the frozen local classifier, by name.

    Args:
        name: ``bundled`` (the small ViT that ships with ``mock_server``), or a timm model name.
        weights: Safetensors file whose tensors must match the model exactly; ``None`` lets timm
            download the published weights from its hub.
        labels: JSON file with the class names.
        device: Device for the weights.
        new_head: Whether to add an all-zeros head where neither ``weights`` nor the model has one
            for ``labels`` (DINO has no head, CLIP has a projection); for uses that need only the
            first layers.

    Raises:
        ConfigurationError: The name is unknown, or the model has no classification head.
        CheckpointError: The weights cannot be read, or do not fit the model.
    """
    names = read_labels(labels) if labels else None
    if name == "bundled":
        return _load_bundled(weights, names).to(device)

    import timm
    from timm.data import resolve_model_data_config

    if not timm.is_model(name):
        close = ", ".join(get_close_matches(name, timm.list_models())) or "vit_tiny_patch16_224"
        raise ConfigurationError(
            f"backbone: got {name!r}, expected bundled or a timm model, for example {close}"
        )

    # Fine-tuned weights come with a head for the labels, so the model needs one of that size. With
    # `new_head` they may have another head, which `_silent_head` replaces below.
    head: dict[str, int] = {}
    if names and weights and (not new_head or _head_size(weights, name) == len(names)):
        head = {"num_classes": len(names)}
    model = _guarded(
        lambda: timm.create_model(name, pretrained=weights is None, **head), f"backbone {name}"
    )
    if weights is not None:
        _load_weights(model, weights, name)
    if new_head and names and model.num_classes != len(names):
        _silent_head(model, len(names))

    config = resolve_model_data_config(model)
    size = int(config["input_size"][-1])
    profile = ServerProfile("direct")
    if config["crop_mode"] != "squash":
        # Rounded down, as timm rounds it.
        profile = ServerProfile("resize_crop", int(size / config["crop_pct"]), size)
    return Backbone(
        model,
        name=name,
        mean=config["mean"],
        std=config["std"],
        labels=names,
        profile=profile,
        input_size=size,
        interpolation=config["interpolation"],
    ).to(device)


def _head_size(weights: Path, name: str) -> int:
    """Return the number of classes of the head in a weights file; 0 if the file has no head."""
    import timm

    config = timm.get_pretrained_cfg(name)
    head = f"{config.classifier if config else 'head'}.weight"
    try:
        with safe_open(weights, framework="pt") as file:
            if head not in set(file.keys()):
                return 0
            return int(file.get_slice(head).get_shape()[0])
    except (SafetensorError, OSError):
        # _load_weights reads the same file next, and raises an error that explains the problem.
        return 0


def _silent_head(model: Any, classes: int) -> None:
    """Replace the model's head by zeros, which give the weights the same fingerprint each time."""
    model.reset_classifier(classes)
    for parameter in model.get_classifier().parameters():
        nn.init.zeros_(parameter)


def _load_bundled(weights: Path | None, names: list[str] | None) -> Backbone:
    """Load the small ViT that ships with ``mock_server``."""
    from timm.models import VisionTransformer

    folder = bundled_folder()
    card = json.loads((folder / "bundled.json").read_text(encoding="utf-8"))
    model = VisionTransformer(num_classes=len(card["classes"]), **card["architecture"])
    _load_weights(model, weights or folder / "bundled.safetensors", "bundled")
    return Backbone(
        model, name="bundled", mean=card["mean"], std=card["std"], labels=names or card["classes"]
    )


def bundled_folder() -> Path:
    """Return the folder of the bundled weights, which are data of ``mock_server``.

    The package is located without importing it, because client and server share no code.

    Raises:
        ConfigurationError: The package ``mock_server``, or its weights, are not installed.
    """
    spec = find_spec("mock_server")
    folder = None
    if spec and spec.submodule_search_locations:
        folder = Path(spec.submodule_search_locations[0]) / "weights"
    if folder is None or not (folder / "bundled.json").is_file():
        raise ConfigurationError(
            "backbone bundled: its weights are not installed; name a timm model, or reinstall"
        )
    return folder


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    """Load a safetensors file into a model; every tensor must match."""
    if not path.is_file():
        raise CheckpointError(
            f"backbone {name}: no weights file {path}; give --weights a safetensors file"
        )
    try:
        state = {key: tensor.float() for key, tensor in load_file(path).items()}
        model.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = printable(" ".join(str(error).split()))[:200]
        raise CheckpointError(f"backbone {name}: {path} does not fit: {reason}") from error


def _guarded(make: Callable[[], Any], what: str) -> Any:
    """Call ``make``; turn any exception of timm or its hub into an error of one line."""
    try:
        return make()
    except Exception as error:
        # timm and its hub raise many types: offline, unknown model, model that needs a login.
        reason = printable(" ".join(str(error).split()))[:200]
        raise ConfigurationError(
            f"{what}: its published weights could not be loaded ({type(error).__name__}: "
            f"{reason}); give --weights a local safetensors file"
        ) from error


def float32_convolutions() -> AbstractContextManager[None]:
    """Return a context in which convolutions on a GPU compute in float32 instead of TF32.

    The patch embedding is such a convolution.
    """
    # The default of `enabled` is False, which would turn cuDNN off.
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False
    )
    return context
