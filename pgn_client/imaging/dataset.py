"""Folders of labelled images become a task: classes and three disjoint splits.

``DATA/{train,val,test}/CLASS/*``; where ``val`` is missing it is split off ``train``, and a plain
``DATA/CLASS/*`` tree is split 60 / 20 / 20. Every split is seeded and stratified. Nothing is ever
selected on ``test``. Several tasks make one by :func:`union`.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pgn_client.arrays import Integers
from pgn_client.errors import ConfigurationError
from pgn_client.imaging.codecs import IMAGE_SUFFIXES

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Some labelled images.

    Attributes:
        paths: n files.
        labels: (n,) int64 in [0, C).
    """

    paths: tuple[Path, ...]
    labels: Integers

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | Integers) -> Split:
        """Return the chosen rows, in that order."""
        return Split(
            tuple(self.paths[i] for i in rows), self.labels[np.asarray(rows, dtype=np.int64)]
        )


@dataclass(frozen=True)
class Task:
    """A classification task.

    Attributes:
        classes: the C class names, sorted; in a union ``PART/CLASS``, part by part.
        train, val, test: disjoint splits; ``test`` may be empty.
        shots, seed: how they were drawn (see :func:`load_task`).
        parts: the names of the tasks that a union was made of; none in a plain task.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    shots: int | None = None
    seed: int = 0
    parts: tuple[str, ...] = ()

    def card(self) -> dict[str, Any]:
        """Return what a checkpoint card tells about the data; a union's has the card of every part
        under ``parts``.
        """
        sizes = {"train": len(self.train), "val": len(self.val)}
        card = {"digest": self.digest(), **sizes, "shots": self.shots, "seed": self.seed}
        return card | (
            {"parts": {name: _part(self, name).card() for name in self.parts}} if self.parts else {}
        )

    def with_shots(self, shots: int | None, seed: int) -> Task:
        """Return the task with at most so many training images per class, drawn by this seed;
        ``None`` for all.
        """
        train = self.train if shots is None else _few(self.train, shots, seed)
        return replace(self, train=train, shots=shots, seed=seed)

    def limited(
        self,
        *,
        train: int | None = None,
        val: int | None = None,
        test: int | None = None,
        seed: int = 0,
    ) -> Task:
        """Return the task with at most so many images in a split, as evenly over the C classes as
        they allow.

        The classes give one image each in turn; which image, and who gives in a last round that
        is not full, is drawn. What is left keeps its order, and a smaller limit's images are
        among a larger one's.

        Args:
            train: at least C; ``None`` leaves the split as it is.
            val: the same.
            test: at least 1, or ``None``.
            seed: of the draw; the task's own stays what it was.

        Raises:
            ConfigurationError: a limit that is too low.
        """

        def at_most(name: str, split: Split, limit: int | None, least: int) -> Split:
            if limit is None:
                return split
            if limit < least:
                why = "one image" if name == "test" else "one of each class"
                raise ConfigurationError(
                    f"limit of {name}: got {limit}, expected at least {least}, {why}; raise it or "
                    "leave it out"
                )
            return _evenly(split, limit, seed)

        return replace(
            self,
            train=at_most("train", self.train, train, len(self.classes)),
            val=at_most("val", self.val, val, len(self.classes)),
            test=at_most("test", self.test, test, 1),
        )

    def digest(self) -> str:
        """SHA-256 over the classes and over what is in the training and validation files, in
        order.
        """
        sha = hashlib.sha256("\0".join(self.classes).encode())
        for split in (self.train, self.val):
            for path, label in zip(split.paths, split.labels, strict=True):
                sha.update(f"{label}".encode() + hashlib.sha256(path.read_bytes()).digest())
        return sha.hexdigest()


def load_task(folder: str | os.PathLike[str], *, shots: int | None = None, seed: int = 0) -> Task:
    """Find classes and splits below a folder.

    Args:
        folder: ``DATA`` as above.
        shots: at most this many training images per class; ``None`` takes all.
        seed: of splits and shots.

    Raises:
        ConfigurationError: no folder, no classes, a class that a split does not know, or too few
            images.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ConfigurationError(
            f"data: got {root}, expected a folder with train/, val/, test/ or one folder per class"
        )
    if (root / "train").is_dir():
        classes = _classes(root / "train")
        splits = [_read_split(root / name, classes) for name in SPLITS]
    else:
        classes = _classes(root)
        splits = _stratified(_read_split(root, classes), (0.6, 0.2, 0.2), seed)
    train, val, test = splits
    if not len(val):
        train, val = _stratified(train, (0.8, 0.2), seed)
    if shots is not None:
        train = _few(train, shots, seed)
    task = Task(classes, train, val, test, shots, seed)
    _check(task, root)
    return task


def union(tasks: Mapping[str, Task]) -> Task:
    """Make one task of several, for one generator that serves several sets.

    Args:
        tasks: plain tasks by name. Their classes become ``NAME/CLASS`` and their splits follow one
            another in the order given; the labels of a task are shifted by the number of classes
            before it.

    Raises:
        ConfigurationError: no tasks, an empty name, one with a slash, one given twice, a task that
            is a union itself, or tasks that differ in shots or seed.
    """
    names = tuple(name for name, _ in tasks.items())
    members = [task for _, task in tasks.items()]
    _check_union(names, members)
    starts = np.cumsum([0, *(len(task.classes) for task in members)])[:-1]

    def joined(of: Callable[[Task], Split]) -> Split:
        labels = [of(task).labels + start for task, start in zip(members, starts, strict=True)]
        return Split(
            tuple(path for task in members for path in of(task).paths), np.concatenate(labels)
        )

    return Task(
        tuple(
            f"{name}/{label}"
            for name, task in zip(names, members, strict=True)
            for label in task.classes
        ),
        joined(lambda task: task.train),
        joined(lambda task: task.val),
        joined(lambda task: task.test),
        members[0].shots,
        members[0].seed,
        names,
    )


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(
        sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    )
    if len(names) < 2:
        raise ConfigurationError(
            f"data: got {len(names)} class folders in {folder}, expected at least 2, one per class"
        )
    return names


def _read_split(folder: Path, classes: tuple[str, ...]) -> Split:
    if not folder.is_dir():
        return Split((), np.empty(0, dtype=np.int64))
    unknown = {p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")} - set(
        classes
    )
    if unknown:
        raise ConfigurationError(
            f"data: {folder} has classes {sorted(unknown)[:3]} that the training split has not"
        )
    rows = [
        (path, label)
        for label, name in enumerate(classes)
        for path in sorted((folder / name).glob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    ]
    return Split(
        tuple(path for path, _ in rows), np.array([label for _, label in rows], dtype=np.int64)
    )


def _by_class(split: Split, seed: int) -> list[list[int]]:
    """Row numbers of each class, shuffled."""
    rows: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(split)):
        rows[int(split.labels[i])].append(int(i))
    return [rows[label] for label in sorted(rows)]


def _stratified(split: Split, shares: tuple[float, ...], seed: int) -> list[Split]:
    parts: list[list[int]] = [[] for _ in shares]
    for rows in _by_class(split, seed):
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.extend(rows[start:end])
    return [split.take(sorted(part)) for part in parts]


def _few(split: Split, shots: int, seed: int) -> Split:
    if shots < 1:
        raise ConfigurationError(f"shots: got {shots}, expected at least 1 image per class")
    return split.take(sorted(i for rows in _by_class(split, seed) for i in rows[:shots]))


def _evenly(split: Split, limit: int, seed: int) -> Split:
    groups = _by_class(split, seed)
    turns = np.random.default_rng([seed, 1]).permutation(len(groups)).tolist()
    drawn = sorted(
        (place, turn, row)
        for turn, rows in zip(turns, groups, strict=True)
        for place, row in enumerate(rows)
    )
    return split.take(sorted(row for _, _, row in drawn[:limit]))


def _part(task: Task, name: str) -> Task:
    """What of a union, limited or not, comes from one of its tasks."""
    prefix = f"{name}/"
    labels = [label for label, full in enumerate(task.classes) if full.startswith(prefix)]

    def own(split: Split) -> Split:
        part = split.take(np.flatnonzero(np.isin(split.labels, labels)))
        return Split(part.paths, part.labels - labels[0])

    classes = tuple(task.classes[label].removeprefix(prefix) for label in labels)
    return Task(classes, own(task.train), own(task.val), own(task.test), task.shots, task.seed)


def _check_union(names: Sequence[str], members: Sequence[Task]) -> None:
    if not names:
        raise ConfigurationError(
            "union: got no tasks, expected at least one; name the sets to serve"
        )
    for name, task in zip(names, members, strict=True):
        if not name or "/" in name:
            raise ConfigurationError(
                f"union: got the name {name!r}, expected one without a slash; rename the task"
            )
        if names.count(name) > 1:
            raise ConfigurationError(
                f"union: got the name {name!r} twice, expected different ones; rename a task"
            )
        if task.parts:
            raise ConfigurationError(
                f"union: got a union as {name!r}, expected a plain task; give "
                f"{', '.join(task.parts)} themselves"
            )
    for what in ("shots", "seed"):
        values = [getattr(task, what) for task in members]
        if len(set(values)) > 1:
            raise ConfigurationError(
                f"union: got {what} {dict(zip(names, values, strict=True))}, expected the same in "
                "all; load them alike"
            )


def _check(task: Task, root: Path) -> None:
    for name, split in (("train", task.train), ("val", task.val)):
        missing = sorted(set(range(len(task.classes))) - set(split.labels.tolist()))
        if missing:
            names = ", ".join(task.classes[i] for i in missing[:3])
            raise ConfigurationError(
                f"data: {root} has no {name} images of {names}; expected at least one of every "
                "class there "
                f"(files ending in {', '.join(sorted(IMAGE_SUFFIXES))})"
            )
