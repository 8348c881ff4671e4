"""``pgn import``: convert a checkpoint of the PGN authors into one for an endpoint."""

from __future__ import annotations

import argparse

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import (
    OK,
    Subparsers,
    add_checkpoint_out,
    add_surrogate_options,
    command,
    load_surrogate,
    require,
    to_json,
)


def add_import(commands: Subparsers) -> None:
    """Add the subcommand ``pgn import``, which converts a checkpoint of the PGN authors."""
    example = (
        "pgn import sun397.pt --backbone vit_small_patch16_224.dino --labels L.json --out "
        "sun397.safetensors"
    )
    p = command(
        commands,
        "import",
        run_import,
        "import a checkpoint that the PGN authors published",
        example,
    )
    p.add_argument(
        "file", metavar="FILE", help="published state dict, a .pt file; nothing in it is executed"
    )
    add_checkpoint_out(p)
    # --labels are the classes of the endpoint. Its classification head is not needed here.
    add_surrogate_options(p, "bundled")
    p.add_argument(
        "--layout",
        help="where prompts and image go: cells:C1,C2,…@TOP,LEFT,HEIGHT,WIDTH, the number of the "
        "patch for each prompt and the image's rectangle in pixels (default "
        "cells at the lower right)",
    )
    p.add_argument(
        "--profile",
        help="the server's resize and crop: direct (a resize to its input size alone), "
        "resize_crop:RESIZE:CROP, shortest_edge:SIDE or "
        "letterbox:SIDE (default the backbone's own)",
    )
    p.add_argument(
        "--inversion",
        default="bounded",
        help="inversion of the latent prompts into pixels: bounded or pseudo_inverse (default "
        "bounded)",
    )
    p.add_argument(
        "--json", action="store_true", help="print the checkpoint's metadata as JSON on stdout"
    )


def run_import(args: argparse.Namespace) -> int:
    """Import a checkpoint, save it, print its card (its metadata), and return the exit status."""
    require("imports", "train", "torch", "timm")
    from pgn_client.checkpoint import summary
    from pgn_client.prompting.import_published import import_published, read
    from pgn_client.types import ServerProfile

    # Loading a model takes long, so an unreadable file is reported before.
    read(args.file)
    # A new head: --labels are the endpoint's classes, and the import needs no scores of them.
    backbone = load_surrogate(args, args.backbone, new_head=True)
    adapter = import_published(
        args.file,
        backbone,
        layout=args.layout,
        profile=ServerProfile.parse(args.profile) if args.profile else None,
        inversion=args.inversion,
    )
    adapter.save(args.out)
    tell(to_json(adapter.info) if args.json else summary(adapter.card))
    if backbone.silent:
        talk(
            f"{backbone.name} has no head for these labels: pgn adapt, map and predict can use the "
            "prompts, but pgn retain has no labels to compare"
        )
    return OK
