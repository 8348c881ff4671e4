"""A tiny random ViT behind the application, in process."""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from io import BytesIO
from pathlib import Path

import httpx
import numpy as np
import pytest
import timm
import torch
from PIL import Image

from mock_server.app import create_app
from mock_server.model import ServedModel, host
from mock_server.preprocess import Preprocessing, Profile
from mock_server.settings import Settings

CLASSES = ["goldfish", "crane", "tabby", "crane", "lynx", "hen", "jay"]

Open = Callable[..., AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder with real weights and captured requests, or skip."""
    folder = Path(__file__).resolve().parents[3] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the shared folder beside the repository")
    return folder


def tiny_vit(img_size: int = 32, patch_size: int = 8, **options: bool) -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {
        "img_size": img_size,
        "patch_size": patch_size,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
    }
    network = timm.models.VisionTransformer(**sizes, num_classes=len(CLASSES), **options)
    torch.nn.init.normal_(network.head.weight)  # timm's zeros would answer the same to everything
    return network


@pytest.fixture(scope="session")
def served() -> ServedModel:
    return tiny_served()


def tiny_served(**options: bool) -> ServedModel:
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(
        Profile(), input_size=32, interpolation="bicubic", mean=half, std=half
    )
    return host(tiny_vit(**options), name="tiny", classes=CLASSES, preprocessing=preprocessing)


def wire_model() -> ServedModel:
    """Return the model of the golden exchanges: so small that its tensors fit onto a page."""
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(
        Profile(), input_size=4, interpolation="bicubic", mean=half, std=half
    )
    classes = ["goldfish", "crane", "tabby", "cat", "lynx", "dog", "jay"]
    return host(tiny_vit(4, 2), name="vit", classes=classes, preprocessing=preprocessing)


@pytest.fixture(scope="session")
def wire_served() -> ServedModel:
    return wire_model()


@pytest.fixture
def make_served() -> Callable[..., ServedModel]:
    return tiny_served


@pytest.fixture
def open_client(served: ServedModel) -> Open:
    """Return a context manager that serves the tiny model with the given settings."""

    @asynccontextmanager
    async def start(
        model: ServedModel = served, **settings: object
    ) -> AsyncIterator[httpx.AsyncClient]:
        app = create_app(Settings(**settings), model)  # type: ignore[arg-type]
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://server") as client,
        ):
            yield client

    return start


def random_picture(seed: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def picture() -> Callable[..., Image.Image]:
    return random_picture


@pytest.fixture
def png() -> Callable[..., bytes]:
    """Return a function from a seed to the PNG bytes of a random image."""

    def encode(seed: int = 0, size: tuple[int, int] = (32, 32)) -> bytes:
        buffer = BytesIO()
        random_picture(seed, size).save(buffer, "PNG")
        return buffer.getvalue()

    return encode


@pytest.fixture
def direct_logits(served: ServedModel) -> Callable[[int], np.ndarray]:
    """Return a function from an image's seed to its logits, by the plain model alone."""

    def ask(seed: int) -> np.ndarray:
        pixels = torch.from_numpy(np.asarray(random_picture(seed)).copy()).permute(2, 0, 1)[None]
        with torch.no_grad():
            return served.network((pixels / 255 - 0.5) / 0.5)[0].double().numpy()

    return ask


def bomb_bytes(side: int) -> bytes:
    """Return a PNG whose header claims side x side pixels and which holds none."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def bomb() -> Callable[[int], bytes]:
    return bomb_bytes
