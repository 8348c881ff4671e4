"""Prompt inversion: prompt tokens → bounded RGB patches through the patch embedding.

The endpoint computes, at grid cell j, t_j = W norm(x_j) + b + e_j and always adds e_j itself. So a
token p that is meant to *replace* the patch token asks for W norm(x) + b = p, and one that is meant
to stand in the sequence as it is (as in published checkpoints, which add no position) asks for W
norm(x) + b = p - e_j: subtract ``position`` first.

(a) :func:`exact`: with a pixel library there is nothing to invert. (b) :func:`bounded`: least
squares under the gamut. (c) :func:`pseudo_inverse`: the minimum-norm solution, clipped. Routes (b)
and (c) are for latent libraries.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pgn_client.errors import ConfigurationError
from pgn_client.surrogate.patch_embedding import PatchEmbedding


def exact(weights: Tensor, patches: Tensor) -> Tensor:
    """Mix the rows of a pixel library.

    Args:
        weights: (B, K, L) float32, sum to 1 over L.
        patches: (L, 3, P, P) float32 in [0, 1], unit space.

    Returns:
        (B, K, 3, P, P) float32 in [0, 1], unit space. The patch embedding is affine and the weights
        sum to 1, so embedding these patches gives the same tokens as mixing the embedded rows: W
        norm(A T) + b = A (W norm(T) + b).
    """
    return torch.einsum("bkl,lchw->bkchw", weights, patches)


def gamut(embedding: PatchEmbedding) -> tuple[Tensor, Tensor]:
    """Return lo and hi, (3P²,) each: the normalised values of 0 and 255."""
    ones = torch.ones(3, embedding.patch_size, embedding.patch_size, device=embedding.weight.device)
    return embedding.normalise(ones * 0).flatten(), embedding.normalise(ones).flatten()


def pseudo_inverse(tokens: Tensor, embedding: PatchEmbedding) -> Tensor:
    """Minimum-norm solution x = W⁺(p - b), clipped to the gamut.

    Args:
        tokens: (..., D) float32, position embedding already subtracted where it applies.
        embedding: the endpoint's patch embedding.

    Returns:
        (..., 3, P, P) float32 in [0, 1], unit space. Before clipping it is exact where W has full
        row rank (3P² ≥ D is necessary); clipping is what wrecks it.
    """
    x = _least_norm(tokens, embedding)
    return _to_unit(_clip(x, embedding), embedding)


def unclipped(tokens: Tensor, embedding: PatchEmbedding) -> Tensor:
    """As :func:`pseudo_inverse` before it is clipped: (..., 3, P, P) float32 in unit space, mostly
    outside of [0, 1].

    No image can hold it; it shows that clipping, and not the inverse, is what loses.
    """
    return _unit(_least_norm(tokens, embedding), embedding)


def bounded(tokens: Tensor, embedding: PatchEmbedding, *, steps: int = 200) -> Tensor:
    """Minimise ‖W x + b - p‖² subject to lo ≤ x ≤ hi, by accelerated projected gradient.

    Starts at the clipped minimum-norm solution. Step 1/λ with λ the largest eigenvalue of WᵀW;
    momentum restarts where it points uphill (O'Donoghue and Candès 2015, arXiv 1204.3982), so that
    the error never ends above the start's.

    Args:
        tokens: (..., D) float32, position embedding already subtracted where it applies.
        embedding: the endpoint's patch embedding.
        steps: iterations.

    Returns:
        (..., 3, P, P) float32 in [0, 1], unit space.
    """
    W = embedding.weight.flatten(1)
    target = tokens - embedding.bias
    rate = 1 / embedding.largest_gain
    x = y = _clip(_least_norm(tokens, embedding), embedding)
    t = torch.ones_like(x[..., :1])
    for _ in range(steps):
        gradient = (y @ W.T - target) @ W
        new = _clip(y - rate * gradient, embedding)
        faster = (1 + (1 + 4 * t * t).sqrt()) / 2
        # of each token: none depends on its batch
        uphill = (gradient * (new - x)).sum(-1, keepdim=True) > 0
        y = torch.where(uphill, new, new + (t - 1) / faster * (new - x))
        t, x = torch.where(uphill, 1.0, faster), new
    return _to_unit(x, embedding)


ROUTES: dict[str, Callable[[Tensor, PatchEmbedding], Tensor]] = {
    "bounded": bounded,
    "pseudo_inverse": pseudo_inverse,
}


def route(name: str) -> Callable[[Tensor, PatchEmbedding], Tensor]:
    """Return an inversion of latent tokens by name.

    Raises:
        ConfigurationError: unknown.
    """
    if name not in ROUTES:
        raise ConfigurationError(f"inversion: got {name!r}, expected one of {', '.join(ROUTES)}")
    return ROUTES[name]


def reach(tokens: Tensor, embedding: PatchEmbedding) -> dict[str, float | None]:
    """Say how much of latent tokens pixels can reach.

    Args:
        tokens: (n, D) float32, position embedding already subtracted where it applies.
        embedding: the endpoint's patch embedding.

    Returns:
        ``norm`` and ``norm_most``, of the tokens without the bias, median and maximum;
        ``norm_of_pixels``, median for random patches; for each route the relative residual ‖W
        norm(x) + b - p‖ / ‖p - b‖, median and ``_most``; ``condition``, of W (``None`` where pixels
        cannot reach every direction).
    """
    noise = torch.rand(
        256, 3, *embedding.weight.shape[2:], generator=torch.Generator().manual_seed(0)
    )
    of_pixels = (embedding(noise.to(tokens.device)) - embedding.bias).norm(dim=-1)
    norms, values = (
        (tokens - embedding.bias).norm(dim=-1),
        torch.linalg.svdvals(embedding.weight.flatten(1)),
    )
    found = {"norm": norms.median(), "norm_most": norms.max(), "norm_of_pixels": of_pixels.median()}
    for name, invert in ROUTES.items():
        residual = (embedding(invert(tokens, embedding)) - tokens).norm(dim=-1) / norms.clamp_min(
            1e-6
        )
        found |= {name: residual.median(), f"{name}_most": residual.max()}
    rounded: dict[str, float | None] = {
        name: float(f"{value.item():.4g}") for name, value in found.items()
    }
    wide = embedding.weight[0].numel() >= embedding.width
    return rounded | {"condition": float(f"{values.max() / values.min():.4g}") if wide else None}


def _least_norm(tokens: Tensor, embedding: PatchEmbedding) -> Tensor:
    return (tokens - embedding.bias) @ embedding.inverse.T


def _clip(x: Tensor, embedding: PatchEmbedding) -> Tensor:
    lo, hi = gamut(embedding)
    return torch.maximum(torch.minimum(x, hi), lo)


def _to_unit(x: Tensor, embedding: PatchEmbedding) -> Tensor:
    """Normalised and flat → unit space, (..., 3, P, P), without what rounding of floats leaves
    outside of it.
    """
    return _unit(x, embedding).clamp(0, 1)


def _unit(x: Tensor, embedding: PatchEmbedding) -> Tensor:
    lo, hi = gamut(embedding)
    side = embedding.patch_size
    return torch.unflatten((x - lo) / (hi - lo), -1, (3, side, side))
