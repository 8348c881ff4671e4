"""The honest comparison: a prompt and its rivals on the same test images, with intervals and a verdict.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label mapping, the generator's
own local head, a linear probe on the surrogate, raw answers fused with the local head, the input-independent prompt.
Everything is chosen on training and validation images; the test images are only counted.
"""

from __future__ import annotations

import io
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
from pgn_client.codecs import open_image
from pgn_client.compositor import GREY, compose, fit_picture, seen_by_server
from pgn_client.methods import linear_probe
from pgn_client.statistics import accuracy_interval, best_fusion, fuse, paired_bootstrap
from pgn_client.training import Task
from pgn_client.training.data import Examples
from pgn_client.training.finish import log_probs
from pgn_client.training.scores import TorchMapping
from pgn_client.training.surrogate import Surrogate
from pgn_client.types import Answer, ServerProfile

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Note = Callable[[str], None]

RAW, LOCAL, PROBE, RAW_LOCAL = "raw + mapping", "local head", "linear probe", "raw ⊕ local"
IIP, PGN, PGN_LOCAL, SERVED = "IIP", "PGN", "PGN ⊕ local", "served"

ADVICE = {
    LOCAL: "use the local model: no query is needed",
    PROBE: "use the local model (a linear probe on the surrogate's features): no query is needed",
    RAW: "use the mapping only: send pictures as they are",
    RAW_LOCAL: "use both without a prompt: send pictures as they are, and fuse the answers with the local head",
    PGN: "use the prompt",
    PGN_LOCAL: "use both: the prompt, fused with the local head",
}
"""What to do where a row wins, from the cheapest to the dearest: local costs nothing, a prompt costs training too."""


@dataclass(frozen=True)
class Candidate:
    """One way to answer.

    Attributes:
        name: of its row.
        val, test: (n, C) log-probabilities.
        queries: images sent for its test row, those for fitting and choosing it included.
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
    """Validation and test pictures, decoded once: what every candidate is measured on."""

    val: list[Image.Image]
    test: list[Image.Image]
    val_targets: Integers
    test_targets: Integers

    @classmethod
    def load(cls, task: Task) -> Pictures:
        """Decode both splits."""
        val, test = ([open_image(p) for p in split.paths] for split in (task.val, task.test))
        return cls(val, test, task.val.labels, task.test.labels)


def evaluate(
    task: Task,
    url: str,
    pgn: PromptAdapter,
    *,
    rival: PromptAdapter | None = None,
    surrogate: Backbone | None = None,
    api_key: str | None = None,
    model: str | None = None,
    cache: Path | None = None,
    note: Note = lambda _: None,
) -> Report:
    """Compare a prompt with its rivals over HTTP.

    Args:
        task: the splits that the prompt was trained with (same seed and shots).
        url: the endpoint.
        pgn: the prompt to judge.
        rival: an input-independent prompt trained alike; without it the row ``IIP`` is left out, and said so.
        surrogate: the backbone the prompt was trained through; without it linear probe and retention are left out.
        api_key: for the endpoint; default ``PGN_API_KEY``.
        model: the model's name at an endpoint that hosts several.
        cache: file of recorded answers, so that an interrupted evaluation does not pay twice.
        note: told what is going on.

    Returns:
        The report. The row ``served`` is what the verdict recommends, chosen on validation alone.
    """
    started = time.monotonic()
    pictures = Pictures.load(task)
    asker = Asker(url, api_key, model, cache)
    seed = int(pgn.info["seed"])
    note(f"raw answers to {len(task.train)} training, {len(task.val)} validation and {len(task.test)} test pictures")
    raw, fitted = _raw(asker, task, pictures, seed)
    local = _local(pgn, pictures)
    fusion = {RAW_LOCAL: best_fusion(raw.val, local.val, pictures.val_targets), PGN_LOCAL: float(pgn.info["fusion"])}
    candidates, omitted, retention = [raw, local, _fused(RAW_LOCAL, raw, local, fusion[RAW_LOCAL])], [], None
    if surrogate is not None:
        note("linear probe on the surrogate")
        candidates.insert(2, _probe(surrogate, task, pictures, seed))
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
    controls = _controls(asker, pgn, pictures, prompted)
    if surrogate is not None:
        note("retention from latent float32 to JPEG")
        retention = retain(pgn, surrogate, pictures, prompted.test)
    best = choose(candidates, pictures.val_targets)
    candidates.append(replace(best, name=SERVED))
    paired = compare(candidates, pictures.test_targets, seed)
    return Report(
        rows=[_row(c, pictures.test_targets) for c in candidates],
        paired=paired,
        retention=retention,
        controls=controls,
        verdict=verdict(best, candidates, pictures, paired),
        omitted=omitted,
        seconds=round(time.monotonic() - started, 1),
        seed=seed,
        split={"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        mapping={"kind": fitted.mapping.kind, "cv_log_loss": fitted.log_loss, "l2": fitted.l2},
        fusion=fusion,
        versions=dict(pgn.info["versions"]),
        images_sent=asker.images_sent,
    )


class Asker:
    """Asks the endpoint for its own answers, and counts what that takes."""

    def __init__(self, url: str, api_key: str | None, model: str | None, cache: Path | None) -> None:
        self.url, self.api_key, self.model, self.cache = url, api_key, model, cache
        self.images_sent = 0

    def __call__(self, images: Sequence[Any], adapter: PromptAdapter | None = None) -> list[Answer]:
        """Return the answers to pictures as they are, or as ``adapter`` makes them, in order."""
        with AdaptedClient(
            self.url, adapter, api_key=self.api_key, model=self.model, cache=self.cache, timeout=120.0
        ) as client:
            answers = client.answers(images)
            self.images_sent += client.usage.images
        return answers


def choose(candidates: Iterable[Candidate], val_targets: Integers) -> Candidate:
    """Pick on validation: the cheapest candidate within one paired standard error, or one picture, of the best.

    Only rows of ``ADVICE`` stand for choice. The one-standard-error rule (Breiman et al. 1984) keeps noise from
    recommending a dearer way.
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


def verdict(best: Candidate, candidates: Sequence[Candidate], pictures: Pictures, paired: Sequence[Comparison]) -> str:
    """Say in one sentence what to do, and what the test images say of it."""
    accuracy, lo, hi = accuracy_interval(_right(best.test, pictures.test_targets))
    top = max((c for c in candidates if c.name in ADVICE), key=lambda c: _right(c.val, pictures.val_targets).mean())
    reached = f"{accuracy:.3f} [{lo:.3f}, {hi:.3f}] on {len(pictures.test)} test pictures"
    text = f"{ADVICE[best.name]}: {best.name} reaches {reached}"
    if top.name != best.name:
        text += f"; {top.name} was best on validation, but by less than one standard error"
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


def _raw(ask: Asker, task: Task, pictures: Pictures, seed: int) -> tuple[Candidate, labels.Fitted]:
    """Pictures as they are, with the mapping that cross-validation on the training answers prefers."""
    train = ask(task.train.paths)
    source = labels.vocabulary(train)
    fitted = labels.fit(labels.log_scores(train, source), task.train.labels, source, task.classes, seed=seed)
    val, test = (fitted.mapping(ask(images)) for images in (pictures.val, pictures.test))
    return Candidate(RAW, val, test, len(train) + len(pictures.test)), fitted


def _local(pgn: PromptAdapter, pictures: Pictures) -> Candidate:
    val, test = (
        pgn.render(np.stack([fit_picture(image, pgn.canvas) for image in images]))[1]
        for images in (pictures.val, pictures.test)
    )
    return Candidate(LOCAL, val, test, 0)


def _probe(backbone: Backbone, task: Task, pictures: Pictures, seed: int) -> Candidate:
    def features(images: Iterable[Image.Image]) -> Floats:
        seen = [seen_by_server(image, backbone.profile, backbone.input_size) for image in images]
        return linear_probe.features(backbone, torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2))

    train = features(open_image(path) for path in task.train.paths)
    probe = linear_probe.LinearProbe.fit(train, task.train.labels, len(task.classes), seed=seed)
    val, test = (probe.log_probs(features(images)) for images in (pictures.val, pictures.test))
    return Candidate(PROBE, val, test, 0)


def _fused(name: str, endpoint: Candidate, local: Candidate, alpha: float) -> Candidate:
    val, test = (fuse(a, b, alpha) for a, b in ((endpoint.val, local.val), (endpoint.test, local.test)))
    return Candidate(name, val, test, 0 if alpha == 1 else endpoint.queries)


def _prompted(name: str, ask: Asker, adapter: PromptAdapter, pictures: Pictures) -> Candidate:
    val, test = (adapter.mapping(ask(images, adapter)) for images in (pictures.val, pictures.test))
    return Candidate(name, val, test, len(pictures.test))


def _controls(ask: Asker, pgn: PromptAdapter, pictures: Pictures, prompted: Candidate) -> dict[str, Any]:
    """Is the prompt a smuggled label? Another picture's prompt, and the own prompt on a grey picture, must say less.

    Where the server crops, the bare canvas without its margin shows what the crop then does to the prompt.
    """
    fitted = np.stack([fit_picture(image, pgn.canvas) for image in pictures.test])
    patches, _ = pgn.render(fitted)
    other = np.random.default_rng(int(pgn.info["seed"])).permutation(len(fitted))
    grey = np.full_like(fitted[0], GREY)
    swapped = [compose(p, patches[i], pgn.canvas) for p, i in zip(fitted, other, strict=True)]
    blank = [compose(grey, q, pgn.canvas) for q in patches]

    def accuracy(images: list[Image.Image]) -> float:
        return float(_right(pgn.mapping(ask(images)), pictures.test_targets).mean())

    own = float(_right(prompted.test, pictures.test_targets).mean())
    found = {"own_prompt": own, "swapped_prompt": accuracy(swapped), "grey_picture": accuracy(blank)}
    if pgn.canvas.sent > pgn.canvas.size:
        bare = [compose(p, q, pgn.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)]
        found["without_margin"] = accuracy(bare)
    return found


def retain(pgn: PromptAdapter, backbone: Backbone, pictures: Pictures, over_http: Floats) -> dict[str, Any]:
    """Follow the prompt from the latent space to lossy pictures, through the surrogate and the real endpoint.

    Returns:
        Test accuracy of ``latent`` (float32 tokens), ``uint8`` (rounded pictures), ``http_png`` (the endpoint),
        ``jpeg95_444`` and ``jpeg75_420`` (the whole sent picture re-encoded, then the profile's crop), and under
        ``agreement`` the share of images whose label is that of ``latent``.
    """
    fitted = np.stack([fit_picture(image, pgn.canvas) for image in pictures.test])
    patches, _ = pgn.render(fitted)
    sent = [compose(p, q, pgn.canvas) for p, q in zip(fitted, patches, strict=True)]
    surrogate = Surrogate(backbone, pgn.canvas)
    profile = ServerProfile.parse(pgn.info["profile"])

    def answer(images: Iterable[Image.Image]) -> Floats:
        seen = np.stack([seen_by_server(image, profile, backbone.input_size) for image in images])
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2).to(backbone.device)
        with torch.inference_mode():
            features = torch.cat([surrogate.pixel_scores(x) for x in pixels.split(64)])
        return pgn.mapping.log_probs(features.cpu().double().numpy())

    stages = {
        "latent": _latent(pgn, surrogate, fitted),
        "uint8": answer(sent),
        "http_png": over_http,
        "jpeg95_444": answer(_jpeg(image, 95, 0) for image in sent),
        "jpeg75_420": answer(_jpeg(image, 75, 2) for image in sent),
    }
    reference = stages["latent"].argmax(axis=1)
    out: dict[str, Any] = {k: float(_right(v, pictures.test_targets).mean()) for k, v in stages.items()}
    out["agreement"] = {k: float((v.argmax(axis=1) == reference).mean()) for k, v in stages.items()}
    return out


def _latent(pgn: PromptAdapter, surrogate: Surrogate, fitted: NDArray[np.uint8]) -> Floats:
    model, _ = pgn.runtime
    examples = Examples(torch.from_numpy(fitted).permute(0, 3, 1, 2), torch.zeros(len(fitted), dtype=torch.long))
    mapping = TorchMapping(pgn.mapping)
    log_p, _ = log_probs(model, mapping, surrogate, examples, pgn.info["generator"]["resolution"])
    return log_p.double().numpy()


def _jpeg(image: Image.Image, quality: int, subsampling: int) -> Image.Image:
    """Encode and decode; subsampling 0 is 4:4:4, 2 is 4:2:0."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return Image.open(buffer).convert("RGB")
