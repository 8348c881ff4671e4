"""What a probe is worth: prompts for a server that crops and re-encodes, with and without its
``endpoint.json``.

    python benchmarks/probe_pays.py SET --backbone B --weights W --labels L \
      --profile resize_crop:248:224 --out DIR

Two servers host one model: one takes images as they are, one resizes, crops and re-encodes them
as JPEG. Neither says so: both are asked in Hugging Face's form. Four ways are compared on the same
test images, over HTTP:

    direct PNG    trained for the first server, asked there
    probed        pgn probe of the second server, training with its endpoint.json
    not probed    the first way's checkpoint, asked at the second server
    remapped      the same, with mapping and α fitted to what the second server answers

All is trained with the same recipe and images. Accuracy of the prompt alone and fused, mean over
seeds, and paired differences with 95 % intervals over the test images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgn_client import cli
from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.queries import Asker
from pgn_client.evaluation.statistics import pooled_bootstrap
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.training import Task, load_task
from pgn_client.training.fit_mapping import refit
from pgn_client.types import ImageFailure
from pgn_client.wire.client import AdaptedClient

Hits = dict[str, NDArray[np.float64]]


def run(*words: object) -> None:
    """Run a command as a user does."""
    if cli.main([str(word) for word in words]):
        raise SystemExit(f"pgn {words[0]} failed")


def asked(
    where: str | Path, adapter: PromptAdapter, task: Task, fusion: float | None
) -> NDArray[np.float64]:
    """(n,) whether each test image is answered rightly."""
    with AdaptedClient(where, adapter, protocol="huggingface", fusion=fusion) as client:
        found = list(client.classify_many(task.test.paths))
    failed = [result for result in found if isinstance(result, ImageFailure)]
    if failed:
        raise SystemExit(f"{failed[0].image}: {failed[0].error}")
    labels = np.array([task.classes.index(result.label) for result in found])
    return (labels == task.test.labels).astype(float)


def measure(args: argparse.Namespace, seed: int, easy: str, hard: str) -> Hits:
    """Way → (n,) hits of one seed."""
    folder = args.out / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    task = load_task(args.data, shots=args.shots, seed=seed).limited(test=args.test, seed=0)
    endpoint, model = args.out / "endpoint.json", _model(args)
    train = ["train", args.data, *model, "--seed", seed, "--epochs", args.epochs]
    train += ["--shots", args.shots] if args.shots else []
    for name, extra in (("direct", ["--profile", "direct"]), ("probed", ["--endpoint", endpoint])):
        if not (folder / f"{name}.safetensors").exists():
            run(*train, *extra, "--out", folder / f"{name}.safetensors")
    direct, probed = (
        PromptAdapter.load(folder / f"{name}.safetensors") for name in ("direct", "probed")
    )
    remapped = refit(direct, task, Asker(lambda a: AdaptedClient(hard, a, protocol="huggingface")))
    ways = {"direct PNG": (easy, direct), "probed": (endpoint, probed)}
    ways |= {"not probed": (hard, direct), "remapped": (hard, remapped)}
    found = {}
    for name, (where, adapter) in ways.items():
        found[name] = asked(where, adapter, task, None)
        found[f"{name} ⊕ local"] = asked(where, adapter, task, adapter.info["fusion"])
    return found


def _model(args: argparse.Namespace) -> list[object]:
    given = {"--backbone": args.backbone, "--weights": args.weights, "--labels": args.labels}
    return [x for name, value in given.items() if value for x in (name, value)]


def table(hits: Hits) -> str:
    """Accuracy of every way, and how far it is from the same at the direct server."""
    text = [
        f"{'on ' + str(len(hits['probed'])) + ' test pictures':<24}accuracy   less direct PNG, "
        "in points"
    ]
    for name, row in hits.items():
        best = hits["direct PNG" + (" ⊕ local" if name.endswith("⊕ local") else "")]
        mean, low, high = (100 * x for x in pooled_bootstrap([row - best], seed=0))
        text.append(f"  {name:<22}{row.mean():>8.3f}   {mean:+.1f} [{low:+.1f}, {high:+.1f}]")
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="SET")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="bundled")
    for name in ("--weights", "--labels"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--profile", default="resize_crop:72:64")
    parser.add_argument("--jpeg", default="75:420")
    parser.add_argument("--shots", type=int)
    for name, number in (("--test", 350), ("--epochs", 4)):
        parser.add_argument(name, type=int, default=number)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    hosted = [str(x) for x in ["--model", args.backbone, *_model(args)[2:]]]
    with (
        local_server([*hosted, "--profile", "direct"]) as easy,
        local_server([*hosted, "--profile", args.profile, "--jpeg", args.jpeg]) as hard,
    ):
        run("probe", hard, "--protocol", "huggingface", "--out", args.out / "endpoint.json")
        runs = [measure(args, seed, easy, hard) for seed in args.seeds]
    print(table({name: np.mean([r[name] for r in runs], axis=0) for name in runs[0]}))


if __name__ == "__main__":
    main()
