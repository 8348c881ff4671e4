"""Run a benchmark over HTTP: each method on each image set, number of shots and seed. An
interrupted benchmark resumes after its last complete run.

Every run writes ``OUT/SET/SHOTS-SEED/ROW.npz`` (log-probabilities on validation and test images),
``ROW.json`` (its cost and size) and, if an endpoint can serve it, ``ROW.safetensors``. A run whose
``.json`` exists is not repeated. The table is computed from the files, so you can add sets, seeds
and methods to the same ``OUT`` later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgn_client.errors import ConfigurationError, reading
from pgn_client.evaluation import baselines
from pgn_client.evaluation.candidate import Candidate
from pgn_client.evaluation.fidelity import latent_log_probs
from pgn_client.evaluation.queries import Asker, Connect
from pgn_client.imaging.files import whole_file, write_whole
from pgn_client.imaging.geometry import place
from pgn_client.imaging.opening import open_regular, read_regular
from pgn_client.imaging.reader import Dataset
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
"""Callback that takes progress messages."""
Arrays = Mapping[str, NDArray[Any]]
"""Name → array, as an ``.npz`` file holds them."""

RAW_RUN = "raw"
PROBE_RUN = "linear_probe"
"""Names of two baseline runs, raw images and linear probe, which are done for every image set,
number of shots and seed, in addition to the methods.
"""

SETTINGS = "settings.json"
"""File in a benchmark's folder with the settings that all runs in the folder share."""
TEST_SEED = 0
"""Seed that selects the test images. It is the same for all runs, so that seeds can be averaged
image by image.
"""


@dataclass(frozen=True)
class Plan:
    """The runs of a benchmark.

    Attributes:
        sets: Name → folder, manifest or data set that ``training.load_task`` reads.
        methods: Methods as ``METHOD`` or ``METHOD@PRESET``, with names of ``methods.REGISTRY`` and
            ``training.PRESETS``.
        seeds: Seeds for choosing training and validation images, and for the training.
        shots: Largest numbers of training images per class; ``None`` for all.
        augment: Set name → augmentation that its images allow (see ``training.augment``).
        epochs: Epochs of every training; ``None`` for those of the preset.
        layout: Where methods with prompt cells (patches of the image) put them: ``ring``,
            ``corner`` or ``rows:N``; ``None`` for the default of each method.
        train: Largest number of training images, as even over the classes as possible; ``None``
            for no limit.
        val: Largest number of validation images, limited like ``train``.
        test: Largest number of test images, limited like ``train``.
    """

    sets: Mapping[str, Path | Dataset]
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
            ConfigurationError: A name is unknown or a number is out of range. The error comes
                before anything is written or trained.
        """
        specs = tuple(dict.fromkeys(_spec(*parse(text)) for text in self.methods))
        # Both loops discard their values: the calls raise an error for a wrong number or name.
        for spec in specs:
            recipe(parse(spec)[1], epochs=self.epochs)
        for name in self.sets:
            augment.get(self.augment.get(name, "shift"))
        if self.layout == "full":
            raise ConfigurationError(
                "layout: got full, expected ring, corner or rows:N, which the methods with prompt "
                "cells need"
            )
        if not any(deploys(spec) for spec in specs):
            raise ConfigurationError(
                f"methods: got {', '.join(specs)}, expected at least one that an endpoint can "
                "serve; add pgn"
            )
        return replace(self, methods=specs)

    def cells(self) -> Iterator[Cell]:
        """Yield every combination of image set, number of shots and seed.

        All sets come with the first seed before the next seed, so that unfinished results already
        cover all sets.
        """
        for seed in self.seeds:
            for shots in self.shots:
                for name in self.sets:
                    yield Cell(name, shots, seed)

    def settings(self) -> dict[str, Any]:
        """Return the settings of the plan that must be the same for all runs in one folder."""
        names = ("epochs", "layout", "train", "val", "test")
        return {"augment": dict(self.augment)} | {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Cell:
    """One task of the benchmark: a set, a number of shots and a seed.

    Attributes:
        set: Name of the image set.
        shots: Largest number of training images per class; ``None`` for all.
        seed: Seed for the choice of training images and for the training.
    """

    set: str
    shots: int | None
    seed: int

    def folder(self, out: Path) -> Path:
        """Return the folder for the runs of this set, shots and seed, inside the folder ``out``."""
        return out / self.set / f"{'all' if self.shots is None else self.shots}-{self.seed}"

    def task(self, plan: Plan) -> Task:
        """Read the images of this set, limited to its shots and to the plan's sizes.

        ``TEST_SEED`` selects the test images; ``seed`` selects training and validation images. Test
        images that are byte copies of the others are left out.

        Raises:
            ConfigurationError: The set has no test images, or copies of the others only.
        """
        task = load_task(plan.sets[self.set], seed=TEST_SEED)
        if not len(task.test):
            raise ConfigurationError(
                f"data: got no test images in {plan.sets[self.set]}, expected some; add test/"
            )
        # Test images first: they must not depend on the seed of the cell.
        task = task.without_copies()
        task = task.limited(test=plan.test, seed=TEST_SEED).with_shots(self.shots, self.seed)
        return task.limited(train=plan.train, val=plan.val, seed=self.seed)


@dataclass(frozen=True)
class Bench:
    """A benchmark: the planned runs, and the surrogate, endpoint and folder for them.

    Attributes:
        plan: The runs to do.
        out: Folder of the runs.
        surrogate: Backbone that prompts are trained through.
        connect: Opens a client of the endpoint for an adapter, or for raw images (``None``).
        endpoint: Name of the endpoint, written to the settings: a URL, or the name of a local
            server.
        profile: How the endpoint resizes and crops images; ``None`` for the backbone's own
            preprocessing.
        note: Callback that takes progress messages.
        progress: Whether to show progress bars on stderr.
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
        """Do all runs of the benchmark that are not complete yet, and write their files.

        Raises:
            ConfigurationError: A method or preset is unknown, a method does not fit the surrogate,
                or ``out`` holds runs with other settings.
        """
        if not self.surrogate.plain:
            for spec in self.plan.methods:
                method = methods.get(parse(spec)[0])
                if issubclass(method, methods.WhiteBox) and method.reads_features:
                    raise ConfigurationError(
                        f"method {spec}: got the surrogate {self.surrogate.name}, expected a plain "
                        f"ViT; leave {spec} out"
                    )
        # Called for its check alone: a layout that does not fit must fail before the first run.
        place(self.plan.layout or "ring", self.surrogate.input_size // self.surrogate.patch_size)

        todo = []
        for cell in self.plan.cells():
            rows = missing_rows(self.out, cell, self.plan)
            if rows:
                todo.append((cell, rows))
        # All sets are read before anything is written, so that bad data fails early.
        tasks = [cell.task(self.plan) for cell, _ in todo]
        self._write_settings()
        for (cell, rows), task in zip(todo, tasks, strict=True):
            self._run_cell(cell, task, rows)

    def _write_settings(self) -> None:
        """Write the file of settings that all runs in the benchmark's folder share.

        Raises:
            ConfigurationError: ``out`` holds runs with other settings.
        """
        ours = self.plan.settings() | {
            "weights_sha256": self.surrogate.weights_sha256,
            "endpoint": self.endpoint,
            "profile": str(self.profile or ""),
            "version": __version__,
            # Its value has changed within one version before, and the baselines depend on it.
            "copies": augment.COPIES,
        }
        theirs = _require_settings(self.out, ours)
        # Earlier runs in this folder may have had other sets, whose augmentations must stay known.
        ours["augment"] = theirs.get("augment", {}) | ours["augment"]
        self.out.mkdir(parents=True, exist_ok=True)
        write_whole(self.out / SETTINGS, (json.dumps(ours, indent=1) + "\n").encode())

    def _run_cell(self, cell: Cell, task: Task, missing: Sequence[str]) -> None:
        """Do the missing runs of one cell (an image set, number of shots and seed), and write their
        files.
        """
        folder = cell.folder(self.out)
        folder.mkdir(parents=True, exist_ok=True)
        self._write_targets(cell, task, folder / "targets.npz")

        for row in missing:
            self.note(f"{cell.set}, {cell.shots or 'all'} shots, seed {cell.seed}: {row}")
            arrays, measurements = self._measure(cell, task, row)
            sizes = {"train": len(task.train), "val": len(task.val), "test": len(task.test)}
            record = asdict(cell) | {"row": row, "split": sizes, "classes": len(task.classes)}
            text = json.dumps(record | measurements, indent=1)
            np.savez_compressed(folder / f"{row}.npz", **arrays)  # type: ignore[arg-type]
            # Written last, because its presence marks the run as complete.
            write_whole(folder / f"{row}.json", (text + "\n").encode())

    def _write_targets(self, cell: Cell, task: Task, path: Path) -> None:
        """Write the class indices and image names that all runs of one set, shots and seed share.

        Raises:
            ConfigurationError: The file exists, and was written for other images.
        """
        # Class and file name identify an image wherever its set lies, so a set may be moved.
        ids = np.array([f"{image.parent.name}/{image.name}" for image in task.test.paths])
        targets = {
            "val": task.val.labels,
            "test": task.test.labels,
            "ids": ids,
            "digest": np.array(task.digest()),
        }
        if not path.exists():
            with whole_file(path) as partial, partial.open("wb") as file:
                np.savez(file, **targets)  # type: ignore[arg-type]
            return
        with reading_benchmark(path), open_regular(path) as content, np.load(content) as saved:
            is_same = _same(saved, targets)
        if not is_same:
            raise ConfigurationError(
                f"benchmark: {path.parent} holds runs on other images than those in "
                f"{self.plan.sets[cell.set]}; choose another --out"
            )

    def _measure(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        """Do one run, a method or a baseline; return its log-probabilities, and what its ``.json``
        file records.
        """
        if row == RAW_RUN:
            raw, fitted = baselines.raw(Asker(self.connect), task, self._augment(cell), cell.seed)
            size = fitted.mapping.weight.size + fitted.mapping.bias.size
            return _arrays(raw), {"queries": raw.queries, "learnable": {"mapping": size}}
        if row == PROBE_RUN:
            probe = baselines.probe(self.surrogate, task, self._augment(cell), cell.seed)
            size = (self.surrogate.width + 1) * len(task.classes)  # weights and biases
            return _arrays(probe), {"queries": 0, "learnable": {"mapping": size}}
        if deploys(row):
            return self._deployed(cell, task, row)
        return self._white_box(cell, task, row)

    def _deployed(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        """Train and save a prompt, and measure it over HTTP.

        Returns:
            Log-probabilities of the prompt and of its local head; and the record of the run, with
            the share of images that get the same label over HTTP as with float32 tokens.
        """
        method, _ = parse(row)
        numbers = self._recipe(cell, row)

        started = time.monotonic()
        config = TrainingConfig(
            method=method,
            # The layout of the plan places cells, and a method on the whole canvas has none.
            layout=None if methods.get(method).layout == "full" else self.plan.layout,
            profile=self.profile,
            recipe=numbers,
            seed=cell.seed,
        )
        adapter = fit(task, self.surrogate, config, progress=self.progress)
        if adapter.card.interrupted:
            # fit() returns early on Ctrl-C; a half-trained prompt must not count as a run.
            raise KeyboardInterrupt
        seconds = round(time.monotonic() - started, 1)
        adapter.save(cell.folder(self.out) / f"{row}.safetensors")

        val = FittedSplit.of(task.val, adapter)
        test = FittedSplit.of(task.test, adapter)
        # The title is empty, because only the log-probabilities and counts are saved.
        prompted = baselines.prompted("", Asker(self.connect), adapter, task)
        local = baselines.local_head(adapter, val, test)
        latent = latent_log_probs(adapter, self.surrogate, test.fitted)
        same_label = latent.argmax(axis=1) == prompted.test.argmax(axis=1)

        generator = adapter.runtime[0].generator
        # The card counts the trunk as part of the prompt where the two share it, but a local head
        # that is used without the prompt needs the trunk too.
        classifier = [*generator.trunk.parameters(), *generator.local_head.parameters()]
        record = {
            "seconds": seconds,
            "recipe": numbers.card(),
            "queries": prompted.queries,
            "learnable": {
                **(adapter.card.learnable or {}),
                "classifier": sum(p.numel() for p in classifier),
            },
            "agreement": float(same_label.mean()),
            "fusion": adapter.card.fusion,
            "perplexity": adapter.card.metrics and adapter.card.metrics.perplexity,
        }
        return _arrays(prompted) | {"local_val": local.val, "local_test": local.test}, record

    def _white_box(self, cell: Cell, task: Task, row: str) -> tuple[Arrays, dict[str, Any]]:
        """Train and measure a white-box method, which needs the model's weights and sends nothing.

        Returns:
            Log-probabilities of the method, and the record of the run.
        """
        method, _ = parse(row)
        numbers = self._recipe(cell, row)

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
    """Return the settings of the earlier runs in ``out``; empty if there are none.

    Raises:
        ConfigurationError: The settings ``ours`` of the new runs differ from those of earlier runs.
    """
    path = out / SETTINGS
    if not path.exists():
        return {}
    with reading_benchmark(path):
        theirs: dict[str, Any] = json.loads(read_regular(path))
        differs = [k for k in ours if k != "augment" and theirs.get(k) != ours[k]]
        # Each set has its own augmentation, and a set that is new in this table cannot differ.
        for name, augmentation in ours["augment"].items():
            if theirs["augment"].get(name, augmentation) != augmentation:
                differs.append(f"augment of {name}")
    if differs:
        raise ConfigurationError(
            f"benchmark: {out} holds runs that differ in {', '.join(differs)}; choose another --out"
        )
    return theirs


def reading_benchmark(path: Path) -> AbstractContextManager[None]:
    """Context manager around the reading of a benchmark's file: all that is wrong is one error."""
    return reading(f"benchmark: {path}", "choose another --out, or remove the file")


def missing_rows(out: Path, cell: Cell, plan: Plan) -> list[str]:
    """Return the names of the runs that are still to be done for one set, shots and seed.

    Args:
        out: Folder of the benchmark.
        cell: Set, shots and seed.
        plan: Planned methods; runs of raw images and of the linear probe are always added.
    """
    return [
        row
        for row in (RAW_RUN, PROBE_RUN, *plan.methods)
        if not (cell.folder(out) / f"{row}.json").exists()
    ]


def parse(spec: str) -> tuple[str, str]:
    """Split ``METHOD`` or ``METHOD@PRESET`` into method and preset.

    Raises:
        ConfigurationError: The method or the preset is unknown, or the method has no presets,
            because it has no token library.
    """
    method, _, preset = spec.partition("@")
    kind = methods.get(method)
    recipe(preset or "default")  # Called for its check alone: it raises for an unknown preset.
    if preset not in ("", "default") and not issubclass(kind, methods.PGN):
        raise ConfigurationError(
            f"methods: got {spec}, but {method} has no presets; leave @{preset} out"
        )
    return method, preset or "default"


def deploys(spec: str) -> bool:
    """Whether a hosted endpoint can serve a method, given as ``METHOD`` or ``METHOD@PRESET``.

    It can if the method paints its prompt into images, and needs no access to the model's weights.
    """
    return issubclass(methods.get(parse(spec)[0]), methods.RGBMethod)


def _spec(method: str, preset: str) -> str:
    return method if preset == "default" else f"{method}@{preset}"


def _same(saved: Arrays, ours: Arrays) -> bool:
    return all(name in saved and np.array_equal(saved[name], array) for name, array in ours.items())


def _arrays(row: Candidate) -> dict[str, NDArray[Any]]:
    return {"val": row.val, "test": row.test}
