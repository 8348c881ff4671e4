"""After the last epoch: measure in latent space and as uint8 pictures, refit the mapping, choose α, fill the card."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pgn_client import labels
from pgn_client.adapter import PromptAdapter
from pgn_client.compositor import compose
from pgn_client.generator import generator_input
from pgn_client.labels import LabelMapping
from pgn_client.methods import PGN
from pgn_client.statistics import best_fusion, fuse
from pgn_client.training.data import Examples
from pgn_client.training.run import Run
from pgn_client.training.surrogate import Surrogate, float32_convolutions

EVALUATION_BATCH = 64
Floats = NDArray[np.float64]


@torch.inference_mode()
def log_probs(
    model: PGN, mapping: nn.Module, surrogate: Surrogate, examples: Examples, resolution: int
) -> tuple[Tensor, Tensor]:
    """Return (n, C) log-probabilities of the prompted surrogate in the latent space, and of the local head."""
    model.eval()
    both = []
    for pictures, _ in examples.batches(EVALUATION_BATCH):
        weights, local = model(generator_input(pictures, resolution))
        prompts = model.prompt_tokens(weights, surrogate.backbone.embedding)
        both.append((mapping(surrogate.scores(pictures, prompts)), local.float().log_softmax(dim=-1)))
    return torch.cat([p for p, _ in both]), torch.cat([q for _, q in both])


@torch.inference_mode()
def deployed_features(adapter: PromptAdapter, surrogate: Surrogate, examples: Examples) -> tuple[Floats, Floats]:
    """Send uint8 canvases through the surrogate: (n, S) log-probabilities, and (n, C) of the local head."""
    features, opinions = [], []
    for pictures, _ in examples.batches(EVALUATION_BATCH):
        fitted = pictures.permute(0, 2, 3, 1).cpu().numpy()
        patches, local = adapter.render(fitted)
        canvases = [compose(p, q, surrogate.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)]
        pixels = torch.from_numpy(np.stack([np.asarray(c) for c in canvases])).permute(0, 3, 1, 2)
        features.append(surrogate.pixel_scores(pixels.to(pictures.device)).cpu().double().numpy())
        opinions.append(local)
    return np.concatenate(features), np.concatenate(opinions)


@torch.inference_mode()
def perplexity(model: PGN, examples: Examples, resolution: int) -> float:
    """Mean perplexity of the mixtures, in rows: 1 picks single rows, L mixes all alike (flat grey)."""
    model.eval()
    entropies = []
    for pictures, _ in examples.batches(EVALUATION_BATCH):
        weights, _local = model(generator_input(pictures, resolution))
        entropies.append(torch.special.entr(weights).sum(-1).mean(1))
    return torch.cat(entropies).mean().exp().item()


def finish(
    card: dict[str, Any], run: Run, surrogate: Surrogate, train: Examples, val: Examples, seed: int
) -> PromptAdapter:
    """Refit the mapping on prompted answers, choose α, measure, and write it all on the card; validation decides."""
    resolution = card["generator"]["resolution"]
    mapping = run.mapping.mapping()
    draft = assemble(card, run.model, mapping, surrogate, fusion=0.0)
    with float32_convolutions():
        latent, _ = log_probs(run.model, run.mapping, surrogate, val, resolution)
        features, _ = deployed_features(draft, surrogate, train)
        val_features, opinions = deployed_features(draft, surrogate, val)
    targets, val_targets = (x.targets.cpu().numpy() for x in (train, val))
    refitted = labels.fit(features, targets, mapping.source, mapping.classes, kinds=(mapping.kind,), seed=seed).mapping
    mapping = min((mapping, refitted), key=lambda m: _nll(m.log_probs(val_features), val_targets))
    deployed = mapping.log_probs(val_features)
    alpha = best_fusion(deployed, opinions, val_targets)
    n = run.best["epoch"] if run.best else 0
    card = card | {
        "metrics": {
            "split": "val",
            "n": len(val),
            "epoch": n,
            "latent": _accuracy(latent.cpu().numpy(), val_targets),
            "uint8": _accuracy(deployed, val_targets),
            "local": _accuracy(opinions, val_targets),
            "fused": _accuracy(fuse(deployed, opinions, alpha), val_targets),
            "mapping": "refitted" if mapping is refitted else "trained jointly",
            "perplexity": perplexity(run.model, val, resolution),
            "history": run.history,
        }
    }
    return assemble(card, run.model, mapping, surrogate, fusion=alpha)


def assemble(
    card: dict[str, Any], model: PGN, mapping: LabelMapping, surrogate: Surrogate, *, fusion: float
) -> PromptAdapter:
    """Put card, model and mapping together; a latent library takes the patch embedding along for its inversion."""
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
    tensors |= {f"mapping.{k}": v for k, v in mapping.arrays().items()}
    if card["inversion"] != "exact":
        embedding = surrogate.backbone.embedding
        tensors |= {"embedding.weight": embedding.weight.cpu().numpy(), "embedding.bias": embedding.bias.cpu().numpy()}
    return PromptAdapter(card | {"mapping": mapping.card(), "fusion": fusion}, tensors)


def _nll(log_p: Floats, targets: np.typing.NDArray[np.int64]) -> float:
    return float(-log_p[np.arange(len(targets)), targets].mean())


def _accuracy(log_p: Floats, targets: np.typing.NDArray[np.int64]) -> float:
    return float((log_p.argmax(axis=1) == targets).mean())
