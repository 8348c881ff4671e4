"""Gradient training through the surrogate: read :func:`fit` from top to bottom.

    picture → generator → mixture weights → prompt tokens ─┐
       └──────────→ canvas → patch tokens ────────────────→ frozen ViT → what the endpoint returns → mapping → loss

Only generator, library and label mapping learn. Selection is by validation; the test split is never opened.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from pgn_client import __version__, labels, methods
from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone
from pgn_client.compositor import compose
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.generator import generator_input
from pgn_client.geometry import Canvas
from pgn_client.inversion import route
from pgn_client.labels import LabelMapping
from pgn_client.methods import PGN
from pgn_client.statistics import best_fusion, fuse
from pgn_client.training import augment
from pgn_client.training.data import Task, load_pictures
from pgn_client.training.recipe import Recipe
from pgn_client.training.scores import TorchMapping
from pgn_client.training.surrogate import Surrogate
from pgn_client.types import ServerProfile

EVALUATION_BATCH = 64
Floats = np.typing.NDArray[np.float64]


@dataclass
class Examples:
    """One split in memory: pictures (n, 3, h, w) uint8 and targets (n,) int64."""

    pictures: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batches(self, size: int, *, shuffle: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (pictures, targets) in batches; a last batch of one is dropped in training (BatchNorm needs two)."""
        order = torch.randperm(len(self)) if shuffle else torch.arange(len(self))
        for rows in order.split(size):
            if len(rows) > 1 or not shuffle:
                yield self.pictures[rows], self.targets[rows]


def fit(
    task: Task,
    backbone: Backbone,
    *,
    method: str = "pgn",
    library: str = "pixel",
    layout: str = "ring",
    profile: ServerProfile | None = None,
    recipe: Recipe | None = None,
    mapping: str = "auto",
    inversion: str = "bounded",
    top_k: int | None = None,
    decimals: int | None = None,
    half: bool | None = None,
    seed: int = 0,
    state: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> PromptAdapter:
    """Train a prompt for a task through a local surrogate of the endpoint's model.

    Args:
        task: classes and splits; only ``train`` and ``val`` are read.
        backbone: the surrogate; it stays frozen, and that is verified.
        method: ``pgn`` or ``input_independent``.
        library: ``pixel`` (deploys exactly) or ``latent`` (as published; deploys by ``inversion``).
        layout: ``ring``, ``corner`` or ``rows:N``.
        profile: what the server does to a picture's geometry; ``None`` takes the backbone's own preprocessing.
        recipe: all numbers of the training; see ``training.recipe``.
        mapping: ``auto`` (chosen by cross-validation), ``identity``, ``blm+`` or ``linear``.
        inversion: ``bounded`` or ``pseudo_inverse``, for a latent library.
        top_k: how many labels the endpoint returns; ``None`` for all.
        decimals: how the endpoint rounds probabilities; ``None`` for not at all.
        half: bfloat16 for the backbone; ``None`` decides by the device.
        seed: of everything random.
        state: file that keeps the run after each epoch, so that it can be resumed; removed at the end.
        resume: go on from ``state``.
        progress: show bars on stderr.

    Returns:
        The adapter with the best validation accuracy (ties: the lower log-loss). After Ctrl-C, the best so far, with
        ``interrupted`` true on its card.

    Raises:
        ConfigurationError: an option that is unknown or does not fit.
        CheckpointError: ``state`` belongs to another run.
    """
    recipe = recipe or Recipe()
    torch.manual_seed(seed)
    profile = profile or backbone.profile
    canvas = Canvas.build(backbone.input_size, backbone.patch_size, layout, profile)
    half = backbone.device.type == "cuda" if half is None else half
    surrogate = Surrogate(backbone, canvas, top_k, decimals, half)
    resolution = min(recipe.resolution, *canvas.box[2:])
    route(inversion)  # an unknown name fails now, not after the training
    augmented = augment.get(recipe.augment)

    train, val = (_examples(split, canvas, backbone.device, progress) for split in (task.train, task.val))
    model = methods.get(method).create(
        canvas.prompts,
        len(task.classes),
        library=library,
        library_size=recipe.library_size,
        patch_size=backbone.patch_size,
        width=backbone.embedding.width,
    )
    if recipe.peaked_start:
        model.start_peaked()
    model.to(backbone.device)
    identity = _identity(task, backbone, method, library, layout, profile, recipe, mapping, seed)
    saved = _load_state(state, identity) if resume else _no_state(state)

    if saved is None and recipe.trunk_epochs:
        warm_trunk(model, train, recipe, resolution, progress=progress)
    if saved is None:
        torch_mapping = TorchMapping(_first_mapping(surrogate, train, task.classes, mapping, recipe, seed))
    else:
        kind, source = saved["mapping_kind"], backbone.labels
        torch_mapping = TorchMapping(_blank_mapping(kind, source, task.classes))
    torch_mapping.to(backbone.device)

    steps = sum(1 for _ in train.batches(recipe.batch_size, shuffle=True)) * recipe.epochs
    optimiser, schedule = optimisation(model, torch_mapping, recipe, steps)
    run = Run(model, torch_mapping, optimiser, schedule)
    if saved is not None:
        run.load_state_dict(saved)

    def epoch(bar: tqdm[Any]) -> None:
        model.train()
        seen: list[tuple[Tensor, Tensor]] = []
        for pictures, targets in train.batches(recipe.batch_size, shuffle=True):
            pictures = augmented(pictures)
            weights, local = model(generator_input(pictures, resolution))
            prompts = model.prompt_tokens(weights, backbone.embedding)
            features = surrogate.scores(pictures, prompts)
            loss = _smoothed_nll(run.mapping(features), targets, recipe.label_smoothing)
            loss = loss + recipe.local_weight * F.cross_entropy(
                local.float(), targets, label_smoothing=recipe.label_smoothing
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            seen.append((features.detach(), targets))
            bar.update(len(targets))
            bar.set_postfix(run.postfix(loss.item()), refresh=False)
        if run.mapping.start.additive:
            run.refit(seen, seed)

    interrupted = False
    with tqdm(
        total=recipe.epochs * len(train), initial=run.epoch * len(train), desc=method, unit="img", disable=not progress
    ) as bar:
        try:
            while run.epoch < recipe.epochs:
                epoch(bar)
                run.judge(*log_probs(model, run.mapping, surrogate, val, resolution)[:1], val.targets)
                if state is not None:
                    _save_state(state, run, identity)
        except KeyboardInterrupt:
            interrupted = True
            if run.best is None:
                raise
    run.restore_best()
    backbone.verify_frozen()

    card = identity | {
        "inversion": "exact" if library == "pixel" else inversion,
        "generator": {"resolution": resolution},
        "interrupted": interrupted,
        "versions": {"pgn_client": __version__, "torch": torch.__version__},
    }
    adapter = _finish(card, run, surrogate, train, val, seed)
    if state is not None and not interrupted:
        state.unlink(missing_ok=True)
    return adapter


def warm_trunk(model: PGN, train: Examples, recipe: Recipe, resolution: int, *, progress: bool = False) -> None:
    """Let trunk and local head learn the task alone, before any prompt is trained; the endpoint is not involved."""
    g = model.generator
    parameters = [*g.trunk.parameters(), *g.local_head.parameters()]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.trunk_rate, weight_decay=0.05)
    size = 2 * recipe.batch_size
    steps = sum(1 for _ in train.batches(size, shuffle=True)) * recipe.trunk_epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.trunk_rate, total_steps=steps)
    augmented = augment.get(recipe.augment)
    model.train()
    with tqdm(total=steps, desc="local head", unit="step", disable=not progress) as bar:
        for _ in range(recipe.trunk_epochs):
            for pictures, targets in train.batches(size, shuffle=True):
                local = g.local_head(g.trunk(generator_input(augmented(pictures), resolution)))
                loss = F.cross_entropy(local, targets, label_smoothing=recipe.label_smoothing)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()


def optimisation(
    model: PGN, mapping: TorchMapping, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return optimiser and per-step schedule of a recipe, for ``steps`` steps in all."""
    groups = model.parameter_groups(recipe.rates)
    if not mapping.start.additive:
        groups.append({"params": list(mapping.parameters()), "lr": recipe.rates.mapping})
    if recipe.optimiser == "adamw":
        adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99))
        peaks = [group["lr"] for group in groups]
        return adamw, torch.optim.lr_scheduler.OneCycleLR(
            adamw, peaks, total_steps=steps + 1, pct_start=0.2, cycle_momentum=False
        )
    sgd = torch.optim.SGD(groups, momentum=0.9)
    warm = steps * recipe.warmup_epochs // recipe.epochs

    def scale(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))) / 2

    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, scale)


class Run:
    """What changes during a run: model, mapping, optimiser, schedule, and the best epoch so far."""

    def __init__(
        self,
        model: PGN,
        mapping: TorchMapping,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.model, self.mapping, self.optimiser, self.schedule = model, mapping, optimiser, schedule
        self.epoch = 0
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []

    def postfix(self, loss: float) -> dict[str, str]:
        """What the progress bar shows: the loss now, and the last validation accuracy."""
        shown = {"loss": f"{loss:.3f}"}
        if self.history:
            shown["val"] = f"{self.history[-1]['accuracy']:.3f}"
        return shown

    def refit(self, seen: list[tuple[Tensor, Tensor]], seed: int) -> None:
        """Fit an additive mapping anew on the answers of the last epoch."""
        features = torch.cat([x for x, _ in seen]).cpu().double().numpy()
        targets = torch.cat([y for _, y in seen]).cpu().numpy()
        start = self.mapping.start
        fitted = labels.fit(features, targets, start.source, start.classes, kinds=(start.kind,), seed=seed)
        self.mapping = TorchMapping(fitted.mapping).to(self.mapping.weight.device)

    def judge(self, log_p: Tensor, targets: Tensor) -> None:
        """End an epoch: keep it if its validation accuracy is the best (ties: the lower log-loss)."""
        self.epoch += 1
        accuracy = (log_p.argmax(1) == targets).float().mean().item()
        loss = F.nll_loss(log_p, targets).item()
        self.history.append({"accuracy": accuracy, "log_loss": loss})
        if self.best is None or (accuracy, -loss) > (self.best["accuracy"], -self.best["log_loss"]):
            self.best = {
                "accuracy": accuracy,
                "log_loss": loss,
                "epoch": self.epoch,
                "model": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
                "mapping": {k: v.detach().clone() for k, v in self.mapping.state_dict().items()},
            }

    def restore_best(self) -> None:
        """Go back to the best epoch."""
        if self.best is None:
            raise ConfigurationError("training: no epoch was finished; train for at least one")
        self.model.load_state_dict(self.best["model"])
        self.mapping.load_state_dict(self.best["mapping"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that an interrupted run needs to go on as if nothing had happened."""
        parts = {k: getattr(self, k).state_dict() for k in ("model", "mapping", "optimiser", "schedule")}
        return parts | {
            "mapping_kind": self.mapping.start.kind,
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Take over a saved run."""
        for name in ("model", "mapping", "optimiser", "schedule"):
            getattr(self, name).load_state_dict(saved[name])
        self.epoch, self.best, self.history = saved["epoch"], saved["best"], saved["history"]
        torch.set_rng_state(saved["random"].cpu())


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


def _finish(
    card: dict[str, Any], run: Run, surrogate: Surrogate, train: Examples, val: Examples, seed: int
) -> PromptAdapter:
    """Refit the mapping on prompted answers, choose α, measure, and write it all on the card; validation decides."""
    resolution = card["generator"]["resolution"]
    latent, _ = log_probs(run.model, run.mapping, surrogate, val, resolution)
    mapping = run.mapping.mapping()
    draft = _assemble(card, run.model, mapping, surrogate, fusion=0.0)
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
    return _assemble(card, run.model, mapping, surrogate, fusion=alpha)


def _assemble(
    card: dict[str, Any], model: PGN, mapping: LabelMapping, surrogate: Surrogate, *, fusion: float
) -> PromptAdapter:
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
    tensors |= {f"mapping.{k}": v for k, v in mapping.arrays().items()}
    if card["inversion"] != "exact":
        embedding = surrogate.backbone.embedding
        tensors |= {"embedding.weight": embedding.weight.cpu().numpy(), "embedding.bias": embedding.bias.cpu().numpy()}
    return PromptAdapter(card | {"mapping": mapping.card(), "fusion": fusion}, tensors)


def _identity(
    task: Task,
    backbone: Backbone,
    method: str,
    library: str,
    layout: str,
    profile: ServerProfile,
    recipe: Recipe,
    mapping: str,
    seed: int,
) -> dict[str, Any]:
    """The part of the card that is known before training: two runs with equal parts are the same run."""
    return {
        "method": method,
        "backbone": {
            "name": backbone.name,
            "input_size": backbone.input_size,
            "patch_size": backbone.patch_size,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "patch_embedding_sha256": backbone.embedding.sha256(),
        },
        "profile": str(profile),
        "layout": layout,
        "library": {"kind": library, "size": recipe.library_size},
        "classes": list(task.classes),
        "seed": seed,
        "recipe": asdict(recipe) | {"mapping": mapping},
        "data": {"digest": task.digest(), "train": len(task.train), "val": len(task.val)},
    }


def _examples(split: Any, canvas: Canvas, device: torch.device, progress: bool) -> Examples:
    with tqdm(total=len(split), desc="reading", unit="img", disable=not progress, leave=False) as bar:
        pictures = load_pictures(split, canvas, bar.update)
    return Examples(pictures.to(device), torch.from_numpy(split.labels).to(device))


def _first_mapping(
    surrogate: Surrogate, train: Examples, classes: tuple[str, ...], wanted: str, recipe: Recipe, seed: int
) -> LabelMapping:
    """Choose a mapping on the answers to neutral canvases; it is where the joint training starts."""
    source = surrogate.backbone.labels
    kinds = ("identity", "blm+", "linear") if wanted == "auto" else (wanted,)
    if kinds == ("linear",) and not recipe.warm_mapping:
        return _blank_mapping("linear", source, classes)
    with torch.inference_mode():
        parts = [surrogate.scores(pictures) for pictures, _ in train.batches(EVALUATION_BATCH)]
    features = torch.cat(parts).cpu().double().numpy()
    mapping = labels.fit(features, train.targets.cpu().numpy(), source, classes, kinds=kinds, seed=seed).mapping
    warm = recipe.warm_mapping or mapping.additive
    return mapping if warm else _blank_mapping("linear", source, classes)


def _blank_mapping(kind: Any, source: tuple[str, ...], classes: tuple[str, ...]) -> LabelMapping:
    return LabelMapping(kind, source, classes, np.zeros((len(source), len(classes))), np.zeros(len(classes)))


def _smoothed_nll(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of log-probabilities with label smoothing."""
    return (1 - smoothing) * F.nll_loss(log_p, targets) - smoothing * log_p.mean()


def _nll(log_p: Floats, targets: np.typing.NDArray[np.int64]) -> float:
    return float(-log_p[np.arange(len(targets)), targets].mean())


def _accuracy(log_p: Floats, targets: np.typing.NDArray[np.int64]) -> float:
    return float((log_p.argmax(axis=1) == targets).mean())


def _no_state(path: Path | None) -> None:
    if path is not None and path.exists():
        raise ConfigurationError(f"training: {path} is left of an unfinished run; go on with --resume, or delete it")


def _save_state(path: Path, run: Run, identity: dict[str, Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    torch.save({"identity": identity, "run": run.state_dict()}, partial)
    partial.replace(path)


def _load_state(path: Path | None, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the saved run, or ``None`` where there is nothing to resume."""
    if path is None or not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True)
        other = saved["identity"]
        run: dict[str, Any] = saved["run"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(f"training: {path} cannot be read; delete it and train anew") from error
    different = sorted(k for k in identity if identity[k] != other.get(k))
    if different:
        raise CheckpointError(
            f"training: {path} is of another run (it differs in {', '.join(different)}); "
            "give the same options, or delete it"
        )
    return run
