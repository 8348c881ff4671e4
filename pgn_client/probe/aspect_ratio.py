"""What a server does to an image that is not square: squash, crop, pad, or let it through.

One wide image, twice as wide as high, and waves laid over it. With the side R of the resized
square known, each kind of profile says to how many pixels the two edges are resized, and so which
waves vanish.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.probe.findings import Finding
from pgn_client.probe.gratings import REST, Wave, middle, needle, quadrature
from pgn_client.probe.posterior import EAR, HEARD, Belief, Which
from pgn_client.probe.queries import SENSITIVE, Asker
from pgn_client.probe.resize import Square
from pgn_client.probe.resize_hypotheses import FRAME, KERNELS, SIDE
from pgn_client.probe.stimuli import smooth, to_image
from pgn_client.types import ProfileKind, ServerProfile

WIDE, HIGH = SIDE, SIDE // 2
KINDS: tuple[ProfileKind, ...] = ("direct", "resize_crop", "shortest_edge", "letterbox")
PRIOR = np.array([0.4, 0.3, 0.15, 0.15])
PADDED = np.sqrt(0.5)  # half of a letterbox is padding
ODD = 0.02  # weight, each, of what is not `resize_crop` although a square image is cropped
BELIEVED, LIKELY = 0.98, 0.7
CLEARLY = (0.1, 0.5)  # of its quadrature: a wave that vanished, or did not, beyond doubt


@dataclass(frozen=True, slots=True)
class Overlay:
    """A wave along one edge, or both ends brightened, where there is none."""

    wave: Wave | None = None
    edge: Literal["across", "down"] = "across"

    def __call__(self) -> Floats:
        """(HIGH, WIDE), pixel space."""
        if self.wave is None:
            ends = np.zeros((HIGH, WIDE))
            # beyond the central square, and well so
            ends[:, : HIGH // 4] = ends[:, -HIGH // 4 :] = FRAME
            return ends
        if self.edge == "across":
            return np.tile(self.wave(WIDE), (HIGH, 1))
        return np.tile(self.wave(HIGH)[:, None], (1, WIDE))


ENDS = Overlay()


def find_profile(asker: Asker, square: Square, seed: int) -> Finding:
    """Find the profile in 4 and more images, with what is known of square ones."""
    if square.resize is None or square.crop is None:
        return Finding.unknown(square.evidence)
    return _Search(asker, square.resize, square.crop, seed).run(square)


class _Search:
    def __init__(self, asker: Asker, resize: int, crop: int, seed: int) -> None:
        self.asker = asker
        self.resize, self.crop = resize, crop
        self.pixels = smooth(WIDE, HIGH, seed)
        prior = PRIOR if crop == resize else np.where(np.array(KINDS) == "resize_crop", 1.0, ODD)
        across, down = needle(resize), needle(round(resize / 2))
        self.core = [Overlay(wave, "across") for wave in (quadrature(across), across)]
        self.core += [ENDS, *(Overlay(wave, "down") for wave in (quadrature(down), down))]
        self.more = [Overlay(wave, "across") for wave in middle(across.target)]
        self.more += [Overlay(wave, "down") for wave in middle(down.target)]
        self.belief: Belief[Overlay] = Belief(
            asker, np.einsum("k,a,d->kad", prior, EAR, EAR).ravel(), self._amplitudes
        )

    def run(self, square: Square) -> Finding:
        if self.asker.left > 1:
            (base,) = self.asker(to_image(self.pixels))
            while self.asker.left and (overlay := self._next()):
                response = self.asker.response(base, to_image(self.pixels + overlay()[:, :, None]))
                self.belief.learn(overlay, response)
        return self._concluded(square)

    @property
    def shares(self) -> Floats:
        """(4,) of ``KINDS``."""
        return np.asarray(self.belief.shares.reshape(len(KINDS), -1).sum(axis=1))

    def _next(self) -> Overlay | None:
        """Return what tells most; once that is known, what is needed to be certain."""
        responses = self.belief.responses
        if responses and self.shares.max() < BELIEVED:
            found = self.belief.best([*self.core, *self.more])
            return found and found[0]
        return next((overlay for overlay in self.core if overlay not in responses), None)

    def _amplitudes(self, overlay: Overlay, which: Which) -> Floats:
        """(H',) grey levels that reach the model, for each kind and two ears, one for waves across
        and one for down.
        """
        across, down = np.ones(len(HEARD)), np.ones(len(HEARD))
        if overlay.wave is None:
            left, rest = FRAME * np.sqrt(HIGH / 2 / WIDE) * np.array([1, 0, 1, PADDED]), 0.0
        else:
            left, rest = self._left(overlay.wave, overlay.edge), REST
            across, down = (HEARD, down) if overlay.edge == "across" else (across, HEARD)
        return np.asarray(
            np.hypot(rest, np.einsum("k,a,d->kad", left, across, down).ravel()[which])
        )

    def _left(self, wave: Wave, edge: Literal["across", "down"]) -> Floats:
        """(4,) grey levels that each of ``KINDS`` leaves of a wave."""
        side, crop = self.resize, self.crop
        if edge == "across":
            resized, kept = [side, 2 * side, 2 * side, side], [side, crop, 2 * side, side]
        else:
            resized, kept = [side, side, side, side // 2], [side, crop, side, side // 2]
        passes = KERNELS[0].passes(wave.target / 2 / np.array(resized, float))
        return np.asarray(wave.seen(resized, kept) * passes * np.array([1, 1, 1, PADDED]))

    def _concluded(self, square: Square) -> Finding:
        shares = self.shares
        kind = KINDS[int(shares.argmax())]
        told = [self.belief.responses.get(overlay) for overlay in self.core]
        evidence = f"{square.evidence}; in a wide image {self._told()}"
        if shares.max() < LIKELY or (self.crop < self.resize and kind != "resize_crop"):
            return Finding.unknown(f"{evidence}: no known profile does that for sure")
        sides = {"direct": (), "resize_crop": (self.resize, self.crop)}.get(kind, (self.resize,))
        sure = square.sure and shares.max() > BELIEVED and self._clear(kind, told)
        return Finding(str(ServerProfile(kind, *sides)), "certain" if sure else "likely", evidence)

    def _clear(self, kind: ProfileKind, told: list[float | None]) -> bool:
        """Whether all was asked, and what the kind says of each overlay is beyond doubt."""
        if None in told:
            return False
        across_seen, across, ends, down_seen, down = (response or 0.0 for response in told)
        floor = self.asker.floor
        waves = (
            (across, across_seen, kind in ("direct", "letterbox")),
            (down, down_seen, kind == "letterbox"),
        )
        return (ends <= floor if kind == "resize_crop" else ends > 3 * floor) and all(
            seen >= SENSITIVE * floor
            and (gone < CLEARLY[0] * seen if vanishes else gone > CLEARLY[1] * seen)
            for gone, seen, vanishes in waves
        )

    def _told(self) -> str:
        names = (
            f"a grating that peaks at {self.resize} px across",
            "one that vanishes there",
            "the ends",
            f"a grating that peaks at {round(self.resize / 2)} px down",
            "one that vanishes there",
        )
        responses = [self.belief.responses.get(overlay) for overlay in self.core]
        told = [
            f"{name} by {value:.2g}"
            for name, value in zip(names, responses, strict=True)
            if value is not None
        ]
        return f"the scores are moved: {', '.join(told)}" if told else "nothing was asked"
