"""Few-shot semantic segmentation with EXPRES prompts, and a linear baseline.

EXPRES adds learned prompt tokens and residuals inside a frozen vision transformer.
"""

from __future__ import annotations

from pgn_client.segmentation.episodes import Episode, sample
from pgn_client.segmentation.iou import IGNORED, mean_iou
from pgn_client.segmentation.linear import LinearHead, fit_linear, patch_tokens, versions
from pgn_client.segmentation.mask_prompts import MaskPrompts
from pgn_client.segmentation.masks import Masked, load_masked
from pgn_client.segmentation.train import Numbers, fit_prompts, tuned

__all__ = [
    "IGNORED",
    "Episode",
    "LinearHead",
    "MaskPrompts",
    "Masked",
    "Numbers",
    "fit_linear",
    "fit_prompts",
    "load_masked",
    "mean_iou",
    "patch_tokens",
    "sample",
    "tuned",
    "versions",
]
