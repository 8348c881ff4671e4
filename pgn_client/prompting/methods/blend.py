"""PGN as a convex blend: the prompt covers the whole image, and shines through it by a learned
share.

Deviation: ours. The published PGN adds tokens beside the image; here each image keeps its size
and gives up contrast instead. A convex blend of valid images is one, and the patch embedding is
affine, so the blend may be taken of tokens.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates, RGBMethod, Setting, require_layout
from pgn_client.prompting.methods.pgn import PGN, draw_library
from pgn_client.prompting.token_library import TokenLibrary, library
from pgn_client.surrogate.patch_embedding import PatchEmbedding

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class Blend(PGN):
    """Image x and prompt p become (1 - a) x + a p, with one learned a for all.

    Args:
        generator: image → mixture weights of all N patches.
        library: the pixel rows that are mixed.
    """

    name = "blend"
    title = "PGN blend"
    layout = "full"
    rate = 0.05
    """Learning rate of the share's logit."""
    share_at_start = 0.1

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator, library)
        self.share = nn.Parameter(torch.tensor(self.share_at_start).logit())

    @classmethod
    def create(cls, setting: Setting) -> Blend:
        """Draw a new one; its library holds pixels.

        Raises:
            ConfigurationError: a latent library.
        """
        require_layout(setting, cls)
        if not library(setting.library).exact:
            raise ConfigurationError(
                f"method {cls.name}: got a {setting.library} library, expected pixel"
            )
        patches = (setting.canvas.size // setting.canvas.patch) ** 2
        return cls(
            PromptGenerator(patches, setting.library_size, setting.classes), draw_library(setting)
        )

    def scores(self, code: Tensor, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See ``Method``: the blend is taken of tokens, where they may be, which is the same as of
        images.
        """
        if not surrogate.latent:
            return RGBMethod.scores(self, code, images, surrogate)
        prompts, share = (
            self.prompt_tokens(code, surrogate.backbone.embedding),
            self.share.sigmoid(),
        )
        return surrogate.token_scores(
            (1 - share) * surrogate.backbone.tokens(images) + share * prompts
        )

    def painted(
        self, code: Tensor, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """See ``RGBMethod``: whole canvases, (B, 3, H, W) in [0, 1]."""
        # (B, N, 3, P, P)
        patches, share = self.prompt_patches(code, embedding), self.share.sigmoid()
        grid = isqrt(patches.shape[1])
        prompts = patches.unflatten(1, (grid, grid)).permute(0, 3, 1, 4, 2, 5)  # (B, 3, g, P, g, P)
        blended: Tensor = (1 - share) * images.float() / 255 + share * prompts.reshape(images.shape)
        return blended

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return optimiser groups: as for PGN, and the share."""
        return [
            *super().prompt_groups(rates),
            {"params": [self.share], "lr": self.rate, "weight_decay": 0.0},
        ]
