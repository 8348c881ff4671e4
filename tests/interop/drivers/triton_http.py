"""tritonclient's HTTP clients."""

import asyncio

import numpy as np
import tritonclient.http
import tritonclient.http.aio
from report import report, tensor
from tritonclient.http import InferInput, InferRequestedOutput

MODEL = "bundled"
OUTPUT = "probabilities"


def images(given, *, binary):
    values = tensor(given)
    one = InferInput("images", list(values.shape), "FP32")
    return one.set_data_from_numpy(values, binary_data=binary)


def infer(given, inputs, outputs=None, **options):
    """Ask; outputs are None by default, to which the client adds that it wants them as binary."""
    headers = {"authorization": f"Bearer {given.key}"}
    with tritonclient.http.InferenceServerClient(
        given.url.removeprefix("http://"), network_timeout=60
    ) as client:
        return client.infer(
            MODEL, [inputs], outputs=outputs, headers=headers, request_id="7", **options
        )


def json(given):
    outputs = [InferRequestedOutput(OUTPUT, binary_data=False)]
    return infer(given, images(given, binary=False), outputs).as_numpy(OUTPUT).tolist()


def binary(given):
    outputs = [InferRequestedOutput(OUTPUT, binary_data=True)]
    return infer(given, images(given, binary=True), outputs).as_numpy(OUTPUT).tolist()


def binary_by_default(given):
    answer = infer(given, images(given, binary=True))
    assert answer.get_response()["id"] == "7"
    return answer.as_numpy(OUTPUT).tolist()


def zipped(given):
    options = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    return infer(given, images(given, binary=True), **options).as_numpy(OUTPUT).tolist()


def files(given):
    one = InferInput("pictures", [1], "BYTES")
    return (
        infer(given, one.set_data_from_numpy(np.array([given.data], object)))
        .as_numpy(OUTPUT)
        .tolist()
    )


def classification(given):
    outputs = [InferRequestedOutput(OUTPUT, class_count=3)]
    [rows] = infer(given, images(given, binary=True), outputs).as_numpy(OUTPUT)
    return [row.decode() for row in rows]


def aio(given):
    async def ask():
        headers = {"authorization": f"Bearer {given.key}"}
        async with tritonclient.http.aio.InferenceServerClient(
            given.url.removeprefix("http://")
        ) as client:
            return await client.infer(MODEL, [images(given, binary=True)], headers=headers)

    return asyncio.run(ask()).as_numpy(OUTPUT).tolist()


def state(given):
    headers = {"authorization": f"Bearer {given.key}"}
    with tritonclient.http.InferenceServerClient(given.url.removeprefix("http://")) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model": client.is_model_ready(MODEL),
            "other": client.is_model_ready("nobody"),
            "binary": "binary_tensor_data" in client.get_server_metadata()["extensions"],
            "inputs": client.get_model_metadata(MODEL, headers=headers)["inputs"],
            "index": client.get_model_repository_index(headers=headers),
        }


def wrong_shape(given):
    one = InferInput("images", [1, 3, 2, 2], "FP32")
    return infer(given, one.set_data_from_numpy(np.zeros((1, 3, 2, 2), np.float32))).get_response()


report(json, binary, binary_by_default, zipped, files, classification, aio, state, wrong_shape)
