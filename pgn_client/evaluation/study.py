"""The honest comparison: a prompt and its rivals on the same test images, with intervals and a
verdict.

Rivals that need no prompt, or no endpoint, are always there: raw answers with the best label
mapping, the generator's own local head, a linear probe on the surrogate, answers and probe fused
with that head, the input-independent prompt. Everything is chosen on training and validation
images; the test images are only counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from pgn_client.arrays import Pixels
from pgn_client.evaluation import baselines, candidate
from pgn_client.evaluation.candidate import IIP, PROBE, Candidate
from pgn_client.evaluation.fidelity import agreement, follow
from pgn_client.evaluation.queries import Asker, Connect, Query
from pgn_client.evaluation.results import Report
from pgn_client.evaluation.verdict import judge
from pgn_client.imaging.compositor import GREY, compose
from pgn_client.mapping.probability import right
from pgn_client.prompting import methods
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training import Task
from pgn_client.training.examples import FittedSplit

Note = Callable[[str], None]


def evaluate(
    task: Task,
    connect: Connect,
    pgn: PromptAdapter,
    *,
    same_data: bool = True,
    rival: PromptAdapter | None = None,
    surrogate: Backbone | None = None,
    price_per_image: float | None = None,
    note: Note = lambda _: None,
) -> Report:
    """Compare a prompt with its rivals over HTTP.

    Args:
        task: the splits that the prompt was trained with (see ``training.alike.task_of``).
        connect: opens a client of the endpoint for an adapter, or for images as they are
            (``None``).
        pgn: the prompt to judge.
        same_data: whether these are the training images of the checkpoint; if not, the report
            says so.
        rival: an input-independent prompt trained alike; without it the row ``IIP`` is left out,
            and said so.
        surrogate: the backbone the prompt was trained through; without it linear probe and
            retention are left out.
        price_per_image: of the endpoint, in any currency; costs are told where it is known.
        note: told what is going on.

    Returns:
        The report. The row ``served`` is what the verdict recommends, chosen on validation alone:
        the way of least log-loss, and the gate ``query_below`` under which images are sent.
        ``curve`` is that way's accuracy against images sent.
    """
    started = time.monotonic()
    val, test = (FittedSplit.of(split, pgn) for split in (task.val, task.test))
    asker = Asker(connect)
    seed, name = (pgn.card.seed or 0), methods.restorable(pgn.card.method).title
    note(
        f"raw answers to {len(task.train)} training, {len(task.val)} validation and "
        f"{len(task.test)} test images"
    )
    augmentation = _augmentation(pgn)
    raw, fitted = baselines.raw(asker, task, augmentation, seed)
    local = baselines.local_head(pgn, val, test)
    probe, omitted = _probe(task, surrogate, augmentation, seed)
    candidates = baselines.without_prompt(raw, local, probe, task.val.labels)
    if rival is not None:
        note("input-independent prompt over HTTP")
        candidates += _with_its_local_head(
            IIP, asker, rival, task, baselines.local_head(rival, val, test)
        )
    elif name != IIP:
        omitted.append(
            f"{IIP}: none that is trained alike; for a PGN of one task, as pgn train wrote it, "
            "give --rival, or a "
            "surrogate to train one"
        )
    note(f"{name} over HTTP, with its own prompts, swapped ones, and on grey images")
    prompted, both = _with_its_local_head(name, asker, pgn, task, local)
    candidates += [prompted, both]
    controls = _controls(asker, pgn, test, prompted)
    retention: dict[str, Any] | None = None
    if surrogate is not None:
        note("retention from latent float32 to JPEG")
        stages = follow(
            pgn, surrogate, test.fitted, looked_at=test.looked_at, over_http=prompted.test
        )
        retention = {k: float(right(v, task.test.labels).mean()) for k, v in stages.items()}
        retention |= {"agreement": agreement(stages)}
    return Report(
        **vars(
            judge(
                candidates,
                task,
                seed=seed,
                name=name,
                same_data=same_data,
                price_per_image=price_per_image,
            )
        ),
        retention=retention,
        controls=controls,
        omitted=omitted,
        seconds=round(time.monotonic() - started, 1),
        seed=seed,
        split={"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        mapping={"kind": fitted.mapping.kind, "val_log_loss": fitted.log_loss, "l2": fitted.l2},
        versions=dict(pgn.card.versions or {}),
        images_sent=asker.images_sent,
    )


def queries(
    task: Task,
    pgn: PromptAdapter,
    *,
    rival: PromptAdapter | None = None,
    rival_to_train: bool = False,
) -> Iterator[Query]:
    """Yield what ``evaluate`` would send, for a dry run.

    Args:
        task: as of ``evaluate``, like the two that follow.
        pgn: the prompt to judge.
        rival: an input-independent prompt.
        rival_to_train: whether the rival would be trained first.
    """
    yield Query("training", task.train.paths)
    for block in baselines.augmented_blocks(task.train, _augmentation(pgn), pgn.card.seed or 0):
        yield Query("training, augmented", block)
    for part, split in (("validation", task.val), ("test", task.test)):
        yield from (Query(part, split.paths, adapter) for adapter in (None, pgn))
        if rival is not None or rival_to_train:
            yield Query(part, split.paths, rival, ready=rival is not None)
    for _, images in _control_images(pgn, FittedSplit.of(task.test, pgn)):
        yield Query("controls", images)


def _augmentation(pgn: PromptAdapter) -> str:
    """Return the name of the augmentation that the prompt was trained with."""
    return pgn.card.recipe.augment if pgn.card.recipe else "none"


def _probe(
    task: Task, surrogate: Backbone | None, augmentation: str, seed: int
) -> tuple[Candidate | None, list[str]]:
    """The linear probe, or a word on what cannot be measured without a surrogate."""
    if surrogate is None:
        return None, [f"{PROBE} and retention: no surrogate; give --backbone and --weights"]
    return baselines.probe(surrogate, task, augmentation, seed), []


def _with_its_local_head(
    name: str, ask: Asker, adapter: PromptAdapter, task: Task, local: Candidate
) -> list[Candidate]:
    """A prompt alone, and fused with the local head of its own checkpoint by the α of its card."""
    alone = replace(baselines.prompted(name, ask, adapter, task), local=local)
    return [alone, candidate.fused(alone, local, adapter.card.fusion)]


def _controls(
    ask: Asker, pgn: PromptAdapter, test: FittedSplit, prompted: Candidate
) -> dict[str, float]:
    """Is the prompt a smuggled label? Another image's prompt, and the own prompt on a grey
    image, must say less.

    Where the server crops, the bare canvas without its margin shows what the crop then does to the
    prompt.
    """

    def accuracy(images: list[Image.Image]) -> float:
        return float(right(baselines.read(pgn, ask(images)), test.split.labels).mean())

    own = float(right(prompted.test, test.split.labels).mean())
    return {"own_prompt": own} | {
        name: accuracy(images) for name, images in _control_images(pgn, test)
    }


def _control_images(
    pgn: PromptAdapter, test: FittedSplit
) -> Iterator[tuple[str, list[Image.Image]]]:
    fitted, eye = test.fitted, test.prompted_by
    other = np.random.default_rng(pgn.card.seed or 0).permutation(len(fitted))
    yield "swapped_prompt", _painted(pgn, fitted, eye[other])
    yield "grey_picture", _painted(pgn, np.full_like(fitted, GREY), eye)
    if pgn.canvas.sent > pgn.canvas.size:
        yield "without_margin", _painted(pgn, fitted, eye, margin=False)


def _painted(
    adapter: PromptAdapter, images: Pixels, prompted_by: Pixels, *, margin: bool = True
) -> list[Image.Image]:
    """Images with the prompts of these or others."""
    patches, _ = adapter.render(images, prompted_by=prompted_by)
    return [
        compose(p, q, adapter.canvas, margin=margin) for p, q in zip(images, patches, strict=True)
    ]
