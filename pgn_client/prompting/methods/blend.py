"""PGN as a convex blend: the prompt covers the whole image with a learned opacity.

Deviation: ours. The published PGN adds tokens to those of the image. Here the image keeps its size
and loses contrast instead. A convex blend of valid images is a valid image. The patch embedding is
affine, so blending tokens equals blending images.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates, Setting, require_layout
from pgn_client.prompting.methods.pgn import PGN, draw_library
from pgn_client.prompting.token_library import TokenLibrary, library
from pgn_client.surrogate.patch_embedding import PatchEmbedding

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class Blend(PGN):
    """PGN blend: image x and prompt p become (1 - a) x + a p, with a learned share a.

    The share is the same for all images.

    Args:
        generator: Network that computes the mixture weights for all N patches of an image.
        library: Library of RGB patches that the weights mix.
    """

    name = "blend"
    title = "PGN blend"
    layout = "full"
    rate = 0.05
    """Learning rate of the logit of a, the prompt's share in the blend."""
    share_at_start = 0.1
    """The prompt's share in the blend, a, before training."""

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator, library)
        self.share = nn.Parameter(torch.tensor(self.share_at_start).logit())

    @classmethod
    def create(cls, setting: Setting) -> Blend:
        """Create a PGN blend with fresh parameters and a library of pixels.

        Raises:
            ConfigurationError: The library is latent, or the layout is not ``full``.
        """
        require_layout(setting, cls)
        if not library(setting.library).exact:
            raise ConfigurationError(
                f"method {cls.name}: got a {setting.library} library, expected pixel"
            )

        patches = (setting.canvas.size // setting.canvas.patch) ** 2
        generator = PromptGenerator(patches, setting.library_size, setting.classes)
        return cls(generator, draw_library(setting))

    def scores(self, code: Tensor, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the surrogate's scores for blended images, (B, S) float32; differentiable.

        Where the surrogate allows it, tokens are blended, which equals blending images.
        """
        if not surrogate.latent:
            return super().scores(code, images, surrogate)

        prompts = self.prompt_tokens(code, surrogate.backbone.embedding)
        tokens = surrogate.backbone.tokens(images)
        share = self.share.sigmoid()
        return surrogate.token_scores((1 - share) * tokens + share * prompts)

    def painted(
        self, code: Tensor, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return the images blended with their prompts, (B, 3, H, W) in [0, 1]."""
        # The library is made of pixels, so there is nothing to invert and no `route` to pass.
        patches = self.prompt_patches(code, embedding)  # (B, N, 3, P, P)
        grid = isqrt(patches.shape[1])
        prompts = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, g, P, g, P)

        share = self.share.sigmoid()
        blended: Tensor = (1 - share) * images.float() / 255 + share * prompts.reshape(images.shape)
        return blended

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return PGN's optimizer groups, and one for the prompt's share in the blend."""
        return [
            *super().prompt_groups(rates),
            # Weight decay would pull the logit to 0, which is a share of one half.
            {"params": [self.share], "lr": self.rate, "weight_decay": 0.0},
        ]
