"""A tiny random ViT and tiny image folders. Torch is imported where it is used: other unit tests
need none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image

# How long an example takes says how busy the machine is.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")

PLAIN_VITS: dict[str, dict[str, Any]] = {
    "patch 8": {},
    "patch 14": {"patch_size": 14, "img_size": 56},
    "patch 16": {"patch_size": 16, "img_size": 64},
    "patch 32": {"patch_size": 32, "img_size": 96},
    "one block": {"depth": 1},
    "no qkv bias": {"qkv_bias": False},
    "qk norm": {"qk_norm": True},
    "attention and MLP norms": {"scale_attn_norm": True, "scale_mlp_norm": True},
    "register tokens": {"reg_tokens": 3},
    "register tokens without position": {"reg_tokens": 2, "no_embed_class": True},
    "layer scale": {"init_values": 1e-5},
    "pre-norm, and so no patch bias, as in CLIP": {"pre_norm": True},
    "mean pooling": {"global_pool": "avg"},
    "mean pooling without class token": {"global_pool": "avg", "class_token": False},
    "max pooling": {"global_pool": "max"},
    "attention pooling": {"global_pool": "map"},
    "norm after pooling": {"fc_norm": True},
    "gated attention": {"attn_layer": "gated"},
}
COLOURS = {
    "blue": (30, 40, 220),
    "green": (40, 200, 50),
    "red": (220, 40, 30),
    "white": (235, 230, 240),
}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The weights and outputs that lie beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., Any]:
    """Return a factory of small ViTs whose every parameter is random, so that no part of them can
    hide.
    """

    def make(*, seed: int = 0, **options: Any) -> Any:
        import torch
        from timm.models import VisionTransformer

        chosen: dict[str, Any] = {
            "img_size": 32,
            "patch_size": 8,
            "embed_dim": 24,
            "depth": 2,
            "num_heads": 2,
            "num_classes": 10,
        }
        model = VisionTransformer(**chosen | options).eval()
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                centre = (
                    1.0
                    if name.endswith("gamma") or ("norm" in name and name.endswith("weight"))
                    else 0.0
                )
                spread = 0.3 if parameter.ndim < 2 else 2.0 / parameter[0].numel() ** 0.5
                parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=noise))
        return model

    return make


@pytest.fixture(scope="session")
def make_backbone(make_vit: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory of frozen backbones around such a ViT."""

    def make(*, labels: list[str] | None = None, profile: Any = None, **options: Any) -> Any:
        from pgn_client.surrogate.backbone import Backbone

        mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
        return Backbone(
            make_vit(**options), name="tiny", mean=mean, std=std, labels=labels, profile=profile
        )

    return make


@pytest.fixture(params=PLAIN_VITS)
def plain_vit(request: pytest.FixtureRequest, make_backbone: Callable[..., Any]) -> Any:
    """Each kind of plain ViT in turn, as a frozen backbone."""
    from timm.layers import Attention

    class Gated(Attention):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options, gated=True)

    options = dict(PLAIN_VITS[request.param])
    if options.get("attn_layer") == "gated":
        options["attn_layer"] = Gated
    return make_backbone(**options)


def paint(path: Path, name: str, number: int) -> None:
    """Write one noisy image, 24 x 20 pixels, mostly of its class's colour."""
    rng = np.random.default_rng([number, *name.encode()])
    pixels = np.array(COLOURS[name]) + rng.normal(0, 12, (20, 24, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a factory of class folders: ``make_folder(root, train=8, val=4)``, or plain:
    ``make_folder(root, 10)``.
    """

    def make(
        root: Path,
        count: int = 0,
        *,
        classes: tuple[str, ...] = ("blue", "red", "white"),
        **splits: int,
    ) -> Path:
        start = 0
        for split, number in (splits or {"": count}).items():
            for name in classes:
                for i in range(start, start + number):
                    paint(root / split / name / f"{i:03}.png", name, i)
            start += number
        return root

    return make


@pytest.fixture(scope="session")
def make_adapter(make_backbone: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory of untrained adapters for that ViT; ``card`` replaces entries of their
    card.
    """

    def make(
        *,
        method: str = "pgn",
        library: str = "pixel",
        layout: str = "ring",
        profile: str = "resize_crop:37:32",
        card: dict[str, Any] | None = None,
    ) -> Any:
        import torch

        from pgn_client.imaging.geometry import Canvas
        from pgn_client.prompting import methods
        from pgn_client.prompting.adapter import PromptAdapter
        from pgn_client.types import ServerProfile

        torch.manual_seed(5)
        backbone, classes, source = (
            make_backbone(),
            ["hen", "jay", "owl"],
            [f"class_{i}" for i in range(10)],
        )
        embedding, canvas = (
            backbone.embedding,
            Canvas.build(32, 8, layout, ServerProfile.parse(profile)),
        )
        kind = methods.deployable(method)
        model = kind.create(
            methods.Setting(canvas, 3, 24, depth=2, library=library, library_size=6)
        )
        model.start(peaked=True)
        for name, parameter in model.named_parameters():  # so that every part of the prompt matters
            if not name.startswith(
                ("generator.trunk", "generator.local_head", "library", "generator.mixture.bias")
            ):
                torch.nn.init.normal_(parameter, std=2.0 * parameter.requires_grad)
        tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        tensors |= {"mapping.weight": np.eye(10)[:, :3] + 0.1, "mapping.bias": np.arange(3.0)}
        if library in ("latent", "reachable"):
            tensors |= {
                "embedding.weight": embedding.weight.numpy(),
                "embedding.bias": embedding.bias.numpy(),
            }
        full = {
            "method": method,
            "backbone": {
                "name": backbone.name,
                "input_size": 32,
                "patch_size": 8,
                "mean": backbone.mean,
                "std": backbone.std,
                "patch_embedding_sha256": embedding.sha256(),
            },
            "profile": profile,
            "layout": layout,
            "library": {"kind": library, "size": 6},
            "inversion": "bounded" if library in ("latent", "reachable") else "exact",
            "generator": {"resolution": 16},
            "classes": classes,
            "mapping": {"kind": "linear", "source": source, "classes": classes},
            "fusion": 0.25,
            "seed": 0,
            "metrics": {"accuracy": 1 / 3},
        }
        return PromptAdapter(full | (card or {}), tensors)

    return make


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    """Five noisy images of different sizes."""
    rng = np.random.default_rng(7)
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8))
        for h, w in [(40, 30), (16, 16), (9, 50), (33, 33), (64, 20)]
    ]
