"""Charts of a report as inline SVG. Colours and strokes are the page's, so that they follow its light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pgn_client.evaluation.metrics import Bin
from pgn_client.evaluation.report.markup import Markup, tag

WIDTH, HEIGHT = 440, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 12, 56
BAR = 150
STEPS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)

Ticks = Sequence[tuple[float, str]]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class _Plot:
    """Where values lie: ``x`` and ``y`` are the ends of the axes."""

    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = ((v - lo) / (hi - lo) for v, (lo, hi) in ((x, self.x), (y, self.y)))
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Points, kind: str) -> Markup:
        return tag("polyline", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in _placed(self, points)), class_=kind)

    def dots(self, points: Points, kind: str, radii: Sequence[float]) -> list[Markup]:
        places = _placed(self, points)
        return [
            tag("circle", cx=f"{a:.1f}", cy=f"{b:.1f}", r=f"{r:.1f}", class_=kind)
            for (a, b), r in zip(places, radii, strict=True)
        ]

    def axes(self, x_ticks: Ticks, y_ticks: Ticks, x_name: str, y_name: str) -> list[Markup]:
        """Grid, numbers and names; a number may have a second line."""
        parts = []
        for value, text in y_ticks:
            _, at = self.place(self.x[0], value)
            parts.append(self.line([(self.x[0], value), (self.x[1], value)], "grid"))
            parts.append(_text(text, LEFT - 6, at + 4, "end"))
        for value, text in x_ticks:
            at, _ = self.place(value, self.y[0])
            parts.append(self.line([(value, self.y[0]), (value, self.y[1])], "grid"))
            parts += [_text(t, at, HEIGHT - BOTTOM + 15 * (i + 1), "middle") for i, t in enumerate(text.split("\n"))]
        middle = (TOP + HEIGHT - BOTTOM) / 2
        turned = tag("text", y_name, x=12, y=middle, text_anchor="middle", transform=f"rotate(-90 12 {middle:g})")
        return [*parts, turned, _text(x_name, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "middle")]


def reliability_plot(series: Mapping[str, Sequence[Bin]]) -> Markup:
    """Accuracy against confidence, of the first row in full dots and of the others in hollow ones."""
    plot = _Plot((0, 1), (0, 1))
    ticks = [(k / 5, f"{k / 5:.1f}") for k in range(6)]
    parts = [*plot.axes(ticks, ticks, "confidence", "accuracy"), plot.line([(0, 0), (1, 1)], "even")]
    for kind, bins in reversed([*zip(("full", "hollow"), series.values(), strict=False)]):
        points, total = [(b.confidence, b.accuracy) for b in bins], sum(b.count for b in bins)
        parts += [plot.line(points, kind), *plot.dots(points, kind, [2.5 + 9 * (b.count / total) ** 0.5 for b in bins])]
    told = "; ".join(f"{row}: " + ", ".join(_told(b) for b in bins) for row, bins in series.items())
    return _svg(f"Accuracy against confidence. {told}", parts)


def curve_plot(curve: Sequence[Mapping[str, Any]], served: tuple[float, float], costs: Mapping[float, str]) -> Markup:
    """Accuracy against images sent of 1,000, with what that costs.

    Args:
        curve: as of a judgement, at least one point.
        served: share sent and accuracy of what is served: a ring.
        costs: share sent → what 1,000 pictures cost; empty where no price is known.
    """
    points = sorted((p["sent"], p["accuracy"]) for p in curve)
    heights = [y for _, y in [*points, served]]
    y_ticks = _ticks(min(heights), max(heights))
    plot = _Plot((0, 1), (y_ticks[0][0], y_ticks[-1][0]))
    shares = [k / 5 for k in range(6)]
    x_ticks = [(x, f"{1000 * x:,.0f}" + (f"\n{costs[x]}" if x in costs else "")) for x in shares]
    name = "pictures sent of 1,000" + (", and their cost" if costs else "")
    told = ", ".join(f"{1000 * x:,.0f} sent {y:.3f}" for x, y in points)
    parts = [
        *plot.axes(x_ticks, y_ticks, name, "accuracy"),
        plot.line(points, "full"),
        *plot.dots([served], "ring", [8]),
    ]
    return _svg(
        f"Accuracy against pictures sent of 1,000: {told}", [*parts, *plot.dots(points, "full", [3] * len(points))]
    )


def interval(low: float, value: float, high: float, start: float) -> Markup:
    """A bar from low to high with a dot at the value, on an axis from ``start`` to 1; the numbers stand beside it."""
    low, value, high = (4 + (BAR - 8) * (v - start) / (1 - start) for v in (low, value, high))
    bar = tag("line", x1=f"{low:.1f}", x2=f"{high:.1f}", y1=7, y2=7, class_="bar")
    dot = tag("circle", cx=f"{value:.1f}", cy=7, r=4, class_="full")
    return tag("svg", bar, dot, viewBox=f"0 0 {BAR} 14", width=BAR, height=14, aria_hidden="true")


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round numbers, at most seven, around these values, within [0, 1] where they are."""
    step = next((s for s in STEPS if (high - low) / s <= 4), STEPS[-1])
    first, last = math.floor(low / step), math.ceil(high / step)
    first, last = (first - 1, last) if first == last and last * step >= 1 else (first, max(last, first + 1))
    return [(k * step, f"{k * step:.3f}".removesuffix("0")) for k in range(first, last + 1)]


def _told(b: Bin) -> str:
    return f"at {b.confidence:.2f} {b.accuracy:.2f} of {b.count}"


def _placed(plot: _Plot, points: Points) -> list[tuple[float, float]]:
    return [plot.place(x, y) for x, y in points]


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _svg(label: str, parts: Sequence[Markup]) -> Markup:
    return tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label, class_="chart")
