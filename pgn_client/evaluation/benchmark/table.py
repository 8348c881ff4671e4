"""Show the table of a benchmark as Markdown and as a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pgn_client.errors import MissingDependencyError
from pgn_client.evaluation.benchmark.summary import FINE_TUNING, Difference, Row, Summary
from pgn_client.evaluation.candidate import with_local

WHITE_BOX = "†"
"""Mark of white-box methods, which need the model's weights, so that no endpoint can serve them."""


def markdown(summaries: Sequence[Summary]) -> str:
    """Return the tables of a benchmark as Markdown, one below the other."""
    return "\n\n".join(_one(summary) for summary in summaries) + "\n"


def _one(summary: Summary) -> str:
    """Return one table of a benchmark as Markdown, with its legend and paired differences."""
    # The empty name stands for the mean over sets.
    sets = [name for name in summary.rows if name]
    split = []
    for name in sets:
        numbers = " / ".join(str(n) for n in summary.split[name].values())
        split.append(f"{name} {numbers}")

    lines = [
        f"### {_shots(summary)}, seeds {', '.join(map(str, summary.seeds))}",
        "",
        "Accuracy on the test images, mean over seeds, with [95 % interval] over images.",
        "`⊕ local`: fused with the local head. Sent: share of the images that serving sends.",
        "`local head`, `raw ⊕ local` and `linear probe ⊕ local` use the local head of "
        f"{summary.head}.",
        f"{WHITE_BOX} white box: needs the weights of the model, so no hosted endpoint can serve "
        "it.",
        "Learnable: number of trained parameters, most over sets. ViT-B/32 ÷: fine-tuning ViT-B/32 "
        "trains this many times more (88.2 million).",
        "Training: mean over sets and seeds. Agreement: share of the test images with the same "
        "label over HTTP as in float32 latent space, least over sets and seeds.",
        f"Images (training / validation / test): {'; '.join(split)}.",
        "",
        _line(["", *sets, "mean", "sent", "learnable", "ViT-B/32 ÷", "training, s", "agreement"]),
        _line(["---", *["---:"] * (len(sets) + 6)]),
        *(_row(summary, row, sets) for row in summary.rows[""]),
        "",
        "Paired differences in accuracy, in points, on the same images, with [95 % interval], not "
        "corrected for the number of comparisons.",
        "Bold: the interval of the mean excludes 0.",
        "",
        _line(["", *sets, "mean"]),
        _line(["---", *["---:"] * (len(sets) + 1)]),
        *_pairs(summary.paired, sets),
    ]
    return "\n".join(lines)


def _shots(summary: Summary) -> str:
    if summary.shots is None:
        return "All training images"
    return f"{summary.shots} training images per class"


def _row(summary: Summary, mean: Row, sets: Sequence[str]) -> str:
    """Return one way to classify as a line of the table: its accuracy on each image set, and the
    mean over sets.
    """
    rows = []
    for name in sets:
        rows.append(next(row for row in summary.rows[name] if row.name == mean.name))
    cells = [
        _marked(mean),
        *(f"{r.accuracy:.3f} [{r.ci95[0]:.3f}, {r.ci95[1]:.3f}]" for r in [*rows, mean]),
        f"{mean.sent:.0%}" if mean.deployable else "",
        "" if mean.learnable is None else f"{mean.learnable:,}",
        # Nothing to divide by where a row trains nothing.
        "" if not mean.learnable else f"{FINE_TUNING / mean.learnable:.0f} ×",
        "" if mean.seconds is None else f"{mean.seconds:.0f}",
        "" if mean.agreement is None else f"{mean.agreement:.3f}",
    ]
    return _line(cells)


def _marked(row: Row) -> str:
    """Return the title of a row, with a mark if no endpoint can serve it."""
    return row.name if row.deployable else f"{row.name} {WHITE_BOX}"


def _pairs(paired: Sequence[Difference], sets: Sequence[str]) -> list[str]:
    """Return paired differences in accuracy as lines of a Markdown table, one for each pair."""
    by_pair = {(d.a, d.b, d.set): d for d in paired}
    pairs = list(dict.fromkeys((d.a, d.b) for d in paired))
    lines = []
    for a, b in pairs:
        points = [_points(by_pair[a, b, name]) for name in sets]
        lines.append(_line([f"{a} − {b}", *points, _emphasized(by_pair[a, b, ""])]))
    return lines


def _points(d: Difference) -> str:
    return f"{100 * d.difference:+.1f} [{100 * d.ci95[0]:+.1f}, {100 * d.ci95[1]:+.1f}]"


def _emphasized(d: Difference) -> str:
    """Return a difference in accuracy as Markdown, in points; bold if its interval excludes 0."""
    return f"**{_points(d)}**" if d.ci95[0] > 0 or d.ci95[1] < 0 else _points(d)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(summary: Summary, path: Path) -> None:
    """Draw a PNG with the accuracies on each set, and the curves of accuracy against images sent.

    Args:
        summary: The table to draw.
        path: PNG file to write.

    Raises:
        MissingDependencyError: Matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("the chart of a benchmark", "bench") from error

    sets = [name for name in summary.rows if name]
    names = [_marked(row) for row in summary.rows[""]]
    # Figure instead of pyplot, which keeps figures in global state and may choose a display.
    figure = Figure(figsize=(4 + 1.7 * len(sets), 2 + 0.28 * len(names)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(len(sets), 2))

    for i, name in enumerate(sets):
        rows = summary.rows[name]
        below = [r.accuracy - r.ci95[0] for r in rows]
        above = [r.ci95[1] - r.accuracy for r in rows]
        # The sets of one row share a band of height 0.8, so that their bars do not overlap.
        heights = [j + (i - (len(sets) - 1) / 2) * 0.8 / len(sets) for j in range(len(rows))]
        left.errorbar(
            [r.accuracy for r in rows],
            heights,
            xerr=[below, above],
            fmt="o",
            markersize=3,
            label=name,
        )
        shares, accuracies = zip(*summary.curves[name], strict=True)
        right.plot(shares, accuracies, marker=".", label=name)

    left.set_yticks(range(len(names)), names)
    left.invert_yaxis()  # The first row on top, as in the Markdown table.
    left.set_xlabel("accuracy, 95 % interval")
    left.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.set_xlabel("share of images sent")
    right.set_ylabel(f"accuracy of {with_local(summary.head)}, least confident images sent")
    right.grid(alpha=0.3)
    figure.suptitle(f"{_shots(summary)}, seeds {', '.join(map(str, summary.seeds))}")
    figure.savefig(path, dpi=120)
