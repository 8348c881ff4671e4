"""IIP, input-independent prompting: one prompt for all images, the ablation of the PGN paper.

It is a PGN whose mixture layer has a weight of zero, so that the layer's bias alone sets the
prompt. Library, layout, training and serving are the same, so the comparison isolates input
dependence. The trunk still serves the local head.
"""

from __future__ import annotations

from torch import nn

from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates
from pgn_client.prompting.methods.pgn import PGN
from pgn_client.prompting.token_library import TokenLibrary


class InputIndependent(PGN):
    """IIP: a PGN whose mixture weights, and so its prompts, are the same for all images."""

    name = "input_independent"
    title = "IIP"
    sees_image = False

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator, library)
        self._mute()

    def start(self, *, peaked: bool) -> None:
        """Prepare for training as PGN does, but keep the mixture layer's weight at zero.

        Args:
            peaked: Whether prompts start with contrast.
        """
        super().start(peaked=peaked)
        self._mute()

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return two optimizer groups: the library rows and the mixture layer's bias.

        The other groups of PGN, the mixture layer's weight and the trunk, do not influence the
        prompt.
        """
        return super().prompt_groups(rates)[:2]

    def _mute(self) -> None:
        """Set the mixture layer's weight to zero and freeze it."""
        nn.init.zeros_(self.generator.mixture.weight)
        self.generator.mixture.weight.requires_grad_(False)
