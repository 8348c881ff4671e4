"""A tiny random ViT and tiny picture folders. Torch is imported where it is used: other unit tests need none."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COLOURS = {"blue": (30, 40, 220), "green": (40, 200, 50), "red": (220, 40, 30), "white": (235, 230, 240)}


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The weights and outputs that lie beside the repository."""
    folder = Path(__file__).resolve().parents[3] / "shared"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.fixture(scope="session")
def make_vit() -> Callable[..., Any]:
    """Return a factory of small ViTs whose every parameter is random, so that no part of them can hide."""

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
                centre = 1.0 if name.endswith("gamma") or ("norm" in name and name.endswith("weight")) else 0.0
                spread = 0.3 if parameter.ndim < 2 else 2.0 / parameter[0].numel() ** 0.5
                parameter.copy_(centre + spread * torch.randn(parameter.shape, generator=noise))
        return model

    return make


@pytest.fixture(scope="session")
def make_backbone(make_vit: Callable[..., Any]) -> Callable[..., Any]:
    """Return a factory of frozen backbones around such a ViT."""

    def make(*, labels: list[str] | None = None, profile: Any = None, **options: Any) -> Any:
        from pgn_client.backbone import Backbone

        mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
        return Backbone(make_vit(**options), name="tiny", mean=mean, std=std, labels=labels, profile=profile)

    return make


def paint(path: Path, name: str, number: int) -> None:
    """Write one noisy picture, 24 x 20 pixels, mostly of its class's colour."""
    rng = np.random.default_rng([number, *name.encode()])
    pixels = np.array(COLOURS[name]) + rng.normal(0, 12, (20, 24, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="session")
def make_folder() -> Callable[..., Path]:
    """Return a factory of class folders: ``make_folder(root, train=8, val=4)``, or ``make_folder(root, 10)`` for a plain tree."""

    def make(root: Path, count: int = 0, *, classes: tuple[str, ...] = ("blue", "red", "white"), **splits: int) -> Path:
        start = 0
        for split, number in (splits or {"": count}).items():
            for name in classes:
                for i in range(start, start + number):
                    paint(root / split / name / f"{i:03}.png", name, i)
            start += number
        return root

    return make
