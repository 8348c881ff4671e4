"""OpenAI's chat completions with one image, and image embeddings in the dialects of infinity and
vLLM.

The chat answers with one label. The closed set is the ``enum`` in the schema of ``response_format``
(of the schema itself, or of the one property of an object: then the content is the JSON object with
it); without one it is every class. Each name in it must be a class name of the model, letter for
letter. ``logprobs`` has one token, the label, and its logarithms are of the softmax over the closed
set.

The image is a ``data:`` URL; nothing is ever fetched. Texts are read by nobody: they are counted
in ``usage`` only, one token per word, and one per patch of the image. Deviations: no streaming,
one choice, one image; parameters that steer sampling change nothing; `--output label` has no
logprobs, as several real servers silently have none.
"""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse

from mock_server.errors import RequestError
from mock_server.routes.payload import (
    from_text,
    parse_object,
    places_of,
    read_body,
    require_key,
    require_model,
    service_of,
)
from mock_server.service import Answer, Service

MOST_LOGPROBS = 20

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "required": ["model"]}}},
    }
}

router = APIRouter(tags=["openai"], dependencies=[Depends(require_key)])


@router.post("/v1/chat/completions", openapi_extra=_BODY)
async def chat(request: Request) -> JSONResponse:
    """Answer one image with the best label of a closed set."""
    service = service_of(request)
    content = parse_object(await read_body(request), None)
    require_model(service, content.get("model"))
    if content.get("stream") or content.get("n", 1) not in (1, None):
        raise RequestError("invalid_request", "only one choice, and no stream, is offered")
    count = _logprob_count(content)
    key, labels = _closed_set(content.get("response_format"))
    among = places_of(service, labels)
    image, words = _seen(content.get("messages"))
    [logits] = await service.ask_all([image])
    [label], _ = service.rank(logits, "softmax", top_k=1, among=among)
    text = label if key is None else json.dumps({key: label})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if count is None else _logprobs(service, logits, among, count),
        "finish_reason": "stop",
    }
    prompt = words + _patches(service)
    return JSONResponse(
        {
            "id": f"chatcmpl-{request.state.request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.model.name,
            "choices": [choice],
            "usage": {"prompt_tokens": prompt, "completion_tokens": 1, "total_tokens": prompt + 1},
        }
    )


@router.post("/v1/embeddings", openapi_extra=_BODY)
@router.post("/embeddings", openapi_extra=_BODY)
async def embeddings(request: Request) -> JSONResponse:
    """Answer images with their pooled features."""
    service = service_of(request)
    content = parse_object(await read_body(request), None)
    require_model(service, content.get("model"))
    encoding = content.get("encoding_format") or "float"
    if encoding not in ("float", "base64") or content.get("dimensions") not in (
        None,
        service.model.width,
    ):
        message = f"encoding_format must be float or base64, and dimensions {service.model.width}"
        raise RequestError("invalid_request", message)
    images = _embedded(content)
    answers = await service.ask_all(images, "embedding")
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(service, answer, encoding)}
        for index, answer in enumerate(answers)
    ]
    tokens = len(images) * _patches(service)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return JSONResponse(
        {"object": "list", "data": data, "model": service.model.name, "usage": usage}
    )


def _closed_set(response_format: Any) -> tuple[str | None, list[Any] | None]:
    """Return the key of the answer's object (None: the answer is the label itself) and the names
    that it may hold.
    """
    wrong = RequestError(
        "invalid_request", "response_format must be text, or a json_schema with an enum of labels"
    )
    if not isinstance(response_format or {}, dict):
        raise wrong
    if not response_format or response_format.get("type") == "text":
        return None, None
    if response_format.get("type") == "json_object":
        return "label", None
    try:
        schema = response_format["json_schema"]["schema"]
        if schema["type"] == "string":
            return None, schema.get("enum")
        [(key, value)] = schema["properties"].items()
        if value["type"] != "string" or response_format["type"] != "json_schema":
            raise wrong
        return key, value.get("enum")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise wrong from None


def _seen(messages: Any) -> tuple[bytes | RequestError, int]:
    """Return the one image of a conversation and the number of words beside it."""
    images: list[Any] = []
    words = 0
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError("invalid_request", "messages must be a list of objects")
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [{"type": "text", "text": content}]:
            if isinstance(part, dict) and part.get("type") == "image_url":
                url = part.get("image_url")
                images.append(url.get("url") if isinstance(url, dict) else url)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                words += len(part["text"].split())
    if len(images) != 1:
        raise RequestError(
            "invalid_request", f"expected one image_url in the messages, got {len(images)}"
        )
    return _from_url(images[0]), words


def _from_url(url: Any) -> bytes | RequestError:
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise RequestError(
            "invalid_request", "an image must be a data URL of an image; nothing is fetched"
        )
    return from_text(url, "pictures")


def _embedded(content: dict[str, Any]) -> list[bytes | RequestError]:
    """Return the images of infinity's ``input`` (one or several), or of vLLM's ``messages``
    (one).
    """
    if "messages" in content:
        return [_seen(content["messages"])[0]]
    given = content.get("input")
    urls = given if isinstance(given, list) else [given]
    if not urls or content.get("modality", "image") != "image":
        raise RequestError(
            "invalid_request", "input must be one or more images; no other modality is hosted"
        )
    return [_from_url(url) for url in urls]


def _encoded(service: Service, answer: Answer, encoding: str) -> list[float] | str:
    vector = service.complete(answer)
    if encoding == "float":
        floats: list[float] = vector.tolist()
        return floats
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _logprob_count(content: dict[str, Any]) -> int | None:
    """Return how many alternatives are wanted; None is no logprobs at all."""
    wanted, count = content.get("logprobs") or False, content.get("top_logprobs")
    if not isinstance(wanted, bool) or (count is not None and not wanted):
        raise RequestError(
            "invalid_request",
            "logprobs must be true or false, and true where top_logprobs is given",
        )
    count = 0 if count is None else count
    if type(count) is not int or not 0 <= count <= MOST_LOGPROBS:
        raise RequestError(
            "invalid_request", f"top_logprobs must be a whole number from 0 to {MOST_LOGPROBS}"
        )
    return count if wanted else None


def _logprobs(
    service: Service, logits: Answer, among: list[int] | None, count: int
) -> dict[str, Any] | None:
    if service.settings.output == "label":
        return None
    labels, scores = service.rank(logits, "log_softmax", top_k=max(count, 1), among=among)
    tokens = [
        {"token": label, "logprob": score, "bytes": list(label.encode())}
        for label, score in zip(labels, scores, strict=True)
    ]
    return {"content": [tokens[0] | {"top_logprobs": tokens[:count]}], "refusal": None}


def _patches(service: Service) -> int:
    side = service.preprocessing.input_size // (
        service.model.patch_size or service.preprocessing.input_size
    )
    return side * side
