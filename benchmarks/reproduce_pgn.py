"""The PGN paper's setting (arXiv 2210.06466), over HTTP: ViT-B/32, the paper's image sets, its
recipe beside ours.

    python benchmarks/reproduce_pgn.py --data DATA --out OUT --device cuda
    python benchmarks/reproduce_pgn.py --data DATA --out OUT --device cuda \
      --sets eurosat dtd --presets default
    python benchmarks/reproduce_pgn.py --data DATA --out OUT --device cuda --backbone supervised

**Not run yet: no machine with hub access and a GPU was at hand; no result of this script is quoted
anywhere.** Only its plumbing is tested, with random weights and fake images
(tests/e2e/test_reproduce.py).

DATA is where torchvision downloads to (SVHN and Flowers102 need SciPy);
``DATA/SET/{train,val,test}/CLASS/*``, where it is there, is taken as it stands. Other sets are
exported once to ``OUT/sets/SET/{train,val,test}/CLASS/*.png``, reduced to 256 px at the shorter
edge. Official test images stay the test split. Where there is no official validation split, it is
20 % of the training images; sets without any split are split 60 / 20 / 20. Both are stratified
and seeded, the same for every ``--seed``. Everything is chosen on validation; test images are
only counted.

A finished (set, preset) is a line of ``OUT/results.jsonl`` and of stdout, and is not repeated; a
killed training goes on after its last epoch. A set that cannot be had is a line of stdout with the
reason, and the others go on. Exit status 0 if there is any result, else 1. A set's training
images are held in memory, tens of GB for some: see ``--limit``.

Deviation: from the paper.

- *CLIP's head.* timm has no text tower, so there is no zero-shot head here. But its CLIP image
  tower ends in CLIP's own projection, 768 → 512, as ``head``, and we host exactly that: an
  *embedding endpoint* whose 512 "classes" are the dimensions of the projected feature. It answers
  their softmax (the feature up to a constant, floored at 1e-6), and a linear mapping to the task's
  classes is trained along; its numbers are counted as learnable. The model is timm's QuickGELU
  variant, with which OpenAI trained; ``vit_base_patch32_clip_224.openai`` computes another
  function.
- *Supervised ViT-B/32* answers with its 1,000 ImageNet classes, with the same kind of mapping. DINO
  is out of scope.
- *The prompt is RGB*: 24 patches in a ring around the image, which is shrunk into 5 x 5 cells and
  sent as PNG; not 16 tokens appended behind the position embedding. The library holds pixels, not
  tokens.
- *Splits* are torchvision's, perhaps not the paper's, and nothing is selected on test images:
  accuracies cannot be put beside the paper's set by set. CLEVR counts objects, tested on its val
  images (test labels are not public). UCF101 (frames of videos) and RESISC45 are not in
  torchvision: they run where they are given as class folders.
- Mapping and local head learn beside the prompt, also in the preset ``paper`` (see
  ``training.recipe``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision import datasets

from pgn_client import AdaptedClient
from pgn_client.errors import ConfigurationError
from pgn_client.evaluation.candidate import PGN
from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.study import evaluate
from pgn_client.imaging.dataset import SPLITS
from pgn_client.surrogate import backbone
from pgn_client.surrogate.backbone import Backbone
from pgn_client.training import PRESETS, Task, fit, load_task, recipe

BACKBONES = {
    "clip": "vit_base_patch32_clip_quickgelu_224.openai",
    "supervised": "vit_base_patch32_224.augreg_in21k_ft_in1k",
}
PUBLISHED_LIBRARY = {"clip": 256, "supervised": 128}  # L
SPLIT_SEED = 0
SHORTER_EDGE = 256
talk = partial(print, file=sys.stderr, flush=True)
# root → split → labelled images; "" where there is no official split
Source = Callable[[Path], Mapping[str, Any]]


def from_torchvision(kind: str, **parts: dict[str, Any]) -> Source:
    """Return what downloads the parts of a set, each with the options that choose it."""

    def read(root: Path) -> dict[str, Any]:
        make = getattr(datasets, kind)
        return {
            "" if part == "whole" else part: make(root, download=True, **chosen)
            for part, chosen in parts.items()
        }

    return read


def named(*splits: str) -> dict[str, dict[str, Any]]:  # for sets whose splits are called as ours
    return {split: {"split": split} for split in splits}


NOT_IN_TORCHVISION = (
    "not in torchvision as images; put class folders into DATA/{}/train and DATA/{}/test"
)
CIFAR: dict[str, dict[str, Any]] = {"train": {"train": True}, "test": {"train": False}}
SETS: dict[str, Source | str] = {
    "cifar100": from_torchvision("CIFAR100", **CIFAR),
    "cifar10": from_torchvision("CIFAR10", **CIFAR),
    "flowers102": from_torchvision("Flowers102", **named(*SPLITS)),
    "food101": from_torchvision("Food101", **named("train", "test")),
    "eurosat": from_torchvision("EuroSAT", whole={}),
    "sun397": from_torchvision("SUN397", whole={}),
    "ucf101": NOT_IN_TORCHVISION.format("ucf101", "ucf101"),
    "svhn": from_torchvision("SVHN", **named("train", "test")),
    "oxfordpets": from_torchvision(
        "OxfordIIITPet", train={"split": "trainval"}, test={"split": "test"}
    ),
    "dtd": from_torchvision("DTD", **named(*SPLITS)),
    "resisc45": NOT_IN_TORCHVISION.format("resisc45", "resisc45"),
    "clevr": from_torchvision(
        "CLEVRClassification", train={"split": "train"}, test={"split": "val"}
    ),
}


def export(name: str, root: Path, out: Path, *, seed: int = SPLIT_SEED) -> Path:
    """Return the folder of a set with train, val and test; write it, whole or not at all, where
    there is none.
    """
    for folder in (root / name, out / name):
        if (folder / "train").is_dir():
            return folder
    source, partial = SETS[name], out / f"{name}.partial"
    if isinstance(source, str):
        raise ConfigurationError(source)
    shutil.rmtree(partial, ignore_errors=True)
    for part, images in source(root).items():
        write(images, partial / "unsplit" / part)
    task = load_task(partial / "unsplit", seed=seed)
    for split in SPLITS:
        for path in getattr(task, split).paths:
            target = partial / split / path.parent.name / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
    shutil.rmtree(partial / "unsplit")
    return partial.rename(out / name)


def write(images: Any, folder: Path) -> None:
    """Write labelled images as ``folder/LABEL-NAME/NUMBER.png``."""
    names = getattr(images, "classes", None)

    def save(i: int) -> None:
        image, label = images[i]
        below = folder / (
            f"{label:03d}-{names[label]}".replace("/", "-") if names else f"{label:03d}"
        )
        below.mkdir(parents=True, exist_ok=True)
        scale = SHORTER_EDGE / min(image.size)
        if scale < 1:
            image = image.resize(
                [round(side * scale) for side in image.size], Image.Resampling.BICUBIC
            )
        image.convert("RGB").save(below / f"{i:06d}.png")

    with ThreadPoolExecutor() as pool:
        list(pool.map(save, range(len(images))))


def read_task(name: str, args: argparse.Namespace) -> Task:
    """Return a set's task, limited as asked."""
    task = load_task(export(name, args.data, args.out / "sets"), seed=SPLIT_SEED)
    if not len(task.test):
        raise ConfigurationError("no test images; add test/")
    least = args.limit and max(args.limit, len(task.classes))
    return task.limited(train=least, val=least, test=args.limit, seed=SPLIT_SEED)


def run(
    task: Task, key: dict[str, Any], surrogate: Backbone, url: str, args: argparse.Namespace
) -> dict[str, Any]:
    """Train one prompt, send the images, and return the line that tells about it."""
    stem = args.out / "runs" / "_".join(str(value) for value in key.values())
    stem.parent.mkdir(exist_ok=True)
    state = Path(f"{stem}.state")
    library = PUBLISHED_LIBRARY.get(args.backbone) if key["preset"] == "paper" else None
    adapter = fit(
        task,
        surrogate,
        recipe=recipe(key["preset"], epochs=args.epochs, library_size=library),
        mapping="linear",
        seed=args.seed,
        state=state,
        resume=True,
        progress=sys.stderr.isatty(),
    )
    if adapter.info["interrupted"]:
        raise KeyboardInterrupt
    adapter.save(f"{stem}.safetensors")
    report = evaluate(
        task, lambda prompt: AdaptedClient(url, prompt), adapter, surrogate=surrogate, note=talk
    )
    state.unlink()
    row, retention = report.row(PGN), report.retention or {}
    return key | {
        "random_weights": args.random_weights,
        "split": report.split | {"seed": SPLIT_SEED},
        "classes": len(task.classes),
        "accuracy": row.accuracy,
        "ci95": row.ci95,
        # share of test images with latent float32's label
        "agreement": retention["agreement"]["http_png"],
        "learnable": adapter.info["learnable"],
        "report": report.to_json(),  # all rivals, paired differences, controls, retention, verdict
    }


def random_weights(name: str, out: Path) -> Path:
    """Write a freshly initialised model's weights: they test the plumbing and mean nothing."""
    torch.manual_seed(0)
    path = out / "random.safetensors"
    save_file({k: v.contiguous() for k, v in timm.create_model(name).state_dict().items()}, path)
    return path


def outstanding(
    args: argparse.Namespace, model: dict[str, Any], done: list[dict[str, Any]]
) -> list[Any]:
    """Return (task, key) of what is to be run; say of which sets there are no images, and why."""
    work = []
    for name in args.sets:
        common = {
            "set": name,
            **model,
            "seed": args.seed,
            "limit": args.limit,
            "epochs": args.epochs,
        }
        keys = [common | {"preset": preset} for preset in args.presets]
        keys = [key for key in keys if not any(key.items() <= line.items() for line in done)]
        try:
            task = read_task(name, args) if keys else None
        except Exception as error:  # downloads and archives fail in as many ways as there are hosts
            print(
                json.dumps({"set": name, "skipped": f"{type(error).__name__}: {error}"}), flush=True
            )
            continue
        work.extend((task, key) for key in keys)
    return work


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="torchvision's downloads, or SET/{train,val,test}"
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="exported sets, checkpoints, results.jsonl"
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS), metavar="SET")
    parser.add_argument(
        "--presets",
        nargs="+",
        choices=list(PRESETS),
        default=["paper", "default"],
        metavar="PRESET",
    )
    parser.add_argument(
        "--backbone", default="clip", help="clip, supervised, or any plain timm ViT (clip)"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--weights", type=Path, help="safetensors file; without it timm fetches them from the hub"
    )
    source.add_argument(
        "--random-weights",
        action="store_true",
        help="to test the plumbing; such results mean nothing",
    )
    parser.add_argument(
        "--limit", type=int, help="images per split, but one per class in train and val"
    )
    parser.add_argument("--epochs", type=int, help="instead of the preset's")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the training; the splits are the same for all"
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    args = options().parse_args(arguments)
    (args.out / "sets").mkdir(parents=True, exist_ok=True)
    name = BACKBONES.get(args.backbone, args.backbone)
    weights = random_weights(name, args.out) if args.random_weights else args.weights
    surrogate = backbone.load(name, weights=weights, device=args.device)
    results = args.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text("utf-8").splitlines()]
        if results.exists()
        else []
    )
    work = outstanding(args, {"backbone": name, "weights": surrogate.weights_sha256[:12]}, done)
    if work:
        server = [
            "--model",
            name,
            "--device",
            args.device,
            *(["--weights", str(weights)] if weights else []),
        ]
        with local_server(server) as url:
            for task, key in work:
                talk(f"{key['set']}, {key['preset']}: {len(task.train)} training images")
                line = json.dumps(run(task, key, surrogate, url, args), ensure_ascii=False)
                print(line, flush=True)
                with results.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
    return 0 if results.exists() else 1


if __name__ == "__main__":
    sys.exit(main())
