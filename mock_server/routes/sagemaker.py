"""SageMaker: the container's ``/invocations`` and the runtime's ``/endpoints/{name}/invocations``.

Request and response bodies have Hugging Face's format, like those of its published containers: raw
image bytes, or JSON. The server hosts one model, so it ignores the endpoint's name and the target
headers. The runtime wraps the container's errors in its own (424 ``ModelError``).

Deviation: the server does not verify signatures. A server with a key takes it in ``X-API-Key`` or
as a bearer token.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.routes import huggingface
from mock_server.routes.payload import require_key

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
LONGEST_ATTRIBUTES = 1024
"""SageMaker's own limit for this header, in characters."""

router = APIRouter(tags=["sagemaker"], dependencies=[Depends(require_key)])


@router.post("/invocations", openapi_extra=huggingface.BODY)
async def invoke(request: Request) -> JSONResponse:
    """Classify images in the form of the container."""
    return JSONResponse(await huggingface.answer(request))


@router.post("/endpoints/{endpoint}/invocations", openapi_extra=huggingface.BODY)
async def runtime(request: Request) -> JSONResponse:
    """Classify images in the form of the runtime in front of the container."""
    headers = {
        "x-amzn-requestid": request.state.request_id,
        "x-amzn-invoked-production-variant": "AllTraffic",
    }
    if ATTRIBUTES in request.headers:
        headers[ATTRIBUTES] = request.headers[ATTRIBUTES][:LONGEST_ATTRIBUTES]
    return JSONResponse(await huggingface.answer(request), headers=headers)
