"""boto3's sagemaker-runtime."""

import json

import boto3
from botocore.config import Config
from report import report


def client(given):
    """Sign with dummies, as nobody checks signatures here; the key goes beside them."""
    runtime = boto3.client(
        "sagemaker-runtime",
        endpoint_url=given.url,
        region_name="us-east-1",
        aws_access_key_id="AKIDEXAMPLE",
        aws_secret_access_key="secret",
        config=Config(retries={"mode": "standard", "max_attempts": 1}, read_timeout=60),
    )

    def add_key(request, **_):
        request.headers["X-API-Key"] = given.key

    runtime.meta.events.register("before-sign.sagemaker-runtime.InvokeEndpoint", add_key)
    return runtime


def ranked(answer):
    return [[one["label"], one["score"]] for one in json.loads(answer["Body"].read())]


def raw(given):
    return ranked(
        client(given).invoke_endpoint(EndpointName="any", ContentType="image/png", Body=given.data)
    )


def with_parameters(given):
    body = json.dumps(
        {"inputs": given.base64, "parameters": {"function_to_apply": "none", "top_k": 3}}
    )
    return ranked(
        client(given).invoke_endpoint(EndpointName="any", ContentType="application/json", Body=body)
    )


def refused(given):
    """Return what the SDK reads out of an error."""
    try:
        raw(given)
    except client(given).exceptions.ClientError as error:
        told = error.response
        return {
            "type": type(error).__name__,
            "code": told["Error"]["Code"],
            "message": told["Error"]["Message"],
            "status": told["ResponseMetadata"]["HTTPStatusCode"],
            "original": told.get("OriginalStatusCode"),
        }


report(raw, with_parameters, refused)
