"""One change of the recipe at a time, measured on training images that were not trained on.

    python benchmarks/ablate_recipe.py SET --augment dihedral \
      --weights W --labels L --out ablation.jsonl

SET has ``train/`` and ``val/``. ``--train`` images are trained on, ``--val`` choose epoch,
mapping and α, and ``--dev`` further images *of the training split* tell accuracies: the test
split is never opened. Everything is asked of the surrogate in this process, of uint8 images; one
JSON line a variant, and what is there is not run again. The last variants are the forward-only
search: neutral canvases of every layout, with a mapping fitted on them. At the end a table of all
lines is printed: `fused` is prompt ⊕ local, `gain` is that minus raw ⊕ local.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgn_client.evaluation import baselines
from pgn_client.evaluation.statistics import paired_bootstrap
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping import label_mapping as labels
from pgn_client.mapping.fusion import best_fusion, fuse
from pgn_client.surrogate import backbone
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import Split, Task, fit, load_task, recipe
from pgn_client.training.calibrate import deployed_features
from pgn_client.training.examples import Examples, load_images

METHODS = ("input_independent", "padding", "no_prompt", "grey_frame", "masked", "low_rank", "blend")
LAYOUTS = ("full", "ring", "corner", "rows:1", "rows:2")


def variants(epochs: int, augment: str) -> dict[str, dict[str, Any]]:
    """Name → arguments of ``fit``."""
    default = recipe(epochs=epochs, augment=augment)

    def change(**numbers: Any) -> dict[str, Any]:
        return {"recipe": replace(default, **numbers)}

    def rate(**rates: float) -> dict[str, Any]:
        return change(rates=replace(default.rates, **rates))

    return {
        "default": {},
        **{name: {"method": name} for name in METHODS},
        **{f"layout {name}": {"layout": name} for name in LAYOUTS[2:]},
        "cold mapping": change(warm_mapping=False),
        "cold trunk": change(trunk_epochs=0),
        "flat start": change(peaked_start=False),
        "no augmentation": change(augment="none"),
        "no smoothing": change(label_smoothing=0.0),
        "no local loss": change(local_weight=0.0),
        "batch 8": change(batch_size=8),
        "batch 32": change(batch_size=32),
        "library 16": change(library_size=16),
        "library 256": change(library_size=256),
        "resolution 48": change(resolution=48),
        "twice the epochs": change(epochs=2 * epochs),
        "mapping rate x 4": rate(mapping=2e-3),
        "trunk rate x 4": rate(trunk=2e-3),
    }  # fmt: skip


def splits(folder: Path, train: int, val: int, dev: int, seed: int) -> Task:
    """A task whose test split is made of training images that are not trained on."""
    whole = load_task(folder, seed=seed)
    task = whole.limited(train=train, val=val, seed=seed)
    used = set(task.train.paths)
    rest = whole.train.take([i for i, path in enumerate(whole.train.paths) if path not in used])
    return replace(task, test=rest).limited(test=dev, seed=seed)


def raw(
    model: backbone.Backbone, task: Task, augment: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of raw images on validation and development images, with the best
    mapping.
    """

    def features(images: list[Any]) -> np.ndarray:
        seen = np.stack(
            [
                seen_by_server(open_image(x), model.profile, model.input_size, model.interpolation)
                for x in images
            ]
        )
        surrogate = Surrogate(model, Canvas.build(model.input_size, model.patch_size, "full"))
        pixels = torch.from_numpy(seen).permute(0, 3, 1, 2)
        with torch.inference_mode():
            return torch.cat([surrogate.pixel_scores(x) for x in pixels.split(64)]).double().numpy()

    clean, val, dev = (features(list(split.paths)) for split in (task.train, task.val, task.test))
    blocks = [
        clean,
        *(features(block) for block in baselines.augmented_blocks(task.train, augment, seed)),
    ]
    held_out = val, task.val.labels

    def mapped(x: np.ndarray, times: int) -> labels.Fitted:
        targets = np.tile(task.train.labels, times)
        return labels.fit(
            x, targets, model.labels, task.classes, val=held_out, copies=times, seed=seed
        )

    fits = mapped(clean, 1), mapped(np.concatenate(blocks), len(blocks))
    best = min(fits, key=lambda fitted: min(fitted.log_loss.values())).mapping
    return best.log_probs(val), best.log_probs(dev)


def measure(
    model: backbone.Backbone, task: Task, raw_rows: tuple[np.ndarray, np.ndarray], **options: Any
) -> dict[str, Any]:
    """Train one variant; accuracies on the development images."""
    adapter = fit(task, model, **options)
    surrogate = Surrogate(model, adapter.canvas)

    def answers(split: Split) -> tuple[np.ndarray, np.ndarray]:
        examples = Examples(load_images(split, adapter.canvas), torch.from_numpy(split.labels))
        features, local = deployed_features(adapter, surrogate, examples)
        return adapter.mapping.log_probs(features), local

    (prompt_val, local_val), (prompt, local) = answers(task.val), answers(task.test)
    truth, val_truth = task.test.labels, task.val.labels

    fused = [
        fuse(rows, local, best_fusion(rows_val, local_val, val_truth))
        for rows_val, rows in (raw_rows, (prompt_val, prompt))
    ]
    ways = {
        "raw": raw_rows[1],
        "local": local,
        "prompt": prompt,
        "raw+local": fused[0],
        "prompt+local": fused[1],
    }
    hits = {
        way: "".join("01"[int(hit)] for hit in rows.argmax(axis=1) == truth)
        for way, rows in ways.items()
    }
    metrics = adapter.info["metrics"]
    return {"mapping": metrics["mapping"], "perplexity": metrics["perplexity"], "hits": hits}


def forward_only(model: backbone.Backbone, task: Task, layout: str, seed: int) -> dict[str, Any]:
    """Neutral canvases of a layout: what the image loses by giving room to prompts."""
    canvas = Canvas.build(model.input_size, model.patch_size, layout)
    surrogate = Surrogate(model, canvas)
    with torch.inference_mode():
        train, val, dev = (
            torch.cat([surrogate.scores(x) for x in load_images(split, canvas).split(64)])
            .double()
            .numpy()
            for split in (task.train, task.val, task.test)
        )
    held_out = val, task.val.labels
    fitted = labels.fit(
        train, task.train.labels, model.labels, task.classes, val=held_out, seed=seed
    )
    hits = fitted.mapping.log_probs(dev).argmax(axis=1) == task.test.labels
    return {"neutral": round(float(hits.mean()), 4), "kind": fitted.mapping.kind}


def table(lines: list[dict[str, Any]]) -> str:
    """All variants of one set and seed, each against the default on the same images."""
    hits = {
        line["variant"]: {way: np.array(list(row)) == "1" for way, row in line["hits"].items()}
        for line in lines
        if "hits" in line
    }
    text = [
        "variant                     prompt  - default [95 %]         local   fused   gain [95 %]"
    ]
    for name, row in hits.items():
        against = (
            _points(row["prompt"], hits["default"]["prompt"])
            if name != "default" and "default" in hits
            else ""
        )
        gain = _points(row["prompt+local"], row["raw+local"])
        means = [f"{row[way].mean():.3f}" for way in ("prompt", "local", "prompt+local")]
        text.append(f"{name:<27} {means[0]:<7} {against:<24} {means[1]:<7} {means[2]:<7} {gain}")
    text += [
        f"raw + mapping               {row['raw'].mean():.3f}" for row in list(hits.values())[:1]
    ]
    text += [
        f"{line['variant']:<27} {line['neutral']:.3f}   ({line['kind']})"
        for line in lines
        if "neutral" in line
    ]
    return "\n".join(text)


def _points(a: np.ndarray, b: np.ndarray) -> str:
    difference, low, high = paired_bootstrap(a, b, seed=0)
    return f"{100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="SET")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    for name in ("--weights", "--labels", "--out"):
        parser.add_argument(name, type=Path, required=name == "--out")
    for name, number in (
        ("--train", 240),
        ("--val", 120),
        ("--dev", 400),
        ("--epochs", 5),
        ("--seed", 0),
    ):
        parser.add_argument(name, type=int, default=number)
    parser.add_argument("--augment", default="shift")
    parser.add_argument("--only", nargs="*", help="names of variants")
    args = parser.parse_args()
    model = backbone.load(args.backbone, weights=args.weights, labels=args.labels)
    task = splits(args.data, args.train, args.val, args.dev, args.seed)
    chosen = variants(args.epochs, args.augment)
    base = {"recipe": recipe(epochs=args.epochs, augment=args.augment), "seed": args.seed}
    same = {
        "set": args.data.name,
        "seed": args.seed,
        "train": args.train,
        "epochs": args.epochs,
        "dev": len(task.test),
    }
    same |= {"val": args.val, "augment": args.augment, "weights_sha256": model.weights_sha256}
    done = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    raw_rows = raw(model, task, args.augment, args.seed)
    for name in args.only or [*chosen, *(f"forward {layout}" for layout in LAYOUTS)]:
        if any(row == row | same | {"variant": name} for row in done):
            continue
        if name.startswith("forward "):
            found = forward_only(model, task, name.removeprefix("forward "), args.seed)
        else:
            found = measure(model, task, raw_rows, **base | chosen[name])
        done.append(same | {"variant": name} | found)
        with args.out.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    print(table([line for line in done if line == line | same]))


if __name__ == "__main__":
    main()
