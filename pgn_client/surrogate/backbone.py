"""A frozen classifier, and where it is a plain ViT its patch embedding.

The *surrogate* of training: the local copy of (or stand-in for) the hosted model. The tokens of a
plain ViT can be replaced one by one, which is how training mixes prompts in the embedding space
instead of rendering images (see ``inversion``). Other stems (convolutional, overlapping, of Swin
or ConvNeXt) are trained through rendered images.
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

from pgn_client.errors import CheckpointError, ConfigurationError, PGNError
from pgn_client.surrogate.patch_embedding import PatchEmbedding, _triple, normalised
from pgn_client.types import ServerProfile

CELL = 16
"""Side of the canvas's cells where the model has no plain patches, in pixels, if its input size
allows.
"""


class Backbone:
    """A frozen timm classifier.

    Args:
        model: any timm model with a classification head, (B, 3, H, W) → (B, S).
        name: what it is called on checkpoint cards.
        mean, std: of its normalised space.
        labels: names of its S classes; ``None`` calls them ``class_0``, ``class_1``, … as the mock
            server does.
        profile: the geometry that its own preprocessing applies.
        input_size: H = W, in pixels; a plain ViT knows it itself.
        interpolation: of its own preprocessing: ``bicubic``, ``bilinear``, …

    Attributes:
        plain: whether it is a ViT whose patch embedding is one affine map per patch, so that tokens
            can stand in for pixels. Only then are there ``embedding``, ``positions`` and tokens.
        weights_sha256: SHA-256 over all weights, as they were when this object was made.

    Raises:
        ConfigurationError: no classification head, labels that do not fit it, or an input size that
            is not told.
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
        self.mean, self.std = _triple(mean), _triple(std)
        classes = int(getattr(model, "num_classes", 0))
        if classes < 2:
            raise ConfigurationError(
                f"backbone {name}: got no classification head, expected one; choose a classifier, "
                "or for an import "
                "name the endpoint's --labels"
            )
        self.labels = unique_labels(labels or [f"class_{i}" for i in range(classes)])
        if len(self.labels) != classes:
            raise ConfigurationError(
                f"labels: got {len(self.labels)}, expected {classes} (the classes of {name})"
            )
        self.profile, self.interpolation = profile or ServerProfile("direct"), interpolation
        size = int(self.model.patch_embed.img_size[0]) if self.plain else input_size
        if size is None:
            raise ConfigurationError(
                f"backbone {name}: got no input size, expected one for {type(model).__name__}"
            )
        self.input_size = size
        """H = W, in pixels."""
        self._embedding: PatchEmbedding | None = None
        self.weights_sha256 = self._digest()

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def patch_size(self) -> int:
        """P, side of the canvas's cells, in pixels; without plain patches it is what is nearest to
        ``CELL``.
        """
        if self.plain:
            return int(self.model.patch_embed.patch_size[0])
        divisors = (side for side in range(1, self.input_size + 1) if self.input_size % side == 0)
        return min(divisors, key=lambda side: abs(side - CELL))

    @property
    def width(self) -> int:
        """D of the pooled features."""
        return int(getattr(self.model, "head_hidden_size", None) or self.model.num_features)

    @property
    def embedding(self) -> PatchEmbedding:
        """The patch embedding, sharing the model's weights; the same object as long as they stay
        where they are.

        Raises:
            ConfigurationError: there is no plain one.
        """
        if not self.plain:
            raise ConfigurationError(
                f"backbone {self.name}: got {type(self.model).__name__}, expected a plain timm "
                "VisionTransformer "
                "(patch embedding = one convolution with kernel = stride, no norm) where tokens "
                "stand in for pixels; "
                "use a library of pixels, or choose a vit_* or deit_* model"
            )
        proj = self.model.patch_embed.proj
        if self._embedding is None or self._embedding.weight is not proj.weight:
            bias = (
                proj.bias
                if proj.bias is not None
                else torch.zeros(proj.out_channels, device=self.device)
            )
            self._embedding = PatchEmbedding(proj.weight, bias, self.mean, self.std)
        return self._embedding

    @property
    def silent(self) -> bool:
        """Whether the head is the placeholder of zeros that `load` adds: scores mean nothing."""
        return not any(bool(p.any()) for p in self.model.get_classifier().parameters())

    @property
    def depth(self) -> int:
        """Number of transformer blocks of a plain ViT."""
        return len(self.model.blocks) if self.plain else 0

    @property
    def positions(self) -> Tensor:
        """(N, D) position embedding of the grid cells, row-major, as the model adds it to patch
        tokens.
        """
        cells, width = (self.input_size // self.patch_size) ** 2, self.embedding.width
        with torch.inference_mode():
            sequence: Tensor = self.model._pos_embed(
                torch.zeros(1, cells, width, device=self.device)
            )
        return sequence[0, -cells:].clone()

    def card(self) -> dict[str, Any]:
        """Return what checkpoint cards tell of it."""
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
        """(B, 3, H, W) uint8 pixels, or float grey values in [0, 255] → (B, N, D) patch tokens, no
        position added.

        Gradients flow to grey values that ask for them.
        """
        tokens: Tensor = self.model.patch_embed(self.embedding.normalise(pixels.float() / 255))
        return tokens

    def features_from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) patch tokens, without position embedding → (B, D) pooled features after the
        final norm.

        Where the class token alone is pooled, the last block computes only its query: the same
        function, less work.
        """
        m = self.model
        x = m.norm_pre(m.patch_drop(m._pos_embed(tokens)))
        x = m.blocks[:-1](x)
        x = class_token_block(m.blocks[-1], x) if class_token_alone(m) else m.blocks[-1](x)
        features: Tensor = m.forward_head(m.norm(x), pre_logits=True)
        return features

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 pixels, or float grey values in [0, 255] → (B, D) pooled features."""
        if self.plain:
            return self.features_from_tokens(self.tokens(pixels))
        x = self.model.forward_features(normalised(pixels.float() / 255, self.mean, self.std))
        features: Tensor = self.model.forward_head(x, pre_logits=True)
        return features

    def logits_from_tokens(self, tokens: Tensor) -> Tensor:
        """(B, N, D) patch tokens, without position embedding → (B, S) logits."""
        logits: Tensor = self.model.head(self.features_from_tokens(tokens))
        return logits

    def logits_with_more_tokens(self, images: Tensor, more: Tensor) -> Tensor:
        """Let tokens stand behind all others, as they are: no position is added to them.

        Args:
            images: (B, 3, H, W) float32 in the normalised space.
            more: (B, K, D) float32.

        Returns:
            (B, S) logits.
        """
        m = self.model
        x = torch.cat([m._pos_embed(m.patch_embed(images)), more], dim=1)
        logits: Tensor = m.forward_head(m.norm(m.blocks(m.norm_pre(x))))
        return logits

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) pixels as of :meth:`tokens` → (B, S) logits, by the model's own forward
        pass: the reference.
        """
        logits: Tensor = self.model(normalised(pixels.float() / 255, self.mean, self.std))
        return logits

    def features_sha256(self) -> str:
        """SHA-256 of all weights but the head's, as servers of adapters know it.

        By name in order: each tensor's name, and its numbers as little-endian float32.
        """
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if not name.startswith("head."):
                digest.update(
                    name.encode() + tensor.detach().float().cpu().numpy().astype("<f4").tobytes()
                )
        return digest.hexdigest()

    def verify_frozen(self) -> None:
        """Check that no weight has changed since this object was made.

        Raises:
            PGNError: one has, so whatever was trained is not what the hosted model will compute.
        """
        if self._digest() != self.weights_sha256:
            raise PGNError(
                f"backbone {self.name}: its weights changed; it must stay frozen, load it anew"
            )

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def class_token_block(block: Any, x: Tensor) -> Tensor:
    """Run a transformer block for the class token only: (B, T, D) → (B, 1, D). Keys and values
    still see all tokens.
    """
    attn, width = block.attn, x.shape[-1]
    h = block.norm1(x)
    bias = attn.qkv.bias
    query_bias, key_value_bias = (None, None) if bias is None else (bias[:width], bias[width:])
    query = F.linear(h[:, :1], attn.qkv.weight[:width], query_bias)
    key, value = F.linear(h, attn.qkv.weight[width:], key_value_bias).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    # (B, heads, 1, D/heads)
    mixed = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v)
    y = x[:, :1] + block.ls1(attn.proj(attn.norm(mixed.transpose(1, 2).flatten(2))))
    out: Tensor = y + block.ls2(block.mlp(block.norm2(y)))
    return out


def class_token_alone(model: Any) -> bool:
    """Whether the shortcut computes the model's function: class-token pooling and the standard
    block.
    """
    from timm.layers import Attention
    from timm.models.vision_transformer import Block

    block = model.blocks[-1]
    standard = (
        type(block) is Block
        and type(block.attn) is Attention
        and getattr(block.attn, "gate", None) is None
    )
    return standard and model.global_pool == "token" and model.attn_pool is None


def is_plain(model: nn.Module) -> bool:
    """Whether the model's first layer is one affine map per patch; where it is not, latent prompts
    are no pixels.
    """
    from timm.layers import PatchEmbed
    from timm.models import VisionTransformer

    if type(model) is not VisionTransformer or type(model.patch_embed) is not PatchEmbed:
        return False  # subclasses change the forward pass
    proj, norm = cast(Any, model).patch_embed.proj, cast(Any, model).patch_embed.norm
    bare = isinstance(proj, nn.Conv2d) and proj.kernel_size == proj.stride and not any(proj.padding)
    return bare and isinstance(norm, nn.Identity) and bool(model.patch_embed.flatten)


def unique_labels(names: Sequence[str]) -> tuple[str, ...]:
    """Give the second and later of equal class names a suffix: ``crane``, ``crane (2)``. Servers do
    the same.
    """
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(out)


def read_labels(path: Path) -> list[str]:
    """Read class names in the model's order: a JSON list of strings, or of objects with a ``name``.

    Raises:
        ConfigurationError: missing, not JSON, or of another form.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list):
            raise TypeError(f"got {type(rows).__name__}")
        return [row if isinstance(row, str) else str(row["name"]) for row in rows]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigurationError(
            f"labels file {path}: {error}; expected a JSON list of names or of objects with "
            "a 'name'"
        ) from error


def load(
    name: str,
    *,
    weights: Path | None = None,
    labels: Path | None = None,
    device: str | torch.device = "cpu",
    new_head: bool = False,
) -> Backbone:
    """Load a backbone.

    Args:
        name: ``bundled`` (the small ViT that ships with ``mock_server``), or a timm model name.
        weights: safetensors file, loaded strictly; without it timm fetches the published weights
            from its hub.
        labels: JSON file with the class names.
        device: where to put it.
        new_head: where neither ``weights`` nor the model has a head for ``labels`` (DINO has none,
            CLIP a projection), give it one of zeros, for uses that need the first layers alone.

    Raises:
        ConfigurationError: an unknown name, or a model that is no classifier.
        CheckpointError: weights that cannot be read or do not fit.
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
    own_head = names and weights and (not new_head or _head_size(weights, name) == len(names))
    # fine-tuned weights bring a head of their own
    head = {"num_classes": len(names)} if names and own_head else {}
    model = _guarded(
        lambda: timm.create_model(name, pretrained=weights is None, **head), f"backbone {name}"
    )
    if weights is not None:
        _load_weights(model, weights, name)
    if new_head and names and model.num_classes != len(names):
        _silent_head(model, len(names))
    config = resolve_model_data_config(model)
    size = int(config["input_size"][-1])
    squash = config["crop_mode"] == "squash"
    profile = (
        ServerProfile("direct")
        if squash
        else ServerProfile("resize_crop", int(size / config["crop_pct"]), size)
    )
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
    """Return how many classes the head in a weights file has; 0 for none."""
    import timm

    config = timm.get_pretrained_cfg(name)
    try:
        with safe_open(weights, framework="pt") as file:
            head = f"{config.classifier if config else 'head'}.weight"
            return int(file.get_slice(head).get_shape()[0]) if head in set(file.keys()) else 0
    except (SafetensorError, OSError):
        return 0  # whoever loads it says what is wrong


def _silent_head(model: Any, classes: int) -> None:
    """Replace the head; zeros, so that the weights' fingerprint is the same each time."""
    model.reset_classifier(classes)
    for parameter in model.get_classifier().parameters():
        nn.init.zeros_(parameter)


def _load_bundled(weights: Path | None, names: list[str] | None) -> Backbone:
    from timm.models import VisionTransformer

    folder = bundled_folder()
    card = json.loads((folder / "bundled.json").read_text(encoding="utf-8"))
    model = VisionTransformer(num_classes=len(card["classes"]), **card["architecture"])
    _load_weights(model, weights or folder / "bundled.safetensors", "bundled")
    return Backbone(
        model, name="bundled", mean=card["mean"], std=card["std"], labels=names or card["classes"]
    )


def bundled_folder() -> Path:
    """Where the bundled weights lie: data of ``mock_server``, found without importing it.

    Raises:
        ConfigurationError: that package, or its weights, are not installed.
    """
    spec = find_spec("mock_server")
    folder = (
        Path(spec.submodule_search_locations[0]) / "weights"
        if spec and spec.submodule_search_locations
        else None
    )
    if folder is None or not (folder / "bundled.json").is_file():
        raise ConfigurationError(
            "backbone bundled: its weights are not installed; name a timm model, or reinstall"
        )
    return folder


def _load_weights(model: nn.Module, path: Path, name: str) -> None:
    if not path.is_file():
        raise CheckpointError(
            f"backbone {name}: no weights file {path}; give --weights a safetensors file"
        )
    try:
        state = {k: v.float() for k, v in load_file(path).items()}
        model.load_state_dict(state, strict=True)
    except (SafetensorError, RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"backbone {name}: {path} does not fit: {reason}") from error


def _guarded(make: Callable[[], Any], what: str) -> Any:
    """Turn whatever a hub throws into one line."""
    try:
        return make()
    except Exception as error:  # timm and its hub raise many kinds: offline, unknown, gated
        reason = " ".join(str(error).split())[:200]
        raise ConfigurationError(
            f"{what}: its published weights could not be loaded ({type(error).__name__}: "
            f"{reason}); "
            "give --weights a local safetensors file"
        ) from error


def float32_convolutions() -> AbstractContextManager[None]:
    """Keep the patch embedding, a convolution, in float32 on a GPU, where cuDNN would take TF32."""
    context: AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, allow_tf32=False
    )
    return context
