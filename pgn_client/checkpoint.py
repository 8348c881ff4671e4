"""Checkpoints: safetensors for the numbers, a JSON card in the header for everything else. Read
without torch.

The card (``PromptAdapter.info``, ``pgn inspect``)::

    schema        1
    method        pgn | input_independent | padding | masked | low_rank | blend | no_prompt |
                  grey_frame | pgn_published
                  | raw, a mapping alone, without backbone, profile, layout, generator, library
                  | expres, which runs on the server (tests/contract/adapters); its backbone has
                  features_sha256 too,
                  and its mapping reads output tokens: no source labels
    backbone      the surrogate: name, input_size, patch_size, mean, std, weights_sha256,
                  patch_embedding_sha256
    profile       what the server does to a picture's geometry, for example resize_crop:248:224
    layout        where the prompts sit: ring | corner | rows:N | cells:… | full (on the image)
    generator     resolution of the generator's input, in pixels; profile, where it looks at the
                  image itself
    library       kind (see ``token_library``), size; null where there is none; inversion (exact |
                  bounded | pseudo_inverse)
    classes       the C task classes;  mapping: how endpoint classes become task classes
    fusion        α: served score = (1 - α) log p_endpoint + α log p_local; 0 = endpoint alone,
                  1 = local head alone
    none_below    "none of these" where the best class is less likely; chosen on validation pictures
    learnable     how many numbers were trained: prompt, mapping, local classifier
    seed, recipe, data (digest and sizes), metrics (validation), versions
    parts         of a checkpoint for several tasks (classes are TASK/CLASS): fusion and metrics of
                  each
    part_of       of a checkpoint for one of several tasks: all of them
    reach         of a latent library: what pixels can reach of it (see ``inversion.reach``)
    imported      file and digest of a published checkpoint, which has no seed, recipe, data and
                  metrics
    interrupted   whether Ctrl-C ended the training
    fingerprint   SHA-256 over the canonical card without it, and every tensor's name, dtype, shape
                  and bytes

Nothing in a checkpoint is executed: a pickle is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from pgn_client.errors import CheckpointError
from pgn_client.imaging.files import whole_file

SCHEMA = 1
HOSTED = "expres"
"""The method of a checkpoint that runs on the server."""
_HEADER_KEY = "pgn_client"

Arrays = dict[str, NDArray[Any]]
Card = dict[str, Any]


def fingerprint(card: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 over the canonical card (without its fingerprint) and every tensor."""
    bare = {key: value for key, value in card.items() if key != "fingerprint"}
    digest = hashlib.sha256(_canonical(bare).encode())
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def write(
    path: str | os.PathLike[str], card: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]]
) -> Card:
    """Write a checkpoint atomically; return the card with schema and fingerprint filled in.

    Raises:
        CheckpointError: the file cannot be written.
    """
    full = {**card, "schema": SCHEMA}
    full["fingerprint"] = fingerprint(full, tensors)
    data = save(
        {k: np.ascontiguousarray(v) for k, v in tensors.items()},
        metadata={_HEADER_KEY: _canonical(full)},
    )
    path = Path(path)
    try:
        with whole_file(path) as partial:
            partial.write_bytes(data)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path}: cannot be written ({error.strerror}); choose another place"
        ) from error
    return full


def read_card(path: str | os.PathLike[str]) -> Card:
    """Read the card alone.

    Raises:
        CheckpointError: missing, a pickle, truncated, not one of ours, or of a newer schema.
    """
    _refuse_other_files(Path(path))
    try:
        with safe_open(path, framework="np") as file:
            header = (file.metadata() or {}).get(_HEADER_KEY)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    return _checked_card(header, path)


def read(path: str | os.PathLike[str]) -> tuple[Card, Arrays]:
    """Read a checkpoint whole and verify its fingerprint.

    Raises:
        CheckpointError: as :func:`read_card`, or the contents are not what was written.
    """
    card = read_card(path)
    try:
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if fingerprint(card, tensors) != card.get("fingerprint"):
        raise CheckpointError(
            f"checkpoint {path}: its contents do not match its fingerprint; copy or train it again"
        )
    return card, tensors


def summary(card: Mapping[str, Any]) -> str:
    """Return a card as a few lines for people."""
    classes = card["classes"]
    shown = ", ".join(classes[:8]) + (", …" if len(classes) > 8 else "")
    lines = {
        **(
            _prompts(card)
            if card.get("backbone")
            else {"method": "raw: pictures are sent as they are"}
        ),
        "classes": f"{len(classes)}: {shown}",
        "mapping": _mapped(card["mapping"]),
        "learnable": ", ".join(
            f"{count:,} of the {part}" for part, count in sorted(card.get("learnable", {}).items())
        ),
        "fusion": f"α = {card['fusion']:.2f} (0 endpoint alone, 1 local head alone)"
        if _fuses(card)
        else "",
        **(
            {"none": f"where the best class is below {card['none_below']:.3f}"}
            if "none_below" in card
            else {}
        ),
        **(_reached(card["reach"]) if "reach" in card else {}),
        **({"imported": card["imported"]["file"]} if "imported" in card else {}),
        **(_trained(card) if "metrics" in card else {}),
        "fingerprint": card["fingerprint"],
    }
    lines = {name: text for name, text in lines.items() if text}
    return "\n".join(f"{name:<13}{text}" for name, text in lines.items())


def _fuses(card: Mapping[str, Any]) -> bool:
    """Whether there is a local head."""
    return bool(card.get("backbone")) and card["method"] != HOSTED


def _mapped(mapping: Mapping[str, Any]) -> str:
    if "source" not in mapping:
        return f"{mapping['kind']} over output tokens, on the server"
    return f"{mapping['kind']} over {len(mapping['source'])} endpoint labels"


def _prompts(card: Mapping[str, Any]) -> dict[str, str]:
    """What is painted, and for which model."""
    backbone, rows = card["backbone"], card["library"]
    library = f", {rows['kind']} library of {rows['size']} rows" if rows else ""
    return {
        "method": f"{card['method']}{library}, {card['layout']}",
        "backbone": f"{backbone['name']}, {backbone['input_size']} px, server profile "
        f"{card['profile']}",
    }


def _trained(card: Mapping[str, Any]) -> dict[str, str]:
    m, data, rows = card["metrics"], card["data"], card.get("library")
    wire = card.get("recipe", {}).get("wire")
    how = "over HTTP" if "mapped" in card else f"epoch {m['epoch']}"
    heads = (
        (f"prompt {m['uint8']:.3f}, local head {m['local']:.3f}, fused {m['fused']:.3f}")
        if "local" in m
        else ""
    )
    return {
        "wire": f"{wire}: trained {'' if 'mapped' in card else 'and measured '}behind it"
        if wire
        else "",
        "data": f"{data['train']} training, {data['val']} validation pictures; seed {card['seed']}",
        "validation": (heads or f"{m['uint8']:.3f}") + f" ({how}; chosen on these pictures, so "
        "optimistic)",
        "mixture": f"perplexity {m['perplexity']:.1f} of {rows['size']} rows"
        if rows and m["perplexity"]
        else "",
    }


def _reached(r: Mapping[str, Any]) -> dict[str, str]:
    """What inversion can and cannot reach of latent rows (see ``inversion.reach``)."""
    condition = (
        f"condition {r['condition']:g}"
        if r["condition"]
        else ("pixels cannot reach every direction")
    )
    return {
        "row norms": f"median {r['norm']:g}, most {r['norm_most']:g}; of random pixels "
        f"{r['norm_of_pixels']:g}",
        "unreached": f"bounded {r['bounded']:.0%}, at most {r['bounded_most']:.0%}; "
        "pseudo-inverse, clipped, "
        f"{r['pseudo_inverse']:.0%}, at most {r['pseudo_inverse_most']:.0%} (of the rows' norms; "
        f"{condition})",
    }


def _refuse_other_files(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint {path}: {error.strerror}; expected a file written by pgn train"
        ) from error
    # The length of our header may begin with a pickle's first byte; behind its eight bytes stands
    # the JSON.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[8:9] != b"{":
        raise CheckpointError(
            f"checkpoint {path}: got a pickle, which could run code; expected safetensors written "
            "by pgn train"
        )


def _checked_card(header: str | None, path: str | os.PathLike[str]) -> Card:
    if header is None:
        raise CheckpointError(
            f"checkpoint {path}: safetensors without a PGN card; expected a file written by "
            "pgn train"
        )
    try:
        card: Card = json.loads(header)
        schema = int(card["schema"])
    except (ValueError, TypeError, KeyError) as error:
        raise _unreadable(path, error) from error
    if schema > SCHEMA:
        raise CheckpointError(
            f"checkpoint {path}: got schema {schema}, expected at most {SCHEMA}; upgrade: pip "
            "install -U pgn-client"
        )
    return card


def _unreadable(path: str | os.PathLike[str], error: Exception) -> CheckpointError:
    reason = " ".join(str(error).split())[:120]
    return CheckpointError(
        f"checkpoint {path}: cannot be read ({reason}); expected a whole file written by pgn train"
    )


def _canonical(card: Mapping[str, Any]) -> str:
    return json.dumps(
        card, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
