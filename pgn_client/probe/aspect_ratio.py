"""Find out what a server does to an image that is not square: squash, crop, pad, or keep its shape.

The probe lays waves over an image that is twice as wide as high. A wave vanishes only if the server
resizes the edge to certain numbers of pixels. A square image has shown R, the pixels per side after
the server's resize. Given R, each kind of server profile resizes the wide image to a known width
and height, so the waves that vanish show the kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from pgn_client.arrays import Floats
from pgn_client.probe.findings import Finding
from pgn_client.probe.gratings import REST, Wave, middle, needle, quadrature
from pgn_client.probe.posterior import EAR, HEARD, Belief, Which
from pgn_client.probe.queries import SENSITIVE, Prober
from pgn_client.probe.resize import Square
from pgn_client.probe.resize_hypotheses import FRAME, KERNELS, SIDE
from pgn_client.probe.stimuli import smooth, to_image
from pgn_client.types import ProfileKind, ServerProfile

WIDE = SIDE
HIGH = SIDE // 2
KINDS: tuple[ProfileKind, ...] = ("direct", "resize_crop", "shortest_edge", "letterbox")
# Prior weights of KINDS. Squashing is usual for Hugging Face's ViTs, resize and crop for timm.
PRIOR = np.array([0.4, 0.3, 0.15, 0.15])
PADDED = np.sqrt(0.5)  # factor of the root of the mean square: half of a letterbox is padding
# Prior weight of each kind other than `resize_crop` if square images are cropped. It is not 0, so
# that answers which contradict `resize_crop` make the profile unknown.
ODD = 0.02
BELIEVED = 0.98  # weight above which a kind may be certain
LIKELY = 0.7  # smallest weight of a kind that is reported
# Shares of the quadrature's response: a wave below the first has vanished beyond doubt, one above
# the second has not. JPEG leaves something of a vanished wave, so nothing between is certain.
CLEARLY = (0.1, 0.5)


@dataclass(frozen=True, slots=True)
class Overlay:
    """A change to the probe's wide image: a wave along one edge, or bright left and right ends.

    Attributes:
        wave: Wave to add to the pixels; ``None`` for bright ends.
        edge: Edge along which the wave runs: ``across`` (horizontal) or ``down`` (vertical).
    """

    wave: Wave | None = None
    edge: Literal["across", "down"] = "across"

    def __call__(self) -> Floats:
        """Return the gray levels that this change adds to the wide image, (HIGH, WIDE)."""
        if self.wave is None:
            # The ends lie well outside the central square, so no kernel carries them into a crop.
            width = HIGH // 4
            ends = np.zeros((HIGH, WIDE))
            ends[:, :width] = FRAME
            ends[:, -width:] = FRAME
            return ends
        if self.edge == "across":
            return np.tile(self.wave(WIDE), (HIGH, 1))
        return np.tile(self.wave(HIGH)[:, None], (1, WIDE))


ENDS = Overlay()


def find_profile(asker: Prober, square: Square, seed: int) -> Finding:
    """Find out how a server resizes and crops an image that is not square.

    Args:
        asker: Prober that sends the images.
        square: What the server does to a square image, measured before.
        seed: Seed for the colors of the images.

    Returns:
        Finding with a server profile, such as ``direct`` or ``resize_crop:256:224``.
    """
    if square.resize is None or square.crop is None:
        return Finding.unknown(square.evidence)
    return _Search(asker, square.resize, square.crop, seed).run(square)


class _Search:
    """Search for the way in which an endpoint resizes an image that is not square.

    It keeps a probability for every combination of a profile kind (one of ``KINDS``), the model's
    sensitivity to horizontal waves, and its sensitivity to vertical waves.
    """

    def __init__(self, asker: Prober, resize: int, crop: int, seed: int) -> None:
        self.asker = asker
        self.resize = resize
        self.crop = crop
        self.pixels = smooth(WIDE, HIGH, seed)

        # A letterbox resizes the height to half of R.
        across = needle(resize)
        down = needle(round(resize / 2))
        # The first one is the control. `_is_clear` and `_measured` rely on this order.
        self.core = [
            Overlay(quadrature(across), "across"),
            Overlay(across, "across"),
            ENDS,
            Overlay(quadrature(down), "down"),
            Overlay(down, "down"),
        ]
        # Only waves in the middle, because a crop may remove every other part of the edge.
        self.more = [
            *(Overlay(wave, "across") for wave in middle(across.target)),
            *(Overlay(wave, "down") for wave in middle(down.target)),
        ]

        prior = PRIOR if crop == resize else np.where(np.array(KINDS) == "resize_crop", 1.0, ODD)
        self.belief: Belief[Overlay] = Belief(
            asker, np.einsum("k,a,d->kad", prior, EAR, EAR).ravel(), self._amplitudes
        )

    def run(self, square: Square) -> Finding:
        # The base image alone measures nothing, so it is sent only if one more image is left.
        if self.asker.left > 1:
            (base,) = self.asker(to_image(self.pixels))
            while self.asker.left and (overlay := self._next()):
                image = to_image(self.pixels + overlay()[:, :, None])
                self.belief.learn(overlay, self.asker.response(base, image))
        return self._finding(square)

    @property
    def shares(self) -> Floats:
        """Probability of each of the 4 profile kinds in ``KINDS``, (4,)."""
        return np.asarray(self.belief.shares.reshape(len(KINDS), -1).sum(axis=1))

    def _next(self) -> Overlay | None:
        """Return the overlay to send next: the one with the largest expected information.

        Once one profile kind is believed, return an overlay that was not sent yet and is needed to
        be certain. Return ``None`` if none is left.
        """
        responses = self.belief.responses
        # There is no unit before the first response, so the control is sent without a choice.
        if responses and self.shares.max() < BELIEVED:
            best = self.belief.best([*self.core, *self.more])
            return None if best is None else best[0]
        return next((overlay for overlay in self.core if overlay not in responses), None)

    def _amplitudes(self, overlay: Overlay, which: Which) -> Floats:
        """Return the gray levels of an overlay that reach the model, for H' hypotheses, (H',).

        Args:
            overlay: Overlay on the wide image.
            which: Indices of the H' hypotheses. A hypothesis combines a profile kind, a sensitivity
                to horizontal waves, and a sensitivity to vertical waves.
        """
        across = np.ones(len(HEARD))
        down = np.ones(len(HEARD))
        if overlay.wave is None:
            # The ends cover HIGH / 2 columns; only `resize_crop` removes them.
            left = FRAME * np.sqrt(HIGH / 2 / WIDE) * np.array([1, 0, 1, PADDED])
            # Cropped ends leave nothing at all; of a vanished wave, rounding leaves REST.
            rest = 0.0
        else:
            left = self._left(overlay.wave, overlay.edge)
            rest = REST
            if overlay.edge == "across":
                across = HEARD
            else:
                down = HEARD
        amplitudes = np.einsum("k,a,d->kad", left, across, down).ravel()
        return np.asarray(np.hypot(rest, amplitudes[which]))

    def _left(self, wave: Wave, edge: Literal["across", "down"]) -> Floats:
        """Return the gray levels of a wave that reach the model under each profile kind, (4,)."""
        side = self.resize
        crop = self.crop
        if edge == "across":
            resized = [side, 2 * side, 2 * side, side]
            cropped = [side, crop, 2 * side, side]
        else:
            # Rounded like the height of the letterbox wave in `_Search`, and like Pillow's resize.
            half = round(side / 2)
            resized = [side, side, side, half]
            cropped = [side, crop, side, half]

        # `Square` does not name the kernel, so the likeliest one, bicubic, stands for all.
        passes = KERNELS[0].passes(wave.target / 2 / np.array(resized, float))
        return np.asarray(wave.seen(resized, cropped) * passes * np.array([1, 1, 1, PADDED]))

    def _finding(self, square: Square) -> Finding:
        shares = self.shares
        kind = KINDS[int(shares.argmax())]
        evidence = f"{square.evidence}; {self._measured()}"

        # A server that crops square images can only be `resize_crop`.
        if shares.max() < LIKELY or (self.crop < self.resize and kind != "resize_crop"):
            return Finding.unknown(f"{evidence}: no known profile explains this well enough")

        if kind == "direct":
            profile = ServerProfile(kind)
        elif kind == "resize_crop":
            profile = ServerProfile(kind, self.resize, self.crop)
        else:
            profile = ServerProfile(kind, self.resize)
        sure = square.sure and shares.max() > BELIEVED and self._is_clear(kind)
        return Finding(str(profile), "certain" if sure else "likely", evidence)

    def _is_clear(self, kind: ProfileKind) -> bool:
        """Whether all core overlays were sent and their responses fit the kind beyond doubt."""
        responses = self.belief.responses
        if any(overlay not in responses for overlay in self.core):
            return False
        across_peak, across, ends, down_peak, down = (responses[each] for each in self.core)

        floor = self.asker.floor
        # JPEG leaves something of a vanished wave, but nothing of cropped ends, so these are
        # compared with the floor. Between 1 and 3 floors, neither is beyond doubt.
        ends_fit = ends <= floor if kind == "resize_crop" else ends > 3 * floor
        return (
            ends_fit
            and self._wave_fits(across, across_peak, vanishes=kind in ("direct", "letterbox"))
            and self._wave_fits(down, down_peak, vanishes=kind == "letterbox")
        )

    def _wave_fits(self, response: float, peak: float, *, vanishes: bool) -> bool:
        """Whether a response shows beyond doubt that a wave has vanished, or that it has not.

        Args:
            response: Response to the wave.
            peak: Response to the wave's quadrature, the same wave shifted by a quarter period.
            vanishes: Whether the wave should have vanished; otherwise it should not.
        """
        if peak < SENSITIVE * self.asker.floor:
            return False
        return response < CLEARLY[0] * peak if vanishes else response > CLEARLY[1] * peak

    def _measured(self) -> str:
        """Return a text with the measured responses, as evidence for the finding."""
        half = round(self.resize / 2)
        names = (
            f"horizontal grating that peaks at {self.resize} px",
            f"horizontal grating that vanishes at {self.resize} px",
            "bright ends",
            f"vertical grating that peaks at {half} px",
            f"vertical grating that vanishes at {half} px",
        )
        parts = []
        for name, overlay in zip(names, self.core, strict=True):
            response = self.belief.responses.get(overlay)
            if response is not None:
                parts.append(f"{response:.2g} ({name})")
        if not parts:
            return "no images were left to send a wide one"
        return f"in a wide image, the scores move by {', '.join(parts)}"
