from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from mock_server.errors import ConfigurationError
from mock_server.faults import FaultMiddleware, FaultPlan

ANSWER = {"numbers": list(range(50))}


def plan(*rules: dict[str, Any], seed: int = 0) -> FaultPlan:
    return FaultPlan.parse({"seed": seed, "rules": list(rules)})


def acting(faults: FaultPlan, count: int) -> list[int]:
    return [number for number in range(1, count + 1) if list(faults.meeting(number))]


@pytest.fixture
def naps() -> list[float]:
    return []


@pytest.fixture
def client(naps) -> Callable[..., httpx.AsyncClient]:
    """Return a function from rules to a client of an app with one answer; waiting is only written
    down.
    """

    async def sleep(seconds: float) -> None:
        naps.append(seconds)

    def build(*rules: dict[str, Any]) -> httpx.AsyncClient:
        app = FaultMiddleware(JSONResponse(ANSWER), plan(*rules), sleep)
        return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server")

    return build


def test_a_rule_meets_its_numbers_only():
    assert acting(plan({"kind": "close", "first": 3, "count": 2}), 10) == [3, 4]
    assert acting(plan({"kind": "close", "first": 2, "every": 3, "count": 2}), 20) == [2, 5]
    assert acting(plan({"kind": "close", "every": 4}), 10) == [1, 5, 9]


def test_chance_is_the_same_for_a_seed_and_near_its_probability():
    half = {"kind": "close", "probability": 0.5}
    assert acting(plan(half, seed=1), 1000) == acting(plan(half, seed=1), 1000)
    assert acting(plan(half, seed=1), 1000) != acting(plan(half, seed=2), 1000)
    assert 450 < len(acting(plan(half), 1000)) < 550


def test_a_number_s_faults_do_not_depend_on_what_was_asked_before():
    faults = plan({"kind": "close", "probability": 0.5})
    assert (
        acting(faults, 50) == [n for n in reversed(range(1, 51)) if list(faults.meeting(n))][::-1]
    )


@pytest.mark.anyio
async def test_requests_without_a_fault_and_all_gets_pass_untouched(client):
    async with client({"kind": "status", "first": 2}) as http:
        assert (await http.get("/v1/model")).status_code == 200
        assert (await http.post("/v1/classify")).json() == ANSWER
        assert (await http.post("/v1/classify")).status_code == 500


@pytest.mark.anyio
async def test_latencies_add_up(client, naps):
    async with client(
        {"kind": "latency", "seconds": 0.5}, {"kind": "latency", "seconds": 2}
    ) as http:
        assert (await http.post("/v1/classify")).json() == ANSWER
    assert naps == [0.5, 2]


@pytest.mark.anyio
async def test_the_first_rule_that_meets_acts(client):
    async with client(
        {"kind": "status", "status": 429, "count": 1}, {"kind": "status", "status": 503}
    ) as http:
        assert [(await http.post("/v1/classify")).status_code for _ in range(3)] == [429, 503, 503]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("rule", "headers"),
    [
        ({}, {}),
        ({"retry_after": "1"}, {"retry-after": "1"}),
        ({"retry_after_ms": 200}, {"retry-after-ms": "200"}),
    ],
)
async def test_a_status_carries_the_asked_retry_headers_and_no_other(client, rule, headers):
    async with client({"kind": "status", "status": 429, **rule}) as http:
        answer = await http.post("/v1/classify")
    assert {
        name: value for name, value in answer.headers.items() if name.startswith("retry")
    } == headers
    assert answer.json()["error"]["code"] == "rate_limited"


@pytest.mark.anyio
async def test_a_retry_date_lies_that_far_ahead(client):
    async with client({"kind": "status", "status": 503, "retry_after_date": 60}) as http:
        header = (await http.post("/v1/classify")).headers["retry-after"]
    assert header.endswith(" GMT")
    assert 50 < (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds() <= 60


@pytest.mark.anyio
async def test_warming_up_has_the_hugging_face_form_there(client):
    async with client({"kind": "status", "status": 503, "estimated_time": 20.0}) as http:
        answer = await http.post("/models/x")
    assert answer.json().keys() == {"error", "estimated_time"}


@pytest.mark.anyio
async def test_a_proxy_s_html_page_is_no_json(client):
    async with client({"kind": "html"}) as http:
        answer = await http.post("/v1/classify")
    assert answer.status_code == 502
    assert answer.headers["content-type"].startswith("text/html")


@pytest.mark.anyio
async def test_malformed_json_is_whole_as_http_and_broken_as_json(client):
    async with client({"kind": "malformed_json"}) as http:
        answer = await http.post("/v1/classify")
    assert answer.status_code == 200
    assert len(answer.content) == int(answer.headers["content-length"])
    with pytest.raises(json.JSONDecodeError):
        answer.json()


@pytest.mark.anyio
async def test_a_trickle_is_the_true_answer_in_pieces(client, naps):
    async with client({"kind": "trickle", "seconds": 0.1, "pieces": 5}) as http:
        answer = await http.post("/v1/classify")
    assert answer.json() == ANSWER
    assert naps == [0.1] * 5


@pytest.mark.anyio
async def test_a_simulated_refusal_is_counted_and_labelled_like_a_real_one(open_client):
    async with open_client(faults=plan({"kind": "status", "status": 429})) as http:
        answer = await http.post("/v1/classify")
        metrics = (await http.get("/metrics")).text
    assert answer.json()["error"]["request_id"] == answer.headers["x-request-id"]
    assert 'pgn_requests_total{protocol="pgn",status="429"} 1.0' in metrics


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"rule": []},
        {"rules": {}},
        {"seed": "x"},
        {"rules": [{}]},
        {"rules": [{"kind": "explode"}]},
        {"rules": [{"kind": ["close"]}]},
        {"rules": [{"kind": {"close": 1}}]},
        {"rules": [{"kind": "close", "status": 500}]},
        {"rules": [{"kind": "status", "status": 200}]},
        {"rules": [{"kind": "status", "first": 0}]},
        {"rules": [{"kind": "status", "retry_after": 1}]},
        {"rules": [{"kind": "status", "retry_after": "1\r\nx: y"}]},
        {"rules": [{"kind": "close", "probability": 2}]},
        {"rules": [{"kind": "latency", "seconds": -1}]},
    ],
)
def test_a_wrong_plan_is_a_configuration_error(content):
    with pytest.raises(ConfigurationError):
        FaultPlan.parse(content)


def test_the_default_seed_serves_a_file_that_names_none(tmp_path):
    file = tmp_path / "faults.json"
    file.write_text('{"rules": []}')
    assert FaultPlan.load(file, default_seed=7).seed == 7


@pytest.mark.parametrize("text", [None, "{", "\x00"])
def test_an_unreadable_file_is_a_configuration_error(tmp_path, text):
    file = tmp_path / "faults.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigurationError, match="cannot read the faults file"):
        FaultPlan.load(file)
