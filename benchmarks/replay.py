r"""Ask an answer bank what a stingier endpoint, another budget or another gate would have given:
nothing is sent.

    python benchmarks/replay.py BANK --set rsscn7 --seed 0 --source tf_efficientnet_lite0/raw \
      --local vit_tiny_patch16_224

prints accuracy on the test images by view (all scores, top five, one label, rounded), by number of
fit images, and by gate. ``views`` below are what other scripts use.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from answer_bank import Bank, Floats, Integers, Location
from numpy.typing import NDArray

from pgn_client.evaluation.statistics import accuracy_interval
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, best_gate, fuse, gate, gate_curve
from pgn_client.mapping.logistic_regression import stratified
from pgn_client.mapping.probability import log_loss, log_normalised

View = Callable[[NDArray[Any]], Floats]


def all_scores(rows: NDArray[Any]) -> Floats:
    """(n, S) log-probabilities as they are, floored as the client floors them."""
    return log_normalised(np.exp(rows.astype(np.float64)))


def top(k: int) -> View:
    """Return the view of an endpoint that returns its k best labels: (n, S) -> (n, S)
    log-probabilities.

    As ``label_mapping.log_scores`` reads such answers where the list of all labels is known: the
    missing mass goes evenly to the labels that were not returned, but none of them gets more than
    the least that was. (A client that knows no list reads over the labels that it has seen.)
    """

    def view(rows: NDArray[Any]) -> Floats:
        p = np.exp(rows.astype(np.float64))
        S = p.shape[1]
        if k >= S:
            return log_normalised(p)
        best = np.argpartition(-p, k - 1, axis=1)[:, :k]
        returned = np.take_along_axis(p, best, axis=1)
        missing = np.maximum(0.0, 1.0 - returned.sum(axis=1)) / (S - k)
        found = np.repeat(np.minimum(missing, returned.min(axis=1))[:, None], S, axis=1)
        np.put_along_axis(found, best, returned, axis=1)
        return log_normalised(found)

    return view


def one_label(rows: NDArray[Any]) -> Floats:
    """(n, S) log-probabilities -> those of an endpoint that returns its best label alone."""
    return log_normalised(np.eye(rows.shape[1])[rows.argmax(axis=1)])


def rounded(decimals: int) -> View:
    """Return the view of an endpoint that rounds probabilities."""
    return lambda rows: log_normalised(np.exp(rows.astype(np.float64)).round(decimals))


VIEWS: dict[str, View] = {
    "all scores": all_scores,
    "top five": top(5),
    "one label": one_label,
    "two decimals": rounded(2),
}


@dataclass(frozen=True)
class Reading:
    """What is made of one source of rows.

    Attributes:
        choose: (n, C) log-probabilities of the choose images.
        test: (n, C) of the test images.
    """

    choose: Floats
    test: Floats


@dataclass(frozen=True)
class Targets:
    """Class indices of the parts, and the class names."""

    fit: Integers
    choose: Integers
    test: Integers
    classes: tuple[str, ...]

    @classmethod
    def of(cls, bank: Bank, place: Location) -> Targets:
        """Read them from a bank."""
        arrays = bank.get(place, "targets")
        return cls(
            arrays["fit"], arrays["choose"], arrays["test"], tuple(arrays["classes"].tolist())
        )


def mapped(
    source: Mapping[str, NDArray[Any]], targets: Targets, view: View, *, copies: int, seed: int
) -> Reading:
    """Fit a label mapping on fit images, with and without augmented copies of them; *choose*
    decides.

    Args:
        source: (n, S) log-probabilities, part by part.
        targets: Class indices.
        view: What the endpoint shows of them.
        copies: At most so many copies.
        seed: Of the folds.
    """
    parts = {part: view(rows) for part, rows in source.items()}
    blocks = [parts["fit"], *(parts[f"copy{i}"] for i in range(copies))]
    names = tuple(f"source {s}" for s in range(blocks[0].shape[1]))
    held_out = parts["choose"], targets.choose

    def fitted(times: int) -> labels.Fitted:
        rows, right = np.concatenate(blocks[:times]), np.tile(targets.fit, times)
        return labels.fit(
            rows, right, names, targets.classes, val=held_out, copies=times, seed=seed
        )

    sizes = sorted({1, min(2, len(blocks)), len(blocks)})
    best = min(
        (fitted(times) for times in sizes), key=lambda found: min(found.log_loss.values())
    ).mapping
    return Reading(best.log_probs(parts["choose"]), best.log_probs(parts["test"]))


def mapped_on_choose(
    source: Mapping[str, NDArray[Any]], targets: Targets, view: View, *, folds: int = 5, seed: int
) -> Reading:
    """Fit a label mapping on the choose images alone: no image that a prompt was trained on.

    The rows of *choose* are out of fold, so that a fusion weight can be chosen by them; the rows of
    *test* come from a mapping of all choose images. Cross-validation inside decides its kind.
    """
    choose = view(source["choose"])
    test = view(source["test"])
    names = tuple(f"source {s}" for s in range(choose.shape[1]))

    def fitted(rows: Integers) -> labels.LabelMapping:
        found = labels.fit(choose[rows], targets.choose[rows], names, targets.classes, seed=seed)
        return found.mapping

    out_of_fold = np.empty((len(choose), len(targets.classes)))
    for train, held_out in stratified(targets.choose, folds, seed):
        out_of_fold[held_out] = fitted(train).log_probs(choose[held_out])
    return Reading(out_of_fold, fitted(np.arange(len(choose))).log_probs(test))


def fused(endpoint: Reading, local: Reading, targets: Targets) -> Reading:
    """Fuse two readings by the weight of least log-loss on *choose*."""
    alpha = best_fusion(endpoint.choose, local.choose, targets.choose)
    return Reading(
        fuse(endpoint.choose, local.choose, alpha), fuse(endpoint.test, local.test, alpha)
    )


def gated(endpoint: Reading, local: Reading, targets: Targets) -> tuple[Reading, float]:
    """Send only images of which the local head is unsure, by the threshold chosen on *choose*.

    Returns:
        The reading, and the share of test images that is sent.
    """
    threshold = best_gate(endpoint.choose, local.choose, targets.choose)
    if threshold is None:
        return endpoint, 1.0
    point = gate_curve(endpoint.test, local.test, targets.test, [threshold])[0]
    choose, test = (
        gate(a, b, threshold)
        for a, b in ((endpoint.choose, local.choose), (endpoint.test, local.test))
    )
    return Reading(choose, test), point.sent


def budget_curve(
    source: Mapping[str, NDArray[Any]], targets: Targets, sizes: Sequence[int], *, seed: int
) -> list[tuple[int, float, float]]:
    """Return, for so many fit images, what they and the choose images cost, and the accuracy on
    test.

    The images of a smaller size are among those of a larger one, drawn evenly over the classes.
    """
    order = evenly(targets.fit, seed)
    points = []
    for size in sizes:
        rows = np.sort(order[:size])
        part = dict(source) | {"fit": source["fit"][rows]}
        own = Targets(targets.fit[rows], targets.choose, targets.test, targets.classes)
        reading = mapped(part, own, all_scores, copies=0, seed=seed)
        points.append((size, size + len(targets.choose), accuracy(reading.test, targets.test)))
    return points


def evenly(right: Integers, seed: int) -> Integers:
    """Return the rows in an order in which every class gives one image in turn."""
    order = np.random.default_rng(seed).permutation(len(right))
    turn = np.empty(len(right), dtype=np.int64)
    for label in np.unique(right):
        own = order[right[order] == label]
        turn[own] = np.arange(len(own))
    return order[np.argsort(turn[order], kind="stable")]


def accuracy(log_p: Floats, right: Integers) -> float:
    """Share of (n, C) rows whose most likely class is the right one."""
    return float((log_p.argmax(axis=1) == right).mean())


def main() -> None:
    """Print what one source would have given otherwise."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("bank", type=Path)
    p.add_argument("--set", required=True)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument(
        "--source", required=True, help="HOSTED/raw, HOSTED/frame or HOSTED/SURROGATE-ARM"
    )
    p.add_argument("--local", metavar="SURROGATE", help="whose local head is fused, and gates")
    args = p.parse_args()
    bank, place = Bank(args.bank), Location(args.set, args.seed)
    source, targets = bank.get(place, args.source), Targets.of(bank, place)
    local = None
    if args.local:
        rows = bank.get(place, f"{args.local}/local")
        local = Reading(rows["choose"], rows["test"])
    print(f"{args.source}, {place.set}, seed {place.seed}: {len(targets.test)} test images")
    for name, view in VIEWS.items():
        reading = mapped(source, targets, view, copies=1, seed=place.seed)
        line = f"  {name:<14} {interval(reading.test, targets.test)}"
        if local:
            both = fused(reading, local, targets)
            gate_reading, sent = gated(both, local, targets)
            line += f"   with the local head {interval(both.test, targets.test)}"
            line += f"   gated {interval(gate_reading.test, targets.test)}, {sent:.0%} sent"
        print(line, f"  log-loss {log_loss(reading.test, targets.test):.3f}")
    n = len(targets.fit)
    for size, images, found in budget_curve(source, targets, [n // 4, n // 2, n], seed=place.seed):
        print(f"  {size} fit images, {images} answers: {found:.3f}")


def interval(log_p: Floats, right: Integers) -> str:
    """Accuracy with its 95 % interval."""
    found, low, high = accuracy_interval(log_p.argmax(axis=1) == right)
    return f"{found:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
