"""Faults on purpose, on a schedule that is the same in every run.

A faults file is one JSON object::

    {"seed": 0, "rules": [
      {"kind": "latency", "seconds": 0.2, "every": 2},
      {"kind": "status", "status": 429, "retry_after": "1", "first": 3, "count": 2},
      {"kind": "status", "status": 503, "estimated_time": 20.0, "count": 2},
      {"kind": "cut_body", "probability": 0.1}
    ]}

Inference requests (every POST and PUT) are numbered from 1 in the order of arrival. A rule meets
the numbers ``first``, ``first + every``, ``first + 2 every``, ... (``first`` 1, ``every`` 1), for
``count`` of them (without end), each with ``probability`` (1.0) drawn from the seed, the rule's
place and the number alone. All latencies that meet a request add up; of the other rules the first
one acts.

=================  =================================================================================
kind               does (its own fields, with their defaults)
=================  =================================================================================
``latency``        waits ``seconds`` (0) before anything else
``status``         answers ``status`` (500) in the protocol's error form, without asking the model.
                   Headers: ``retry_after``, sent as it is; ``retry_after_date``, seconds from now,
                   sent as an HTTP date; ``retry_after_ms``, sent as ``retry-after-ms``. Body:
                   ``estimated_time`` seconds (Hugging Face's "loading")
``html``           answers ``status`` (502) with an HTML page, as a proxy does
``malformed_json`` sends the first half of the true answer as if it were all
``cut_body``       sends the headers and half of the true answer, then closes the connection
``close``          asks the model, then closes the connection before the first byte of the answer
``trickle``        sends the true answer in ``pieces`` (8), ``seconds`` (0) apart
=================  =================================================================================

``cut_body`` and ``close`` need a real server (uvicorn): an in-process transport has no connection
to close.
"""

from __future__ import annotations

import asyncio
import itertools
import json
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

_SCHEDULE = {"kind", "first", "every", "count", "probability"}
_FIELDS: dict[str, set[str]] = {
    "latency": {"seconds"},
    "status": {"status", "retry_after", "retry_after_date", "retry_after_ms", "estimated_time"},
    "html": {"status"},
    "malformed_json": set(),
    "cut_body": set(),
    "close": set(),
    "trickle": {"seconds", "pieces"},
}
_WHOLE = {"first": 1, "every": 1, "count": 0, "status": 400, "pieces": 1}  # the least of each
_REAL = {"probability", "seconds", "retry_after_date", "retry_after_ms", "estimated_time"}


@dataclass(frozen=True, kw_only=True)
class FaultRule:
    """One line of the schedule; the module's text explains the fields."""

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
        """Check one rule of a faults file.

        Raises:
            ConfigurationError: An unknown kind or field, or a wrong value.
        """
        if not isinstance(content, dict) or content.get("kind") not in _FIELDS:
            raise ConfigurationError(f"a fault rule needs a kind: one of {', '.join(_FIELDS)}")
        known = _SCHEDULE | _FIELDS[content["kind"]]
        for name, value in content.items():
            if name not in known:
                raise ConfigurationError(
                    f"unknown field {name!r} of fault {content['kind']!r}; known: "
                    f"{', '.join(sorted(known))}"
                )
            if not _is_right(name, value):
                raise ConfigurationError(
                    f"wrong value of {name!r} of fault {content['kind']!r}: {value!r}"
                )
        return cls(**content)

    def meets(self, number: int, draw: float) -> bool:
        """Return whether the rule acts on request ``number`` (from 1), ``draw`` uniform in [0,
        1).
        """
        turn, rest = divmod(number - self.first, self.every)
        in_time = turn >= 0 and rest == 0 and (self.count is None or turn < self.count)
        return in_time and draw < self.probability


@dataclass(frozen=True)
class FaultPlan:
    """A schedule of faults.

    Attributes:
        rules: In order of precedence.
        seed: Of the draws behind ``probability``.
    """

    rules: tuple[FaultRule, ...] = ()
    seed: int = 0

    @classmethod
    def load(cls, path: Path, *, default_seed: int = 0) -> FaultPlan:
        """Read a faults file.

        Raises:
            ConfigurationError: Missing, not JSON, or with unknown or wrong fields.
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
        """Check the content of a faults file.

        Raises:
            ConfigurationError: Unknown or wrong fields.
        """
        if not isinstance(content, dict) or not content.keys() <= {"seed", "rules"}:
            raise ConfigurationError('faults must be an object: {"seed": 0, "rules": [...]}')
        rules, seed = content.get("rules", []), content.get("seed", default_seed)
        if not isinstance(rules, list) or not isinstance(seed, int):
            raise ConfigurationError("faults need a list of rules and a whole-number seed")
        return cls(tuple(FaultRule.parse(rule) for rule in rules), seed)

    def meeting(self, number: int) -> Iterator[FaultRule]:
        """Yield the rules that act on request ``number``, whatever came before it."""
        for place, rule in enumerate(self.rules):
            if rule.meets(number, random.Random(f"{self.seed}/{place}/{number}").random()):
                yield rule


@dataclass(frozen=True)
class _Exchange:
    """One request under a fault."""

    app: ASGIApp
    scope: Scope
    receive: Receive
    send: Send
    sleep: Callable[[float], Awaitable[None]]

    async def true_answer(self) -> tuple[Message, bytes]:
        """Run the application and keep its answer back."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self.app(self.scope, self.receive, keep)
        return messages[0], b"".join(message.get("body", b"") for message in messages[1:])

    async def body(self, data: bytes, *, more: bool = False) -> None:
        """Send a part of the body."""
        await self.send({"type": "http.response.body", "body": data, "more_body": more})


class FaultMiddleware:
    """Put a `FaultPlan` between the application and its clients.

    Args:
        app: What is wrapped.
        plan: The schedule.
        sleep: Waits for seconds; injected so that tests do not.
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
        """Answer one request, as the schedule wants it."""
        if scope["type"] != "http" or scope["method"] not in INFERENCE_METHODS:
            await self.app(scope, receive, send)
            return
        rules = list(self.plan.meeting(next(self._numbers)))
        for rule in rules:
            if rule.kind == "latency":
                await self.sleep(rule.seconds)
        acting = next((rule for rule in rules if rule.kind != "latency"), None)
        if acting is None:
            await self.app(scope, receive, send)
            return
        await _ACTS[acting.kind](acting, _Exchange(self.app, scope, receive, send, self.sleep))


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
    message = (
        ("the model is currently loading")
        if rule.estimated_time is not None
        else "a fault on purpose"
    )
    error = RequestError(
        code_of(status), message, headers=headers, estimated_time=rule.estimated_time
    )
    await error_response(exchange.scope, error, status)(
        exchange.scope, exchange.receive, exchange.send
    )


async def _html(rule: FaultRule, exchange: _Exchange) -> None:
    page = (
        "<!doctype html><html><head><title>Bad Gateway</title></head><body><h1>Bad "
        "Gateway</h1></body></html>"
    )
    await HTMLResponse(page, rule.status or 502)(exchange.scope, exchange.receive, exchange.send)


async def _malformed_json(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    half = body[: len(body) // 2]
    MutableHeaders(scope=start)["content-length"] = str(len(half))
    await exchange.send(start)
    await exchange.body(half)


async def _cut_body(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    await exchange.send(start)
    # returning before the end closes the connection
    await exchange.body(body[: len(body) // 2], more=True)


async def _close(rule: FaultRule, exchange: _Exchange) -> None:
    await exchange.true_answer()
    # ASGI has no word for "hang up". A header that no server may write makes uvicorn refuse to
    # write the answer after it has counted it as begun, and an answer that was begun and never
    # completed is a closed connection.
    start = {"type": "http.response.start", "status": 500, "headers": [(b"x-fault", b"\n")]}
    try:
        await exchange.send(start)
    except Exception:
        return


async def _trickle(rule: FaultRule, exchange: _Exchange) -> None:
    start, body = await exchange.true_answer()
    await exchange.send(start)
    step = max(1, -(-len(body) // rule.pieces))
    for begin in range(0, len(body), step):
        await exchange.body(body[begin : begin + step], more=True)
        await exchange.sleep(rule.seconds)
    await exchange.body(b"")


_ACTS: dict[str, Callable[[FaultRule, _Exchange], Awaitable[None]]] = {
    "status": _status,
    "html": _html,
    "malformed_json": _malformed_json,
    "cut_body": _cut_body,
    "close": _close,
    "trickle": _trickle,
}


def _is_right(name: str, value: Any) -> bool:
    if name in _WHOLE:
        limit = 599 if name == "status" else 10**9
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and _WHOLE[name] <= value <= limit
        )
    if name in _REAL:
        right = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
        return right and (name != "probability" or value <= 1)
    return isinstance(value, str) and value.isprintable()
