"""Measure what an unknown endpoint does to images, with at most 40 images.

The probe assumes only that the endpoint takes images and returns scores. It sends pairs of
synthetic images. A server of one kind turns both images of a pair into (nearly) the same input of
its model; servers of other kinds do not. The probe computes how much of the difference reaches the
model under each kind, and compares this with the distance between the two answers. Each answer
updates the weights of all kinds at once (:mod:`pgn_client.probe.posterior`). The next pair is the
one with the largest expected information.

A finding is *certain* only if a control confirmed it: a pair of images that differ as much, whose
difference this kind of server does not remove, and whose answers differ. If the control has no
effect, the finding is *unknown*. If an answer has fewer than three scores, equal scores may be a
coincidence, so the codec, the input size and the server profile (how the server resizes and
crops) are at most *likely*.

Measured are:

- the codec (:mod:`pgn_client.probe.codec`), with images of 32 px;
- resize and crop of a square image (:mod:`pgn_client.probe.resize`);
- resize, crop or padding of a wide image (:mod:`pgn_client.probe.aspect_ratio`);
- type, number and rounding of the scores (:mod:`pgn_client.probe.score_type`), from all answers.
"""

from __future__ import annotations

import contextlib

from pgn_client.errors import ConfigurationError
from pgn_client.probe import score_type as replies
from pgn_client.probe.aspect_ratio import find_profile
from pgn_client.probe.codec import find_codec
from pgn_client.probe.findings import Certainty, Finding, Findings
from pgn_client.probe.limits import find_bytes, find_pixels
from pgn_client.probe.queries import Ask, LimitReachedError, Prober
from pgn_client.probe.resize import Square, find_square

__all__ = ["LIMIT", "Ask", "Certainty", "Finding", "Findings", "find_bytes", "find_pixels", "probe"]

LIMIT = 40  # a probe of a random server took 31 images on average (benchmarks/LOG.md)
FEW = 3  # scores per answer; with fewer, equal scores may be a coincidence


def probe(ask: Ask, *, limit: int = LIMIT, seed: int = 0) -> Findings:
    """Measure what an endpoint does to images and scores, with synthetic images.

    Args:
        ask: Function that sends RGB images, with sides from 32 to 1024 px, and returns one answer
            for each. Its exceptions pass through. Only a ``BudgetExceededError`` after the first
            answer does not: it ends the probe early.
        limit: Largest number of images to send, repeats included; at least 2.
        seed: Seed for the colors of the images, at least 0.

    Returns:
        Measured properties of the endpoint, each with its certainty and its evidence.

    Raises:
        ConfigurationError: The limit is below 2 (the first image is sent twice), or the seed is
            below 0.
        BudgetExceededError: The budget was spent before the first answer.
    """
    if seed < 0:
        raise ConfigurationError(f"probe: got a seed of {seed}, expected a whole number from 0 on")
    asker = Prober(ask, limit)
    not_measured = Finding.unknown("no images were left to measure it")

    # Each step keeps its findings if the next one reaches the limit.
    codec = size = profile = not_measured
    with contextlib.suppress(LimitReachedError):
        codec = find_codec(asker, seed)
    with contextlib.suppress(LimitReachedError):
        square = find_square(asker, seed)
        size = _input_size(square)
        profile = find_profile(asker, square, seed)

    if any(len(answer.scores) < FEW for answer in asker.answers):
        codec = _at_most_likely(codec)
        size = _at_most_likely(size)
        profile = _at_most_likely(profile)
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


def _at_most_likely(finding: Finding) -> Finding:
    """Return a finding with its certainty lowered from ``certain`` to ``likely``; others as is."""
    if finding.certainty != "certain":
        return finding
    return Finding(
        finding.value,
        "likely",
        f"{finding.evidence}; but with so few scores per answer, equal scores may be a coincidence",
    )


def _input_size(square: Square) -> Finding:
    if square.crop is None:
        return Finding.unknown(square.evidence)
    return Finding(square.crop, "certain" if square.sure else "likely", square.evidence)
