"""Find out what an unknown endpoint does to an image, in at most 40 of them.

Nothing of the model is known but that images go in and answers come out. So pairs of images are
sent which a server of one kind turns into (nearly) the same input of its model, and a server of
another kind does not. What each kind leaves of the difference is computed, and how far the answers
are apart weighs all kinds at once (:mod:`pgn_client.probe.posterior`); the next pair is the one
that is expected to tell most. *Certain* is only what was also held against a control: an image
that differs as much, that the kind does not hide, and that is answered differently. Without a
control that is seen, the finding is *unknown*, and where an answer has fewer than three scores,
which may be equal by accident, codec and profile are never certain.

- the codec (:mod:`pgn_client.probe.codec`), on 32 px images;
- resize and crop of a square image (:mod:`pgn_client.probe.resize`);
- what happens to a wide one (:mod:`pgn_client.probe.aspect_ratio`);
- the kind, number and rounding of the scores (:mod:`pgn_client.probe.score_type`), on all answers.
"""

from __future__ import annotations

import contextlib

from pgn_client.errors import ConfigurationError
from pgn_client.probe import score_type as replies
from pgn_client.probe.aspect_ratio import find_profile
from pgn_client.probe.codec import find_codec
from pgn_client.probe.findings import Certainty, Finding, Findings
from pgn_client.probe.limits import find_bytes, find_pixels
from pgn_client.probe.queries import Ask, Asker, LimitReachedError
from pgn_client.probe.resize import Square, find_square

__all__ = ["LIMIT", "Ask", "Certainty", "Finding", "Findings", "find_bytes", "find_pixels", "probe"]

LIMIT = 40
FEW = 3  # scores per answer


def probe(ask: Ask, *, limit: int = LIMIT, seed: int = 0) -> Findings:
    """Measure an endpoint with synthetic images.

    Args:
        ask: sends RGB images, from 32 to 1024 px, and returns one answer each; whatever it raises
            passes through.
        limit: the most images that are sent, repeats included.
        seed: of the images' colours.

    Raises:
        ConfigurationError: a limit below 2 (the first image is sent twice), or a seed below 0.
    """
    if seed < 0:
        raise ConfigurationError(f"probe: got a seed of {seed}, expected a whole number from 0 on")
    asker = Asker(ask, limit)
    reached = Finding.unknown("no images were left for it")
    codec = size = profile = reached
    with contextlib.suppress(LimitReachedError):
        codec = find_codec(asker, seed)
    with contextlib.suppress(LimitReachedError):
        square = find_square(asker, seed)
        size = _input_size(square)
        profile = find_profile(asker, square, seed)
    few = any(len(answer.scores) < FEW for answer in asker.answers)
    profile, size, codec = (
        _doubted(finding) if few else finding for finding in (profile, size, codec)
    )
    return Findings(
        profile=profile,
        input_size=size,
        codec=codec,
        output=replies.find_output(asker.answers),
        top_k=replies.find_top_k(asker.answers),
        decimals=replies.find_decimals(asker.answers),
        noise=asker.noise,
        images=len(asker.answers),
    )


def _doubted(finding: Finding) -> Finding:
    if finding.certainty != "certain":
        return finding
    return Finding(
        finding.value, "likely", f"{finding.evidence}; but so few scores may be equal by accident"
    )


def _input_size(square: Square) -> Finding:
    if square.crop is None:
        return Finding.unknown(square.evidence)
    return Finding(square.crop, "certain" if square.sure else "likely", square.evidence)
