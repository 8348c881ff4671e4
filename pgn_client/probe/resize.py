"""To which size a server resizes a square image, and what of it a centre crop keeps.

All images but the last few are 1024 px square: the 8-px blocks of JPEG are then far below a pixel
of the model's input, and a server that re-encodes looks like one that does not. Two kinds of
overlays are questions to one list of hypotheses (R, C, kernel), each of which says how much of an
overlay reaches the model:

- *waves* (:mod:`pgn_client.probe.gratings`), which vanish at some R;
- *frames*: the border is brightened, m pixels wide; a crop removes it.

The next question is the one that is expected to tell most. A side is believed when its needle
vanishes and the needle's quadrature is seen. Then the crop is measured at R x R pixels, where the
resize is the identity.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.probe.gratings import Wave, around, needle, quadrature
from pgn_client.probe.posterior import Belief
from pgn_client.probe.queries import SENSITIVE, Asker
from pgn_client.probe.resize_hypotheses import FRAME, LARGEST, SIDE, Question, hypotheses
from pgn_client.probe.stimuli import framed, outlined, smooth, to_image
from pgn_client.types import Answer

CONTROLS, CONTRAST = (24, 48), 50.0  # half periods per edge, seen whatever the size; grey levels
COARSE = range(48, 1025, 16)  # likewise, of needles' quadratures that vanish where R is far below
FRAMES = range(8, 312, 8)  # widths in pixels; whole blocks of JPEG
GUESSES = 24  # the likeliest sides, around which waves are considered
BELIEVED = 0.9  # weight from which a side is held against its quadrature
LIKELY = 0.7  # weight of a side that is reported without
# of the quadrature: what the rounding of JPEG leaves of a needle; one pixel off leaves more than
# half
VANISHED = 0.2
# of the control: a quadrature that passes the resize; at half of R pixels the kernel would stop it
STRONG = 0.4
# of the control: a row of black or white pixels; what JPEG smears over the edge is less
OUTSIDE = 0.5
STEP = 3.0  # from one pixel within the crop to none: what JPEG smears over the edge grows slowly
# weight of a crop by the frames alone; JPEG's blocks, not aligned to a crop, blur a step of one
# pixel
PLAIN = 0.7
UNUSUAL = 1e-4  # weight of each crop that no hypothesis has
TRIES = 3  # at the crop, with two images each
WIDE_PICTURES = 4  # of shape.py
RESERVE = 5  # images kept, for a quadrature and for what is not square


@dataclass(frozen=True, slots=True)
class Square:
    """What happens to a square image.

    Attributes:
        resize: R in pixels; ``None`` where no side is likely.
        crop: C in pixels; ``None`` where it could not be told.
        sure: whether both are certain; they are likely otherwise.
        evidence: why.
        control: distance of a full-contrast grating from the base.
    """

    resize: int | None
    crop: int | None
    sure: bool
    evidence: str
    control: float


def find_square(asker: Asker, seed: int) -> Square:
    """Find R and C in at most 32 images."""
    return _Search(asker, seed).run()


class _Search:
    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker = asker
        self.seed = seed
        self.pixels = smooth(SIDE, SIDE, seed)
        self.known = hypotheses()
        self.belief: Belief[Question] = Belief(asker, self.known.weights, self.known.amplitudes)
        self.base = Answer((), ())
        self.evidence = ""
        self.faint = False  # whether R is not beyond doubt

    def run(self) -> Square:
        (self.base,) = self.asker(to_image(self.pixels))
        for target in CONTROLS:
            self._ask(Wave(target, amplitude=CONTRAST))
        if self.control < SENSITIVE * self.asker.floor:
            return self._failed(
                f"a strong grating moves the scores by {self.control:.2g} only: "
                "they show too little"
            )
        while self.asker.left > RESERVE:
            question = self._next()
            if question is None:
                break
            self._ask(question)
        return self._believed()

    @property
    def control(self) -> float:
        return self.belief.control

    def _failed(self, evidence: str) -> Square:
        return Square(None, None, False, evidence, self.control)

    def _by_side(self) -> Floats:
        """(LARGEST + 1,) the weight of each R."""
        return np.asarray(
            np.bincount(self.known.resize, self.belief.shares, LARGEST + 1), np.float64
        )

    def _next(self) -> Question | None:
        """Return what tells most; of a side that is believed, the needle and its quadrature."""
        by_side = self._by_side()
        side = int(by_side.argmax())
        if by_side[side] > BELIEVED:
            needles = needle(side), quadrature(needle(side))
            return next((wave for wave in needles if wave not in self.belief.responses), None)
        targets = map(int, np.argsort(-by_side)[:GUESSES])
        found = self.belief.best(
            [*around(targets), *(quadrature(needle(target)) for target in COARSE), *FRAMES]
        )
        return found and found[0]

    def _ask(self, question: Question) -> None:
        wave = isinstance(question, Wave)
        if isinstance(question, Wave):
            pixels = self.pixels + question(SIDE)[None, :, None]
        else:
            pixels = framed(self.pixels, question, FRAME)
        self.belief.learn(question, self.asker.response(self.base, to_image(pixels)), control=wave)

    def _believed(self) -> Square:
        """Measure the crop of the likeliest side, if it is likely enough."""
        by_side = self._by_side()
        resize = int(by_side.argmax())
        wave = needle(resize)
        gone, seen = self.belief.responses.get(wave), self.belief.responses.get(quadrature(wave))
        if gone is None or seen is None:
            self.faint = True
            self.evidence = f"{len(self.belief.responses)} overlays fit {resize} px"
        else:
            self.evidence = (
                f"a grating that vanishes at {resize} px moves the scores by {gone:.2g}, its "
                f"quadrature by {seen:.2g}"
            )
            self.faint = gone > VANISHED * seen or seen < max(
                SENSITIVE * self.asker.floor, STRONG * self.control
            )
        if by_side[resize] < LIKELY:
            few = (
                ("no images were left to tell the side")
                if self.asker.left <= RESERVE
                else "no side fits well enough"
            )
            return self._failed(f"{few}; {resize} px fits best, among others")
        return self._crop(resize)

    def _crop(self, resize: int) -> Square:
        """Bisect C at R x R pixels, where nothing is resized: is what lies outside the central c x
        c seen?
        """
        mine = self.known.resize == resize
        weights: Floats = np.bincount(
            self.known.crop[mine], self.belief.weights[mine], resize + 1
        ).astype(float)
        weights = (weights / weights.sum()) + UNUSUAL
        weights[: resize // 2] = 0
        if self.asker.left < WIDE_PICTURES + 3:
            crop = int(weights.argmax()) if weights.max() > PLAIN else None
            return Square(
                resize,
                crop,
                False,
                f"{self.evidence}; the crop is told by frames alone",
                self.control,
            )
        pixels = smooth(resize, resize, self.seed)
        base = self.asker(to_image(pixels))[0]
        low, high = 0, resize  # seen outside low, not seen outside high
        responses = {resize: 0.0}
        for _ in range(TRIES):
            alive = np.where(
                (np.arange(resize + 1) > low) & (np.arange(resize + 1) <= high), weights, 0.0
            )
            if not alive.sum() or self.asker.left < WIDE_PICTURES + 2:
                break
            best = int(alive.argmax())
            for side in {best - 1, best} - responses.keys():
                responses[side] = self.asker.response(base, to_image(outlined(pixels, side)))
            seen, unseen = responses[best - 1], responses[best]
            if seen > max(SENSITIVE * self.asker.floor, STEP * unseen) or weights[best] > PLAIN:
                break
            if unseen > max(3 * self.asker.floor, OUTSIDE * self.control):
                low = best
            else:
                high = best - 1
        return self._concluded(resize, low, high, weights, responses)

    def _concluded(
        self, resize: int, low: int, high: int, weights: Floats, responses: dict[int, float]
    ) -> Square:
        drops = {
            side + 1: responses[side] - responses[side + 1]
            for side in responses
            if side + 1 in responses
        }
        if drops:
            plain = int(weights.argmax())
            crop = plain if weights[plain] > PLAIN else max(drops, key=lambda side: drops[side])
            seen, unseen = responses[crop - 1], responses[crop]
            told = (
                f"what is outside the central {crop} px moves the scores by {unseen:.2g}, with one "
                f"more by {seen:.2g}"
            )
            sure = (
                not self.faint
                and seen > OUTSIDE * self.control
                and self.asker.gone(unseen, beside=seen)
            )
            doubt = "" if sure else ", which is near, not beyond doubt"
            return Square(resize, crop, sure, f"{self.evidence}; {told}{doubt}", self.control)
        weights[: low + 1] = weights[high + 1 :] = 0
        best = int(weights.argmax()) if weights.sum() else None
        return Square(
            resize,
            best,
            False,
            f"{self.evidence}; between {low} and {high} px of it are kept",
            self.control,
        )
