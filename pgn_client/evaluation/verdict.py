"""What the answers of a prompt and its rivals say: how good each row is, what to do, why, and what
it costs.

Whatever is chosen is chosen on validation images; the test images are only counted. Nothing is sent
or trained here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from pgn_client.arrays import Integers
from pgn_client.evaluation import selection
from pgn_client.evaluation.candidate import (
    FRAME,
    IIP,
    LOCAL,
    NO_PROMPT,
    PGN,
    PROBE,
    RAW,
    SERVED,
    Candidate,
    with_local,
)
from pgn_client.evaluation.comparison import (
    IIP_LOCAL,
    PGN_LOCAL,
    PROBE_LOCAL,
    RAW_LOCAL,
    compare,
    compared,
)
from pgn_client.evaluation.metrics import by_class, calibration_error, confusion, reliability
from pgn_client.evaluation.results import Comparison, Judgement, Kind, Row, Verdict
from pgn_client.evaluation.statistics import accuracy_interval
from pgn_client.imaging.codecs import describe
from pgn_client.imaging.dataset import Task
from pgn_client.imaging.files import spread
from pgn_client.mapping.fusion import gate_curve
from pgn_client.mapping.probability import log_loss, right

NEAREST = (
    "nearest checkpoint: pgn train --method no_prompt, which squashes images into the "
    "canvas; evaluate it too"
)


ADVICE = {
    LOCAL: "use the local model: no query is needed",
    PROBE: "use the local model (a linear probe on the surrogate's features): no query is needed",
    PROBE_LOCAL: "use the local models (the local head, fused with a linear probe on the "
    "surrogate's features): no "
    "query is needed",
    RAW: f"use the mapping only: send images as they are ({NEAREST})",
    RAW_LOCAL: "use both without a prompt: send images as they are, and fuse the answers with "
    "the local head "
    f"({NEAREST})",
    NO_PROMPT: "use the mapping only: send images without a prompt",
    with_local(NO_PROMPT): "use both without a prompt: send images without one, fused with the "
    "local head",
    FRAME: "use the mapping only: send images in an empty grey frame",
    with_local(FRAME): "use both without a prompt: send images in a grey frame, fused with the "
    "local head",
    IIP: "use the input-independent prompt: one prompt for all images",
    IIP_LOCAL: "use the input-independent prompt, fused with the local head",
    PGN: "use the prompt",
    PGN_LOCAL: "use both: the prompt, fused with the local head",
}
"""What to do where a row wins, from the cheapest to the dearest: local costs nothing, a prompt
costs training too.
"""


CONTAMINATED = "not the checkpoint's own data, so these test images may have been trained on"


def verdict(
    best: str,
    served: Candidate,
    advised: Candidate,
    targets: Integers,
    paired: Sequence[Comparison],
    *,
    seed: int = 0,
    price_per_image: float | None = None,
) -> Verdict:
    """Recommend the cheapest way that validation could not tell from what is served.

    The reason tells what the test images say of it and what it costs, then the same of what is
    served.

    Args:
        best: the row that is served.
        served: how it is: behind its gate.
        advised: see ``selection.advised``; ``served`` itself, by the name of ``best``, where
            nothing is cheaper.
        targets: (n,) class indices of the test images.
        paired: the comparisons.
        seed: Seed of the bootstrap.
        price_per_image: Price of an image at the endpoint; ``None`` where it is not known.
    """

    def told(name: str, candidate: Candidate, where: str = "") -> str:
        accuracy, lo, hi = accuracy_interval(right(candidate.test, targets))
        return (
            f"{name} reaches {accuracy:.3f} [{lo:.3f}, {hi:.3f}]{where} and "
            f"{_sending(candidate, price_per_image)}"
        )

    text = told(advised.name, advised, f" on {len(targets)} test images")
    if advised.name != best:
        text += (
            "; on validation it is within one standard error, or one image, of the served model, "
        )
        text += (
            f"{told(f'{best}, which', served)}: "
            f"{_points(compared(served, advised, targets, seed))} on these images"
        )
    gain = next((c for c in paired if c.b == RAW and c.a != SERVED), None)
    text += "." if gain is None else f"; {gain.a} − {RAW} is {_points(gain)}."
    return Verdict(kind_of(advised), advised.key, advice(advised), text)


def _sending(candidate: Candidate, price_per_image: float | None) -> str:
    """What serving 1,000 images sends and costs."""
    if not candidate.sent:
        return "sends nothing"
    cost = candidate.cost(1000, price_per_image)
    text = (f"sends {1000 * candidate.sent:,.0f} of 1,000 images") + (
        "" if cost is None else f" (cost {money(cost)})"
    )
    return text + (", those of which the local head is not sure" if candidate.sent < 1 else "")


def money(amount: float) -> str:
    """An amount in whatever currency: two decimals, or two digits of less than a hundredth."""
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.2g}"


def advice(row: Candidate) -> str:
    """Return what to do where a row wins; another prompt than those named is a prompt all the
    same.
    """
    return ADVICE.get(row.name, ADVICE[PGN_LOCAL if row.fused else PGN])


def kind_of(row: Candidate) -> Kind:
    """Return what kind of recommendation a row is."""
    alone = row.fuses or row.name
    if alone in (LOCAL, PROBE):
        return "local"
    if row.fused:
        return "both"
    return "mapping" if alone in (RAW, NO_PROMPT, FRAME) else "prompt"


def _points(c: Comparison) -> str:
    sure = "" if c.ci95[0] > 0 or c.ci95[1] < 0 else ", not established"
    return (
        f"{100 * c.difference:+.1f} [{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}] points{sure}"
    )


CURVE = tuple(step / 10 for step in range(11))
"""Quantiles of the local head's confidence at which the curve of accuracy against images sent is
told.
"""


def judge(
    candidates: Sequence[Candidate],
    task: Task,
    *,
    seed: int,
    name: str = PGN,
    same_data: bool = True,
    price_per_image: float | None = None,
) -> Judgement:
    """Choose on validation what is served, and measure everything on the test images.

    Args:
        candidates: what was asked, raw answers among it, from the cheapest to the dearest.
        task: its splits; only their labels and the files' names are read.
        seed: Seed of the bootstrap.
        name: Title of the prompt's row.
        same_data: whether these are the training images of the checkpoint.
        price_per_image: Price of an image, in any currency; ``None`` where it is not known.
    """
    val, test, price = task.val.labels, task.test.labels, price_per_image
    ranked = sorted(candidates, key=lambda c: c.sent > 0)  # what sends nothing comes first
    best = selection.choose(ranked, val)
    served, query_below = selection.gated(SERVED, best, val)
    advised = selection.advised(ranked, best, val)
    paired = compare([*candidates, served], test, seed, name)
    found = verdict(best.name, served, advised, test, paired, seed=seed, price_per_image=price)
    looked_into = [served, *(c for c in candidates if c.name == RAW)]
    counts = {c.name: confusion(c.test, test) for c in looked_into}
    return Judgement(
        rows=[
            *(_row(c, test, price) for c in candidates),
            replace(_row(served, test, price), fused=best.fused or query_below is not None),
        ],
        paired=paired,
        verdict=found if same_data else replace(found, warnings=(CONTAMINATED,)),
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


def _row(candidate: Candidate, targets: Integers, price_per_image: float | None) -> Row:
    accuracy, lo, hi = accuracy_interval(right(candidate.test, targets))
    return Row(
        key=candidate.key,
        title=candidate.name,
        fused=candidate.fused,
        accuracy=accuracy,
        ci95=(lo, hi),
        log_loss=log_loss(candidate.test, targets),
        ece=calibration_error(reliability(candidate.test, targets)),
        queries=candidate.queries,
        queries_fit=candidate.queries_fit,
        queries_test=candidate.queries_test,
        sent=candidate.sent,
        cost_per_1000=candidate.cost(1000, price_per_image),
    )


def _sparse(counts: Integers, classes: Sequence[str]) -> dict[str, dict[str, int]]:
    """(C, C) counts → true class → answered class → images, without zeros."""
    return {
        true: {classes[k]: int(row[k]) for k in np.flatnonzero(row).tolist()}
        for true, row in zip(classes, counts, strict=True)
        if row.any()
    }


def _examples(task: Task, served: Candidate) -> list[dict[str, str]]:
    """A few test images by name, with their label and what is served."""
    answered, targets = served.test.argmax(axis=1), task.test.labels
    return [
        {
            "picture": describe(task.test.paths[i]),
            "label": task.classes[targets[i]],
            "served": task.classes[answered[i]],
        }
        for i in spread(len(task.test))
    ]


def _curve(
    best: Candidate, task: Task, price_per_image: float | None
) -> list[dict[str, float | None]]:
    """Accuracy against images sent; thresholds are quantiles of the confidence on validation
    images.
    """
    local = best.local
    if not best.sent or local is None:
        return []
    thresholds = np.quantile(np.exp(local.val).max(axis=1), CURVE)
    points = gate_curve(best.test, local.test, task.test.labels, thresholds.tolist())
    return [
        asdict(p) | {"cost_per_1000": replace(best, sent=p.sent).cost(1000, price_per_image)}
        for p in points
    ]
