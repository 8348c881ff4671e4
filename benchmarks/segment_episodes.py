"""Few-shot segmentation, EXPRES beside a linear baseline: mean IoU over episodes.

    python benchmarks/compose_masks.py TEXTURES BACKGROUNDS --out DIR --seed 0
    python benchmarks/segment_episodes.py DIR --weights W --labels L \
      --out episodes.jsonl --pictures grid.png

An episode has N classes and the background, K support images of each from ``DIR/train``, and
query images from ``DIR/test``; its seed draws it, and everything random in what is trained on it.
One JSON line for each episode and method; what is there is not run again. At the end tables: mean
IoU, and paired differences to the linear baselines.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pgn_client.evaluation.statistics import pooled_bootstrap
from pgn_client.segmentation import (
    Episode,
    LinearHead,
    fit_linear,
    fit_prompts,
    load_masked,
    mean_iou,
    patch_tokens,
    sample,
    tuned,
    versions,
)
from pgn_client.segmentation.linear import enlarged
from pgn_client.surrogate.backbone import Backbone, load

Row = dict[str, Any]
LINEAR, PIXELS, FIRST = "linear", "linear, pixel loss", "expres"
PROMPTED: dict[str, dict[str, bool]] = {
    FIRST: {"head": True, "prototypes": True},
    "expres, head alone": {"head": True, "prototypes": False},
    "expres, prototypes alone": {"head": False, "prototypes": True},
}
METHODS = (LINEAR, PIXELS, *PROMPTED)
COLOURS = (
    (20, 20, 20),
    (230, 80, 60),
    (70, 160, 230),
    (240, 200, 70),
    (130, 200, 90),
    (180, 110, 200),
)


class Runs:
    """All methods on one episode; what they share is computed once."""

    def __init__(self, episode: Episode, backbone: Backbone, seed: int) -> None:
        self.episode, self.backbone, self.seed = episode, backbone, seed
        self.seen = versions(backbone, episode.support, episode.support_masks)
        self.linear = fit_linear(self.seen, backbone.patch_size, len(episode.classes))
        self.pixels = tuned(self.linear, self.seen, seed=seed)

    def predicted(self, method: str) -> Tensor:
        """Return what a method says of the query images, (Q, H, W) int64."""
        if method in PROMPTED:
            switches = PROMPTED[method]
            head = self.pixels if switches["head"] else None
            model = fit_prompts(
                self.episode, self.backbone, head, prototypes=switches["prototypes"], seed=self.seed
            )
            return model.predict(self.episode.query, self.backbone)
        return self._by(self.linear if method == LINEAR else self.pixels)

    def _by(self, head: LinearHead) -> Tensor:
        scores = head(patch_tokens(self.backbone, self.episode.query))
        return enlarged(scores, self.backbone.input_size).argmax(1)


def run(args: argparse.Namespace, backbone: Backbone, draw: Callable[..., Episode]) -> None:
    """Run what is missing."""
    for seed in args.seeds:
        for shots in args.shots:
            done = {r["method"] for r in read(args.out) if (r["seed"], r["shots"]) == (seed, shots)}
            missing = [m for m in args.methods if m not in done]
            if not missing:
                continue
            runs = Runs(draw(shots=shots, seed=seed), backbone, seed)
            for method in missing:
                start = time.monotonic()
                miou = mean_iou(
                    runs.predicted(method), runs.episode.query_masks, len(runs.episode.classes)
                )
                row = {"seed": seed, "shots": shots, "method": method, "miou": round(miou, 4)}
                append(args.out, row | {"seconds": round(time.monotonic() - start, 1)})


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean IoU of each method, and its paired differences to both linear baselines, with 95 %
    intervals.
    """
    lines = []
    for shots in sorted({r["shots"] for r in rows}):
        by_method = {
            m: {r["seed"]: r["miou"] for r in rows if (r["shots"], r["method"]) == (shots, m)}
            for m in METHODS
        }
        lines.append(f"{shots}-shot{'':<22} episodes   mIoU   {'− ' + LINEAR:<22}{'− ' + PIXELS}")
        for method, found in by_method.items():
            if found:
                gaps = "".join(
                    f"{difference(found, by_method[rival]):<22}" for rival in (LINEAR, PIXELS)
                )
                lines.append(
                    (
                        f"  {method:<26}{len(found):>9}{np.mean(list(found.values())):>8.3f} "
                        f"  {gaps}"
                    ).rstrip()
                )
    return "\n".join(lines)


def difference(found: Mapping[int, float], rival: Mapping[int, float]) -> str:
    """Mean difference in points over common episodes, with the 95 % bootstrap interval over
    episodes.
    """
    common = sorted(found.keys() & rival.keys())
    if not common or found is rival:
        return ""
    gap, low, high = pooled_bootstrap([np.array([found[s] - rival[s] for s in common])], seed=0)
    return f"{100 * gap:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def grid(runs: Runs, path: Path, size: int = 112) -> None:
    """Draw a row for each query image: image, truth, the linear head trained by pixels,
    EXPRES.
    """
    from matplotlib.figure import Figure

    episode = runs.episode
    masks = [episode.query_masks.long(), runs.predicted(PIXELS), runs.predicted(FIRST)]
    columns = {"picture": episode.query.permute(0, 2, 3, 1).numpy()}
    columns |= {n: painted(m) for n, m in zip(("truth", PIXELS, FIRST), masks, strict=True)}
    figure = Figure(figsize=(4 * size / 72, len(episode.query) * size / 72), layout="constrained")
    axes = figure.subplots(len(episode.query), len(columns))
    for column, (name, images) in enumerate(columns.items()):
        axes[0, column].set_title(name, fontsize=9)
        for row, image in enumerate(images):
            axes[row, column].imshow(image)
            axes[row, column].set_axis_off()
    figure.supxlabel(", ".join(episode.classes), fontsize=8)
    figure.savefig(path, dpi=120)


def painted(masks: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(n, H, W) classes → (n, H, W, 3); ignored pixels are white."""
    colours = torch.full((256, 3), 255, dtype=torch.uint8)
    colours[: len(COLOURS)] = torch.tensor(COLOURS, dtype=torch.uint8)
    return colours[masks].numpy()


def append(path: Path, row: Row) -> None:
    """Add a line to a file of runs."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read(path: Path) -> list[Row]:
    """Return all lines of a file of runs."""
    return (
        [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    )


def main() -> None:
    """Run what is missing, print the tables."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("masked", type=Path, metavar="DIR")
    p.add_argument("--backbone", default="vit_tiny_patch16_224")
    p.add_argument("--weights", type=Path)
    p.add_argument("--labels", type=Path)
    p.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS, metavar="M")
    p.add_argument("--seeds", nargs="+", type=int, default=list(range(16)))
    p.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    p.add_argument("--ways", type=int, default=3)
    p.add_argument("--queries", type=int, default=6)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument(
        "--pictures",
        type=Path,
        metavar="PNG",
        help="draw the first seed's queries with the most shots",
    )
    args = p.parse_args()
    backbone = load(args.backbone, weights=args.weights, labels=args.labels)
    train, test = (load_masked(args.masked / split) for split in ("train", "test"))
    draw = partial(sample, train, test, ways=args.ways, queries=args.queries)
    run(args, backbone, draw)
    print(table(read(args.out)))
    if args.pictures:
        episode = draw(shots=max(args.shots), seed=args.seeds[0])
        grid(Runs(episode, backbone, args.seeds[0]), args.pictures)


if __name__ == "__main__":
    main()
