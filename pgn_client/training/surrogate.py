"""The endpoint as training sees it: a local backbone behind the canvas, answering as the endpoint will."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgn_client.backbone import Backbone
from pgn_client.compositor import GREY
from pgn_client.geometry import Canvas
from pgn_client.training.scores import returned_scores


@dataclass(frozen=True)
class Surrogate:
    """A backbone, a canvas, and what the endpoint returns.

    Attributes:
        backbone: the frozen ViT that training back-propagates through.
        canvas: where picture and prompts go.
        top_k: how many labels the endpoint returns; ``None`` for all.
        decimals: how the endpoint rounds probabilities; ``None`` for not at all.
        half: compute the backbone in bfloat16; mixing and softmax stay in float32.
    """

    backbone: Backbone
    canvas: Canvas
    top_k: int | None = None
    decimals: int | None = None
    half: bool = False

    def neutral(self, pictures: Tensor) -> Tensor:
        """(B, 3, h, w) uint8 fitted pictures → (B, 3, H, W) uint8 canvases with grey cells."""
        top, left, height, width = self.canvas.box
        size = self.canvas.size
        canvases = torch.full((len(pictures), 3, size, size), GREY, dtype=torch.uint8, device=pictures.device)
        canvases[:, :, top : top + height, left : left + width] = pictures
        return canvases

    def scores(self, pictures: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Answer in the latent space: prompt tokens replace the patch tokens of their cells.

        Args:
            pictures: (B, 3, h, w) uint8.
            prompts: (B, K, D) float32 tokens without position embedding; ``None`` leaves the cells grey.

        Returns:
            (B, S) float32 log-probabilities.
        """
        tokens = self.backbone.tokens(self.neutral(pictures))
        if prompts is not None:
            tokens = tokens.index_copy(1, self._cells(tokens.device), prompts)
        return self.token_scores(tokens)

    def pixel_scores(self, canvases: Tensor) -> Tensor:
        """Answer to (B, 3, H, W) canvases, uint8 or float grey values in [0, 255], as the server does."""
        return self.token_scores(self.backbone.tokens(canvases))

    def token_scores(self, tokens: Tensor) -> Tensor:
        """Answer to (B, N, D) patch tokens without position embedding: (B, S) float32 log-probabilities."""
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=self.half):
            logits = self.backbone.logits_from_tokens(tokens)
        return returned_scores(logits, top_k=self.top_k, decimals=self.decimals)

    def _cells(self, device: torch.device) -> Tensor:
        return torch.tensor(self.canvas.cells, device=device)
