"""One table for all methods: sets × shots × seeds × methods, over HTTP, resumable run by run.

Every run leaves ``OUT/SET/SHOTS-SEED/ROW.npz`` (log-probabilities on validation and test images),
``ROW.json`` (what it cost) and, if it can be deployed, ``ROW.safetensors``. A run whose ``.json``
is there is not repeated; the table is computed from the files, so more sets, seeds and methods may
be added to the same ``OUT`` later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgn_client.errors import ConfigurationError
from pgn_client.evaluation import baselines
from pgn_client.evaluation.candidate import Candidate
from pgn_client.evaluation.fidelity import latent_log_probs
from pgn_client.evaluation.queries import Asker, Connect
from pgn_client.imaging.files import whole_file, write_whole
from pgn_client.imaging.geometry import place
from pgn_client.prompting import methods
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training import (
    Recipe,
    Task,
    TrainingConfig,
    augment,
    fit,
    fit_white_box,
    load_task,
    recipe,
)
from pgn_client.training.examples import FittedSplit
from pgn_client.types import ServerProfile
from pgn_client.version import __version__

Note = Callable[[str], None]
Arrays = Mapping[str, NDArray[Any]]

RAW_RUN, PROBE_RUN = "raw", "linear_probe"
"""Runs that are always there, beside those of the methods."""
SETTINGS = "settings.json"
TEST_SEED = 0
"""All seeds are tested on the same images, so that they can be averaged image by image."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sets: name → folder, as of ``training.load_task``.
        methods: ``METHOD`` or ``METHOD@PRESET`` each, names of ``methods.REGISTRY`` and
            ``training.PRESETS``.
        seeds: of shots, limits and training.
        shots: training images per class, at most; ``None`` for all.
        augment: set name → what its images allow (see ``training.augment``).
        epochs: of every training; ``None`` for the preset's.
        layout: of methods with prompt cells; ``None`` for their own.
        train, val, test: at most so many images, as evenly over the classes as they allow.
    """

    sets: Mapping[str, Path]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    shots: tuple[int | None, ...] = (None,)
    augment: Mapping[str, str] = field(default_factory=dict)
    epochs: int | None = None
    layout: str | None = None
    train: int | None = None
    val: int | None = None
    test: int | None = None

    def checked(self) -> Plan:
        """Return the plan with every method named once, as ``METHOD`` or ``METHOD@PRESET``.

        Raises:
            ConfigurationError: an unknown name or a number that makes no sense, before anything is
                written or trained.
        """
        specs = tuple(dict.fromkeys(_spec(*parse(text)) for text in self.methods))
        for spec in specs:
            recipe(parse(spec)[1], epochs=self.epochs)
        for name in self.sets:
            augment.get(self.augment.get(name, "shift"))
        if self.layout == "full":
            raise ConfigurationError(
                "layout: got full, expected ring, corner or rows:N, for the methods with "
                "prompt cells"
            )
        if not any(deploys(spec) for spec in specs):
            raise ConfigurationError(
                f"methods: got {', '.join(specs)}, expected at least one that an endpoint can "
                "serve; add pgn"
            )
        return replace(self, methods=specs)

    def cells(self) -> Iterator[Cell]:
        """Return every (set, shots, seed), seeds outermost, so that an early look shows all
        sets.
        """
        for seed in self.seeds:
            for shots in self.shots:
                for name in self.sets:
                    yield Cell(name, shots, seed)

    def settings(self) -> dict[str, Any]:
        """Return what must be the same for all runs of one table."""
        kept = ("augment", "epochs", "layout", "train", "val", "test")
        return {name: value for name, value in asdict(self).items() if name in kept}


@dataclass(frozen=True)
class Cell:
    """One task: a set, shots and a seed."""

    set: str
    shots: int | None
    seed: int

    def folder(self, out: Path) -> Path:
        """Where its runs lie."""
        return out / self.set / f"{'all' if self.shots is None else self.shots}-{self.seed}"

    def task(self, plan: Plan) -> Task:
        """Read its images: test images by a seed of their own, training and validation images
        by the cell's.
        """
        whole = load_task(plan.sets[self.set], seed=TEST_SEED)
        if not len(whole.test):
            raise ConfigurationError(
                f"data: got no test images in {plan.sets[self.set]}, expected some; add test/"
            )
        tested = whole.limited(test=plan.test, seed=TEST_SEED).with_shots(self.shots, self.seed)
        return tested.limited(train=plan.train, val=plan.val, seed=self.seed)


@dataclass(frozen=True)
class Bench:
    """A plan at work.

    Attributes:
        plan: what is measured.
        out: where runs are kept.
        surrogate: the backbone that training goes through.
        connect: opens a client of the endpoint for an adapter, or for images as they are
            (``None``).
        endpoint: what the table is of, for its settings: an URL, or the name of what is hosted
            here.
        profile: what the endpoint does to an image's geometry; ``None`` takes the backbone's own
            preprocessing.
        note: told what is going on.
        progress: show bars on stderr.
    """

    plan: Plan
    out: Path
    surrogate: Backbone
    connect: Connect
    endpoint: str = ""
    profile: ServerProfile | None = None
    note: Note = lambda _: None
    progress: bool = False

    def run(self) -> None:
        """Do all runs that are not there yet.

        Raises:
            ConfigurationError: an unknown method or preset, or ``out`` holds runs with other
                settings.
        """
        if not self.surrogate.plain:
            for spec in self.plan.methods:
                method = methods.get(parse(spec)[0])
                if issubclass(method, methods.WhiteBox) and method.reads_features:
                    raise ConfigurationError(
                        f"method {spec}: got {self.surrogate.name}, expected a plain ViT; "
                        "leave it out"
                    )
        place(self.plan.layout or "ring", self.surrogate.input_size // self.surrogate.patch_size)
        todo = [
            (cell, rows)
            for cell in self.plan.cells()
            if (rows := missing_rows(self.out, cell, self.plan))
        ]
        tasks = [cell.task(self.plan) for cell, _ in todo]
        self._claim()
        for (cell, rows), task in zip(todo, tasks, strict=True):
            self._run_cell(cell, task, rows)

    def _claim(self) -> None:
        """Write down what all runs of this table share, or refuse to mix."""
        ours = self.plan.settings() | {
            "weights_sha256": self.surrogate.weights_sha256,
            "endpoint": self.endpoint,
        }
        ours |= {
            "profile": str(self.profile or ""),
            "version": __version__,
            "copies": augment.COPIES,
        }
        theirs = _require_settings(self.out, ours)
        ours["augment"] = theirs.get("augment", {}) | ours["augment"]
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / SETTINGS, (json.dumps(ours, indent=1) + "\n").encode())

    def _run_cell(self, cell: Cell, task: Task, missing: Sequence[str]) -> None:
        folder = cell.folder(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        ids = np.array([f"{path.parent.name}/{path.name}" for path in task.test.paths])
        targets = {
            "val": task.val.labels,
            "test": task.test.labels,
            "ids": ids,
            "digest": np.array(task.digest()),
        }
        path = folder / "targets.npz"
        if not path.exists():
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez(file, **targets)  # type: ignore[arg-type]
        elif not _same(np.load(path), targets):
            raise ConfigurationError(
                f"benchmark: {folder} holds runs on other images than "
                f"{self.plan.sets[cell.set]} has; "
                "choose another --out"
            )
        for row in missing:
            self.note(f"{cell.set}, {cell.shots or 'all'} shots, seed {cell.seed}: {row}")
            arrays, record = self._measure(cell, task, row)
            np.savez_compressed(folder / f"{row}.npz", **arrays)  # type: ignore[arg-type]
            sizes = {"train": len(task.train), "val": len(task.val), "test": len(task.test)}
            text = json.dumps(
                asdict(cell) | {"row": row, "split": sizes, "classes": len(task.classes)} | record,
                indent=1,
            )
            # Written last: a run that was killed leaves no such mark.
            write_whole(folder / f"{row}.json", (text + "\n").encode())

    def _measure(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        if row == RAW_RUN:
            found, fitted = baselines.raw(Asker(self.connect), task, self._augment(cell), cell.seed)
            size = fitted.mapping.weight.size + fitted.mapping.bias.size
            return _arrays(found), {"queries": found.queries, "learnable": {"mapping": size}}
        if row == PROBE_RUN:
            found = baselines.probe(self.surrogate, task, self._augment(cell), cell.seed)
            width = self.surrogate.width
            return _arrays(found), {
                "queries": 0,
                "learnable": {"mapping": (width + 1) * len(task.classes)},
            }
        if deploys(row):
            return self._deployed(cell, task, row)
        return self._white_box(cell, task, row)

    def _deployed(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        """Train, save, and ask the endpoint; compare with what the latent space says."""
        (method, _), numbers = parse(row), self._recipe(cell, row)
        started = time.monotonic()
        config = TrainingConfig(
            method=method,
            layout=None if methods.get(method).layout == "full" else self.plan.layout,
            profile=self.profile,
            recipe=numbers,
            seed=cell.seed,
        )
        adapter = fit(task, self.surrogate, config, progress=self.progress)
        if adapter.card.interrupted:
            raise KeyboardInterrupt
        seconds = round(time.monotonic() - started, 1)
        adapter.save(cell.folder(self.out) / f"{row}.safetensors")
        val, test = (FittedSplit.of(split, adapter) for split in (task.val, task.test))
        found = baselines.prompted("", Asker(self.connect), adapter, task)
        local = baselines.local_head(adapter, val, test)
        latent = latent_log_probs(adapter, self.surrogate, test.fitted)
        head = adapter.runtime[0].generator
        classifier = [*head.trunk.parameters(), *head.local_head.parameters()]
        record = {
            "seconds": seconds,
            "recipe": numbers.card(),
            "queries": found.queries,
            "learnable": {
                **(adapter.card.learnable or {}),
                "classifier": sum(p.numel() for p in classifier),
            },
            "agreement": float((latent.argmax(axis=1) == found.test.argmax(axis=1)).mean()),
            "fusion": adapter.card.fusion,
            "perplexity": adapter.card.metrics and adapter.card.metrics.perplexity,
        }
        return _arrays(found) | {"local_val": local.val, "local_test": local.test}, record

    def _white_box(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        (method, _), numbers = parse(row), self._recipe(cell, row)
        started = time.monotonic()
        model = fit_white_box(
            task, self.surrogate, method, recipe=numbers, seed=cell.seed, progress=self.progress
        )
        record = {
            "seconds": round(time.monotonic() - started, 1),
            "recipe": numbers.card(),
            "queries": 0,
            "learnable": model.learnable(),
            "white_box": True,
        }
        return {"val": model.log_probs(task.val), "test": model.log_probs(task.test)}, record

    def _augment(self, cell: Cell) -> str:
        return self.plan.augment.get(cell.set, "shift")

    def _recipe(self, cell: Cell, row: str) -> Recipe:
        return recipe(parse(row)[1], epochs=self.plan.epochs, augment=self._augment(cell))


def _require_settings(out: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the runs that are in ``out`` already, if any.

    Raises:
        ConfigurationError: some of ours differ from them.
    """
    path = out / SETTINGS
    if not path.exists():
        return {}
    theirs: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    differs = [k for k in ours if k != "augment" and theirs.get(k) != ours[k]]
    differs += [
        f"augment of {k}" for k, v in ours["augment"].items() if theirs["augment"].get(k, v) != v
    ]
    if differs:
        raise ConfigurationError(
            f"benchmark: {out} holds runs that differ in {', '.join(differs)}; choose another --out"
        )
    return theirs


def missing_rows(out: Path, cell: Cell, plan: Plan) -> list[str]:
    """Return the rows of a cell that are not there yet."""
    return [
        row
        for row in (RAW_RUN, PROBE_RUN, *plan.methods)
        if not (cell.folder(out) / f"{row}.json").exists()
    ]


def parse(spec: str) -> tuple[str, str]:
    """``METHOD`` or ``METHOD@PRESET`` → both.

    Raises:
        ConfigurationError: either is unknown, or the preset is of token libraries and the method
            has none.
    """
    method, _, preset = spec.partition("@")
    kind = methods.get(method)
    recipe(preset or "default")
    if preset not in ("", "default") and not issubclass(kind, methods.PGN):
        raise ConfigurationError(
            f"methods: got {spec}, but {method} has no presets; leave @{preset} out"
        )
    return method, preset or "default"


def deploys(spec: str) -> bool:
    """Whether an endpoint can serve the method."""
    return issubclass(methods.get(parse(spec)[0]), methods.RGBMethod)


def _spec(method: str, preset: str) -> str:
    return method if preset == "default" else f"{method}@{preset}"


def _same(kept: Arrays, ours: Arrays) -> bool:
    return all(name in kept and np.array_equal(kept[name], array) for name, array in ours.items())


def _arrays(found: Candidate) -> dict[str, NDArray[Any]]:
    return {"val": found.val, "test": found.test}
