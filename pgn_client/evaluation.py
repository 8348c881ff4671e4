"""The honest comparison: a prompt and its rivals on the same test images, with intervals and a verdict.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label mapping, the generator's
own local head, a linear probe on the surrogate, raw answers fused with the local head, the input-independent prompt.
Everything is chosen on training and validation images; the test images are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgn_client import labels
from pgn_client.adapter import PromptAdapter
from pgn_client.backbone import Backbone
from pgn_client.client import AdaptedClient
from pgn_client.codecs import ImageSource, open_image
from pgn_client.compositor import GREY, compose, fit_picture, seen_by_server
from pgn_client.geometry import Canvas
from pgn_client.methods import linear_probe
from pgn_client.retention import retain
from pgn_client.statistics import accuracy_interval, best_fusion, fuse, paired_bootstrap
from pgn_client.training import Split, Task, augment
from pgn_client.types import Answer

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]
Note = Callable[[str], None]

RAW, LOCAL, PROBE, RAW_LOCAL = "raw + mapping", "local head", "linear probe", "raw ⊕ local"
IIP, PGN, PGN_LOCAL, SERVED = "IIP", "PGN", "PGN ⊕ local", "served"

ADVICE = {
    LOCAL: "use the local model: no query is needed",
    PROBE: "use the local model (a linear probe on the surrogate's features): no query is needed",
    RAW: "use the mapping only: send pictures as they are",
    RAW_LOCAL: "use both without a prompt: send pictures as they are, and fuse the answers with the local head",
    IIP: "use the input-independent prompt: one prompt for all pictures",
    PGN: "use the prompt",
    PGN_LOCAL: "use both: the prompt, fused with the local head",
}
"""What to do where a row wins, from the cheapest to the dearest: local costs nothing, a prompt costs training too."""


CONTAMINATED = "not the checkpoint's own data, so these test pictures may have been trained on; "


@dataclass(frozen=True)
class Candidate:
    """One way to answer.

    Attributes:
        name: of its row.
        val, test: (n, C) log-probabilities.
        queries: images sent for its test row, and for fitting and choosing it where the endpoint was asked for that.
    """

    name: str
    val: Floats
    test: Floats
    queries: int


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same test images: difference of accuracy with its 95 % interval, as shares."""

    a: str
    b: str
    difference: float
    ci95: tuple[float, float]


@dataclass
class Report:
    """What ``report.json`` holds; see ``to_json``."""

    rows: list[dict[str, Any]]
    paired: list[Comparison]
    retention: dict[str, Any] | None
    controls: dict[str, Any]
    verdict: str
    omitted: list[str]
    seconds: float
    seed: int
    split: dict[str, int]
    same_data: bool
    mapping: dict[str, Any]
    fusion: dict[str, float]
    versions: dict[str, str]
    images_sent: int

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    def row(self, name: str) -> dict[str, Any]:
        """Return one row by name."""
        return next(row for row in self.rows if row["name"] == name)


@dataclass(frozen=True)
class Pictures:
    """What every candidate is measured on: files, their targets, and the pictures as they stand on the canvas."""

    val: Split
    test: Split
    fitted_val: Pixels
    fitted_test: Pixels

    @classmethod
    def load(cls, task: Task, canvas: Canvas) -> Pictures:
        """Decode both splits, one picture at a time."""
        val, test = (
            np.stack([fit_picture(open_image(path), canvas) for path in split.paths]) for split in (task.val, task.test)
        )
        return cls(task.val, task.test, val, test)


Connect = Callable[[PromptAdapter | None], AdaptedClient]


def evaluate(
    task: Task,
    connect: Connect,
    pgn: PromptAdapter,
    *,
    same_data: bool = True,
    rival: PromptAdapter | None = None,
    surrogate: Backbone | None = None,
    note: Note = lambda _: None,
) -> Report:
    """Compare a prompt with its rivals over HTTP.

    Args:
        task: the splits that the prompt was trained with (see ``training.alike.task_of``).
        connect: opens a client of the endpoint for an adapter, or for pictures as they are (``None``).
        pgn: the prompt to judge.
        same_data: whether these are the training pictures of the checkpoint; if not, the report says so.
        rival: an input-independent prompt trained alike; without it the row ``IIP`` is left out, and said so.
        surrogate: the backbone the prompt was trained through; without it linear probe and retention are left out.
        note: told what is going on.

    Returns:
        The report. The row ``served`` is what the verdict recommends, chosen on validation alone.
    """
    started = time.monotonic()
    pictures = Pictures.load(task, pgn.canvas)
    asker = Asker(connect)
    seed = int(pgn.info["seed"])
    note(f"raw answers to {len(task.train)} training, {len(task.val)} validation and {len(task.test)} test pictures")
    raw, fitted = _raw(asker, task, pgn.info["recipe"]["augment"], seed)
    patches, local = _rendered(pgn, pictures)
    fusion = {RAW_LOCAL: best_fusion(raw.val, local.val, task.val.labels), PGN_LOCAL: float(pgn.info["fusion"])}
    candidates, omitted, retention = [raw, local, _fused(RAW_LOCAL, raw, local, fusion[RAW_LOCAL])], [], None
    if surrogate is not None:
        note("linear probe on the surrogate")
        candidates.insert(2, _probe(surrogate, task, seed))
    else:
        omitted.append(f"{PROBE} and retention: no surrogate; give --backbone and --weights")
    if rival is not None:
        note("input-independent prompt over HTTP")
        candidates.append(_prompted(IIP, asker, rival, pictures))
    else:
        omitted.append(f"{IIP}: no input-independent checkpoint; give --rival, or a surrogate to train one")
    note("PGN over HTTP, with its own prompts, swapped ones, and on grey pictures")
    prompted = _prompted(PGN, asker, pgn, pictures)
    candidates += [prompted, _fused(PGN_LOCAL, prompted, local, fusion[PGN_LOCAL])]
    controls = _controls(asker, pgn, pictures, patches, prompted)
    if surrogate is not None:
        note("retention from latent float32 to JPEG")
        retention = retain(pgn, surrogate, pictures.fitted_test, patches, task.test.labels, prompted.test)
    best = choose(candidates, task.val.labels)
    candidates.append(replace(best, name=SERVED))
    paired = compare(candidates, task.test.labels, seed)
    return Report(
        rows=[_row(c, task.test.labels) for c in candidates],
        paired=paired,
        retention=retention,
        controls=controls,
        verdict=("" if same_data else CONTAMINATED) + verdict(best, candidates, task, paired),
        omitted=omitted,
        seconds=round(time.monotonic() - started, 1),
        seed=seed,
        split={"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        same_data=same_data,
        mapping={"kind": fitted.mapping.kind, "cv_log_loss": fitted.log_loss, "l2": fitted.l2},
        fusion=fusion,
        versions=dict(pgn.info["versions"]),
        images_sent=asker.images_sent,
    )


class Asker:
    """Asks the endpoint for its own answers, and counts what that takes."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.images_sent = 0

    def __call__(self, images: Sequence[ImageSource], adapter: PromptAdapter | None = None) -> list[Answer]:
        """Return the answers to pictures as they are, or as ``adapter`` makes them, in order."""
        with self.connect(adapter) as client:
            answers = client.answers(images)
            self.images_sent += client.usage.images
        return answers


def choose(candidates: Iterable[Candidate], val_targets: Integers) -> Candidate:
    """Pick on validation: the cheapest candidate within one paired standard error, or one picture, of the best.

    Only rows of ``ADVICE`` stand for choice. The one-standard-error rule (Breiman et al. 1984) keeps noise from
    recommending a dearer way. It also leans against the prompt, whose epoch and α were chosen on the same pictures.
    """
    order = list(ADVICE)
    ranked = sorted((c for c in candidates if c.name in ADVICE), key=lambda c: order.index(c.name))
    right = {c.name: _right(c.val, val_targets) for c in ranked}
    best = max(ranked, key=lambda c: right[c.name].mean())
    for candidate in ranked:
        gap = right[best.name].astype(float) - right[candidate.name]
        if gap.sum() <= max(1.0, gap.std() * np.sqrt(len(gap))):
            return candidate
    return best


def compare(candidates: Sequence[Candidate], targets: Integers, seed: int) -> list[Comparison]:
    """Return the paired comparisons that decide whether a prompt pays, where both rows are there."""
    rows = {c.name: _right(c.test, targets) for c in candidates}
    pairs = [(PGN, RAW), (PGN, IIP), (PGN, LOCAL), (PGN_LOCAL, RAW_LOCAL), (SERVED, LOCAL), (SERVED, RAW_LOCAL)]
    out = []
    for a, b in pairs:
        if a in rows and b in rows:
            difference, lo, hi = paired_bootstrap(rows[a], rows[b], seed=seed)
            out.append(Comparison(a, b, difference, (lo, hi)))
    return out


def verdict(best: Candidate, candidates: Sequence[Candidate], task: Task, paired: Sequence[Comparison]) -> str:
    """Say in one sentence what to do, and what the test images say of it."""
    accuracy, lo, hi = accuracy_interval(_right(best.test, task.test.labels))
    top = max((c for c in candidates if c.name in ADVICE), key=lambda c: _right(c.val, task.val.labels).sum())
    text = f"{ADVICE[best.name]}: {best.name} reaches {accuracy:.3f} [{lo:.3f}, {hi:.3f}]"
    text += f" on {len(task.test)} test pictures"
    if _right(top.val, task.val.labels).sum() > _right(best.val, task.val.labels).sum():
        text += f"; {top.name} was ahead on validation, but within one standard error, or by one picture"
    gain = next((c for c in paired if (c.a, c.b) == (PGN, RAW)), None)
    if gain is not None:
        sure = "" if gain.ci95[0] > 0 or gain.ci95[1] < 0 else ", not established"
        text += f"; PGN − {RAW} is {_points(gain)} points{sure}"
    return text + "."


def _points(c: Comparison) -> str:
    return f"{100 * c.difference:+.1f} [{100 * c.ci95[0]:+.1f}, {100 * c.ci95[1]:+.1f}]"


def _row(candidate: Candidate, targets: Integers) -> dict[str, Any]:
    accuracy, lo, hi = accuracy_interval(_right(candidate.test, targets))
    return {"name": candidate.name, "accuracy": accuracy, "ci95": [lo, hi], "queries": candidate.queries}


def _right(log_p: Floats, targets: Integers) -> NDArray[np.bool_]:
    right: NDArray[np.bool_] = log_p.argmax(axis=1) == targets
    return right


def _raw(ask: Asker, task: Task, augmentation: str, seed: int) -> tuple[Candidate, labels.Fitted]:
    """Pictures as they are, with the best mapping.

    Fitted on the training answers, and once more with those to an augmented copy of each training picture, as
    the prompt saw augmented pictures too; validation chooses between the two.
    """
    clean, val, test = (ask(split.paths) for split in (task.train, task.val, task.test))
    augmented = ask([_augmented(path, augmentation, seed + i) for i, path in enumerate(task.train.paths)])
    source = labels.vocabulary(clean)

    def read(answers: Sequence[Answer]) -> Floats:
        return labels.log_scores(answers, source, strict=False)  # a label never seen in training says nothing

    def fit(answers: Sequence[Answer], copies: int) -> labels.Fitted:
        return labels.fit(read(answers), np.tile(task.train.labels, copies), source, task.classes, seed=seed)

    def loss(fitted: labels.Fitted) -> float:
        log_p = fitted.mapping.log_probs(read(val))
        return float(-log_p[np.arange(len(log_p)), task.val.labels].mean())

    fitted = min((fit(clean, 1), fit([*clean, *augmented], 2)), key=loss)
    val_rows, test_rows = (fitted.mapping.log_probs(read(answers)) for answers in (val, test))
    return Candidate(RAW, val_rows, test_rows, len(clean) + len(augmented) + len(val) + len(test)), fitted


def _augmented(path: Path, name: str, seed: int) -> Image.Image:
    torch.manual_seed(seed)
    pixels = torch.from_numpy(np.asarray(open_image(path)).copy()).permute(2, 0, 1)[None]
    return Image.fromarray(augment.get(name)(pixels)[0].permute(1, 2, 0).numpy())


def _rendered(pgn: PromptAdapter, pictures: Pictures) -> tuple[Pixels, Candidate]:
    """Prompt patches of the test pictures, and the local head's opinion, which costs nothing."""
    _, val = pgn.render(pictures.fitted_val)
    patches, test = pgn.render(pictures.fitted_test)
    return patches, Candidate(LOCAL, val, test, 0)


def _probe(backbone: Backbone, task: Task, seed: int) -> Candidate:
    def features(split: Split) -> Floats:
        seen = [seen_by_server(open_image(path), backbone.profile, backbone.input_size) for path in split.paths]
        return linear_probe.features(backbone, torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2))

    probe = linear_probe.LinearProbe.fit(features(task.train), task.train.labels, len(task.classes), seed=seed)
    val, test = (probe.log_probs(features(split)) for split in (task.val, task.test))
    return Candidate(PROBE, val, test, 0)


def _fused(name: str, endpoint: Candidate, local: Candidate, alpha: float) -> Candidate:
    val, test = (fuse(a, b, alpha) for a, b in ((endpoint.val, local.val), (endpoint.test, local.test)))
    return Candidate(name, val, test, endpoint.queries)


def _prompted(name: str, ask: Asker, adapter: PromptAdapter, pictures: Pictures) -> Candidate:
    val, test = (_read(adapter, ask(split.paths, adapter)) for split in (pictures.val, pictures.test))
    return Candidate(name, val, test, len(test))


def _read(adapter: PromptAdapter, answers: Sequence[Answer]) -> Floats:
    return adapter.mapping.log_probs(labels.log_scores(answers, adapter.mapping.source, strict=False))


def _controls(
    ask: Asker, pgn: PromptAdapter, pictures: Pictures, patches: Pixels, prompted: Candidate
) -> dict[str, float]:
    """Is the prompt a smuggled label? Another picture's prompt, and the own prompt on a grey picture, must say less.

    Where the server crops, the bare canvas without its margin shows what the crop then does to the prompt.
    """
    fitted, targets = pictures.fitted_test, pictures.test.labels
    other = np.random.default_rng(int(pgn.info["seed"])).permutation(len(fitted))
    grey = np.full_like(fitted[0], GREY)

    def accuracy(images: list[Image.Image]) -> float:
        return float(_right(_read(pgn, ask(images)), targets).mean())

    found = {
        "own_prompt": float(_right(prompted.test, targets).mean()),
        "swapped_prompt": accuracy([compose(p, patches[i], pgn.canvas) for p, i in zip(fitted, other, strict=True)]),
        "grey_picture": accuracy([compose(grey, q, pgn.canvas) for q in patches]),
    }
    if pgn.canvas.sent > pgn.canvas.size:
        bare = [compose(p, q, pgn.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)]
        found["without_margin"] = accuracy(bare)
    return found
