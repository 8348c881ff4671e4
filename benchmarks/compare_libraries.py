"""What is left of a prompt on its way, for every kind of token library: over HTTP, and behind a server's JPEG.

    python benchmarks/compare_libraries.py SET --augment flip --weights W --labels L --out libraries.jsonl

SET has ``train/``, ``val/`` and ``test/``. Each variant is trained alike, with its seed, through the surrogate, and
asked of a mock server that hosts the surrogate, on the same test pictures. One JSON line a variant; what is there is
not run again. ``raw`` are pictures as they are with the best mapping: what JPEG costs them is what it costs
anybody. JPEG in the loop also fits the mapping behind it: the grey frame shows what that alone is worth.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pgn_client import candidates
from pgn_client.backbone import Backbone, load
from pgn_client.candidates import Asker, Pictures
from pgn_client.client import AdaptedClient
from pgn_client.codecs import open_image
from pgn_client.compositor import seen_by_server
from pgn_client.demo import local_server
from pgn_client.geometry import Canvas
from pgn_client.retention import retain
from pgn_client.statistics import paired_bootstrap
from pgn_client.training import Task, fit, load_task, recipe
from pgn_client.training.surrogate import Surrogate
from pgn_client.training.wire import Wire, jpeg

JPEG = Wire.parse("jpeg:75:420")
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
}
STAGES = ("latent", "float", "clipped", "uint8", "http_png", "jpeg95_444", "jpeg75_420")


def raw(task: Task, model: Backbone, url: str, augment: str, seed: int) -> dict[str, Any]:
    """Pictures as they are: over HTTP, and re-encoded as JPEG before the surrogate's own resize and crop."""
    found, fitted = candidates.raw(Asker(lambda adapter: AdaptedClient(url, adapter)), task, augment, seed)
    surrogate = Surrogate(model, Canvas.build(model.input_size, model.patch_size, "full"))
    source = [model.labels.index(label) for label in fitted.mapping.source]

    def accuracy(quality: int, subsampling: int) -> float:
        lossy = (jpeg(open_image(path), quality, subsampling) for path in task.test.paths)
        seen = np.stack(
            [seen_by_server(image, model.profile, model.input_size, model.interpolation) for image in lossy]
        )
        with torch.inference_mode():
            parts = [surrogate.pixel_scores(x) for x in torch.from_numpy(seen).permute(0, 3, 1, 2).split(64)]
        answers = torch.cat(parts).double().numpy()[:, source]
        return float((fitted.mapping.log_probs(answers).argmax(axis=1) == task.test.labels).mean())

    hits = found.test.argmax(axis=1) == task.test.labels
    return {"http_png": float(hits.mean()), "jpeg95_444": accuracy(95, 0), "jpeg75_420": accuracy(75, 2)}


def measure(task: Task, model: Backbone, url: str, **options: Any) -> dict[str, Any]:
    """Train one variant and follow its prompts to the server."""
    adapter = fit(task, model, progress=True, **options)
    pictures = Pictures.load(task, adapter.canvas)
    found = candidates.prompted("", Asker(lambda a: AdaptedClient(url, a)), adapter, pictures)
    retention = retain(adapter, model, pictures.fitted_test, targets=task.test.labels, over_http=found.test)
    hits = "".join("01"[int(hit)] for hit in found.test.argmax(axis=1) == task.test.labels)
    return retention | {"hits": hits, "reach": adapter.info.get("reach"), "inversion": adapter.info["inversion"]}


def table(lines: list[dict[str, Any]]) -> str:
    """Accuracy at every stage, what JPEG 75 4:2:0 costs in points, and label agreement with latent below it."""
    text = [f"{'':<30}" + "".join(f"{stage:>12}" for stage in STAGES) + "   jpeg75 costs"]
    for line in lines:
        cost = 100 * (line["http_png"] - line["jpeg75_420"])
        text.append(f"{line['variant']:<30}" + _cells(line) + f"   {cost:+.1f}")
        if "agreement" in line:
            text.append(f"{'  same label as latent':<30}" + _cells(line["agreement"]))
    hits = {line["variant"]: np.array(list(line["hits"])) == "1" for line in lines if "hits" in line}
    for name, row in hits.items():
        if "pixel" in hits and name != "pixel":
            difference, low, high = paired_bootstrap(row, hits["pixel"], seed=0)
            text.append(f"{name} - pixel, over HTTP: {100 * difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]")
    return "\n".join(text)


def _cells(values: dict[str, float]) -> str:
    return "".join(f"{values[stage]:>12.3f}" if stage in values else f"{'':>12}" for stage in STAGES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="SET")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    for name in ("--weights", "--labels", "--out"):
        parser.add_argument(name, type=Path, required=name == "--out")
    for name, number in (("--train", 240), ("--val", 120), ("--test", 350), ("--epochs", 4), ("--seed", 0)):
        parser.add_argument(name, type=int, default=number)
    parser.add_argument("--augment", default="shift")
    parser.add_argument("--only", nargs="*", help="names of variants, or raw")
    args = parser.parse_args()
    model = load(args.backbone, weights=args.weights, labels=args.labels)
    whole = load_task(args.data, seed=args.seed).limited(test=args.test, seed=0)
    task = whole.limited(train=args.train, val=args.val, seed=args.seed)
    numbers = recipe(epochs=args.epochs, augment=args.augment)
    same = {"set": args.data.name, "seed": args.seed, "train": args.train, "val": args.val, "test": len(task.test)}
    same |= {"epochs": args.epochs, "augment": args.augment, "weights_sha256": model.weights_sha256}
    done = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    files = {"--weights": args.weights, "--labels": args.labels}
    words = ["--model", args.backbone, *(str(x) for name, file in files.items() if file for x in (name, file))]
    with local_server(words) as url:
        for name in args.only or ["raw", *VARIANTS]:
            if any(row == row | same | {"variant": name} for row in done):
                continue
            if name == "raw":
                found = raw(task, model, url, args.augment, args.seed)
            else:
                found = measure(task, model, url, recipe=numbers, seed=args.seed, **VARIANTS[name])
            done.append(same | {"variant": name} | found)
            with args.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    print(table([line for line in done if line == line | same]))


if __name__ == "__main__":
    main()
