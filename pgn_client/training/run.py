"""The state of a training run, and the file that stores it so that the run can be resumed."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.errors import CheckpointError, ConfigurationError, reading
from pgn_client.imaging.files import whole_file
from pgn_client.mapping import label_mapping as labels
from pgn_client.prompting.methods import Method
from pgn_client.training.recipe import Recipe
from pgn_client.training.torch_mapping import TorchMapping


def optimisation(
    model: Method, mapping: TorchMapping, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return the optimizer and the learning-rate schedule of a recipe.

    The schedule advances after each training step.

    Args:
        model: The method to train.
        mapping: The label mapping; only a linear one is optimized.
        recipe: The numbers of the training.
        steps: Number of steps of the whole run.
    """
    groups = model.parameter_groups(recipe.rates)
    if not mapping.start.additive:
        groups.append({"params": list(mapping.parameters()), "lr": recipe.rates.mapping})
    if recipe.optimiser == "adamw":
        adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
        peaks = [group["lr"] for group in groups]
        # One step more than the updates: the schedule ends at a rate near 0, which would waste the
        # last update.
        total = steps + 1
        # OneCycleLR divides by pct_start * total_steps - 1, which is 0 for 0.2 and 5.
        rise = 0.25 if total == 5 else 0.2
        return adamw, torch.optim.lr_scheduler.OneCycleLR(
            # Without cycled momentum, which would replace the first of Adam's betas.
            adamw,
            peaks,
            total_steps=total,
            pct_start=rise,
            cycle_momentum=False,
        )

    sgd = torch.optim.SGD(groups, momentum=0.9)
    warmup_steps = steps * recipe.warmup_epochs // recipe.epochs

    def scale(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        # recipe() makes the warm-up shorter than the run, but Recipe(...) does not; max then avoids
        # a division by zero.
        progress = (step - warmup_steps) / max(1, steps - warmup_steps)
        return 0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2

    return sgd, torch.optim.lr_scheduler.LambdaLR(sgd, scale)


class Run:
    """The state of a training run: parameters, optimizer, schedule and results so far.

    Args:
        model: The method to train.
        mapping: The label mapping, trained jointly.
        optimiser: Optimizer of the method and the mapping.
        schedule: Learning-rate schedule of the optimizer; it advances after each training step.

    Attributes:
        epoch: Number of finished epochs.
        best: Metrics and parameters of the best epoch so far; ``None`` before the first epoch.
        history: Validation accuracy and log-loss of each epoch.
    """

    def __init__(
        self,
        model: Method,
        mapping: TorchMapping,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.model = model
        self.mapping = mapping
        self.optimiser = optimiser
        self.schedule = schedule
        self.epoch = 0
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []

    def step(self, loss: Tensor) -> None:
        """Take one training step: update the parameters, and advance the learning-rate schedule."""
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()

    def postfix(self, loss: float) -> dict[str, str]:
        """Return the texts beside the progress bar: the loss and the last validation accuracy."""
        shown = {"loss": f"{loss:.3f}"}
        if self.history:
            shown["val"] = f"{self.history[-1]['accuracy']:.3f}"
        return shown

    def refit(self, seen: list[tuple[Tensor, Tensor]], seed: int) -> None:
        """Fit an additive label mapping, which has no gradient, again after an epoch.

        An ``flm`` mapping (frequency label mapping) is fitted only once, so it does not change.

        Args:
            seen: For each batch of the epoch: features (B, S), the scores of S endpoint labels, and
                class indices (B,).
            seed: Seed for the cross-validation folds.
        """
        if self.mapping.start.kind == "flm":
            return
        features = torch.cat([x for x, _ in seen]).cpu().double().numpy()
        targets = torch.cat([y for _, y in seen]).cpu().numpy()
        start = self.mapping.start
        fitted = labels.fit(
            features, targets, start.source, start.classes, kinds=(start.kind,), seed=seed
        )
        self.mapping = TorchMapping(fitted.mapping).to(self.mapping.weight.device)

    def judge(self, log_p: Tensor, targets: Tensor) -> None:
        """Record the validation results of an epoch, and copy its parameters if it is the best.

        The best epoch has the highest accuracy; in a tie, the lower log-loss decides.

        Args:
            log_p: Log-probabilities of the validation images, (n, C).
            targets: Class indices of the validation images, (n,) int64.

        Raises:
            ConfigurationError: The validation loss is not finite.
        """
        self.epoch += 1
        accuracy = (log_p.argmax(1) == targets).float().mean().item()
        loss = F.nll_loss(log_p, targets).item()
        if not math.isfinite(loss):
            raise ConfigurationError(
                f"training: got a validation loss of {loss} in epoch {self.epoch}, expected a "
                "finite one; use lower learning rates"
            )

        self.history.append({"accuracy": accuracy, "log_loss": loss})
        if self.best is None or (accuracy, -loss) > (self.best["accuracy"], -self.best["log_loss"]):
            # Cloned, because the next steps change the parameters in place.
            self.best = {
                "accuracy": accuracy,
                "log_loss": loss,
                "epoch": self.epoch,
                "model": {k: v.detach().clone() for k, v in self.model.state_dict().items()},
                "mapping": {k: v.detach().clone() for k, v in self.mapping.state_dict().items()},
            }

    def restore_best(self) -> None:
        """Set the method and the label mapping back to the best epoch.

        Raises:
            ConfigurationError: No epoch is finished.
        """
        if self.best is None:
            raise ConfigurationError("training: no epoch was finished; train for at least one")
        self.model.load_state_dict(self.best["model"])
        self.mapping.load_state_dict(self.best["mapping"])

    def state_dict(self) -> dict[str, Any]:
        """Return everything that an interrupted run needs to continue exactly, by name."""
        return {
            "model": self.model.state_dict(),
            "mapping": self.mapping.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
            "mapping_kind": self.mapping.start.kind,
            "epoch": self.epoch,
            "best": self.best,
            "history": self.history,
            # The CPU's generator alone, because a run on a GPU draws its random numbers there too.
            "random": torch.get_rng_state(),
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Load the state of a saved run, including that of the random number generator.

        Raises:
            CheckpointError: The state is damaged, or does not fit the method.
        """
        with reading_state():
            self._load(saved)

    def _load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.mapping.load_state_dict(saved["mapping"])
        self.optimiser.load_state_dict(saved["optimiser"])
        self.schedule.load_state_dict(saved["schedule"])
        self.epoch = saved["epoch"]
        self.best = saved["best"]
        self.history = saved["history"]
        # torch takes this state on the CPU only, wherever the caller loaded the file to.
        torch.set_rng_state(saved["random"].cpu())


def check_state(path: Path | None, resume: bool) -> None:
    """Refuse to overwrite the state of an unfinished run.

    Raises:
        ConfigurationError: The state file exists, and ``resume`` is false.
    """
    if path is not None and path.exists() and not resume:
        raise ConfigurationError(
            f"training: {path} is left over from an unfinished run; continue it with --resume, "
            "or delete the file"
        )


def save_state(path: Path, run: Run, identity: dict[str, Any]) -> None:
    """Write a run's state to a file, so that it can be resumed.

    The file is replaced as a whole, so an interruption leaves no partial file.

    Args:
        path: Path to write.
        run: The run to save.
        identity: Options that identify the run; :func:`load_state` compares them.
    """
    with whole_file(path) as partial:
        torch.save({"identity": identity, "run": run.state_dict()}, partial)


def reading_state(path: Path | None = None) -> AbstractContextManager[None]:
    """Context manager around the use of a saved run: whatever is wrong with it is one error.

    Args:
        path: File to name in the message, if it is known.
    """
    name = "the saved state" if path is None else str(path)
    return reading(f"training: {name}", "delete it and train again", CheckpointError)


def load_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read the state of a saved run from a file, for ``Run.load_state_dict``.

    No code in the file is executed.

    Args:
        path: File that :func:`save_state` wrote.
        identity: Options that identify the run to continue; the file must have the same.

    Raises:
        CheckpointError: The file cannot be read, or it belongs to another run.
    """
    with reading_state(path):
        saved = torch.load(path, weights_only=True, map_location="cpu")
        saved_identity = dict(saved["identity"])
        run = dict(saved["run"])
        different = sorted(name for name in identity if identity[name] != saved_identity.get(name))
    if different:
        raise CheckpointError(
            f"training: {path} is the state of another run (it differs in "
            f"{', '.join(different)}); give the same options, or delete the file"
        )
    return run
