"""What the endpoint will return, and the label mapping on top of it, as differentiable torch functions.

They compute what ``labels.log_scores`` and ``labels.LabelMapping`` compute from real answers; tests hold them equal.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.mapping.logistic_regression import FLOOR


def returned_scores(logits: Tensor, *, top_k: int | None = None, decimals: int | None = None) -> Tensor:
    """Turn a backbone's logits into the features that its answers will give.

    Args:
        logits: (B, S) float.
        top_k: how many labels the endpoint returns; ``None`` for all. The residual mass is spread over the others.
        decimals: how it rounds probabilities; rounding passes gradients straight through.

    Returns:
        (B, S) float32 log-probabilities, as of ``labels.log_scores``.
    """
    exact = p = logits.float().softmax(dim=-1)
    if decimals is not None:
        p = p + (p.round(decimals=decimals) - p).detach()
    if top_k is not None and top_k < p.shape[-1]:
        p = _top(p, exact.topk(top_k, dim=-1).indices)  # a server ranks first, then rounds
    total = p.sum(dim=-1, keepdim=True)
    p = (p / torch.where(total > 0, total, 1.0)).clamp_min(FLOOR)  # all zero where rounding leaves nothing
    return (p / p.sum(dim=-1, keepdim=True)).log()


def _top(p: Tensor, index: Tensor) -> Tensor:
    best, k = p.gather(-1, index), index.shape[-1]
    rest = (1 - best.sum(dim=-1, keepdim=True)).clamp_min(0) / (p.shape[-1] - k)
    filled = torch.minimum(rest, best.amin(dim=-1, keepdim=True)).expand_as(p)
    return filled.scatter(-1, index, best)


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
