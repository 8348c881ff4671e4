"""The table of a benchmark as people read it: Markdown, and an image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgn_client.errors import MissingDependencyError
from pgn_client.evaluation.benchmark.summary import FINE_TUNING, Difference, Row, Summary
from pgn_client.evaluation.candidate import with_local

WHITE_BOX = "†"


def markdown(summaries: Sequence[Summary]) -> str:
    """Return all tables as Markdown, one after the other."""
    return "\n\n".join(_one(summary) for summary in summaries) + "\n"


def _one(summary: Summary) -> str:
    sets = [name for name in summary.rows if name]
    lines = [
        f"### {_shots(summary)}, seeds {', '.join(map(str, summary.seeds))}",
        "",
        "Accuracy on test images, mean over seeds, [95 % interval] over images.",
        "`⊕ local`: fused with the local head. Sent: share of the images that are sent when a "
        "row serves.",
        "`local head`, `raw ⊕ local` and `linear probe ⊕ local` use the local head of "
        f"{summary.head}.",
        f"{WHITE_BOX} white box: needs the inside of the model, which nobody else's "
        "endpoint offers.",
        "Learnable: the most over sets. ÷: how many times fewer than fine-tuning ViT-B/32 (88.2 M "
        "numbers).",
        "Agreement: the least share, over sets and seeds, of test images with the label of "
        "latent float32.",
        "Images (training / validation / test): "
        + "; ".join(f"{s} {' / '.join(str(n) for n in summary.split[s].values())}" for s in sets)
        + ".",
        "",
        _line(["", *sets, "mean", "sent", "learnable", "ViT-B/32 ÷", "training, s", "agreement"]),
        _line(["---", *["---:"] * (len(sets) + 6)]),
        *(_row(summary, row, sets) for row in summary.rows[""]),
        "",
        "Paired, in points, on the same images, [95 % interval], not corrected for the number of "
        "comparisons;",
        "bold in the mean where the interval excludes 0:",
        "",
        _line(["", *sets, "mean"]),
        _line(["---", *["---:"] * (len(sets) + 1)]),
        *_pairs(summary.paired, sets),
    ]
    return "\n".join(lines)


def _shots(summary: Summary) -> str:
    return (
        "All training images"
        if summary.shots is None
        else (f"{summary.shots} training images per class")
    )


def _row(summary: Summary, mean: Row, sets: Sequence[str]) -> str:
    rows = [next(r for r in summary.rows[s] if r.name == mean.name) for s in sets]
    return _line([
        mean.name + ("" if mean.deployable else f" {WHITE_BOX}"),
        *(f"{r.accuracy:.3f} [{r.ci95[0]:.3f}, {r.ci95[1]:.3f}]" for r in [*rows, mean]),
        f"{mean.sent:.0%}" if mean.deployable else "",
        "" if mean.learnable is None else f"{mean.learnable:,}",
        "" if not mean.learnable else f"{FINE_TUNING / mean.learnable:.0f} ×",
        "" if mean.seconds is None else f"{mean.seconds:.0f}",
        "" if mean.agreement is None else f"{mean.agreement:.3f}",
    ])  # fmt: skip


def _pairs(paired: Sequence[Difference], sets: Sequence[str]) -> list[str]:
    found = {(d.a, d.b, d.set): d for d in paired}
    pairs = list(dict.fromkeys((d.a, d.b) for d in paired))
    return [
        _line(
            [f"{a} − {b}", *(_points(found[a, b, s]) for s in sets), _emphasised(found[a, b, ""])]
        )
        for a, b in pairs
    ]


def _points(d: Difference) -> str:
    return f"{100 * d.difference:+.1f} [{100 * d.ci95[0]:+.1f}, {100 * d.ci95[1]:+.1f}]"


def _emphasised(d: Difference) -> str:
    return f"**{_points(d)}**" if d.ci95[0] > 0 or d.ci95[1] < 0 else _points(d)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(summary: Summary, path: Path) -> None:
    """Draw accuracies by set, and the curve of accuracy against images sent, as a PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the image of a benchmark", "bench") from error
    sets = [name for name in summary.rows if name]
    names = [row.name for row in summary.rows[""]]
    figure = Figure(figsize=(4 + 1.7 * len(sets), 2 + 0.28 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(len(sets), 2))
    for i, name in enumerate(sets):
        rows = summary.rows[name]
        spread = [[r.accuracy - r.ci95[0] for r in rows], [r.ci95[1] - r.accuracy for r in rows]]
        heights = [j + (i - len(sets) / 2) * 0.8 / len(sets) for j in range(len(rows))]
        left.errorbar(
            [r.accuracy for r in rows], heights, xerr=spread, fmt="o", markersize=3, label=name
        )
        right.plot(*zip(*summary.curves[name], strict=True), marker=".", label=name)
    marks = ["" if row.deployable else f" {WHITE_BOX}" for row in summary.rows[""]]
    left.set_yticks(range(len(names)), [n + m for n, m in zip(names, marks, strict=True)])
    left.invert_yaxis()
    left.set_xlabel("accuracy, 95 % interval")
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.set_xlabel("share of images sent")
    right.set_ylabel(f"accuracy, {with_local(summary.head)}, the least sure sent")
    right.grid(alpha=0.3)
    figure.suptitle(f"{_shots(summary)}, seeds {', '.join(map(str, summary.seeds))}")
    figure.savefig(path, dpi=120)
