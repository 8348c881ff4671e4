"""The openai SDK."""

import json
import math

from openai import OpenAI
from report import report

MODEL = "bundled"


def client(given):
    return OpenAI(base_url=f"{given.url}/v1", api_key=given.key, timeout=60, max_retries=0)


def data_url(given):
    return f"data:image/png;base64,{given.base64}"


def chat(given, **options):
    picture = {"type": "image_url", "image_url": {"url": data_url(given), "detail": "low"}}
    question = {"type": "text", "text": "Which of these labels fits the image best?"}
    messages = [
        {"role": "system", "content": "Answer with one label."},
        {"role": "user", "content": [question, picture]},
    ]
    answer = client(given).chat.completions.create(
        model=MODEL, messages=messages, temperature=0, **options
    )
    return answer.choices[0]


def chat_closed_set(given):
    """Return the label of a closed set, and each label's probability by the log-probabilities."""
    schema = {
        "type": "object",
        "properties": {"label": {"type": "string", "enum": given.labels}},
        "required": ["label"],
        "additionalProperties": False,
    }
    response_format = {
        "type": "json_schema",
        "json_schema": {"name": "label", "strict": True, "schema": schema},
    }
    choice = chat(
        given, response_format=response_format, logprobs=True, top_logprobs=len(given.labels)
    )
    ranked = choice.logprobs.content[0].top_logprobs
    label = json.loads(choice.message.content)["label"]
    return {"label": label, "ranked": [[one.token, math.exp(one.logprob)] for one in ranked]}


def chat_freely(given):
    return chat(given).message.content


def embeddings(given):
    """The SDK asks for base64 and unpacks it by itself."""
    return client(given).embeddings.create(model=MODEL, input=[data_url(given)]).data[0].embedding


def embeddings_as_floats(given):
    answer = client(given).embeddings.create(
        model=MODEL, input=[data_url(given)], encoding_format="float"
    )
    return answer.data[0].embedding


def models(given):
    return [one.id for one in client(given).models.list()]


report(chat_closed_set, chat_freely, embeddings, embeddings_as_floats, models)
