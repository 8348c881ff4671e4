"""The honest comparison: a prompt and its rivals on the same test images, with intervals and a verdict.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label mapping, the generator's
own local head, a linear probe on the surrogate, answers and probe fused with that head, the input-independent prompt.
Everything is chosen on training and validation images; the test images are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from pgn_client import candidates as ways
from pgn_client import methods
from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone
from pgn_client.candidates import (
    LOCAL,
    PROBE,
    RAW,
    SERVED,
    Asker,
    Candidate,
    Connect,
    Integers,
    Pictures,
    Pixels,
    Query,
)
from pgn_client.compositor import GREY, compose
from pgn_client.retention import agreement, follow
from pgn_client.statistics import accuracy_interval, gate_curve, paired_bootstrap
from pgn_client.training import Task

Note = Callable[[str], None]

PGN, IIP = (methods.get(name).title for name in ("pgn", "input_independent"))
NO_PROMPT, FRAME = (methods.get(name).title for name in ("no_prompt", "grey_frame"))
RAW_LOCAL, PROBE_LOCAL, IIP_LOCAL, PGN_LOCAL = (ways.with_local(name) for name in (RAW, PROBE, IIP, PGN))
CURVE = tuple(step / 10 for step in range(11))
"""Quantiles of the local head's confidence at which the curve of accuracy against images sent is told."""

NEAREST = "nearest checkpoint: pgn train --method no_prompt, which squashes pictures into the canvas; evaluate it too"
ADVICE = {
    LOCAL: "use the local model: no query is needed",
    PROBE: "use the local model (a linear probe on the surrogate's features): no query is needed",
    PROBE_LOCAL: "use the local models (the local head, fused with a linear probe on the surrogate's features): no "
    "query is needed",
    RAW: f"use the mapping only: send pictures as they are ({NEAREST})",
    RAW_LOCAL: "use both without a prompt: send pictures as they are, and fuse the answers with the local head "
    f"({NEAREST})",
    NO_PROMPT: "use the mapping only: send pictures without a prompt",
    ways.with_local(NO_PROMPT): "use both without a prompt: send pictures without one, fused with the local head",
    FRAME: "use the mapping only: send pictures in an empty grey frame",
    ways.with_local(FRAME): "use both without a prompt: send pictures in a grey frame, fused with the local head",
    IIP: "use the input-independent prompt: one prompt for all pictures",
    IIP_LOCAL: "use the input-independent prompt, fused with the local head",
    PGN: "use the prompt",
    PGN_LOCAL: "use both: the prompt, fused with the local head",
}
"""What to do where a row wins, from the cheapest to the dearest: local costs nothing, a prompt costs training too."""


CONTAMINATED = "not the checkpoint's own data, so these test pictures may have been trained on; "


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same test images: difference of accuracy with its 95 % interval, as shares."""

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]


@dataclass
class Report:
    """What ``report.json`` holds; see ``to_json``."""

    rows: list[dict[str, Any]]
    paired: list[Comparison]
    retention: dict[str, Any] | None
    controls: dict[str, Any]
    verdict: str
    omitted: list[str]
    seconds: float
    seed: int
    split: dict[str, int]
    same_data: bool
    mapping: dict[str, Any]
    fusion: dict[str, float]
    query_below: float | None
    curve: list[dict[str, float]]
    versions: dict[str, str]
    images_sent: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def row(self, name: str) -> dict[str, Any]:
        """Return one row by name."""
        return next(row for row in self.rows if row["name"] == name)


def evaluate(
    task: Task,
    connect: Connect,
    pgn: PromptAdapter,
    *,
    same_data: bool = True,
    rival: PromptAdapter | None = None,
    surrogate: Backbone | None = None,
    note: Note = lambda _: None,
) -> Report:
    """Compare a prompt with its rivals over HTTP.

    Args:
        task: the splits that the prompt was trained with (see ``training.alike.task_of``).
        connect: opens a client of the endpoint for an adapter, or for pictures as they are (``None``).
        pgn: the prompt to judge.
        same_data: whether these are the training pictures of the checkpoint; if not, the report says so.
        rival: an input-independent prompt trained alike; without it the row ``IIP`` is left out, and said so.
        surrogate: the backbone the prompt was trained through; without it linear probe and retention are left out.
        note: told what is going on.

    Returns:
        The report. The row ``served`` is what the verdict recommends, chosen on validation alone: the way of least
        log-loss, and the gate ``query_below`` under which pictures are sent. ``curve`` is that way's accuracy against
        images sent.
    """
    started = time.monotonic()
    val, test = (Pictures.of(split, pgn) for split in (task.val, task.test))
    asker = Asker(connect)
    seed, name = int(pgn.info["seed"]), methods.restorable(pgn.info["method"]).title
    note(f"raw answers to {len(task.train)} training, {len(task.val)} validation and {len(task.test)} test pictures")
    augmentation = pgn.info["recipe"]["augment"]
    raw, fitted = ways.raw(asker, task, augmentation, seed)
    local = ways.local_head(pgn, val, test)
    probe, omitted = _probe(task, surrogate, augmentation, seed)
    candidates = ways.without_prompt(raw, local, probe, task.val.labels)
    if rival is not None:
        note("input-independent prompt over HTTP")
        candidates += _with_its_local_head(IIP, asker, rival, task, ways.local_head(rival, val, test))
    elif name != IIP:
        omitted.append(
            f"{IIP}: none that is trained alike; for a PGN of one task, as pgn train wrote it, give --rival, or a "
            "surrogate to train one"
        )
    note(f"{name} over HTTP, with its own prompts, swapped ones, and on grey pictures")
    prompted, both = _with_its_local_head(name, asker, pgn, task, local)
    candidates += [prompted, both]
    controls = _controls(asker, pgn, test, prompted)
    retention: dict[str, Any] | None = None
    if surrogate is not None:
        note("retention from latent float32 to JPEG")
        stages = follow(pgn, surrogate, test.fitted, looked_at=test.looked_at, over_http=prompted.test)
        retention = {k: float(ways.right(v, task.test.labels).mean()) for k, v in stages.items()}
        retention |= {"agreement": agreement(stages)}
    ranked = sorted(candidates, key=lambda c: c.sent > 0)  # what sends nothing comes first
    best = ways.choose(ranked, task.val.labels)
    served, query_below = ways.gated(SERVED, best, task.val.labels)
    paired = compare([*candidates, served], task.test.labels, seed, name)
    return Report(
        rows=[_row(c, task.test.labels) for c in (*candidates, served)],
        paired=paired,
        retention=retention,
        controls=controls,
        verdict=("" if same_data else CONTAMINATED) + verdict(best, ranked, task, paired, served.sent),
        omitted=omitted,
        seconds=round(time.monotonic() - started, 1),
        seed=seed,
        split={"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        same_data=same_data,
        mapping={"kind": fitted.mapping.kind, "val_log_loss": fitted.log_loss, "l2": fitted.l2},
        fusion={c.name: c.alpha for c in candidates if c.alpha is not None},
        query_below=query_below,
        curve=_curve(best, task),
        versions=dict(pgn.info["versions"]),
        images_sent=asker.images_sent,
    )


def queries(
    task: Task, pgn: PromptAdapter, *, rival: PromptAdapter | None = None, rival_to_train: bool = False
) -> Iterator[Query]:
    """Yield what ``evaluate`` would send, for a dry run.

    Args:
        task: as of ``evaluate``, like the two that follow.
        pgn: the prompt to judge.
        rival: an input-independent prompt.
        rival_to_train: whether the rival would be trained first.
    """
    yield Query("training", task.train.paths)
    for block in ways.augmented_blocks(task.train, pgn.info["recipe"]["augment"], int(pgn.info["seed"])):
        yield Query("training, augmented", block)
    for part, split in (("validation", task.val), ("test", task.test)):
        yield from (Query(part, split.paths, adapter) for adapter in (None, pgn))
        if rival is not None or rival_to_train:
            yield Query(part, split.paths, rival, ready=rival is not None)
    for _, images in _control_pictures(pgn, Pictures.of(task.test, pgn)):
        yield Query("controls", images)


def compare(candidates: Sequence[Candidate], targets: Integers, seed: int, name: str = PGN) -> list[Comparison]:
    """Return the paired comparisons that decide whether a prompt pays, where both rows are there."""
    rows = {c.name: ways.right(c.test, targets) for c in candidates}
    both = ways.with_local(name)
    pairs = [(name, RAW), (name, IIP), (name, LOCAL), (both, RAW_LOCAL), (both, PROBE_LOCAL), (both, IIP_LOCAL)]
    pairs += [(SERVED, LOCAL), (SERVED, PROBE_LOCAL), (SERVED, RAW_LOCAL)]
    out = []
    for a, b in pairs:
        if a in rows and b in rows and a != b:
            difference, lo, hi = paired_bootstrap(rows[a], rows[b], seed=seed)
            out.append(Comparison(a, b, difference, (lo, hi)))
    return out


def verdict(
    best: Candidate, candidates: Sequence[Candidate], task: Task, paired: Sequence[Comparison], sent: float = 1.0
) -> str:
    """Say in one sentence what to do, and what the test images say of it.

    Args:
        best: what is served.
        candidates: all ways, from the cheapest to the dearest.
        task: its validation and test targets.
        paired: the comparisons.
        sent: share of pictures that are sent once ``best`` is gated.
    """
    accuracy, lo, hi = accuracy_interval(ways.right(best.test, task.test.labels))
    text = f"{advice(best.name)}: {best.name} reaches {accuracy:.3f} [{lo:.3f}, {hi:.3f}]"
    text += f" on {len(task.test)} test pictures"
    if sent < best.sent:
        text += f"; where the local head is sure it may answer alone, and {sent:.0%} of them are sent"
    cheap = ways.cheapest(candidates, best, task.val.labels)
    if cheap.name != best.name:
        cost = "which sends nothing" if not cheap.sent else "which is cheaper"
        text += f"; {cheap.name}, {cost}, was no worse on validation than one standard error, or one picture, can tell"
    gain = next((c for c in paired if c.b == RAW and c.a != SERVED), None)
    if gain is not None:
        sure = "" if gain.ci95[0] > 0 or gain.ci95[1] < 0 else ", not established"
        text += f"; {gain.a} − {RAW} is {_points(gain)} points{sure}"
    return text + "."


def advice(name: str) -> str:
    """What to do where a row wins."""
    return ADVICE.get(name, ADVICE[PGN_LOCAL if name.endswith("⊕ local") else PGN])


def _points(c: Comparison) -> str:
    return f"{100 * c.difference:+.1f} [{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}]"


def _row(candidate: Candidate, targets: Integers) -> dict[str, Any]:
    accuracy, lo, hi = accuracy_interval(ways.right(candidate.test, targets))
    return {"name": candidate.name, "accuracy": accuracy, "ci95": [lo, hi], "queries": candidate.queries}


def _probe(task: Task, surrogate: Backbone | None, augmentation: str, seed: int) -> tuple[Candidate | None, list[str]]:
    """The linear probe, or a word on what cannot be measured without a surrogate."""
    if surrogate is None:
        return None, [f"{PROBE} and retention: no surrogate; give --backbone and --weights"]
    return ways.probe(surrogate, task, augmentation, seed), []


def _with_its_local_head(
    name: str, ask: Asker, adapter: PromptAdapter, task: Task, local: Candidate
) -> list[Candidate]:
    """A prompt alone, and fused with the local head of its own checkpoint by the α of its card."""
    alone = replace(ways.prompted(name, ask, adapter, task), local=local)
    return [alone, ways.fused(alone, local, float(adapter.info["fusion"]))]


def _curve(best: Candidate, task: Task) -> list[dict[str, float]]:
    """Accuracy against images sent; thresholds are quantiles of the confidence on validation pictures."""
    local = best.local
    if not best.sent or local is None:
        return []
    thresholds = np.quantile(np.exp(local.val).max(axis=1), CURVE)
    return [asdict(point) for point in gate_curve(best.test, local.test, task.test.labels, thresholds.tolist())]


def _controls(ask: Asker, pgn: PromptAdapter, test: Pictures, prompted: Candidate) -> dict[str, float]:
    """Is the prompt a smuggled label? Another picture's prompt, and the own prompt on a grey picture, must say less.

    Where the server crops, the bare canvas without its margin shows what the crop then does to the prompt.
    """

    def accuracy(images: list[Image.Image]) -> float:
        return float(ways.right(ways.read(pgn, ask(images)), test.split.labels).mean())

    own = float(ways.right(prompted.test, test.split.labels).mean())
    return {"own_prompt": own} | {name: accuracy(images) for name, images in _control_pictures(pgn, test)}


def _control_pictures(pgn: PromptAdapter, test: Pictures) -> Iterator[tuple[str, list[Image.Image]]]:
    fitted, eye = test.fitted, test.prompted_by
    other = np.random.default_rng(int(pgn.info["seed"])).permutation(len(fitted))
    yield "swapped_prompt", _painted(pgn, fitted, eye[other])
    yield "grey_picture", _painted(pgn, np.full_like(fitted, GREY), eye)
    if pgn.canvas.sent > pgn.canvas.size:
        yield "without_margin", _painted(pgn, fitted, eye, margin=False)


def _painted(
    adapter: PromptAdapter, pictures: Pixels, prompted_by: Pixels, *, margin: bool = True
) -> list[Image.Image]:
    """Pictures with the prompts of these or others."""
    patches, _ = adapter.render(pictures, prompted_by=prompted_by)
    return [compose(p, q, adapter.canvas, margin=margin) for p, q in zip(pictures, patches, strict=True)]
