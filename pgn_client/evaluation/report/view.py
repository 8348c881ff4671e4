"""What the HTML page shows, as plain values: text, numbers, marks. The template lays them out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from pgn_client.evaluation.candidate import RAW, SERVED
from pgn_client.evaluation.metrics import BINS, ClassScore
from pgn_client.evaluation.report.charts import Bar, Chart, curve_plot, interval, reliability_plot
from pgn_client.evaluation.report.text import p_value, weakest
from pgn_client.evaluation.report.tiles import TILE, captions
from pgn_client.evaluation.results import Comparison, Report, Row
from pgn_client.evaluation.verdict import money
from pgn_client.imaging.codecs import PNG

SHOWN = 24
"""Most classes in a table; a larger matrix gives way to its most frequent confusions."""


@dataclass(frozen=True)
class AccuracyRow:
    """One row of the main table.

    Attributes:
        name: Title of the row.
        note: What is served, or that the row is advised; empty for other rows.
        chosen: Whether it is the advised or the served row.
        level: "chance level" or "below chance"; empty for rows above it.
        bar: The interval as a bar.
        cost: Cost of serving 1,000 images; empty where no price is known.
    """

    name: str
    note: str
    chosen: bool
    level: str
    accuracy: str
    ci95: str
    bar: Bar
    cost: str
    sent: str
    log_loss: str
    ece: str
    queries_test: str
    queries_fit: str


@dataclass(frozen=True)
class Line:
    """One row of a plain table: its name, and its cells under the heads."""

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """One cell of a confusion matrix: the number of images, and their share of the true class."""

    images: int
    share: float


@dataclass(frozen=True)
class MatrixLine:
    """One true class and its counts, one for each class in order."""

    name: str
    counts: tuple[Count, ...]


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of one row of the report.

    Attributes:
        row: Title of the row.
        vertical: Whether the names of its columns are too long to stand upright.
        lines: True classes.
    """

    row: str
    vertical: bool
    lines: tuple[MatrixLine, ...]


@dataclass(frozen=True)
class Confusions:
    """The most frequent confusions of one row of the report, where its matrix is too large.

    Attributes:
        row: Title of the row.
        lines: True class, with the predicted class and the number of images.
    """

    row: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Tile:
    """An example image at one step: base64 of a PNG, its size in pixels, and its text."""

    step: str
    png: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """An example image on its way to the server."""

    caption: str
    file: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class View:
    """The whole page, from top to bottom.

    Attributes:
        advice: The verdict's advice as it stands, for the title.
        heading: The advice as a sentence.
        paragraphs: Warnings and the reason as sentences.
        split: Part of the data → number of images.
        classes, chance: Number of classes, and the accuracy of guessing.
        bins: Number of bins of the calibration error.
        bar_start: Left end of the bars' axis; the right end is 1.
        priced: Whether a price is known.
        rows: The main table.
        differences: Paired comparisons: points, interval, right alone, McNemar p.
        best: Title of the row that is served.
        gate: Confidence below which images are sent; empty where all are.
        curve: Accuracy against images sent; ``None`` where the served row sends none.
        calibration: Accuracy against confidence.
        served_ece, raw_ece: Calibration errors of its two rows.
        raw: Title of the second.
        classes_shown: Images, and precision, recall and F1, as served and of raw answers.
        classes_left_out: Number of classes that are in ``report.json`` alone.
        matrices: Confusion matrices; empty where there are too many classes.
        confusions: The most frequent confusions where there are; otherwise empty.
        examples: Example images.
        retention: Step to the server, with accuracy and agreement; empty without a surrogate.
        controls: Control, with its accuracy.
        omitted: Rows that are not there, and why.
        mapping: Kind of the mapping of raw answers.
        fusion: Row, with the weight of the local head in it.
        images_sent, seconds, seed: How the report came about.
        total_cost, price: Cost of all images sent, and of one; empty where no price is known.
        versions: Library and its version.
    """

    advice: str
    heading: str
    paragraphs: tuple[str, ...]
    split: Mapping[str, int]
    classes: int
    chance: str
    bins: int
    bar_start: str
    priced: bool
    rows: tuple[AccuracyRow, ...]
    differences: tuple[Line, ...]
    best: str
    gate: str
    curve: Chart | None
    calibration: Chart
    served_ece: str
    raw_ece: str
    raw: str
    classes_shown: tuple[Line, ...]
    classes_left_out: int
    matrices: tuple[Matrix, ...]
    confusions: tuple[Confusions, ...]
    examples: tuple[Example, ...]
    retention: tuple[Line, ...]
    controls: tuple[Line, ...]
    omitted: tuple[str, ...]
    mapping: str
    fusion: tuple[str, ...]
    images_sent: str
    seconds: str
    seed: int
    total_cost: str
    price: str
    versions: tuple[str, ...]


def view_of(report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> View:
    """Prepare all values of the page.

    Args:
        report: The comparison.
        steps: Step on the way to the server → images of ``report.examples`` there.
    """
    verdict = report.verdict
    price = report.price_per_image
    classes = len(report.per_class[SERVED])
    start = min(row.ci95[0] for row in report.rows)
    worst = weakest(report.per_class[SERVED])
    many = classes > SHOWN
    return View(
        advice=verdict.advice,
        heading=_sentence(verdict.advice),
        paragraphs=tuple(_sentence(words) for words in (*verdict.warnings, verdict.reason)),
        split=report.split,
        classes=classes,
        chance=f"{1 / classes:.3f}",
        bins=BINS,
        bar_start=f"{start:.2f}",
        priced=price is not None,
        rows=tuple(_accuracy_row(report, row, start, 1 / classes) for row in report.rows),
        differences=tuple(_difference(comparison) for comparison in report.paired),
        best=report.best,
        gate="" if report.query_below is None else f"{report.query_below:.3f}",
        curve=_curve(report),
        calibration=reliability_plot(report.reliability),
        served_ece=f"{report.row(SERVED).ece:.3f}",
        raw_ece=f"{report.row(RAW).ece:.3f}",
        raw=RAW,
        classes_shown=_class_lines(report, worst[:SHOWN]),
        classes_left_out=len(worst[SHOWN:]),
        matrices=() if many else tuple(_matrix(report, row) for row in report.confusion),
        confusions=tuple(_confusions(report, row) for row in report.confusion) if many else (),
        examples=_examples(report, steps),
        retention=_retention(report),
        controls=tuple(_control(name, accuracy) for name, accuracy in report.controls.items()),
        omitted=tuple(report.omitted),
        mapping=report.mapping["kind"],
        fusion=tuple(f"{row} {weight:g}" for row, weight in report.fusion.items()),
        images_sent=f"{report.images_sent:,}",
        seconds=f"{report.seconds:g}",
        seed=report.seed,
        total_cost="" if price is None else money(price * report.images_sent),
        price="" if price is None else f"{price:g}",
        versions=tuple(f"{library} {version}" for library, version in report.versions.items()),
    )


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _accuracy_row(report: Report, row: Row, start: float, chance: float) -> AccuracyRow:
    low, high = row.ci95
    cost = row.cost_per_1000
    priced = report.price_per_image is not None  # a row that sends nothing costs 0 without a price
    return AccuracyRow(
        name=row.title,
        note=_note(report, row),
        chosen=row.title in (report.advised, SERVED),
        level=_level(row, chance),
        accuracy=f"{row.accuracy:.3f}",
        ci95=f"[{low:.3f}, {high:.3f}]",
        bar=interval(low, row.accuracy, high, start),
        cost="" if cost is None or not priced else money(cost),
        sent=f"{1000 * row.sent:,.0f}",
        log_loss=f"{row.log_loss:.3f}",
        ece=f"{row.ece:.3f}",
        queries_test=f"{row.queries_test:,}",
        queries_fit=f"{row.queries_fit:,}",
    )


def _note(report: Report, row: Row) -> str:
    if row.title == SERVED:
        return report.best if report.query_below is None else f"{report.best}, gated"
    return "advised" if row.title == report.advised else ""


def _level(row: Row, chance: float) -> str:
    """Compare the interval of the accuracy with guessing one of the classes at random."""
    low, high = row.ci95
    if high < chance:
        return "below chance"
    return "chance level" if low <= chance else ""


def _difference(comparison: Comparison) -> Line:
    low, high = comparison.ci95
    cells = (
        f"{100 * comparison.difference:+.1f}",
        f"[{100 * low:+.1f}, {100 * high:+.1f}]",
        f"{comparison.only_a} : {comparison.only_b}",
        p_value(comparison.mcnemar_p).removeprefix("p = ").removeprefix("p "),
    )
    return Line(f"{comparison.a} − {comparison.b}", cells)


def _curve(report: Report) -> Chart | None:
    if not report.curve:
        return None
    price = report.price_per_image
    costs = {} if price is None else {k / 5: money(200 * k * price) for k in range(6)}
    served = report.row(SERVED)
    return curve_plot(report.curve, (served.sent, served.accuracy), costs)


def _class_lines(report: Report, scores: Sequence[ClassScore]) -> tuple[Line, ...]:
    """Scores of these classes as served, beside those of the raw answers."""
    raw = {score.name: score for score in report.per_class[RAW]}
    lines = []
    for score in scores:
        cells = (str(score.support), *_scores(score), *_scores(raw[score.name]))
        lines.append(Line(score.name, cells))
    return tuple(lines)


def _scores(score: ClassScore) -> list[str]:
    values = (score.precision, score.recall, score.f1)
    return ["–" if value is None else f"{value:.3f}" for value in values]


def _matrix(report: Report, row: str) -> Matrix:
    names = [score.name for score in report.per_class[row]]
    lines = []
    for name in names:
        images = report.confusion[row].get(name, {})
        total = max(1, sum(images.values()))
        counts = [images.get(predicted, 0) for predicted in names]
        lines.append(MatrixLine(name, tuple(Count(count, count / total) for count in counts)))
    return Matrix(row, any(len(name) > 3 for name in names), tuple(lines))


def _confusions(report: Report, row: str) -> Confusions:
    wrong = []
    for true, images in report.confusion[row].items():
        wrong += [(n, true, predicted) for predicted, n in images.items() if predicted != true]
    wrong.sort(reverse=True)
    lines = tuple(Line(true, (predicted, str(n))) for n, true, predicted in wrong[:SHOWN])
    return Confusions(row, lines)


def _examples(report: Report, steps: Mapping[str, Sequence[Image.Image]]) -> tuple[Example, ...]:
    examples = []
    for k, caption in enumerate(captions(report)):
        tiles = [_tile(step, images[k], caption) for step, images in steps.items()]
        examples.append(Example(caption, report.examples[k]["picture"], tuple(tiles)))
    return tuple(examples)


def _tile(step: str, image: Image.Image, caption: str) -> Tile:
    """Encode an image, made smaller where it is larger than a tile."""
    small = image.convert("RGB")
    small.thumbnail((TILE, TILE))
    png = base64.b64encode(PNG.encode(small)).decode("ascii")
    return Tile(step, png, f"{caption}: {step}", small.width, small.height)


def _retention(report: Report) -> tuple[Line, ...]:
    if report.retention is None:
        return ()
    stages = [name for name in report.retention if name != "agreement"]
    agreement = report.retention["agreement"]
    lines = []
    for stage in stages:
        cells = (f"{report.retention[stage]:.3f}", f"{agreement[stage]:.3f}")
        lines.append(Line(stage, cells))
    return tuple(lines)


def _control(name: str, accuracy: float) -> Line:
    return Line(name.replace("_", " "), (f"{accuracy:.3f}",))
