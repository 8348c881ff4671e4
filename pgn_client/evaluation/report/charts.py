"""Charts of a report as positions of lines, dots and ticks. A template draws them as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgn_client.evaluation.metrics import Bin

WIDTH = 440
HEIGHT = 300
"""Size of a chart, in pixels. Positions in this module are pixels from its left and top edge."""

LEFT = 56
RIGHT = 16
TOP = 12
BOTTOM = 56
"""Margins between a drawing's edges and the plot inside its axes, in pixels."""

BAR = 120
"""Width of the drawing of one confidence interval as a bar, in pixels."""
BAR_MARGIN = 4
"""Space at either end of an interval's bar, in pixels: the radius of the dot at the value."""
STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Possible distances between ticks of the vertical axis, in units of accuracy."""

Ticks = Sequence[tuple[float, str]]
"""Values on an axis, each with its label, text of one or two lines."""
Points = Sequence[tuple[float, float]]
"""Pairs (x, y) in the units of the axes."""


@dataclass(frozen=True)
class Tick:
    """A tick of an axis: a grid line and its label.

    Attributes:
        at: Position on the axis, in pixels.
        lines: Lines of text from top to bottom.
    """

    at: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Dot:
    """A dot of a chart.

    Attributes:
        x: Distance from the left, in pixels.
        y: Distance from the top, in pixels.
        radius: Radius in pixels.
    """

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Series:
    """A data series of a chart: a line and dots; either may be empty.

    Attributes:
        kind: CSS class that sets the look: ``full``, ``hollow``, ``even`` or ``ring``.
        line: Corners (x, y) of the line, in pixels.
        dots: Dots.
    """

    kind: str
    line: tuple[tuple[float, float], ...] = ()
    dots: tuple[Dot, ...] = ()


@dataclass(frozen=True)
class Chart:
    """One chart as positions of ticks, lines and dots, for a template to draw.

    Attributes:
        label: Content of the chart in words, for screen readers.
        x_name: Name of the horizontal axis.
        y_name: Name of the vertical axis.
        x_ticks: Ticks from left to right.
        y_ticks: Ticks from bottom to top.
        series: Data series; later ones are drawn over earlier ones.
        width: Width of the drawing, in pixels.
        height: Height of the drawing, in pixels.
        left: Left edge of the plot, in pixels.
        right: Right edge of the plot, in pixels.
        top: Top edge of the plot, in pixels.
        bottom: Bottom edge of the plot, in pixels.
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
    """A confidence interval drawn as a bar, with a dot at the value.

    Attributes:
        low: Left end of the bar, in pixels.
        value: Position of the dot, in pixels.
        high: Right end of the bar, in pixels.
        width: Width of the drawing, in pixels.
    """

    low: float
    value: float
    high: float
    width: int = BAR


@dataclass(frozen=True)
class _Plot:
    """Conversion of values on the axes of a chart to pixels.

    Attributes:
        x: Values at the left and right end of the horizontal axis.
        y: Values at the lower and upper end of the vertical axis.
    """

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
        positions = zip(self.line(points), radii, strict=True)
        return tuple(Dot(x, y, radius) for (x, y), radius in positions)

    def x_ticks(self, ticks: Ticks) -> tuple[Tick, ...]:
        return tuple(Tick(self.across(value), _lines(text)) for value, text in ticks)

    def y_ticks(self, ticks: Ticks) -> tuple[Tick, ...]:
        return tuple(Tick(self.up(value), _lines(text)) for value, text in ticks)


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.split("\n"))


def reliability_plot(series: Mapping[str, Sequence[Bin]]) -> Chart:
    """Plot accuracy against confidence of up to two classifiers, the first with full dots and the
    second with hollow dots.

    Args:
        series: Title of a classifier → its calibration bins. A bin with more images gets a larger
            dot.
    """
    plot = _Plot((0, 1), (0, 1))
    ticks = [(k / 5, f"{k / 5:.1f}") for k in range(6)]
    drawn = [Series("even", plot.line([(0, 0), (1, 1)]))]

    kinds = [*zip(("full", "hollow"), series.values(), strict=False)]
    for kind, bins in reversed(kinds):  # Later series cover earlier ones; the first row is on top.
        points = [(b.confidence, b.accuracy) for b in bins]
        total = sum(b.count for b in bins)
        # The root makes the area grow with the count; 2.5 keeps the smallest dot visible.
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
    """Plot accuracy against how many of 1,000 images are sent to the endpoint, and their cost.

    Args:
        curve: Points as in ``Judgement.curve``, at least one; ``sent`` and ``accuracy`` are read.
        served: Share of images sent, and accuracy, of the classifier that is served; drawn as a
            ring.
        costs: Share of images sent, in [0, 1] → cost as text; empty if no price is given.
    """
    points = sorted((point["sent"], point["accuracy"]) for point in curve)
    heights = [y for _, y in [*points, served]]
    y_ticks = _ticks(min(heights), max(heights))
    plot = _Plot((0, 1), (y_ticks[0][0], y_ticks[-1][0]))

    x_ticks = []
    for x in (k / 5 for k in range(6)):
        # The keys are floats, but the caller computes them as k / 5 too, so they are equal.
        cost = f"\n{costs[x]}" if x in costs else ""
        x_ticks.append((x, f"{1000 * x:,.0f}{cost}"))

    in_words = ", ".join(f"{y:.3f} with {1000 * x:,.0f} sent" for x, y in points)
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
    """Return a confidence interval as a bar on an axis from ``start`` to 1.

    Args:
        low: Lower end of the interval.
        value: Value at which the bar has a dot.
        high: Upper end of the interval.
        start: Left end of the axis, below 1.
    """
    scale = (BAR - 2 * BAR_MARGIN) / (1 - start)
    low, value, high = (BAR_MARGIN + scale * (v - start) for v in (low, value, high))
    return Bar(low, value, high)


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Return two to seven ticks at round numbers, from at most ``low`` to at least ``high``.

    Ticks stay within [0, 1] if ``low`` and ``high`` do.
    """
    # At most four, because the ends are then rounded outward, which adds up to two more.
    step = next((s for s in STEPS if (high - low) / s <= 4), STEPS[-1])
    first = math.floor(low / step)
    last = math.ceil(high / step)

    # An axis needs two ticks. The added one goes above, unless it would exceed 1 there.
    if first == last and last * step >= 1:
        first -= 1
    elif first == last:
        last += 1

    # The fine steps need three decimals; two are enough for the others.
    return [(k * step, f"{k * step:.3f}".removesuffix("0")) for k in range(first, last + 1)]


def _in_words(bins: Sequence[Bin]) -> str:
    """Describe calibration bins in words, for screen readers."""
    return ", ".join(
        f"confidence {b.confidence:.2f}, accuracy {b.accuracy:.2f}, {b.count} images" for b in bins
    )
