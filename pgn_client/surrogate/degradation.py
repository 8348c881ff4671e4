"""What happens to an image between client and model, so that training can meet it: rounding, JPEG,
a moved grid.

Rounding and JPEG are done to the whole image that is sent, and gradients pass straight through
them (Bengio et al. 2013, arXiv 1308.3432). A moved grid stands for a server's resize and crop where
they are not known.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas

SUBSAMPLINGS = {"444": 0, "422": 1, "420": 2}
"""As JPEG writes them → as Pillow counts them."""
FORM = (
    "uint8, jpeg:QUALITY or jpeg:QUALITY:444|422|420, shift:PIXELS, scale:SHARE, each once, "
    "joined by +"
)


@dataclass(frozen=True)
class Wire:
    """A way that images take; rounding to whole grey values is always on it.

    Attributes:
        quality: of JPEG, 1 to 100; ``None`` for a lossless way.
        subsampling: of its chroma, ``444``, ``422`` or ``420``.
        shift: in training each image is moved by up to so many pixels, for servers whose grid is
            not known.
        scale: in training each image grows or shrinks by up to this share.

    Raises:
        ConfigurationError: a number makes no sense.
    """

    quality: int | None = None
    subsampling: str = "420"
    shift: float = 0.0
    scale: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Wire:
        """Read ``uint8``, ``jpeg:75:420``, ``shift:4``, ``scale:0.05``, or several of them joined
        by ``+``.

        Raises:
            ConfigurationError: it cannot be read, or a number makes no sense.
        """
        found: dict[str, Any] = {}
        for part in map(str.strip, text.split("+")):
            name, _, value = part.partition(":")
            try:
                if {"jpeg": "quality"}.get(name, name) in found:
                    raise ValueError(part)
                if name == "jpeg":
                    quality, _, subsampling = value.partition(":")
                    found |= {"quality": int(quality), "subsampling": subsampling or "420"}
                elif name in ("shift", "scale"):
                    found[name] = float(value)
                elif part != "uint8":
                    raise ValueError(part)
            except ValueError as error:
                raise ConfigurationError(f"wire: got {text!r}, expected {FORM}") from error
        return cls(**found)

    def __post_init__(self) -> None:
        if self.quality is not None and not (
            1 <= self.quality <= 100 and self.subsampling in SUBSAMPLINGS
        ):
            raise ConfigurationError(
                f"wire: got jpeg:{self.quality}:{self.subsampling}, expected a quality from 1 to "
                "100 and a "
                f"subsampling of {', '.join(SUBSAMPLINGS)} (parts of a wire are joined by +)"
            )
        if not (0 <= self.shift < float("inf") and 0 <= self.scale < 1):
            raise ConfigurationError(
                f"wire: got shift:{self.shift:g} and scale:{self.scale:g}, expected pixels of at "
                "least 0 and a share "
                "from 0 to less than 1"
            )

    def __str__(self) -> str:
        parts = (
            [f"jpeg:{self.quality}:{self.subsampling}"] if self.quality is not None else ["uint8"]
        )
        parts += [
            f"{name}:{value:g}"
            for name, value in (("shift", self.shift), ("scale", self.scale))
            if value
        ]
        return "+".join(parts)

    @property
    def settled(self) -> Wire:
        """The same way without what is random on it: what is measured at."""
        return replace(self, shift=0.0, scale=0.0)

    def __call__(self, canvases: Tensor, canvas: Canvas) -> Tensor:
        """(B, 3, H, W) grey values in [0, 255], uint8 or float → float32 as the model gets them.

        Rounded and re-encoded as they are sent; what is random comes after that, as a server's
        resize does.
        """
        x = canvases.float()
        arrived = x.detach().clamp(0, 255).round()
        if self.quality is not None:
            arrived = self._reencoded(arrived.to(torch.uint8), canvas, self.quality)
        x = x + (arrived - x).detach()
        return self._moved(x) if self.shift or self.scale else x

    def _moved(self, x: Tensor) -> Tensor:
        """Move and scale each image at random; its edge is repeated, as the margin repeats it."""
        n, size = len(x), x.shape[-1]
        # drawn on the CPU, whose generator a resumed run takes up again
        theta = torch.zeros(n, 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 + self.scale * (2 * torch.rand(n) - 1)
        theta[:, :, 2] = 2 * self.shift / size * (2 * torch.rand(n, 2) - 1)
        grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _reencoded(self, pixels: Tensor, canvas: Canvas, quality: int) -> Tensor:
        """Send whole images, margin included, through JPEG, then crop as the server does."""
        after = canvas.sent - canvas.size - canvas.offset
        sides = ((canvas.offset, after), (canvas.offset, after), (0, 0))
        rows = slice(canvas.offset, canvas.offset + canvas.size)
        out = []
        for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
            sent = Image.fromarray(np.pad(image, sides, mode="edge"))
            decoded = np.asarray(jpeg(sent, quality, SUBSAMPLINGS[self.subsampling]))
            out.append(decoded[rows, rows])
        return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2).float().to(pixels.device)


def jpeg(image: Image.Image, quality: int, subsampling: int) -> Image.Image:
    """Encode and decode; subsampling 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(buffer).convert("RGB")
