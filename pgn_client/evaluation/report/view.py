"""Content of a report's HTML page as plain values, which the templates lay out."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

from pgn_client.evaluation.candidate import RAW, SERVED
from pgn_client.evaluation.metrics import BINS, ClassScore
from pgn_client.evaluation.report.charts import Bar, Chart, curve_plot, interval, reliability_plot
from pgn_client.evaluation.report.text import control_title, p_value, weakest
from pgn_client.evaluation.report.tiles import TILE, captions
from pgn_client.evaluation.results import Comparison, Report, Row
from pgn_client.evaluation.verdict import money
from pgn_client.imaging.codecs import PNG

SHOWN = 24
"""Largest number of classes in a table or confusion matrix of the page. With more classes, the page
lists the most frequent confusions instead of the matrix.
"""


@dataclass(frozen=True)
class AccuracyRow:
    """One way to classify, as a row of the page's main table.

    Attributes:
        name: Title of the row.
        note: For the row ``served``, the title of the way to classify that is served; for the
            recommended row, "advised"; empty for other rows.
        chosen: Whether the row is the recommended row or the row ``served``.
        level: "chance level" or "below chance"; empty for rows above chance level.
        accuracy: Accuracy as text.
        ci95: 95 % Wilson interval of the accuracy as text.
        bar: The interval as a bar.
        cost: Cost of serving 1,000 images; empty where no price is given.
        sent: Number of images that serving sends of 1,000.
        log_loss: Mean log-loss in nats as text.
        ece: Expected calibration error as text.
        queries_test: Number of images sent to measure the row on the test images.
        queries_fit: Number of images sent once, to fit and choose the row.
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
    """One row of a plain table of the page.

    Attributes:
        name: First cell, which names the row.
        cells: Other cells, in the order of the column heads.
    """

    name: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class Count:
    """One cell of a confusion matrix.

    Attributes:
        images: Number of images.
        share: Share of these images among all images of the true class, in [0, 1].
    """

    images: int
    share: float


@dataclass(frozen=True)
class MatrixLine:
    """One row of a confusion matrix.

    Attributes:
        name: True class.
        counts: Number of images for each predicted class, in the order of the classes.
    """

    name: str
    counts: tuple[Count, ...]


@dataclass(frozen=True)
class Matrix:
    """The confusion matrix of one classifier.

    Attributes:
        row: Title of the classifier.
        vertical: Whether the column heads are too long to be written horizontally.
        lines: Rows, one for each true class.
    """

    row: str
    vertical: bool
    lines: tuple[MatrixLine, ...]


@dataclass(frozen=True)
class Confusions:
    """The most frequent confusions of one classifier, shown if its confusion matrix is too large.

    Attributes:
        row: Title of the classifier.
        lines: One line for each confusion: true class; predicted class and number of images.
    """

    row: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Tile:
    """An example image at one step on its way to the model, such as sent or after JPEG.

    Attributes:
        step: Title of the step.
        png: The image as PNG in base64.
        alt: Alternative text of the image, for screen readers.
        width: Width in pixels.
        height: Height in pixels.
    """

    step: str
    png: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Example:
    """An example image at all steps on its way to the model.

    Attributes:
        caption: True label, and label that the served classifier predicts.
        file: Name of the image.
        tiles: The image at each step.
    """

    caption: str
    file: str
    tiles: tuple[Tile, ...]


@dataclass(frozen=True)
class View:
    """All values that a report's HTML page shows, from top to bottom.

    Attributes:
        advice: Advice of the verdict, for the title of the page.
        heading: Advice as a heading.
        paragraphs: Warnings, then the reason, one paragraph each.
        concerns: Remarks on the data that someone should look at.
        notes: Other remarks on the data, and how many files were used.
        split: Part of the data → number of images.
        classes: Number of classes.
        chance: Accuracy of guessing one of the classes.
        bins: Number of bins of the calibration error.
        bar_start: Left end of the axis of the bars; the right end is 1.
        priced: Whether a price is given.
        rows: Rows of the main table.
        differences: Paired comparisons of two rows: difference in points, interval, numbers of
            images that only one row gets right, McNemar p-value.
        best: Title of the row that is served.
        gate: Confidence of the local head below which images are sent; empty without such a gate.
        curve: Accuracy against images sent; ``None`` if the report has no such curve.
        calibration: Accuracy against confidence, for the rows ``served`` and ``raw``.
        served_ece: Calibration error of the row ``served``.
        raw_ece: Calibration error of the row ``raw``.
        raw: Title of the row of raw images.
        classes_shown: Class; number of images, and precision, recall and F1 in the rows ``served``
            and ``raw``.
        classes_left_out: Number of classes that only ``report.json`` lists.
        matrices: Confusion matrices of ``served`` and ``raw``; empty if there are too many classes.
        confusions: Most frequent confusions of ``served`` and ``raw``; empty if matrices are shown.
        examples: Example images.
        retention: Step from tokens to the sent image; accuracy, and share of images that keep the
            label of the first step. Empty without a surrogate.
        controls: Variant of the prompt that should score lower; its accuracy.
        omitted: Reasons why rows are missing.
        mapping: Kind of the label mapping of raw images.
        fusion: Title of each fused row, with the weight of the local head in it.
        images_sent: Number of images sent, controls included.
        seconds: Duration of the evaluation in seconds.
        seed: Seed for all random choices.
        total_cost: Cost of all images sent; empty where no price is given.
        price: Price of an image; empty where it is not given.
        versions: Libraries with their versions.
    """

    advice: str
    heading: str
    paragraphs: tuple[str, ...]
    concerns: tuple[str, ...]
    notes: tuple[str, ...]
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
    """Prepare all values of a report's HTML page.

    Args:
        report: The report to show.
        steps: Title of a step on an image's way to the model → images of ``report.examples`` at
            that step.
    """
    verdict = report.verdict
    price = report.price_per_image
    classes = len(report.per_class[SERVED])
    start = min(row.ci95[0] for row in report.rows)
    by_weakness = weakest(report.per_class[SERVED])
    many = classes > SHOWN
    return View(
        advice=verdict.advice,
        heading=_sentence(verdict.advice),
        paragraphs=tuple(_sentence(words) for words in (*verdict.warnings, verdict.reason)),
        concerns=tuple(_sentence(text) for text in report.remarks(serious=True)),
        notes=(*report.remarks(serious=False), *_used(report)),
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
        classes_shown=_class_lines(report, by_weakness[:SHOWN]),
        classes_left_out=len(by_weakness[SHOWN:]),
        matrices=() if many else tuple(_matrix(report, row) for row in report.confusion),
        confusions=tuple(_confusions(report, row) for row in report.confusion) if many else (),
        examples=_examples(report, steps),
        retention=_retention(report),
        controls=tuple(_control(key, accuracy) for key, accuracy in report.controls.items()),
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


def _used(report: Report) -> tuple[str, ...]:
    return (report.data["summary"],) if report.data else ()


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _accuracy_row(report: Report, row: Row, start: float, chance: float) -> AccuracyRow:
    low, high = row.ci95
    cost = row.cost_per_1000
    # A row that sends nothing has cost 0 even without a price, so the cost alone does not decide.
    priced = report.price_per_image is not None
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
    """Return a remark on a row: what the row ``served`` serves, or "advised" for the recommended
    row; empty for other rows.
    """
    if row.title == SERVED:
        return report.best if report.query_below is None else f"{report.best}, gated"
    return "advised" if row.title == report.advised else ""


def _level(row: Row, chance: float) -> str:
    """Return "below chance" or "chance level" if the accuracy's interval is below the accuracy of
    random guessing or includes it; else an empty text.
    """
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
        # The column's head says p, so a cell reads "0.012" or "< 0.001".
        p_value(comparison.mcnemar_p).removeprefix("p = ").removeprefix("p "),
    )
    return Line(f"{comparison.a} − {comparison.b}", cells)


def _curve(report: Report) -> Chart | None:
    if not report.curve:
        return None
    price = report.price_per_image
    costs: dict[float, str] = {}
    if price is not None:
        # The axis has ticks at 0, 200, ..., 1,000 images.
        costs = {k / 5: money(200 * k * price) for k in range(6)}
    served = report.row(SERVED)
    return curve_plot(report.curve, (served.sent, served.accuracy), costs)


def _class_lines(report: Report, scores: Sequence[ClassScore]) -> tuple[Line, ...]:
    """Return a line for each class: number of images, then precision, recall and F1 of the served
    classifier and of raw images.
    """
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
        # A class without test images has a row of zeros, which must not divide by zero.
        total = max(1, sum(images.values()))
        counts = [images.get(predicted, 0) for predicted in names]
        lines.append(MatrixLine(name, tuple(Count(count, count / total) for count in counts)))
    # Names of up to three characters make a column no wider than large counts do.
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
    """Encode an example image as PNG for the page, reduced to at most ``TILE`` pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((TILE, TILE))
    png = base64.b64encode(PNG.encode(small)).decode("ascii")
    return Tile(step, png, f"{caption}: {step}", small.width, small.height)


def _retention(report: Report) -> tuple[Line, ...]:
    if report.retention is None:
        return ()
    agreement = report.retention["agreement"]
    lines = []
    for stage, accuracy in report.retention.items():
        if stage != "agreement":
            lines.append(Line(stage, (f"{accuracy:.3f}", f"{agreement[stage]:.3f}")))
    return tuple(lines)


def _control(key: str, accuracy: float) -> Line:
    return Line(control_title(key), (f"{accuracy:.3f}",))
