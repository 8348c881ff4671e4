"""What an evaluation found, as values: rows, paired differences, the verdict, and how they came
about.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pgn_client.evaluation.metrics import Bin, ClassScore

Kind = Literal["local", "mapping", "prompt", "both"]
"""What a verdict recommends: the local model alone, raw answers with a mapping, a prompt, or two of
them together.
"""


@dataclass(frozen=True)
class Row:
    """One way to answer, measured on the test images.

    Attributes:
        key: What programs know it by: ``raw``, ``local``, ``probe``, ``pgn``, ``pgn+local``,
            ``served``, ...
        title: What people read.
        fused: Whether the local head has a say in it, also behind a gate.
        accuracy, ci95: Share of right answers, with its 95 % Wilson interval.
        log_loss: In nats; an image counts at most 13.8.
        ece: Expected calibration error of its probabilities.
        queries: Images sent in all: ``queries_fit`` for fitting and choosing, and ``queries_test``.
        sent: Share of the images that are sent when it serves.
        cost_per_1000: Cost of serving 1,000 images, in the currency of the price; ``None`` without
            a price.
    """

    key: str
    title: str
    fused: bool
    accuracy: float
    ci95: tuple[float, float]
    log_loss: float
    ece: float
    queries: int
    queries_fit: int
    queries_test: int
    sent: float
    cost_per_1000: float | None

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON; ``name`` is the title, as reports of version 0.1 have
        it.
        """
        return {"name": self.title} | asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        kind: What is recommended.
        recommended: Key of its row.
        advice: The recommendation as an imperative: "use the prompt".
        reason: What the test images say of it, and what it costs.
        warnings: What a reader must know before relying on it.
    """

    kind: Kind
    recommended: str
    advice: str
    reason: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as one sentence."""
        return "; ".join([*self.warnings, f"{self.advice}: {self.reason}"])


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same test images.

    Attributes:
        a, b: the rows.
        difference, ci95: of their accuracies, a - b, as shares, with the 95 % interval of the
            paired bootstrap.
        only_a, only_b: how many images only one of them gets right.
        mcnemar_p: P-value of the exact McNemar test on these two counts, two-sided, not corrected
            for other comparisons.
    """

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]
    only_a: int
    only_b: int
    mcnemar_p: float


@dataclass
class Judgement:
    """What the answers say.

    Attributes:
        rows: Every way to answer.
        paired: differences between rows on the same images.
        verdict: what to do.
        best: the row of least log-loss on validation, which the row ``served`` is, behind the gate
            ``query_below``.
        advised: the cheapest row that validation could not tell from it; often the same.
        same_data: whether the images are the checkpoint's own.
        fusion: row → weight of the local head in it.
        price_per_image: as it was given.
        curve: of ``best``: ``accuracy`` if images below ``query_below`` are ``sent``, with
            ``cost_per_1000``.
        per_class, confusion, reliability: of the rows ``served`` and ``raw + mapping``: scores of
            each class; true class → answered class → images, without zeros; accuracy against
            confidence.
        examples: a few test images, with their ``label`` and what is ``served``.
    """

    rows: list[Row]
    paired: list[Comparison]
    verdict: Verdict
    best: str
    advised: str
    same_data: bool
    fusion: dict[str, float]
    query_below: float | None
    price_per_image: float | None
    curve: list[dict[str, float | None]]
    per_class: dict[str, list[ClassScore]]
    confusion: dict[str, dict[str, dict[str, int]]]
    reliability: dict[str, list[Bin]]
    examples: list[dict[str, str]]

    def row(self, title: str) -> Row:
        """Return one row by its title."""
        return next(row for row in self.rows if row.title == title)


@dataclass
class Report(Judgement):
    """What ``report.json`` holds: the judgement, and how it came about.

    Attributes:
        retention: accuracy at each step on the way, and ``agreement`` with the first; ``None``
            without a surrogate.
        controls: accuracy with prompts that should not work.
        omitted: which rows are not there, and why.
        seconds: it took.
        seed: Seed of the checkpoint's training and for all random choices here.
        split: how many images were used for what.
        mapping: Mapping of the raw answers: its kind, and the log-loss of all kinds on validation.
        versions: Versions of the libraries that trained the checkpoint.
        images_sent: in all, controls included; answers from a cache are not sent.
    """

    retention: dict[str, Any] | None
    controls: dict[str, float]
    omitted: list[str]
    seconds: float
    seed: int
    split: dict[str, int]
    mapping: dict[str, Any]
    versions: dict[str, str]
    images_sent: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON: the verdict as a sentence, and its parts under
        ``advice``.
        """
        found = asdict(self)
        rows = [row.to_json() for row in self.rows]
        return found | {"rows": rows, "verdict": str(self.verdict), "advice": found["verdict"]}
