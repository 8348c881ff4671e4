"""Results of an evaluation as values: the accuracy of each way to classify, paired differences, a
recommendation, and the settings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pgn_client.evaluation.metrics import Bin, ClassScore

Kind = Literal["local", "mapping", "prompt", "both"]
"""Kind of recommendation: ``local`` is a model on this machine; ``mapping`` is a label mapping with
no prompt; ``prompt`` is a prompt; ``both`` is a mapping or a prompt, fused with the local head.
"""


@dataclass(frozen=True)
class Row:
    """One way to classify, measured on the test images: a row of the report's table.

    Attributes:
        key: Key for programs, such as ``raw``, ``local``, ``probe``, ``pgn+local`` or ``served``.
        title: Title for readers.
        fused: Whether the local head, a small classifier on this machine, contributes: by fusion,
            or by a gate, which does not send images on which the local head is confident.
        accuracy: Share of right answers, in [0, 1].
        ci95: 95 % Wilson interval of the accuracy, (low, high).
        log_loss: Mean log-loss in nats. The loss of one image is limited to 13.8 (that is
            -log(``probability.FLOOR``)), so that a single confident mistake does not decide.
        ece: Expected calibration error, in [0, 1].
        queries: Number of images sent: ``queries_fit`` and ``queries_test`` together.
        queries_fit: Number of images sent once, to fit and choose the row.
        queries_test: Number of images sent to measure the row on the test images.
        sent: Share of the images that serving sends, in [0, 1].
        cost_per_1000: Cost of serving 1,000 images, in the currency of the price; ``None`` where
            images are sent and no price is given.
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
        """Return plain values for JSON, with the title also as ``name``, as in version 0.1."""
        return {"name": self.title} | asdict(self)


@dataclass(frozen=True)
class Verdict:
    """Recommendation of one way to classify, with the reason.

    Attributes:
        kind: Kind of the recommendation: ``local``, ``mapping``, ``prompt`` or ``both``.
        recommended: Key of the recommended row, such as ``raw`` or ``pgn+local``.
        advice: Recommendation as an imperative: "use the prompt".
        reason: Accuracy and cost of the recommended row, in sentences.
        warnings: Reservations, to be shown before the advice.
    """

    kind: Kind
    recommended: str
    advice: str
    reason: str
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return warnings, advice and reason as one line of text."""
        return "; ".join([*self.warnings, f"{self.advice}: {self.reason}"])


@dataclass(frozen=True)
class Comparison:
    """A paired comparison of two rows on the same test images.

    Attributes:
        a: Title of the first row.
        b: Title of the second row.
        difference: Accuracy of ``a`` minus accuracy of ``b``, in [-1, 1].
        ci95: 95 % interval of the difference by the paired bootstrap, (low, high).
        only_a: Number of images that only ``a`` gets right.
        only_b: Number of images that only ``b`` gets right.
        mcnemar_p: Two-sided p-value of the exact McNemar test on ``only_a`` and ``only_b``, not
            corrected for the number of comparisons.
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
    """All ways to classify as measured on the test images, their comparisons, and a recommendation.

    Attributes:
        rows: All rows, one for each way to classify.
        paired: Differences in accuracy between two rows on the same images.
        verdict: The recommendation.
        best: Title of the row of least log-loss on validation. The row ``served`` is this row
            behind a gate, which does not send images on which the local head is confident.
        advised: Title of the cheapest row within one standard error, or one image, of ``best`` on
            validation; often ``best`` itself.
        same_data: Whether the images are those that the checkpoint was trained with.
        fusion: Title of a fused row → weight of the local head in it, in [0, 1].
        query_below: Threshold of the gate, in [0, 1]: an image is sent if the local head's
            confidence is below it; ``None`` if there is no gate.
        price_per_image: Price of an image at the endpoint; ``None`` if it is not given.
        curve: ``best`` behind gates with other thresholds; each point has the threshold
            ``query_below``, the share ``sent``, ``accuracy`` and ``cost_per_1000``.
        per_class: Title → scores of each class; for the rows ``served`` and ``raw + mapping``.
        confusion: Title → true class → predicted class → number of images, without zeros; for
            the rows ``served`` and ``raw + mapping``.
        reliability: Title → bins of accuracy against confidence; for the rows ``served`` and
            ``raw + mapping``.
        examples: A few test images, each with its name (key ``picture``), true ``label``, and the
            label that the row ``served`` predicts (key ``served``).
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
        """Return the row with this title, such as ``PGN`` or ``served``."""
        return next(row for row in self.rows if row.title == title)


@dataclass
class Report(Judgement):
    """The content of ``report.json``: measured rows and recommendation, and the settings of the
    evaluation.

    Attributes:
        retention: Accuracy at each step from float32 tokens to the image that reaches the server;
            ``agreement`` has the share of images that keep the label of the first step. ``None``
            without a surrogate.
        controls: Accuracy of the prompt, and of variants that should score lower.
        omitted: Reasons why rows are missing.
        seconds: Duration of the evaluation in seconds.
        seed: Seed of the checkpoint's training, used for all random choices of the evaluation too.
        split: Number of images for training, validation and test.
        mapping: Label mapping fitted to raw images: ``kind``; ``val_log_loss``, the log-loss of
            each kind on validation; and ``l2``, the penalty of the kind ``linear``.
        versions: Versions of the libraries that trained the checkpoint.
        images_sent: Number of images sent, controls included; answers from a cache do not count.
        surrogate_check: Whether the endpoint hosts the surrogate's model (see
            ``surrogate_check.SurrogateCheck``), with the key ``text`` for readers; ``None`` without
            a surrogate.
        data: What the data set holds, as ``imaging.findings.Findings.to_json`` returns it; empty if
            the data was not checked.
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
    surrogate_check: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)

    def remarks(self, *, serious: bool) -> list[str]:
        """Return the remarks on the data set as sentences, the serious ones or the others."""
        remarks = self.data.get("remarks", ())
        return [remark["text"] for remark in remarks if remark["serious"] is serious]

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values for JSON: ``verdict`` is the recommendation as text,
        and ``advice`` its parts.
        """
        fields = asdict(self)
        rows = [row.to_json() for row in self.rows]
        return fields | {"rows": rows, "verdict": str(self.verdict), "advice": fields["verdict"]}
