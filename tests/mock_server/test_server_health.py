from __future__ import annotations

from dataclasses import replace

import httpx
import pytest
import torch

from mock_server.app import create_app
from mock_server.batching import ClosedError
from mock_server.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("path", ["/", "/healthz", "/health", "/readyz", "/metrics"])
async def test_health_wants_no_key(open_client, path):
    async with open_client(api_key="s3cret") as client:
        assert (await client.get(path)).status_code == 200


async def test_ready_is_503_until_the_model_is_warm_and_after_it_stopped(served):
    app = create_app(Settings(), served)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server"
    ) as client:
        before = await client.get("/readyz")
        async with app.router.lifespan_context(app):
            during = await client.get("/readyz")
        after = await client.get("/readyz")
    assert [answer.status_code for answer in (before, during, after)] == [503, 200, 503]
    assert before.headers["retry-after"] == "1"


class Failing(torch.nn.Module):
    def forward(self, x):
        raise RuntimeError("no memory")


async def test_a_model_that_fails_its_first_picture_never_gets_ready(served):
    app = create_app(Settings(), replace(served, network=Failing()))
    with pytest.raises(RuntimeError, match="the model tiny failed on its first image"):
        async with app.router.lifespan_context(app):
            pytest.fail("started")
    assert not app.state.service.ready
    with pytest.raises(ClosedError):  # its worker is stopped too
        await app.state.service._batcher.submit([])


async def test_the_model_is_stopped_when_serving_ends_in_an_error(served):
    app = create_app(Settings(), served)
    with pytest.raises(ZeroDivisionError):
        async with app.router.lifespan_context(app):
            raise ZeroDivisionError
    assert not app.state.service.ready


async def test_the_metrics_count_requests_pictures_and_refusals(open_client, png):
    async with open_client() as client:
        await client.post("/v1/classify", content=png())
        await client.post("/", content=b"no picture")
        lines = (await client.get("/metrics")).text.splitlines()
    assert 'pgn_requests_total{protocol="pgn",status="200"} 1.0' in lines
    assert 'pgn_requests_total{protocol="huggingface",status="400"} 1.0' in lines
    assert "pgn_images_total 1.0" in lines
    assert 'pgn_rejected_total{reason="invalid_image"} 1.0' in lines
    assert "pgn_queue_depth 0.0" in lines
    assert "pgn_batch_size_count 2.0" in lines  # one of them is the warm-up
    assert 'pgn_request_duration_seconds_count{protocol="pgn"} 1.0' in lines
