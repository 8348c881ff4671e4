"""Forms of a chat request, from the richest to the plainest, for servers that refuse some of them.

A server's refusal usually names the property that it does not accept; that one is given up first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

from pgn_client.wire.protocols.base import WireResponse

# OpenAI's upper limit of ``top_logprobs``, and the one of servers that accept fewer.
MOST_ALTERNATIVES = 20
FEW_ALTERNATIVES = 5
REFUSED = (400, 403, 422)


@dataclass(frozen=True, slots=True)
class Form:
    """The properties of a chat request that some servers refuse.

    Attributes:
        schema: Whether ``response_format`` restricts the reply to the labels by an enum.
        alternatives: Number of alternatives to each token (``top_logprobs``) to request with the
            log-probabilities; 0 requests no log-probabilities.
        limit: Name of the largest number of tokens in the reply.
        temperature: Whether to set the temperature to 0.
    """

    schema: bool = True
    alternatives: int = MOST_ALTERNATIVES
    limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    temperature: bool = True

    @property
    def name(self) -> str:
        """Text for the cache key: ``closed`` or ``open``, and what differs from earlier versions.

        Earlier versions had two forms: ``closed``, with all properties, and ``open``, without
        schema and log-probabilities.
        """
        words = ["closed" if self.schema else "open"]
        if self.alternatives != (MOST_ALTERNATIVES if self.schema else 0):
            words.append(f"top{self.alternatives}")
        if self.limit != "max_tokens":
            words.append(self.limit)
        if not self.temperature:
            words.append("untempered")
        return "-".join(words)

    def applied(self, document: dict[str, Any]) -> dict[str, Any]:
        """Return a complete request body without what this form gives up."""
        kept = dict(document)
        if not self.schema:
            kept.pop("response_format", None)
        if not self.alternatives:
            kept.pop("logprobs", None)
        if not self.alternatives or "logprobs" not in kept:
            kept.pop("top_logprobs", None)
        requested = kept.get("top_logprobs")
        if isinstance(requested, int) and requested > self.alternatives:
            kept["top_logprobs"] = self.alternatives
        if not self.temperature:
            kept.pop("temperature", None)
        if "max_tokens" in kept and self.limit != "max_tokens":
            kept.setdefault(self.limit, kept.pop("max_tokens"))
        return kept

    def next(self) -> Form | None:
        """Return the form after this one in a fixed order of all forms; None after the last."""
        forms = list(_all())
        following = forms[forms.index(self) + 1 :]
        return following[0] if following else None

    def simpler(self, response: WireResponse) -> Iterator[tuple[Form, str]]:
        """Yield the simpler forms to try after a failed response, with what each gives up.

        The first ones give up a property that the response names; without such a name, the
        log-probabilities are given up before the schema.
        """
        if response.status not in REFUSED:
            return
        # The start is enough, because an error may echo the whole request.
        text = response.body[:4000].decode("utf-8", "replace").lower()
        few = min(self.alternatives, FEW_ALTERNATIVES)
        if self.alternatives == FEW_ALTERNATIVES:
            few = 0
        steps: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("max_completion_tokens", "max_tokens", {"limit": "max_completion_tokens"}),
            ("top_logprobs", f"top_logprobs above {few}", {"alternatives": few}),
            ("log_?prob", "log-probabilities", {"alternatives": 0}),
            (
                "response_format|json_schema|json schema|structured|guided|grammar",
                "the enum of labels (response_format)",
                {"schema": False},
            ),
            ("temperature", "temperature 0", {"temperature": False}),
        )
        for sign, given_up, change in steps:
            if re.search(sign, text):
                yield replace(self, **change), given_up
        # 403 is about the key, unless it names a property.
        if response.status == 403:
            return
        for _, given_up, change in (steps[2], steps[3]):
            yield replace(self, **change), given_up


def _all() -> Iterator[Form]:
    """Yield all forms."""
    limits: tuple[Literal["max_tokens", "max_completion_tokens"], ...] = (
        "max_tokens",
        "max_completion_tokens",
    )
    for temperature, limit, schema, alternatives in itertools.product(
        (True, False), limits, (True, False), (MOST_ALTERNATIVES, FEW_ALTERNATIVES, 0)
    ):
        yield Form(schema, alternatives, limit, temperature)
