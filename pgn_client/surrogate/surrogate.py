"""The endpoint as training sees it: a local backbone behind the canvas, answering as the endpoint
will.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgn_client.imaging.compositor import GREY
from pgn_client.imaging.geometry import Canvas
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.degradation import Wire
from pgn_client.surrogate.returned_scores import returned_scores


@dataclass(frozen=True)
class Surrogate:
    """A backbone, a canvas, and what the endpoint returns.

    Attributes:
        backbone: the frozen ViT that training back-propagates through.
        canvas: where image and prompts go.
        top_k: how many labels the endpoint returns; ``None`` for all.
        decimals: how the endpoint rounds probabilities; ``None`` for not at all.
        half: compute the backbone in bfloat16; mixing and softmax stay in float32.
        wire: what happens to images on their way; ``None`` for nothing, not even rounding.
    """

    backbone: Backbone
    canvas: Canvas
    top_k: int | None = None
    decimals: int | None = None
    half: bool = False
    wire: Wire | None = None

    @property
    def latent(self) -> bool:
        """Whether prompt tokens may stand in for prompt pixels: in a plain ViT, where nothing
        happens to the pixels.
        """
        return self.wire is None and self.backbone.plain

    def neutral(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) uint8 fitted images → (B, 3, H, W) uint8 canvases with grey cells."""
        top, left, height, width = self.canvas.box
        size = self.canvas.size
        canvases = torch.full(
            (len(images), 3, size, size), GREY, dtype=torch.uint8, device=images.device
        )
        canvases[:, :, top : top + height, left : left + width] = images
        return canvases

    def paint(self, images: Tensor, painted: Tensor) -> Tensor:
        """Put what a method paints on the canvas; differentiable.

        Args:
            images: (B, 3, h, w) uint8.
            painted: (B, K, 3, P, P) prompt patches, or (B, 3, H, W) whole canvases, in [0, 1].

        Returns:
            (B, 3, H, W) float32 grey values in [0, 255], not rounded.
        """
        if not self.canvas.cells:
            return 255 * painted
        side = self.canvas.patch
        grid = self.canvas.size // side
        cells = self.neutral(images).float().unflatten(3, (grid, side)).unflatten(2, (grid, side))
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)  # (B, N, 3, P, P)
        cells = cells.index_copy(1, self._cells(images.device), 255 * painted.float())
        canvases: Tensor = (
            cells.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        )
        return canvases

    def scores(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Answer in the latent space: prompt tokens replace the patch tokens of their cells.

        Args:
            images: (B, 3, h, w) uint8.
            prompts: (B, K, D) float32 tokens without position embedding, where ``latent``; ``None``
                leaves the cells grey, and takes the wire.

        Returns:
            (B, S) float32 log-probabilities.
        """
        if prompts is None:
            return self.pixel_scores(self.neutral(images))
        tokens = self.backbone.tokens(self.neutral(images))
        return self.token_scores(tokens.index_copy(1, self._cells(tokens.device), prompts))

    def pixel_scores(self, canvases: Tensor) -> Tensor:
        """Answer to (B, 3, H, W) canvases, uint8 or float grey values in [0, 255], as the server
        does.
        """
        arrived = canvases if self.wire is None else self.wire(canvases, self.canvas)
        if self.backbone.plain:
            return self.token_scores(self.backbone.tokens(arrived))
        with self._precision(arrived.device):
            logits = self.backbone.logits(arrived)
        return returned_scores(logits, top_k=self.top_k, decimals=self.decimals)

    def token_scores(self, tokens: Tensor) -> Tensor:
        """Answer to (B, N, D) patch tokens without position embedding: (B, S) float32
        log-probabilities.
        """
        with self._precision(tokens.device):
            logits = self.backbone.logits_from_tokens(tokens)
        return returned_scores(logits, top_k=self.top_k, decimals=self.decimals)

    def _precision(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.half)

    def _cells(self, device: torch.device) -> Tensor:
        return torch.tensor(self.canvas.cells, device=device)
