"""PGN: a prompt for each image, mixed from the rows of a learned library (arXiv 2210.06466)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from pgn_client.errors import ConfigurationError
from pgn_client.prompting import inversion
from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates, RGBMethod, Setting, require_layout
from pgn_client.prompting.token_library import PixelLibrary, TokenLibrary, library
from pgn_client.surrogate.patch_embedding import PatchEmbedding

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate


class PGN(RGBMethod):
    """Prompt Generation Network: a generator that mixes library rows into prompts for each image.

    The prompts are tokens in training and RGB patches in serving.

    Args:
        generator: Network that computes the mixture weights of an image.
        library: Learned rows that the weights mix.

    Attributes:
        sees_image: Whether the prompt depends on the image, and therefore trains the trunk.
    """

    name = "pgn"
    title = "PGN"
    sees_image: ClassVar[bool] = True
    generator: PromptGenerator

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator)
        self.library = library

    @classmethod
    def create(cls, setting: Setting) -> PGN:
        """Create a PGN with fresh parameters.

        Raises:
            ConfigurationError: The kind of library is unknown, or the layout does not suit the
                method.
        """
        require_layout(setting, cls)
        generator = PromptGenerator(setting.canvas.prompts, setting.library_size, setting.classes)
        return cls(generator, draw_library(setting))

    def start(self, *, peaked: bool) -> None:
        """Draw the mixture layer anew for training, if prompts should start with contrast.

        Args:
            peaked: Whether prompts start with contrast: the layer's bias is drawn from N(0, 2²) and
                its weights from N(0, 0.02²). Deviation: ours. The usual initialization mixes the
                rows nearly uniformly, so prompts start as flat gray.
        """
        if peaked:
            nn.init.normal_(self.generator.mixture.bias, std=2.0)
            nn.init.normal_(self.generator.mixture.weight, std=0.02)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixture weights and the local logits of (B, 3, r, r) images.

        Returns:
            (B, K, L) weights of the L library rows for K prompts; (B, C) logits of the local head
            for the C task classes.
        """
        weights, local = self.generator(x)
        return weights, local

    def scores(self, code: Tensor, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the surrogate's scores for prompted images, (B, S) float32; differentiable.

        Where the surrogate allows it, prompt tokens replace patch tokens and no pixels are made.
        """
        if not surrogate.latent:
            return super().scores(code, images, surrogate)
        return surrogate.scores(images, self.cell_tokens(code, surrogate.backbone.embedding))

    def after_step(self, surrogate: Surrogate) -> None:
        """Move the library's rows back into their bounds, if it has any, after a training step."""
        # Only latent rows have bounds, and `TrainingConfig.canvas` refuses to train them otherwise.
        if surrogate.latent:
            self.library.stay_within(surrogate.backbone.embedding)

    def prompt_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """Mix the L library rows by (B, K, L) weights into K prompt tokens, (B, K, D) float32."""
        return self.library.mixed_tokens(weights, embedding)

    def cell_tokens(self, weights: Tensor, embedding: PatchEmbedding) -> Tensor:
        """Return the tokens that replace K patch tokens, (B, K, D), for (B, K, L) weights."""
        return self.prompt_tokens(weights, embedding)

    def prompt_patches(
        self, weights: Tensor, embedding: PatchEmbedding | None, route: str = "exact"
    ) -> Tensor:
        """Return the prompts of mixture weights as RGB patches.

        Args:
            weights: Mixture weights, (B, K, L), of L library rows for K prompts per image.
            embedding: Patch embedding of the endpoint; a pixel library does not need it.
            route: Inversion of a latent library, ``bounded`` or ``pseudo_inverse``; a pixel library
                ignores it.

        Returns:
            Prompt patches, (B, K, 3, P, P) in [0, 1], unit space.

        Raises:
            ConfigurationError: The library is latent, and ``embedding`` is missing or ``route`` is
                unknown.
        """
        if isinstance(self.library, PixelLibrary):
            return self.library.mixed_patches(weights)

        if embedding is None:
            raise ConfigurationError(
                "inversion of a latent library: got no patch embedding; train the checkpoint again"
            )
        return inversion.route(route)(self.cell_tokens(weights, embedding), embedding)

    def painted(
        self, code: Tensor, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return the images' prompt patches, (B, K, 3, P, P) in [0, 1], unit space."""
        return self.prompt_patches(code, embedding, route)

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return four optimizer groups: library rows, mixture bias, mixture weight and trunk."""
        mixture = self.generator.mixture
        trunk = self.generator.trunk
        # InputIndependent takes the first two groups.
        return [
            {"params": [self.library.rows], "lr": rates.library},
            {"params": [mixture.bias], "lr": rates.bias},
            {"params": [mixture.weight], "lr": rates.mixture},
            {"params": list(trunk.parameters()), "lr": rates.trunk},
        ]


def draw_library(setting: Setting) -> TokenLibrary:
    """Create the token library of a setting's kind and size, with random rows.

    Raises:
        ConfigurationError: The kind of library is unknown.
    """
    return library(setting.library).create(
        setting.library_size, setting.canvas.patch, setting.width
    )
