"""Summarize the runs of a benchmark. The summary is computed from the files of the runs, without
training or sending.

Accuracies and differences are averaged over seeds image by image, as all seeds share the test
images. Intervals come from drawing images, so they hold for these sets and these seeds, not for
sets in general. Every set has the same weight in the mean over sets. What to serve, and how to
combine it with the local head (a small classifier on this machine), is chosen on validation images,
for each set, shots and seed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import reading
from pgn_client.evaluation import baselines, candidate, selection
from pgn_client.evaluation.benchmark.runs import PROBE_RUN, RAW_RUN, Plan, deploys, parse
from pgn_client.evaluation.candidate import LOCAL, PROBE, RAW, SERVED, Candidate, with_local
from pgn_client.evaluation.statistics import accuracy_interval, pooled_bootstrap
from pgn_client.imaging.opening import open_regular, read_regular
from pgn_client.mapping.fusion import gate_hits
from pgn_client.mapping.probability import right
from pgn_client.prompting import methods

FINE_TUNING = 88_224_232
"""Number of parameters that fine-tuning a whole ViT-B/32 trains (timm's vit_base_patch32_224, 1,000
classes).
"""


@dataclass(frozen=True)
class Row:
    """Accuracy and cost of one way to classify, on one image set or in the mean over sets, over all
    seeds.

    Attributes:
        name: Title of the row.
        deployable: Whether an endpoint can serve this way to classify; if not, it needs the model's
            weights (white box).
        accuracy: Mean accuracy over seeds and test images, in [0, 1].
        ci95: 95 % interval of the accuracy, (low, high).
        sent: Share of the test images that serving sends, in [0, 1].
        learnable: Number of trained parameters, with those of the local head if it is fused;
            ``None`` for ``served``.
        seconds: Duration of training in seconds, mean over seeds; ``None`` if it is not recorded.
        agreement: Share of the test images that get the same label over HTTP as with the prompt as
            float32 tokens, least over seeds; ``None`` for fused rows and rows without a prompt.
    """

    name: str
    deployable: bool
    accuracy: float
    ci95: tuple[float, float]
    sent: float
    learnable: int | None
    seconds: float | None
    agreement: float | None


@dataclass(frozen=True)
class Difference:
    """A paired difference in accuracy of two ways to classify the same images.

    Attributes:
        a: Title of the first row.
        b: Title of the second row.
        set: Name of the image set; empty for the mean over sets.
        difference: Accuracy of ``a`` minus accuracy of ``b``, in [-1, 1].
        ci95: 95 % interval of the difference, (low, high).
    """

    a: str
    b: str
    set: str
    difference: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """The content of a benchmark's table, for one number of shots (training images per class).

    Attributes:
        shots: Largest number of training images per class; ``None`` for all.
        seeds: Seeds of the runs.
        split: Set → numbers of training, validation and test images.
        rows: Set → rows, one for each way to classify; under ``""`` the mean over sets.
        paired: Paired differences in accuracy, on each set and in the mean over sets.
        head: Title of the method whose local head (a small classifier on this machine) the
            baselines use.
        curves: Set → accuracy of the method ``head``, fused with its local head, against images
            sent, as points (share sent, accuracy), mean over seeds.
    """

    shots: int | None
    seeds: tuple[int, ...]
    split: dict[str, dict[str, int]]
    rows: dict[str, list[Row]]
    paired: list[Difference]
    head: str
    curves: dict[str, list[tuple[float, float]]]

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class FinishedCell:
    """All results for one image set, number of shots and seed.

    Attributes:
        ids: Names of the test images, (n,).
        targets: Class indices of the test images, (n,).
        val_targets: Class indices of the validation images, (m,).
        rows: Title → candidate, one way to classify with its log-probabilities.
        records: Title → record of the run, with the counts of trained parameters; no entry for
            ``served``.
        head: Title of the method whose local head (a small classifier on this machine) the
            baselines use.
        split: Number of training, validation and test images.
    """

    ids: NDArray[Any]
    targets: Integers
    val_targets: Integers
    rows: dict[str, Candidate]
    records: dict[str, dict[str, Any]]
    head: str
    split: dict[str, int]

    def hits(self, name: str) -> Floats:
        """Return 1.0 for each test image that the candidate ``name`` gets right, else 0.0, (n,)."""
        return right(self.rows[name].test, self.targets).astype(float)


def title(spec: str) -> str:
    """Return the title of a method in tables, such as ``PGN`` or ``PGN (small)``.

    Args:
        spec: The method as ``METHOD`` or ``METHOD@PRESET``.
    """
    method, preset = parse(spec)
    return methods.get(method).title + (f" ({preset})" if preset != "default" else "")


def summarise(
    out: Path, sets: Sequence[str], specs: Sequence[str], seeds: Sequence[int], shots: int | None
) -> Summary:
    """Read the files of benchmark runs, and compute the table for one number of shots.

    Args:
        out: Folder of the runs.
        sets: Names of the image sets.
        specs: Methods as ``METHOD`` or ``METHOD@PRESET``.
        seeds: Seeds of the runs.
        shots: Largest number of training images per class; ``None`` for all.

    Raises:
        ConfigurationError: A run is missing or damaged.
    """
    # The plan runs nothing here; its check gives the names that the runs have as files.
    specs = Plan({}, tuple(specs)).checked().methods
    cells: dict[str, list[FinishedCell]] = {}
    for name in sets:
        folders = [out / name / f"{shots or 'all'}-{seed}" for seed in seeds]
        cells[name] = []
        for folder in folders:
            with reading(
                f"benchmark: {folder}", "a run is missing or damaged; run the benchmark first"
            ):
                cells[name].append(_read(folder, specs))

    rows: dict[str, list[Row]] = {}
    for name in sets:
        rows[name] = [_row(row_title, cells[name]) for row_title in cells[name][0].rows]
    means = []
    for row in rows[sets[0]]:
        same_row = [_row_by_name(rows[name], row.name) for name in sets]
        means.append(_mean(same_row, cells))
    rows[""] = means

    return Summary(
        shots=shots,
        seeds=tuple(seeds),
        split={name: cells[name][0].split for name in sets},
        rows=rows,
        paired=list(_pairs(cells)),
        head=cells[sets[0]][0].head,
        curves={name: _curve(cells[name]) for name in sets},
    )


def _row_by_name(rows: Iterable[Row], name: str) -> Row:
    return next(row for row in rows if row.name == name)


def _read(folder: Path, specs: Sequence[str]) -> FinishedCell:
    """Read the runs of one set, shots and seed, and choose on validation what to serve.

    Fusion weights, and the gate that decides which images are sent, are chosen on validation too.
    """
    runs = {row: _run(folder, row) for row in (RAW_RUN, PROBE_RUN, *specs)}
    targets = _arrays(folder / "targets.npz")
    for row, run in runs.items():
        _check(run, row, targets)
    val_targets = targets["val"]

    # The smallest prompt first, because among equals the first row is served.
    deployed = sorted(
        (s for s in specs if deploys(s)), key=lambda s: runs[s].record["learnable"]["prompt"]
    )
    # The baselines use the local head of the default PGN, or else of any PGN, or else of the first.
    head = min(deployed, key=lambda s: (s != "pgn", parse(s)[0] != "pgn"))
    rows, records = _baselines(runs[RAW_RUN], runs[PROBE_RUN], runs[head], val_targets)

    for spec in deployed:
        local = runs[spec].local
        prompted = runs[spec].candidate(title(spec), local=local)
        prompted_local = candidate.fused_best(prompted, local, val_targets)
        rows += [prompted, prompted_local]
        records[prompted.name] = runs[spec].record
        records[prompted_local.name] = runs[spec].record

    # Among equals the first row is chosen, so the cheapest come first: those that send nothing. The
    # sort is stable, so the others stay in their order.
    best = selection.choose(sorted(rows, key=lambda c: c.sent > 0), val_targets)
    served, _ = selection.gated(SERVED, best, val_targets)
    rows.append(served)

    # White-box rows come after the choice: no endpoint can serve them.
    for spec in (s for s in specs if s not in deployed):
        rows.append(runs[spec].candidate(title(spec)))
        records[title(spec)] = runs[spec].record

    return FinishedCell(
        ids=targets["ids"],
        targets=targets["test"],
        val_targets=val_targets,
        rows={c.name: c for c in rows},
        records=records,
        head=title(head),
        split=runs[RAW_RUN].record["split"],
    )


@dataclass(frozen=True)
class _Run:
    """The files of one run of a benchmark.

    Attributes:
        arrays: Name → log-probabilities, from the ``.npz`` file.
        record: Content of the ``.json`` file.
    """

    arrays: Mapping[str, Floats]
    record: dict[str, Any]

    def candidate(
        self, name: str, *, sent: float = 1.0, local: Candidate | None = None
    ) -> Candidate:
        """Return the run's method as a candidate titled ``name``."""
        return Candidate(
            name, self.arrays["val"], self.arrays["test"], self.record["queries"], sent, local
        )

    @property
    def local(self) -> Candidate:
        """The local head that was trained in this run, a small classifier, as a candidate."""
        return Candidate(LOCAL, self.arrays["local_val"], self.arrays["local_test"], 0, 0.0)


def _run(folder: Path, row: str) -> _Run:
    record = json.loads(read_regular(folder / f"{row}.json"))
    return _Run(_arrays(folder / f"{row}.npz"), record)


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an ``.npz`` file by name."""
    # NumPy does not close a damaged file that it has opened itself.
    with open_regular(path) as file, np.load(file) as arrays:
        return dict(arrays)


def _check(run: _Run, row: str, targets: Mapping[str, NDArray[Any]]) -> None:
    """Check the numbers of a run that the table is computed from.

    Args:
        run: The run.
        row: Name of the run.
        targets: Class indices ``val`` and ``test``, and names ``ids`` of the test images.

    Raises:
        KeyError, TypeError, ValueError: A number is missing, of another type, or does not fit.
    """
    record = run.record
    parameters = record["learnable"]
    counts = [record["queries"], parameters["mapping"], *parameters.values()]
    measures = [record[name] for name in ("seconds", "agreement") if name in record]
    arrays = {"val": ["val"], "test": ["test"]}
    if row not in (RAW_RUN, PROBE_RUN) and deploys(row):
        counts += [parameters[part] for part in ("prompt", "local", "classifier")]
        arrays = {"val": ["val", "local_val"], "test": ["test", "local_test"]}
    if row == RAW_RUN:
        counts += record["split"].values()
    if not all(type(count) is int for count in counts):
        raise TypeError(f"{row}: a count is no whole number")
    if not all(type(measure) in (int, float) and isfinite(measure) for measure in measures):
        raise TypeError(f"{row}: a measure is no finite number")

    if targets["ids"].shape != targets["test"].shape or targets["ids"].dtype.kind != "U":
        raise ValueError("the names of the test images do not fit")
    classes = run.arrays["val"].shape[1]
    for split, names in arrays.items():
        labels = targets[split]
        if (
            labels.ndim != 1
            or labels.dtype.kind != "i"
            or not np.isin(labels, range(classes)).all()
        ):
            raise ValueError(f"{row}: the targets do not fit")
        for name in names:
            scores = run.arrays[name]
            is_number = scores.dtype.kind == "f" and not np.isnan(scores).any()
            if not is_number or scores.shape != (len(labels), classes):
                raise ValueError(f"{row}: the array {name} does not fit")


def _baselines(
    raw: _Run, probe: _Run, head: _Run, val_targets: Integers
) -> tuple[list[Candidate], dict[str, dict[str, Any]]]:
    """Return the baselines without a prompt as candidates; and title → record of the run, with the
    counts of trained parameters.

    Args:
        raw: Run of raw images.
        probe: Run of the linear probe.
        head: Run whose local head, a small classifier, the baselines use.
        val_targets: Class indices of the validation images, (n,).
    """
    probed = probe.candidate(PROBE, sent=0.0)
    rows = baselines.without_prompt(raw.candidate(RAW), head.local, probed, val_targets)
    classifier = {"mapping": 0, "local": head.record["learnable"]["classifier"]}
    records = {RAW: raw.record, PROBE: probe.record, LOCAL: {"learnable": classifier}}
    for name in (RAW, PROBE):
        mapping = records[name]["learnable"]["mapping"]
        records[with_local(name)] = {"learnable": classifier | {"mapping": mapping}}
    return rows, records


def _row(name: str, cells: Sequence[FinishedCell]) -> Row:
    """Return the table row of the candidate titled ``name``, on one image set, over all seeds."""
    first = cells[0].rows[name]
    records = [c.records.get(name, {}) for c in cells]
    record = records[0]
    mean, low, high = accuracy_interval(_by_image((c.ids, c.hits(name)) for c in cells))
    seconds = [r["seconds"] for r in records if "seconds" in r]
    agreement = [r["agreement"] for r in records if "agreement" in r]
    return Row(
        name=name,
        deployable="white_box" not in record,
        accuracy=mean,
        ci95=(low, high),
        sent=float(np.mean([c.rows[name].sent for c in cells])),
        learnable=_learnable(first, record) if record else None,
        seconds=float(np.mean(seconds)) if seconds else None,
        # Fusion changes labels, so the prompt's agreement does not hold for a fused row.
        agreement=min(agreement) if agreement and not first.fused else None,
    )


def _learnable(row: Candidate, record: Mapping[str, Any]) -> int:
    """Return a candidate's number of trained parameters: prompt and label mapping, and the local
    head if the candidate uses it.
    """
    counts = record["learnable"]
    count = int(counts.get("prompt", 0)) + int(counts["mapping"])
    if row.fused or row.name == LOCAL:
        count += int(counts["local"])
    return count


def _mean(rows: Sequence[Row], cells: Mapping[str, Sequence[FinishedCell]]) -> Row:
    """Return the mean over image sets of one way to classify, as a table row.

    Args:
        rows: The row of this way to classify on each set.
        cells: Set → its results, one for each seed.
    """
    name = rows[0].name
    hits_by_set = []
    for seeds in cells.values():
        hits_by_set.append(_by_image((c.ids, c.hits(name)) for c in seeds))
    # One seed for all tables, so that the same runs always give the same intervals.
    mean, low, high = pooled_bootstrap(hits_by_set, seed=0)
    agreement = [r.agreement for r in rows if r.agreement is not None]
    seconds = [r.seconds for r in rows if r.seconds is not None]
    learnable = [r.learnable for r in rows if r.learnable is not None]
    return Row(
        name=name,
        deployable=rows[0].deployable,
        accuracy=mean,
        ci95=(low, high),
        sent=float(np.mean([r.sent for r in rows])),
        # It differs between sets, which have different numbers of classes; see the table's legend.
        learnable=max(learnable) if learnable else None,
        seconds=float(np.mean(seconds)) if seconds else None,
        agreement=min(agreement) if agreement else None,
    )


def _by_image(parts: Iterable[tuple[NDArray[Any], Floats]]) -> Floats:
    """Average values over seeds, image by image.

    Args:
        parts: For each seed, the names of the images, and one value for each image.

    Returns:
        Mean value of each image over the seeds, (n,).
    """
    values: dict[str, list[float]] = defaultdict(list)
    for ids, row in parts:
        for name, value in zip(ids.tolist(), row.tolist(), strict=True):
            values[name].append(value)
    return np.array([np.mean(v) for v in values.values()])


def _pairs(cells: Mapping[str, Sequence[FinishedCell]]) -> Iterable[Difference]:
    """Yield paired differences in accuracy, on each image set and in the mean over sets.

    PGN, or the method whose local head the baselines use, is compared with all other candidates:
    fused with its local head if the other is fused, alone if not. The served candidate is compared
    with all others that an endpoint can serve.
    """
    first = next(iter(cells.values()))[0]
    pgn = first.head
    pgn_local = with_local(pgn)
    others = [n for n in first.rows if n not in (pgn, pgn_local, SERVED)]
    pairs = [(pgn_local if first.rows[n].fused else pgn, n) for n in others]
    for name in (*others, pgn, pgn_local):
        if "white_box" not in first.records[name]:
            pairs.append((SERVED, name))

    for a, b in pairs:
        by_set: dict[str, Floats] = {}
        for name, seeds in cells.items():
            by_set[name] = _by_image((c.ids, c.hits(a) - c.hits(b)) for c in seeds)

        for name, differences in by_set.items():
            mean, low, high = pooled_bootstrap([differences], seed=0)
            yield Difference(a, b, name, mean, (low, high))
        mean, low, high = pooled_bootstrap(list(by_set.values()), seed=0)
        yield Difference(a, b, "", mean, (low, high))


def _curve(cells: Sequence[FinishedCell]) -> list[tuple[float, float]]:
    """Return accuracy against images sent on one set, as points (share sent, accuracy), mean over
    seeds.

    Images on which the local head is least confident are sent, and classified by the prompt fused
    with the local head. The local head alone classifies the others.
    """
    points = []
    for share in np.linspace(0, 1, 11):
        accuracies = []
        for c in cells:
            row = c.rows[with_local(c.head)]
            local = c.rows[LOCAL]
            _, hits = gate_hits(row.test, local.test, c.targets)
            accuracies.append(hits[round(share * len(c.targets))] / len(c.targets))
        points.append((float(share), float(np.mean(accuracies))))
    return points
