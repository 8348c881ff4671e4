"""``pgn import``: a checkpoint of PGN's authors becomes one that an endpoint can serve."""

from __future__ import annotations

import argparse
from pathlib import Path

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_surrogate_options,
    command,
    load_surrogate,
    require,
    to_json,
)


def add_import(commands: Subparsers) -> None:
    """``pgn import``."""
    example = (
        "pgn import sun397.pt --backbone vit_small_patch16_224.dino --labels L.json --out "
        "sun397.safetensors"
    )
    p = command(
        commands, "import", run_import, "import a checkpoint that PGN's authors published", example
    )
    p.add_argument("file", metavar="FILE", help="their state dict; nothing in it is executed")
    p.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="CKPT",
        help="checkpoint to write, NAME.safetensors",
    )
    add_surrogate_options(p, "bundled")  # --labels: the endpoint's, whose head is not needed here
    p.add_argument(
        "--layout",
        help="with a cell for each prompt: cells:C1,C2,…@TOP,LEFT,HEIGHT,WIDTH (lower right)",
    )
    p.add_argument(
        "--profile",
        help="the server's resize and crop: direct, resize_crop:R:C, … (the backbone's own)",
    )
    p.add_argument("--inversion", default="bounded", help="bounded or pseudo_inverse (bounded)")
    p.add_argument("--json", action="store_true", help="the whole card as JSON on stdout")


def run_import(args: argparse.Namespace) -> int:
    """Import, save, and print the card."""
    require("imports", "train", "torch", "timm")
    from pgn_client.checkpoint import summary
    from pgn_client.prompting.import_published import import_published, read
    from pgn_client.types import ServerProfile

    # a file that cannot be read is told before a model is loaded, which takes longer
    read(args.file)
    backbone = load_surrogate(args, args.backbone, new_head=True)
    adapter = import_published(
        args.file,
        backbone,
        layout=args.layout,
        profile=ServerProfile.parse(args.profile) if args.profile else None,
        inversion=args.inversion,
    )
    adapter.save(args.out)
    tell(to_json(adapter.info) if args.json else summary(adapter.info))
    if backbone.silent:
        talk(
            f"{backbone.name} has no head for these labels: the prompts can be sent (adapt, map, "
            "predict), but pgn "
            "retain has no labels to compare"
        )
    return OK
