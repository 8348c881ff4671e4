"""Linear probe: multinomial logistic regression on the surrogate's own features. White box, and the
local rival.

It never asks the endpoint, so whoever holds the surrogate's weights can serve it for nothing: a
prompt must beat it to be worth its queries.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pgn_client.arrays import Floats, Integers
from pgn_client.mapping.logistic_regression import logistic_regression_cv
from pgn_client.mapping.probability import log_softmax
from pgn_client.surrogate.backbone import Backbone, float32_convolutions

BATCH = 64


@torch.inference_mode()
def features(backbone: Backbone, pixels: Tensor) -> Floats:
    """(n, 3, H, W) uint8 images at the model's size → (n, D) pooled features."""
    device = backbone.device
    with float32_convolutions():
        parts = [backbone.features(x.to(device)).cpu() for x in pixels.split(BATCH)]
    return torch.cat(parts).double().numpy()


@dataclass(frozen=True)
class LinearProbe:
    """Fitted weights on standardised features.

    Attributes:
        mean, scale: (D,) of the training features.
        weight: (D, C). bias: (C,).
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    @classmethod
    def fit(
        cls, x: Floats, y: Integers, classes: int, *, copies: int = 1, seed: int = 0
    ) -> LinearProbe:
        """Fit on (n, D) features and (n,) class indices; the L2 strength is chosen by
        cross-validation.

        Of ``copies`` blocks of versions of the same images, no fold parts the versions of one.
        """
        mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        fitted = logistic_regression_cv((x - mean) / scale, y, classes, seed=seed, copies=copies)
        return cls(mean, scale, fitted.weight, fitted.bias)

    def log_probs(self, x: Floats) -> Floats:
        """(n, D) features → (n, C) log-probabilities."""
        return log_softmax((x - self.mean) / self.scale @ self.weight + self.bias)
