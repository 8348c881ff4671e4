"""What the answers of a prompt and its rivals say: how good each row is, which differ, and what to do.

Whatever is chosen is chosen on validation images; the test images are only counted. Nothing is sent or trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from pgn_client.arrays import Integers
from pgn_client.evaluation import selection
from pgn_client.evaluation.candidate import LOCAL, PROBE, RAW, SERVED, Candidate, with_local
from pgn_client.evaluation.metrics import Bin, ClassScore, by_class, calibration_error, confusion, reliability
from pgn_client.evaluation.statistics import accuracy_interval, discordant, mcnemar, paired_bootstrap
from pgn_client.imaging.codecs import describe
from pgn_client.imaging.files import spread
from pgn_client.mapping.fusion import gate_curve
from pgn_client.mapping.probability import log_loss, right
from pgn_client.prompting import methods
from pgn_client.training import Task

PGN, IIP = (methods.get(name).title for name in ("pgn", "input_independent"))
NO_PROMPT, FRAME = (methods.get(name).title for name in ("no_prompt", "grey_frame"))
RAW_LOCAL, PROBE_LOCAL, IIP_LOCAL, PGN_LOCAL = (with_local(name) for name in (RAW, PROBE, IIP, PGN))
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
    with_local(NO_PROMPT): "use both without a prompt: send pictures without one, fused with the local head",
    FRAME: "use the mapping only: send pictures in an empty grey frame",
    with_local(FRAME): "use both without a prompt: send pictures in a grey frame, fused with the local head",
    IIP: "use the input-independent prompt: one prompt for all pictures",
    IIP_LOCAL: "use the input-independent prompt, fused with the local head",
    PGN: "use the prompt",
    PGN_LOCAL: "use both: the prompt, fused with the local head",
}
"""What to do where a row wins, from the cheapest to the dearest: local costs nothing, a prompt costs training too."""
CONTAMINATED = "not the checkpoint's own data, so these test pictures may have been trained on; "


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same test images.

    Attributes:
        a, b: the rows.
        difference, ci95: of their accuracies, a - b, as shares, with the 95 % interval of the paired bootstrap.
        only_a, only_b: how many images only one of them gets right.
        mcnemar_p: of the exact McNemar test on these two counts, two-sided, not corrected for other comparisons.
    """

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]
    only_a: int
    only_b: int
    mcnemar_p: float


@dataclass
class Judgement:
    """What the answers say.

    Attributes:
        rows: a way to answer each: ``name``; ``accuracy`` with ``ci95``; ``log_loss`` in nats (a picture counts at most
            13.8) and ``ece`` of its probabilities; ``queries``, images sent in all, which are ``queries_fit`` for
            fitting and choosing plus ``queries_test``; ``sent``, the share of pictures that serving sends;
            ``cost_per_1000`` pictures served, in the currency of ``price_per_image``, ``None`` without one.
        paired: differences between rows on the same pictures.
        verdict: what to do, in words.
        best: the row of least log-loss on validation, which the row ``served`` is, behind the gate ``query_below``.
        advised: the cheapest row that validation could not tell from it; often the same.
        same_data: whether the pictures are the checkpoint's own.
        fusion: row → weight of the local head in it.
        price_per_image: as it was given.
        curve: of ``best``: ``accuracy`` if pictures below ``query_below`` are ``sent``, with ``cost_per_1000``.
        per_class, confusion, reliability: of the rows ``served`` and ``raw + mapping``: scores of each class; true
            class → answered class → pictures, without zeros; accuracy against confidence.
        examples: a few test pictures, with their ``label`` and what is ``served``.
    """

    rows: list[dict[str, Any]]
    paired: list[Comparison]
    verdict: str
    best: str
    advised: str
    same_data: bool
    fusion: dict[str, float]
    query_below: float | None
    price_per_image: float | None
    curve: list[dict[str, float | None]]
    per_class: dict[str, list[ClassScore]]
    confusion: dict[str, dict[str, dict[str, int]]]
    reliability: dict[str, list[Bin]]
    examples: list[dict[str, str]]

    def row(self, name: str) -> dict[str, Any]:
        """Return one row by name."""
        return next(row for row in self.rows if row["name"] == name)


def judge(
    candidates: Sequence[Candidate],
    task: Task,
    *,
    seed: int,
    name: str = PGN,
    same_data: bool = True,
    price_per_image: float | None = None,
) -> Judgement:
    """Choose on validation what is served, and measure everything on the test pictures.

    Args:
        candidates: what was asked, raw answers among it, from the cheapest to the dearest.
        task: its splits; only their labels and the files' names are read.
        seed: of the bootstrap.
        name: of the prompt's row.
        same_data: whether these are the training pictures of the checkpoint.
        price_per_image: of the endpoint, in any currency; ``None`` where it is not known.
    """
    val, test, price = task.val.labels, task.test.labels, price_per_image
    ranked = sorted(candidates, key=lambda c: c.sent > 0)  # what sends nothing comes first
    best = selection.choose(ranked, val)
    served, query_below = selection.gated(SERVED, best, val)
    advised = selection.advised(ranked, best, val)
    paired = compare([*candidates, served], test, seed, name)
    words = verdict(best.name, served, advised, test, paired, seed=seed, price_per_image=price)
    looked_into = [served, *(c for c in candidates if c.name == RAW)]
    counts = {c.name: confusion(c.test, test) for c in looked_into}
    return Judgement(
        rows=[_row(c, test, price) for c in (*candidates, served)],
        paired=paired,
        verdict=words if same_data else CONTAMINATED + words,
        best=best.name,
        advised=advised.name,
        same_data=same_data,
        fusion={c.name: c.alpha for c in candidates if c.alpha is not None},
        query_below=query_below,
        price_per_image=price,
        curve=_curve(best, task, price),
        per_class={row: by_class(count, task.classes) for row, count in counts.items()},
        confusion={row: _sparse(count, task.classes) for row, count in counts.items()},
        reliability={c.name: reliability(c.test, test) for c in looked_into},
        examples=_examples(task, served),
    )


def compare(candidates: Sequence[Candidate], targets: Integers, seed: int, name: str = PGN) -> list[Comparison]:
    """Return the paired comparisons that decide whether a prompt pays, where both rows are there."""
    rows = {c.name: c for c in candidates}
    both = with_local(name)
    pairs = [(name, RAW), (name, IIP), (name, LOCAL), (both, RAW_LOCAL), (both, PROBE_LOCAL), (both, IIP_LOCAL)]
    pairs += [(SERVED, LOCAL), (SERVED, PROBE_LOCAL), (SERVED, RAW_LOCAL)]
    return [_compared(rows[a], rows[b], targets, seed) for a, b in pairs if a in rows and b in rows and a != b]


def _compared(a: Candidate, b: Candidate, targets: Integers, seed: int) -> Comparison:
    hits = right(a.test, targets), right(b.test, targets)
    difference, lo, hi = paired_bootstrap(*hits, seed=seed)
    return Comparison(a.name, b.name, difference, (lo, hi), *discordant(*hits), mcnemar(*hits))


def verdict(
    best: str,
    served: Candidate,
    advised: Candidate,
    targets: Integers,
    paired: Sequence[Comparison],
    *,
    seed: int = 0,
    price_per_image: float | None = None,
) -> str:
    """Say in one sentence what to do, what the test images say of it, and what it costs.

    The cheapest way that validation could not tell from what is served is advised first; then comes what is served.

    Args:
        best: the row that is served.
        served: how it is: behind its gate.
        advised: see ``candidates.advised``; ``served`` itself, by the name of ``best``, where nothing is cheaper.
        targets: (n,) class indices of the test pictures.
        paired: the comparisons.
        seed: of the bootstrap.
        price_per_image: of the endpoint, where it is known.
    """

    def told(name: str, candidate: Candidate, where: str = "") -> str:
        accuracy, lo, hi = accuracy_interval(right(candidate.test, targets))
        return f"{name} reaches {accuracy:.3f} [{lo:.3f}, {hi:.3f}]{where} and {_sending(candidate, price_per_image)}"

    text = f"{advice(advised.name)}: {told(advised.name, advised, f' on {len(targets)} test pictures')}"
    if advised.name != best:
        text += (
            "; on validation it was no worse than one standard error, or one picture, can tell from what is served, "
        )
        text += (
            f"{told(f'{best}, which', served)}: {_points(_compared(served, advised, targets, seed))} on these pictures"
        )
    gain = next((c for c in paired if c.b == RAW and c.a != SERVED), None)
    return text + ("." if gain is None else f"; {gain.a} − {RAW} is {_points(gain)}.")


def _sending(candidate: Candidate, price_per_image: float | None) -> str:
    """What serving 1,000 pictures sends and costs."""
    if not candidate.sent:
        return "sends nothing"
    cost = candidate.cost(1000, price_per_image)
    text = f"sends {1000 * candidate.sent:,.0f} of 1,000 pictures" + ("" if cost is None else f" (cost {money(cost)})")
    return text + (", those of which the local head is not sure" if candidate.sent < 1 else "")


def money(amount: float) -> str:
    """An amount in whatever currency: two decimals, or two digits of less than a hundredth."""
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.2g}"


def advice(name: str) -> str:
    """What to do where a row wins."""
    return ADVICE.get(name, ADVICE[PGN_LOCAL if name.endswith("⊕ local") else PGN])


def _points(c: Comparison) -> str:
    sure = "" if c.ci95[0] > 0 or c.ci95[1] < 0 else ", not established"
    return f"{100 * c.difference:+.1f} [{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}] points{sure}"


def _row(candidate: Candidate, targets: Integers, price_per_image: float | None) -> dict[str, Any]:
    accuracy, lo, hi = accuracy_interval(right(candidate.test, targets))
    return {
        "name": candidate.name,
        "accuracy": accuracy,
        "ci95": [lo, hi],
        "log_loss": log_loss(candidate.test, targets),
        "ece": calibration_error(reliability(candidate.test, targets)),
        "queries": candidate.queries,
        "queries_fit": candidate.queries_fit,
        "queries_test": candidate.queries_test,
        "sent": candidate.sent,
        "cost_per_1000": candidate.cost(1000, price_per_image),
    }


def _sparse(counts: Integers, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """(C, C) counts → true class → answered class → pictures, without zeros."""
    return {
        true: {classes[k]: int(row[k]) for k in np.flatnonzero(row).tolist()}
        for true, row in zip(classes, counts, strict=True)
        if row.any()
    }


def _examples(task: Task, served: Candidate) -> list[dict[str, str]]:
    """A few test pictures by name, with their label and what is served."""
    answered, targets = served.test.argmax(axis=1), task.test.labels
    return [
        {
            "picture": describe(task.test.paths[i]),
            "label": task.classes[targets[i]],
            "served": task.classes[answered[i]],
        }
        for i in spread(len(task.test))
    ]


def _curve(best: Candidate, task: Task, price_per_image: float | None) -> list[dict[str, float | None]]:
    """Accuracy against images sent; thresholds are quantiles of the confidence on validation pictures."""
    local = best.local
    if not best.sent or local is None:
        return []
    thresholds = np.quantile(np.exp(local.val).max(axis=1), CURVE)
    points = gate_curve(best.test, local.test, task.test.labels, thresholds.tolist())
    return [asdict(p) | {"cost_per_1000": replace(best, sent=p.sent).cost(1000, price_per_image)} for p in points]
