"""EXPRES beside VPT, the linear probe, fine-tuning and PGN: by number of prompts, and without each
kind of residual.

    python benchmarks/compare_expres.py SET:AUGMENT ... --weights W --labels L --out expres.jsonl

Each SET has ``train/``, ``val/`` and ``test/``. All variants see the same images of a seed with
the same augmentation and numbers of a recipe, and are tested on images that are the same for all
seeds. All but PGN are white boxes. PGN's trunk first learns the task alone, as always; its prompts
are painted into uint8 images, which the model reads as an endpoint would, and its local head has
no say. The linear probe is fitted, not trained.

One JSON line a run; what is there is not run again, so that several processes may work on parts
(``--variants``, ``--seeds``) of one file. At the end tables, of accuracies and of paired
differences to ``expres``, and with ``--plot`` accuracy against prompts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgn_client.evaluation import baselines
from pgn_client.evaluation.statistics import accuracy_interval, pooled_bootstrap
from pgn_client.prompting import methods
from pgn_client.prompting.methods.base import RESIDUAL_SITES
from pgn_client.prompting.methods.expres import SITES, multiply_adds
from pgn_client.surrogate.backbone import Backbone, float32_convolutions, load
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import Recipe, Task, fit, fit_white_box, load_task, recipe
from pgn_client.training.calibrate import deployed_features
from pgn_client.training.examples import load_examples

Floats = NDArray[np.float64]
FIRST = "expres"
DEEP = "vpt_deep"
PROBE = "linear_probe"
VARIANTS: dict[str, dict[str, Any]] = {
    FIRST: {"method": "expres"},
    DEEP: {"method": "vpt_deep"},
    "vpt_shallow": {"method": "vpt_shallow"},
    "fine_tune": {"method": "fine_tune"},
    "pgn": {"method": "pgn"},
    **{f"expres, {m} prompts": {"method": "expres", "prompt_tokens": m} for m in (1, 3, 30)},
    **{
        f"vpt_deep, {m} prompts": {"method": "vpt_deep", "prompt_tokens": m}
        for m in (1, 3, 30, 100)
    },
    "expres without residuals": {"method": "expres", "sites": ()},
    **{
        f"expres without {site}": {
            "method": "expres",
            "sites": tuple(s for s in RESIDUAL_SITES if s != site),
        }
        for site in RESIDUAL_SITES
    },
    "expres with norm2 and mlp": {"method": "expres", "sites": SITES},
}


def setting(args: argparse.Namespace, variant: str, augment: str) -> dict[str, Any]:
    """Return what runs must have in common with these options to be told beside them."""
    rate = (
        getattr(methods.get(VARIANTS[variant]["method"]), "rate", None)
        if variant in VARIANTS
        else None
    )
    told = {name: getattr(args, name) for name in ("backbone", "epochs", "train", "val", "test")}
    return told | {"variant": variant, "augment": augment, "rate": rate}


def task_of(folder: Path, seed: int, args: argparse.Namespace) -> Task:
    """Test images by a seed of their own, training and validation images by ``seed``."""
    whole = load_task(folder, seed=0).limited(test=args.test, seed=0)
    return whole.limited(train=args.train, val=args.val, seed=seed)


def measure(
    task: Task, model: Backbone, variant: str, augment: str, seed: int, epochs: int
) -> dict[str, Any]:
    """Train one variant; hits on the test images, and what was learnt for them."""
    if variant == PROBE:
        found = baselines.probe(model, task, augment, seed)
        log_p, learnt = found.test, (model.width + 1) * len(task.classes)
    else:
        options = dict(VARIANTS[variant])
        numbers = recipe(
            epochs=epochs, augment=augment, **{k: v for k, v in options.items() if k != "method"}
        )
        answers = painted if variant == "pgn" else inside
        log_p, learnt = answers(task, model, options["method"], numbers, seed)
    hits = log_p.argmax(axis=1) == task.test.labels
    return {"hits": hits.astype(int).tolist(), "learnable": learnt}


def inside(
    task: Task, model: Backbone, method: str, numbers: Recipe, seed: int
) -> tuple[Floats, int]:
    """Train a white box; log-probabilities of the test images, and how many numbers were
    learnt.
    """
    trained = fit_white_box(task, model, method, recipe=numbers, seed=seed)
    return trained.log_probs(task.test), sum(trained.learnable().values())


def painted(
    task: Task, model: Backbone, method: str, numbers: Recipe, seed: int
) -> tuple[Floats, int]:
    """Train prompts that are painted into the image; as ``inside``, of the prompt alone, without
    its local head.
    """
    adapter = fit(task, model, method=method, recipe=numbers, seed=seed)
    if adapter.info["interrupted"]:
        raise KeyboardInterrupt
    test = load_examples(task.test, adapter.canvas, model.device)
    with float32_convolutions():
        scores, _ = deployed_features(adapter, Surrogate(model, adapter.canvas), test)
    learnt = adapter.info["learnable"]
    return adapter.mapping.log_probs(scores), learnt["prompt"] + learnt["mapping"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Accuracies, and differences to EXPRES with ten prompts, averaged over seeds image by
    picture, then sets.
    """
    found = {(r["set"], r["seed"], r["variant"]): np.array(r["hits"], dtype=float) for r in rows}
    sets = list(dict.fromkeys(r["set"] for r in rows))
    lines = [
        f"{'':<28}" + "".join(f"{name[:11]:>12}" for name in sets) + "        mean             "
        "      − expres"
    ]
    for variant in [PROBE, *VARIANTS]:
        seeds = {
            s: [k[1] for k in found if k[0] == s and k[2] == variant and (s, k[1], FIRST) in found]
            for s in sets
        }
        there = [s for s in sets if seeds[s]]
        if not there:
            continue
        own = [np.mean([found[s, k, variant] for k in seeds[s]], axis=0) for s in there]
        gaps = [
            np.mean([found[s, k, variant] - found[s, k, FIRST] for k in seeds[s]], axis=0)
            for s in there
        ]
        shown = dict(zip(there, own, strict=True))
        (mean, *_), (gap, low, high) = pooled_bootstrap(own, seed=0), pooled_bootstrap(gaps, seed=0)
        cells = "".join(
            f"{accuracy_interval(shown[s])[0]:>12.3f}" if s in shown else f"{'':>12}" for s in sets
        )
        runs = sum(map(len, seeds.values()))
        lines.append(
            f"{variant:<28}{cells}{mean:>12.3f}   {100 * gap:+5.1f} [{100 * low:+.1f}, "
            f"{100 * high:+.1f}]  {runs} runs"
        )
    return "\n".join(lines)


def costs(model: Backbone) -> str:
    """Learnable numbers and multiplications of one image's blocks, for the model and for
    ViT-B/16.
    """
    tokens = (model.input_size // model.patch_size) ** 2 + 1
    lines = [
        "prompts   learnable, of the backbone     multiply-adds an image, of those without prompts"
    ]
    for width, depth, size in ((model.width, model.depth, count(model)), (768, 12, 85_798_656)):
        for m in (1, 3, 10, 30, 100):
            learnt, work = (
                m * width * (1 + depth * len(RESIDUAL_SITES)),
                multiply_adds(tokens + m, width, depth),
            )
            share = work / multiply_adds(tokens, width, depth)
            lines.append(
                f"{m:>7}{learnt:>12,}{learnt / size:>11.2%} of {size:,}{work:>18,}{share:>8.2f}"
            )
    return "\n".join(lines)


def count(model: Backbone) -> int:
    """Numbers in the backbone, without its head."""
    head = sum(p.numel() for p in model.model.get_classifier().parameters())
    return sum(p.numel() for p in model.model.parameters()) - head


def curves(rows: Iterable[Mapping[str, Any]]) -> tuple[dict[str, dict[int, float]], int]:
    """Mean accuracy by method and number of prompts, over those runs (a set, a seed) that have all
    points; how many.
    """
    points: dict[tuple[str, int], dict[tuple[str, int], float]] = defaultdict(dict)
    for row in rows:
        method, _, rest = row["variant"].partition(", ")
        if method in (FIRST, DEEP) and (not rest or rest.endswith(" prompts")):
            m = int(rest.split()[0]) if rest else Recipe().prompt_tokens
            points[method, m][row["set"], row["seed"]] = float(np.mean(row["hits"]))
    common = sorted(set.intersection(*map(set, points.values()))) if points else []
    means: dict[str, dict[int, float]] = {FIRST: {}, DEEP: {}}
    for (method, m), found in sorted(points.items()) if common else ():
        means[method][m] = float(np.mean([found[run] for run in common]))
    return means, len(common)


def reached(rows: Iterable[Mapping[str, Any]]) -> str:
    """Say with how many prompts VPT-deep is as good as EXPRES."""
    means, runs = curves(rows)
    rival = means[DEEP]
    if not (rival and means[FIRST]):
        return "accuracy against prompts: no set and seed has all points yet"
    lines = [
        f"accuracy against prompts, mean of {runs} runs; differences and their intervals are above"
    ]
    for m, accuracy in means[FIRST].items():
        enough = [n for n, other in rival.items() if other >= accuracy]
        found = (
            f"with {enough[0]} prompts"
            if enough
            else (f"with none of {', '.join(map(str, rival))} prompts")
        )
        lines.append(f"expres, {m} prompts: {accuracy:.3f}; vpt_deep reaches that {found}")
    return "\n".join(
        lines + [f"vpt_deep, {n} prompts: {accuracy:.3f}" for n, accuracy in rival.items()]
    )


def plot(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Draw accuracy against the number of prompts."""
    from matplotlib.figure import Figure

    means, runs = curves(rows)
    figure = Figure(figsize=(5, 3.6), layout="constrained")
    axes = figure.subplots()
    for method, points in means.items():
        axes.plot(list(points), list(points.values()), marker="o", label=method)
    axes.set_xscale("log")
    axes.set_xlabel("prompts")
    axes.set_ylabel(f"accuracy, mean of {runs} runs")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run what is missing, print the tables."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("sets", nargs="+", metavar="SET:AUGMENT")
    p.add_argument("--backbone", default="vit_tiny_patch16_224")
    p.add_argument("--weights", type=Path)
    p.add_argument("--labels", type=Path)
    p.add_argument(
        "--variants", nargs="+", default=[PROBE, *VARIANTS], choices=[PROBE, *VARIANTS], metavar="V"
    )
    p.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    p.add_argument("--epochs", type=int, default=Recipe().epochs)
    for name, most in (("train", 240), ("val", 120), ("test", 350)):
        p.add_argument(f"--{name}", type=int, default=most)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--plot", type=Path, metavar="PNG")
    args = p.parse_args()
    model = load(args.backbone, weights=args.weights, labels=args.labels)
    for variant in args.variants:
        for seed in args.seeds:
            for text in args.sets:
                folder, _, augment = text.partition(":")
                key = setting(args, variant, augment or "shift") | {
                    "set": Path(folder).name,
                    "seed": seed,
                }
                if not any(key.items() <= row.items() for row in read(args.out)):
                    start = time.monotonic()
                    task = task_of(Path(folder), seed, args)
                    row = key | measure(task, model, variant, key["augment"], seed, args.epochs)
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(
                            json.dumps(row | {"seconds": round(time.monotonic() - start, 1)}) + "\n"
                        )
    rows = [
        r
        for r in read(args.out)
        if setting(args, r["variant"], r.get("augment", "")).items() <= r.items()
    ]
    print(table(rows), reached(rows), costs(model), sep="\n\n")
    if args.plot and curves(rows)[1]:
        plot(rows, args.plot)


def read(path: Path) -> list[dict[str, Any]]:
    """Return all lines of a file of runs."""
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


if __name__ == "__main__":
    main()
