"""The last stage of training: fit the label mapping again, choose α, and measure the accuracy.

α is the weight of the local head, a small classifier that is fused with the endpoint's scores. The
results are written to the card, the checkpoint's metadata. Accuracy is measured on the validation
images in two ways: with float prompts, as training computes them, and on the uint8 images that a
client sends.
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
"""Number of images in a forward pass without gradients.

It only limits memory: in evaluation mode, no image's scores depend on the others in its batch.
"""


@torch.inference_mode()
def log_probs(
    model: Method, mapping: nn.Module, surrogate: Surrogate, examples: Examples, resolution: int
) -> Tensor:
    """Return a task's class log-probabilities for prompted images, as training computes them.

    If the surrogate simulates image degradation on the way to the server, it is applied here too.

    Returns:
        (n, C) float32 log-probabilities, C classes of the task.
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
    """Return the features of prompted images that the label mapping reads.

    They are computed as in training, without rounding the prompts to uint8.

    Returns:
        (n, S) features: log-probabilities of the S endpoint labels, or the S features of a
        white-box method.
    """
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
    """Compute the surrogate's answers to prompted uint8 images, as a client sends them.

    Returns:
        (n, S) float64 log-probabilities of the surrogate's S labels, and (n, C) float64
        log-probabilities of the local head for the C classes of the task.
    """
    features = []
    local_log_probs = []
    for originals, _ in examples.batches(EVALUATION_BATCH):
        images = augmented(originals)
        fitted = images.permute(0, 2, 3, 1).cpu().numpy()
        patches, local = adapter.render(fitted)
        # Without the margin, because the surrogate takes what the server's crop leaves.
        canvases = [
            np.asarray(compose(image, patch, surrogate.canvas, margin=False))
            for image, patch in zip(fitted, patches, strict=True)
        ]

        pixels = torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2)
        scores = surrogate.pixel_scores(pixels.to(images.device))
        features.append(scores.cpu().double().numpy())
        local_log_probs.append(local)
    return np.concatenate(features), np.concatenate(local_log_probs)


@torch.inference_mode()
def perplexity(model: Method, examples: Examples, resolution: int) -> float | None:
    """Return how many rows of the token library a prompt token mixes: the mean perplexity.

    At 1, every prompt token is a single row of the library. At L, the number of rows, every token
    mixes all rows equally, which gives flat gray.

    Returns:
        Mean perplexity of the mixture weights over the images; ``None`` for a method that mixes no
        library.
    """
    if not isinstance(model, PGN):
        return None
    model.eval()
    entropies = []
    for images, _ in examples.batches(EVALUATION_BATCH):
        weights, _local = model(generator_input(images, resolution))
        entropies.append(torch.special.entr(weights).sum(-1).mean(1))
    # As usual for a perplexity, the entropies are averaged, not their exponentials.
    return torch.cat(entropies).mean().exp().item()


def finish(
    card: Card,
    run: Run,
    surrogate: Surrogate,
    train: Examples,
    val: Examples,
    augmented: Augmentation,
) -> PromptAdapter:
    """Choose the label mapping and α, measure the result, and return the finished adapter.

    There are three candidates for the mapping: the one trained jointly with the prompt, a fit to
    the surrogate's answers to the prompted training images, and a fit to those answers and the
    answers to augmented copies. The validation images decide among them. They also choose α, the
    weight of the local head, a small classifier that is fused with the endpoint's scores.

    Args:
        card: Card (the checkpoint's metadata) of the run before training.
        run: The finished run, set back to its best epoch.
        surrogate: The surrogate, in float32 and without random degradation.
        train: Training images and targets.
        val: Validation images and targets.
        augmented: Augmentation of the recipe, for the copies.

    Returns:
        The adapter, with mapping, α and metrics on its card.
    """
    resolution = card.resolution
    # fit puts a recipe on every card; the empty one is for the type checker only.
    recipe = card.recipe or RecipeCard()
    mapping = run.mapping.mapping()
    # The draft only renders prompts, so its mapping and its α do not matter.
    draft = assemble(card, run.model, mapping, surrogate, fusion=0.0)
    targets = train.targets.cpu().numpy()
    val_targets = val.targets.cpu().numpy()

    with float32_convolutions():
        # With the mapping trained jointly, as training computed it; uint8 has the chosen mapping.
        latent = log_probs(run.model, run.mapping, surrogate, val, resolution)
        features, _ = deployed_features(draft, surrogate, train)
        versions = [features]
        for _ in range(copies(recipe.augment)):
            augmented_features, _ = deployed_features(draft, surrogate, train, augmented)
            versions.append(augmented_features)
        val_features, local = deployed_features(draft, surrogate, val)

    # The jointly trained kind was chosen on neutral canvases; prompted ones may need another kind.
    kinds = labels.AUTO if recipe.mapping == "auto" else (mapping.kind,)
    chosen, mapping = last_mapping(
        mapping,
        versions,
        targets,
        (val_features, val_targets),
        kinds=kinds,
        seed=card.seed or 0,
    )
    deployed = mapping.log_probs(val_features)
    alpha, fused = _fused(deployed, local, val_targets)

    metrics = MetricsCard(
        n=len(val),
        epoch=run.best["epoch"] if run.best else 0,
        latent=_accuracy(latent.cpu().numpy(), val_targets),
        uint8=_accuracy(deployed, val_targets),
        local=_accuracy(local, val_targets),
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
        tokens = run.model.library.tokens(embedding).detach()
        card = replace(card, reach=ReachCard.from_json(reach(tokens, embedding)))
    if card.data is not None and card.data.parts:
        parts = {
            name: _part(metrics, name, mapping.classes, deployed, local, val_targets)
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
    """Choose the final label mapping by its log-loss on the validation images.

    The candidates are the mapping trained jointly with the prompt, a fit on the training images,
    and a fit on those and their augmented copies. An ``flm`` mapping (frequency label mapping)
    stays as it was first fitted.

    Args:
        mapping: Mapping trained jointly with the prompt.
        versions: Features of the training images, (n, S), S features per image; then an array of
            the same shape for each augmented copy of all images.
        targets: (n,) class indices of the training images.
        val: Features (m, S) and class indices (m,) of the validation images.
        kinds: Kinds of mapping that a refit may choose among.
        seed: Seed for the cross-validation folds.

    Returns:
        A description of the choice for the card, and the mapping.
    """
    if mapping.kind == "flm":
        return "fitted once", mapping

    def refitted(parts: Sequence[Floats]) -> LabelMapping:
        fitted = labels.fit(
            np.concatenate(parts),
            np.tile(targets, len(parts)),
            mapping.source,
            mapping.classes,
            val=val,
            kinds=kinds,
            copies=len(parts),
            seed=seed,
        )
        return fitted.mapping

    fits = {
        "trained jointly": mapping,
        "refitted": refitted(versions[:1]),
        "refitted with augmented copies": refitted(versions),
    }
    val_features, val_targets = val
    # Without copies both refits are equal; min takes the first, which names no copies on the card.
    chosen = min(fits, key=lambda name: log_loss(fits[name].log_probs(val_features), val_targets))
    return chosen, fits[chosen]


def _part(
    metrics: MetricsCard,
    name: str,
    classes: tuple[str, ...],
    deployed: Floats,
    local: Floats,
    targets: Integers,
) -> PartCard:
    """Measure one task of a checkpoint that serves several tasks.

    Only the task's own images count, and only its own classes compete.

    Returns:
        The task's entry for the card, the checkpoint's metadata: its α (the weight of the local
        head) and its metrics.
    """
    # In a union, classes are named PART/CLASS.
    columns = np.array([i for i, label in enumerate(classes) if label.startswith(f"{name}/")])
    rows = np.isin(targets, columns)
    # The columns are sorted, so the position of a target among them is its class in the part.
    part_targets = np.searchsorted(columns, targets[rows])
    # These probabilities no longer sum to 1: argmax does not need it, and fuse normalizes again.
    part_deployed = deployed[rows][:, columns]
    part_local = local[rows][:, columns]
    alpha, fused = _fused(part_deployed, part_local, part_targets)

    measured = replace(
        metrics,
        n=len(part_targets),
        uint8=_accuracy(part_deployed, part_targets),
        local=_accuracy(part_local, part_targets),
        fused=fused,
        # These two are measured for the whole union only.
        latent=None,
        history=None,
    )
    return PartCard(alpha, measured)


def _fused(deployed: Floats, local: Floats, targets: Integers) -> tuple[float, float]:
    """Choose α, the weight of the local head in the fused score, on the validation images.

    Returns:
        α, and the accuracy of the fused scores on the validation images.
    """
    alpha = best_fusion(deployed, local, targets)
    return alpha, _accuracy(fuse(deployed, local, alpha), targets)


def learnable(model: Method, mapping: int) -> dict[str, int]:
    """Count the trained parameters of a method and its label mapping.

    Args:
        model: The trained method.
        mapping: Number of parameters of the label mapping.

    Returns:
        The counts under ``prompt``, ``mapping`` and ``local``. The last are the parameters that
        serve only the local head, the small classifier beside the prompt.
    """
    # Parameters are only counted here, so their learning rates do not matter.
    groups = model.parameter_groups(Rates(0, 0, 0, 0, 0))
    in_model = 0
    for group in groups:
        in_model += sum(p.numel() for p in group["params"])

    prompt = model.learnable()
    return {"prompt": prompt, "mapping": mapping, "local": in_model - prompt}


def assemble(
    card: Card,
    model: Method,
    mapping: LabelMapping,
    surrogate: Surrogate,
    *,
    fusion: float,
) -> PromptAdapter:
    """Build an adapter from a card, a trained method and a label mapping.

    If the prompts are latent tokens, which must be inverted to pixels, the adapter also holds the
    backbone's patch embedding for that.

    Args:
        card: The checkpoint's metadata, still without mapping and α.
        model: The trained method.
        mapping: The label mapping.
        surrogate: The surrogate that the method was trained through.
        fusion: Weight α of the local head in the served score, in [0, 1].
    """
    # A copy, because on a CPU numpy() shares the memory of the parameters.
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
    tensors |= {f"mapping.{k}": v for k, v in mapping.arrays().items()}
    if card.inversion != "exact":
        embedding = surrogate.backbone.embedding
        tensors |= {
            "embedding.weight": embedding.weight.cpu().numpy(),
            "embedding.bias": embedding.bias.cpu().numpy(),
        }
    complete = replace(card, mapping=MappingCard.from_json(mapping.card()), fusion=fusion)
    return PromptAdapter(complete, tensors)


def _accuracy(log_p: Floats, targets: Integers) -> float:
    return float((log_p.argmax(axis=1) == targets).mean())
