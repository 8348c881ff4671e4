"""What a server does to a picture that is not square: squash, crop, pad, or let it through.

One wide picture, twice as wide as high, and gratings laid over it. With the side R of the resized square known, each
grating is a needle which vanishes only where an edge comes out with a certain number of pixels.
"""

from __future__ import annotations

import numpy as np

from pgn_client.probe.asking import SENSITIVE, Asker, Verdict
from pgn_client.probe.findings import Finding
from pgn_client.probe.pictures import Floats, needle, picture, smooth
from pgn_client.probe.resize import FRAME, NEEDLE, SIDE, Square
from pgn_client.types import ProfileKind, ServerProfile

WIDE, HIGH = SIDE, SIDE // 2
TINY = 1e-12  # where nothing at all is seen
# Of its quadrature, or of the strongest response where no picture is left for that: JPEG leaves something of a grating
# that vanished.
BESIDE_QUADRATURE = (0.3, 0.4)  # vanished; did not
GRATINGS = (0.15, 0.25)  # the same, without a quadrature
CLEARLY = (0.1, 0.5)  # either, beyond doubt
ENDS = (1.0, 3.0)  # of the floor: cropped, which leaves nothing; kept
KINDS: dict[tuple[Verdict, ...], ProfileKind] = {  # verdicts on the grating across, on the ends, on the grating down
    ("same", "different", "different"): "direct",
    ("same", "different", "same"): "letterbox",
    ("different", "different", "different"): "shortest_edge",
    ("different", "same", "different"): "resize_crop",
}


def find_profile(asker: Asker, square: Square, seed: int) -> Finding:
    """Find the profile in 4 to 6 pictures, with what is known of square ones."""
    if square.resize is None or square.crop is None:
        return Finding.unknown(square.evidence)
    controlled = asker.left >= 6
    responses = _responses(asker, square.resize, seed, controlled=controlled)
    controls = responses[3:] if controlled else [max(responses)] * 2
    across, down = (responses[i] / max(control, TINY) for i, control in zip((0, 2), controls, strict=True))
    bounds = BESIDE_QUADRATURE if controlled else GRATINGS
    evidence = (
        f"{square.evidence}; in a wide picture the ends move the scores by {responses[1]:.2g}, gratings that vanish at "
        f"{square.resize} px across and at {round(square.resize / 2)} px down by {responses[0]:.2g} and "
        f"{responses[2]:.2g}"
    )
    verdicts = _verdict(across, *bounds), _verdict(responses[1] / asker.floor, *ENDS), _verdict(down, *bounds)
    kind = KINDS.get(verdicts) if min(*controls, max(responses)) >= SENSITIVE * asker.floor else None
    if kind is None or (square.crop < square.resize and kind != "resize_crop"):
        return Finding.unknown(f"{evidence}: no known profile does that")
    sides = {"direct": (), "resize_crop": (square.resize, square.crop)}.get(kind, (square.resize,))
    sure = square.sure and "unclear" not in (_verdict(across, *CLEARLY), _verdict(down, *CLEARLY))
    return Finding(str(ServerProfile(kind, *sides)), "certain" if sure else "likely", evidence)


def _responses(asker: Asker, resize: int, seed: int, *, controlled: bool) -> list[float]:
    """Return how overlays of a wide picture move the scores: the grating across, the ends, the grating down.

    With ``controlled`` also the quadratures of both gratings.
    """
    pixels = smooth(WIDE, HIGH, seed)
    ends = np.zeros((HIGH, WIDE))
    ends[:, : HIGH // 4] = ends[:, -HIGH // 4 :] = FRAME  # beyond the central square, and well so

    def across(quadrature: bool) -> Floats:
        return np.tile(needle(WIDE, resize, NEEDLE, quadrature=quadrature), (HIGH, 1))

    def down(quadrature: bool) -> Floats:
        return np.tile(needle(HIGH, round(resize / 2), NEEDLE, quadrature=quadrature)[:, None], (1, WIDE))

    overlays = [0 * ends, across(False), ends, down(False), *([across(True), down(True)] if controlled else [])]
    base, *answers = asker(*(picture(pixels + overlay[:, :, None]) for overlay in overlays))
    return [asker.distance(base, answer) for answer in answers]


def _verdict(share: float, unseen: float, seen: float) -> Verdict:
    return "same" if share <= unseen else "different" if share >= seen else "unclear"
