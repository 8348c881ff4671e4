"""SageMaker: the container's ``/invocations`` and the runtime's ``/endpoints/{name}/invocations``.

The body and the answer are Hugging Face's, as in the containers that it publishes: raw image
bytes, or JSON. One model is hosted, so the name of the endpoint is not looked at, and neither are
the target headers. The runtime wraps the container's errors in its own (424 ``ModelError``).

Deviation: signatures are not verified. A server with a key wants it in ``X-API-Key``, or as a
bearer token.
"""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.routes import huggingface
from mock_server.routes.payload import require_key

ATTRIBUTES = "x-amzn-sagemaker-custom-attributes"
LONGEST_ATTRIBUTES = 1024  # characters, as there

router = APIRouter(tags=["sagemaker"], dependencies=[Depends(require_key)])


@router.post("/invocations", openapi_extra=huggingface.BODY)
async def invoke(request: Request) -> JSONResponse:
    """Answer as the container does."""
    return JSONResponse(await huggingface.answer(request))


@router.post("/endpoints/{endpoint}/invocations", openapi_extra=huggingface.BODY)
async def runtime(request: Request) -> JSONResponse:
    """Answer as the runtime in front of the container does."""
    headers = {
        "x-amzn-requestid": request.state.request_id,
        "x-amzn-invoked-production-variant": "AllTraffic",
    }
    if ATTRIBUTES in request.headers:
        headers[ATTRIBUTES] = request.headers[ATTRIBUTES][:LONGEST_ATTRIBUTES]
    return JSONResponse(await huggingface.answer(request), headers=headers)
