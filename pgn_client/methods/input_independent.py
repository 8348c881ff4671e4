"""IIP: one prompt for all pictures, the ablation that the PGN paper prints beside its method.

A PGN whose trunk says nothing to the mixture: the mixture's bias alone decides, so library, layout, training and
serving are the same and the comparison isolates input dependence. The trunk keeps its local head.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from pgn_client.generator import PromptGenerator, TokenLibrary
from pgn_client.methods.pgn import PGN, Rates


class InputIndependent(PGN):
    """PGN with mixture weights that do not depend on the picture."""

    name = "input_independent"

    def __init__(self, generator: PromptGenerator, library: TokenLibrary) -> None:
        super().__init__(generator, library)
        self._mute()

    def start_peaked(self) -> None:
        """As for PGN, but the trunk stays mute."""
        super().start_peaked()
        self._mute()

    def parameter_groups(self, rates: Rates) -> list[dict[str, Any]]:
        """As for PGN, without the mixture's weights."""
        mute = self.generator.mixture.weight
        return [g for g in super().parameter_groups(rates) if not any(p is mute for p in g["params"])]

    def _mute(self) -> None:
        nn.init.zeros_(self.generator.mixture.weight)
        self.generator.mixture.weight.requires_grad_(False)
