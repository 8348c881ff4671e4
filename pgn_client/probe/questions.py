"""Twenty questions: a finite list of hypotheses with weights, and the question that splits them best."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgn_client.probe.asking import Verdict

SAME, DIFFERENT, EITHER = 0, 1, 2  # what a hypothesis predicts of a pair of pictures

Weights = NDArray[np.float64]
Predictions = NDArray[np.int8]


def splits(weights: Weights, predictions: Predictions) -> NDArray[np.float64]:
    """Return, for (T, H) predictions of T questions, the weight of the smaller side, in [0, 1/2]."""
    total = max(float(weights.sum()), 1e-300)
    same, different = ((predictions == side) @ weights / total for side in (SAME, DIFFERENT))
    return np.asarray(np.minimum(same, different))


def updated(weights: Weights, prediction: Predictions, verdict: Verdict, *, doubt: float = 0.0) -> Weights:
    """Return the weights after an answer: hypotheses that predicted the other keep the share ``doubt``."""
    if verdict == "unclear":
        return weights
    wrong = DIFFERENT if verdict == "same" else SAME
    return np.where(prediction == wrong, weights * doubt, weights)
