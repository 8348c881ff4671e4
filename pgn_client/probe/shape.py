"""What a server does to a picture that is not square: squash, crop, pad, or let it through.

One wide picture, twice as wide as high, and gratings laid over it. With the side R of the resized square known, each
grating is a needle which vanishes only where an edge comes out with a certain number of pixels.
"""

from __future__ import annotations

import numpy as np

from pgn_client.probe.asking import Asker, Verdict
from pgn_client.probe.findings import Finding
from pgn_client.probe.pictures import needle, picture, smooth
from pgn_client.probe.resize import FRAME, NEEDLE, SIDE, Square
from pgn_client.types import ProfileKind, ServerProfile

WIDE, HIGH = SIDE, SIDE // 2
KINDS: dict[tuple[Verdict, ...], ProfileKind] = {  # verdicts on the grating across, on the ends, on the grating down
    ("same", "different", "different"): "direct",
    ("same", "different", "same"): "letterbox",
    ("different", "different", "different"): "shortest_edge",
    ("different", "same", "different"): "resize_crop",
}


def find_profile(asker: Asker, square: Square, seed: int) -> Finding:
    """Find the profile in at most 4 pictures, with what is known of square ones."""
    if square.resize is None or square.crop is None:
        return Finding.unknown(square.evidence)
    verdicts, told = _wide(asker, square.resize, seed)
    evidence = f"{square.evidence}; {told}"
    kind = KINDS.get(verdicts)
    if kind is None or (square.crop < square.resize and kind != "resize_crop"):
        return Finding.unknown(f"{evidence}: no known profile does that")
    sides = {"direct": (), "resize_crop": (square.resize, square.crop)}.get(kind, (square.resize,))
    return Finding(str(ServerProfile(kind, *sides)), "certain" if square.sure else "likely", evidence)


def _wide(asker: Asker, resize: int, seed: int) -> tuple[tuple[Verdict, ...], str]:
    """Return the verdicts on a wide picture's three overlays, the keys of ``KINDS``, and what was measured."""
    pixels = smooth(WIDE, HIGH, seed)
    ends = np.zeros((HIGH, WIDE))
    ends[:, : HIGH // 4] = ends[:, -HIGH // 4 :] = FRAME  # beyond the central square, and well so
    across = np.tile(needle(WIDE, resize, NEEDLE), (HIGH, 1))
    down = np.tile(needle(HIGH, round(resize / 2), NEEDLE)[:, None], (1, WIDE))
    base, *answers = asker(*(picture(pixels + overlay[:, :, None]) for overlay in (0 * ends, across, ends, down)))
    responses = [asker.distance(base, answer) for answer in answers]
    told = (
        f"in a wide picture the ends move the scores by {responses[1]:.2g}, gratings that vanish at {resize} px across "
        f"and at {round(resize / 2)} px down by {responses[0]:.2g} and {responses[2]:.2g}"
    )
    return tuple(asker.verdict(response, max(responses)) for response in responses), told
