"""Gradient training through the surrogate: read :func:`fit` from top to bottom.

    image → generator → mixture weights → prompt tokens ─┐
      └─────────→ canvas → patch tokens ────────────────→ frozen ViT → scores → mapping → loss

Only generator, library and label mapping learn. Selection is by validation; the test split is never
opened.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.arrays import Floats
from pgn_client.checkpoint.card import Card
from pgn_client.imaging.dataset import Task
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import LocalClassifier, generator_input
from pgn_client.prompting.methods import PGN, Method, RGBMethod, Setting
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import augment
from pgn_client.training.augment import Augmentation
from pgn_client.training.calibrate import EVALUATION_BATCH, finish, log_probs
from pgn_client.training.config import TrainingConfig
from pgn_client.training.examples import Examples, load_examples
from pgn_client.training.progress import bar as progress_bar
from pgn_client.training.recipe import Recipe
from pgn_client.training.run import Run, check_state, load_state, optimisation, save_state
from pgn_client.training.torch_mapping import TorchMapping


def fit(
    task: Task,
    backbone: Backbone,
    config: TrainingConfig | None = None,
    *,
    state: Path | None = None,
    resume: bool = False,
    progress: bool = False,
    **options: Any,
) -> PromptAdapter:
    """Train a prompt for a task through a local surrogate of the endpoint's model.

    Args:
        task: Classes and splits; only ``train`` and ``val`` are read.
        backbone: The surrogate; it stays frozen, and that is verified. On a GPU it computes in
            bfloat16; on a CPU that gained too little (a factor of 1.15 on a ViT-Tiny) for what it
            costs in precision.
        config: What to train; ``None`` takes the defaults of ``TrainingConfig``.
        state: File that keeps the run after each epoch, so that it can be resumed; yours to remove
            once the adapter is saved.
        resume: Whether to go on from ``state``.
        progress: Whether to draw progress bars on stderr.
        **options: Attributes of ``TrainingConfig`` by name, in place of ``config``: ``fit(task,
            backbone, seed=1)``.

    Returns:
        The adapter with the best validation accuracy (ties: the lower log-loss). After Ctrl-C, the
        best so far, with ``interrupted`` true on its card.

    Raises:
        ConfigurationError: An option that is unknown or does not fit.
        CheckpointError: ``state`` belongs to another run.
    """
    config = TrainingConfig.of(config, options)
    check_state(state, resume)
    torch.manual_seed(config.seed)
    canvas = config.canvas(backbone)
    half = backbone.device.type == "cuda"
    surrogate = Surrogate(
        backbone, canvas, config.top_k, config.decimals, half=half, wire=config.wire
    )
    card = config.card(task, backbone, canvas)
    model = config.kind.create(setting(surrogate, task, config.library, config.recipe))
    loop = Loop.begin(model, surrogate, task, config.recipe, card, progress)
    identity = _identity(card)
    resuming = resume and state is not None and state.exists()
    run = (
        loop.resume(load_state(state, identity))
        if state and resuming
        else loop.start(config.mapping)
    )

    interrupted = False
    with loop.bar(run) as bar:
        try:
            while run.epoch < config.recipe.epochs:
                loop.train_epoch(run, bar)
                loop.validate(run)  # keeps the epoch if it is the best so far
                if state is not None:
                    save_state(state, run, identity)
        except KeyboardInterrupt:
            if run.best is None:  # not even one epoch: there is nothing to keep
                raise
            interrupted = True

    run.restore_best()
    backbone.verify_frozen()
    # What is measured and fitted at the end is float32 on every device.
    exactly = replace(loop.surrogate, half=False)
    card = replace(card, interrupted=interrupted)
    return finish(card, run, exactly, loop.train_examples, loop.val_examples, loop.augmented)


def _identity(card: Card) -> dict[str, Any]:
    """Return what tells one run from another: the card before training, without its schema, which
    is no matter of the run.
    """
    identity = card.to_json()
    del identity["schema"], identity["fusion"]
    return identity


@dataclass
class Loop:
    """One training: what does not change while it runs."""

    model: Method
    taught_by: Surrogate
    train_examples: Examples
    val_examples: Examples
    recipe: Recipe
    card: Card
    progress: bool

    def __post_init__(self) -> None:
        settled = self.taught_by.wire.settled if self.taught_by.wire else None
        # what is measured has nothing random on its way
        self.surrogate = replace(self.taught_by, wire=settled)
        self.resolution = self.card.resolution
        self.seed = self.card.seed or 0
        self.augmented = augment.get(self.recipe.augment)
        # another's trunk has no other teacher
        if isinstance(self.model, PGN) and self.model.sees_image:
            self.model.generator.head_teaches_trunk = self.recipe.head_teaches_trunk

    @classmethod
    def begin(
        cls,
        model: Method,
        surrogate: Surrogate,
        task: Task,
        recipe: Recipe,
        card: Card,
        progress: bool,
    ) -> Loop:
        """Read the images that are trained and judged on."""
        device = surrogate.backbone.device
        train, val = (
            load_examples(split, surrogate.canvas, device, shown=progress)
            for split in (task.train, task.val)
        )
        return cls(model.to(device), surrogate, train, val, recipe, card, progress)

    def start(self, mapping: str) -> Run:
        """Begin: peaked prompts, a trunk that knows the task, a mapping that reads neutral
        canvases.
        """
        if isinstance(self.model, RGBMethod):
            self.model.start(peaked=self.recipe.peaked_start)
            if self.recipe.trunk_epochs:
                train_local_head(
                    self.model.generator,
                    self.train_examples,
                    self.recipe,
                    self.augmented,
                    self.resolution,
                    shown=self.progress,
                )
        return self._run(self._first_mapping(mapping))

    def resume(self, saved: dict[str, Any]) -> Run:
        """Go on where a saved run stopped, as if nothing had happened."""
        shape = saved["mapping"]["weight"].shape
        run = self._run(
            _blank_mapping(saved["mapping_kind"], self._source(shape[0]), self._classes)
        )
        run.load_state_dict(saved)
        return run

    def train(self, run: Run) -> None:
        """Train the remaining epochs.

        Raises:
            KeyboardInterrupt: Ctrl-C.
        """
        with self.bar(run) as bar:
            while run.epoch < self.recipe.epochs:
                self.train_epoch(run, bar)
                self.validate(run)

    def bar(self, run: Run) -> Any:
        """Return a progress bar over the images that are still to be trained on."""
        n = len(self.train_examples)
        total, done = self.recipe.epochs * n, run.epoch * n
        return progress_bar(total, self.card.method, "img", shown=self.progress, initial=done)

    def train_epoch(self, run: Run, bar: Any) -> None:
        """Take one step for each batch of shuffled, augmented training images."""
        self.model.train()
        seen: list[tuple[Tensor, Tensor]] = []
        for images, targets in self.train_examples.batches(self.recipe.batch_size, shuffle=True):
            features, loss = self._loss(run.mapping, self.augmented(images), targets)
            run.step(loss)
            self.model.after_step(self.surrogate)
            if run.mapping.start.additive:
                seen.append((features.detach(), targets))
            bar.update(len(targets))
            bar.set_postfix(run.postfix(loss.item()), refresh=False)
        if seen:  # an additive mapping has no gradient: it is counted anew after each epoch
            run.refit(seen, self.seed)

    def validate(self, run: Run) -> None:
        """Measure the run on the validation images, and keep it if it is the best so far."""
        log_p = log_probs(
            self.model, run.mapping, self.surrogate, self.val_examples, self.resolution
        )
        run.judge(log_p, self.val_examples.targets)

    def _loss(
        self, mapping: TorchMapping, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return what the endpoint would answer, (B, S), and the loss of the task classes that are
        read from it.
        """
        code, local = self.model(generator_input(images, self.resolution))
        features = self.model.scores(code, images, self.taught_by)
        smoothing = self.recipe.label_smoothing
        loss = smoothed_nll(mapping(features), targets, smoothing)
        if local is None:
            return features, loss
        beside = F.cross_entropy(local.float(), targets, label_smoothing=smoothing)
        return features, loss + self.recipe.local_weight * beside

    def _first_mapping(self, wanted: str) -> LabelMapping:
        """Choose a mapping on the answers to neutral canvases; it is where the joint training
        starts.
        """
        features, val = (
            self._neutral(examples) for examples in (self.train_examples, self.val_examples)
        )
        targets, val_targets = (
            x.targets.cpu().numpy() for x in (self.train_examples, self.val_examples)
        )
        source, kinds = (
            self._source(features.shape[1]),
            labels.AUTO if wanted == "auto" else (wanted,),
        )
        mapping = labels.fit(
            features,
            targets,
            source,
            self._classes,
            val=(val, val_targets),
            kinds=kinds,
            seed=self.seed,
        ).mapping
        warm = self.recipe.warm_mapping or mapping.additive
        return mapping if warm else _blank_mapping("linear", source, self._classes)

    @torch.inference_mode()
    def _neutral(self, examples: Examples) -> Floats:
        parts = [
            self.model.neutral(images, self.surrogate)
            for images, _ in examples.batches(EVALUATION_BATCH)
        ]
        return torch.cat(parts).cpu().double().numpy()

    def _run(self, mapping: LabelMapping) -> Run:
        torch_mapping = TorchMapping(mapping).to(self.surrogate.backbone.device)
        steps = self.train_examples.steps(self.recipe.batch_size) * self.recipe.epochs
        return Run(
            self.model, torch_mapping, *optimisation(self.model, torch_mapping, self.recipe, steps)
        )

    def _source(self, count: int) -> tuple[str, ...]:
        """Names of what the mapping reads: the endpoint's labels, or a white-box method's
        features.
        """
        names = self.surrogate.backbone.labels
        return names if len(names) == count else tuple(f"feature_{i}" for i in range(count))

    @property
    def _classes(self) -> tuple[str, ...]:
        return self.card.classes


def train_local_head(
    classifier: LocalClassifier,
    examples: Examples,
    recipe: Recipe,
    augmented: Augmentation,
    resolution: int,
    *,
    shown: bool = False,
) -> None:
    """Teach trunk and local head the task alone, before any prompt is trained; the endpoint is not
    involved.

    Args:
        classifier: Trained in place, and left in training mode.
        examples: Training images as they stand on the canvas.
        recipe: Its ``trunk_epochs``, ``trunk_rate``, ``trunk_weight_decay``, ``batch_size`` and
            ``label_smoothing``.
        augmented: Augmentation of each batch.
        resolution: Side of the classifier's input, in pixels.
        shown: Whether a progress bar is drawn on stderr.
    """
    size = 2 * recipe.batch_size
    parameters = [*classifier.trunk.parameters(), *classifier.local_head.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=recipe.trunk_rate, weight_decay=recipe.trunk_weight_decay
    )
    steps = examples.steps(size) * recipe.trunk_epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.trunk_rate, total_steps=steps + 1
    )
    classifier.train()
    with progress_bar(steps, "local head", "step", shown=shown) as bar:
        for _ in range(recipe.trunk_epochs):
            for images, targets in examples.batches(size, shuffle=True):
                local = classifier.classify(generator_input(augmented(images), resolution))
                loss = F.cross_entropy(local, targets, label_smoothing=recipe.label_smoothing)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
                bar.update()


def smoothed_nll(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy of (B, C) log-probabilities with label smoothing; the mean over the batch."""
    return (1 - smoothing) * F.nll_loss(log_p, targets) - smoothing * log_p.mean()


def setting(surrogate: Surrogate, task: Task, library: str, recipe: Recipe) -> Setting:
    """What a method is drawn for."""
    b = surrogate.backbone
    return Setting(
        surrogate.canvas,
        classes=len(task.classes),
        width=b.width,
        depth=b.depth,
        library=library,
        library_size=recipe.library_size,
        backbone=b,
        prompt_tokens=recipe.prompt_tokens,
        sites=recipe.sites,
    )


def _blank_mapping(kind: Any, source: tuple[str, ...], classes: tuple[str, ...]) -> LabelMapping:
    return LabelMapping(
        kind, source, classes, np.zeros((len(source), len(classes))), np.zeros(len(classes))
    )
