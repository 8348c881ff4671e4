"""Whether a server re-encodes what it receives as JPEG, and with which quality and subsampling.

Every picture is a mosaic of flat 8 x 8 blocks, 32 px square: below the input size of any model, so that whatever is
left after the codec is up-scaled and seen, wherever the server resizes and crops to. What is laid over the mosaic says
which quality sees it: a pattern whose DCT coefficients are all below half a quantisation step is gone after JPEG, and
coarser steps lose it too. So each picture asks *is the quality above q?*, and a bisection finds q.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.probe.asking import Asker, Verdict
from pgn_client.probe.findings import Finding
from pgn_client.probe.pictures import Floats, mosaic, picture, recode, rms
from pgn_client.probe.questions import DIFFERENT, EITHER, SAME, Predictions, Weights, splits, updated
from pgn_client.types import Answer

SIDE = 32  # pixels: four MCUs of 16 x 16
QUALITIES = range(30, 101)
SUBSAMPLINGS = ("444", "422", "420")
USUAL_QUALITIES = (50, 60, 70, 75, 80, 85, 90, 95)
LOSSLESS = "lossless"
GONE = 0.495  # of a quantisation step: what is below rounds to nothing, surely
KEPT = 0.5  # of a pattern's amplitude: what is above is surely seen
WAVES = (
    (1, 2),
    (2, 2),
    (3, 3),
    (4, 4),
    (5, 5),
    (6, 6),
    (2, 5),
    (0, 4),
    (1, 3),
    (3, 5),
    (4, 5),
    (1, 6),
    (5, 2),
    (6, 4),
)  # of the cosine transform
STRIPES = 15.0  # amplitude of the control, in grey levels
COLOUR = np.array([-7.0, -11.0, 75.0])  # grey levels of R, G, B, to and fro: 0.299 R + 0.587 G + 0.114 B is exactly 0
LOST, FOUND = 0.2, 0.5  # of the response to stripes that every subsampling keeps
SEEN, UNSEEN = 0.15, 0.03  # of the response that is expected of a pattern's amplitude
QUESTIONS = 8
FEW = 3  # neighbouring qualities that no pattern tells apart; the metamers of the last step do
CLEAR = 0.8  # weight of a hypothesis that is reported as likely


_N = np.arange(8)
BASIS: Floats = np.cos(np.outer(_N, 2 * _N + 1) * np.pi / 16) * np.where(_N, 0.5, 0.5**1.5)[:, None]  # the 8-point DCT


@dataclass(frozen=True)
class Pattern:
    """An 8 x 8 luma pattern for every block of the mosaic; integers, pixel space."""

    values: Floats

    @property
    def overlay(self) -> Floats:
        """(SIDE, SIDE, 1), pixel space."""
        return np.tile(self.values, (SIDE // 8, SIDE // 8))[:, :, None]


def find_codec(asker: Asker, seed: int) -> Finding:
    """Find the codec in at most 15 pictures."""
    return _Search(asker, seed).run()


class _Search:
    """Weights over ``lossless`` and (quality, subsampling), the first entry and a grid behind it."""

    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker = asker
        self.mosaic = mosaic(SIDE, seed)
        self.weights = _prior()
        self.told: list[str] = []
        self.base = Answer((), ())
        self.scale = 0.0  # response per grey level

    def run(self) -> Finding:
        self.base = self.asker.twice(picture(self.mosaic))
        control = np.tile(_alternating(4, STRIPES), (SIDE, 1))[:, :, None]
        self.control = self._respond(control)
        self.scale = self.control / rms(control)
        if self.control < 10 * self.asker.floor:
            return Finding.unknown(
                f"strong stripes move the scores by {self.control:.2g}, little beside a floor of "
                f"{self.asker.floor:.2g}: the answers show too little"
            )
        self._ask_chroma()
        self._ask_quality()
        return self._conclude()

    def _respond(self, overlay: Floats) -> float:
        return self.asker.response(self.base, picture(self.mosaic + overlay))

    def _ask_chroma(self) -> None:
        """Colour stripes of one pixel and equal luma: 4:2:0 loses both directions, 4:2:2 the columns."""
        columns, rows = (self._respond(overlay) for overlay in _colour_stripes(1))
        slow = max(columns, rows)
        if min(columns, rows) < max(slow, self.control) / 2:
            slow = max(slow, self._respond(_colour_stripes(8)[0]))
        for response, lost in ((columns, ("422", "420")), (rows, ("420",))):
            verdict = self._colour_verdict(response, slow)
            prediction = np.array([DIFFERENT, *(SAME if s in lost else DIFFERENT for _, s in _grid())], np.int8)
            self.weights = updated(self.weights, prediction, verdict)
        self.told.append(f"colour stripes of one pixel move the scores by {columns:.2g} and {rows:.2g}")

    def _ask_quality(self) -> None:
        patterns, predictions = _library()
        amplitude = np.array([rms(pattern.values) for pattern in patterns])
        usable = amplitude * self.scale * SEEN > self.asker.floor
        for _ in range(QUESTIONS):
            gain = splits(self.weights, predictions) * usable
            if not gain.max():
                return
            best = int(np.argmax(np.round(gain, 6) + 1e-9 * amplitude))  # of equal questions, the loudest
            usable[best] = False
            verdict = self._verdict(self._respond(patterns[best].overlay), amplitude[best] * self.scale)
            self.weights = updated(self.weights, predictions[best], verdict)

    def _colour_verdict(self, response: float, control: float) -> Verdict:
        """What is left of lost colours moves the scores a little, since JPEG rounds."""
        if control < 10 * self.asker.floor or LOST * control < response < FOUND * control:
            return "unclear"
        return "different" if response >= FOUND * control else "same"

    def _verdict(self, response: float, expected: float) -> Verdict:
        floor = self.asker.floor
        if response > max(2 * floor, SEEN * expected):
            return "different"
        return "same" if response <= max(floor, UNSEEN * expected) else "unclear"

    def _conclude(self) -> Finding:
        total = self.weights.sum()
        if not total:
            return Finding("lossy", "likely", f"no lossless and no JPEG server answers so: {self.told[0]}")
        left = self.weights > 0
        best = int(self.weights.argmax())
        share = float(self.weights[best] / total)
        if best == 0:
            return self._lossless(share, alone=left.sum() == 1)
        quality, subsampling = _grid()[best - 1]
        name = f"jpeg:{quality}:{subsampling}"
        if not left[0] and left.sum() <= FEW:
            return self._confirmed(name, quality, subsampling)
        if share >= CLEAR:
            return Finding(name, "likely", f"{self.told[0]}; {left.sum()} qualities fit, this one is the usual one")
        return Finding(None if left[0] else "lossy", "unknown", f"{self.told[0]}; {left.sum()} codecs fit")

    def _lossless(self, share: float, *, alone: bool) -> Finding:
        if alone:
            return Finding(LOSSLESS, "certain", f"{self.told[0]}, and single pixels of one grey level are seen")
        if share >= CLEAR:
            return Finding(LOSSLESS, "likely", f"{self.told[0]}; only a JPEG quality near 100 could do that too")
        return Finding.unknown(f"{self.told[0]}; lossless and high JPEG qualities fit")

    def _confirmed(self, name: str, quality: int, subsampling: str) -> Finding:
        """Send two rich pictures which only this quality makes equal."""
        one, other = metamers(quality, subsampling, self.mosaic)
        first, second = self.asker(picture(one), picture(other))
        response, expected = self.asker.distance(first, second), rms(one - other) * self.scale
        found = (
            f"two pictures {rms(one - other):.1f} grey levels apart which {name} makes equal are {response:.2g} apart"
        )
        if self._verdict(response, expected) == "same" and SEEN * expected > self.asker.floor:
            return Finding(name, "certain", f"{found}, where {expected:.2g} is expected of others")
        value = None if subsampling == "444" else "lossy"  # all colours came through: it may be lossless yet
        return Finding(value, "unknown", f"{self.told[0]}; bisection ends at {name}, but {found}")


@functools.cache
def _grid() -> list[tuple[int, str]]:
    return [(quality, subsampling) for quality in QUALITIES for subsampling in SUBSAMPLINGS]


def _prior() -> Weights:
    """Weights before the first picture: lossless, and the qualities that people write into a configuration."""
    by_subsampling = {"444": 0.25, "422": 0.15, "420": 0.6}
    usual = {q: 1.0 if q in USUAL_QUALITIES else 0.3 if q % 5 == 0 else 0.03 for q in QUALITIES}
    return np.array([4.0, *(usual[quality] * by_subsampling[s] for quality, s in _grid())])


def _alternating(width: int, amplitude: float) -> Floats:
    """(SIDE,) stripes ``width`` pixels wide."""
    return np.where(np.arange(SIDE) // width % 2, amplitude, -amplitude)


def _colour_stripes(width: int) -> tuple[Floats, Floats]:
    """Columns and rows of opposite colours, (SIDE, SIDE, 3); the luma of both colours is equal within a level."""
    columns = np.tile(_alternating(width, 1.0), (SIDE, 1))[:, :, None] * COLOUR
    return columns, columns.transpose(1, 0, 2)


@functools.cache
def _library() -> tuple[list[Pattern], Predictions]:
    """T patterns, and (T, H) what each hypothesis predicts; luma does not depend on the subsampling."""
    x = (np.arange(8) + 0.5) * np.pi / 8
    spectra = np.random.default_rng(0).choice([-1.0, 1.0], (4, 8, 8))
    spectra[:, 0, 0] = 0
    rich = [(share, spectrum) for share in (0.2, 0.3, 0.4) for spectrum in spectra]
    waves = [np.outer(np.cos(u * x), np.cos(v * x)) for u, v in WAVES]
    found = [np.rint(amplitude * wave) for wave in waves for amplitude in np.arange(0.6, 26, 0.2)]
    found += [
        np.rint(BASIS.T @ (steps * share * spectrum) @ BASIS)
        for steps in _steps()[::2].reshape(-1, 8, 8)
        for share, spectrum in rich
    ]
    faint = np.zeros((8, 8))
    faint[1, 2], faint[6, 3] = 1, -1  # no coefficient reaches a half: lost at every quality
    found.append(faint)
    patterns = [Pattern(values) for values in {p.tobytes(): p for p in found if p.any() and not p.sum()}.values()]
    coefficients, steps = np.stack([_dct(pattern.values) for pattern in patterns])[:, None], _steps()[None]
    gone = (np.abs(coefficients) < GONE * steps).all(axis=2)  # (T, Q)
    left = np.linalg.norm(np.rint(coefficients / steps) * steps, axis=2) / np.linalg.norm(coefficients, axis=2)
    per_quality = np.where(gone, SAME, np.where(left > KEPT, DIFFERENT, EITHER)).astype(np.int8)
    seen_lossless = np.full((len(patterns), 1), DIFFERENT, np.int8)
    return patterns, np.hstack([seen_lossless, np.repeat(per_quality, len(SUBSAMPLINGS), axis=1)])


def _dct(values: Floats) -> Floats:
    """(64,) coefficients of an 8 x 8 block, in JPEG's scale."""
    return np.asarray((BASIS @ values @ BASIS.T).ravel())


def _steps() -> Floats:
    """(Q, 64) luma quantisation steps, row by row."""
    return np.stack([_table(quality) for quality in QUALITIES])


def _table(quality: int) -> NDArray[np.float64]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).quantization[0], np.float64)  # type: ignore[attr-defined]


def metamers(quality: int, subsampling: str, pixels: Floats) -> tuple[Floats, Floats]:
    """Return two pictures, as far apart as 60 tries make them, which JPEG of this quality turns into one.

    Each block gets random coefficients below half a step; blocks which nevertheless come back changed are left alone.
    """
    draw = np.random.default_rng(0)
    fixed = pixels + draw.normal(0, 15, (SIDE, SIDE, 1)) + draw.normal(0, 8, (SIDE, SIDE, 3))
    for _ in range(20):  # re-encoding soon changes nothing any more
        fixed = recode(fixed, quality, subsampling)
    target, steps = recode(fixed, quality, subsampling), _table(quality).reshape(8, 8)
    best = np.zeros((SIDE, SIDE))
    for share in np.linspace(0.05, 0.45, 60):
        coefficients = draw.uniform(-share, share, (SIDE // 8, 8, SIDE // 8, 8)) * steps[:, None]
        overlay = np.rint(np.einsum("ui,aubv,vj->aibj", BASIS, coefficients, BASIS).reshape(SIDE, SIDE))
        changed = (recode(fixed + overlay[:, :, None], quality, subsampling) != target).any(axis=2)
        lost = ~changed.reshape(SIDE // 8, 8, SIDE // 8, 8).any(axis=(1, 3))
        best = np.where(np.kron(lost, np.ones((8, 8))) > 0, overlay, best)
    return fixed, fixed + best[:, :, None]
