"""Find out to which size a server resizes a square image, and what a center crop keeps of it.

All images but the last few are 1024 px square. The 8-px blocks of JPEG are then far smaller than a
pixel of the model's input, so a server that re-encodes images behaves like one that does not. Two
kinds of changes are laid over the image. Both test the same hypotheses: the server resizes to R x R
pixels with a certain kernel, and crops the central C x C. Each hypothesis predicts how much of a
change reaches the model:

- *waves* (:mod:`pgn_client.probe.gratings`), which vanish at some R;
- *frames*: a bright border, m pixels wide, which a crop removes.

The next change is the one with the largest expected information. R is confirmed by two waves: its
*needle*, which vanishes only at R, does not move the scores, but the needle shifted by a quarter
period, its *quadrature*, does. Then C is measured with images of R x R pixels, which the server
does not resize.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.probe.gratings import Wave, around, needle, quadrature
from pgn_client.probe.posterior import Belief
from pgn_client.probe.queries import SENSITIVE, Prober
from pgn_client.probe.resize_hypotheses import FRAME, LARGEST, SIDE, Question, hypotheses
from pgn_client.probe.stimuli import framed, outlined, smooth, to_image
from pgn_client.types import Answer

CONTROLS = (24, 48)  # half periods per edge of gratings that survive every resize
CONTRAST = 50.0  # amplitude of these gratings, in gray levels
COARSE = range(48, 1025, 16)  # targets of quadratures, which vanish if R is far below the target
FRAMES = range(8, 312, 8)  # widths of frames in pixels: whole blocks of JPEG
GUESSES = 24  # number of the likeliest R for which waves are considered
BELIEVED = 0.9  # weight above which the needle and the quadrature of an R are sent
LIKELY = 0.7  # weight of an R that is reported without them
# Share of the quadrature's response. The rounding of JPEG leaves less of a needle at R; one pixel
# from R, more than half remains.
VANISHED = 0.2
# Share of the control's response: a quadrature that passes the resize has more. If R were twice the
# real size, the kernel would stop the quadrature too.
STRONG = 0.4
# Share of the control's response. A row of black or white pixels has more; what JPEG smears over
# the edge of the crop has less.
OUTSIDE = 0.5
# Quotient of the responses with one painted pixel inside the crop, and with none. What JPEG smears
# over the edge grows more slowly.
STEP = 3.0
# Weight of a C that is believed from the frames alone, for servers whose JPEG blocks blur the step
# of one pixel at the edge of the crop.
PLAIN = 0.7
UNUSUAL = 1e-4  # weight of each C that no hypothesis has, so that the bisection can still find it
TRIES = 3  # candidates for C, with two images each
WIDE_PICTURES = 4  # images reserved for aspect_ratio.py
RESERVE = 5  # images reserved for a quadrature and for aspect_ratio.py


@dataclass(frozen=True, slots=True)
class Square:
    """What a server does to a square image: resize to R x R pixels, crop to the central C x C.

    Attributes:
        resize: R in pixels; ``None`` if no size is likely.
        crop: C in pixels; ``None`` if it is unknown.
        sure: Whether both are certain; otherwise they are likely.
        evidence: Reason, one sentence.
        control: Distance by which a grating of high contrast moves the scores.
    """

    resize: int | None
    crop: int | None
    sure: bool
    evidence: str
    control: float


def find_square(asker: Prober, seed: int) -> Square:
    """Find out to which size a server resizes and crops a square image, with at most 32 images."""
    return _Search(asker, seed).run()


class _Search:
    def __init__(self, asker: Prober, seed: int) -> None:
        self.asker = asker
        self.seed = seed
        self.pixels = smooth(SIDE, SIDE, seed)
        self.hypotheses = hypotheses()
        self.belief: Belief[Question] = Belief(
            asker, self.hypotheses.weights, self.hypotheses.amplitudes
        )
        self.base = Answer((), ())  # replaced in `run`
        self.evidence = ""
        self.doubtful = False  # whether R is likely, but not certain

    def run(self) -> Square:
        (self.base,) = self.asker(to_image(self.pixels))
        for target in CONTROLS:
            self._ask(Wave(target, amplitude=CONTRAST))
        if self.control < SENSITIVE * self.asker.floor:
            return self._failed(
                f"a strong grating moves the scores by only {self.control:.2g}; the scores are too "
                "insensitive"
            )

        while self.asker.left > RESERVE:
            question = self._next()
            if question is None:
                break
            self._ask(question)
        return self._likeliest()

    @property
    def control(self) -> float:
        return self.belief.control

    def _failed(self, evidence: str) -> Square:
        return Square(None, None, False, evidence, self.control)

    def _by_side(self) -> Floats:
        """Return the probability of each resized side R from 0 to ``LARGEST``, (LARGEST + 1,)."""
        return np.asarray(
            np.bincount(self.hypotheses.resize, self.belief.shares, LARGEST + 1), np.float64
        )

    def _next(self) -> Question | None:
        """Return the wave or frame to send next: the one with the largest expected information.

        Once one resized side R is believed, return the wave that vanishes only at R, then that wave
        shifted by a quarter period, then ``None``.
        """
        by_side = self._by_side()
        side = int(by_side.argmax())
        if by_side[side] > BELIEVED:
            needles = (needle(side), quadrature(needle(side)))
            return next((wave for wave in needles if wave not in self.belief.responses), None)

        targets = map(int, np.argsort(-by_side)[:GUESSES])
        coarse = [quadrature(needle(target)) for target in COARSE]
        best = self.belief.best([*around(targets), *coarse, *FRAMES])
        return None if best is None else best[0]

    def _ask(self, question: Question) -> None:
        if isinstance(question, Wave):
            pixels = self.pixels + question(SIDE)[None, :, None]
        else:
            pixels = framed(self.pixels, question, FRAME)
        response = self.asker.response(self.base, to_image(pixels))

        # A frame may be removed by the crop, so only waves are controls.
        self.belief.learn(question, response, control=isinstance(question, Wave))

    def _likeliest(self) -> Square:
        """Return the likeliest resized side, if likely enough, and the crop measured for it."""
        by_side = self._by_side()
        resize = int(by_side.argmax())
        wave = needle(resize)
        vanishing = self.belief.responses.get(wave)
        peak = self.belief.responses.get(quadrature(wave))
        if vanishing is None or peak is None:
            self.doubtful = True
            patterns = len(self.belief.responses)
            self.evidence = f"the answers to {patterns} patterns fit a resize to {resize} px"
        else:
            least = max(SENSITIVE * self.asker.floor, STRONG * self.control)
            self.doubtful = vanishing > VANISHED * peak or peak < least
            self.evidence = (
                f"a grating that vanishes at {resize} px moves the scores by {vanishing:.2g}; "
                f"shifted by a quarter period, it moves them by {peak:.2g}"
            )

        if by_side[resize] < LIKELY:
            if self.asker.left <= RESERVE:
                reason = "no images were left to measure the size"
            else:
                reason = "no size fits well enough"
            return self._failed(f"{reason}; {resize} px fits best, but others fit too")
        return self._crop(resize)

    def _crop(self, resize: int) -> Square:
        """Find the crop by bisection, with images of R x R pixels, which need no resize.

        Each step paints everything outside the central c x c pixels black or white, and measures
        whether the scores move.

        Args:
            resize: R, the side in pixels to which the server resizes.
        """
        same_resize = self.hypotheses.resize == resize
        weights: Floats = np.bincount(
            self.hypotheses.crop[same_resize], self.belief.weights[same_resize], resize + 1
        ).astype(float)
        weights = (weights / weights.sum()) + UNUSUAL
        # No usual server crops away more than half of an edge.
        weights[: resize // 2] = 0

        # The bisection needs at least three images: the base, and one on each side of the crop.
        if self.asker.left < WIDE_PICTURES + 3:
            crop = int(weights.argmax()) if weights.max() > PLAIN else None
            evidence = f"{self.evidence}; the crop was inferred from bright frames alone"
            return Square(resize, crop, False, evidence, self.control)

        pixels = smooth(resize, resize, self.seed)
        base = self.asker(to_image(pixels))[0]
        low = 0  # what is outside this side moves the scores
        high = resize  # what is outside this side does not
        responses = {resize: 0.0}  # nothing lies outside the whole image, so none is sent for it
        for _ in range(TRIES):
            sides = np.arange(resize + 1)
            possible = np.where((sides > low) & (sides <= high), weights, 0.0)
            # A step sends up to two images, inside and outside a possible crop.
            if not possible.sum() or self.asker.left < WIDE_PICTURES + 2:
                break

            best = int(possible.argmax())
            for side in {best - 1, best} - responses.keys():
                responses[side] = self.asker.response(base, to_image(outlined(pixels, side)))
            inner = responses[best - 1]
            outer = responses[best]

            clear_step = inner > max(SENSITIVE * self.asker.floor, STEP * outer)
            if clear_step or weights[best] > PLAIN:
                break
            if outer > max(3 * self.asker.floor, OUTSIDE * self.control):
                low = best
            else:
                high = best - 1
        return self._measured_crop(resize, low, high, weights, responses)

    def _measured_crop(
        self, resize: int, low: int, high: int, weights: Floats, responses: dict[int, float]
    ) -> Square:
        """Return the resize and the crop, with evidence, after the bisection of the crop's side C.

        Args:
            resize: R, the side in pixels to which the server resizes.
            low: Lower bound of C, exclusive.
            high: Upper bound of C, inclusive.
            weights: Weight of each C from 0 to R, (R + 1,).
            responses: Side c -> response to an image painted outside its central c x c pixels.
        """
        drops = {
            side + 1: responses[side] - responses[side + 1]
            for side in responses
            if side + 1 in responses
        }
        if not drops:
            weights[: low + 1] = 0
            weights[high + 1 :] = 0
            crop = int(weights.argmax()) if weights.sum() else None
            evidence = f"{self.evidence}; the crop keeps between {low} and {high} px"
            return Square(resize, crop, False, evidence, self.control)

        plain = int(weights.argmax())
        crop = plain if weights[plain] > PLAIN else max(drops, key=lambda side: drops[side])
        inner = responses[crop - 1]
        outer = responses[crop]
        sure = (
            not self.doubtful
            and inner > OUTSIDE * self.control
            and self.asker.gone(outer, beside=inner)
        )
        evidence = (
            f"{self.evidence}; painting all but the central {crop} px moves the scores by "
            f"{outer:.2g}, all but {crop - 1} px by {inner:.2g}"
        )
        if not sure:
            evidence += ", which is not clear enough to be certain"
        return Square(resize, crop, sure, evidence, self.control)
