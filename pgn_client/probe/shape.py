"""What a server does to a picture that is not square: squash, crop, pad, or let it through.

One wide picture, twice as wide as high, and gratings laid over it. With the side R of the resized square known, each
grating is a needle which vanishes only where an edge comes out with a certain number of pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from pgn_client.probe.asking import Asker
from pgn_client.probe.findings import Finding
from pgn_client.probe.pictures import Floats, needle, picture, smooth
from pgn_client.probe.resize import FRAME, NEEDLE, SIDE, Square
from pgn_client.types import ServerProfile

WIDE, HIGH = SIDE, SIDE // 2
NOT_SQUARE = 0.5  # of the height is kept, at least, by a crop: the ends beyond are what a crop alone removes


class _Kind(NamedTuple):
    name: str
    sure: bool
    evidence: str


def find_profile(asker: Asker, square: Square, seed: int) -> Finding:
    """Find the profile in at most 4 pictures, with what is known of square ones."""
    if square.resize is None or square.crop is None:
        return Finding.unknown(square.evidence)
    kind = _kind(asker, square.resize, square.crop, seed)
    if kind is None:
        return Finding.unknown(f"{square.evidence}; a wide picture is treated in none of the known ways")
    profile = {
        "direct": ServerProfile("direct"),
        "letterbox": ServerProfile("letterbox", square.resize),
        "shortest_edge": ServerProfile("shortest_edge", square.resize),
        "resize_crop": ServerProfile("resize_crop", square.resize, square.crop),
    }[kind.name]
    certainty = "certain" if square.sure and kind.sure else "likely"
    return Finding(str(profile), certainty, f"{square.evidence}; {kind.evidence}")


def _kind(asker: Asker, resize: int, crop: int, seed: int) -> _Kind | None:
    pixels = smooth(WIDE, HIGH, seed)
    base = asker(picture(pixels))[0]

    def response(overlay: Floats) -> float:
        return asker.response(base, picture(pixels + overlay[:, :, None]))

    across = response(np.tile(needle(WIDE, resize, NEEDLE), (HIGH, 1)))
    ends = np.zeros((HIGH, WIDE))
    ends[:, : HIGH // 4] = ends[:, -HIGH // 4 :] = FRAME  # beyond the central square, and well so
    seen = response(ends)
    down = response(np.tile(needle(HIGH, round(resize / 2), NEEDLE)[:, None], (1, WIDE)))
    control = max(across, seen, down)
    if control < 10 * asker.floor:
        return None
    told = f"in a wide picture the ends move the scores by {seen:.2g}, gratings for {resize} px across and "
    told += f"{round(resize / 2)} px down by {across:.2g} and {down:.2g}"
    verdicts = tuple(asker.verdict(value, control) for value in (across, seen, down))
    return _conclude(verdicts, told, cropped=crop < resize)


def _conclude(verdicts: tuple[str, ...], told: str, *, cropped: bool) -> _Kind | None:
    """The verdicts on the grating across, the ends, and the grating down; see the module."""
    known = {
        ("same", "different", "different"): "direct",
        ("same", "different", "same"): "letterbox",
        ("different", "different", "different"): "shortest_edge",
        ("different", "same", "different"): "resize_crop",
    }
    name = known.get(verdicts)
    if name is None or cropped != (name == "resize_crop") and (cropped or name != "resize_crop"):
        return None
    return _Kind(name, True, told)
