"""To which size a server resizes a square picture, and what of it a centre crop keeps.

All pictures but the last few are 1024 px square: the 8-px blocks of JPEG are then far below a pixel of the model's
input, and a server that re-encodes looks like one that does not.

*Frames*: the border is brightened, m pixels wide; no change of the answer means that a crop removes it.
*Needles*: a grating that vanishes exactly when the picture is resized to R pixels, see :func:`pictures.needle`.
Both are questions to one list of hypotheses (R, C, kernel). A needle ends the search: it is only believed when its
quadrature is seen. Then the crop is measured at R x R pixels, where the resize is the identity.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pgn_client.probe import bursts
from pgn_client.probe.asking import SENSITIVE, Asker, Verdict
from pgn_client.probe.pictures import Floats, framed, grating, needle, outlined, picture, smooth
from pgn_client.probe.questions import DIFFERENT, EITHER, SAME, Predictions, Weights, splits, updated
from pgn_client.types import Answer

SIDE = 1024  # pixels
SMALLEST, LARGEST = 32, 640  # sides that are looked for
CYCLES = (24.0, 48.0, 96.0, 136.0, 192.0, 272.0, 384.0)  # per edge, of the first gratings
PASSES, STOPS = 1.15, 0.65  # cycles/R where a grating has surely vanished, and where it is surely seen
PASSED, STOPPED = 0.5, 0.1  # of the control; between them, a sidelobe of the kernel or what JPEG leaves
GRATING, NEEDLE, FRAME = 30.0, 70.0, 80.0  # amplitudes in grey levels
FRAMES = range(8, 312, 8)  # widths in pixels; whole blocks of JPEG
HIDDEN, SHOWN = 1e-4, 0.1  # weight of a frame in the outermost pixel of the crop: changes nothing; is seen
GLIMPSE = 0.02  # of the control: the answer to a frame that is seen
SCREEN = 0.4  # of the control: a needle that may have vanished, its quadrature will tell
VANISHED = 0.2  # of the quadrature: what the rounding of JPEG leaves of a needle; one pixel off leaves more than half
OUTSIDE = 0.5  # of the control: a row of black or white pixels; what JPEG smears over the edge is less
FAINT = 0.35  # of the quadrature: perhaps vanished, behind a coarse JPEG or a score that saturates; then ...
BESIDE = 3.0  # ... a needle one pixel off must move the scores so many times as much, and strongly
STRONG = 0.4  # of the control: a quadrature that passes the resize; at half of R pixels the kernel would stop it
STEP = 3.0  # from one pixel within the crop to none: what JPEG smears over the edge grows slowly
DOUBT = 0.02  # weight that a contradicted hypothesis keeps: a faint frame may be overlooked
PLAIN = 0.7  # weight of a crop by the frames alone; JPEG's blocks, not aligned to a crop, blur a step of one pixel
CROPS = 3  # that are tried, with two pictures each
WIDE_PICTURES = 4  # of shape.py
DOUBT_GRATING = 0.1  # likewise, where a model is deaf to a frequency
GUESS = 0.34  # weight from which a side is asked for by itself
TOLD = 0.3  # bits that bursts must be good for
RESERVE = 5  # pictures kept, for a quadrature and for what is not square
USUAL = {224: 30.0, 64: 10.0, 32: 5.0, 256: 5.0, 384: 8.0, 336: 4.0, 448: 4.0, 518: 3.0}
OTHERS = {48, 96, 112, 128, 144, 160, 176, 192, 196, 208, 232, 240, 248, 260, 280, 288, 299, 300, 320, 352, 378, 392}
OTHERS |= {400, 416, 480, 490, 512, 560, 576, 600}
PERCENTAGES = {0.875: 5.0, 0.9: 2.0, 0.95: 1.5, 0.96: 1.0, 0.965: 0.5, 0.93: 0.5, 0.85: 0.5, 0.8: 0.5}


@dataclass(frozen=True)
class Square:
    """What happens to a square picture.

    Attributes:
        resize: R in pixels; ``None`` where no needle vanished.
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


@dataclass(frozen=True)
class Hypotheses:
    """H squares and kernels, (H,) each: R and C in pixels, and the place in ``KERNELS``."""

    resize: NDArray[np.int64]
    crop: NDArray[np.int64]
    kernel: NDArray[np.int64]
    weights: Weights


def _bilinear(x: Floats) -> Floats:
    return np.asarray(np.maximum(0.0, 1 - np.abs(x)))


def _bicubic(x: Floats) -> Floats:
    x = np.abs(x)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def _lanczos(x: Floats) -> Floats:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS = ((_bicubic, 0.55), (_bilinear, 0.4), (_lanczos, 0.05))  # with their weights


@functools.cache
def hypotheses() -> Hypotheses:
    """Every side from 32 to 640, every crop down to two thirds; the usual ones weigh more."""
    rows = []
    for crop in range(SMALLEST, LARGEST + 1):
        usual = USUAL.get(crop, 0.5 if crop in OTHERS else 0.02 if crop % 8 == 0 else 0.0005)
        for resize in range(crop, min(LARGEST, crop * 3 // 2) + 1):
            rows.append((resize, crop, usual * _resize_weight(resize, crop)))
    resizes, crops, weight = (np.array(column) for column in zip(*rows, strict=True))
    count, shares = len(KERNELS), np.array([share for _, share in KERNELS])
    weights = np.repeat(weight, count) * np.tile(shares, len(weight))
    kernel = np.tile(np.arange(count), len(weight))
    return Hypotheses(np.repeat(resizes, count), np.repeat(crops, count), kernel, weights / weights.sum())


def _resize_weight(resize: int, crop: int) -> float:
    if resize == crop:
        return 6.0
    by_percentage = max((w for share, w in PERCENTAGES.items() if resize == int(crop / share)), default=0.2)
    return max(by_percentage, 2.0 if resize == crop + 32 else 0.5 if resize % 8 == 0 else 0.0)


@functools.cache
def frame_predictions() -> Predictions:
    """(T, H): whether a frame reaches the outermost row of pixels that a crop keeps."""
    known = hypotheses()
    offset = (known.resize - known.crop) // 2  # on the narrower side: of an odd margin, one side has a pixel more
    x = np.linspace(-4, 4, 4001)
    rows = []
    for width in FRAMES:
        reach = width * known.resize / SIDE - offset - 0.5  # in pixels after the resize, from that row's centre
        inside = np.zeros(len(reach))
        for number, (kernel, _) in enumerate(KERNELS):
            values = kernel(x)
            table = np.maximum.accumulate(np.abs(np.cumsum(values) / values.sum()))
            mine = known.kernel == number
            inside[mine] = np.interp(reach[mine], x, table)
        past = reach > 0.5
        rows.append(np.where((inside > SHOWN) | past, DIFFERENT, np.where(inside < HIDDEN, SAME, EITHER)))
    return np.array(rows, np.int8)


def find_square(asker: Asker, seed: int) -> Square:
    """Find R and C in at most 32 pictures."""
    return _Search(asker, seed).run()


class _Search:
    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker = asker
        self.seed = seed
        self.pixels = smooth(SIDE, SIDE, seed)
        self.known = hypotheses()
        self.weights = self.known.weights
        self.control = 0.0
        self.base = Answer((), ())
        self.unasked = np.ones(len(FRAMES), bool)
        self.evidence = ""
        self.asked: set[bursts.Pair] = set()
        self.faint = False  # whether R is not beyond doubt

    def run(self) -> Square:
        (self.base,) = self.asker(picture(self.pixels))
        responses = [self._respond(grating(SIDE, cycles, GRATING)) for cycles in CYCLES]
        self.control = max(responses)
        if self.control < 10 * self.asker.floor:
            return self._failed(f"a strong grating moves the scores by {self.control:.2g} only: they show too little")
        for cycles, response in zip(CYCLES, responses, strict=True):
            self._weigh_grating(cycles, response)
        while self.asker.left > RESERVE:
            resize = self._ask_best()
            if resize is not None:
                return self._crop(resize)
        return self._failed("no grating vanishes at any of the sizes that were tried")

    def _failed(self, evidence: str) -> Square:
        return Square(None, None, False, evidence, self.control)

    def _respond(self, wave: Floats) -> float:
        return self.asker.response(self.base, picture(self.pixels + wave[None, :, None]))

    def _weigh_grating(self, cycles: float, response: float) -> None:
        ratio = cycles / self.known.resize
        prediction = np.where(ratio > PASSES, SAME, np.where(ratio < STOPS, DIFFERENT, EITHER)).astype(np.int8)
        share = response / self.control
        verdict: Verdict = "different" if share > PASSED else "same" if share < STOPPED else "unclear"
        self.weights = updated(self.weights, prediction, verdict, doubt=DOUBT_GRATING)

    def _ask_best(self) -> int | None:
        """Send the frame, bursts or the needle that split the weights best; return R where a needle vanished."""
        total = self.weights.sum()
        by_size = np.bincount(self.known.resize, self.weights, LARGEST + 1) / total
        resize = int(by_size.argmax())
        gain = splits(self.weights, frame_predictions()) * self.unasked
        best = int(gain.argmax())
        if gain[best] > min(by_size[resize], 1 - by_size[resize], 0.3):
            self._ask_frame(best)
            return None
        if by_size[resize] < GUESS and self.asker.left > RESERVE + 2:
            pair, bits = bursts.best_pair(by_size, self.asked)
            if bits > TOLD:
                self._ask_bursts(pair)
                return None
        return self._ask_needle(resize)

    def _ask_bursts(self, pair: bursts.Pair) -> None:
        self.asked.add(pair)
        even, odd = (self._respond(bursts.burst(SIDE, pair, NEEDLE, odd=odd)) for odd in (False, True))
        if max(even, odd) < SENSITIVE * self.asker.floor:
            return
        shares = np.bincount(self.known.resize, self.weights, LARGEST + 1).astype(float)
        after = bursts.updated(shares, pair, bursts.outcome(even, odd))
        change = np.divide(after, shares, out=np.ones_like(after), where=shares > 0)
        self.weights = self.weights * change[self.known.resize]

    def _ask_frame(self, number: int) -> None:
        width = FRAMES[number]
        response = self.asker.response(self.base, picture(framed(self.pixels, width, FRAME)))
        floor = self.asker.floor
        seen = response > max(3 * floor, GLIMPSE * self.control)
        verdict: Verdict = "different" if seen else "same" if response <= floor else "unclear"
        self.unasked[number] = False
        self.weights = updated(self.weights, frame_predictions()[number], verdict, doubt=DOUBT)

    def _ask_needle(self, resize: int) -> int | None:
        response = self._respond(needle(SIDE, resize, NEEDLE))
        if response < SCREEN * self.control:
            control = self._respond(needle(SIDE, resize, NEEDLE, quadrature=True))
            self.evidence = f"a grating that vanishes at {resize} px moves the scores by {response:.2g}, its "
            self.evidence += f"quadrature by {control:.2g}"
            strong = max(SENSITIVE * self.asker.floor, STRONG * self.control)
            if control > strong and response < VANISHED * control:
                return resize
            if control > SENSITIVE * self.asker.floor and response < FAINT * control and self.asker.left > RESERVE:
                beside = self._respond(needle(SIDE, resize + 1, NEEDLE))
                self.evidence += f", one that vanishes at {resize + 1} px by {beside:.2g}"
                self.faint = beside > max(strong, BESIDE * response)
                if self.faint:
                    return resize
        self.weights = np.where(self.known.resize == resize, 1e-4 * self.weights, self.weights)
        return None

    def _crop(self, resize: int) -> Square:
        """Bisect C at R x R pixels, where nothing is resized: is what lies outside the central c x c seen?"""
        mine = self.known.resize == resize
        weights: Weights = np.bincount(self.known.crop[mine], self.weights[mine], resize + 1).astype(float)
        weights[: resize // 2] = 0
        weights /= max(weights.sum(), 1e-300)
        if self.asker.left < WIDE_PICTURES + 3:
            crop = int(weights.argmax()) if weights.max() > PLAIN else None
            return Square(resize, crop, False, f"{self.evidence}; the crop is told by frames alone", self.control)
        pixels = smooth(resize, resize, self.seed)
        base = self.asker(picture(pixels))[0]
        low, high = 0, resize  # seen outside low, not seen outside high
        responses = {resize: 0.0}
        for _ in range(CROPS):
            alive = np.where((np.arange(resize + 1) > low) & (np.arange(resize + 1) <= high), weights, 0.0)
            if not alive.sum() or self.asker.left < WIDE_PICTURES + 2:
                break
            best = int(alive.argmax())
            for side in {best - 1, best} - responses.keys():
                responses[side] = self.asker.response(base, picture(outlined(pixels, side)))
            seen, unseen = responses[best - 1], responses[best]
            if seen > max(SENSITIVE * self.asker.floor, STEP * unseen) or weights[best] > PLAIN:
                break
            if unseen > max(3 * self.asker.floor, OUTSIDE * self.control):
                low = best
            else:
                high = best - 1
        return self._concluded(resize, low, high, weights, responses)

    def _concluded(self, resize: int, low: int, high: int, weights: Weights, responses: dict[int, float]) -> Square:
        drops = {side + 1: responses[side] - responses[side + 1] for side in responses if side + 1 in responses}
        if drops:
            plain = int(weights.argmax())
            crop = plain if weights[plain] > PLAIN else max(drops, key=lambda side: drops[side])
            seen, unseen = responses[crop - 1], responses[crop]
            told = (
                f"what is outside the central {crop} px moves the scores by {unseen:.2g}, with one more by {seen:.2g}"
            )
            sure = not self.faint and seen > OUTSIDE * self.control and self.asker.verdict(unseen, seen) == "same"
            return Square(resize, crop, sure, f"{self.evidence}; {told}", self.control)
        weights[: low + 1] = weights[high + 1 :] = 0
        best = int(weights.argmax()) if weights.sum() else None
        return Square(resize, best, False, f"{self.evidence}; between {low} and {high} px of it are kept", self.control)
