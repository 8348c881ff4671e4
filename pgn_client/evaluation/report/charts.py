"""Charts of a report as numbers: places of lines, dots and ticks. A template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgn_client.evaluation.metrics import Bin

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 56
"""Margins around the plot, in pixels of the drawing, as all places here."""
BAR = 120
BAR_MARGIN = 4
"""Radius of a bar's dot, which may lie at either end."""
STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

Ticks = Sequence[tuple[float, str]]
"""Values on an axis with their text, which may have a second line."""
Points = Sequence[tuple[float, float]]
"""Pairs (x, y) in the units of the axes."""


@dataclass(frozen=True)
class Tick:
    """A grid line and its text.

    Attributes:
        at: Place on the axis, in pixels.
        lines: Lines of text from top to bottom.
    """

    at: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Dot:
    """A dot, in pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Series:
    """A line and its dots; either may be empty.

    Attributes:
        kind: CSS class that sets the look: ``full``, ``hollow``, ``even`` or ``ring``.
        line: Places (x, y) in pixels.
        dots: Dots on the line.
    """

    kind: str
    line: tuple[tuple[float, float], ...] = ()
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Chart:
    """All places of one chart.

    Attributes:
        label: What the chart shows, in words, for those who cannot see it.
        x_name, y_name: Names of the axes.
        x_ticks: Ticks from left to right.
        y_ticks: Ticks from bottom to top.
        series: Series, of which later ones cover earlier ones.
        width, height: Size of the drawing.
        left, right, top, bottom: Edges of the plot inside it.
    """

    label: str
    x_name: str
    y_name: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[Series, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


@dataclass(frozen=True)
class Bar:
    """An interval as a bar with a dot at the value, in pixels from the left of its drawing."""

    low: float
    value: float
    high: float
    width: int = BAR


@dataclass(frozen=True)
class _Plot:
    """Where values lie: ``x`` and ``y`` are the ends of the axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, x: float) -> float:
        start, end = self.x
        return LEFT + (x - start) / (end - start) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        start, end = self.y
        return HEIGHT - BOTTOM - (y - start) / (end - start) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Points) -> tuple[tuple[float, float], ...]:
        return tuple((self.across(x), self.up(y)) for x, y in points)

    def dots(self, points: Points, radii: Sequence[float]) -> tuple[Dot, ...]:
        places = zip(self.line(points), radii, strict=True)
        return tuple(Dot(x, y, radius) for (x, y), radius in places)

    def x_ticks(self, ticks: Ticks) -> tuple[Tick, ...]:
        return tuple(Tick(self.across(value), tuple(text.split("\n"))) for value, text in ticks)

    def y_ticks(self, ticks: Ticks) -> tuple[Tick, ...]:
        return tuple(Tick(self.up(value), tuple(text.split("\n"))) for value, text in ticks)


def reliability_plot(series: Mapping[str, Sequence[Bin]]) -> Chart:
    """Plot accuracy against confidence: the first row in full dots, the second in hollow ones.

    Args:
        series: Title of a row → its bins. The area of a dot grows with the images in the bin.
    """
    plot = _Plot((0, 1), (0, 1))
    ticks = [(k / 5, f"{k / 5:.1f}") for k in range(6)]
    drawn = [Series("even", plot.line([(0, 0), (1, 1)]))]
    kinds = [*zip(("full", "hollow"), series.values(), strict=False)]
    for kind, bins in reversed(kinds):  # the first row covers the second
        points = [(b.confidence, b.accuracy) for b in bins]
        total = sum(b.count for b in bins)
        radii = [2.5 + 9 * math.sqrt(b.count / total) for b in bins]
        drawn.append(Series(kind, plot.line(points), plot.dots(points, radii)))
    rows = [f"{row}: {_in_words(bins)}" for row, bins in series.items()]
    return Chart(
        label=f"Accuracy against confidence. {'; '.join(rows)}",
        x_name="confidence",
        y_name="accuracy",
        x_ticks=plot.x_ticks(ticks),
        y_ticks=plot.y_ticks(ticks),
        series=tuple(drawn),
    )


def curve_plot(
    curve: Sequence[Mapping[str, Any]],
    served: tuple[float, float],
    costs: Mapping[float, str],
) -> Chart:
    """Plot accuracy against images sent of 1,000, with what that costs.

    Args:
        curve: Points of a judgement's curve, at least one.
        served: Share sent and accuracy of the served row, drawn as a ring.
        costs: Share sent → cost of 1,000 images; empty where no price is known.
    """
    points = sorted((point["sent"], point["accuracy"]) for point in curve)
    heights = [y for _, y in [*points, served]]
    y_ticks = _ticks(min(heights), max(heights))
    plot = _Plot((0, 1), (y_ticks[0][0], y_ticks[-1][0]))
    x_ticks = []
    for x in (k / 5 for k in range(6)):
        cost = f"\n{costs[x]}" if x in costs else ""
        x_ticks.append((x, f"{1000 * x:,.0f}{cost}"))
    in_words = ", ".join(f"{1000 * x:,.0f} sent {y:.3f}" for x, y in points)
    return Chart(
        label=f"Accuracy against images sent of 1,000: {in_words}",
        x_name="images sent of 1,000" + (", and their cost" if costs else ""),
        y_name="accuracy",
        x_ticks=plot.x_ticks(x_ticks),
        y_ticks=plot.y_ticks(y_ticks),
        series=(
            Series("ring", dots=plot.dots([served], [8])),
            Series("full", plot.line(points), plot.dots(points, [3] * len(points))),
        ),
    )


def interval(low: float, value: float, high: float, start: float) -> Bar:
    """Return the bar of an interval on an axis from ``start`` to 1, with ``start`` below 1."""
    scale = (BAR - 2 * BAR_MARGIN) / (1 - start)
    low, value, high = (BAR_MARGIN + scale * (v - start) for v in (low, value, high))
    return Bar(low, value, high)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return round numbers, at most seven, around these values, within [0, 1] where they are."""
    step = next((s for s in STEPS if (high - low) / s <= 4), STEPS[-1])
    first = math.floor(low / step)
    last = math.ceil(high / step)
    if first == last and last * step >= 1:
        first -= 1
    elif first == last:
        last += 1
    return [(k * step, f"{k * step:.3f}".removesuffix("0")) for k in range(first, last + 1)]


def _in_words(bins: Sequence[Bin]) -> str:
    return ", ".join(f"at {b.confidence:.2f} {b.accuracy:.2f} of {b.count}" for b in bins)
