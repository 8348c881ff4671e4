"""Which label a chat has said, and the probabilities of the labels from those of its tokens.

Sound in two cases only. The answer may be one token that is a whole label: then its alternatives
are, or are not, other labels. Or it is the JSON of a closed set, which the server keeps to, and
each alternative of the token in which the label begins leaves one label only. In any other case a
label is several tokens, whose other continuations nobody has told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pgn_client.types import Answer
from pgn_client.wire.protocols.base import MalformedAnswerError, best_first

OPENING = re.compile(r'\s*\{\s*"label"\s*:\s*"')


def said_label(content: Any, labels: Sequence[str]) -> str:
    """Return the label in ``{"label": "cat"}`` or in a plain text; case, quotes and a full stop do
    not matter.

    Raises:
        MalformedAnswerError: none of the labels.
    """
    if not isinstance(content, str):
        raise MalformedAnswerError(json.dumps(content), "a text", "the content ")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = content
    said = document.get("label") if isinstance(document, dict) else document
    text = said if isinstance(said, str) else content
    if text in labels:
        return text
    plain = [label for label in labels if label.casefold() == text.strip(" \t\r\n\"'`.").casefold()]
    if len(plain) != 1:
        raise MalformedAnswerError(
            content, f"one of the {len(labels)} labels, such as {labels[0] if labels else ''!r}"
        )
    return plain[0]


def probabilities(logprobs: Any, content: str, label: str, labels: Sequence[str]) -> Answer | None:
    """Return the probabilities of the labels that the alternatives of one token tell; None where
    they do not.

    Args:
        logprobs: the choice's ``logprobs``, untrusted.
        content: the whole text.
        label: the one that was said.
        labels: all.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(_fine(token) for token in tokens):
        return None
    if len(tokens) == 1 and tokens[0]["token"].strip() == label:
        found = _only_token(tokens[0], content, labels)
    else:
        found = _first_token(tokens, content, label, labels)
    if (
        not found
        or max(found, key=lambda each: found[each]) != label
        or sum(found.values()) > 1 + 1e-3
    ):
        return None
    return best_first(found.items(), "probabilities")


def _only_token(
    token: dict[str, Any], content: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Read the one token of an answer; as text, "cat" might have become "cattle" too."""
    plain = content.strip() == token["token"].strip()

    def named(text: str) -> list[str]:
        said = text.strip()
        longer = [each for each in labels if plain and each.startswith(said) and each != said]
        return [said, *longer] if said in labels else []

    return _sums(token, named)


def _first_token(
    tokens: list[dict[str, Any]], content: str, label: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Read the token in which the label of a JSON answer begins."""
    opening = OPENING.match(content)
    if opening is None or "".join(token["token"] for token in tokens) != content:
        return None
    start, place = opening.end(), 0
    for token in tokens:
        if place + len(token["token"]) > start:
            break
        place += len(token["token"])
    before = content[place:start]
    spelled = {each: _spellings(each) for each in labels}
    if not any(content.startswith(text, start) for text in spelled[label]):
        return None

    def named(text: str) -> list[str]:
        rest = text[len(before) :] if text.startswith(before) else ""
        fits = [each for each in labels if any(_agree(rest, full) for full in spelled[each])]
        return fits if rest else []

    return _sums(token, named)


def _spellings(label: str) -> set[str]:
    """Return the label as JSON may spell it, with the quote at its end."""
    return {json.dumps(label)[1:], json.dumps(label, ensure_ascii=False)[1:]}


def _agree(text: str, whole: str) -> bool:
    return whole.startswith(text) or text.startswith(whole)


def _sums(token: dict[str, Any], named: Callable[[str], list[str]]) -> dict[str, float] | None:
    """Add up the alternatives of each label; None where one alternative may still become several
    labels.
    """
    told = token.get("top_logprobs")
    alternatives = [each for each in told if _fine(each)] if isinstance(told, list) else []
    if all(each["token"] != token["token"] for each in alternatives):
        alternatives.append(token)
    found: dict[str, float] = {}
    for alternative in alternatives:
        fits = named(alternative["token"])
        if len(fits) > 1:
            return None
        for label in fits:
            found[label] = found.get(label, 0.0) + math.exp(max(alternative["logprob"], -1e9))
    return found


def _fine(token: Any) -> bool:
    """Whether this is a token with its probability."""
    fields = token if isinstance(token, dict) else {}
    number = fields.get("logprob")
    real = isinstance(number, int | float) and not isinstance(number, bool) and number <= 1e-3
    return isinstance(fields.get("token"), str) and bool(fields["token"]) and real
