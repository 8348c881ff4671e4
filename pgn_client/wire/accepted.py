"""What an endpoint is known to accept: the dialect of its protocol, and how large a request."""

from __future__ import annotations

from dataclasses import dataclass, field

from pgn_client.wire.endpoint import Limits
from pgn_client.wire.protocols import Protocol


@dataclass(slots=True)
class Accepted:
    """The requests that an endpoint accepts; all calls of a client share and update it.

    Attributes:
        limits: Largest request that the endpoint accepts.
        protocol: Protocol of the endpoint; None until it is detected.
        rates: Latest rate limit headers of the responses, names in lower case, secrets redacted.
        proven: Dialects of the protocol in which the endpoint has answered, now or in a recording;
            a later refusal is then due to the image.
        accepted_bytes: Size of the largest request body that the endpoint has answered.
        refused_bytes: Size of the smallest request body above that which the endpoint refused as
            too large (413); None if it refused none.
        scales: Whether an image had to be scaled, which the log says once.
    """

    limits: Limits
    protocol: Protocol | None = None
    rates: dict[str, str] = field(default_factory=dict)
    proven: set[str] = field(default_factory=set)
    accepted_bytes: int = 0
    refused_bytes: int | None = None
    scales: bool = False

    @property
    def most_bytes(self) -> int | None:
        """Largest request body that may be accepted, in bytes; None if it is unknown."""
        known = [self.limits.body_bytes, self.refused_bytes and self.refused_bytes - 1]
        return min((most for most in known if most is not None), default=None)

    def note_size(self, size: int, status: int) -> None:
        """Note whether the endpoint accepts a request body of this size, in bytes."""
        if status != 413:
            self.accepted_bytes = max(self.accepted_bytes, size)
        # A server may refuse one request by mistake; a larger one that it answered is the proof.
        elif size > self.accepted_bytes:
            self.refused_bytes = min(size, self.refused_bytes or size)
        if self.refused_bytes is not None and self.refused_bytes <= self.accepted_bytes:
            self.refused_bytes = None
