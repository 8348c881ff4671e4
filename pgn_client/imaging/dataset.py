"""Classification tasks from labeled images: classes and three disjoint splits.

The layout is ``DATA/{train,val,test}/CLASS/*``, or a manifest with the column ``split``. Where
``val`` is missing, it is split off ``train``. A plain ``DATA/CLASS/*`` tree, or a manifest without
splits, is split 60 / 20 / 20. Every split is seeded and stratified. No choice is ever made on
``test``. :func:`union` joins several tasks into one. ``reader.Dataset`` finds the files.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pgn_client.arrays import Integers
from pgn_client.errors import ConfigurationError, reason
from pgn_client.imaging.codecs import FORMATS, describe
from pgn_client.imaging.opening import PathLike, open_regular, sha256_of
from pgn_client.imaging.reader import SPLITS, Dataset


@dataclass(frozen=True)
class Split:
    """One split of a data set: paths of labeled images, and their labels.

    Attributes:
        paths: Paths of the n image files.
        labels: Class indices, (n,) int64 in [0, C).
    """

    paths: tuple[Path, ...]
    labels: Integers

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | Integers) -> Split:
        """Return a split of the images with the indices ``rows``, in the order of ``rows``."""
        paths = tuple(self.paths[i] for i in rows)
        return Split(paths, self.labels[np.asarray(rows, dtype=np.int64)])


@dataclass(frozen=True)
class Task:
    """A classification task: its classes and its training, validation and test images.

    Attributes:
        classes: The C class names, sorted; in a union, several tasks joined into one,
            ``PART/CLASS``, part by part.
        train: Training images.
        val: Validation images.
        test: Test images; may be empty. The three splits are disjoint.
        shots: Limit of training images per class; ``None`` for no limit (see :func:`load_task`).
        seed: Seed of the splits and of the draw of training images.
        parts: Names of the tasks in a union; empty for a plain task.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    shots: int | None = None
    seed: int = 0
    parts: tuple[str, ...] = ()

    def card(self) -> dict[str, Any]:
        """Return the description of the task's images for a checkpoint's metadata, as JSON.

        For a union, several tasks joined into one, the key ``parts`` holds one such description for
        each of them.
        """
        card: dict[str, Any] = {
            "digest": self.digest(),
            "train": len(self.train),
            "val": len(self.val),
            "shots": self.shots,
            "seed": self.seed,
        }
        if self.parts:
            card["parts"] = {name: _part(self, name).card() for name in self.parts}
        return card

    def with_shots(self, shots: int | None, seed: int) -> Task:
        """Return the task with at most ``shots`` training images per class, drawn at random.

        Args:
            shots: Limit of training images per class; ``None`` keeps all.
            seed: Seed of the draw.
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
        """Return the task with smaller splits, as evenly spread over the C classes as possible.

        Images are drawn in rounds, one random image per class and round. The classes that an
        incomplete last round draws from are random too. The drawn images keep their order. The
        images of a smaller limit are a subset of those of a larger limit.

        Args:
            train: Limit of training images, at least C; ``None`` keeps all.
            val: Limit of validation images, at least C; ``None`` keeps all.
            test: Limit of test images, at least 1; ``None`` keeps all.
            seed: Seed of the draw; it does not change the task's ``seed``.

        Raises:
            ConfigurationError: A limit is too low.
        """

        def at_most(name: str, split: Split, limit: int | None, least: int) -> Split:
            if limit is None:
                return split
            if limit < least:
                reason = "one image" if name == "test" else "one of each class"
                raise ConfigurationError(
                    f"limit of {name}: got {limit}, expected at least {least}, {reason}; raise it "
                    "or leave it out"
                )
            return _evenly(split, limit, seed)

        return replace(
            self,
            train=at_most("train", self.train, train, len(self.classes)),
            val=at_most("val", self.val, val, len(self.classes)),
            test=at_most("test", self.test, test, 1),
        )

    def without_copies(self) -> Task:
        """Return the task without test images that are byte copies of its other images.

        Raises:
            ConfigurationError: No test images are left.
        """
        known = {sha256_of(path) for path in (*self.train.paths, *self.val.paths)}
        # A file that cannot be read has no digest, and is no copy of another such file.
        known.discard(None)
        rows = [i for i, path in enumerate(self.test.paths) if sha256_of(path) not in known]
        if len(self.test) and not rows:
            raise ConfigurationError(
                f"data: got {len(self.test)} test images that are all byte copies of training or "
                "validation images, expected others; nothing can be measured on them"
            )
        return replace(self, test=self.test.take(rows))

    def digest(self) -> str:
        """Return a SHA-256 that identifies the task's classes, training and validation images.

        It covers the class names, and the label and content of every image file, in order.

        Raises:
            ConfigurationError: A file cannot be read.
        """
        # Class names cannot hold a NUL character, so other classes always give another text. Names
        # of folders that are not UTF-8 are hashed as the bytes that the file system has.
        sha = hashlib.sha256("\0".join(self.classes).encode(errors="surrogateescape"))
        for split in (self.train, self.val):
            for path, label in zip(split.paths, split.labels, strict=True):
                sha.update(f"{label}".encode() + _digest(path))
        return sha.hexdigest()


def load_task(data: PathLike | Dataset, *, shots: int | None = None, seed: int = 0) -> Task:
    """Return the classification task (classes and splits) in labeled images.

    Files that ``Dataset.checked`` could not decode are left out, as if they had been removed.

    Args:
        data: Folder with ``{train,val,test}/CLASS/*`` or ``CLASS/*``, or manifest, or what
            ``Dataset.read`` returns for it; missing splits are split off at random.
        shots: Limit of training images per class; ``None`` takes all.
        seed: Seed of the splits and of the draw of training images.

    Raises:
        ConfigurationError: There is no such folder or it has fewer than two classes, a split has a
            class that is not in ``train``, or a class has no training or validation images.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.read(data)
    if dataset.is_divided:
        splits = [_given(dataset, name) for name in SPLITS]
    else:
        splits = _stratified(_given(dataset, None), (0.6, 0.2, 0.2), seed)

    train, val, test = splits
    if not len(val):
        train, val = _stratified(train, (0.8, 0.2), seed)
    if shots is not None:
        train = _few(train, shots, seed)

    task = Task(dataset.classes, train, val, test, shots, seed)
    _check(task, dataset)
    return task


def union(tasks: Mapping[str, Task]) -> Task:
    """Return one task that joins several, to train one prompt generator for several data sets.

    The splits are concatenated in the order of ``tasks``. The labels of a task are shifted by the
    number of classes before it.

    Args:
        tasks: Plain tasks by name. Their classes become ``NAME/CLASS``.

    Raises:
        ConfigurationError: There are no tasks, a name is empty, has a slash or is used twice, a
            task is itself a union, or the tasks differ in shots or seed.
    """
    # From the pairs, because a mapping that is no plain dict may hold a name twice, and a look-up
    # by name would hide that.
    pairs = list(tasks.items())
    names = tuple(name for name, _ in pairs)
    members = [task for _, task in pairs]
    _check_union(names, members)

    classes: list[str] = []
    starts: list[int] = []
    for name, task in zip(names, members, strict=True):
        starts.append(len(classes))
        classes.extend(f"{name}/{label}" for label in task.classes)

    def joined(split_of: Callable[[Task], Split]) -> Split:
        paths: list[Path] = []
        labels: list[Integers] = []
        for task, start in zip(members, starts, strict=True):
            split = split_of(task)
            paths.extend(split.paths)
            labels.append(split.labels + start)
        return Split(tuple(paths), np.concatenate(labels))

    return Task(
        tuple(classes),
        joined(lambda task: task.train),
        joined(lambda task: task.val),
        joined(lambda task: task.test),
        members[0].shots,
        members[0].seed,
        names,
    )


def _given(dataset: Dataset, name: str | None) -> Split:
    """Return the usable files of one split of a data set, or of all of an undivided one."""
    label_of = {label: number for number, label in enumerate(dataset.classes)}
    files = [file for file in dataset.files if file.split == name and dataset.is_usable(file.path)]
    labels = np.array([label_of[file.label] for file in files], dtype=np.int64)
    return Split(tuple(file.path for file in files), labels)


def _digest(path: Path) -> bytes:
    """Return the SHA-256 of a file's content."""
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").digest()
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"data: {describe(path)} cannot be read ({reason(error)}); repair or remove it"
        ) from None


def _by_class(split: Split, seed: int) -> list[list[int]]:
    """Return the indices of the images of each class that has images, shuffled."""
    rows: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng(seed).permutation(len(split)):
        rows[int(split.labels[i])].append(int(i))
    return [rows[label] for label in sorted(rows)]


def _stratified(split: Split, shares: tuple[float, ...], seed: int) -> list[Split]:
    """Return a split divided at random into parts with the given shares of every class."""
    parts: list[list[int]] = [[] for _ in shares]
    for rows in _by_class(split, seed):
        # Rounding the ends, not the sizes, puts every image into exactly one part.
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for part, start, end in zip(parts, [0, *ends[:-1]], ends, strict=True):
            part.extend(rows[start:end])
    # Sorted, so that the seed decides which images a part has, but not their order.
    return [split.take(sorted(part)) for part in parts]


def _few(split: Split, shots: int, seed: int) -> Split:
    """Return a split with at most ``shots`` images of each class, drawn at random."""
    if shots < 1:
        raise ConfigurationError(f"shots: got {shots}, expected at least 1 image per class")

    drawn: list[int] = []
    for rows in _by_class(split, seed):
        drawn.extend(rows[:shots])
    return split.take(sorted(drawn))


def _evenly(split: Split, limit: int, seed: int) -> Split:
    """Return a split with at most ``limit`` images, drawn one per class in each round."""
    groups = _by_class(split, seed)
    # The order of the classes within a round needs a random stream other than that of _by_class.
    turns = np.random.default_rng([seed, 1]).permutation(len(groups)).tolist()

    candidates: list[tuple[int, int, int]] = []
    for turn, rows in zip(turns, groups, strict=True):
        candidates.extend((rank, turn, row) for rank, row in enumerate(rows))
    candidates.sort()

    return split.take(sorted(row for _, _, row in candidates[:limit]))


def _part(task: Task, name: str) -> Task:
    """Return one task out of several that were joined to one (see :func:`union`)."""
    prefix = f"{name}/"
    labels = [label for label, full in enumerate(task.classes) if full.startswith(prefix)]
    classes = tuple(task.classes[label].removeprefix(prefix) for label in labels)

    def of_part(split: Split) -> Split:
        # `union` numbers the classes of a part one after another, so a shift restores its labels.
        rows = split.take(np.flatnonzero(np.isin(split.labels, labels)))
        return Split(rows.paths, rows.labels - labels[0])

    return Task(
        classes,
        of_part(task.train),
        of_part(task.val),
        of_part(task.test),
        task.shots,
        task.seed,
    )


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
                f"union: got a union as {name!r}, expected a plain task; pass its parts "
                f"{', '.join(task.parts)} instead"
            )

    for what in ("shots", "seed"):
        values = [getattr(task, what) for task in members]
        if len(set(values)) > 1:
            raise ConfigurationError(
                f"union: got {what} {dict(zip(names, values, strict=True))}, expected the same in "
                f"all tasks; load them with the same {what}"
            )


def _check(task: Task, dataset: Dataset) -> None:
    for name, split in (("train", task.train), ("val", task.val)):
        missing = sorted(set(range(len(task.classes))) - set(split.labels.tolist()))
        if missing:
            names = ", ".join(describe(task.classes[i]) for i in missing[:3])
            raise ConfigurationError(
                f"data: {dataset} has no {name} images of {names}; expected at least one of every "
                f"class ({', '.join(FORMATS).lower()}); add some, or remove the empty folder"
            )
