"""Training of methods that need the inside of the model, in the loop that trains prompts, to be
compared with.
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


def fit_white_box(
    task: Task,
    backbone: Backbone,
    method: str,
    *,
    recipe: Recipe | None = None,
    seed: int = 0,
    progress: bool = False,
) -> WhiteBoxModel:
    """Train a method that needs the inside of the model.

    Images are squashed into the model's input as for a prompt over the whole image; the linear
    mapping reads what the method lets it read (the backbone's features) and is warm-started alike.

    Args:
        task: classes and splits; only ``train`` and ``val`` are read.
        backbone: the model; it stays frozen, and that is verified (fine-tuning works on a copy).
        method: a white-box method of ``methods.REGISTRY``.
        recipe: all numbers of the training.
        seed: Seed for all random choices.
        progress: show bars on stderr.

    Raises:
        ConfigurationError: the method is no white box.
        KeyboardInterrupt: Ctrl-C; a rival that was cut short would be a weak one.
    """
    recipe, kind = recipe or Recipe(), methods.get(method)
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
    model = kind.create(setting(surrogate, task, "pixel", recipe))
    card = Card(
        method=method, classes=task.classes, generator=GeneratorCard(resolution=1), seed=seed
    )
    loop = Loop.begin(model, surrogate, task, recipe, card, progress)
    run = loop.start("linear" if kind.reads_features else "auto")
    loop.train(run)
    run.restore_best()
    backbone.verify_frozen()
    exactly = replace(surrogate, half=False)

    def features(examples: Examples, augmented: augment.Augmentation = augment.none) -> Floats:
        return outputs(model, exactly, examples, 1, augmented).cpu().double().numpy()

    copies = (
        features(loop.train_examples, loop.augmented) for _ in range(augment.copies(recipe.augment))
    )
    versions, val = (
        [features(loop.train_examples), *copies],
        (features(loop.val_examples), task.val.labels),
    )
    kinds = ("linear",) if kind.reads_features else labels.AUTO
    _, mapping = last_mapping(
        run.mapping.mapping(), versions, task.train.labels, val, kinds=kinds, seed=seed
    )
    card = replace(
        card,
        recipe=RecipeCard.from_json(recipe.card()),
        data=DataCard.from_json(task.card()),
        metrics=MetricsCard(
            n=len(task.val),
            epoch=run.best["epoch"] if run.best else 0,
            uint8=float((mapping.log_probs(val[0]).argmax(axis=1) == val[1]).mean()),
        ),
        versions={"pgn_client": __version__, "torch": str(torch.__version__)},
    )
    return WhiteBoxModel(method, model, TorchMapping(mapping).to(backbone.device), exactly, card)


@dataclass(frozen=True)
class WhiteBoxModel:
    """A trained white-box method: it answers here, where the backbone is, and cannot be deployed.

    Attributes:
        method: its name.
        model, mapping, surrogate: what answers.
        card: what a checkpoint tells of it.
    """

    method: str
    model: Method
    mapping: TorchMapping
    surrogate: Surrogate
    card: Card

    def log_probs(self, split: Split) -> Floats:
        """Return (n, C) float64 log-probabilities for a split's images."""
        examples = load_examples(split, self.surrogate.canvas, self.surrogate.backbone.device)
        return (
            log_probs(self.model, self.mapping, self.surrogate, examples, 1).cpu().double().numpy()
        )

    def save(
        self, path: str | os.PathLike[str], profile: ServerProfile | None = None
    ) -> dict[str, Any]:
        """Write what a server of adapters hosts; see ``tests/contract/adapters/README.md``. Returns
        the card.

        Args:
            path: of the file.
            profile: the server's resize and crop; ``None`` takes the backbone's own.

        Raises:
            ConfigurationError: a method that no server hosts.
            CheckpointError: the file cannot be written.
        """
        if not isinstance(self.model, EXPRES):
            raise ConfigurationError(
                f"save: got {self.method}, which no server hosts, expected expres"
            )
        mapping = {f"mapping.{name}": tensor for name, tensor in self.mapping.state_dict().items()}
        wanted = str(profile) if profile else None
        card = replace(self.card, learnable=self.learnable())
        return self.model.save(
            path, self.surrogate.backbone, card.classes, mapping, profile=wanted, card=card
        )

    def learnable(self) -> dict[str, int]:
        """Return how many numbers were trained: of the method, and of the head that reads it."""
        return learnable(self.model, self.mapping.weight.numel() + self.mapping.bias.numel())
