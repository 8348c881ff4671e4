"""After the last epoch: measure in latent space and as uint8 images, refit the mapping, choose α,
fill the card.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pgn_client.arrays import Floats, Integers
from pgn_client.checkpoint.card import (
    Card,
    MappingCard,
    MetricsCard,
    PartCard,
    ReachCard,
    RecipeCard,
)
from pgn_client.imaging.compositor import compose
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, fuse
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.mapping.probability import log_loss
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import generator_input
from pgn_client.prompting.inversion import reach
from pgn_client.prompting.methods import PGN, Method, Rates
from pgn_client.surrogate.backbone import float32_convolutions
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training.augment import Augmentation, copies, none
from pgn_client.training.examples import Examples
from pgn_client.training.run import Run

EVALUATION_BATCH = 64


@torch.inference_mode()
def log_probs(
    model: Method, mapping: nn.Module, surrogate: Surrogate, examples: Examples, resolution: int
) -> Tensor:
    """Return (n, C) log-probabilities of the prompted surrogate, as training computes them: over
    its wire, if any.
    """
    mapped: Tensor = mapping(outputs(model, surrogate, examples, resolution))
    return mapped


@torch.inference_mode()
def outputs(
    model: Method,
    surrogate: Surrogate,
    examples: Examples,
    resolution: int,
    augmented: Augmentation = none,
) -> Tensor:
    """Return (n, S) of what the mapping reads, as training computes it."""
    model.eval()
    parts = []
    with float32_convolutions():
        for originals, _ in examples.batches(EVALUATION_BATCH):
            images = augmented(originals)
            code, _local = model(generator_input(images, resolution))
            parts.append(model.scores(code, images, surrogate))
    return torch.cat(parts)


@torch.inference_mode()
def deployed_features(
    adapter: PromptAdapter, surrogate: Surrogate, examples: Examples, augmented: Augmentation = none
) -> tuple[Floats, Floats]:
    """Send uint8 canvases through the surrogate: (n, S) log-probabilities, and (n, C) of the local
    head.
    """
    features, opinions = [], []
    for originals, _ in examples.batches(EVALUATION_BATCH):
        images = augmented(originals)
        fitted = images.permute(0, 2, 3, 1).cpu().numpy()
        patches, local = adapter.render(fitted)
        canvases = [
            compose(p, q, surrogate.canvas, margin=False)
            for p, q in zip(fitted, patches, strict=True)
        ]
        pixels = torch.from_numpy(np.stack([np.asarray(c) for c in canvases])).permute(0, 3, 1, 2)
        features.append(surrogate.pixel_scores(pixels.to(images.device)).cpu().double().numpy())
        opinions.append(local)
    return np.concatenate(features), np.concatenate(opinions)


@torch.inference_mode()
def perplexity(model: Method, examples: Examples, resolution: int) -> float | None:
    """Mean perplexity of the mixtures, in rows: 1 picks single rows, L mixes all alike (flat
    grey).
    """
    if not isinstance(model, PGN):
        return None
    model.eval()
    entropies = []
    for images, _ in examples.batches(EVALUATION_BATCH):
        weights, _local = model(generator_input(images, resolution))
        entropies.append(torch.special.entr(weights).sum(-1).mean(1))
    return torch.cat(entropies).mean().exp().item()


def finish(
    card: Card,
    run: Run,
    surrogate: Surrogate,
    train: Examples,
    val: Examples,
    augmented: Augmentation,
) -> PromptAdapter:
    """Refit the mapping on prompted answers, choose α, measure, and write it all on the card;
    validation decides.

    The mapping is the one that was trained along, a fit on the answers to prompted training
    images, or one on those and on the answers to augmented copies of each (what the raw rival is
    allowed as well).
    """
    resolution = card.resolution
    recipe = card.recipe or RecipeCard()
    mapping = run.mapping.mapping()
    draft = assemble(card, run.model, mapping, surrogate, fusion=0.0)
    with float32_convolutions():
        latent = log_probs(run.model, run.mapping, surrogate, val, resolution)
        features, _ = deployed_features(draft, surrogate, train)
        again = range(copies(recipe.augment))
        versions = [
            features,
            *(deployed_features(draft, surrogate, train, augmented)[0] for _ in again),
        ]
        val_features, opinions = deployed_features(draft, surrogate, val)
    targets, val_targets = (x.targets.cpu().numpy() for x in (train, val))
    kinds = labels.AUTO if recipe.mapping == "auto" else (mapping.kind,)
    val_answers = val_features, val_targets
    chosen, mapping = last_mapping(
        mapping, versions, targets, val_answers, kinds=kinds, seed=card.seed or 0
    )
    deployed = mapping.log_probs(val_features)
    alpha, fused = _fused(deployed, opinions, val_targets)
    metrics = MetricsCard(
        n=len(val),
        epoch=run.best["epoch"] if run.best else 0,
        latent=_accuracy(latent.cpu().numpy(), val_targets),
        uint8=_accuracy(deployed, val_targets),
        local=_accuracy(opinions, val_targets),
        fused=fused,
        mapping=chosen,
        perplexity=perplexity(run.model, val, resolution),
        history=tuple(run.history),
    )
    card = replace(
        card,
        learnable=learnable(run.model, mapping.weight.size + mapping.bias.size),
        metrics=metrics,
    )
    if isinstance(run.model, PGN) and card.inversion != "exact":
        embedding = surrogate.backbone.embedding
        reached = reach(run.model.library.tokens(embedding).detach(), embedding)
        card = replace(card, reach=ReachCard.from_json(reached))
    if card.data is not None and card.data.parts:
        parts = {
            name: _part(metrics, name, mapping.classes, deployed, opinions, val_targets)
            for name in card.data.parts
        }
        card = replace(card, parts=parts)
    return assemble(card, run.model, mapping, surrogate, fusion=alpha)


def last_mapping(
    mapping: LabelMapping,
    versions: Sequence[Floats],
    targets: Integers,
    val: tuple[Floats, Integers],
    *,
    kinds: Sequence[str],
    seed: int,
) -> tuple[str, LabelMapping]:
    """Choose on validation: the mapping trained along, a fit on (n, S) features, or on those and
    augmented copies.

    Args:
        mapping: trained along.
        versions: (n, S) features of the training images, then of each augmented copy of them.
        targets: (n,) class indices.
        val: features and targets of the validation images.
        kinds: of mapping that may be fitted.
        seed: of the folds.

    Returns:
        What was chosen, in words, and the mapping.
    """
    if mapping.kind == "flm":
        return "fitted once", mapping

    def refitted(parts: Sequence[Floats]) -> LabelMapping:
        x, y, source, classes = (
            np.concatenate(parts),
            np.tile(targets, len(parts)),
            mapping.source,
            mapping.classes,
        )
        return labels.fit(
            x, y, source, classes, val=val, kinds=kinds, copies=len(parts), seed=seed
        ).mapping

    fits = {
        "trained jointly": mapping,
        "refitted": refitted(versions[:1]),
        "refitted with augmented copies": refitted(versions),
    }
    chosen = min(fits, key=lambda name: log_loss(fits[name].log_probs(val[0]), val[1]))
    return chosen, fits[chosen]


def _part(
    metrics: MetricsCard,
    name: str,
    classes: tuple[str, ...],
    deployed: Floats,
    opinions: Floats,
    targets: Integers,
) -> PartCard:
    """What the card tells of one task of a union: its own α, and its images measured among its
    own classes alone.
    """
    columns = np.array([i for i, label in enumerate(classes) if label.startswith(f"{name}/")])
    rows = np.isin(targets, columns)
    own = np.searchsorted(columns, targets[rows])
    prompted, local = deployed[rows][:, columns], opinions[rows][:, columns]
    alpha, fused = _fused(prompted, local, own)
    measured = replace(
        metrics,
        n=len(own),
        uint8=_accuracy(prompted, own),
        local=_accuracy(local, own),
        fused=fused,
        # those of the union alone
        latent=None,
        history=None,
    )
    return PartCard(alpha, measured)


def _fused(deployed: Floats, opinions: Floats, targets: Integers) -> tuple[float, float]:
    """Choose α on validation; return it with the accuracy it gives there."""
    alpha = best_fusion(deployed, opinions, targets)
    return alpha, _accuracy(fuse(deployed, opinions, alpha), targets)


def learnable(model: Method, mapping: int) -> dict[str, int]:
    """Return how many numbers were trained: of the prompt, of the mapping that reads it, of what is
    local beside it.
    """
    rates = Rates(0, 0, 0, 0, 0)
    everything = sum(p.numel() for group in model.parameter_groups(rates) for p in group["params"])
    prompt = model.learnable()
    return {"prompt": prompt, "mapping": mapping, "local": everything - prompt}


def assemble(
    card: Card,
    model: Method,
    mapping: LabelMapping,
    surrogate: Surrogate,
    *,
    fusion: float,
) -> PromptAdapter:
    """Put card, model and mapping together; a latent library takes the patch embedding along for
    its inversion.
    """
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
    tensors |= {f"mapping.{k}": v for k, v in mapping.arrays().items()}
    if card.inversion != "exact":
        embedding = surrogate.backbone.embedding
        tensors |= {
            "embedding.weight": embedding.weight.cpu().numpy(),
            "embedding.bias": embedding.bias.cpu().numpy(),
        }
    whole = replace(card, mapping=MappingCard.from_json(mapping.card()), fusion=fusion)
    return PromptAdapter(whole, tensors)


def _accuracy(log_p: Floats, targets: Integers) -> float:
    return float((log_p.argmax(axis=1) == targets).mean())
