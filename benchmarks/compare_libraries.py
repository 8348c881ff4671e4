"""What is left of a prompt on its way, for every kind of token library: over HTTP, behind JPEG, off
the grid.

    python benchmarks/compare_libraries.py SET --augment flip \
      --weights W --labels L --out libraries.jsonl

SET has ``train/``, ``val/`` and ``test/``. Each variant is trained alike, with its seed, through
the surrogate, and asked of a mock server that hosts the surrogate, on the same test images. One
JSON line a variant; what is there is not run again. ``raw`` are images as they are with the best
mapping: what JPEG costs them is what it costs anybody. JPEG in the loop also fits the mapping
behind it: the grey frame shows what that alone is worth. ``http_off`` sends the canvas without its
margin, as a client does that does not know of the server's resize and crop.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pgn_client.evaluation import baselines
from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.fidelity import STAGES, agreement, follow
from pgn_client.evaluation.queries import Asker
from pgn_client.evaluation.statistics import pooled_bootstrap
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import compose, fit_to_canvas, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.mapping.probability import right
from pgn_client.surrogate.backbone import Backbone, load
from pgn_client.surrogate.degradation import Wire, jpeg
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.training import Task, fit, load_task, recipe
from pgn_client.wire.client import AdaptedClient

JPEG, MOVED = Wire.parse("jpeg:75:420"), Wire.parse("shift:4+scale:0.12")
VARIANTS: dict[str, dict[str, Any]] = {
    "pixel": {},
    "smooth": {"library": "smooth"},
    "luma": {"library": "luma"},
    "pixel, JPEG in the loop": {"wire": JPEG},
    "smooth, JPEG in the loop": {"library": "smooth", "wire": JPEG},
    "luma, JPEG in the loop": {"library": "luma", "wire": JPEG},
    "latent, bounded": {"library": "latent"},
    "latent, pseudo-inverse": {"library": "latent", "inversion": "pseudo_inverse"},
    "reachable": {"library": "reachable"},
    "grey frame": {"method": "grey_frame"},
    "grey frame, JPEG in the loop": {"method": "grey_frame", "wire": JPEG},
    "pixel, moved in the loop": {"wire": MOVED},
    "grey frame, moved in the loop": {"method": "grey_frame", "wire": MOVED},
}
FRAME = "grey frame"
COLUMNS = (*STAGES[1:], "http_off")
Floats = NDArray[np.float64]


def raw(task: Task, model: Backbone, url: str, augment: str, seed: int) -> dict[str, Any]:
    """Images as they are: over HTTP, and re-encoded as JPEG before the surrogate's own resize and
    crop.
    """
    found, fitted = baselines.raw(
        Asker(lambda adapter: AdaptedClient(url, adapter)), task, augment, seed
    )
    surrogate = Surrogate(model, Canvas.build(model.input_size, model.patch_size, "full"))
    source = [model.labels.index(label) for label in fitted.mapping.source]

    def answers(quality: int, subsampling: int) -> Floats:
        lossy = (jpeg(open_image(path), quality, subsampling) for path in task.test.paths)
        seen = np.stack(
            [
                seen_by_server(image, model.profile, model.input_size, model.interpolation)
                for image in lossy
            ]
        )
        with torch.inference_mode():
            parts = [
                surrogate.pixel_scores(x)
                for x in torch.from_numpy(seen).permute(0, 3, 1, 2).split(64)
            ]
        return fitted.mapping.log_probs(torch.cat(parts).double().numpy()[:, source])

    stages = {"http_png": found.test, "jpeg95_444": answers(95, 0), "jpeg75_420": answers(75, 2)}
    return {"hits": _hits(stages, task)}


def measure(task: Task, model: Backbone, url: str, **options: Any) -> dict[str, Any]:
    """Train one variant and follow its prompts to the server.

    ``trained`` is validation accuracy in latent space with the mapping that was trained along: the
    mapping on the card is refitted on uint8 images, and so speaks against the latent stage of
    rows that no image reaches.
    """
    adapter = fit(task, model, progress=True, **options)
    if adapter.info["interrupted"]:
        raise KeyboardInterrupt
    ask, paths = Asker(lambda a: AdaptedClient(url, a)), task.test.paths
    fitted = np.stack([fit_to_canvas(open_image(path), adapter.canvas) for path in paths])
    patches, _ = adapter.render(fitted)
    bare = [
        compose(p, q, adapter.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)
    ]
    on, off = (baselines.read(adapter, answers) for answers in (ask(paths, adapter), ask(bare)))
    stages = follow(adapter, model, fitted, over_http=on)
    known = {"trained": adapter.info["metrics"]["latent"], "reach": adapter.info.get("reach")}
    known |= {"inversion": adapter.info["inversion"], "agreement": agreement(stages)}
    return known | {"hits": _hits(stages | {"http_off": off}, task)}


def _hits(stages: dict[str, Floats], task: Task) -> dict[str, str]:
    """One digit for each test image: 1 where the label is right."""
    found = {}
    for stage, log_p in stages.items():
        hits = right(log_p, task.test.labels)
        found[stage] = "".join("01"[int(hit)] for hit in hits)
    return found


Rows = dict[str, dict[str, Floats]]


def table(lines: list[dict[str, Any]]) -> str:
    """Accuracy at every stage and label agreement with latent below it, means over seeds; then
    paired differences.
    """
    text, rows = (
        [f"{'':<30}" + "".join(f"{stage:>12}" for stage in COLUMNS) + "     trained"],
        averaged(lines),
    )
    for name, stages in rows.items():
        own = [line for line in lines if line["variant"] == name]
        trained = [line["trained"] for line in own if "trained" in line]
        text.append(
            f"{name:<30}" + _cells(stages) + (f"{np.mean(trained):>12.3f}" if trained else "")
        )
        if trained:
            agreement = {
                stage: [line["agreement"][stage] for line in own] for stage in own[0]["agreement"]
            }
            text.append(f"{'  same label as latent':<30}" + _cells(agreement))
    return "\n".join([*text, "", *differences(rows)])


def averaged(lines: list[dict[str, Any]]) -> Rows:
    """Variant → stage → (n,) share of the seeds that are right about each test image."""
    rows: Rows = {}
    for name in dict.fromkeys(line["variant"] for line in lines):
        own = [line["hits"] for line in lines if line["variant"] == name]
        rows[name] = {
            s: np.mean([[int(hit) for hit in hits[s]] for hits in own], axis=0) for s in own[0]
        }
    return rows


def differences(rows: Rows) -> list[str]:
    """Lines of paired differences in points, with 95 % intervals over the test images."""
    out = []

    def told(what: str, difference: Floats) -> None:
        # of two costs: within -2, 2
        mean, low, high = (200 * x for x in pooled_bootstrap([difference / 2], seed=0))
        out.append(f"{what:<66}{mean:+6.1f} [{low:+.1f}, {high:+.1f}]")

    lossy = {name: stages["http_png"] - stages["jpeg75_420"] for name, stages in rows.items()}
    for name, stages in rows.items():
        frame = FRAME + name[name.index(",") :] if name.endswith("in the loop") else FRAME
        if name != "pixel" and "pixel" in rows:
            told(f"{name} - pixel, over HTTP", stages["http_png"] - rows["pixel"]["http_png"])
        told(f"{name}: what JPEG 75 4:2:0 costs", lossy[name])
        if name != "raw" and "raw" in rows:
            told(f"{name} - raw: what JPEG 75 4:2:0 costs", lossy[name] - lossy["raw"])
        if frame in rows and name not in (frame, "raw"):
            for stage in ("jpeg75_420", "http_off"):
                told(f"{name} - {frame}, {stage}", stages[stage] - rows[frame][stage])
    return out


def _cells(values: Mapping[str, Any]) -> str:
    return "".join(
        f"{np.mean(values[stage]):>12.3f}" if stage in values else f"{'':>12}" for stage in COLUMNS
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="SET")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    for name in ("--weights", "--labels", "--out"):
        parser.add_argument(name, type=Path, required=name == "--out")
    for name, number in (("--train", 240), ("--val", 120), ("--test", 350), ("--epochs", 4)):
        parser.add_argument(name, type=int, default=number)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--augment", default="shift")
    parser.add_argument("--only", nargs="*", help="names of variants, or raw")
    args = parser.parse_args()
    model = load(args.backbone, weights=args.weights, labels=args.labels)
    numbers = recipe(epochs=args.epochs, augment=args.augment)
    done = (
        [json.loads(line) for line in args.out.read_text().splitlines()]
        if args.out.exists()
        else []
    )
    files = {"--weights": args.weights, "--labels": args.labels}
    words = [
        "--model",
        args.backbone,
        *(str(x) for name, file in files.items() if file for x in (name, file)),
    ]
    same = {
        "set": args.data.name,
        "train": args.train,
        "val": args.val,
        "test": args.test,
        "epochs": args.epochs,
    }
    same |= {"augment": args.augment, "weights_sha256": model.weights_sha256}
    with local_server(words) as url:
        for seed, name in itertools.product(args.seeds, args.only or ["raw", *VARIANTS]):
            cell = same | {"seed": seed, "variant": name}
            if any(row == row | cell for row in done):
                continue
            whole = load_task(args.data, seed=seed).limited(test=args.test, seed=0)
            task = whole.limited(train=args.train, val=args.val, seed=seed)
            if name == "raw":
                found = raw(task, model, url, args.augment, seed)
            else:
                found = measure(task, model, url, recipe=numbers, seed=seed, **VARIANTS[name])
            done.append(cell | found)
            with args.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table([row for row in done if row == row | same and row["seed"] in args.seeds]))


if __name__ == "__main__":
    main()
