"""OpenAI's chat completions with one image, and image embeddings.

Chat completions. The message contains one label of a closed set. The closed set is the ``enum`` in
the schema of ``response_format``, either of a string schema (then the content is the label), or of
the only property of an object schema (then the content is the JSON object). Without an ``enum`` the
closed set is all classes. Each of its names must equal a class name of the model. ``logprobs`` has
one token, the label; the probabilities come from the softmax over the closed set.

Embeddings. The request has the form of infinity (``input``) or of vLLM (``messages``).

The image is a ``data:`` URL; the server never fetches a URL. It ignores texts, and only counts them
in ``usage``: one token per word, and one per patch of the image.

Deviations: no streaming; one choice; one image; sampling parameters have no effect; with
``--output label`` there are no logprobs, as on several real servers, which leave them out silently.
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
"""OpenAI's own limit for ``top_logprobs``."""

_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "required": ["model"]}}},
    }
}

router = APIRouter(tags=["openai"], dependencies=[Depends(require_key)])


@router.post("/v1/chat/completions", openapi_extra=_BODY)
async def chat(request: Request) -> JSONResponse:
    """Return the best label of a closed set for one image."""
    service = service_of(request)
    content = parse_object(await read_body(request), None)
    require_model(service, content.get("model"))
    # OpenAI's schema also allows null for n.
    if content.get("stream") or content.get("n", 1) not in (1, None):
        raise RequestError("invalid_request", "the server offers one choice only, and no streaming")
    count = _logprob_count(content)
    key, labels = _closed_set(content.get("response_format"))
    among = places_of(service, labels)
    image, words = _read_messages(content.get("messages"))

    [logits] = await service.ask_all([image])
    [label], _ = service.rank(logits, "softmax", top_k=1, among=among)

    text = label if key is None else json.dumps({key: label})
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None if count is None else _logprobs(service, logits, among, count),
        "finish_reason": "stop",
    }
    prompt_tokens = words + _patches(service)
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 1,
        "total_tokens": prompt_tokens + 1,
    }
    return JSONResponse(
        {
            "id": f"chatcmpl-{request.state.request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": service.model.name,
            "choices": [choice],
            "usage": usage,
        }
    )


@router.post("/v1/embeddings", openapi_extra=_BODY)
@router.post("/embeddings", openapi_extra=_BODY)
async def embeddings(request: Request) -> JSONResponse:
    """Return the pooled features of one or more images."""
    service = service_of(request)
    content = parse_object(await read_body(request), None)
    require_model(service, content.get("model"))
    encoding = content.get("encoding_format") or "float"
    width = service.model.width
    if encoding not in ("float", "base64") or content.get("dimensions") not in (None, width):
        raise RequestError(
            "invalid_request", f"encoding_format must be float or base64, and dimensions {width}"
        )

    images = _embedding_images(content)
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
    """Return the form of the message's content.

    Args:
        response_format: Value in the request.

    Returns:
        Key of the JSON object that the content is, or None if the content is the label itself; and
        the labels of the closed set, or None for all classes.
    """
    error = RequestError(
        "invalid_request", "response_format must be text, or a json_schema with an enum of labels"
    )
    if not response_format:
        return None, None
    if not isinstance(response_format, dict):
        raise error
    if response_format.get("type") == "text":
        return None, None
    if response_format.get("type") == "json_object":
        # This format names no key, so the server chooses one.
        return "label", None

    try:
        schema = response_format["json_schema"]["schema"]
        if schema["type"] == "string":
            return None, schema.get("enum")
        # More or fewer properties than one raise ValueError.
        [(key, value)] = schema["properties"].items()
        if value["type"] != "string" or response_format["type"] != "json_schema":
            raise error
        return key, value.get("enum")
    except (KeyError, TypeError, AttributeError, ValueError):
        raise error from None


def _read_messages(messages: Any) -> tuple[bytes | RequestError, int]:
    """Return the only image in the messages, and the number of words in their texts."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise RequestError("invalid_request", "messages must be a list of objects")

    urls: list[Any] = []
    words = 0
    for message in messages:
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            if isinstance(part, dict) and part.get("type") == "image_url":
                url = part.get("image_url")
                urls.append(url.get("url") if isinstance(url, dict) else url)
            elif isinstance(part, dict) and isinstance(part.get("text"), str):
                words += len(part["text"].split())

    if len(urls) != 1:
        raise RequestError(
            "invalid_request", f"expected one image_url in the messages, got {len(urls)}"
        )
    return _from_url(urls[0]), words


def _from_url(url: Any) -> bytes | RequestError:
    if not isinstance(url, str) or not url.startswith("data:image/"):
        raise RequestError(
            "invalid_request",
            "the URL of an image must start with data:image/; the server fetches no URLs",
        )
    return from_text(url, "images")


def _embedding_images(content: dict[str, Any]) -> list[bytes | RequestError]:
    """Return the images in infinity's ``input`` (one or more), or in vLLM's ``messages`` (one)."""
    if "messages" in content:
        image, _ = _read_messages(content["messages"])
        return [image]

    value = content.get("input")
    urls = value if isinstance(value, list) else [value]
    if not urls or content.get("modality", "image") != "image":
        raise RequestError(
            "invalid_request", "input must be one or more images; no other modality is hosted"
        )
    return [_from_url(url) for url in urls]


def _encoded(service: Service, answer: Answer, encoding: str) -> list[float] | str:
    """Return an embedding as a list of numbers, or as base64 of little-endian float32."""
    vector = service.complete(answer)
    if encoding == "float":
        floats: list[float] = vector.tolist()
        return floats
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _logprob_count(content: dict[str, Any]) -> int | None:
    """Return the number of alternatives to return; None if the request has no logprobs."""
    requested = content.get("logprobs") or False
    count = content.get("top_logprobs")
    if not isinstance(requested, bool) or (count is not None and not requested):
        raise RequestError(
            "invalid_request",
            "logprobs must be true or false, and true if top_logprobs is given",
        )

    count = 0 if count is None else count
    # The exact type, because JSON's true and false are bool, which Python counts as int.
    if type(count) is not int or not 0 <= count <= MOST_LOGPROBS:
        raise RequestError(
            "invalid_request", f"top_logprobs must be a whole number from 0 to {MOST_LOGPROBS}"
        )
    return count if requested else None


def _logprobs(
    service: Service, logits: Answer, among: list[int] | None, count: int
) -> dict[str, Any] | None:
    """Return the logprobs of the label, with ``count`` alternatives."""
    if service.settings.output == "label":
        return None

    # The label itself needs a logprob even if the request wants no alternatives.
    labels, scores = service.rank(logits, "log_softmax", top_k=max(count, 1), among=among)
    tokens = [
        {"token": label, "logprob": score, "bytes": list(label.encode())}
        for label, score in zip(labels, scores, strict=True)
    ]
    return {"content": [tokens[0] | {"top_logprobs": tokens[:count]}], "refusal": None}


def _patches(service: Service) -> int:
    """Return the number of patches of an image; a model without patches counts as one patch."""
    input_size = service.preprocessing.input_size
    side = input_size // (service.model.patch_size or input_size)
    return side * side
