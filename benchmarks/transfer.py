"""What do per-image prompts carry to an endpoint whose weights nobody has?

    python benchmarks/hosted_models.py tf_efficientnet_lite0 tf_efficientnet_lite1
    python benchmarks/transfer.py collect SET:AUGMENT ... \
      --vit-weights W --hosted benchmarks/hosted --bank BANK
    python benchmarks/transfer.py summary --bank BANK --runs benchmarks/transfer_runs.jsonl
    python benchmarks/transfer.py over-http SET:AUGMENT \
      --vit-weights W --hosted benchmarks/hosted --bank BANK

``collect`` trains prompts through a *surrogate*, paints them into images, and keeps what a *hosted*
model of another family answers, log-score by log-score, in an answer bank (see ``answer_bank.py``).
``summary`` reads the bank alone, or the file of runs that an earlier summary kept. Both resume.
What follows was written before the first run.

**Pairs.** ViT-Tiny/16 -> EfficientNet-Lite0 and EfficientNet-Lite1 -> ViT-Tiny/16 are black boxes:
the surrogate is of another family than the hosted model. ViT-Tiny/16 -> ViT-Tiny/16 is the white
box on the same images. The hosted model answers in process, on uint8 images: a prompted image is
sent with the margin that the server's crop removes, so its model sees the canvas itself; an image
without prompt passes the model's own resize and crop. ``over-http`` repeats one cell through ``pgn
serve`` and the client. Lite1, as a surrogate, looks at the hosted model's canvas of 224 pixels with
16-pixel cells; it is convolutional, so no resize is needed.

**Parts.** Of a set and seed: *fit*, 240 images of ``train/``, for prompts, heads and mappings;
*choose*, 120 of ``val/``, for every choice; *test*, all of ``test/``, counted once, the same for
all seeds and pairs. Every arm's mapping is refitted on its own answers to the fit images and to one
augmented copy of each; whether the copy helps, and which kind of mapping, the log-loss on *choose*
decides.

**Arms.** ``raw``; ``frame``, the image inside an empty gray ring; ``iip``, an input-independent
prompt; ``pgn``; ``swapped``, PGN with every image's prompt taken from another image of its part, at
random; ``swapped_in_class``, from another image for which the local head predicts the same class;
``random_frames``, C fixed random frames, chosen by the local head's argmax (its opinion painted, no
PGN); ``class_prompts``, the same with C of PGN's own prompts, each class's medoid; ``gray_image``,
PGN's own prompt around a gray rectangle; ``blind_trunk``, PGN whose trunk keeps its random start,
so that it has seen no label.

**Baselines.** Raw answers with three augmented copies, which is as many images as raw and PGN
together take (``raw, equal images``); kNN on the log-scores; the local head alone; a linear probe
on the surrogate's features; and fusions: of each arm with the local head, of raw answers with the
linear probe, and *stacked*, one logistic regression on [log-scores || local log-probabilities]. The
stack's local head is out of fold on the fit images: a head that memorized its images must not weigh
itself by them. Fusion weights are chosen on *choose* by log-loss. All arms of a cell are fused with
the same local head, the one on the PGN's checkpoint.

**Primary comparison.** (PGN + local) - the best of (raw, frame, iip) + local, that best one taken
by log-loss on *choose* in each cell; test accuracy, averaged image by image over seeds and the two
black-box pairs, then over sets without weights; 95 % interval from drawing images within sets.

**Decision rule.** Upper bound below +1 point: per-image prompts leave the defaults of ``pgn fit``
and stay an option. Lower bound above 0: they are candidates there. Otherwise: more seeds or sets,
until one of the two holds or about six hours of CPU are spent.

**Controls.** pgn - swapped_in_class: is there more in a prompt than the local head's opinion? pgn -
random_frames and pgn - class_prompts: is there more than C frames chosen by that opinion could say?
pgn - swapped and gray_image: is it the image's own prompt, and is it a smuggled label?

**Limits**, written after the first cells and a review:

- Prompts are trained for 4 epochs, not the default 12, and for full scores also where the summary
  replays one label or five.
- Prompts and class frames of the *fit* images come from a trunk that has learned these images, so
  there the paint tells the class better than on *test*. The mapping is fitted on them, as the
  product does. This handicaps every arm that paints an opinion, the prompt among them. Two readings
  written after the table was seen show how much: ``frames_out_of_fold``, the random frames, where
  heads that never saw a *fit* image choose its frame; and *mapping of choose*, every arm's mapping
  fitted on the *choose* images alone, cross-fitted where its own readings of them are needed.
- ``raw, equal images`` takes 1,080 images, raw and PGN together 1,200. kNN measures the Hellinger
  distance of the probabilities.
- ``blind_trunk``: its weights stand still; the running statistics of BatchNorm follow the images,
  without labels; mixture and library are trained with labels, as in every prompt.
- In sets with as many classes as *choose* has images, few images find a donor in their own part.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answer_bank import Bank, Floats, Integers, Location
from numpy.typing import NDArray
from PIL import Image
from transfer_summary import Runs, summarize

from pgn_client.evaluation.baselines import augmented_copies
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import GREY, compose, fit_to_canvas, seen_by_server
from pgn_client.mapping.logistic_regression import stratified
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.generator import LocalClassifier, generator_input
from pgn_client.prompting.methods import linear_probe
from pgn_client.surrogate.backbone import Backbone, load
from pgn_client.training import Recipe, Task, augment, fit, load_task, recipe
from pgn_client.training.examples import Examples
from pgn_client.training.loop import train_local_head
from pgn_client.types import ServerProfile

Pixels = NDArray[np.uint8]
VIT, LITE0, LITE1 = "vit_tiny_patch16_224", "tf_efficientnet_lite0", "tf_efficientnet_lite1"
PAIRS = {(VIT, LITE0): "all", (LITE1, VIT): "all", (VIT, VIT): "prompts"}
"""(surrogate, hosted): which prompted arms are answered."""
PROMPTED = {
    "all": (
        "iip",
        "pgn",
        "swapped_in_class",
        "random_frames",
        "frames_out_of_fold",
        "swapped",
        "gray_image",
        "blind_trunk",
        "class_prompts",
    ),
    "prompts": ("iip", "pgn"),
}
PARTS = ("fit", "choose", "test")
FIT, CHOOSE = 240, 120
RAW_COPIES, COPIES = 3, 1
"""Augmented copies of each fit image: of raw images, and of every other arm."""
EPOCHS = 4
FOLDS = 5
BATCH = 32


def main() -> None:
    """Collect answers, print the summary, or repeat a cell over HTTP."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = p.add_subparsers(dest="command", required=True)
    for name in ("collect", "summary", "over-http"):
        command = commands.add_parser(name)
        command.add_argument("--bank", type=Path, required=True, help="folder of the answer bank")
        if name == "summary":
            command.add_argument(
                "--runs", type=Path, help="file that keeps which test images every row gets right"
            )
            continue
        command.add_argument(
            "sets", nargs="+", metavar="SET:AUGMENT", help="data folder, and what its images allow"
        )
        command.add_argument(
            "--vit-weights", type=Path, required=True, help=f"safetensors file of {VIT}"
        )
        command.add_argument(
            "--hosted", type=Path, required=True, help="folder written by hosted_models.py"
        )
        command.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
        command.add_argument(
            "--arms", nargs="+", default=PROMPTED["all"], choices=PROMPTED["all"], metavar="ARM"
        )
    args = p.parse_args()
    bank = Bank(args.bank)
    if args.command == "summary":
        print(summarize(bank, Runs(args.runs)))
        return
    models = Models(args.vit_weights, args.hosted)
    sets = dict(text.partition(":")[::2] for text in args.sets)
    if args.command == "over-http":
        from transfer_over_http import repeat

        folder, augmentation = next(iter(sets.items()))
        print(repeat(Cell(Path(folder), augmentation or "shift", args.seeds[0]), bank, models))
        return
    # run two processes on two cores: threads of one would wait for each other
    torch.set_num_threads(1)
    # the mapping that training ends with is not used here: every arm's is refitted
    augment.COPIES = COPIES
    for seed in args.seeds:
        for pair in PAIRS:
            for folder, augmentation in sets.items():
                collect(
                    Cell(Path(folder), augmentation or "shift", seed), pair, args.arms, bank, models
                )


@dataclass(frozen=True)
class Models:
    """The three models, loaded once.

    Attributes:
        vit_weights: Safetensors file of the ViT-Tiny.
        hosted: Folder of the EfficientNets.
    """

    vit_weights: Path
    hosted: Path

    @cached_property
    def by_name(self) -> dict[str, Backbone]:
        """Every model with its own preprocessing: what hosts it applies, and what a probe on it is
        given.
        """
        files = {VIT: self.vit_weights} | {
            name: self.hosted / f"{name}.safetensors" for name in (LITE0, LITE1)
        }
        loaded = {name: load(name, weights=path) for name, path in files.items()}
        for backbone in loaded.values():
            # convolutions are a third faster so
            backbone.model.to(memory_format=torch.channels_last)
        return loaded

    def surrogate(self, name: str, hosted: str) -> Backbone:
        """Return a surrogate that looks at the hosted model's canvas."""
        own, canvas = self.by_name[name], self.by_name[hosted]
        if own.input_size == canvas.input_size:
            return own
        return Backbone(
            own.model,
            name=own.name,
            mean=own.mean,
            std=own.std,
            labels=own.labels,
            profile=ServerProfile("direct"),
            input_size=canvas.input_size,
            interpolation=own.interpolation,
        )


@dataclass(frozen=True)
class Cell:
    """A set and a seed.

    Attributes:
        folder: With ``train/``, ``val/`` and ``test/``.
        augmentation: What the set's images allow.
        seed: Of the fit and choose images, and of all training.
    """

    folder: Path
    augmentation: str
    seed: int

    @cached_property
    def task(self) -> Task:
        """Fit images, choose images, and the whole test part."""
        return load_task(self.folder, seed=self.seed).limited(train=FIT, val=CHOOSE, seed=self.seed)

    @property
    def location(self) -> Location:
        """Where the bank keeps it."""
        return Location(self.folder.name, self.seed)

    @cached_property
    def images(self) -> dict[str, list[Image.Image]]:
        """Decoded images of every part, and the augmented copies of the fit images, block by
        block.
        """
        splits = {"fit": self.task.train, "choose": self.task.val, "test": self.task.test}
        parts = {part: [open_image(path) for path in split.paths] for part, split in splits.items()}
        for block in range(RAW_COPIES):
            start = self.seed + block * len(self.task.train)
            parts[f"copy{block}"] = augmented_copies(self.task.train, self.augmentation, start)
        return parts

    def recipe(self, **overrides: Any) -> Recipe:
        """Return the default recipe for this set."""
        return recipe(epochs=EPOCHS, augment=self.augmentation, **overrides)


def collect(
    cell: Cell, pair: tuple[str, str], arms: Sequence[str], bank: Bank, models: Models
) -> None:
    """Answer every arm of a cell and pair that the bank does not hold yet."""
    surrogate, hosted = pair
    place, model = cell.location, models.by_name[hosted]
    keep_targets(cell, bank)
    if not bank.has(place, "heads"):
        say(cell, "local heads, out of fold")
        bank.put(place, "heads", local_heads(cell))
    if not bank.has(place, f"{surrogate}/features"):
        say(cell, f"features of {surrogate}")
        bank.put(place, f"{surrogate}/features", features(cell, models.by_name[surrogate]))
    for arm in ("raw", "frame"):
        if not bank.has(place, f"{hosted}/{arm}"):
            say(cell, f"{hosted}: {arm}")
            seen = whole_images(cell, model) if arm == "raw" else framed_images(cell, model)
            bank.put(
                place, f"{hosted}/{arm}", {part: answer(model, pixels) for part, pixels in seen}
            )
    arms = [arm for arm in PROMPTED[PAIRS[pair]] if arm in arms]
    wanted = [arm for arm in arms if not bank.has(place, f"{hosted}/{surrogate}-{arm}")]
    if not wanted:
        return
    through = models.surrogate(surrogate, hosted)
    pgn = prompt(cell, bank, through, "pgn", cell.recipe())
    prompts = Prompts.of(cell, pgn)
    if not bank.has(place, f"{surrogate}/local"):
        bank.put(place, f"{surrogate}/local", prompts.local)
    for arm in wanted:
        say(cell, f"{surrogate} -> {hosted}: {arm}")
        canvases = prompted_images(cell, bank, through, prompts, arm)
        bank.put(
            place,
            f"{hosted}/{surrogate}-{arm}",
            {part: answer(model, pixels) for part, pixels in canvases},
        )


def keep_targets(cell: Cell, bank: Bank) -> None:
    """Write down what the images are, or compare with what an earlier run wrote.

    Raises:
        SystemExit: The bank holds answers to other images under this set and seed.
    """
    ours = targets(cell.task)
    if not bank.has(cell.location, "targets"):
        bank.put(cell.location, "targets", ours)
        return
    theirs = bank.get(cell.location, "targets")
    if any(not np.array_equal(theirs.get(name, []), ours[name]) for name in ours):
        place = f"{cell.location.set}, seed {cell.seed}"
        raise SystemExit(f"transfer.py: the bank holds answers to other images of {place}")


def targets(task: Task) -> dict[str, NDArray[Any]]:
    """Return class indices and file names of every part, and the class names."""
    splits = dict(zip(PARTS, (task.train, task.val, task.test), strict=True))
    found: dict[str, NDArray[Any]] = {part: split.labels for part, split in splits.items()}
    for part, split in splits.items():
        found[f"{part}_ids"] = np.array(["/".join(path.parts[-3:]) for path in split.paths])
    return found | {"classes": np.array(task.classes), "digest": np.array(task.digest())}


@torch.inference_mode()
def answer(model: Backbone, pixels: Pixels) -> NDArray[np.float32]:
    """(n, H, W, 3) uint8, as they reach the hosted model -> (n, S) float32 log-probabilities."""
    rows = []
    for start in range(0, len(pixels), BATCH):
        batch = torch.from_numpy(pixels[start : start + BATCH]).permute(0, 3, 1, 2)
        rows.append(model.logits(batch).log_softmax(dim=-1).numpy())
    return np.concatenate(rows)


Seen = Iterator[tuple[str, Pixels]]
"""Part by part, the images that reach the hosted model."""


def whole_images(cell: Cell, model: Backbone) -> Seen:
    """Yield images without prompt, through the model's own resize and crop."""
    for part, images in cell.images.items():
        yield part, through_preprocessing(images, model)


def through_preprocessing(images: Sequence[Image.Image], model: Backbone) -> Pixels:
    """Return (n, H, W, 3) uint8, as a server with the model's own preprocessing sees images."""
    return np.stack(
        [seen_by_server(x, model.profile, model.input_size, model.interpolation) for x in images]
    )


def framed_images(cell: Cell, model: Backbone) -> Seen:
    """Yield images inside an empty gray ring."""
    from pgn_client.imaging.geometry import Canvas

    canvas = Canvas.build(model.input_size, model.patch_size, "ring")
    for part, images in with_one_copy(cell):
        framed = (
            compose(fit_to_canvas(image, canvas), None, canvas, margin=False) for image in images
        )
        yield part, np.stack([np.asarray(image) for image in framed])


def with_one_copy(cell: Cell) -> Iterator[tuple[str, list[Image.Image]]]:
    """Yield the parts, and the first augmented copy of the fit images, which every prompted arm is
    answered for.
    """
    for part in (*PARTS, *(f"copy{block}" for block in range(COPIES))):
        yield part, cell.images[part]


def prompt(
    cell: Cell, bank: Bank, surrogate: Backbone, name: str, numbers: Recipe
) -> PromptAdapter:
    """Train a prompt through the surrogate, or read the one that the bank holds."""
    path = bank.path(cell.location, f"{surrogate.name}/{name}", ".safetensors")
    if path.exists():
        return PromptAdapter.load(path)
    say(cell, f"training {name} through {surrogate.name}")
    method = "input_independent" if name == "iip" else "pgn"
    trained = fit(
        cell.task,
        surrogate,
        method=method,
        profile=ServerProfile("direct"),
        recipe=numbers,
        seed=cell.seed,
    )
    if trained.info["interrupted"]:
        raise KeyboardInterrupt
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.save(path)
    return PromptAdapter.load(path)


@dataclass(frozen=True)
class Prompts:
    """What a PGN paints and thinks, part by part.

    Attributes:
        adapter: The checkpoint.
        fitted: (n, h, w, 3) uint8 images as they stand on the canvas.
        patches: (n, K, P, P, 3) uint8 prompt patches.
        local: (n, C) log-probabilities of its local head.
    """

    adapter: PromptAdapter
    fitted: Mapping[str, Pixels]
    patches: Mapping[str, Pixels]
    local: Mapping[str, Floats]

    @classmethod
    def of(cls, cell: Cell, adapter: PromptAdapter) -> Prompts:
        """Render the prompts of all parts."""
        fitted = {
            part: np.stack([fit_to_canvas(image, adapter.canvas) for image in images])
            for part, images in with_one_copy(cell)
        }
        rendered = {part: adapter.render(images) for part, images in fitted.items()}
        patches = {part: both[0] for part, both in rendered.items()}
        local = {part: both[1] for part, both in rendered.items()}
        return cls(adapter, fitted, patches, local)

    def painted(self, part: str, patches: Pixels, image: int | None = None) -> Pixels:
        """Return the canvases of a part with these patches; ``image`` is a gray value to show
        instead of the images.
        """
        shown = self.fitted[part] if image is None else np.full_like(self.fitted[part], image)
        canvas = self.adapter.canvas
        return np.stack(
            [
                np.asarray(compose(x, p, canvas, margin=False))
                for x, p in zip(shown, patches, strict=True)
            ]
        )


def prompted_images(cell: Cell, bank: Bank, surrogate: Backbone, pgn: Prompts, arm: str) -> Seen:
    """Yield the canvases of one prompted arm."""
    if arm == "iip":
        # Its prompt does not depend on the trunk, and its local head is not used: no need to teach
        # them.
        own = Prompts.of(cell, prompt(cell, bank, surrogate, arm, cell.recipe(trunk_epochs=0)))
        yield from ((part, own.painted(part, patches)) for part, patches in own.patches.items())
        return
    if arm == "blind_trunk":
        numbers = cell.recipe(trunk_epochs=0, head_teaches_trunk=False)
        numbers = replace(numbers, rates=replace(numbers.rates, trunk=0.0))
        own = Prompts.of(cell, prompt(cell, bank, surrogate, arm, numbers))
        yield from ((part, own.painted(part, patches)) for part, patches in own.patches.items())
        return
    predicted = {part: log_p.argmax(axis=1) for part, log_p in pgn.local.items()}
    if arm == "frames_out_of_fold":
        heads = bank.get(cell.location, "heads")
        predicted |= {part: heads[part].argmax(axis=1) for part in ("fit", "copy0")}
        arm = "random_frames"  # the same colors, and the same frames on choose and test
    rng = np.random.default_rng([cell.seed, *arm.encode()])
    frames = frames_by_class(pgn, arm, rng)
    for part, patches in pgn.patches.items():
        if arm == "pgn":
            yield part, pgn.painted(part, patches)
        elif arm == "gray_image":
            yield part, pgn.painted(part, patches, image=GREY)
        elif arm == "swapped":
            yield part, pgn.painted(part, patches[derangement(len(patches), rng)])
        elif arm == "swapped_in_class":
            donors = donors_in_class(pgn, part, rng)
            yield (
                part,
                pgn.painted(part, np.stack([pgn.patches[donor][row] for donor, row in donors])),
            )
        else:
            yield part, pgn.painted(part, frames[predicted[part]])


def derangement(n: int, rng: np.random.Generator) -> Integers:
    """Return a permutation of n >= 2 numbers that leaves none in its place: one cycle through all,
    at random.
    """
    order = rng.permutation(n)
    donors = np.empty(n, dtype=np.int64)
    donors[order] = np.roll(order, 1)
    return donors


def donors_in_class(pgn: Prompts, part: str, rng: np.random.Generator) -> list[tuple[str, int]]:
    """Choose for every image another one with the same local prediction: of its part, else of any,
    else itself.

    Its own part comes first because the head has memorized the fit images: their prompts may differ
    in kind.
    """
    predicted = {name: local.argmax(axis=1) for name, local in pgn.local.items()}
    donors = []
    for row, label in enumerate(predicted[part]):
        here = [(part, int(i)) for i in np.flatnonzero(predicted[part] == label) if i != row]
        elsewhere = [
            (name, int(i))
            for name, labels in predicted.items()
            if name != part and not name.startswith("copy")
            for i in np.flatnonzero(labels == label)
        ]
        choices = here or elsewhere or [(part, row)]
        donors.append(choices[rng.integers(len(choices))])
    return donors


def frames_by_class(pgn: Prompts, arm: str, rng: np.random.Generator) -> Pixels:
    """Return (C, K, P, P, 3) uint8, a frame for every class.

    ``random_frames`` have a random color in every cell. ``class_prompts`` are the prompts of the
    fit images that the local head assigns to the class: the one nearest to their mean; the mean of
    all where it assigns none.
    """
    patches, predicted = pgn.patches["fit"], pgn.local["fit"].argmax(axis=1)
    classes = pgn.local["fit"].shape[1]
    if arm == "random_frames":
        colors = rng.integers(0, 256, (classes, patches.shape[1], 1, 1, 3), dtype=np.uint8)
        return np.broadcast_to(colors, (classes, *patches.shape[1:]))
    if arm != "class_prompts":
        return patches[:0]
    frames = []
    for label in range(classes):
        own = patches[predicted == label] if (predicted == label).any() else patches
        distance = np.square(own.astype(np.float32) - own.mean(axis=0)).sum(axis=(1, 2, 3, 4))
        frames.append(own[distance.argmin()])
    return np.stack(frames)


def features(cell: Cell, backbone: Backbone) -> dict[str, Floats]:
    """Return the surrogate's pooled features of every part, through its own preprocessing: for the
    linear probe.
    """
    found = {}
    for part, images in cell.images.items():
        pixels = through_preprocessing(images, backbone)
        found[part] = linear_probe.features(backbone, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return {part: rows.astype(np.float32) for part, rows in found.items()}


def local_heads(cell: Cell) -> dict[str, Floats]:
    """Return (n, C) log-probabilities of a local head: out of fold on the fit images and their
    copies.

    The head is the one that a PGN's trunk starts from: the same network, recipe and images. On the
    other parts it is one that was trained on all fit images.
    """
    from pgn_client.imaging.geometry import Canvas

    canvas, numbers = Canvas.build(224, 16, "ring"), cell.recipe()
    images = {
        part: torch.from_numpy(np.stack([fit_to_canvas(x, canvas) for x in decoded])).permute(
            0, 3, 1, 2
        )
        for part, decoded in with_one_copy(cell)
    }
    labels, classes = cell.task.train.labels, len(cell.task.classes)

    def trained(rows: Integers) -> Callable[[torch.Tensor], Floats]:
        torch.manual_seed(cell.seed)
        head = LocalClassifier(classes)
        examples = Examples(images["fit"][rows], torch.from_numpy(labels[rows]))
        augmented = augment.get(cell.augmentation)
        train_local_head(head, examples, numbers, augmented, numbers.resolution)
        return lambda x: opinions(head, x, numbers.resolution)

    whole = trained(np.arange(len(labels)))
    found = {part: whole(images[part]) for part in ("choose", "test")}
    out_of_fold = [part for part in images if part not in found]
    found |= {part: np.zeros((len(labels), classes)) for part in out_of_fold}
    for train, held_out in stratified(labels, FOLDS, cell.seed):
        head = trained(train)
        for part in out_of_fold:
            found[part][held_out] = head(images[part][held_out])
    return found


@torch.inference_mode()
def opinions(head: LocalClassifier, images: torch.Tensor, resolution: int) -> Floats:
    """(n, 3, h, w) uint8 -> (n, C) log-probabilities."""
    head.eval()
    parts = [
        head.classify(generator_input(x, resolution)).log_softmax(dim=-1)
        for x in images.split(BATCH)
    ]
    return torch.cat(parts).double().numpy()


def say(cell: Cell, text: str) -> None:
    """Tell on stderr what is going on."""
    print(f"{cell.folder.name}, seed {cell.seed}: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
