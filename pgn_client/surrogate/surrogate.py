"""A differentiable local model of the endpoint, from the sent image to the returned scores."""

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
    """The local model of the endpoint that training back-propagates through.

    Attributes:
        backbone: The frozen classifier that training back-propagates through.
        canvas: Places of the image and of the prompts in the image that is sent.
        top_k: Number of labels that the endpoint returns; ``None`` for all.
        decimals: Decimals to which the endpoint rounds probabilities; ``None`` for no rounding.
        half: Whether the backbone computes in bfloat16; mixing and softmax stay in float32.
        wire: Degradation of the images between client and model; ``None`` for none, not even
            rounding.
    """

    backbone: Backbone
    canvas: Canvas
    top_k: int | None = None
    decimals: int | None = None
    half: bool = False
    wire: Wire | None = None

    @property
    def latent(self) -> bool:
        """Whether training may insert prompt tokens instead of prompt pixels.

        It may in a plain ViT, if no wire (degradation of the images) is set.
        """
        return self.wire is None and self.backbone.plain

    def neutral(self, images: Tensor) -> Tensor:
        """Return the images on gray canvases, the images that the model sees, without prompts.

        Args:
            images: Images fitted to the canvas's box, (B, 3, h, w) uint8.

        Returns:
            Canvases, (B, 3, H, W) uint8.
        """
        top, left, height, width = self.canvas.box
        size = self.canvas.size
        canvases = torch.full(
            (len(images), 3, size, size), GREY, dtype=torch.uint8, device=images.device
        )
        canvases[:, :, top : top + height, left : left + width] = images
        return canvases

    def paint(self, images: Tensor, painted: Tensor) -> Tensor:
        """Return canvases, the images that the model sees, made of images and prompts.

        Args:
            images: Fitted images, (B, 3, h, w) uint8.
            painted: Prompt patches, (B, K, 3, P, P), or whole canvases, (B, 3, H, W), in [0, 1].

        Returns:
            Canvases, (B, 3, H, W) float32 pixel values in [0, 255], not rounded; differentiable.
        """
        if not self.canvas.cells:
            return 255 * painted

        # Cut the canvases into their grid cells, (B, N, 3, P, P).
        side = self.canvas.patch
        grid = self.canvas.size // side
        cells = self.neutral(images).float().unflatten(3, (grid, side)).unflatten(2, (grid, side))
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(1, 2)

        cells = cells.index_copy(1, self._cells(images.device), 255 * painted.float())

        # Join the cells to canvases again.
        canvases: Tensor = (
            cells.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        )
        return canvases

    def scores(self, images: Tensor, prompts: Tensor | None = None) -> Tensor:
        """Return the endpoint's scores for images whose prompts are tokens or absent.

        Args:
            images: Fitted images, (B, 3, h, w) uint8.
            prompts: Prompt tokens without position embedding, (B, K, D) float32, which replace the
                patch tokens of their cells and skip the wire; only where ``latent``. ``None``
                leaves the cells gray and applies the wire.

        Returns:
            (B, S) float32 log-probabilities.
        """
        if prompts is None:
            return self.pixel_scores(self.neutral(images))
        tokens = self.backbone.tokens(self.neutral(images))
        return self.token_scores(tokens.index_copy(1, self._cells(tokens.device), prompts))

    def pixel_scores(self, canvases: Tensor) -> Tensor:
        """Return the endpoint's scores for canvases, degraded by the wire as in serving.

        Args:
            canvases: Canvases, (B, 3, H, W) uint8, or float pixel values in [0, 255].

        Returns:
            (B, S) float32 log-probabilities.
        """
        arrived = canvases if self.wire is None else self.wire(canvases, self.canvas)
        # Tokens have the shorter last block of `Backbone.features_from_tokens`.
        if self.backbone.plain:
            return self.token_scores(self.backbone.tokens(arrived))
        with self._precision(arrived.device):
            logits = self.backbone.logits(arrived)
        return returned_scores(logits, top_k=self.top_k, decimals=self.decimals)

    def token_scores(self, tokens: Tensor) -> Tensor:
        """Return the endpoint's scores for patch tokens.

        Args:
            tokens: Patch tokens without position embedding, (B, N, D).

        Returns:
            (B, S) float32 log-probabilities.
        """
        with self._precision(tokens.device):
            logits = self.backbone.logits_from_tokens(tokens)
        return returned_scores(logits, top_k=self.top_k, decimals=self.decimals)

    def _precision(self, device: torch.device) -> torch.autocast:
        """Return the autocast context for the backbone's forward pass."""
        return torch.autocast(device.type, torch.bfloat16, enabled=self.half)

    def _cells(self, device: torch.device) -> Tensor:
        """Return the indices of the K patches that hold prompts, (K,) int64, on ``device``."""
        return torch.tensor(self.canvas.cells, device=device)
