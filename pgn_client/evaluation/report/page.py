"""A report as one HTML file that needs nothing else: no script, no font, nothing fetched."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence

from PIL import Image

from pgn_client.evaluation.candidate import RAW, SERVED
from pgn_client.evaluation.metrics import BINS, ClassScore
from pgn_client.evaluation.report.charts import curve_plot, interval, reliability_plot
from pgn_client.evaluation.report.markup import Markup, join, tag, void
from pgn_client.evaluation.report.pictures import TILE, captions
from pgn_client.evaluation.report.text import p_value, weakest
from pgn_client.evaluation.results import Comparison, Report, Row
from pgn_client.evaluation.verdict import money
from pgn_client.imaging.codecs import PNG

SHOWN = 24
"""Classes that are told at most; a matrix of more is told by its most frequent confusions."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --wash: #f3f5f8;
  --blue: #0b57d0; --heat: 11 87 208; --other: #b3400e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14171c; --ink: #e6e9ed; --soft: #9aa4af; --line: #323942;
  --wash: #1d2229; --blue: #7fb0ff; --heat: 96 150 255; --other: #f0a06b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 64rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0 .6rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
p, figcaption, li { max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.wide { overflow-x: auto; }
.pair { display: flex; flex-wrap: wrap; gap: 0 2rem; }
.pair > * { flex: 1 1 20rem; min-width: 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding: .2rem 0; }
th, td { padding: .22rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
thead th { vertical-align: bottom; font-weight: 600; }
tbody th { text-align: left; font-weight: 400; }
tr.chosen > * { background: var(--wash); }
tr.chosen > th { font-weight: 600; }
.matrix th, .matrix td { padding: .15rem .4rem; text-align: center; max-width: 9rem; overflow: hidden;
  text-overflow: ellipsis; }
.matrix tbody th { text-align: right; }
.matrix thead th.up { writing-mode: vertical-rl; text-align: left; max-height: 9rem; }
.matrix td { background: rgb(var(--heat) / calc(var(--share, 0) * .55)); }
figure { margin: .6rem 0 1.2rem; }
.steps { display: grid; grid-template-columns: repeat(auto-fit, minmax(7.5rem, 1fr)); gap: .5rem; max-width: 52rem; }
.steps span { display: block; color: var(--soft); font-size: .8rem; }
img { width: 100%; height: auto; display: block; image-rendering: pixelated; }
.chart { width: 100%; max-width: 32rem; height: auto; }
svg text { fill: var(--soft); font: 12px system-ui, sans-serif; }
polyline { fill: none; }
.grid { stroke: var(--line); }
.even { stroke: var(--soft); stroke-dasharray: 4 4; }
polyline.full, .bar { stroke: var(--blue); stroke-width: 2; }
circle.full { fill: var(--blue); }
polyline.hollow { stroke: var(--other); stroke-width: 1.5; }
circle.ring { fill: none; stroke: var(--ink); stroke-width: 1.5; }
circle.hollow { fill: var(--paper); stroke: var(--other); stroke-width: 2; }
@media print { :root { --paper: #fff; --ink: #000; --soft: #444; --line: #ccc; --wash: #eee; --blue: #0b57d0;
  --heat: 11 87 208; --other: #b3400e; color-scheme: light; } * { print-color-adjust: exact; }
  body { max-width: none; padding: 0; font-size: 9.5pt; } .wide { overflow: visible; }
  h2 { break-after: avoid; } figure, tr, svg { break-inside: avoid; } }
"""


def page(report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> str:
    """Return the report as an HTML document.

    Args:
        report: the comparison.
        steps: step on the way to the server → the pictures of ``report.examples`` there.
    """
    head = tag(
        "head",
        void("meta", charset="utf-8"),
        void("meta", name="viewport", content="width=device-width, initial-scale=1"),
        void("meta", name="color-scheme", content="light dark"),
        void("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", f"pgn evaluate: {report.verdict.advice}"),
        tag("style", Markup(STYLE)),
    )
    parts = [_top(report), _rows(report), _paired(report.paired), _sent(report), _calibration(report)]
    parts += [_classes(report), _pictures(report, steps), _way(report), _origin(report)]
    body = tag("body", tag("main", join(parts, "\n")))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _top(report: Report) -> Markup:
    sizes = report.split
    text = f"{sizes['test']} test pictures, {sizes['train']} for training, {sizes['val']} to choose by."
    found = report.verdict
    lines = [tag("p", _sentence(words)) for words in (*found.warnings, found.reason)]
    return tag("header", tag("p", f"pgn evaluate · {text}", class_="soft"), tag("h1", _sentence(found.advice)), *lines)


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _rows(report: Report) -> Markup:
    priced = report.price_per_image is not None
    start = min(row.ci95[0] for row in report.rows)
    heads = [
        "accuracy",
        "95 % interval",
        "",
        "log-loss",
        "ECE",
        "sent of 1,000",
        *(["cost of 1,000"] if priced else []),
    ]
    chosen = {report.advised, SERVED}
    rows = [(_named(report, row.title), _cells(row, start, priced)) for row in report.rows]
    marks = ["chosen" if row.title in chosen else "" for row in report.rows]
    note = (
        "Intervals: Wilson. Log-loss: nats, a picture counts at most 13.8. ECE: expected calibration error in "
        f"{BINS} bins of equal width (Guo et al. 2017). ⊕: fused with the local head. Sent and cost: of serving; "
        "queries: images that this row took here, for its test pictures, and once for fitting and choosing it."
    )
    table = _table("Every way to answer, on the same test pictures", [*heads, "queries", "to fit"], rows, marks)
    return _section("Accuracy and cost", table, tag("p", note, class_="soft"))


def _named(report: Report, name: str) -> str:
    if name == SERVED:
        gate = "" if report.query_below is None else ", gated"
        return f"served ({report.best}{gate})"
    return f"{name} (advised)" if name == report.advised else name


def _cells(row: Row, start: float, priced: bool) -> list[str]:
    low, high = row.ci95
    cost = [money(row.cost_per_1000)] if row.cost_per_1000 is not None and priced else []
    bar = interval(low, row.accuracy, high, start)
    measured = [
        f"{row.accuracy:.3f}",
        f"[{low:.3f}, {high:.3f}]",
        bar,
        f"{row.log_loss:.3f}",
        f"{row.ece:.3f}",
    ]
    counts = [f"{row.queries_test:,}", f"{row.queries_fit:,}"]
    return [*measured, f"{1000 * row.sent:,.0f}", *cost, *counts]


def _paired(paired: Sequence[Comparison]) -> Markup:
    rows = [
        (
            f"{c.a} − {c.b}",
            [
                f"{100 * c.difference:+.1f}",
                f"[{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}]",
                f"{c.only_a} : {c.only_b}",
                p_value(c.mcnemar_p).removeprefix("p = ").removeprefix("p "),
            ],
        )
        for c in paired
    ]
    heads = ["points", "95 % interval", "right alone", "McNemar p"]
    note = "Intervals: paired bootstrap. McNemar: exact, two-sided. Neither is corrected for the number of comparisons."
    table = _table("Differences in accuracy, in points, on the same test pictures", heads, rows)
    return _section("What differs", table, tag("p", note, class_="soft"))


def _sent(report: Report) -> Markup:
    """Accuracy against images sent; nothing where nothing is."""
    if not report.curve:
        return Markup("")
    price = report.price_per_image
    costs = {} if price is None else {k / 5: money(200 * k * price) for k in range(6)}
    words = f"{report.best}, if only the pictures are sent of which the local head is least sure. "
    served = report.row(SERVED)
    if report.query_below is None:
        words += "All are sent as served (the ring): on validation any gate cost log-loss."
    else:
        words += f"Ring: as served, those below {report.query_below:.3f} are, which validation chose."
    chart = curve_plot(report.curve, (served.sent, served.accuracy), costs)
    return _section("Accuracy against pictures sent", _figure(chart, words))


def _calibration(report: Report) -> Markup:
    words = (
        f"Full dots: served (ECE {report.row(SERVED).ece:.3f}); hollow: {RAW} (ECE {report.row(RAW).ece:.3f}). "
        "Larger dots: more pictures; on the dashed line answers are right as often as they are sure."
    )
    return _section("Are the answers as sure as they should be?", _figure(reliability_plot(report.reliability), words))


def _classes(report: Report) -> Markup:
    matrices = [_matrix(row, report.confusion[row], report.per_class[row]) for row in report.confusion]
    return _section("Class by class", _class_table(report), tag("div", *matrices, class_="pair"))


def _class_table(report: Report) -> Markup:
    """Scores of the classes that fare worst as served, beside those of the raw answers."""
    raw = {score.name: score for score in report.per_class[RAW]}
    worst = weakest(report.per_class[SERVED])
    rows = [(s.name, [str(s.support), *_scores(s), *_scores(raw[s.name])]) for s in worst[:SHOWN]]
    heads = ["pictures", *(f"{what}, {row}" for row in ("served", "raw") for what in ("precision", "recall", "F1"))]
    more = f"; the other {len(worst) - SHOWN} are in report.json" if len(worst) > SHOWN else ""
    return _table(f"The weakest as served first; – where nothing is so answered{more}", heads, rows)


def _scores(score: ClassScore) -> list[str]:
    return ["–" if value is None else f"{value:.3f}" for value in (score.precision, score.recall, score.f1)]


def _matrix(row: str, counts: Mapping[str, Mapping[str, int]], scores: Sequence[ClassScore]) -> Markup:
    """Which class is answered for which: all of few classes, the most frequent confusions of many."""
    names = [score.name for score in scores]
    if len(names) > SHOWN:
        wrong = sorted(((n, t, a) for t, row in counts.items() for a, n in row.items() if a != t), reverse=True)
        return _table(
            f"{row}: most frequent confusions",
            ["answered", "pictures"],
            [(t, [a, str(n)]) for n, t, a in wrong[:SHOWN]],
        )
    turn = "up" if any(len(name) > 3 for name in names) else "level"
    heads = tag("tr", tag("td"), *(tag("th", name, scope="col", class_=turn, title=name) for name in names))
    lines = [
        tag("tr", tag("th", name, scope="row", title=name), *(_count(counts.get(name, {}), a) for a in names))
        for name in names
    ]
    caption = tag("caption", f"{row}: true class in rows, answered class in columns")
    return _scrolling(tag("table", caption, tag("thead", heads), tag("tbody", *lines), class_="matrix"), row)


def _count(row: Mapping[str, int], answered: str) -> Markup:
    n = row.get(answered, 0)
    return tag("td", str(n), style=f"--share:{n / sum(row.values()):.2f}") if n else tag("td", "·")


def _pictures(report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> Markup:
    figures = []
    for k, (example, caption) in enumerate(zip(report.examples, captions(report), strict=True)):
        shown = [
            tag("div", _image(images[k], f"{caption}: {step}"), tag("span", step)) for step, images in steps.items()
        ]
        name = tag("figcaption", f"{caption} · {example['picture']}")
        figures.append(tag("figure", tag("div", *shown, class_="steps"), name))
    return _section("What is sent, and what the server sees of it", *figures)


def _image(picture: Image.Image, alt: str) -> Markup:
    """A picture inside the page, made smaller where it is larger than a tile."""
    small = picture.convert("RGB")
    small.thumbnail((TILE, TILE))
    data = base64.b64encode(PNG.encode(small)).decode("ascii")
    return void("img", src=f"data:image/png;base64,{data}", alt=alt, width=small.width, height=small.height)


def _way(report: Report) -> Markup:
    """Retention and controls, side by side."""
    controls = [(name.replace("_", " "), [f"{value:.3f}"]) for name, value in report.controls.items()]
    parts = [_table("Controls: is the prompt a smuggled label?", ["accuracy"], controls)]
    if report.retention is not None:
        stages, same = report.retention, report.retention["agreement"]
        rows = [(stage, [f"{stages[stage]:.3f}", f"{same[stage]:.3f}"]) for stage in stages if stage != "agreement"]
        parts.insert(0, _table("What is left of the prompt on its way", ["accuracy", "same label"], rows))
    return _section("On the way", tag("div", *parts, class_="pair"))


def _origin(report: Report) -> Markup:
    weights = ", ".join(f"{row} {weight:g}" for row, weight in report.fusion.items())
    facts = [
        *(f"Left out: {reason}" for reason in report.omitted),
        f"Mapping of the raw answers: {report.mapping['kind']}, chosen on validation.",
        f"Weight of the local head: {weights}." if weights else "",
        f"Images sent in all, controls included: {report.images_sent:,}, in {report.seconds:g} s.",
        f"Seed {report.seed}; " + ", ".join(f"{name} {version}" for name, version in report.versions.items()) + ".",
    ]
    return _section("How this came about", tag("ul", *(tag("li", fact) for fact in facts if fact)))


def _section(title: str, *parts: Markup) -> Markup:
    return tag("section", tag("h2", title), *parts)


def _figure(chart: Markup, words: str) -> Markup:
    return tag("figure", chart, tag("figcaption", words))


def _table(
    caption: str, heads: Sequence[str], rows: Iterable[tuple[str, Sequence[str]]], marks: Sequence[str] | None = None
) -> Markup:
    """A table whose rows begin with their names; ``marks`` are their classes."""
    rows = list(rows)
    top = tag("tr", tag("td"), *(tag("th", head, scope="col") if head else tag("td") for head in heads))
    lines = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(tag("td", cell) for cell in cells),
            **({"class_": mark} if mark else {}),
        )
        for (name, cells), mark in zip(rows, marks or [""] * len(rows), strict=True)
    ]
    inside = tag("caption", caption), tag("thead", top), tag("tbody", *lines)
    return _scrolling(tag("table", *inside), caption)


def _scrolling(table: Markup, name: str) -> Markup:
    """A table that may be wider than a phone; the keyboard can scroll it."""
    return tag("div", table, class_="wide", role="region", aria_label=name, tabindex=0)
