"""What the endpoint will return of its scores (top k, rounded), as a differentiable torch
function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pgn_client.mapping.probability import FLOOR


def returned_scores(
    logits: Tensor, *, top_k: int | None = None, decimals: int | None = None
) -> Tensor:
    """Turn a backbone's logits into the features that its answers will give.

    Args:
        logits: (B, S) float.
        top_k: how many labels the endpoint returns; ``None`` for all. The residual mass is spread
            over the others.
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
    # all zero where rounding leaves nothing
    p = (p / torch.where(total > 0, total, 1.0)).clamp_min(FLOOR)
    return (p / p.sum(dim=-1, keepdim=True)).log()


def _top(p: Tensor, index: Tensor) -> Tensor:
    best, k = p.gather(-1, index), index.shape[-1]
    rest = (1 - best.sum(dim=-1, keepdim=True)).clamp_min(0) / (p.shape[-1] - k)
    filled = torch.minimum(rest, best.amin(dim=-1, keepdim=True)).expand_as(p)
    return filled.scatter(-1, index, best)
