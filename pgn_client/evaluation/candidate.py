"""Ways to answer, each measured on the same validation and test images: a prompt, its rivals, and their fusions.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label mapping, the local head, a
linear probe on the surrogate, the first and the last of them fused with the local head. Whatever is fitted or chosen is
so on training and validation images; the test images are only counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pgn_client.imaging.codecs import ImageSource, open_image
from pgn_client.imaging.compositor import fit_picture, seen_by_server
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, best_gate, fuse, gate, gate_curve
from pgn_client.mapping.probability import log_loss
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.methods import linear_probe
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training import Split, Task, augment
from pgn_client.types import Answer
from pgn_client.wire.client import AdaptedClient

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Pixels = NDArray[np.uint8]

RAW, LOCAL, PROBE, SERVED = "raw + mapping", "local head", "linear probe", "served"


def with_local(name: str) -> str:
    """Name of a row that is fused with the local head."""
    return f"{'raw' if name == RAW else name} ⊕ local"


@dataclass(frozen=True)
class Candidate:
    """One way to answer.

    Attributes:
        name: of its row.
        val, test: (n, C) log-probabilities.
        queries: images sent for its test row, and for fitting and choosing it where the endpoint was asked for that.
        sent: share of the test pictures that are sent when it serves.
        local: the local head beside it, which can gate it.
        alpha: the local head's weight in it; ``None`` where nothing is fused.
    """

    name: str
    val: Floats
    test: Floats
    queries: int
    sent: float = 1.0
    local: Candidate | None = field(default=None, repr=False)
    alpha: float | None = None

    @property
    def queries_test(self) -> int:
        """Images sent for its test row: what serving as many pictures takes."""
        return round(self.sent * len(self.test))

    @property
    def queries_fit(self) -> int:
        """Images sent for fitting and choosing it: paid once."""
        return self.queries - self.queries_test

    def cost(self, images: int, price_per_image: float | None) -> float | None:
        """What serving so many images costs; ``None`` where some are sent and no price is known."""
        if not self.sent:
            return 0.0
        return None if price_per_image is None else self.sent * images * price_per_image


@dataclass(frozen=True)
class Pictures:
    """One split as a checkpoint sees it.

    Attributes:
        split: files and their targets.
        fitted: (n, h, w, 3) uint8, as they stand on the canvas.
        looked_at: (n, r, r, 3) uint8, what the generator looks at; ``None`` where that is ``fitted``.
    """

    split: Split
    fitted: Pixels
    looked_at: Pixels | None

    @classmethod
    def of(cls, split: Split, adapter: PromptAdapter) -> Pictures:
        """Decode a split, one picture at a time."""
        fitted, looked_at = [], []
        for image in map(open_image, split.paths):
            fitted.append(fit_picture(image, adapter.canvas))
            looked_at.append(adapter.looked_at([image]))
        crops = [crop for crop in looked_at if crop is not None]
        return cls(split, np.stack(fitted), np.concatenate(crops) if crops else None)

    @property
    def prompted_by(self) -> Pixels:
        """What the prompts are made from."""
        return self.fitted if self.looked_at is None else self.looked_at

    def rendered(self, adapter: PromptAdapter) -> tuple[Pixels, Floats]:
        """Return what is painted, and (n, C) log-probabilities of the local head."""
        painted, local = adapter.render(self.fitted, prompted_by=self.prompted_by)
        return painted, local


Connect = Callable[[PromptAdapter | None], AdaptedClient]


@dataclass(frozen=True)
class Query:
    """Pictures that would be sent: what a dry run counts.

    Attributes:
        part: what they are for.
        images: in order.
        adapter: what they are sent through; ``None`` as they are.
        ready: whether the adapter is there already; one that would be trained first can have no recorded answers.
    """

    part: str
    images: Sequence[ImageSource]
    adapter: PromptAdapter | None = None
    ready: bool = True


class Asker:
    """Asks the endpoint for its own answers, and counts what that takes."""

    def __init__(self, connect: Connect) -> None:
        self.connect = connect
        self.images_sent = 0

    def __call__(self, images: Sequence[ImageSource], adapter: PromptAdapter | None = None) -> list[Answer]:
        """Return the answers to pictures as they are, or as ``adapter`` makes them, in order."""
        with self.connect(adapter) as client:
            before = client.usage.images  # of all copies of a client
            answers = client.answers(images)
            self.images_sent += client.usage.images - before
        return answers


def choose(candidates: Iterable[Candidate], val_targets: Integers) -> Candidate:
    """Pick what is served, on validation: the least log-loss; the cheaper among equals.

    Not the best accuracy, nor the cheapest within its error: both were tried on two sets, with 120 validation pictures,
    and what they picked was 0.9 and 1.5 points behind the best on other pictures (log-loss: 0.6).

    Args:
        candidates: from the cheapest to the dearest.
        val_targets: (n,) class indices.
    """
    return min(candidates, key=lambda c: round(log_loss(c.val, val_targets), 9))


def cheapest(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the cheapest candidate within one paired standard error, or one picture, of the best on validation.

    The one-standard-error rule (Breiman et al. 1984): what is dearer has not shown there that it is worth it.

    Args:
        candidates: from the cheapest to the dearest.
        best: what they are held against.
        val_targets: (n,) class indices.
    """
    hits = right(best.val, val_targets).astype(float)
    for candidate in candidates:
        gap = hits - right(candidate.val, val_targets)
        if gap.sum() <= max(1.0, gap.std() * np.sqrt(len(gap))):
            return candidate
    return best


def advised(candidates: Iterable[Candidate], best: Candidate, val_targets: Integers) -> Candidate:
    """Return the :func:`cheapest` way, as gated as it would serve, that sends no more than what is served.

    Passed over is what saves nothing: a way without a prompt that yet sends more pictures, and a prompt that only does
    without the local head, which its checkpoint holds anyway.

    Args:
        candidates: from the cheapest to the dearest.
        best: the one that is served, behind its gate.
        val_targets: (n,) class indices.
    """
    served, most = _as_served(best, val_targets)
    offers = (_as_served(candidate, val_targets) for candidate in candidates)
    saving = (offer for offer, sent in offers if sent < most or (sent == most and not _same_prompt(offer, best)))
    return cheapest(saving, served, val_targets)


def _same_prompt(candidate: Candidate, best: Candidate) -> bool:
    return candidate.name != RAW and with_local(candidate.name) == best.name


def _as_served(candidate: Candidate, val_targets: Integers) -> tuple[Candidate, float]:
    """A candidate behind its gate, and the share of the validation pictures that it sends."""
    offer, query_below = gated(candidate.name, candidate, val_targets)
    if query_below is None or candidate.local is None:
        return offer, candidate.sent
    return offer, _share_sent(candidate.local.val, query_below)


def _share_sent(log_p_local: Floats, query_below: float) -> float:
    (point,) = gate_curve(log_p_local, log_p_local, np.zeros(len(log_p_local), dtype=np.int64), [query_below])
    return point.sent


def gated(name: str, best: Candidate, val_targets: Integers) -> tuple[Candidate, float | None]:
    """Answer locally where the row's local head is sure; only the other pictures are sent.

    Args:
        name: of the new row.
        best: the row to gate.
        val_targets: (n,) class indices, by which the threshold is chosen: no worse than sending all.

    Returns:
        The gated row, and the threshold ``query_below``; ``None`` where all, or no, pictures are sent anyway.
    """
    local = best.local
    query_below = best_gate(best.val, local.val, val_targets) if best.sent and local else None
    if local is None or query_below is None:
        return replace(best, name=name), None
    val, test = (gate(a, b, query_below) for a, b in ((best.val, local.val), (best.test, local.test)))
    sent = _share_sent(local.test, query_below)
    saved = round((1 - sent) * len(test))
    return Candidate(name, val, test, best.queries - saved, sent, local), query_below


def right(log_p: Floats, targets: Integers) -> NDArray[np.bool_]:
    """(n, C) log-probabilities, (n,) targets → (n,) whether the most likely class is the target."""
    hits: NDArray[np.bool_] = log_p.argmax(axis=1) == targets
    return hits


def raw(ask: Asker, task: Task, augmentation: str, seed: int) -> tuple[Candidate, labels.Fitted]:
    """Pictures as they are, with the best mapping.

    Fitted on the training answers, and once more with those to augmented copies of each training picture, as
    the prompt saw augmented pictures too; validation chooses between the two.
    """
    clean, val, test = (ask(split.paths) for split in (task.train, task.val, task.test))
    copies = [answer for block in augmented_blocks(task.train, augmentation, seed) for answer in ask(block)]
    source = labels.vocabulary(clean)

    def rows(answers: Sequence[Answer]) -> Floats:
        return labels.log_scores(answers, source, strict=False)  # a label never seen in training says nothing

    def fit(answers: Sequence[Answer]) -> labels.Fitted:
        times, held_out = len(answers) // len(clean), (rows(val), task.val.labels)
        targets = np.tile(task.train.labels, times)
        return labels.fit(rows(answers), targets, source, task.classes, val=held_out, copies=times, seed=seed)

    fitted = min((fit(clean), fit([*clean, *copies])), key=lambda found: min(found.log_loss.values()))
    val_rows, test_rows = (fitted.mapping.log_probs(rows(answers)) for answers in (val, test))
    return Candidate(RAW, val_rows, test_rows, len(clean) + len(copies) + len(val) + len(test)), fitted


def augmented_blocks(split: Split, name: str, seed: int) -> Iterator[list[Image.Image]]:
    """Yield ``augment.COPIES`` times a copy of every picture; nothing where the task allows no augmentation."""
    for block in range(augment.copies(name)):
        yield augmented_copies(split, name, seed + block * len(split))


def augmented_copies(split: Split, name: str, seed: int) -> list[Image.Image]:
    """Return an augmented copy of every picture, each drawn with a seed of its own."""
    augmented, copies = augment.get(name), []
    for i, path in enumerate(split.paths):
        torch.manual_seed(seed + i)
        pixels = torch.from_numpy(np.asarray(open_image(path)).copy()).permute(2, 0, 1)[None]
        copies.append(Image.fromarray(augmented(pixels)[0].permute(1, 2, 0).numpy()))
    return copies


def local_head(adapter: PromptAdapter, val: Pictures, test: Pictures) -> Candidate:
    """Return the local head's opinion, which costs nothing."""
    return Candidate(LOCAL, val.rendered(adapter)[1], test.rendered(adapter)[1], 0, 0.0)


def probe(backbone: Backbone, task: Task, augmentation: str, seed: int) -> Candidate:
    """Fit a linear probe on the surrogate's features of pictures as its own preprocessing sees them.

    As for the raw answers, validation chooses whether it also learns from augmented copies of each training picture.
    """

    def features(images: Sequence[ImageSource]) -> Floats:
        seen = [_seen(backbone, image) for image in images]
        return linear_probe.features(backbone, torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2))

    def fit(x: Floats, copies: int) -> linear_probe.LinearProbe:
        targets = np.tile(task.train.labels, copies)
        return linear_probe.LinearProbe.fit(x, targets, len(task.classes), copies=copies, seed=seed)

    clean, val, test = (features(split.paths) for split in (task.train, task.val, task.test))
    blocks = [clean, *(features(block) for block in augmented_blocks(task.train, augmentation, seed))]
    fits = fit(clean, 1), fit(np.concatenate(blocks), len(blocks))
    fitted = min(fits, key=lambda found: log_loss(found.log_probs(val), task.val.labels))
    return Candidate(PROBE, fitted.log_probs(val), fitted.log_probs(test), 0, 0.0)


def _seen(backbone: Backbone, image: ImageSource) -> Pixels:
    b = backbone
    return seen_by_server(open_image(image), b.profile, b.input_size, b.interpolation)


def fused(other: Candidate, local: Candidate, alpha: float) -> Candidate:
    """Fuse a row with the local head's opinion; where the row then has no say, nothing is sent."""
    val, test = (fuse(a, b, alpha) for a, b in ((other.val, local.val), (other.test, local.test)))
    sent = other.sent if alpha < 1 else 0.0
    queries = other.queries - round((other.sent - sent) * len(test))
    return Candidate(with_local(other.name), val, test, queries, sent, local, alpha)


def fused_best(other: Candidate, local: Candidate, val_targets: Integers) -> Candidate:
    """Fuse by the α of least log-loss on the validation pictures, whose (n,) targets are given."""
    return fused(other, local, best_fusion(other.val, local.val, val_targets))


def without_prompt(raw: Candidate, local: Candidate, probe: Candidate | None, val_targets: Integers) -> list[Candidate]:
    """Return the rivals that need no prompt: those given, and raw answers and probe each fused with the local head."""
    raw, probes = replace(raw, local=local), [probe] if probe else []
    return [raw, local, *probes, *(fused_best(row, local, val_targets) for row in (raw, *probes))]


def prompted(name: str, ask: Asker, adapter: PromptAdapter, task: Task) -> Candidate:
    """Send pictures as an adapter makes them, and read the answers with its mapping."""
    val, test = (read(adapter, ask(split.paths, adapter)) for split in (task.val, task.test))
    return Candidate(name, val, test, len(val) + len(test))


def read(adapter: PromptAdapter, answers: Sequence[Answer]) -> Floats:
    """(n,) answers → (n, C) log-probabilities, by an adapter's mapping."""
    return adapter.mapping.log_probs(labels.log_scores(answers, adapter.mapping.source, strict=False))
