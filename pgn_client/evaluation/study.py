"""Compare a prompt with its baselines on the same test images, with intervals and a verdict.

Some baselines need no prompt: raw images with the best label mapping, the local head (the small
classifier in the checkpoint), and, with a surrogate, a linear probe on its features. Raw images and
the probe are also fused with the local head. A rival, one prompt for all images, is compared if
given. Everything is chosen on training and validation images. The test images serve to measure
accuracy, nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from pgn_client.arrays import Pixels
from pgn_client.evaluation import baselines, candidate, surrogate_check
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
"""Callback that takes progress messages, such as ``print``."""


def evaluate(
    task: Task,
    connect: Connect,
    pgn: PromptAdapter,
    *,
    same_data: bool = True,
    rival: PromptAdapter | None = None,
    surrogate: Backbone | None = None,
    price_per_image: float | None = None,
    anyway: bool = False,
    max_failure_rate: float = 0.0,
    note: Note = lambda _: None,
) -> Report:
    """Compare a prompt with its baselines over HTTP.

    Args:
        task: Splits that the prompt was trained with (see ``training.rival.task_of``).
        connect: Opens a client of the endpoint for an adapter, or for raw images (``None``).
        pgn: Prompt to evaluate.
        same_data: Whether these are the images of the checkpoint's training. If not, the verdict
            carries a warning.
        rival: Input-independent prompt trained with the same recipe; without it the row ``IIP`` is
            left out, and ``omitted`` gives the reason.
        surrogate: Backbone that the prompt was trained through; without it, the linear probe is
            left out, and so is retention, the accuracy at each step from tokens to sent images.
        price_per_image: Price of an image at the endpoint, in any currency. For a client with a
            price per hour, the hours of this evaluation are added. Without any price the report
            has no costs.
        anyway: Whether to go on where the endpoint hosts another model than the checkpoint claims.
        max_failure_rate: Largest share of the images that may get no answer, in [0, 1]; they count
            as images of which the endpoint says nothing.
        note: Callback that takes progress messages.

    Raises:
        SurrogateMismatchError: The first raw images show that the endpoint hosts another model than
            the surrogate, which the checkpoint calls the same.

    Returns:
        The report. The row ``served`` is chosen on validation alone: it is the row of least
        log-loss, behind a gate. The gate sends an image only if the local head's confidence is
        below ``query_below``. ``curve`` is the accuracy of the row against images sent.
    """
    started = time.monotonic()
    val = FittedSplit.of(task.val, pgn)
    test = FittedSplit.of(task.test, pgn)
    images = len(task.train) + len(task.val) + len(task.test)
    asker = Asker(connect, allowed=int(max_failure_rate * images))
    # The card of an imported checkpoint has neither a seed nor a recipe.
    seed = pgn.card.seed or 0
    name = methods.restorable(pgn.card.method).title
    augmentation = _augmentation(pgn)

    with connect(pgn) as client:
        # Before anything is paid: a checkpoint for another model would end the run later.
        client.check()
    checked = None
    if surrogate is not None:
        checked = surrogate_check.check(asker.keeping, task.val.paths, pgn, surrogate)
        note(str(checked))
        if not anyway:
            with connect(None) as client:
                surrogate_check.refuse_other_model(checked, client.endpoint.name)

    note(
        f"sending {len(task.train)} training, {len(task.val)} validation and {len(task.test)} test "
        "images without a prompt"
    )
    raw, fitted = baselines.raw(asker, task, augmentation, seed)
    local = baselines.local_head(pgn, val, test)
    probe, omitted = _probe(task, surrogate, augmentation, seed)
    candidates = baselines.without_prompt(raw, local, probe, task.val.labels)

    if rival is not None:
        note("sending images with the input-independent prompt")
        rival_local = baselines.local_head(rival, val, test)
        candidates += _with_its_local_head(IIP, asker, rival, task, rival_local)
    elif name != IIP:
        omitted.append(
            f"{IIP}: no input-independent prompt with the same recipe; if --ckpt is a PGN of one "
            "task from pgn train, give --rival, or a surrogate to train one"
        )

    note(f"sending images with {name}, then the controls: swapped prompts, and gray images")
    prompted, prompted_local = _with_its_local_head(name, asker, pgn, task, local)
    candidates += [prompted, prompted_local]
    controls = _controls(asker, pgn, test, prompted)

    retention: dict[str, Any] | None = None
    if surrogate is not None:
        note("measuring retention, from float32 latent space to JPEG")
        stages = follow(
            pgn, surrogate, test.fitted, looked_at=test.looked_at, over_http=prompted.test
        )
        retention = {k: float(right(v, task.test.labels).mean()) for k, v in stages.items()}
        retention |= {"agreement": agreement(stages)}

    with connect(None) as client:
        price = client.usage.price_of_an_image(price_per_image)
    judgement = judge(
        candidates,
        task,
        seed=seed,
        name=name,
        same_data=same_data,
        price_per_image=price,
    )
    warnings = [asker.remark()]
    if checked is not None and checked.result == "other":
        warnings.append(str(checked))
    verdict = judgement.verdict
    verdict = replace(verdict, warnings=(*verdict.warnings, *filter(None, warnings)))
    judgement = replace(judgement, verdict=verdict)
    return Report(
        # vars() keeps rows and verdict as values; asdict() would turn them into dictionaries too.
        **vars(judgement),
        retention=retention,
        controls=controls,
        omitted=omitted,
        seconds=round(time.monotonic() - started, 1),
        seed=seed,
        split={"train": len(task.train), "val": len(task.val), "test": len(task.test)},
        mapping={"kind": fitted.mapping.kind, "val_log_loss": fitted.log_loss, "l2": fitted.l2},
        versions=dict(pgn.card.versions or {}),
        images_sent=asker.images_sent,
        surrogate_check=None if checked is None else vars(checked) | {"text": str(checked)},
    )


def queries(
    task: Task,
    pgn: PromptAdapter,
    *,
    rival: PromptAdapter | None = None,
    rival_to_train: bool = False,
) -> Iterator[Query]:
    """Yield the images that :func:`evaluate` would send, for a dry run.

    Args:
        task: Splits that the prompt was trained with.
        pgn: Prompt to evaluate.
        rival: Input-independent prompt; ``None`` where there is none yet.
        rival_to_train: Whether the rival would be trained first.
    """
    yield Query("training", task.train.paths)
    for block in baselines.augmented_blocks(task.train, _augmentation(pgn), pgn.card.seed or 0):
        yield Query("training, augmented", block)

    for part, split in (("validation", task.val), ("test", task.test)):
        yield Query(part, split.paths, None)
        yield Query(part, split.paths, pgn)
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
    """Return the linear probe on the surrogate's features and an empty list; without a surrogate,
    ``None`` and the reason.
    """
    if surrogate is None:
        return None, [
            f"{PROBE} and retention: they need a surrogate; give --backbone and --weights"
        ]
    return baselines.probe(surrogate, task, augmentation, seed), []


def _with_its_local_head(
    name: str, ask: Asker, adapter: PromptAdapter, task: Task, local: Candidate
) -> list[Candidate]:
    """Send images with a prompt; return the prompt as a candidate, alone and fused with ``local``,
    the local head of its checkpoint.

    The weight of the local head is the one in the checkpoint's card, its metadata.
    """
    alone = replace(baselines.prompted(name, ask, adapter, task), local=local)
    return [alone, candidate.fused(alone, local, adapter.card.fusion)]


def _controls(
    ask: Asker, pgn: PromptAdapter, test: FittedSplit, prompted: Candidate
) -> dict[str, float]:
    """Return the accuracy of a prompt and of its controls, variants that should score lower.

    Two controls test whether the prompt itself carries the label: one sends each image with the
    prompt of another image, the other sends each prompt on a gray image. If the server crops, a
    third control sends images without the margin that the crop should remove, so that the crop cuts
    into the prompt.
    """
    controls = {"own_prompt": float(right(prompted.test, test.split.labels).mean())}
    for name, images in _control_images(pgn, test):
        log_p = baselines.read(pgn, ask(images))
        controls[name] = float(right(log_p, test.split.labels).mean())
    return controls


def _control_images(
    pgn: PromptAdapter, test: FittedSplit
) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield each control, a variant of the prompt that should score lower: the control's key in
    ``report.json``, and the images to send.
    """
    fitted = test.fitted
    prompted_by = test.prompted_by
    # A permutation leaves about one image with its own prompt, too few to matter for the accuracy.
    other = np.random.default_rng(pgn.card.seed or 0).permutation(len(fitted))
    yield "swapped_prompt", _painted(pgn, fitted, prompted_by[other])
    # The old words in this key stay, because programs read report.json.
    yield "grey_picture", _painted(pgn, np.full_like(fitted, GREY), prompted_by)
    if pgn.canvas.sent > pgn.canvas.size:
        yield "without_margin", _painted(pgn, fitted, prompted_by, margin=False)


def _painted(
    adapter: PromptAdapter, images: Pixels, prompted_by: Pixels, *, margin: bool = True
) -> list[Image.Image]:
    """Paint prompts into images, and return the images to send.

    Args:
        adapter: Prompt to paint.
        images: Images as ``compositor.fit_to_canvas`` makes them, (n, h, w, 3) uint8.
        prompted_by: Images from which the prompts are generated.
        margin: Whether to add the margin that the server's crop removes.
    """
    patches, _ = adapter.render(images, prompted_by=prompted_by)
    return [
        compose(p, q, adapter.canvas, margin=margin) for p, q in zip(images, patches, strict=True)
    ]
