"""Finds the label in a chat model's reply, and computes label probabilities from its tokens.

For each token of the reply, the server returns the most probable alternatives. They give label
probabilities in two cases only:

- The reply is one token that is a complete label. Each alternative to this token then either is
  another label or is none.
- The reply is JSON whose label the server restricts to the given labels, and each alternative to
  the token in which the label starts fits at most one label.

In every other case a label consists of several tokens, and the server does not return the
probabilities of the tokens with which other labels go on.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from pgn_client.types import Answer, normal
from pgn_client.wire.protocols.base import MalformedAnswerError, best_first

OPENING = re.compile(r'\s*\{\s*"label"\s*:\s*"')


def reply_text(message: dict[str, Any], finish_reason: Any) -> str:
    """Return the text of a chat reply, whose content is a text or a list of parts.

    Args:
        message: ``message`` of the reply in OpenAI's format, untrusted.
        finish_reason: Reason why the model stopped, as the server gives it.

    Raises:
        MalformedAnswerError: The model refuses, or there is no text.
    """
    content = message.get("content")
    refusal = message.get("refusal")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict)]
        refusals = [part["refusal"] for part in parts if isinstance(part.get("refusal"), str)]
        refusal = refusal or "".join(refusals)
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))

    if isinstance(refusal, str) and refusal:
        raise MalformedAnswerError(refusal, "a label", "a refusal: ")
    # A model that only reasoned before it was cut off has null as its content.
    if content is None and finish_reason == "length":
        content = ""
    if not isinstance(content, str):
        raise MalformedAnswerError(json.dumps(content), "text", "the content ")
    return content


def said_label(content: str, labels: Sequence[str], finish_reason: Any = None) -> str:
    """Return the label that a chat reply names, in ``{"label": "cat"}`` or in plain text.

    Reasoning in ``<think>`` and the fence of a Markdown block are left out. Case, Unicode
    normalization, surrounding quotes and a final period are ignored.

    Args:
        content: Text of the reply.
        labels: Labels to choose from.
        finish_reason: Reason why the model stopped, as the server gives it.

    Raises:
        MalformedAnswerError: The reply names none of the labels.
    """
    reply = _without_decoration(content)
    try:
        document = json.loads(reply)
    # Plain text, or brackets nested too deeply.
    except (ValueError, RecursionError):
        document = reply

    value = document.get("label") if isinstance(document, dict) else document
    text = value if isinstance(value, str) else reply
    if text in labels:
        return text

    stripped = normal(text.strip(" \t\r\n\"'`."))
    exact = [label for label in labels if normal(label) == stripped]
    folded = [label for label in labels if normal(label).casefold() == stripped.casefold()]
    for matches in (exact, folded):
        if len(matches) == 1:
            return matches[0]

    what = ""
    remedy = ""
    if finish_reason == "length":
        what = "a reply cut off by max_tokens, "
        remedy = "; raise max_tokens, for example options: parameters = {max_tokens = 1000}"
    if finish_reason == "content_filter":
        what = "a reply withheld by the server's content filter, "
    example = repr(labels[0] if labels else "")
    raise MalformedAnswerError(
        content, f"one of the {len(labels)} labels, such as {example}{remedy}", what
    )


def _without_decoration(content: str) -> str:
    """Return a reply without reasoning in ``<think>`` and without a Markdown fence."""
    # Some servers leave out the opening tag; a reply that was cut off has no closing one.
    reply = content.rpartition("</think>")[2]
    reply = re.sub(r"(?s)<think>.*", "", reply).strip()
    fenced = re.fullmatch(r"(?s).*?```[\w-]*[ \t]*\r?\n(.*?)\r?\n?[ \t]*```.*", reply)
    return fenced[1].strip() if fenced else reply


def probabilities(logprobs: Any, content: str, label: str, labels: Sequence[str]) -> Answer | None:
    """Return an answer with label probabilities, computed from the token probabilities of a reply.

    None if the token probabilities do not determine the label probabilities.

    Args:
        logprobs: ``logprobs`` of the reply in OpenAI's format, untrusted.
        content: Complete text of the reply.
        label: Label in the reply.
        labels: All labels to choose from.
    """
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not tokens or not all(_valid(token) for token in tokens):
        return None

    if len(tokens) == 1 and tokens[0]["token"].strip() == label:
        by_label = _only_token(tokens[0], content, labels)
    else:
        by_label = _first_token(tokens, content, label, labels)
    if not by_label:
        return None

    # The request sets the temperature to 0, so the label in the reply must be the most probable
    # one. The sum may exceed 1 by rounding only.
    best = max(by_label, key=lambda each: by_label[each])
    if best != label or sum(by_label.values()) > 1 + 1e-3:
        return None
    return best_first(by_label.items(), "probabilities")


def _only_token(
    token: dict[str, Any], content: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Return the probability of each label, for a reply that is a single token.

    In plain text, an alternative such as "cat" could also be the start of the label "cattle". The
    result is None if an alternative fits several labels.
    """
    is_plain = content.strip() == token["token"].strip()

    def compatible(text: str) -> list[str]:
        start = text.strip()
        if start not in labels:
            return []
        longer = [each for each in labels if is_plain and each.startswith(start) and each != start]
        return [start, *longer]

    return _sums(token, compatible)


def _first_token(
    tokens: list[dict[str, Any]], content: str, label: str, labels: Sequence[str]
) -> dict[str, float] | None:
    """Return the probability of each label, from the token in which a JSON reply's label starts.

    None if the reply has another form, or if an alternative to this token fits several labels.
    """
    opening = OPENING.match(content)
    if opening is None or "".join(token["token"] for token in tokens) != content:
        return None

    label_start = opening.end()
    token_start = 0
    for token in tokens:
        token_end = token_start + len(token["token"])
        if token_end > label_start:
            break
        token_start = token_end

    before_label = content[token_start:label_start]
    spelled = {each: _spellings(each) for each in labels}
    if not any(content.startswith(text, label_start) for text in spelled[label]):
        return None

    def compatible(text: str) -> list[str]:
        label_part = text[len(before_label) :] if text.startswith(before_label) else ""
        if not label_part:
            return []
        return [each for each in labels if _any_agrees(label_part, spelled[each])]

    return _sums(token, compatible)


def _spellings(label: str) -> set[str]:
    """Return the ways to write a label in JSON, with and without escapes of non-ASCII letters.

    Each has the closing quote, but not the opening one.
    """
    spellings: set[str] = set()
    for form in (label, normal(label)):
        spellings |= {json.dumps(form)[1:], json.dumps(form, ensure_ascii=False)[1:]}
    return spellings


def _any_agrees(text: str, spellings: set[str]) -> bool:
    """Whether a text is the start of one of a label's spellings, or starts with one of them."""
    return any(full.startswith(text) or text.startswith(full) for full in spellings)


def _sums(token: dict[str, Any], compatible: Callable[[str], list[str]]) -> dict[str, float] | None:
    """Return the summed probability of each label over the alternatives to one token.

    ``compatible`` returns the labels that an alternative fits. The result is None if an alternative
    fits several labels.
    """
    listed = token.get("top_logprobs")
    alternatives = [each for each in listed if _valid(each)] if isinstance(listed, list) else []
    # A server may list no alternatives, or leave the token itself out of them.
    if all(each["token"] != token["token"] for each in alternatives):
        alternatives.append(token)

    sums: dict[str, float] = {}
    for alternative in alternatives:
        matches = compatible(alternative["token"])
        if len(matches) > 1:
            return None
        for label in matches:
            # JSON may hold an integer beyond float's range, which math.exp would refuse.
            probability = math.exp(max(alternative["logprob"], -1e9))
            sums[label] = sums.get(label, 0.0) + probability
    return sums


def _valid(token: Any) -> bool:
    """Whether a value from the server is a token with a text and a valid log-probability."""
    fields = token if isinstance(token, dict) else {}
    text = fields.get("token")
    number = fields.get("logprob")
    # A log-probability is at most 0; servers may round it up a little.
    is_log_probability = (
        isinstance(number, int | float) and not isinstance(number, bool) and number <= 1e-3
    )
    return isinstance(text, str) and bool(text) and is_log_probability
