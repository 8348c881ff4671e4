"""Every label mapping on the same raw answers of an endpoint: same queries, no prompt.

    python benchmarks/compare_mappings.py SET… --weights W --labels L --seeds 0 1

Each SET has ``train/`` and ``test/``. The surrogate is hosted in a mock server and asked over HTTP
for images as they are. Accuracy on the test images, mean over seeds (each draws its training
images), and paired differences to BLM+ with 95 % intervals over the test images.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.statistics import pooled_bootstrap
from pgn_client.mapping import label_mapping as labels
from pgn_client.training import Task, load_task
from pgn_client.types import Answer
from pgn_client.wire.client import AdaptedClient

Floats = NDArray[np.float64]
Rows = dict[str, Floats]


def right(task: Task, train: Sequence[Answer], test: Sequence[Answer], seed: int) -> Rows:
    """Kind → (n,) whether it is right about each test image."""
    source = labels.vocabulary(train)
    x, y = labels.log_scores(train, source), labels.log_scores(test, source, strict=False)
    # flm is ilm here: answers are fixed
    kinds = [kind for kind in labels.KINDS if kind not in ("identity", "flm")]
    fits = {
        k: labels.fit(x, task.train.labels, source, task.classes, kinds=(k,), seed=seed).mapping
        for k in kinds
    }
    return {
        kind: (m.log_probs(y).argmax(axis=1) == task.test.labels).astype(float)
        for kind, m in fits.items()
    }


def measure(folder: Path, url: str, args: argparse.Namespace) -> Rows:
    """Kind → (n,) share of the seeds that are right about each test image of one set."""
    runs = []
    with AdaptedClient(url, None) as client:
        for seed in args.seeds:
            whole = load_task(folder, seed=seed).limited(test=args.test, seed=0)
            task = whole.limited(train=args.train, seed=seed)
            train, test = (client.answers(split.paths) for split in (task.train, task.test))
            runs.append(right(task, train, test, seed))
    return {kind: np.mean([run[kind] for run in runs], axis=0) for kind in runs[0]}


def table(sets: dict[str, Rows]) -> str:
    """Accuracy of every kind on every set, and how far each is from BLM+."""
    text = [
        f"{'':<10}" + "".join(f"{name:>13}" for name in sets) + f"{'mean':>9}   less blm+, "
        "in points"
    ]
    for kind in next(iter(sets.values())):
        rows = [rows[kind] for rows in sets.values()]
        means = [float(row.mean()) for row in rows]
        mean, low, high = (
            100 * x for x in pooled_bootstrap([r[kind] - r["blm+"] for r in sets.values()], seed=0)
        )
        cells = "".join(f"{value:>13.3f}" for value in means)
        text.append(
            f"{kind:<10}{cells}{np.mean(means):>9.3f}   {mean:+.1f} [{low:+.1f}, {high:+.1f}]"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", metavar="SET")
    parser.add_argument("--model", default="vit_tiny_patch16_224")
    for name in ("--weights", "--labels"):
        parser.add_argument(name, type=Path)
    for name, number in (("--train", 240), ("--test", 350)):
        parser.add_argument(name, type=int, default=number)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    files = {"--weights": args.weights, "--labels": args.labels}
    words = [
        "--model",
        args.model,
        *(str(x) for name, file in files.items() if file for x in (name, file)),
    ]
    with local_server(words) as url:
        print(table({folder.name: measure(folder, url, args) for folder in args.data}))


if __name__ == "__main__":
    main()
