"""Deliberate faults on a schedule that is the same in every run.

A faults file is one JSON object::

    {"seed": 0, "rules": [
      {"kind": "latency", "seconds": 0.2, "every": 2},
      {"kind": "status", "status": 429, "retry_after": "1", "first": 3, "count": 2},
      {"kind": "status", "status": 503, "estimated_time": 20.0, "count": 2},
      {"kind": "cut_body", "probability": 0.1}
    ]}

Inference requests (every POST and PUT) are numbered from 1 in the order of arrival. A rule applies
to the numbers ``first``, ``first + every``, ``first + 2 every``, ... and stops after ``count`` of
them. Defaults: ``first`` 1, ``every`` 1, ``count`` unlimited. At each of these numbers the rule
acts with ``probability`` (default 1.0). The draw depends only on the seed, the rule's index in the
list and the request's number.

If several rules act on a request, all their latencies add up, and of the other rules only the first
one acts.

=================  =================================================================================
kind               effect (fields of this kind, with their defaults)
=================  =================================================================================
``latency``        waits ``seconds`` (0) before anything else
``status``         returns ``status`` (500) in the protocol's error form, without running the model.
                   Headers: ``retry_after``, sent unchanged; ``retry_after_date``, in seconds from
                   now, sent as an HTTP date; ``retry_after_ms``, sent as ``retry-after-ms``. Body:
                   ``estimated_time`` in seconds (Hugging Face's "loading")
``html``           returns ``status`` (502) with an HTML page, like a proxy
``malformed_json`` sends the first half of the true response as if it were complete
``cut_body``       sends the headers and half of the true response, then closes the connection
``close``          runs the model, then closes the connection before the first byte of the response
``trickle``        sends the true response in ``pieces`` (8), with a pause of ``seconds`` (0)
=================  =================================================================================

``cut_body`` and ``close`` need a real server (uvicorn): an in-process transport has no connection
to close.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import HTMLResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mock_server.errors import INFERENCE_METHODS, ConfigurationError, RequestError, code_of
from mock_server.responses import error_response

_COMMON_FIELDS = {"kind", "first", "every", "count", "probability"}
_FIELDS: dict[str, set[str]] = {
    "latency": {"seconds"},
    "status": {"status", "retry_after", "retry_after_date", "retry_after_ms", "estimated_time"},
    "html": {"status"},
    "malformed_json": set(),
    "cut_body": set(),
    "close": set(),
    "trickle": {"seconds", "pieces"},
}
_INTEGER_FIELDS = {"first": 1, "every": 1, "count": 0, "status": 400, "pieces": 1}
"""Fields that hold integers, with their smallest values."""
_NUMBER_FIELDS = {"probability", "seconds", "retry_after_date", "retry_after_ms", "estimated_time"}


@dataclass(frozen=True, kw_only=True)
class FaultRule:
    """One rule of the schedule; the module's docstring explains the fields."""

    kind: str
    first: int = 1
    every: int = 1
    count: int | None = None
    probability: float = 1.0
    status: int | None = None
    retry_after: str | None = None
    retry_after_date: float | None = None
    retry_after_ms: float | None = None
    estimated_time: float | None = None
    seconds: float = 0.0
    pieces: int = 8

    @classmethod
    def parse(cls, content: Any) -> FaultRule:
        """Build a rule from one entry of a faults file.

        Args:
            content: Parsed JSON of the entry.

        Raises:
            ConfigurationError: The kind or a field is unknown, or a field has an invalid value.
        """
        kind = content.get("kind") if isinstance(content, dict) else None
        # Only text is looked up, because JSON lists and objects are not hashable.
        if not isinstance(kind, str) or kind not in _FIELDS:
            raise ConfigurationError(f"a fault rule needs a kind: one of {', '.join(_FIELDS)}")

        allowed = _COMMON_FIELDS | _FIELDS[kind]
        for name, value in content.items():
            if name not in allowed:
                raise ConfigurationError(
                    f"unknown field {name!r} of fault {kind!r}; known: {', '.join(sorted(allowed))}"
                )
            if not _is_valid(name, value):
                raise ConfigurationError(f"invalid value of {name!r} of fault {kind!r}: {value!r}")
        return cls(**content)

    def meets(self, number: int, draw: float) -> bool:
        """Return whether the rule acts on a request.

        Args:
            number: Number of the request, from 1.
            draw: Random number, uniform in [0, 1).
        """
        turn, rest = divmod(number - self.first, self.every)
        scheduled = turn >= 0 and rest == 0 and (self.count is None or turn < self.count)
        return scheduled and draw < self.probability


@dataclass(frozen=True)
class FaultPlan:
    """A schedule of faults.

    Attributes:
        rules: Rules in order of precedence.
        seed: Seed for the draws behind ``probability``.
    """

    rules: tuple[FaultRule, ...] = ()
    seed: int = 0

    @classmethod
    def load(cls, path: Path, *, default_seed: int = 0) -> FaultPlan:
        """Read a faults file.

        Args:
            path: JSON file to read.
            default_seed: Seed to use if the file has none.

        Raises:
            ConfigurationError: The file is missing, is not JSON, or has unknown or invalid fields.
        """
        try:
            content = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read the faults file {path}: {type(error).__name__}"
            ) from error
        return cls.parse(content, default_seed=default_seed)

    @classmethod
    def parse(cls, content: Any, *, default_seed: int = 0) -> FaultPlan:
        """Build a plan from the content of a faults file.

        Args:
            content: Parsed JSON of the file.
            default_seed: Seed to use if the content has none.

        Raises:
            ConfigurationError: The content has unknown or invalid fields.
        """
        if not isinstance(content, dict) or not content.keys() <= {"seed", "rules"}:
            raise ConfigurationError('faults must be an object: {"seed": 0, "rules": [...]}')

        rules = content.get("rules", [])
        seed = content.get("seed", default_seed)
        if not isinstance(rules, list) or not isinstance(seed, int):
            raise ConfigurationError("faults must have a list of rules and an integer seed")
        return cls(tuple(FaultRule.parse(rule) for rule in rules), seed)

    def meeting(self, number: int) -> Iterator[FaultRule]:
        """Yield the rules that act on request ``number``; earlier requests have no influence."""
        for index, rule in enumerate(self.rules):
            draw = random.Random(f"{self.seed}/{index}/{number}").random()
            if rule.meets(number, draw):
                yield rule


@dataclass(frozen=True)
class _Exchange:
    """One request that a fault acts on."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    sleep: Callable[[float], Awaitable[None]]

    async def true_answer(self) -> tuple[Message, bytes]:
        """Run the application and return its response, start message and body, unsent."""
        messages: list[Message] = []

        async def collect(message: Message) -> None:
            messages.append(message)

        await self.app(self.scope, self.receive, collect)
        start, *parts = messages
        return start, b"".join(part.get("body", b"") for part in parts)

    async def body(self, data: bytes, *, more: bool = False) -> None:
        """Send a part of the body.

        Args:
            data: Bytes to send.
            more: Whether further parts follow.
        """
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


class FaultMiddleware:
    """Apply the faults of a `FaultPlan` to the requests of an application.

    Args:
        app: The wrapped application.
        plan: The schedule of faults.
        sleep: Function that waits for a number of seconds; tests replace it.
    """

    def __init__(
        self,
        app: ASGIApp,
        plan: FaultPlan,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.app = app
        self.plan = plan
        self.sleep = sleep
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request with the faults that the schedule has for it."""
        if scope["type"] != "http" or scope["method"] not in INFERENCE_METHODS:
            await self.app(scope, receive, send)
            return

        rules = list(self.plan.meeting(next(self._numbers)))
        for rule in rules:
            if rule.kind == "latency":
                await self.sleep(rule.seconds)

        fault = next((rule for rule in rules if rule.kind != "latency"), None)
        if fault is None:
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(self.app, scope, receive, send, self.sleep)
        await _ACTIONS[fault.kind](fault, exchange)


async def _status(rule: FaultRule, exchange: _Exchange) -> None:
    status = rule.status or 500

    headers = {}
    if rule.retry_after is not None:
        headers["Retry-After"] = rule.retry_after
    if rule.retry_after_date is not None:
        moment = datetime.now(UTC) + timedelta(seconds=rule.retry_after_date)
        headers["Retry-After"] = format_datetime(moment, usegmt=True)
    if rule.retry_after_ms is not None:
        headers["retry-after-ms"] = f"{rule.retry_after_ms:g}"

    loading = rule.estimated_time is not None
    message = "the model is currently loading" if loading else "a deliberate fault"
    error = RequestError(
        code_of(status), message, headers=headers, estimated_time=rule.estimated_time
    )
    response = error_response(exchange.scope, error, status)
    await response(exchange.scope, exchange.receive, exchange.send)


async def _html(rule: FaultRule, exchange: _Exchange) -> None:
    page = (
        "<!doctype html><html><head><title>Bad Gateway</title></head><body><h1>Bad "
        "Gateway</h1></body></html>"
    )
    await HTMLResponse(page, rule.status or 502)(exchange.scope, exchange.receive, exchange.send)


async def _malformed_json(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    half = body[: len(body) // 2]
    # With the old length, the client would see a broken connection instead of broken JSON.
    MutableHeaders(scope=start)["content-length"] = str(len(half))
    await exchange.send(start)
    await exchange.body(half)


async def _cut_body(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    await exchange.send(start)
    # The server closes the connection because the application returns before the end of the body.
    await exchange.body(body[: len(body) // 2], more=True)


async def _close(rule: FaultRule, exchange: _Exchange) -> None:
    # The response is discarded: the server has done its work, and the client cannot know it.
    await exchange.true_answer()
    # ASGI has no message that closes a connection. This header is illegal: uvicorn marks the
    # response as started, then fails to write the header. It closes the connection because a
    # started response was never completed.
    start = {"type": "http.response.start", "status": 500, "headers": [(b"x-fault", b"\n")]}
    try:
        await exchange.send(start)
    except Exception:
        # This is the expected failure to write the header.
        return


async def _trickle(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    await exchange.send(start)

    # Round up: the body is sent in at most `pieces` parts. An empty body would give the step 0,
    # which `range` rejects.
    step = max(1, math.ceil(len(body) / rule.pieces))
    for begin in range(0, len(body), step):
        await exchange.body(body[begin : begin + step], more=True)
        await exchange.sleep(rule.seconds)
    await exchange.body(b"")


_ACTIONS: dict[str, Callable[[FaultRule, _Exchange], Awaitable[None]]] = {
    "status": _status,
    "html": _html,
    "malformed_json": _malformed_json,
    "cut_body": _cut_body,
    "close": _close,
    "trickle": _trickle,
}


def _is_valid(name: str, value: Any) -> bool:
    """Return whether ``value`` has the type and range of field ``name``."""
    # JSON's true and false are bool, which Python counts as int.
    is_bool = isinstance(value, bool)

    if name in _INTEGER_FIELDS:
        largest = 599 if name == "status" else 10**9
        return isinstance(value, int) and not is_bool and _INTEGER_FIELDS[name] <= value <= largest
    if name in _NUMBER_FIELDS:
        valid = isinstance(value, int | float) and not is_bool and value >= 0
        return valid and (name != "probability" or value <= 1)
    # A line break in a value could add headers to the response.
    return isinstance(value, str) and value.isprintable()
