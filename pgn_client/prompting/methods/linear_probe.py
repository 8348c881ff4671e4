"""Linear probe: multinomial logistic regression on the features of a local model.

It is the local rival of prompts. It never calls the endpoint, so it costs no queries for anyone who
has the local model's weights. A prompt must beat it to be worth its queries.
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
    """Return the backbone's pooled features of images, (n, D) float64.

    Args:
        backbone: The local model.
        pixels: Images at the model's input size, (n, 3, H, W) uint8.
    """
    device = backbone.device
    # The probe is compared with prompts that are measured in float32, so it gets no TF32 features.
    with float32_convolutions():
        parts = [backbone.features(batch.to(device)).cpu() for batch in pixels.split(BATCH)]
    return torch.cat(parts).double().numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted linear classifier on standardized features.

    Attributes:
        mean: Mean of the training features, (D,).
        scale: Standard deviation of the training features plus 1e-6, (D,).
        weight: Weight of the classifier, (D, C).
        bias: Bias of the classifier, (C,).
    """

    mean: Floats
    scale: Floats
    weight: Floats
    bias: Floats

    @classmethod
    def fit(
        cls, x: Floats, y: Integers, classes: int, *, copies: int = 1, seed: int = 0
    ) -> LinearProbe:
        """Fit a linear probe to features; cross-validation chooses the L2 strength.

        Args:
            x: Features, (n, D).
            y: Class indices, (n,).
            classes: Number of classes, C.
            copies: Number of blocks in ``x``, each with one version of the same images in the same
                order. All versions of an image are in the same fold.
            seed: Seed for the split into folds.
        """
        mean = x.mean(axis=0)
        scale = x.std(axis=0) + 1e-6  # Not 0 for a constant feature.
        fitted = logistic_regression_cv((x - mean) / scale, y, classes, seed=seed, copies=copies)
        return cls(mean, scale, fitted.weight, fitted.bias)

    def log_probs(self, x: Floats) -> Floats:
        """Return the log-probabilities of the C classes, (n, C), for (n, D) features."""
        return log_softmax((x - self.mean) / self.scale @ self.weight + self.bias)
