"""What the endpoint will return, and the label mapping on top of it, as differentiable torch
functions.

They compute what ``labels.log_scores`` and ``labels.LabelMapping`` compute from real answers; tests
hold them equal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.mapping.probability import FLOOR


class TorchMapping(nn.Module):
    """A label mapping that can be trained along; only the linear kind has something to learn.

    Args:
        mapping: where it starts.
    """

    def __init__(self, mapping: LabelMapping) -> None:
        super().__init__()
        learns = not mapping.additive
        self.start = mapping
        self.weight = nn.Parameter(torch.from_numpy(mapping.weight).float(), requires_grad=learns)
        self.bias = nn.Parameter(torch.from_numpy(mapping.bias).float(), requires_grad=learns)

    def forward(self, features: Tensor) -> Tensor:
        """(B, S) log-probabilities → (B, C) log-probabilities."""
        if not self.start.additive:
            return (features @ self.weight + self.bias).log_softmax(dim=-1)
        mass = features.exp() @ self.weight
        p = (mass / mass.sum(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_min(FLOOR)
        return (p / p.sum(dim=-1, keepdim=True)).log()

    def mapping(self) -> LabelMapping:
        """Return what it is now, as plain NumPy."""
        weight, bias = (t.detach().cpu().double().numpy() for t in (self.weight, self.bias))
        return LabelMapping(self.start.kind, self.start.source, self.start.classes, weight, bias)
