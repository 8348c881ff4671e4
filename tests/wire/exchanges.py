"""Recorded exchanges: those of the contract, and those of real servers and clients outside the
repository.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from email.parser import BytesHeaderParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from PIL import Image

from pgn_client.wire.protocols import MalformedAnswerError, Payload, Protocol, WireResponse

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "tests/contract/wire"
CAPTURED = ROOT.parent / "shared/golden/wire"


def ok(document: object, status: int = 200, **headers: str) -> WireResponse:
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return WireResponse(
        status, {name.replace("_", "-"): value for name, value in headers.items()}, body
    )


def golden(name: str) -> dict[str, Any]:
    return json.loads((CONTRACT / f"{name}.json").read_text())


def body(part: dict[str, Any]) -> bytes:
    return (
        base64.b64decode(part["body_base64"])
        if "body_base64" in part
        else json.dumps(part.get("json")).encode()
    )


def answer_of(name: str) -> WireResponse:
    response = golden(name)["response"]
    return WireResponse(
        response["status"], {k.lower(): v for k, v in response["headers"].items()}, body(response)
    )


def captured(name: str) -> WireResponse:
    """Read what a real server answered; skips where the captures are not there."""
    path = CAPTURED / f"{name}.txt"
    if not path.is_file():
        pytest.skip("captured answers lie outside the repository")
    head, _, content = path.read_bytes().partition(b"\r\n\r\n")
    status, _, fields = head.partition(b"\r\n")
    headers = {k.lower(): v for k, v in BytesHeaderParser().parsebytes(fields).items()}
    return WireResponse(
        int(status.split()[1]),
        headers,
        unchunked(content) if "transfer-encoding" in headers else content,
    )


def sent(name: str) -> tuple[dict[str, str], bytes]:
    """Read what a real client sent: headers, with the path as ``:path``, and body."""
    path = CAPTURED / f"{name}.http"
    if not path.is_file():
        pytest.skip("captured requests lie outside the repository")
    head, _, content = path.read_bytes().partition(b"\r\n\r\n")
    line, _, fields = head.partition(b"\r\n")
    headers = {k.lower(): v for k, v in BytesHeaderParser().parsebytes(fields).items()}
    return headers | {":path": line.split()[1].decode()}, content


def unchunked(content: bytes) -> bytes:
    whole = b""
    while content:
        size, _, content = content.partition(b"\r\n")
        count = int(size, 16)
        whole, content = whole + content[:count], content[count + 2 :]
    return whole


def picture(seed: int = 0, size: tuple[int, int] = (4, 4)) -> Payload:
    image = Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    )
    return of_image(image)


def of_image(image: Image.Image) -> Payload:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return Payload(buffer.getvalue(), "image/png", image.width * image.height, image)


WORDS = """predictions label score labels scores choices message content logprobs refusal data
embedding outputs name datatype shape parameters binary_data_size displayNames token confidences
top_logprobs logprob classes a"""
KEYS = st.sampled_from(WORDS.split())
VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["FP32", "BYTES", "cat", "0.5:1:x"])
)
ANYTHING = st.recursive(
    VALUES | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner),
    max_leaves=15,
)


def decodes_or_says_so(make: Callable[[], Protocol], document: object) -> None:
    """Whatever comes, an answer or MalformedAnswerError comes of it."""
    try:
        answers = make().decode(ok(document))
    except MalformedAnswerError:
        return
    for answer in answers:
        assert answer.labels
        assert len(answer.labels) == len(answer.scores)
        assert np.isfinite(answer.scores).all()
