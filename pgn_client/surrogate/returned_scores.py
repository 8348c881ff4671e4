"""The scores that the endpoint returns (top k, rounded), as a differentiable torch function."""

from __future__ import annotations

import torch
from torch import Tensor

from pgn_client.mapping.probability import FLOOR


def returned_scores(
    logits: Tensor, *, top_k: int | None = None, decimals: int | None = None
) -> Tensor:
    """Turn a backbone's logits into the log-probabilities that the label mapping reads.

    Args:
        logits: Logits of the backbone, (B, S) float.
        top_k: Number of labels that the endpoint returns; ``None`` for all. The residual mass is
            spread over the other labels.
        decimals: Decimals to which the endpoint rounds probabilities; ``None`` for no rounding.
            Gradients pass straight through the rounding.

    Returns:
        (B, S) float32 log-probabilities, the same as ``mapping.label_mapping.log_scores`` makes of
        the endpoint's answer.
    """
    exact = logits.float().softmax(dim=-1)

    p = exact
    if decimals is not None:
        # The value of p is rounded, and its gradient is that of the exact probabilities.
        p = p + (p.round(decimals=decimals) - p).detach()

    if top_k is not None and top_k < p.shape[-1]:
        # A server ranks labels before it rounds, so the ranking uses the exact probabilities.
        p = _top(p, exact.topk(top_k, dim=-1).indices)

    # Rounding can turn all probabilities of an image to 0; dividing by 1 then avoids NaN.
    total = p.sum(dim=-1, keepdim=True)
    p = (p / torch.where(total > 0, total, 1.0)).clamp_min(FLOOR)
    return (p / p.sum(dim=-1, keepdim=True)).log()


def _top(p: Tensor, index: Tensor) -> Tensor:
    """Return (B, S) probabilities: those at ``index`` kept, the rest spread over other labels."""
    best = p.gather(-1, index)
    others = p.shape[-1] - index.shape[-1]
    rest = (1 - best.sum(dim=-1, keepdim=True)).clamp_min(0) / others

    # As in `log_scores`: a label that is not returned gets at most the smallest returned one.
    filled = torch.minimum(rest, best.amin(dim=-1, keepdim=True)).expand_as(p)
    return filled.scatter(-1, index, best)
