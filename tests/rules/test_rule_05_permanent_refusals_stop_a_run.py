"""Rule 5: a permanent refusal that does not depend on the image stops the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import httpx
import pytest
from wire.fakes import Server, answered, async_client, client, picture

from pgn_client import AdaptedClient, ImageFailure, Prediction
from pgn_client.errors import PGNError

IMAGES = [picture(i) for i in range(40)]


def refused(status: int, **headers: str) -> Callable[[], httpx.Response]:
    return lambda: httpx.Response(status, json={"error": "no"}, headers=headers)


def run(server: Server, **options: object) -> tuple[list[object], PGNError | None]:
    """Classify 40 images; return the results and the error that ended the run."""
    results: list[object] = []
    with client(server, protocol="pgn", **options) as c:
        try:
            results.extend(c.classify_many(IMAGES))
        except PGNError as error:
            return results, error
    return results, None


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (refused(401), 1),
        (refused(402), 1),
        (refused(403), 1),
        (refused(404), 1),
        (refused(405), 3),
        (refused(400), 3),
        (refused(422), 3),
        (refused(501), 3),
        (refused(429, **{"retry-after": "3600"}), 3),
        (refused(503, **{"retry-after": "3600"}), 3),
        (lambda: httpx.Response(200, text="<html><body>Sign in</body></html>"), 3),
        (lambda: httpx.Response(200, json={"error": "quota"}), 3),
    ],
)
def test_the_same_refusal_of_every_image_ends_the_run(make, most):
    server = Server([make() for _ in range(40)])
    results, error = run(server)
    assert len(server.requests) == most
    assert "stopped, because" in str(error) or most == 1
    assert all(isinstance(result, ImageFailure) for result in results)
    assert len(results) == most


def test_asyncio_stops_alike():
    server = Server([httpx.Response(404) for _ in range(40)])

    async def ask() -> None:
        async with async_client(server, protocol="pgn") as c:
            [result async for result in c.classify_many(IMAGES)]

    with pytest.raises(PGNError, match="stopped, because 1 image failed"):
        asyncio.run(ask())
    assert len(server.requests) == 1


def test_refusals_of_single_images_do_not_stop_a_run():
    """A success between them shows that they are about the image."""
    script = [answered()]
    for _ in range(13):
        script += [httpx.Response(422), httpx.Response(422), answered()]
    results, error = run(Server(script), max_concurrency=1)
    assert error is None
    assert sum(isinstance(result, Prediction) for result in results) == 14


def test_many_bad_images_in_a_row_do_not_stop_a_run_that_works():
    script = [answered(), *(httpx.Response(400) for _ in range(38)), answered()]
    results, error = run(Server(script), max_concurrency=1)
    assert error is None
    assert isinstance(results[-1], Prediction)


def test_outages_are_no_refusals():
    """Another image may well be answered after a status 503."""
    results, error = run(Server([httpx.Response(503) for _ in range(40)]), max_retries=0)
    assert error is None
    assert len(results) == 40


def test_refused_images_are_told_apart_from_answered_ones():
    with client(Server([answered(), httpx.Response(422)]), protocol="pgn") as c:
        list(c.classify_many(IMAGES[:2]))
        assert (c.usage.billable, c.usage.refused) == (2, 1)


def test_images_are_sent_one_at_a_time_until_one_is_answered():
    """Otherwise a refusal that meets them all would be paid ``max_concurrency`` times."""
    with (
        AdaptedClient(
            "http://127.0.0.1:9",
            None,
            protocol="pgn",
            max_concurrency=8,
            transport=httpx.MockTransport(server := Server([httpx.Response(403)] * 8)),
        ) as c,
        pytest.raises(PGNError),
    ):
        list(c.classify_many(IMAGES))
    assert len(server.requests) == 1
