"""`probe` against random server configurations: is every finding right, and is none certain and
wrong?

    python benchmarks/probe_servers.py --seed 10 --configurations 24 --weights W --labels L

Each configuration draws profile, interpolation, JPEG, top-k, output and rounding, and hosts the
bundled model or, where ``--weights`` is given, every other time a ViT-Tiny of 224 px. No HTTP: what
the server's own code answers is handed to the probe. "unknown" counts as right where only labels,
or scores of at most two decimals, come back. The exit status is 1 when a finding is certain and
wrong.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from mock_server.model import Asked, ServedModel, load
from mock_server.preprocess import Jpeg, Profile
from mock_server.service import Service
from mock_server.settings import Output, Settings
from pgn_client.probe import Finding, probe
from pgn_client.types import Answer, ScoreKind

KINDS: dict[Output, ScoreKind] = {"probs": "probabilities", "logits": "logits", "label": "label"}
PROPERTIES = ("profile", "codec", "top_k", "output")
TIMM = "vit_tiny_patch16_224"


class Configuration(NamedTuple):
    """One server.

    Attributes:
        settings: of the mock server.
        interpolation: of its resize.
        truth: property → the right finding.
    """

    settings: Settings
    interpolation: str
    truth: dict[str, str | int]

    @property
    def coarse(self) -> bool:
        """Whether too little comes back to ask for the geometry."""
        decimals = self.settings.decimals
        return self.settings.output == "label" or (decimals is not None and decimals <= 2)


def draw(rng: np.random.Generator, size: int, model: Settings) -> Configuration:
    """Draw one configuration for a model of so many pixels."""
    crop = f"resize_crop:{rng.integers(size, int(size * 1.3) + 1)}:{size}"
    usual = f"resize_crop:{int(size / rng.choice([0.875, 0.9, 0.95, 1.0]))}:{size}"
    profile = str(rng.choice(["direct", crop, usual, f"shortest_edge:{size}", f"letterbox:{size}"]))
    quality = rng.choice([50, 60, 70, 75, 80, 85, 90, 95])
    jpeg = (
        None
        if rng.random() < 0.5
        else f"{quality}:{rng.choice(['444', '422', '420'], p=[0.25, 0.15, 0.6])}"
    )
    output: Output = rng.choice(["probs", "logits", "label"], p=[0.65, 0.25, 0.1])
    top_k = None if rng.random() < 0.5 else int(rng.choice([1, 3, 5, 10, 20]))
    decimals = None if rng.random() < 0.5 else int(rng.choice([2, 3, 4, 5, 6]))
    settings = dataclasses.replace(
        model,
        profile=Profile.parse(profile),
        jpeg=None if jpeg is None else Jpeg.parse(jpeg),
        output=output,
        top_k=top_k,
        decimals=decimals,
    )
    truth: dict[str, str | int] = {
        "profile": profile,
        "codec": "lossless" if jpeg is None else f"jpeg:{jpeg}",
        "top_k": 1 if output == "label" else top_k or "all",
        "output": KINDS[output],
    }
    return Configuration(settings, str(rng.choice(["bicubic", "bilinear"])), truth)


class Endpoint:
    """A mock server without its HTTP."""

    def __init__(self, configuration: Configuration) -> None:
        model = load(configuration.settings)
        own = dataclasses.replace(model.preprocessing, interpolation=configuration.interpolation)
        self.model: ServedModel = dataclasses.replace(model, preprocessing=own)
        self.service = Service(configuration.settings, self.model)

    def __call__(self, images: Sequence[Image.Image]) -> list[Answer]:
        """Answer each image."""
        asked = [Asked(self.service.preprocessing.normalise(image)) for image in images]
        output = self.service.settings.output
        ranked = [
            self.service.rank(logits, "none" if output == "logits" else "softmax")
            for logits in self.model.run(asked)
        ]
        return [Answer(tuple(labels), tuple(scores), KINDS[output]) for labels, scores in ranked]


def right(finding: Finding, truth: str | int, *, coarse: bool) -> bool:
    """Whether a finding counts as correct; ``lossy`` of an unknown quality is an unknown for every
    JPEG.
    """
    unknown = finding.certainty == "unknown" and not (
        finding.value == "lossy" and truth == "lossless"
    )
    return finding.value == truth or (coarse and unknown)


def main() -> int:
    parser = argparse.ArgumentParser(description="Probe random servers.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--configurations", type=int, default=24)
    parser.add_argument("--weights", type=Path, help=f"of {TIMM}")
    parser.add_argument("--labels", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    totals, wrong, most = dict.fromkeys(PROPERTIES, 0), 0, 0
    for number in range(args.configurations):
        large = args.weights is not None and number % 2 == 1
        model = (
            Settings(device="cpu", model=TIMM, weights=args.weights, labels=args.labels)
            if large
            else Settings(device="cpu")
        )
        configuration = draw(rng, 224 if large else 64, model)
        found = probe(Endpoint(configuration), seed=args.seed)
        most = max(most, found.images)
        cells = []
        for name in PROPERTIES:
            finding, truth = getattr(found, name), configuration.truth[name]
            good = right(finding, truth, coarse=configuration.coarse)
            totals[name] += good
            bad = finding.certainty == "certain" and finding.value != truth
            wrong += bad
            mark = "" if good else f" {'!!' if bad else '!'} [{finding.evidence}]"
            cells.append(f"{truth} → {finding.value} ({finding.certainty}){mark}")
        kept = f"{configuration.interpolation}, {configuration.settings.decimals} decimals"
        print(
            f"{number:>2} {224 if large else 64:>3} px, {kept}: {'; '.join(cells)}; "
            f"{found.images} images",
            flush=True,
        )
    print(", ".join(f"{name} {count}/{args.configurations}" for name, count in totals.items()))
    print(f"certain and wrong: {wrong}; at most {most} images")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
