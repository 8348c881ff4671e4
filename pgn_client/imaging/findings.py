"""What is worth knowing about a data set before its numbers are trusted, in words and as JSON."""

from __future__ import annotations

import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pgn_client.imaging.codecs import describe
from pgn_client.imaging.dataset import Task
from pgn_client.imaging.duplicates import look_alikes, same_bytes
from pgn_client.imaging.reader import SPLITS, Dataset
from pgn_client.imaging.scan import NOT_IMAGE, Skipped

NAMED = 3
"""Largest number of examples that a sentence names."""
DISAGREEING = 1 / 3
"""Share of test images on which two ways to classify are assumed to differ.

Only these images carry the difference of two accuracies: with n images its standard error is
sqrt(DISAGREEING / n).
"""
FINE = 0.05
"""Difference of two accuracies that a test split should be able to tell."""
Z_95 = 1.96


@dataclass(frozen=True)
class Finding:
    """One remark on a data set.

    Attributes:
        key: Name for programs, such as ``test_copies``.
        count: Number of files, groups or classes that it is about.
        text: The remark as a sentence that names up to three examples.
        serious: Whether someone should look at it.
        examples: Everything that it is about: names of files or classes, grouped.
    """

    key: str
    count: int
    text: str
    serious: bool
    examples: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Findings:
    """The number of files that are used, those that are not, and remarks.

    Attributes:
        used: Number of image files that are used.
        skipped: Files and folders that are not used, with the reason.
        splits: Split → number of images; empty without labels.
        classes: Number of classes.
        remarks: Remarks, the serious ones first.
    """

    used: int
    skipped: tuple[Skipped, ...]
    splits: dict[str, int]
    classes: int
    remarks: tuple[Finding, ...]

    @property
    def serious(self) -> bool:
        """Whether someone should look at the data."""
        return any(remark.serious for remark in self.remarks)

    def summary(self) -> str:
        """Return the line that ends every command: ``used N files, skipped M: why``."""
        return summary(self.used, self.skipped)

    def to_json(self) -> dict[str, Any]:
        """Return the findings as plain values for JSON; ``summary`` and the texts as well."""
        return {
            "used": self.used,
            "skipped": [
                {"path": describe(item.path), "reason": item.reason} for item in self.skipped
            ],
            "splits": self.splits,
            "classes": self.classes,
            "remarks": [asdict(remark) for remark in self.remarks],
            "summary": self.summary(),
        }


def summary(used: int, skipped: Sequence[Skipped]) -> str:
    """Return how many files were used and skipped, with the first three reasons."""
    text = f"used {used} files, skipped {len(skipped)}"
    if not skipped:
        return text
    # What someone should look at comes before stray text files.
    first = sorted(skipped, key=lambda item: item.reason == NOT_IMAGE)[:NAMED]
    rest = ", …" if len(skipped) > NAMED else ""
    return f"{text}: {', '.join(str(item) for item in first)}{rest}"


@dataclass(frozen=True)
class NoTask:
    """Why a data set is no task with classes and splits.

    Attributes:
        problem: The reason, for people.
        serious: Whether it is a fault of the data; images without labels are none.
    """

    problem: str
    serious: bool


def look_into(
    dataset: Dataset,
    task: Task | None,
    *,
    without_copies: bool = False,
    no_task: NoTask | None = None,
) -> Findings:
    """Return what is worth knowing about a data set.

    Args:
        dataset: Data set after ``checked``.
        task: Its classes and splits, with all training images; ``None`` without labels.
        without_copies: Whether the command leaves test images out that are copies of others.
        no_task: Why there is no task; ``None`` if there is one.
    """
    splits = {} if task is None else {name: list(getattr(task, name).paths) for name in SPLITS}
    copies = _test_copies(dataset, splits)
    remarks = [
        *_no_task(no_task),
        *_skipped(dataset),
        *_copies_left_out(copies, without_copies=without_copies),
        *_copies(dataset, splits),
        *_two_labels(dataset),
        *_look_alikes(dataset, splits),
        *_twins(dataset.classes),
        *([] if task is None else _without_test(task)),
        *([] if task is None else _few(len(task.test) - len(copies))),
    ]
    remarks.sort(key=lambda remark: not remark.serious)
    skipped = [*dataset.unreadable, *dataset.skipped]
    if without_copies:
        skipped += [Skipped(test, f"a copy of {describe(other)}") for other, test in copies]
    usable = {file.path for file in dataset.files if dataset.is_usable(file.path)}
    left_out = {test for _, test in copies} if without_copies else set()
    sizes = {name: len(paths) for name, paths in splits.items()}
    if without_copies:
        sizes["test"] -= len(left_out)
    return Findings(
        len(usable - left_out), tuple(skipped), sizes, len(dataset.classes), tuple(remarks)
    )


def _no_task(no_task: NoTask | None) -> Iterator[Finding]:
    if no_task is not None and no_task.serious:
        yield Finding("no_task", 1, no_task.problem, True)
    elif no_task is not None:
        text = f"images without labels, for pgn predict and pgn adapt ({no_task.problem})"
        yield Finding("no_labels", 1, text, False)


def _skipped(dataset: Dataset) -> Iterator[Finding]:
    if dataset.unreadable:
        yield _of_files(
            "unreadable", "images that cannot be used", [(item,) for item in dataset.unreadable]
        )

    by_reason: dict[str, list[Skipped]] = defaultdict(list)
    for item in dataset.skipped:
        by_reason[item.reason].append(item)
    for reason, items in by_reason.items():
        remark = _of_files("skipped", f"skipped, {reason}", [(item.path,) for item in items])
        yield replace(remark, serious=reason != NOT_IMAGE)


def _test_copies(dataset: Dataset, splits: dict[str, list[Path]]) -> tuple[tuple[Path, Path], ...]:
    """Return each test image with the training or validation image that has the same bytes."""
    if not splits:
        return ()
    known = {
        look.sha256: path
        for name in ("val", "train")
        for path in splits[name]
        if (look := dataset.looks.get(path)) is not None and look.sha256 is not None
    }
    pairs = []
    for path in splits["test"]:
        look = dataset.looks.get(path)
        if look is not None and look.sha256 in known:
            pairs.append((known[look.sha256], path))
    return tuple(pairs)


def _copies_left_out(
    copies: Sequence[tuple[Path, Path]], *, without_copies: bool
) -> Iterator[Finding]:
    if copies:
        what = "test images that are byte copies of training or validation images"
        end = "; left out of the test" if without_copies else ""
        yield _of_files("test_copies", what, copies, end)


def _copies(dataset: Dataset, splits: dict[str, list[Path]]) -> Iterator[Finding]:
    """Yield the remarks on equal files in training and validation, and inside one split."""
    split_of = {path: name for name, paths in splits.items() for path in paths}
    across = []
    within = []
    for group in same_bytes(dataset.looks):
        names = {split_of.get(path) for path in group}
        if {"train", "val"} <= names:
            across.append(group)
        elif len(names) == 1:
            within.append(group)
    if across:
        yield _of_files("val_copies", "images both in training and in validation", across)
    if within:
        remark = _of_files("copies", "images that are there more than once", within)
        yield replace(remark, serious=False)


def _two_labels(dataset: Dataset) -> Iterator[Finding]:
    labels: dict[str, dict[Path, str]] = defaultdict(dict)
    groups: dict[str, set[str]] = defaultdict(set)
    for file in dataset.files:
        look = dataset.looks.get(file.path)
        if look is not None and look.sha256 is not None:
            labels[look.sha256][file.path] = file.label
            groups[look.sha256].add(file.label)
    torn = [tuple(labels[digest]) for digest, names in groups.items() if len(names) > 1]
    if torn:
        yield _of_files("two_labels", "images with two labels", torn)


def _look_alikes(dataset: Dataset, splits: dict[str, list[Path]]) -> Iterator[Finding]:
    pairs = list(look_alikes(dataset.looks, [splits[name] for name in SPLITS] if splits else []))
    if pairs:
        end = "; not left out"
        yield _of_files("look_alikes", "images in different splits that look alike", pairs, end)


def _twins(classes: Iterable[str]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        groups[unicodedata.normalize("NFC", name).casefold()].append(name)
    twins = [tuple(group) for group in groups.values() if len(group) > 1]
    if twins:
        shown = "; ".join(" and ".join(ascii(name) for name in group) for group in twins[:NAMED])
        text = f"class names that differ in case or Unicode form only: {shown}"
        examples = tuple(tuple(describe(name) for name in group) for group in twins)
        yield Finding("twins", len(twins), text, True, examples)


def _without_test(task: Task) -> Iterator[Finding]:
    present = set(task.test.labels.tolist())
    missing = [name for label, name in enumerate(task.classes) if label not in present]
    # Without any test images, _few has the remark.
    if missing and present:
        names = ", ".join(describe(name) for name in missing[:NAMED])
        text = f"classes without test images: {len(missing)} ({names})"
        examples = tuple((describe(name),) for name in missing)
        yield Finding("classes_without_test", len(missing), text, True, examples)


def _few(images: int) -> Iterator[Finding]:
    """Yield the remark on how small a difference the test images can show."""
    if not images:
        yield Finding("few_test", 0, "no test images: nothing can be measured", False)
        return
    enough = Z_95**2 * DISAGREEING / FINE**2
    if images < enough:
        points = 100 * Z_95 * math.sqrt(DISAGREEING / images)
        text = (
            f"{images} test images: differences below about {points:.0f} points cannot be told; "
            f"for ±{100 * FINE:.0f} you need about {round(enough, -1):.0f}"
        )
        yield Finding("few_test", images, text, False)


def _of_files(
    key: str, what: str, groups: Sequence[tuple[Path | Skipped, ...]], end: str = ""
) -> Finding:
    """Return a serious remark on files, with the first three of them."""
    named = tuple(
        tuple(str(item) if isinstance(item, Skipped) else describe(item) for item in group)
        for group in groups
    )
    shown = ", ".join(" = ".join(group[:2]) for group in named[:NAMED])
    rest = ", …" if len(named) > NAMED else ""
    return Finding(key, len(named), f"{what}: {len(named)} ({shown}{rest}){end}", True, named)
