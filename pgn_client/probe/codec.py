"""Whether a server re-encodes what it receives as JPEG, and with which quality and subsampling.

Every image is a mosaic of flat 8 x 8 blocks, 32 px square: below the input size of any model, so
that whatever is left after the codec is up-scaled and seen, wherever the server resizes and crops
to. What is laid over the mosaic says which codec sees it: a pattern whose DCT coefficients are all
below half a quantisation step is gone after JPEG, and coarser steps lose it too; colour stripes are
gone where the subsampling averages them. The next pattern is the one that is expected to tell most.
What is found is held against a pair of images which it alone makes equal.
"""

from __future__ import annotations

import functools
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.probe.findings import Finding
from pgn_client.probe.posterior import CONTROL, Belief, Which
from pgn_client.probe.queries import SENSITIVE, Asker
from pgn_client.probe.stimuli import mosaic, recode, rms, to_image
from pgn_client.types import Answer

SIDE = 32  # pixels: four MCUs of 16 x 16
QUALITIES = range(30, 101)
SUBSAMPLINGS = ("444", "422", "420")
USUAL_QUALITIES = (50, 60, 70, 75, 80, 85, 90, 95)
LOSSLESS = "lossless"
ROOM = 75  # grey levels between the mosaic and black or white
# of a quantisation step: what is below rounds to nothing, what is above does not
GONE, KEPT = 0.485, 0.515
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
# Grey levels of R, G, B, to and fro: 0.299 R + 0.587 G + 0.114 B is as good as 0.
COLOURS = np.array([(-7.0, -11.0, 75.0), (45.0, -25.0, 11.0), (-38.0, 14.0, 28.0)])
# a model may be deaf to colours
HEARD, EAR = np.array([1.0, 0.3, 0.1, 0.0]), np.array([0.6, 0.2, 0.15, 0.05])
QUESTIONS = 11
WORTH = 0.02  # bits that a question must be good for
BELIEVED = 0.97  # weight from which a codec is held against its own pair
CERTAIN, LIKELY = 0.995, 0.7


_N = np.arange(8)
# the 8-point DCT
BASIS: Floats = np.cos(np.outer(_N, 2 * _N + 1) * np.pi / 16) * np.where(_N, 0.5, 0.5**1.5)[:, None]


@dataclass(frozen=True, eq=False)
class Overlay:
    """Something laid over the mosaic, and what is left of it.

    Attributes:
        values: (SIDE, SIDE, 1 or 3), pixel space.
        left: (H,) grey levels (root of the mean square) that are left after each codec; NaN where
            that hangs by a hair.
        colour: whether a model that is deaf to colours does not see it.
    """

    values: Floats
    left: Floats
    colour: bool = False

    def amplitudes(self, which: Which) -> Floats:
        """(H',) as ``left``, for some of the codecs times the model's ears for colour."""
        return np.asarray(
            np.outer(self.left, HEARD if self.colour else np.ones(len(HEARD))).ravel()[which]
        )


def find_codec(asker: Asker, seed: int) -> Finding:
    """Find the codec in at most 16 images."""
    return _Search(asker, seed).run()


class _Search:
    """Weights over ``lossless`` and (quality, subsampling), the first entry and a grid behind it,
    times ears.
    """

    def __init__(self, asker: Asker, seed: int) -> None:
        self.asker = asker
        self.mosaic = mosaic(SIDE, seed)
        self.belief: Belief[Overlay] = Belief(
            asker, np.outer(_prior(), EAR).ravel(), Overlay.amplitudes
        )
        self.colours = [self._colour(stripes) for stripes in _colour_stripes()]
        self.held: dict[int, str] = {}  # codec → what its own pair of images said

    def run(self) -> Finding:
        base = self.asker.twice(to_image(self.mosaic))
        stripes = np.tile(_alternating(4, STRIPES), (SIDE, 1))[:, :, None]
        self._ask(base, Overlay(stripes, np.full(1 + len(_grid()), CONTROL)))
        if self.belief.control < SENSITIVE * self.asker.floor:
            return Finding.unknown(
                f"strong stripes move the scores by {self.belief.control:.2g}, little beside a "
                "floor of "
                f"{self.asker.floor:.2g}: the answers show too little"
            )
        for _ in range(QUESTIONS):
            best = int(self.shares.argmax())
            found = self.belief.best([*self.colours, *_library()])
            if (
                best
                and best not in self.held
                and (self.shares[best] > BELIEVED or found is None or found[1] < WORTH)
            ):
                self._hold(best)
            elif found is None or found[1] < WORTH:
                break
            else:
                self._ask(base, found[0])
        return self._concluded()

    @property
    def shares(self) -> Floats:
        """(H,) of the codecs."""
        return np.asarray(self.belief.shares.reshape(-1, len(HEARD)).sum(axis=1))

    def _ask(self, base: Answer, overlay: Overlay) -> None:
        self.belief.learn(
            overlay, self.asker.response(base, to_image(self.mosaic + overlay.values))
        )

    def _colour(self, stripes: Floats) -> Overlay:
        left = [
            rms(_coded(self.mosaic + stripes, n) - _coded(self.mosaic, n))
            for n in range(1 + len(_grid()))
        ]
        return Overlay(stripes, np.array(left), colour=True)

    def _hold(self, codec: int) -> None:
        """Send two rich images which only this codec makes equal."""
        one, other = metamers(*_grid()[codec - 1], self.mosaic)
        left = np.array([rms(_coded(one, n) - _coded(other, n)) for n in range(1 + len(_grid()))])
        first, second = self.asker(to_image(one), to_image(other))
        response = self.asker.distance(first, second)
        self.belief.learn(Overlay(one - other, left), response)
        self.held[codec] = (
            f"two images {rms(one - other):.1f} grey levels apart which it makes equal are "
            f"{response:.2g} apart, "
            f"where strong stripes move the scores by {self.belief.control:.2g}"
        )

    def _concluded(self) -> Finding:
        shares = self.shares
        best = int(shares.argmax())
        asked = f"{len(self.belief.responses)} patterns"
        if shares[best] < LIKELY:
            lossy = shares[0] < 1 - CERTAIN
            return Finding(
                "lossy" if lossy else None, "unknown", f"{asked} fit more than one codec"
            )
        if best == 0:
            return Finding(
                LOSSLESS,
                "certain" if shares[0] > CERTAIN else "likely",
                f"{asked} are seen, faint ones too",
            )
        quality, subsampling = _grid()[best - 1]
        sure = shares[best] > CERTAIN and best in self.held
        evidence = (
            f"{asked} fit; "
            f"{self.held.get(best, 'it was not held against a pair of images of its own')}"
        )
        return Finding(f"jpeg:{quality}:{subsampling}", "certain" if sure else "likely", evidence)


def _coded(pixels: Floats, codec: int) -> Floats:
    """Return pixels as they come back from a codec, 0 the lossless one."""
    return recode(pixels, *_grid()[codec - 1]) if codec else np.clip(np.rint(pixels), 0, 255)


@functools.cache
def _grid() -> list[tuple[int, str]]:
    return [(quality, subsampling) for quality in QUALITIES for subsampling in SUBSAMPLINGS]


def _prior() -> Floats:
    """Weights before the first image: lossless, and the qualities that people write into a
    configuration.
    """
    by_subsampling = {"444": 0.25, "422": 0.15, "420": 0.6}
    usual = {q: 1.0 if q in USUAL_QUALITIES else 0.3 if q % 5 == 0 else 0.03 for q in QUALITIES}
    return np.array([10.0, *(usual[quality] * by_subsampling[s] for quality, s in _grid())])


def _alternating(width: int, amplitude: float) -> Floats:
    """(SIDE,) stripes ``width`` pixels wide."""
    return np.where(np.arange(SIDE) // width % 2, amplitude, -amplitude)


def _colour_stripes() -> list[Floats]:
    """Columns and rows of one pixel and opposite colours, (SIDE, SIDE, 3); the luma of both is
    equal within a level.
    """
    columns = [np.tile(_alternating(1, 1.0), (SIDE, 1))[:, :, None] * colour for colour in COLOURS]
    return [*columns, *(stripes.transpose(1, 0, 2) for stripes in columns)]


@functools.cache
def _library() -> list[Overlay]:
    """Luma patterns, one 8 x 8 block all over; what is left of them does not depend on the
    subsampling.
    """
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
    blocks = np.stack(
        list(
            {p.tobytes(): p for p in found if 0 < np.abs(p).max() <= ROOM and not p.sum()}.values()
        )
    )
    coefficients, steps = np.stack([_dct(block) for block in blocks])[:, None], _steps()[None]
    largest = (np.abs(coefficients) / steps).max(axis=2)  # (T, Q)
    left = np.linalg.norm(np.rint(coefficients / steps) * steps, axis=2) / 8
    left = np.where(largest < GONE, 0.0, np.where(largest < KEPT, np.nan, left))
    left = np.hstack(
        [np.array([[rms(block)] for block in blocks]), np.repeat(left, len(SUBSAMPLINGS), axis=1)]
    )
    return [
        Overlay(np.tile(b, (SIDE // 8, SIDE // 8))[:, :, None], row)
        for b, row in zip(blocks, left, strict=True)
    ]


def _dct(values: Floats) -> Floats:
    """(64,) coefficients of an 8 x 8 block, in JPEG's scale."""
    return np.asarray((BASIS @ values @ BASIS.T).ravel())


def _steps() -> Floats:
    """(Q, 64) luma quantisation steps, row by row."""
    return np.stack([_table(quality) for quality in QUALITIES])


def _table(quality: int) -> Floats:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    return np.array(Image.open(buffer).quantization[0], np.float64)  # type: ignore[attr-defined]


def metamers(quality: int, subsampling: str, pixels: Floats) -> tuple[Floats, Floats]:
    """Return two images, as far apart as 60 tries make them, which JPEG of this quality turns
    into one.

    Each block gets random coefficients below half a step; blocks which nevertheless come back
    changed are left alone.
    """
    draw = np.random.default_rng(0)
    fixed = pixels + draw.normal(0, 15, (SIDE, SIDE, 1)) + draw.normal(0, 8, (SIDE, SIDE, 3))
    for _ in range(20):  # re-encoding soon changes nothing any more
        fixed = recode(fixed, quality, subsampling)
    target, steps = recode(fixed, quality, subsampling), _table(quality).reshape(8, 8)
    best = np.zeros((SIDE, SIDE))
    for share in np.linspace(0.05, 0.45, 60):
        coefficients = draw.uniform(-share, share, (SIDE // 8, 8, SIDE // 8, 8)) * steps[:, None]
        overlay = np.rint(
            np.einsum("ui,aubv,vj->aibj", BASIS, coefficients, BASIS).reshape(SIDE, SIDE)
        )
        changed = (recode(fixed + overlay[:, :, None], quality, subsampling) != target).any(axis=2)
        lost = ~changed.reshape(SIDE // 8, 8, SIDE // 8, 8).any(axis=(1, 3))
        best = np.where(np.kron(lost, np.ones((8, 8))) > 0, overlay, best)
    return fixed, fixed + best[:, :, None]
