"""Degradation of images between client and model, for training: rounding, JPEG, a moved grid.

Rounding and JPEG act on the whole image that is sent. Gradients pass straight through them (Bengio
et al. 2013, arXiv 1308.3432). A moved grid imitates the resize and crop of a server whose geometry
is unknown.
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
"""Names of chroma subsampling (4:4:4 is ``444``) → Pillow's numbers for them."""
# The syntax of `Wire.parse`, for its error message.
FORM = (
    "uint8, jpeg:QUALITY or jpeg:QUALITY:444|422|420, shift:PIXELS, scale:SHARE, each once, "
    "joined by +"
)


@dataclass(frozen=True)
class Wire:
    """Degradation of images between client and model; it always rounds to whole pixel values.

    Attributes:
        quality: JPEG quality, 1 to 100; ``None`` for a lossless format.
        subsampling: Chroma subsampling of JPEG, ``444``, ``422`` or ``420``.
        shift: Largest random translation of each image in training, in pixels, at least 0; for
            servers whose geometry is unknown.
        scale: Largest random change of each image's size in training, as a share, at least 0 and
            less than 1.

    Raises:
        ConfigurationError: A number is out of its range.
    """

    quality: int | None = None
    subsampling: str = "420"
    shift: float = 0.0
    scale: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Wire:
        """Parse a degradation: ``uint8``, ``jpeg:75:420``, ``shift:4``, ``scale:0.05``, or several
        of them joined by ``+``.

        Raises:
            ConfigurationError: The text has another form, or a number is out of its range.
        """
        fields: dict[str, Any] = {}
        names: set[str] = set()
        for part in map(str.strip, text.split("+")):
            name, _, value = part.partition(":")
            try:
                # Each part may appear once.
                if name in names:
                    raise ValueError(part)
                names.add(name)
                if name == "jpeg":
                    quality, _, subsampling = value.partition(":")
                    fields |= {"quality": int(quality), "subsampling": subsampling or "420"}
                elif name in ("shift", "scale"):
                    fields[name] = float(value)
                elif part != "uint8":
                    raise ValueError(part)
            except ValueError as error:
                raise ConfigurationError(f"wire: got {text!r}, expected {FORM}") from error
        return cls(**fields)

    def __post_init__(self) -> None:
        if self.quality is not None and not (
            1 <= self.quality <= 100 and self.subsampling in SUBSAMPLINGS
        ):
            raise ConfigurationError(
                f"wire: got jpeg:{self.quality}:{self.subsampling}, "
                "expected a quality from 1 to 100 "
                f"and a subsampling of {', '.join(SUBSAMPLINGS)} (parts of a wire are joined by +)"
            )
        if not (0 <= self.shift < float("inf") and 0 <= self.scale < 1):
            raise ConfigurationError(
                f"wire: got shift:{self.shift:g} and scale:{self.scale:g}, expected a shift of at "
                "least 0 pixels, and a scale of at least 0 and less than 1"
            )

    def __str__(self) -> str:
        lossy = self.quality is not None
        parts = [f"jpeg:{self.quality}:{self.subsampling}" if lossy else "uint8"]
        if self.shift:
            parts.append(f"shift:{self.shift:g}")
        if self.scale:
            parts.append(f"scale:{self.scale:g}")
        return "+".join(parts)

    @property
    def settled(self) -> Wire:
        """The same degradation without random shift and scale; accuracy is measured with it."""
        return replace(self, shift=0.0, scale=0.0)

    def __call__(self, canvases: Tensor, canvas: Canvas) -> Tensor:
        """Return degraded canvases, the images that reach the model; differentiable.

        Rounding and JPEG come first. The random shift and scale follow, as a server's resize does.

        Args:
            canvases: Canvases, (B, 3, H, W) uint8, or float pixel values in [0, 255].
            canvas: Geometry of the canvases.

        Returns:
            Degraded canvases, (B, 3, H, W) float32 pixel values in [0, 255].
        """
        x = canvases.float()
        arrived = x.detach().clamp(0, 255).round()
        if self.quality is not None:
            arrived = self._reencoded(arrived.to(torch.uint8), canvas, self.quality)

        # The value is what arrived; the gradient is that of x.
        x = x + (arrived - x).detach()
        return self._moved(x) if self.shift or self.scale else x

    def _moved(self, x: Tensor) -> Tensor:
        """Return the (B, 3, H, W) images, each moved and scaled at random.

        Repeated edge pixels fill the uncovered area, as they fill the margin of a sent image.
        """
        n = len(x)
        size = x.shape[-1]

        # Drawn on the CPU, because a resumed run restores the state of the CPU's generator.
        theta = torch.zeros(n, 2, 3)
        zoom = 1 + self.scale * (2 * torch.rand(n) - 1)
        theta[:, 0, 0] = zoom
        theta[:, 1, 1] = zoom
        # affine_grid measures in half sides: from -1 to 1 across the image.
        theta[:, :, 2] = 2 * self.shift / size * (2 * torch.rand(n, 2) - 1)

        grid = F.affine_grid(theta.to(x.device), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _reencoded(self, pixels: Tensor, canvas: Canvas, quality: int) -> Tensor:
        """Encode and decode whole images, margin included, as JPEG, then crop as the server does.

        The margin is added because JPEG blocks start at the corner of the image that is sent.
        """
        after = canvas.sent - canvas.size - canvas.offset
        sides = ((canvas.offset, after), (canvas.offset, after), (0, 0))
        crop = slice(canvas.offset, canvas.offset + canvas.size)

        canvases = []
        for image in pixels.permute(0, 2, 3, 1).cpu().numpy():
            sent = Image.fromarray(np.pad(image, sides, mode="edge"))
            decoded = np.asarray(jpeg(sent, quality, SUBSAMPLINGS[self.subsampling]))
            canvases.append(decoded[crop, crop])
        return torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float().to(pixels.device)


def jpeg(image: Image.Image, quality: int, subsampling: int) -> Image.Image:
    """Encode an image as JPEG and decode it; subsampling 0 is 4:4:4, 1 is 4:2:2, 2 is 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(buffer).convert("RGB")
