"""IIP: one prompt for all images, the ablation that the PGN paper prints beside its method.

A PGN whose trunk says nothing to the mixture: the mixture's bias alone decides, so library, layout,
training and serving are the same and the comparison isolates input dependence. The trunk keeps its
local head.
"""

from __future__ import annotations

from torch import nn

from pgn_client.prompting.generator import PromptGenerator
from pgn_client.prompting.methods.base import Groups, Rates
from pgn_client.prompting.methods.pgn import PGN
from pgn_client.prompting.token_library import TokenLibrary


class InputIndependent(PGN):
    """PGN with mixture weights that do not depend on the image."""

    name = "input_independent"
    title = "IIP"
    sees_image = False

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator, library)
        self._mute()

    def start(self, *, peaked: bool) -> None:
        """As for PGN, but the trunk stays mute."""
        super().start(peaked=peaked)
        self._mute()

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return library and bias: trunk and mixture weights do not reach the prompt."""
        return super().prompt_groups(rates)[:2]

    def _mute(self) -> None:
        nn.init.zeros_(self.generator.mixture.weight)
        self.generator.mixture.weight.requires_grad_(False)
