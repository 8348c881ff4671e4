"""KServe's InferenceRESTClient, in both versions of its protocol."""

import asyncio

from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from report import report, tensor

MODEL = "bundled"
OUTPUT = "probabilities"


def run(given, version, ask):
    async def go():
        async with InferenceRESTClient(RESTConfig(protocol=version, retries=0)) as client:
            return await ask(client, {"authorization": f"Bearer {given.key}"})

    return asyncio.run(go())


def infer(given, *, binary):
    values = tensor(given)
    one = InferInput("images", list(values.shape), "FP32")
    one.set_data_from_numpy(values, binary_data=binary)
    wanted = [RequestedOutput(OUTPUT, {"binary_data": binary})]
    request = InferRequest(MODEL, [one], request_outputs=wanted)
    answer = run(
        given, "v2", lambda client, headers: client.infer(given.url, request, MODEL, headers)
    )
    [output] = answer.outputs
    return output.as_numpy().tolist()


def v1(given):
    body = {"instances": [{"b64": given.base64}]}
    return run(given, "v1", lambda client, headers: client.infer(given.url, body, MODEL, headers))[
        "predictions"
    ]


def v2_json(given):
    return infer(given, binary=False)


def v2_binary(given):
    return infer(given, binary=True)


def state(given):
    async def ask(client, headers):
        ready = await client.is_server_ready(given.url, headers)
        return [
            await client.is_server_live(given.url, headers),
            ready,
            await client.is_model_ready(given.url, MODEL),
        ]

    async def ask_v1(client, headers):
        return [
            await client.is_server_live(given.url, headers),
            await client.is_model_ready(given.url, MODEL),
        ]

    return run(given, "v2", ask) + run(given, "v1", ask_v1)


report(v1, v2_json, v2_binary, state)
