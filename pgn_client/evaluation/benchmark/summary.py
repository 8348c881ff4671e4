"""What the runs of a benchmark say together. Computed from the files alone: nothing is trained or
sent.

Accuracies and differences are averaged over seeds image by image (all seeds share the test
images), and intervals come from drawing images; over sets the mean is unweighted. So an
interval speaks for these sets and these seeds, not for sets in general. The fusion weight, the
served way and its gate are chosen in each run on its validation images.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgn_client.arrays import Floats, Integers
from pgn_client.errors import ConfigurationError
from pgn_client.evaluation import baselines, candidate, selection
from pgn_client.evaluation.benchmark.runs import PROBE_RUN, RAW_RUN, Plan, deploys, parse
from pgn_client.evaluation.candidate import LOCAL, PROBE, RAW, SERVED, Candidate, with_local
from pgn_client.evaluation.statistics import accuracy_interval, pooled_bootstrap
from pgn_client.mapping.fusion import gate_hits
from pgn_client.mapping.probability import right
from pgn_client.prompting import methods

FINE_TUNING = 88_224_232
"""Learnable numbers of fine-tuning ViT-B/32 (timm's vit_base_patch32_224, 1,000 classes)."""


@dataclass(frozen=True)
class Row:
    """One way to answer, on one set, over all seeds.

    Attributes:
        name: of the row.
        deployable: whether an endpoint can serve it; white box otherwise.
        accuracy, ci95: mean over seeds and test images.
        sent: share of the test images that are sent.
        learnable: how many numbers were trained, local head included where it has a say; ``None``
            for ``served``.
        seconds: of training, mean over seeds.
        agreement: least share, over seeds, of test images whose label over HTTP is that of latent
            float32.
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
    """Row ``a`` minus row ``b`` in accuracy, on the same images of one set; the mean over sets
    has no ``set``.
    """

    a: str
    b: str
    set: str
    difference: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class Summary:
    """All that a table tells, for one number of shots.

    Attributes:
        shots: training images per class, at most; ``None`` for all.
        seeds: of the runs.
        split: set → numbers of training, validation and test images.
        rows: set → rows; under ``""`` the mean over sets.
        paired: differences, of each set and of the mean.
        head: whose local head gives the rows that name no other.
        curves: set → accuracy of that method ⊕ local against images sent, as (sent, accuracy), mean
            over seeds.
    """

    shots: int | None
    seeds: tuple[int, ...]
    split: dict[str, dict[str, int]]
    rows: dict[str, list[Row]]
    paired: list[Difference]
    head: str
    curves: dict[str, list[tuple[float, float]]]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Cell:
    """The answers of one (set, shots, seed).

    Attributes:
        ids: (n,) names of the test images.
        targets: (n,) of the test images; val_targets: of the validation images.
        rows: name → candidate.
        records: name → what its run left in its ``.json``.
        head: title of the method whose local head gives the rows that name no other.
    """

    ids: NDArray[Any]
    targets: Integers
    val_targets: Integers
    rows: dict[str, Candidate]
    records: dict[str, dict[str, Any]]
    head: str
    split: dict[str, int]

    def hits(self, name: str) -> Floats:
        """(n,) 1 where the row is right."""
        return right(self.rows[name].test, self.targets).astype(float)


def title(spec: str) -> str:
    """Return how a table calls a method: ``PGN``, ``PGN (small)``."""
    method, preset = parse(spec)
    return methods.get(method).title + (f" ({preset})" if preset != "default" else "")


def summarise(
    out: Path, sets: Sequence[str], specs: Sequence[str], seeds: Sequence[int], shots: int | None
) -> Summary:
    """Read the runs of a table and compute it.

    Raises:
        ConfigurationError: a run is not there.
    """
    specs = Plan({}, tuple(specs)).checked().methods
    cells = {
        name: [_read(out / name / f"{shots or 'all'}-{seed}", specs) for seed in seeds]
        for name in sets
    }
    rows = {name: [_row(row, cells[name]) for row in cells[name][0].rows] for name in sets}
    rows[""] = [
        _mean([next(r for r in rows[s] if r.name == row.name) for s in sets], cells)
        for row in rows[sets[0]]
    ]
    return Summary(
        shots,
        tuple(seeds),
        {name: cells[name][0].split for name in sets},
        rows,
        list(_pairs(cells)),
        cells[sets[0]][0].head,
        {name: _curve(cells[name]) for name in sets},
    )


def _read(folder: Path, specs: Sequence[str]) -> Cell:
    """One cell: what was measured, and what follows from it by validation."""
    runs = {row: _run(folder, row) for row in (RAW_RUN, PROBE_RUN, *specs)}
    targets = np.load(folder / "targets.npz")
    deployed = sorted(
        (s for s in specs if deploys(s)), key=lambda s: runs[s].record["learnable"]["prompt"]
    )
    head = min(deployed, key=lambda s: (s != "pgn", parse(s)[0] != "pgn"))
    rows, records = _rivals(runs[RAW_RUN], runs[PROBE_RUN], runs[head], targets["val"])
    for spec in deployed:  # the cheapest first
        local = runs[spec].local
        prompted = runs[spec].candidate(title(spec), local=local)
        both = candidate.fused_best(prompted, local, targets["val"])
        rows += [prompted, both]
        records |= dict.fromkeys((prompted.name, both.name), runs[spec].record)
    best = selection.choose(sorted(rows, key=lambda c: c.sent > 0), targets["val"])
    rows.append(selection.gated(SERVED, best, targets["val"])[0])
    for spec in (s for s in specs if s not in deployed):
        rows.append(runs[spec].candidate(title(spec)))
        records[title(spec)] = runs[spec].record
    named, split = {c.name: c for c in rows}, runs[RAW_RUN].record["split"]
    return Cell(targets["ids"], targets["test"], targets["val"], named, records, title(head), split)


@dataclass(frozen=True)
class _Run:
    """One run as it lies on the disk."""

    arrays: Mapping[str, Floats]
    record: dict[str, Any]

    def candidate(
        self, name: str, *, sent: float = 1.0, local: Candidate | None = None
    ) -> Candidate:
        return Candidate(
            name, self.arrays["val"], self.arrays["test"], self.record["queries"], sent, local
        )

    @property
    def local(self) -> Candidate:
        return Candidate(LOCAL, self.arrays["local_val"], self.arrays["local_test"], 0, 0.0)


def _run(folder: Path, row: str) -> _Run:
    try:
        record = json.loads((folder / f"{row}.json").read_text(encoding="utf-8"))
        return _Run(dict(np.load(folder / f"{row}.npz")), record)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"benchmark: the run {folder / row} is not there; run the benchmark first"
        ) from error


def _rivals(
    raw: _Run, probe: _Run, head: _Run, val_targets: Integers
) -> tuple[list[Candidate], dict[str, dict[str, Any]]]:
    """Rows that need no prompt, with what each has learnt; ``head`` lends its local head."""
    probed = probe.candidate(PROBE, sent=0.0)
    rows = baselines.without_prompt(raw.candidate(RAW), head.local, probed, val_targets)
    classifier = {"mapping": 0, "local": head.record["learnable"]["classifier"]}
    records = {RAW: raw.record, PROBE: probe.record, LOCAL: {"learnable": classifier}}
    for name in (RAW, PROBE):
        mapping = records[name]["learnable"]["mapping"]
        records[with_local(name)] = {"learnable": classifier | {"mapping": mapping}}
    return rows, records


def _row(name: str, cells: Sequence[Cell]) -> Row:
    record = cells[0].records.get(name, {})
    mean, low, high = accuracy_interval(_by_image((c.ids, c.hits(name)) for c in cells))
    seconds = [c.records[name]["seconds"] for c in cells if "seconds" in c.records.get(name, {})]
    agreement = [
        c.records[name]["agreement"] for c in cells if "agreement" in c.records.get(name, {})
    ]
    alone = not cells[0].rows[name].fused
    return Row(
        name,
        "white_box" not in record,
        mean,
        (low, high),
        float(np.mean([c.rows[name].sent for c in cells])),
        _learnable(cells[0].rows[name], record) if record else None,
        float(np.mean(seconds)) if seconds else None,
        min(agreement) if agreement and alone else None,
    )


def _learnable(row: Candidate, record: Mapping[str, Any]) -> int:
    """Count what has a say in the row: the prompt with its mapping, and the local head where it is
    fused.
    """
    counts = record["learnable"]
    own = int(counts.get("prompt", 0)) + int(counts["mapping"])
    return own + int(counts["local"]) if row.fused or row.name == LOCAL else own


def _mean(rows: Sequence[Row], cells: Mapping[str, Sequence[Cell]]) -> Row:
    """The mean over sets."""
    name = rows[0].name
    entries = [_by_image((c.ids, c.hits(name)) for c in seeds) for seeds in cells.values()]
    mean, low, high = pooled_bootstrap(entries, seed=0)
    agreement = [r.agreement for r in rows if r.agreement is not None]
    seconds = [r.seconds for r in rows if r.seconds is not None]
    learnable = [r.learnable for r in rows if r.learnable is not None]
    return Row(
        name,
        rows[0].deployable,
        mean,
        (low, high),
        float(np.mean([r.sent for r in rows])),
        max(learnable) if learnable else None,
        float(np.mean(seconds)) if seconds else None,
        min(agreement) if agreement else None,
    )


def _by_image(parts: Iterable[tuple[NDArray[Any], Floats]]) -> Floats:
    """Average values of the same images."""
    values: dict[str, list[float]] = defaultdict(list)
    for ids, row in parts:
        for name, value in zip(ids.tolist(), row.tolist(), strict=True):
            values[name].append(value)
    return np.array([np.mean(v) for v in values.values()])


def _pairs(cells: Mapping[str, Sequence[Cell]]) -> Iterable[Difference]:
    """The comparisons that decide, on each set and in the mean: PGN, and what is served, against
    all others.
    """
    first = next(iter(cells.values()))[0]
    pgn, served = first.head, SERVED
    both = with_local(pgn)
    others = [n for n in first.rows if n not in (pgn, both, served)]
    pairs = [(both if first.rows[n].fused else pgn, n) for n in others]
    pairs += [(served, n) for n in (*others, pgn, both) if "white_box" not in first.records[n]]
    for a, b in pairs:
        entries = {
            name: _by_image((c.ids, c.hits(a) - c.hits(b)) for c in seeds)
            for name, seeds in cells.items()
        }
        for name, chosen in [*((k, [v]) for k, v in entries.items()), ("", list(entries.values()))]:
            mean, low, high = pooled_bootstrap(chosen, seed=0)
            yield Difference(a, b, name, mean, (low, high))


def _curve(cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """Accuracy against images sent, of the head's method ⊕ local: what the head is least sure of is
    sent.
    """
    points = []
    for share in np.linspace(0, 1, 11):
        at = []
        for c in cells:
            row, local = c.rows[with_local(c.head)], c.rows[LOCAL]
            _, hits = gate_hits(row.test, local.test, c.targets)
            at.append(hits[round(share * len(c.targets))] / len(c.targets))
        points.append((float(share), float(np.mean(at))))
    return points
