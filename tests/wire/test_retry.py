from __future__ import annotations

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgn_client.wire.retry import RetryPolicy, Stop, Wait, wished_wait

NOW = 1_700_000_000.0


def decide(*failures, headers=None, remaining=1e9, jitter=1.0, policy=None, **more):
    return (policy or RetryPolicy()).decide(
        failures, headers or {}, jitter=jitter, now=NOW, remaining=remaining, **more
    )


@pytest.mark.parametrize("status", [408, 409, 425, 429, 500, 502, 503, 504, 529, None])
def test_passing_failures_are_retried(status):
    assert decide(status) == Wait(0.5)


@pytest.mark.parametrize("status", [300, 301, 400, 401, 403, 404, 405, 413, 415, 422, 501, 505])
def test_lasting_failures_are_not_retried(status):
    assert decide(status) == Stop()


def test_500_is_retried_once_only():
    assert isinstance(decide(500), Wait)
    assert isinstance(decide(503, 500), Wait)
    assert decide(500, 500) == Stop()
    assert decide(500, 503, 500) == Stop()


def test_the_default_waits_are_those_of_the_docstring():
    waits = [decide(*[503] * n).seconds for n in range(1, 5)]
    assert waits == [0.5, 1, 2, 4]
    assert sum(waits) == 7.5
    assert 0.75 * sum(waits) == pytest.approx(5.6, abs=0.03)
    assert isinstance(decide(*[503] * 5), Stop)


def test_the_backoff_is_capped_for_any_number_of_retries():
    assert RetryPolicy().backoff(5, 1.0) == 8.0
    assert RetryPolicy().backoff(10_000, 0.75) == 6.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"retry-after": formatdate(NOW + 9, usegmt=True)}, 9.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"ratelimit": '"api";r=0;t=55'}, 55.0),
        ({"retry-after": "3", "ratelimit": '"api";r=0;t=55'}, 3.0),
    ],
)
def test_a_wait_that_the_server_asks_for_is_honoured(headers, seconds):
    assert decide(429, headers=headers) == Wait(seconds)


@pytest.mark.parametrize(
    "text", ["", "soon", "-3", "0", "nan", "inf", "1e999", formatdate(NOW - 9, usegmt=True)]
)
def test_a_senseless_retry_after_falls_back_to_the_backoff(text):
    assert decide(429, headers={"retry-after": text}) == Wait(0.5)


@given(st.text(max_size=60))
def test_no_header_text_makes_the_parser_fail(text):
    wish = wished_wait({"retry-after": text, "retry-after-ms": text, "ratelimit": text}, NOW)
    assert wish is None or wish > 0


def test_a_wait_above_the_cap_ends_the_call_with_the_reason():
    assert decide(429, headers={"retry-after": "61"}) == Stop(
        "the endpoint asks to wait 61 s, more than the 60 s allowed", lasting=True
    )
    assert decide(429, headers={"retry-after": "60"}) == Wait(60.0)


def test_a_wait_beyond_the_deadline_ends_the_call_with_the_reason():
    assert (
        "would pass the deadline"
        in decide(429, headers={"retry-after": "20"}, remaining=10.0).reason
    )
    assert "would pass the deadline" in decide(503, remaining=0.5).reason
    assert decide(503, remaining=0.6) == Wait(0.5)


def test_a_loading_models_estimate_is_waited_for():
    assert decide(503, hint=20.0) == Wait(20.0)


def test_x_should_retry_wins_over_the_status_and_the_protocol():
    assert decide(503, headers={"x-should-retry": "false"}) == Stop()
    assert decide(400, headers={"x-should-retry": "TRUE"}, retryable=False) == Wait(0.5)


def test_the_protocols_opinion_wins_over_the_status():
    assert decide(503, retryable=False) == Stop()
    assert decide(424, retryable=True) == Wait(0.5)


def test_without_retries_nothing_is_retried():
    assert decide(503, policy=RetryPolicy(max_retries=0)) == Stop()
