"""One cell of ``transfer.py`` once more, over HTTP: ``pgn serve`` hosts the model, the client sends
PNG images.

The bank's answers were computed in process, on the canvases themselves. Over HTTP, an image passes
the codec, the margin that the server's crop removes, and the server's own resize, crop and
normalization, written independently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from answer_bank import Bank
from transfer_summary import LITE0, VIT, arm_name

from pgn_client import AdaptedClient, PromptAdapter
from pgn_client.evaluation.demo import local_server
from pgn_client.mapping.label_mapping import log_scores

if TYPE_CHECKING:
    from transfer import Cell, Models

PAIR = (VIT, LITE0)


def repeat(cell: Cell, bank: Bank, models: Models) -> str:
    """Send the test images of a cell raw and with the PGN's prompts; compare the answers with the
    bank's.

    Args:
        cell: Set and seed; its answers for ViT-Tiny -> EfficientNet-Lite0 must be in the bank.
        bank: The answer bank.
        models: The hosted model's weights and preprocessing.

    Returns:
        One line for each arm: the share of test images with the same best label, and the largest
            difference of a
        log-probability among the labels above 1 %.
    """
    surrogate, hosted = PAIR
    backbone = models.by_name[hosted]
    weights = models.hosted / f"{hosted}.safetensors"
    pgn = PromptAdapter.load(bank.path(cell.location, f"{surrogate}/pgn", ".safetensors"))
    lines = []
    with local_server(["--model", hosted, "--weights", str(weights)]) as url:
        for arm, adapter in (("raw", None), ("pgn", pgn.with_profile(backbone.profile))):
            with AdaptedClient(url, adapter) as client:
                answers = client.answers(cell.task.test.paths)
            over_http = log_scores(answers, backbone.labels)
            banked = bank.get(cell.location, arm_name(PAIR, arm))["test"]
            same = over_http.argmax(axis=1) == banked.argmax(axis=1)
            gap = np.abs(over_http - banked)[np.exp(banked) > 0.01].max()
            share = f"same label on {same.mean():.2%} of {len(same)} test images"
            lines.append(f"{arm}: {share}, log-scores within {gap:.2g}")
    return "\n".join(lines)
