"""Requests that real clients were seen to send, answered as those clients parse it."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytestmark = [pytest.mark.anyio, pytest.mark.shared]

CAPTURED = Path(__file__).resolve().parents[3] / "shared/golden/wire"
CLASSES = 7
WIDTH = 24
EMBEDDING = {"output": "embedding"}


def all_are_labels(answer: httpx.Response, count: int) -> None:
    content = answer.json()
    assert len(content) == count
    assert all(
        isinstance(entry["label"], str) and isinstance(entry["score"], float) for entry in content
    )


def five_labels(answer: httpx.Response) -> None:
    all_are_labels(answer, 5)


def as_many_labels_as_asked(answer: httpx.Response) -> None:
    all_are_labels(answer, json.loads(answer.request.content)["parameters"]["top_k"])


def two_candidates(answer: httpx.Response) -> None:
    all_are_labels(answer, 2)
    assert {entry["label"] for entry in answer.json()} == {"cat", "dog"}
    assert sum(entry["score"] for entry in answer.json()) == pytest.approx(1)


def one_vector(answer: httpx.Response) -> None:
    assert np.array(answer.json(), np.float32).shape == (1, WIDTH)


def an_error_text(answer: httpx.Response) -> None:
    assert isinstance(answer.json()["error"], str)


def a_chat_message(answer: httpx.Response) -> None:
    content = answer.json()
    assert content["object"] == "chat.completion"
    assert isinstance(content["choices"][0]["message"]["content"], str)
    assert content["usage"]["total_tokens"] == sum(
        content["usage"][f"{k}_tokens"] for k in ("prompt", "completion")
    )


def a_chat_with_logprobs(answer: httpx.Response) -> None:
    [token] = answer.json()["choices"][0]["logprobs"]["content"]
    assert len(token["top_logprobs"]) == 5
    assert token["token"].encode() == bytes(token["bytes"])


def a_chat_object(answer: httpx.Response) -> None:
    assert json.loads(answer.json()["choices"][0]["message"]["content"])["label"] in ("cat", "dog")


def an_embedding_as_floats(answer: httpx.Response) -> None:
    [row] = answer.json()["data"]
    assert (row["index"], len(row["embedding"])) == (0, WIDTH)


def an_embedding_as_base64(answer: httpx.Response) -> None:
    [row] = answer.json()["data"]
    assert np.frombuffer(base64.b64decode(row["embedding"]), "<f4").shape == (WIDTH,)


def a_model_list(answer: httpx.Response) -> None:
    assert [row["id"] for row in answer.json()["data"]] == ["vit"]


def an_error_object(answer: httpx.Response) -> None:
    assert answer.json()["error"]["message"]


def tensors(answer: httpx.Response) -> dict[str, np.ndarray]:
    """Return the output tensors by name, as tritonclient's `InferResult` finds them."""
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    header, tail = json.loads(answer.content[:length]), answer.content[length:]
    found, place = {}, 0
    for tensor in header["outputs"]:
        size = tensor.get("parameters", {}).get("binary_data_size")
        if size is None:
            values = np.array(tensor["data"], np.float32)
        elif tensor["datatype"] == "BYTES":
            values = np.array(strings(tail[place : place + size]))
        else:
            values = np.frombuffer(tail[place : place + size], "<f4")
        found[tensor["name"]] = values.reshape(tensor["shape"])
        place += size or 0
    assert place == len(tail)
    return found


def strings(data: bytes) -> list[str]:
    found = []
    while data:
        end = 4 + int.from_bytes(data[:4], "little")
        found.append(data[4:end].decode())
        data = data[end:]
    return found


def logits(answer: httpx.Response) -> None:
    assert tensors(answer)["logits"].shape == (1, CLASSES)


def binary_logits(answer: httpx.Response) -> None:
    assert answer.headers["content-type"] == "application/octet-stream"
    logits(answer)


def the_id_comes_back(answer: httpx.Response) -> None:
    assert b'"id":"abc"' in answer.content
    binary_logits(answer)


def two_classes(answer: httpx.Response) -> None:
    rows = [entry.split(":") for entry in tensors(answer)["logits"][0]]
    assert [len(row) for row in rows] == [3, 3]
    assert float(rows[0][0]) >= float(rows[1][0])


def live(answer: httpx.Response) -> None:
    assert answer.json()["live"] is True


def ready(answer: httpx.Response) -> None:
    assert answer.json()["ready"] is True


def alive(answer: httpx.Response) -> None:
    assert answer.json()["status"] == "alive"


def extensions(answer: httpx.Response) -> None:
    assert {"binary_tensor_data", "classification"} <= set(answer.json()["extensions"])


def metadata(answer: httpx.Response) -> None:
    assert [tensor["name"] for tensor in answer.json()["inputs"]] == ["images", "pictures"]


def an_index(answer: httpx.Response) -> None:
    assert answer.json()[0]["state"] == "READY"


def confidences(answer: httpx.Response) -> None:
    [prediction] = answer.json()["predictions"]
    assert (
        len(prediction["ids"])
        == len(prediction["displayNames"])
        == len(prediction["confidences"])
        <= 5
    )


def a_display_name(answer: httpx.Response) -> None:
    assert answer.json()["displayName"] == "vit"
    assert answer.json()["name"].endswith("/endpoints/42")


def a_model_error(answer: httpx.Response) -> None:
    assert answer.headers["x-amzn-errortype"] == "ModelError"
    assert answer.json()["OriginalStatusCode"] == 400
    assert answer.json()["Message"]


def labels_and_its_attributes(answer: httpx.Response) -> None:
    five_labels(answer)
    assert answer.headers["x-amzn-sagemaker-custom-attributes"] == "trace=1"


# file name without .http: status, how the client reads it, the server's switches, the path if it
# was another endpoint's
CASES: dict[str, tuple[int, Callable[[httpx.Response], None], dict[str, Any], str | None]] = {
    **{
        f"hf_hub_{version}__{case}": (200, read, {}, "/")
        for version, case, read in [
            ("2.4.0", "imgcls_bytes", five_labels),
            ("2.4.0", "imgcls_path", five_labels),
            ("2.4.0", "imgcls_jpgpath", five_labels),
            ("2.4.0", "imgcls_topk", as_many_labels_as_asked),
            ("2.4.0_b", "async_imgcls", five_labels),
            ("2.4.0_b", "imgcls_bytes", five_labels),
            ("2.4.0_b", "imgcls_topk", as_many_labels_as_asked),
            ("0.36.2_b", "imgcls_bytes", five_labels),
            ("0.36.2_b", "imgcls_topk", as_many_labels_as_asked),
            ("2.4.0", "zeroshot", two_candidates),
            ("2.4.0", "zeroshot_hyp", two_candidates),
        ]
    },
    "hf_hub_2.4.0__featext_b64": (200, one_vector, EMBEDDING, None),
    "hf_hub_2.4.0__featext_text": (400, an_error_text, EMBEDDING, None),
    "hf_hub_2.4.0_b__chat_image": (200, a_chat_message, {}, None),
    "hf_hub_0.36.2_b__chat_image": (200, a_chat_message, {}, None),
    "js_4.13.30__ep": (200, five_labels, {}, "/"),
    "js_4.13.30__ep__2": (200, five_labels, {}, "/"),
    "js_4.13.30__ep__3": (200, two_candidates, {}, "/"),
    "js_4.13.30__ep__4": (200, two_candidates, {}, "/"),
    "js_4.13.30__featext": (400, an_error_text, {}, "/pipeline/feature-extraction"),
    "js_4.13.30__v1_chat_completions": (200, a_chat_message, {}, None),
    "tritonclient_2.73.0__server_metadata": (200, extensions, {}, None),
    "tritonclient_2.73.0__live": (200, live, {}, None),
    "tritonclient_2.73.0__ready": (200, ready, {}, None),
    "tritonclient_2.73.0__model_ready": (200, ready, {}, None),
    "tritonclient_2.73.0__model_metadata": (200, metadata, {}, None),
    "tritonclient_2.73.0__model_metadata_v": (200, metadata, {}, None),
    "tritonclient_2.73.0__index": (200, an_index, {}, None),
    "tritonclient_2.73.0__config": (404, an_error_text, {}, None),
    "tritonclient_2.73.0__infer_json": (200, logits, {}, None),
    "tritonclient_2.73.0__infer_bin": (200, binary_logits, {}, None),
    "tritonclient_2.73.0__infer_bin_default_outputs": (200, binary_logits, {}, None),
    "tritonclient_2.73.0__infer_bin_in_json_out": (200, logits, {}, None),
    "tritonclient_2.73.0__infer_gzip": (200, binary_logits, {}, None),
    "tritonclient_2.73.0__infer_opts": (200, the_id_comes_back, {}, None),
    "tritonclient_2.73.0__infer_class": (200, two_classes, {"top_k": 3}, None),
    "tritonclient_2.73.0__infer_fp16_json": (400, an_error_text, {}, None),
    # its input has another name: image
    "tritonclient_2.73.0__infer_BYTES_bin": (400, an_error_text, {}, None),
    "tritonclient_2.73.0__aio_infer": (200, binary_logits, {}, None),
    "tritonclient_2.73.0__async_infer": (200, binary_logits, {}, None),
    "tritonclient_2.73.0__infer_err": (400, an_error_text, {"top_k": 3}, None),
    "kserve_0.21.0__v1_live": (200, alive, {}, None),
    "kserve_0.21.0__v1_mready": (200, ready, {}, None),
    "kserve_0.21.0__v1_infer": (400, an_error_text, {}, None),  # its image is three zeros
    "kserve_0.21.0__v2_live": (200, live, {}, None),
    "kserve_0.21.0__v2_ready": (200, ready, {}, None),
    "kserve_0.21.0__v2_mready": (200, ready, {}, None),
    "kserve_0.21.0__v2_infer_json": (200, logits, {}, None),
    "kserve_0.21.0__v2_infer_bin": (200, binary_logits, {}, None),
    "kserve_0.21.0__v2_infer_bin_noout": (200, logits, {}, None),
    "boto3_1.44.5__invoke_jpeg": (200, five_labels, {}, None),
    "boto3_1.44.5__invoke_noct": (200, five_labels, {}, None),
    "boto3_1.44.5__invoke_opts": (200, labels_and_its_attributes, {}, None),
    "boto3_1.44.5__invoke_json": (424, a_model_error, {}, None),  # its inputs are the text b64
    "openai_3.52.0__chat_image": (200, a_chat_with_logprobs, {}, None),
    "openai_3.52.0__async_chat": (200, a_chat_message, {}, None),
    "openai_3.52.0__chat_raw": (200, a_chat_message, {}, None),
    "openai_3.52.0__chat_json_schema": (200, a_chat_object, {}, None),
    "openai_3.52.0__emb_default": (200, an_embedding_as_base64, {}, None),
    "openai_3.52.0__emb_float": (200, an_embedding_as_floats, {}, None),
    "openai_3.52.0__emb_infinity_modality": (200, an_embedding_as_floats, EMBEDDING, None),
    "openai_3.52.0__emb_vllm_messages": (200, an_embedding_as_floats, {}, None),
    "openai_3.52.0__models": (200, a_model_list, {}, None),
    "openai_3.52.0__responses": (404, an_error_object, {}, None),
    "vertex_2.7.0__gapic_predict": (200, confidences, {}, None),
    "vertex_hl_2.7.0__predict": (200, a_display_name, {}, None),
    "vertex_hl_2.7.0__predict__2": (200, confidences, {}, None),
}


def captured(file: Path) -> tuple[str, str, dict[str, str], bytes]:
    """Return method, path, headers and body of a captured HTTP/1.1 request."""
    head, _, body = file.read_bytes().replace(b"\r\n\r\n", b"\n\n", 1).partition(b"\n\n")
    first, *lines = head.decode("latin-1").splitlines()
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    method, path, _ = first.split(" ")
    return method, path, headers, body[: int(headers.get("content-length", 0))]


@pytest.mark.skipif(not CAPTURED.is_dir(), reason="needs the shared folder beside the repository")
@pytest.mark.parametrize("case", CASES)
async def test_a_real_clients_request_is_answered_as_that_client_parses_it(
    open_client, wire_served, case
):
    status, read, settings, path = CASES[case]
    method, captured_path, headers, body = captured(CAPTURED / f"{case}.http")
    async with open_client(wire_served, **settings) as client:
        answer = await client.request(method, path or captured_path, headers=headers, content=body)
    assert answer.status_code == status, answer.text
    read(answer)
