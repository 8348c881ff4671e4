"""The label mapping as a differentiable torch module.

It computes the same as ``LabelMapping.log_probs``; tests compare the two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.mapping.probability import FLOOR


class TorchMapping(nn.Module):
    """A label mapping that is trained jointly with a prompt; only the linear kind has gradients.

    Args:
        mapping: Mapping to start from.
    """

    def __init__(self, mapping: LabelMapping) -> None:
        super().__init__()
        trainable = not mapping.additive
        self.start = mapping
        weight = torch.from_numpy(mapping.weight).float()
        bias = torch.from_numpy(mapping.bias).float()
        self.weight = nn.Parameter(weight, requires_grad=trainable)
        self.bias = nn.Parameter(bias, requires_grad=trainable)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S) log-probabilities → (B, C) log-probabilities."""
        if not self.start.additive:
            return (features @ self.weight + self.bias).log_softmax(dim=-1)

        # The first floor avoids a division by zero, the second the logarithm of zero.
        mass = features.exp() @ self.weight
        p = (mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_min(FLOOR)
        return (p / p.sum(dim=-1, keepdim=True)).log()

    def mapping(self) -> LabelMapping:
        """Return the current mapping, with NumPy arrays."""
        weight = self.weight.detach().cpu().double().numpy()
        bias = self.bias.detach().cpu().double().numpy()
        return LabelMapping(self.start.kind, self.start.source, self.start.classes, weight, bias)
