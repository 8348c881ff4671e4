"""requests, for the formats whose users have no client of their own."""

import requests
from report import report

MODEL = "bundled"


def post(given, path, **body):
    headers = {"Authorization": f"Bearer {given.key}"} | body.pop("headers", {})
    answer = requests.post(given.url + path, headers=headers, timeout=60, **body)
    return {"status": answer.status_code, "answer": answer.json()}


def kserve_v1(given):
    return post(
        given, f"/v1/models/{MODEL}:predict", json={"instances": [{"b64": given.base64}] * 2}
    )


def tensorflow_serving_columns(given):
    body = {"signature_name": "serving_default", "inputs": {"image_bytes": [{"b64": given.base64}]}}
    return post(given, f"/v1/models/{MODEL}:predict", json=body)


def vertex(given):
    path = "/v1/projects/p/locations/us-central1/endpoints/42:predict"
    body = {"instances": [{"content": given.base64}], "parameters": {"maxPredictions": 3.0}}
    return post(given, path, json=body)


def torchserve(given):
    return post(given, f"/predictions/{MODEL}", data=given.data)


def torchserve_form(given):
    return post(given, f"/predictions/{MODEL}", files={"data": given.data})


def sagemaker_container(given):
    return post(given, "/invocations", data=given.data, headers={"Content-Type": "image/png"})


report(
    kserve_v1, tensorflow_serving_columns, vertex, torchserve, torchserve_form, sagemaker_container
)
