"""The label mapping, from endpoint labels to task classes, as a differentiable torch module.

It computes the same as ``LabelMapping.log_probs`` in NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.mapping.probability import FLOOR


class TorchMapping(nn.Module):
    """A label mapping for training: it turns scores of endpoint labels into task classes.

    Only the linear kind has gradients and is trained jointly with the prompt.

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
        """Return log-probabilities of the task's classes, (B, C).

        Args:
            features: Log-probabilities of the S endpoint labels, or S features of a white-box
                method, (B, S).
        """
        if not self.start.additive:
            return (features @ self.weight + self.bias).log_softmax(dim=-1)

        # The first floor avoids a division by zero, the second the logarithm of zero.
        mass = features.exp() @ self.weight
        p = (mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_min(FLOOR)
        return (p / p.sum(dim=-1, keepdim=True)).log()

    def mapping(self) -> LabelMapping:
        """Return a copy of the label mapping with its current parameters, as NumPy arrays."""
        weight = self.weight.detach().cpu().double().numpy()
        bias = self.bias.detach().cpu().double().numpy()
        return LabelMapping(self.start.kind, self.start.source, self.start.classes, weight, bias)
