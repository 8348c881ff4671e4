"""What changes during a run, and how it survives an interruption."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.files import whole_file
from pgn_client.mapping import label_mapping as labels
from pgn_client.prompting.methods import Method
from pgn_client.training.recipe import Recipe
from pgn_client.training.torch_mapping import TorchMapping


def optimisation(
    model: Method, mapping: TorchMapping, recipe: Recipe, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Return optimiser and per-step schedule of a recipe, for ``steps`` steps in all."""
    groups = model.parameter_groups(recipe.rates)
    if not mapping.start.additive:
        groups.append({"params": list(mapping.parameters()), "lr": recipe.rates.mapping})
    if recipe.optimiser == "adamw":
        adamw = torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=recipe.weight_decay)
        peaks = [group["lr"] for group in groups]
        rise = 0.25 if steps == 4 else 0.2  # torch divides by 0.2 * total_steps - 1
        return adamw, torch.optim.lr_scheduler.OneCycleLR(
            adamw, peaks, total_steps=steps + 1, pct_start=rise, cycle_momentum=False
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
        model: Method,
        mapping: TorchMapping,
        optimiser: torch.optim.Optimizer,
        schedule: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        self.model, self.mapping, self.optimiser, self.schedule = (
            model,
            mapping,
            optimiser,
            schedule,
        )
        self.epoch = 0
        self.best: dict[str, Any] | None = None
        self.history: list[dict[str, float]] = []

    def step(self, loss: Tensor) -> None:
        """One optimiser step down a loss."""
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()

    def postfix(self, loss: float) -> dict[str, str]:
        """What the progress bar shows: the loss now, and the last validation accuracy."""
        shown = {"loss": f"{loss:.3f}"}
        if self.history:
            shown["val"] = f"{self.history[-1]['accuracy']:.3f}"
        return shown

    def refit(self, seen: list[tuple[Tensor, Tensor]], seed: int) -> None:
        """Fit an additive mapping anew on the answers of the last epoch; ``flm`` is the one that
        stays.
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
        """End an epoch: keep it if its validation accuracy is the best (ties: the lower log-loss).

        Raises:
            ConfigurationError: training has diverged.
        """
        self.epoch += 1
        accuracy = (log_p.argmax(1) == targets).float().mean().item()
        loss = F.nll_loss(log_p, targets).item()
        if not math.isfinite(loss):
            raise ConfigurationError(
                f"training: got a validation loss of {loss} in epoch {self.epoch}, expected a "
                "finite one; "
                "use lower learning rates"
            )
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
        parts = {
            k: getattr(self, k).state_dict() for k in ("model", "mapping", "optimiser", "schedule")
        }
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


def check_state(path: Path | None, resume: bool) -> None:
    """Refuse to run over what an unfinished run has left.

    Raises:
        ConfigurationError: it is there, and was not asked to be resumed.
    """
    if path is not None and path.exists() and not resume:
        raise ConfigurationError(
            f"training: {path} is left of an unfinished run; go on with --resume, or delete it"
        )


def save_state(path: Path, run: Run, identity: dict[str, Any]) -> None:
    """Keep a run after an epoch, atomically; ``identity`` is the card, which says what run it
    is.
    """
    with whole_file(path) as partial:
        torch.save({"identity": identity, "run": run.state_dict()}, partial)


def load_state(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Return the saved run, for ``Run.load_state_dict``. Nothing in the file is executed.

    Raises:
        CheckpointError: it cannot be read, or belongs to another run.
    """
    try:
        saved = torch.load(path, weights_only=True, map_location="cpu")
        other = saved["identity"]
        run: dict[str, Any] = saved["run"]
    except Exception as error:  # torch.load raises many kinds on a damaged file
        raise CheckpointError(
            f"training: {path} cannot be read; delete it and train anew"
        ) from error
    different = sorted(k for k in identity if identity[k] != other.get(k))
    if different:
        raise CheckpointError(
            f"training: {path} is of another run (it differs in {', '.join(different)}); "
            "give the same options, or delete it"
        )
    return run
