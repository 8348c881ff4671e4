"""Training of white-box methods, which need access to the inside of the model.

RGB prompts, which only need a hosted classifier, are compared with these rivals. Both are trained
by the same loop.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import torch

from pgn_client.arrays import Floats
from pgn_client.checkpoint.card import Card, DataCard, GeneratorCard, MetricsCard, RecipeCard
from pgn_client.errors import ConfigurationError
from pgn_client.imaging.dataset import Split, Task
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping import label_mapping as labels
from pgn_client.prompting import methods
from pgn_client.prompting.methods import Method
from pgn_client.prompting.methods.expres import EXPRES
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import augment
from pgn_client.training.calibrate import last_mapping, learnable, log_probs, outputs
from pgn_client.training.examples import Examples, load_examples
from pgn_client.training.loop import Loop, setting
from pgn_client.training.recipe import Recipe
from pgn_client.training.torch_mapping import TorchMapping
from pgn_client.types import ServerProfile
from pgn_client.version import __version__

_RESOLUTION = 1
"""Side of the generator's input: the smallest possible, because no white box has a generator."""


def fit_white_box(
    task: Task,
    backbone: Backbone,
    method: str,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    progress: bool = False,
) -> WhiteBoxModel:
    """Train a white-box method, which needs access to the inside of the model.

    Images are resized to the model's input size without keeping their proportions. For a method
    that reads the backbone's features instead of its label scores, the label mapping is linear.

    Args:
        task: Classes and splits; only ``train`` and ``val`` are read.
        backbone: The model; it stays frozen, and that is verified (fine-tuning trains a copy).
        method: Name of a white-box method of ``methods.REGISTRY``.
        recipe: The numbers of the training; ``None`` for the default recipe.
        seed: Seed for all random choices.
        progress: Whether progress bars are drawn on stderr.

    Returns:
        The trained method with its label mapping.

    Raises:
        ConfigurationError: The method is not a white box, or it needs a plain ViT and the backbone
            is not one.
        KeyboardInterrupt: Ctrl-C ended the training; an unfinished rival would be too weak.
    """
    recipe = recipe or Recipe()
    kind = methods.get(method)
    if not issubclass(kind, methods.WhiteBox):
        raise ConfigurationError(
            f"method: got {method}, which an endpoint can serve, expected a white box; use fit"
        )
    if not backbone.plain and kind.reads_features:
        raise ConfigurationError(
            f"method {method}: got {backbone.name}, expected a plain ViT; leave it out"
        )
    torch.manual_seed(seed)

    canvas = Canvas.build(backbone.input_size, backbone.patch_size, kind.layout)
    surrogate = Surrogate(backbone, canvas, half=backbone.device.type == "cuda")
    # A library must be named, but white boxes mix none.
    model = kind.create(setting(surrogate, task, "pixel", recipe))
    card = Card(
        method=method,
        classes=task.classes,
        generator=GeneratorCard(resolution=_RESOLUTION),
        seed=seed,
    )
    loop = Loop.begin(model, surrogate, task, recipe, card, progress)
    # The other kinds of mapping add probabilities, which features are not.
    run = loop.start("linear" if kind.reads_features else "auto")
    loop.train(run)
    run.restore_best()
    backbone.verify_frozen()

    # The last fits and measurements are in float32 on every device.
    float32_surrogate = replace(surrogate, half=False)

    def features(examples: Examples, augmented: augment.Augmentation = augment.none) -> Floats:
        computed = outputs(model, float32_surrogate, examples, _RESOLUTION, augmented)
        return computed.cpu().double().numpy()

    versions = [features(loop.train_examples)]
    for _ in range(augment.copies(recipe.augment)):
        versions.append(features(loop.train_examples, loop.augmented))
    val_features = features(loop.val_examples)
    val_targets = task.val.labels

    kinds = ("linear",) if kind.reads_features else labels.AUTO
    _, mapping = last_mapping(
        run.mapping.mapping(),
        versions,
        task.train.labels,
        (val_features, val_targets),
        kinds=kinds,
        seed=seed,
    )
    predicted = mapping.log_probs(val_features).argmax(axis=1)

    card = replace(
        card,
        recipe=RecipeCard.from_json(recipe.card()),
        data=DataCard.from_json(task.card()),
        metrics=MetricsCard(
            n=len(task.val),
            epoch=run.best["epoch"] if run.best else 0,
            uint8=float((predicted == val_targets).mean()),
        ),
        versions={"pgn_client": __version__, "torch": str(torch.__version__)},
    )
    torch_mapping = TorchMapping(mapping).to(backbone.device)
    return WhiteBoxModel(method, model, torch_mapping, float32_surrogate, card)


@dataclass(frozen=True)
class WhiteBoxModel:
    """A trained white-box method, which runs on the local backbone.

    Only EXPRES can be saved, for a server that hosts adapters.

    Attributes:
        method: Name of the method.
        model: The trained method.
        mapping: The label mapping, from the method's output to the task's classes.
        surrogate: The backbone that the method runs on, and the canvas, the layout of its input.
        card: Metadata of the training, for the saved file.
    """

    method: str
    model: Method
    mapping: TorchMapping
    surrogate: Surrogate
    card: Card

    def log_probs(self, split: Split) -> Floats:
        """Return log-probabilities of the C task classes for the n images of a split.

        Returns:
            Log-probabilities, (n, C) float64.
        """
        examples = load_examples(split, self.surrogate.canvas, self.surrogate.backbone.device)
        log_p = log_probs(self.model, self.mapping, self.surrogate, examples, _RESOLUTION)
        return log_p.cpu().double().numpy()

    def save(
        self, path: str | os.PathLike[str], profile: ServerProfile | None = None
    ) -> dict[str, Any]:
        """Save the method to a file for a server that hosts adapters.

        The file's format is in ``tests/contract/adapters/README.md``.

        Args:
            path: Path to write.
            profile: The server's resize and crop; ``None`` for the backbone's own preprocessing.

        Returns:
            The metadata that was written to the file.

        Raises:
            ConfigurationError: No server hosts the method; only EXPRES can be hosted.
            CheckpointError: The file cannot be written.
        """
        if not isinstance(self.model, EXPRES):
            raise ConfigurationError(
                f"save: got {self.method}, which no server hosts, expected expres"
            )
        mapping = {f"mapping.{name}": tensor for name, tensor in self.mapping.state_dict().items()}
        card = replace(self.card, learnable=self.learnable())
        return self.model.save(
            path,
            self.surrogate.backbone,
            card.classes,
            mapping,
            profile=str(profile) if profile else None,
            card=card,
        )

    def learnable(self) -> dict[str, int]:
        """Count the trained parameters of the method and its label mapping.

        Returns:
            The counts under ``prompt`` (the method), ``mapping`` and ``local``.
        """
        return learnable(self.model, self.mapping.weight.numel() + self.mapping.bias.numel())
