"""Find out whether a server re-encodes images as JPEG, with which quality and subsampling.

Every image is a mosaic of flat 8 x 8 blocks, 32 px square. That is smaller than the input of any
model, so what remains after the codec is enlarged and reaches the model, whatever the server's
resize and crop.

A pattern is laid over the mosaic. JPEG removes it if all its DCT coefficients are below half a
quantization step, and coarser steps remove it too. Subsampling removes color stripes that it
averages. So the response to a pattern shows which codecs are possible. The next pattern is the one
with the largest expected information. A JPEG codec is confirmed by a pair of images that only this
codec makes equal.
"""

from __future__ import annotations

import functools
import io
import itertools
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pgn_client.arrays import Floats
from pgn_client.probe.findings import Finding
from pgn_client.probe.posterior import CONTROL, Belief, Which
from pgn_client.probe.queries import SENSITIVE, Prober
from pgn_client.probe.stimuli import mosaic, recode, rms, to_image
from pgn_client.types import Answer

SIDE = 32  # pixels: four MCUs of 16 x 16
QUALITIES = range(30, 101)
SUBSAMPLINGS = ("444", "422", "420")
USUAL_QUALITIES = (50, 60, 70, 75, 80, 85, 90, 95)
LOSSLESS = "lossless"
# Gray levels between the mosaic and black or white. Stronger patterns would be clipped, and what
# remains of them could not be predicted.
ROOM = 75
# Shares of a quantization step: a coefficient below GONE rounds to 0, one above KEPT does not.
# Between them, the outcome cannot be predicted.
GONE = 0.485
KEPT = 0.515
# Vertical and horizontal frequency of the cosine waves, in half periods per block.
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
)
STRIPES = 15.0  # amplitude of the control, in gray levels
# Levels of R, G and B by which color stripes alternate. Their luma, 0.299 R + 0.587 G + 0.114 B, is
# nearly 0.
COLOURS = np.array([(-7.0, -11.0, 75.0), (45.0, -25.0, 11.0), (-38.0, 14.0, 28.0)])
# Sensitivity of a model to color stripes, and the prior probability of each; it may be 0.
HEARD = np.array([1.0, 0.3, 0.1, 0.0])
EAR = np.array([0.6, 0.2, 0.15, 0.05])
QUESTIONS = 11  # leaves more than half of the probe's images for resize and crop
WORTH = 0.02  # expected bits below which a question is not worth its image
BELIEVED = 0.97  # weight above which the pair of images that confirms a codec is sent
CERTAIN = 0.995  # weight above which a codec is certain
LIKELY = 0.7  # smallest weight of a codec that is reported


_N = np.arange(8)
# The 8-point DCT: frequency by position. The factors, sqrt(1/8) for frequency 0 and sqrt(1/4) for
# the others, make it orthonormal, as in JPEG.
BASIS: Floats = np.cos(np.outer(_N, 2 * _N + 1) * np.pi / 16) * np.where(_N, 0.5, 0.5**1.5)[:, None]


# Overlays are keys of a dict. With eq=False their identity is hashed, because arrays have no hash.
@dataclass(frozen=True, eq=False)
class Overlay:
    """A pattern added to the probe's mosaic image, and how much of it survives each codec.

    Attributes:
        values: Pattern, (SIDE, SIDE, 1 or 3), pixel space.
        left: RMS amplitude, in gray levels, that survives each of the H candidate codecs, (H,);
            NaN where a coefficient is too close to half a quantization step to predict it.
        colour: Whether the pattern has color only, to which a model may be insensitive.
    """

    values: Floats
    left: Floats
    colour: bool = False

    def amplitudes(self, which: Which) -> Floats:
        """Return the gray levels of this pattern that reach the model, for H' hypotheses, (H',).

        Args:
            which: Indices of the H' hypotheses, pairs of a codec and a model's sensitivity to
                color.
        """
        sensitivity = HEARD if self.colour else np.ones(len(HEARD))
        return np.asarray(np.outer(self.left, sensitivity).ravel()[which])


def find_codec(asker: Prober, seed: int) -> Finding:
    """Find out whether and how a server re-encodes images, with at most 16 images.

    Args:
        asker: Prober that sends the images.
        seed: Seed for the colors of the images.

    Returns:
        Finding with ``lossless``, ``jpeg:QUALITY:SUBSAMPLING``, or ``lossy`` for an unknown codec.
    """
    return _Search(asker, seed).run()


class _Search:
    """Search for a server's codec, with a weight for each pair of codec and color sensitivity.

    Codecs are numbered: 0 is lossless, and n is entry n - 1 of ``_grid()``, the list of all pairs
    of a JPEG quality and a subsampling. The color sensitivity is that of the model.
    """

    def __init__(self, asker: Prober, seed: int) -> None:
        self.asker = asker
        self.mosaic = mosaic(SIDE, seed)
        self.belief: Belief[Overlay] = Belief(
            asker, np.outer(_prior(), EAR).ravel(), Overlay.amplitudes
        )
        self.colours = [
            Overlay(stripes, _remaining(self.mosaic + stripes, self.mosaic), colour=True)
            for stripes in _colour_stripes()
        ]
        self.confirmations: dict[int, str] = {}  # codec -> evidence from its own pair of images

    def run(self) -> Finding:
        base = self.asker.twice(to_image(self.mosaic))

        # The control passes every codec. It is the unit of all responses, which is called CONTROL.
        stripes = np.tile(_alternating(4, STRIPES), (SIDE, 1))[:, :, None]
        self._ask(base, Overlay(stripes, np.full(1 + len(_grid()), CONTROL)))
        if self.belief.control < SENSITIVE * self.asker.floor:
            return Finding.unknown(
                f"strong stripes move the scores by only {self.belief.control:.2g}, and changes of "
                f"up to {self.asker.floor:.2g} may be noise or rounding; the scores are too "
                "insensitive"
            )

        for _ in range(QUESTIONS):
            best = int(self.shares.argmax())
            question = self.belief.best([*self.colours, *_library()])
            overlay = None
            if question is not None and question[1] >= WORTH:
                overlay = question[0]

            # No pair of images is made equal by a lossless codec (0) alone, so it has none.
            unconfirmed = best != 0 and best not in self.confirmations
            if unconfirmed and (self.shares[best] > BELIEVED or overlay is None):
                self._confirm(best)
            elif overlay is None:
                break
            else:
                self._ask(base, overlay)
        return self._finding()

    @property
    def shares(self) -> Floats:
        """Probability of each of the H candidate codecs, (H,)."""
        return np.asarray(self.belief.shares.reshape(-1, len(HEARD)).sum(axis=1))

    def _ask(self, base: Answer, overlay: Overlay) -> None:
        image = to_image(self.mosaic + overlay.values)
        self.belief.learn(overlay, self.asker.response(base, image))

    def _confirm(self, codec: int) -> None:
        """Test a JPEG codec, given its number: send two images that only this codec makes equal."""
        one, other = metamers(*_grid()[codec - 1], self.mosaic)
        first, second = self.asker(to_image(one), to_image(other))
        response = self.asker.distance(first, second)
        self.belief.learn(Overlay(one - other, _remaining(one, other)), response)
        self.confirmations[codec] = (
            f"two images that differ by {rms(one - other):.1f} gray levels, which only this codec "
            f"makes equal, move the scores by {response:.2g}; strong stripes move them by "
            f"{self.belief.control:.2g}"
        )

    def _finding(self) -> Finding:
        shares = self.shares
        best = int(shares.argmax())
        patterns = f"{len(self.belief.responses)} patterns"

        if shares[best] < LIKELY:
            lossy = shares[0] < 1 - CERTAIN
            return Finding(
                "lossy" if lossy else None,
                "unknown",
                f"the answers to {patterns} fit more than one codec",
            )
        if best == 0:
            return Finding(
                LOSSLESS,
                "certain" if shares[0] > CERTAIN else "likely",
                f"the answers to {patterns} fit: faint ones reach the model too",
            )

        quality, subsampling = _grid()[best - 1]
        sure = shares[best] > CERTAIN and best in self.confirmations
        confirmation = self.confirmations.get(
            best, "two images that only this codec makes equal were not sent"
        )
        return Finding(
            f"jpeg:{quality}:{subsampling}",
            "certain" if sure else "likely",
            f"the answers to {patterns} fit; {confirmation}",
        )


def _coded(pixels: Floats, codec: int) -> Floats:
    """Return pixel values, (SIDE, SIDE, 3), after encoding and decoding by a codec.

    Args:
        pixels: Image, (SIDE, SIDE, 3), pixel space.
        codec: 0 for lossless, n for entry n - 1 of ``_grid()``.
    """
    return recode(pixels, *_grid()[codec - 1]) if codec else np.clip(np.rint(pixels), 0, 255)


def _remaining(one: Floats, other: Floats) -> Floats:
    """Return how much two images differ after each of the H candidate codecs, (H,).

    The difference is the root of the mean square, in gray levels.
    """
    codecs = range(1 + len(_grid()))
    return np.array([rms(_coded(one, codec) - _coded(other, codec)) for codec in codecs])


@functools.cache
def _grid() -> list[tuple[int, str]]:
    """Return all pairs of a JPEG quality and a JPEG subsampling that the probe considers."""
    return list(itertools.product(QUALITIES, SUBSAMPLINGS))


def _prior() -> Floats:
    """Return the prior weight of each of the H candidate codecs, (H,).

    Lossless weighs most. JPEG qualities that people usually configure, such as 75 or 90, weigh more
    than others.
    """
    # 4:2:0 is the default of Pillow and of most other encoders.
    by_subsampling = {"444": 0.25, "422": 0.15, "420": 0.6}
    weights = [
        _quality_weight(quality) * by_subsampling[subsampling] for quality, subsampling in _grid()
    ]
    # The weights of all JPEG codecs sum to 12, so lossless is nearly as likely as all of them.
    return np.array([10.0, *weights])


def _quality_weight(quality: int) -> float:
    if quality in USUAL_QUALITIES:
        return 1.0
    return 0.3 if quality % 5 == 0 else 0.03


def _alternating(width: int, amplitude: float) -> Floats:
    """Return stripes, ``width`` pixels wide, of plus and minus ``amplitude``, (SIDE,)."""
    return np.where(np.arange(SIDE) // width % 2, amplitude, -amplitude)


def _colour_stripes() -> list[Floats]:
    """Return patterns of stripes in two opposite colors, (SIDE, SIDE, 3) each.

    The stripes are one pixel wide, vertical or horizontal. Both colors have the same luma within
    one level.
    """
    columns = [np.tile(_alternating(1, 1.0), (SIDE, 1))[:, :, None] * colour for colour in COLOURS]
    return [*columns, *(stripes.transpose(1, 0, 2) for stripes in columns)]


@functools.cache
def _library() -> list[Overlay]:
    """Return the gray patterns that the probe chooses from, each with what codecs leave of it.

    A pattern is one 8 x 8 block, repeated over the image. JPEG's subsampling applies to color only,
    so it does not change what remains of a gray pattern.
    """
    blocks = _blocks()
    coefficients = np.stack([_dct(block) for block in blocks])[:, None]
    steps = _steps()[None]
    largest = (np.abs(coefficients) / steps).max(axis=2)  # (T, Q)
    # The DCT is orthonormal, so this is the root of the mean square of 64 pixels: 8 = sqrt(64).
    by_quality = np.linalg.norm(np.rint(coefficients / steps) * steps, axis=2) / 8

    # Where the largest coefficient is close to half a step, what remains cannot be predicted.
    by_quality = np.where(largest < GONE, 0.0, np.where(largest < KEPT, np.nan, by_quality))

    lossless = np.array([[rms(block)] for block in blocks])
    left = np.hstack([lossless, np.repeat(by_quality, len(SUBSAMPLINGS), axis=1)])
    blocks_per_side = SIDE // 8
    return [
        Overlay(np.tile(block, (blocks_per_side, blocks_per_side))[:, :, None], row)
        for block, row in zip(blocks, left, strict=True)
    ]


def _blocks() -> Floats:
    """Return T different gray 8 x 8 patterns with a mean of 0, (T, 8, 8), in gray levels."""
    candidates: list[Floats] = []

    # Single waves, from the faintest that survives rounding to uint8 (above 0.5) to one that even
    # the coarsest step, at quality 30, keeps (25).
    x = (np.arange(8) + 0.5) * np.pi / 8
    for u, v in WAVES:
        wave = np.outer(np.cos(u * x), np.cos(v * x))
        candidates += [np.rint(amplitude * wave) for amplitude in np.arange(0.6, 26, 0.2)]

    # Sums of all waves, each by the same share of its quantization step at every other quality. The
    # shares are below a half, so JPEG of that quality or a lower one removes the whole sum.
    spectra = np.random.default_rng(0).choice([-1.0, 1.0], (4, 8, 8))
    spectra[:, 0, 0] = 0
    for steps in _steps()[::2].reshape(-1, 8, 8):
        for share in (0.2, 0.3, 0.4):
            candidates += [
                np.rint(BASIS.T @ (steps * share * spectrum) @ BASIS) for spectrum in spectra
            ]

    # Two pixels, so faint that no coefficient reaches a half: every quality removes this pattern.
    faint = np.zeros((8, 8))
    faint[1, 2] = 1
    faint[6, 3] = -1
    candidates.append(faint)

    different: dict[bytes, Floats] = {}
    for pattern in candidates:
        # Another mean would change the coefficient that the mosaic sets, and so the prediction.
        if 0 < np.abs(pattern).max() <= ROOM and not pattern.sum():
            different[pattern.tobytes()] = pattern
    return np.stack(list(different.values()))


def _dct(values: Floats) -> Floats:
    """Return the DCT coefficients of an 8 x 8 block, on the scale that JPEG quantizes, (64,)."""
    return np.asarray((BASIS @ values @ BASIS.T).ravel())


def _steps() -> Floats:
    """Return the 64 luma quantization steps of each of the Q JPEG qualities, (Q, 64)."""
    return np.stack([_table(quality) for quality in QUALITIES])


def _table(quality: int) -> Floats:
    """Return the 64 luma quantization steps that Pillow uses for a JPEG quality, (64,)."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    # Image.open rewinds the buffer.
    return np.array(Image.open(buffer).quantization[0], np.float64)  # type: ignore[attr-defined]


def metamers(quality: int, subsampling: str, pixels: Floats) -> tuple[Floats, Floats]:
    """Return two different images that JPEG encodes and decodes to the same image.

    The second image is the first plus random DCT coefficients below half a quantization step, which
    JPEG usually rounds to 0. Of 60 tries with growing coefficients, each 8 x 8 block keeps the last
    one that JPEG removes.

    Args:
        quality: JPEG quality.
        subsampling: JPEG subsampling, one of ``SUBSAMPLINGS``.
        pixels: Image to start from, (SIDE, SIDE, 3), pixel space.

    Returns:
        Two images, (SIDE, SIDE, 3) each, pixel space.
    """
    draw = np.random.default_rng(0)
    fixed = pixels + draw.normal(0, 15, (SIDE, SIDE, 1)) + draw.normal(0, 8, (SIDE, SIDE, 3))
    # After a few rounds, encoding the image again changes nothing any more.
    for _ in range(20):
        fixed = recode(fixed, quality, subsampling)
    # The same as `fixed`, except in the rare case that it still changes.
    target = recode(fixed, quality, subsampling)

    steps = _table(quality).reshape(8, 8)
    best = np.zeros((SIDE, SIDE))
    for share in np.linspace(0.05, 0.45, 60):
        coefficients = draw.uniform(-share, share, (SIDE // 8, 8, SIDE // 8, 8)) * steps[:, None]
        overlay = np.rint(
            np.einsum("ui,aubv,vj->aibj", BASIS, coefficients, BASIS).reshape(SIDE, SIDE)
        )
        changed = (recode(fixed + overlay[:, :, None], quality, subsampling) != target).any(axis=2)
        removed = ~changed.reshape(SIDE // 8, 8, SIDE // 8, 8).any(axis=(1, 3))
        # The shares increase, so a later overlay that JPEG removes differs more.
        best = np.where(np.kron(removed, np.ones((8, 8))) > 0, overlay, best)
    return fixed, fixed + best[:, :, None]
