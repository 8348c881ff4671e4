"""Import the checkpoints that PGN's authors published: state dicts for CLIP, supervised and DINO
ViTs.

Their prompts are latent; ``methods.published`` explains how they become patches of an image. The
import measures how well pixels can reproduce them, and writes the result on the card.

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
from pgn_client.imaging.opening import read_regular
from pgn_client.mapping.label_mapping import LabelMapping
from pgn_client.prompting.adapter import PromptAdapter
from pgn_client.prompting.inversion import reach, route
from pgn_client.prompting.methods import Setting
from pgn_client.prompting.methods.published import INTERPOLATION, RESOLUTION, PublishedPGN, sizes
from pgn_client.surrogate.backbone import Backbone
from pgn_client.types import ServerProfile
from pgn_client.version import __version__


def read(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint that PGN's authors published; no code in the file is
    executed.

    Raises:
        CheckpointError: The file is missing, unreadable, holds more than tensors, or is no dict of
            tensors.
    """
    if not Path(path).is_file():
        what = "it is a folder" if Path(path).is_dir() else "there is no such file"
        raise CheckpointError(
            f"published checkpoint {path}: {what}; expected one of the authors' .pt files"
        )

    try:
        # torch does not verify checksums, so it would load flipped bits without an error.
        if zipfile.is_zipfile(path) and (broken := zipfile.ZipFile(path).testzip()):
            raise ValueError(f"{broken} is damaged")
        # torch warns about pickles that it then refuses; the error below is enough.
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # A damaged file makes torch raise exceptions of many types.
        raise CheckpointError(
            f"published checkpoint {path}: cannot be read as tensors alone "
            f"({type(error).__name__}), and no other content is loaded; expected a file of the "
            "authors' repository"
        ) from error

    if not isinstance(state, dict) or not all(
        isinstance(value, Tensor) for value in state.values()
    ):
        raise CheckpointError(
            f"published checkpoint {path}: got {type(state).__name__}, expected a dict of tensors"
        )
    return state


def _some_cells_tokens(model: PublishedPGN) -> Tensor:
    """Return the tokens that pixels must produce for the L library rows, (L, D).

    Each is a row minus the position embedding of one randomly drawn prompt cell. All pairs of rows
    and cells would take long. The seed is fixed, so that the result is the same each time.
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
    """Make an adapter from a checkpoint of PGN's authors: its prompts become RGB patches.

    Args:
        path: Path of the authors' file.
        backbone: The endpoint's model. Its patch embedding, its position embedding and its labels,
            which become the classes, are used; its head is not.
        layout: Layout of the image that is sent, with one cell (patch) per prompt; ``None`` puts
            the prompts around the lower right corner.
        profile: The server's resize and crop; ``None`` takes the backbone's own preprocessing.
        inversion: Name of the inversion, ``bounded`` or ``pseudo_inverse``.

    Returns:
        An adapter whose ``prompt_tokens`` are the published generator's. The label mapping is the
        identity of the endpoint's classes. The card's ``reach`` holds the error of the inversion.

    Raises:
        CheckpointError: The file is no published checkpoint, or its tokens have another width than
            the backbone's.
        ConfigurationError: The layout or inversion is unknown, or the layout has another number of
            cells than there are prompts.
    """
    # Looked up only for its error: an unknown name fails before the file is read.
    route(inversion)
    state = read(path)
    prompts, size, width = sizes(state)
    embedding = backbone.embedding.to("cpu")
    profile = profile or backbone.profile
    if width != embedding.width:
        raise CheckpointError(
            f"published checkpoint {path}: got tokens of {width} numbers, expected "
            f"{embedding.width} for {backbone.name}; give the --backbone that it was trained for, "
            "for example "
            "vit_base_patch32_clip_quickgelu_224.openai, vit_base_patch32_224 (768) or "
            "vit_small_patch16_224.dino (384)"
        )

    layout = layout or room_for(prompts, backbone.input_size // backbone.patch_size)
    canvas = Canvas.build(backbone.input_size, backbone.patch_size, layout, profile)
    if canvas.prompts != prompts:
        raise ConfigurationError(
            f"layout: got {layout} with {canvas.prompts} cells, expected {prompts}, one per prompt"
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
    generator_profile = str(ServerProfile("resize_crop", RESOLUTION, RESOLUTION))
    digest = hashlib.sha256(read_regular(path)).hexdigest()

    card = Card(
        method=model.name,
        backbone=BackboneCard.from_json(backbone.card()),
        profile=str(profile),
        layout=layout,
        library=LibraryCard("latent", size),
        # For the type checker: ``route`` has refused all other names.
        inversion="pseudo_inverse" if inversion == "pseudo_inverse" else "bounded",
        generator=GeneratorCard(RESOLUTION, generator_profile, INTERPOLATION),
        classes=tuple(classes),
        mapping=MappingCard.from_json(mapping.card()),
        # The mapping is an identity and the local head is all zeros, so neither was trained.
        learnable={"prompt": model.learnable(), "mapping": 0, "local": 0},
        imported=ImportCard(Path(path).name, digest),
        reach=ReachCard.from_json(reach(_some_cells_tokens(model), embedding)),
        versions={"pgn_client": __version__, "torch": str(torch.__version__)},
    )

    tensors = {
        name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()
    }
    tensors |= {f"mapping.{name}": array for name, array in mapping.arrays().items()}
    tensors["embedding.weight"] = embedding.weight.cpu().numpy()
    tensors["embedding.bias"] = embedding.bias.cpu().numpy()
    return PromptAdapter(card, tensors)
