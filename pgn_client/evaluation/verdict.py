"""Judge a prompt and its baselines: accuracy and cost of each, and a recommendation.

Every choice is made on validation images. The test images serve to measure accuracy, nothing else.
This module sends and trains nothing.
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
    "the nearest checkpoint is that of pgn train --method no_prompt, which stretches images to the "
    "canvas; evaluate it too"
)
"""Remark in advice to send raw images: the evaluation fits a label mapping for them but does not
save it, so the remark names a checkpoint to use.
"""

ADVICE = {
    LOCAL: "use the local model: no query is needed",
    PROBE: "use the local model (a linear probe on the surrogate's features): no query is needed",
    PROBE_LOCAL: "use the local models (a linear probe on the surrogate's features, fused with the "
    "local head): no query is needed",
    RAW: f"use the mapping only: send images as they are ({NEAREST})",
    RAW_LOCAL: "use the mapping and the local head, without a prompt: send images as they are "
    f"({NEAREST})",
    NO_PROMPT: "use the mapping only: send images without a prompt",
    with_local(NO_PROMPT): "use the mapping and the local head: send images without a prompt",
    FRAME: "use the mapping only: send images in an empty gray frame",
    with_local(FRAME): "use the mapping and the local head: send images in an empty gray frame",
    IIP: "use the input-independent prompt: one prompt for all images",
    IIP_LOCAL: "use the input-independent prompt, fused with the local head",
    PGN: "use the prompt",
    PGN_LOCAL: "use the prompt, fused with the local head",
}
"""Title of the recommended way to classify → recommendation in words, from the cheapest to the most
expensive. Local models send no images; prompts are the most expensive, because they are trained
too.
"""

CONTAMINATED = (
    "not the checkpoint's own data, so the prompt may have been trained on these test images"
)
"""Warning if the evaluation uses other images than the data set of the checkpoint's training."""


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
    """Recommend ``advised``, the cheapest candidate about as accurate as the served one, and give
    the reason.

    The reason has the accuracy and cost of the recommended candidate, those of the served one if it
    is another, and the gain of the prompt over raw images.

    Args:
        best: Title of the candidate of least log-loss on validation.
        served: The candidate with the title ``best``, behind a gate, which does not send images on
            which the local head is confident.
        advised: The candidate that ``selection.advised`` returns. Where no other one is cheaper,
            that is ``served``, renamed to ``best``.
        targets: Class indices of the test images, (n,).
        paired: Paired comparisons of candidates on the test images.
        seed: Seed of the bootstrap.
        price_per_image: Price of an image at the endpoint; ``None`` where it is not given.
    """
    accuracy, lo, hi = accuracy_interval(right(advised.test, targets))
    reason = (
        f"{advised.name} has accuracy {accuracy:.3f} (95 % interval [{lo:.3f}, {hi:.3f}]) on "
        f"{len(targets)} test images and {_sending(advised, price_per_image)}."
    )

    if advised.name != best:
        accuracy, lo, hi = accuracy_interval(right(served.test, targets))
        lead = compared(served, advised, targets, seed)
        reason += (
            " On validation it is within one standard error, or one image, of the served row, "
            f"{best}, which has accuracy {accuracy:.3f} [{lo:.3f}, {hi:.3f}] and "
            f"{_sending(served, price_per_image)}. On the test images, the gain of {best} over "
            f"{advised.name} is {_points(lead)}."
        )

    # The served row may be a row without a prompt, so its gain is not that of the prompt.
    gain = next((c for c in paired if c.b == RAW and c.a != SERVED), None)
    if gain is not None:
        reason += f" The gain of {gain.a} over {RAW} is {_points(gain)}."
    return Verdict(kind_of(advised), advised.key, advice(advised), reason)


def _sending(candidate: Candidate, price_per_image: float | None) -> str:
    """Say how many of 1,000 images a candidate sends to the endpoint, and at what cost."""
    if not candidate.sent:
        return "sends nothing"
    text = f"sends {1000 * candidate.sent:,.0f} of 1,000 images"
    cost = candidate.cost(1000, price_per_image)
    if cost is not None:
        text += f" (cost {money(cost)})"
    if candidate.sent < 1:
        text += ", those on which the local head is not confident"
    return text


def money(amount: float) -> str:
    """Return an amount of money as text: two decimals, or two significant digits below 0.01."""
    return f"{amount:,.2f}" if amount >= 0.01 or not amount else f"{amount:.2g}"


def advice(row: Candidate) -> str:
    """Return the recommendation to use this candidate, such as "use the prompt".

    Methods that are not in ``ADVICE`` get the words for a PGN.
    """
    return ADVICE.get(row.name, ADVICE[PGN_LOCAL if row.fused else PGN])


def kind_of(row: Candidate) -> Kind:
    """Return the kind of a recommendation to use this candidate: ``local``, ``mapping``, ``prompt``
    or ``both``.
    """
    alone = row.fuses or row.name
    if alone in (LOCAL, PROBE):
        return "local"
    if row.fused:
        return "both"
    return "mapping" if alone in (RAW, NO_PROMPT, FRAME) else "prompt"


def _points(c: Comparison) -> str:
    """Return a difference in accuracy as text, in points with its interval; marked "not
    established" if the interval includes 0.
    """
    low, high = c.ci95
    mark = "" if low > 0 or high < 0 else ", not established"
    return f"{100 * c.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}] points{mark}"


CURVE = tuple(step / 10 for step in range(11))
"""Quantiles of the local head's confidence at which the curve of accuracy against images sent has
its points.
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
    """Choose the candidate to serve on validation images, and measure all on the test images.

    Args:
        candidates: All ways to classify, raw images among them, from the cheapest to the most
            expensive.
        task: Validation and test images; only labels, class names and file names are read.
        seed: Seed of the bootstrap.
        name: Title of the candidate with the prompt.
        same_data: Whether these are the images of the checkpoint's training.
        price_per_image: Price of an image, in any currency; ``None`` where it is not given.
    """
    val = task.val.labels
    test = task.test.labels
    price = price_per_image

    # Among equals the first row is chosen, so the cheapest come first: those that send nothing. The
    # sort is stable, so the others stay in the given order.
    ranked = sorted(candidates, key=lambda c: c.sent > 0)
    best = selection.choose(ranked, val)
    served, query_below = selection.gated(SERVED, best, val)
    advised = selection.advised(ranked, best, val)

    rows = [_row(c, test, price) for c in candidates]
    # gated() clears the title of the fused row, but the local head contributes all the same.
    served_row = _row(served, test, price)
    rows.append(replace(served_row, fused=best.fused or query_below is not None))
    paired = compare([*candidates, served], test, seed, name)
    recommendation = verdict(
        best.name, served, advised, test, paired, seed=seed, price_per_image=price
    )
    if not same_data:
        recommendation = replace(recommendation, warnings=(CONTAMINATED,))

    detailed = [served, *(c for c in candidates if c.name == RAW)]
    counts = {c.name: confusion(c.test, test) for c in detailed}
    return Judgement(
        rows=rows,
        paired=paired,
        verdict=recommendation,
        best=best.name,
        advised=advised.name,
        same_data=same_data,
        fusion={c.name: c.alpha for c in candidates if c.alpha is not None},
        query_below=query_below,
        price_per_image=price,
        curve=_curve(best, task, price),
        per_class={row: by_class(count, task.classes) for row, count in counts.items()},
        confusion={row: _sparse(count, task.classes) for row, count in counts.items()},
        reliability={c.name: reliability(c.test, test) for c in detailed},
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
    """Turn a (C, C) confusion matrix into true class → predicted class → number of images. Zeros
    are left out.
    """
    sparse = {}
    for true, row in zip(classes, counts, strict=True):
        if row.any():
            sparse[true] = {classes[k]: int(row[k]) for k in np.flatnonzero(row).tolist()}
    return sparse


def _examples(task: Task, served: Candidate) -> list[dict[str, str]]:
    """Return a few test images, each with its name, its true label, and the label that the served
    candidate predicts.
    """
    predicted = served.test.argmax(axis=1)
    targets = task.test.labels
    return [
        {
            "picture": describe(task.test.paths[i]),
            "label": task.classes[targets[i]],
            "served": task.classes[predicted[i]],
        }
        for i in spread(len(task.test))
    ]


def _curve(
    best: Candidate, task: Task, price_per_image: float | None
) -> list[dict[str, float | None]]:
    """Return the curve of accuracy against images sent, for thresholds of the local head's
    confidence.

    Images on which the local head is more confident are not sent. The thresholds are quantiles of
    its confidence on validation images. The curve is empty without a local head, or if nothing is
    sent.
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
