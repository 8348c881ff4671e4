"""Import the checkpoints that PGN's authors published: state dicts for CLIP, supervised and DINO
ViTs.

Their prompts are latent. ``methods.published`` says where they stood, and where they go in an
image; what pixels can reach of them is measured and written on the card.

Reference: the checkpoints of arXiv 2210.06466's repository.
"""

from __future__ import annotations

import hashlib
import os
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pgn_client.checkpoint.card import (
    BackboneCard,
    Card,
    GeneratorCard,
    ImportCard,
    LibraryCard,
    MappingCard,
    ReachCard,
)
from pgn_client.errors import CheckpointError, ConfigurationError
from pgn_client.imaging.geometry import Canvas, room_for
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.inversion import reach, route
from pgn_client.prompting.methods import Setting
from pgn_client.prompting.methods.published import INTERPOLATION, RESOLUTION, PublishedPGN, sizes
from pgn_client.surrogate.backbone import Backbone
from pgn_client.types import ServerProfile
from pgn_client.version import __version__


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read a published state dict; nothing in the file is executed.

    Raises:
        CheckpointError: missing, unreadable, holding more than tensors, or no state dict of
            tensors.
    """
    if not Path(path).is_file():
        what = "it is a folder" if Path(path).is_dir() else "there is no such file"
        raise CheckpointError(
            f"published checkpoint {path}: {what}; expected one of the authors' .pt files"
        )
    try:
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"{broken} is damaged")  # torch reads on over flipped bits
        with warnings.catch_warnings(action="ignore"):  # of pickles that are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that is damaged makes torch raise errors of any kind
        raise CheckpointError(
            f"published checkpoint {path}: cannot be read as tensors alone "
            f"({type(error).__name__}), and nothing "
            "else is read; expected a file of the authors' repository"
        ) from error
    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise CheckpointError(
            f"published checkpoint {path}: got {type(state).__name__}, expected a dict of tensors"
        )
    return state


def _some_cells_tokens(model: PublishedPGN) -> Tensor:
    """Return (L, D): each row as one of the cells needs it, which are drawn with a seed; all pairs
    would take long.
    """
    rows = model.library.rows.detach()
    cells = torch.randint(
        len(model.position), (len(rows),), generator=torch.Generator().manual_seed(0)
    )
    return rows - model.position[cells]


def import_published(
    path: str | os.PathLike[str],
    backbone: Backbone,
    *,
    layout: str | None = None,
    profile: ServerProfile | None = None,
    inversion: str = "bounded",
) -> PromptAdapter:
    """Make an adapter of a published checkpoint: its prompts become patches of explicit cells.

    Args:
        path: the authors' file.
        backbone: the endpoint's model; its patch embedding and positions are needed, and its
            labels, which become the classes. Its head is not.
        layout: one with as many cells as there are prompts; ``None`` puts them around the lower
            right corner.
        profile: what the server does to an image's geometry; ``None`` takes the backbone's own
            preprocessing.
        inversion: ``bounded`` or ``pseudo_inverse``.

    Returns:
        An adapter whose ``prompt_tokens`` are the published generator's. The mapping is the
        identity: the endpoint's own classes. The card's ``reach`` says what inversion loses.

    Raises:
        CheckpointError: the file is no published checkpoint, or its width is not the backbone's.
        ConfigurationError: an unknown layout or inversion, or a layout with another number of
            cells.
    """
    route(inversion)
    state = read(path)
    prompts, size, width = sizes(state)
    embedding, profile = backbone.embedding.to("cpu"), profile or backbone.profile
    if width != embedding.width:
        raise CheckpointError(
            f"published checkpoint {path}: its tokens have {width} numbers, those of "
            f"{backbone.name} "
            f"{embedding.width}; name the --backbone that it was trained for, for example "
            "vit_base_patch32_clip_quickgelu_224.openai, vit_base_patch32_224 (768) or "
            "vit_small_patch16_224.dino (384)"
        )
    layout = layout or room_for(prompts, backbone.input_size // backbone.patch_size)
    canvas = Canvas.build(backbone.input_size, backbone.patch_size, layout, profile)
    if canvas.prompts != prompts:
        raise ConfigurationError(
            f"layout: got {layout} with {canvas.prompts} cells, expected {prompts}, one a prompt"
        )
    classes = backbone.labels
    model = PublishedPGN.create(
        Setting(canvas, len(classes), width, library="latent", library_size=size)
    )
    model.position.copy_(backbone.positions[list(canvas.cells)])
    model.load_published(state)
    mapping = LabelMapping(
        "identity", classes, classes, np.eye(len(classes)), np.zeros(len(classes))
    )
    own_crop = str(ServerProfile("resize_crop", RESOLUTION, RESOLUTION))
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    card = Card(
        method=model.name,
        backbone=BackboneCard.from_json(backbone.card()),
        profile=str(profile),
        layout=layout,
        library=LibraryCard("latent", size),
        inversion="pseudo_inverse" if inversion == "pseudo_inverse" else "bounded",
        generator=GeneratorCard(RESOLUTION, own_crop, INTERPOLATION),
        classes=tuple(classes),
        mapping=MappingCard.from_json(mapping.card()),
        learnable={"prompt": model.learnable(), "mapping": 0, "local": 0},
        imported=ImportCard(Path(path).name, digest),
        reach=ReachCard.from_json(reach(_some_cells_tokens(model), embedding)),
        versions={"pgn_client": __version__, "torch": str(torch.__version__)},
    )
    tensors = {k: v.detach().cpu().numpy().copy() for k, v in model.state_dict().items()}
    tensors |= {f"mapping.{k}": v for k, v in mapping.arrays().items()}
    tensors |= {
        "embedding.weight": embedding.weight.cpu().numpy(),
        "embedding.bias": embedding.bias.cpu().numpy(),
    }
    return PromptAdapter(card, tensors)
