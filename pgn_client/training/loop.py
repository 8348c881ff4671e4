"""Train a prompt by gradients through a surrogate, a local copy of the hosted model.

    image → generator → mixture weights → prompt tokens ─┐
      └─────────→ canvas → patch tokens ────────────────→ frozen ViT → scores → mapping → loss

Only the generator, the token library and the label mapping are trained. The validation split
selects the best epoch; the test split is never read.
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
from pgn_client.training.run import (
    Run,
    check_state,
    load_state,
    optimisation,
    reading_state,
    save_state,
)
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
    """Train a prompt for a task through a surrogate, a local copy of the endpoint's model.

    Args:
        task: Classes and splits; only ``train`` and ``val`` are read.
        backbone: The surrogate; it stays frozen, and that is verified. It computes in bfloat16 on
            a GPU and in float32 on a CPU.
        config: Method, server and numbers of the training; ``None`` for the defaults of
            ``TrainingConfig``.
        state: File that stores the run after each epoch, so that it can be resumed. The caller
            removes it once the adapter is saved. ``None`` stores nothing.
        resume: Whether to continue the run in ``state``, if the file exists.
        progress: Whether to draw progress bars on stderr.
        **options: Attributes of ``TrainingConfig`` by name, instead of ``config``: ``fit(task,
            backbone, seed=1)``.

    Returns:
        The adapter of the epoch with the best validation accuracy (ties: the lower log-loss). After
        Ctrl-C, this is the best of the finished epochs, and the adapter's card has ``interrupted``
        true.

    Raises:
        ConfigurationError: An option is unknown or does not fit the others, or ``state`` exists and
            ``resume`` is false.
        CheckpointError: ``state`` cannot be read, or it belongs to another run.
        KeyboardInterrupt: Ctrl-C before the first epoch was finished.
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
    if resume and state is not None and state.exists():
        run = loop.resume(load_state(state, identity))
    else:
        run = loop.start(config.mapping)

    interrupted = False
    with loop.bar(run) as bar:
        try:
            while run.epoch < config.recipe.epochs:
                loop.train_epoch(run, bar)
                loop.validate(run)
                if state is not None:
                    save_state(state, run, identity)
        except KeyboardInterrupt:
            # Without a finished epoch there is no adapter to return.
            if run.best is None:
                raise
            interrupted = True

    run.restore_best()
    backbone.verify_frozen()
    # The last fits and measurements are in float32 on every device.
    float32_surrogate = replace(loop.surrogate, half=False)
    card = replace(card, interrupted=interrupted)
    return finish(
        card, run, float32_surrogate, loop.train_examples, loop.val_examples, loop.augmented
    )


def _identity(card: Card) -> dict[str, Any]:
    """Return the options that identify a training run, to refuse the saved state of another run.

    They are the fields of the card, the checkpoint's metadata, that are known before training.
    """
    identity = card.to_json()
    # α is chosen after training. The runs of version 0.1 have neither of the two, and go on.
    del identity["schema"], identity["fusion"]
    # What the user calls the surrogate changes nothing in the training.
    identity.pop("surrogate", None)
    return identity


@dataclass
class Loop:
    """The training loop, with everything that does not change while it runs.

    Attributes:
        model: The method to train.
        training_surrogate: Local copy of the hosted model that the training steps use.
        train_examples: Training images and targets.
        val_examples: Validation images and targets.
        recipe: The numbers of the training.
        card: Card (the checkpoint's metadata) of the run before training.
        progress: Whether progress bars are drawn on stderr.
        surrogate: The training surrogate without random degradation, for all measurements.
        resolution: Side of the generator's input, in pixels.
        seed: Seed for all random choices.
        augmented: Augmentation of each batch of training images.
    """

    model: Method
    training_surrogate: Surrogate
    train_examples: Examples
    val_examples: Examples
    recipe: Recipe
    card: Card
    progress: bool

    def __post_init__(self) -> None:
        # Measurements must be reproducible, so their wire has no random part.
        wire = self.training_surrogate.wire
        self.surrogate = replace(self.training_surrogate, wire=wire.settled if wire else None)
        self.resolution = self.card.resolution
        self.seed = self.card.seed or 0
        self.augmented = augment.get(self.recipe.augment)
        # In other methods the prompt does not train the trunk; there the local head always does.
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
        """Create the loop: read the training and validation images onto the surrogate's device.

        Args:
            model: The method to train; it is moved to the same device.
            surrogate: Local copy of the hosted model.
            task: Classes and splits.
            recipe: The numbers of the training.
            card: Card (the checkpoint's metadata) of the run before training.
            progress: Whether progress bars are drawn on stderr.
        """
        canvas = surrogate.canvas
        device = surrogate.backbone.device
        train = load_examples(task.train, canvas, device, shown=progress)
        val = load_examples(task.val, canvas, device, shown=progress)
        return cls(model.to(device), surrogate, train, val, recipe, card, progress)

    def start(self, mapping: str) -> Run:
        """Start a training run.

        The prompts are initialized, the generator's trunk (a small CNN) first learns the task as a
        classifier, and a first label mapping is fitted. White-box methods, which have no generator,
        start with the mapping.

        Args:
            mapping: Kind of the label mapping, or ``auto``.

        Returns:
            The state of the run before its first step.
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
        """Return a saved run, ready to continue exactly where it stopped.

        Args:
            saved: The result of ``Run.state_dict``.
        """
        with reading_state():
            features = saved["mapping"]["weight"].shape[0]
            source = self._source(features)
            blank = _blank_mapping(saved["mapping_kind"], source, self.card.classes)
        run = self._run(blank)
        run.load_state_dict(saved)
        return run

    def train(self, run: Run) -> None:
        """Train the remaining epochs of a run, and measure each on the validation images.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the training.
        """
        with self.bar(run) as bar:
            while run.epoch < self.recipe.epochs:
                self.train_epoch(run, bar)
                self.validate(run)

    def bar(self, run: Run) -> Any:
        """Return a progress bar over the images of all epochs; finished epochs count as done."""
        n = len(self.train_examples)
        total = self.recipe.epochs * n
        done = run.epoch * n
        return progress_bar(total, self.card.method, "img", shown=self.progress, initial=done)

    def train_epoch(self, run: Run, bar: Any) -> None:
        """Train one epoch: one step for each batch of shuffled, augmented training images."""
        self.model.train()
        seen: list[tuple[Tensor, Tensor]] = []
        for images, targets in self.train_examples.batches(self.recipe.batch_size, shuffle=True):
            features, loss = self._loss(run.mapping, self.augmented(images), targets)
            run.step(loss)
            self.model.after_step(self.surrogate)
            if run.mapping.start.additive:
                seen.append((features.detach(), targets))
            bar.update(len(targets))
            # A refresh would redraw the bar after each step, whatever its interval.
            bar.set_postfix(run.postfix(loss.item()), refresh=False)

        # An additive mapping has no gradient, so it is fitted again after each epoch.
        if seen:
            run.refit(seen, self.seed)

    def validate(self, run: Run) -> None:
        """End an epoch: measure the accuracy on the validation images.

        The run keeps a copy of its parameters if they are the best so far.
        """
        log_p = log_probs(
            self.model, run.mapping, self.surrogate, self.val_examples, self.resolution
        )
        run.judge(log_p, self.val_examples.targets)

    def _loss(
        self, mapping: TorchMapping, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the features of a batch and its training loss.

        The loss is the cross-entropy of the mapped scores. If the method has a local head (a small
        classifier beside the prompt), the weighted cross-entropy of that head is added.

        Returns:
            The (B, S) features that the label mapping reads, such as the scores of S endpoint
            labels; and the loss.
        """
        code, local = self.model(generator_input(images, self.resolution))
        features = self.model.scores(code, images, self.training_surrogate)
        smoothing = self.recipe.label_smoothing
        loss = smoothed_nll(mapping(features), targets, smoothing)
        if local is None:
            return features, loss
        # In bfloat16, as under a caller's autocast, logits are too coarse for a loss.
        local_loss = F.cross_entropy(local.float(), targets, label_smoothing=smoothing)
        return features, loss + self.recipe.local_weight * local_loss

    def _first_mapping(self, kind: str) -> LabelMapping:
        """Return the label mapping that the joint training with the prompt starts from.

        It is fitted to the surrogate's answers to images without a prompt. A linear mapping starts
        from zero instead if the recipe's ``warm_mapping`` is false.
        """
        features = self._neutral(self.train_examples)
        val_features = self._neutral(self.val_examples)
        targets = self.train_examples.targets.cpu().numpy()
        val_targets = self.val_examples.targets.cpu().numpy()
        source = self._source(features.shape[1])

        mapping = labels.fit(
            features,
            targets,
            source,
            self.card.classes,
            val=(val_features, val_targets),
            kinds=labels.AUTO if kind == "auto" else (kind,),
            seed=self.seed,
        ).mapping

        # An additive mapping has no gradient, so it cannot start from zero.
        warm = self.recipe.warm_mapping or mapping.additive
        return mapping if warm else _blank_mapping("linear", source, self.card.classes)

    @torch.inference_mode()
    def _neutral(self, examples: Examples) -> Floats:
        """Return the features that the label mapping reads, for images without any prompt.

        Returns:
            (n, S) float64, such as the log-probabilities of S endpoint labels.
        """
        parts = [
            self.model.neutral(images, self.surrogate)
            for images, _ in examples.batches(EVALUATION_BATCH)
        ]
        return torch.cat(parts).cpu().double().numpy()

    def _run(self, mapping: LabelMapping) -> Run:
        """Return the state of a run before its first step, with a new optimizer and schedule."""
        torch_mapping = TorchMapping(mapping).to(self.surrogate.backbone.device)
        steps = self.train_examples.steps(self.recipe.batch_size) * self.recipe.epochs
        optimizer, schedule = optimisation(self.model, torch_mapping, self.recipe, steps)
        return Run(self.model, torch_mapping, optimizer, schedule)

    def _source(self, count: int) -> tuple[str, ...]:
        """Return a name for each of the ``count`` features that the label mapping reads.

        The names are the endpoint's labels, or ``feature_0``, ``feature_1``, … for a white-box
        method, whose features have no labels.
        """
        names = self.surrogate.backbone.labels
        return names if len(names) == count else tuple(f"feature_{i}" for i in range(count))


def train_local_head(
    classifier: LocalClassifier,
    examples: Examples,
    recipe: Recipe,
    augmented: Augmentation,
    resolution: int,
    *,
    shown: bool = False,
) -> None:
    """Train a prompt generator's trunk and local head as an ordinary classifier of the task.

    This comes before the training of any prompt and needs no surrogate.

    Args:
        classifier: The trunk, a small CNN, with its linear local head. It changes in place and
            stays in training mode.
        examples: Training images and targets.
        recipe: Recipe; only ``trunk_epochs``, ``trunk_rate``, ``trunk_weight_decay``,
            ``batch_size`` and ``label_smoothing`` are used.
        augmented: Augmentation of each batch.
        resolution: Side of the classifier's input, in pixels.
        shown: Whether a progress bar is drawn on stderr.
    """
    size = 2 * recipe.batch_size
    parameters = [*classifier.trunk.parameters(), *classifier.local_head.parameters()]
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.trunk_rate, weight_decay=recipe.trunk_weight_decay
    )
    steps = examples.steps(size) * recipe.trunk_epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        recipe.trunk_rate,
        # One step more than the updates: the schedule ends at a rate near 0, which would waste the
        # last update.
        total_steps=steps + 1,
    )

    classifier.train()
    with progress_bar(steps, "local head", "step", shown=shown) as bar:
        for _ in range(recipe.trunk_epochs):
            for images, targets in examples.batches(size, shuffle=True):
                local = classifier.classify(generator_input(augmented(images), resolution))
                loss = F.cross_entropy(local, targets, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()


def smoothed_nll(log_p: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the mean cross-entropy with label smoothing, from log-probabilities.

    Args:
        log_p: Log-probabilities, (B, C), of C classes.
        targets: Class indices, (B,).
        smoothing: Share of the target's probability that is spread over all classes, in [0, 1).
    """
    # The inputs are normalized already, and F.nll_loss has no label smoothing.
    return (1 - smoothing) * F.nll_loss(log_p, targets) - smoothing * log_p.mean()


def setting(surrogate: Surrogate, task: Task, library: str, recipe: Recipe) -> Setting:
    """Return the sizes and options that a new prompt method is created with.

    Args:
        surrogate: Local copy of the hosted model.
        task: The task, for its number of classes.
        library: Kind of the token library.
        recipe: The numbers of the training.
    """
    backbone = surrogate.backbone
    return Setting(
        surrogate.canvas,
        classes=len(task.classes),
        width=backbone.width,
        depth=backbone.depth,
        library=library,
        library_size=recipe.library_size,
        backbone=backbone,
        prompt_tokens=recipe.prompt_tokens,
        sites=recipe.sites,
    )


def _blank_mapping(kind: Any, source: tuple[str, ...], classes: tuple[str, ...]) -> LabelMapping:
    """Return a label mapping of zeros, to train from or to load saved parameters into."""
    weight = np.zeros((len(source), len(classes)))
    bias = np.zeros(len(classes))
    return LabelMapping(kind, source, classes, weight, bias)
