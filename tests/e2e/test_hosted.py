"""EXPRES the whole way: trained by the command, hosted by a server with tenants, asked by command
and client.
"""

import base64
import io
import json

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from pgn_client import AdaptedClient, AsyncAdaptedClient
from pgn_client.checkpoint import summary as checkpoint_summary
from pgn_client.errors import AuthenticationError, CheckpointError, ConfigurationError
from pgn_client.evaluation.demo import local_server
from pgn_client.prompting.adapter import load
from pgn_client.segmentation import LinearHead, MaskPrompts
from pgn_client.surrogate import backbone
from pgn_client.training import fit_white_box, load_task, recipe
from tests.e2e.conftest import dealt_out, pgn

KEYS = {"anna": "anna-key-0123456789", "bert": "bert-key-0123456789"}


@pytest.fixture(scope="module")
def folder(digits, tmp_path_factory):
    return dealt_out(digits, tmp_path_factory.mktemp("dealt"))


@pytest.fixture(scope="module")
def expres(folder, tmp_path_factory):
    """What ``pgn train --method expres`` writes."""
    path = tmp_path_factory.mktemp("expres") / "expres.safetensors"
    options = ("--shots", "6", "--epochs", "2", "--prompt-tokens", "4")
    done = pgn("train", folder, "--method", "expres", *options, "--out", path)
    assert done.returncode == 0, done.stderr
    assert "expres" in done.stdout
    return path


@pytest.fixture(scope="module")
def tenants(tmp_path_factory):
    """A server with two tenants' keys."""
    path = tmp_path_factory.mktemp("tenants") / "tenants.json"
    path.write_text(json.dumps(KEYS))
    with local_server(["--tenants", str(path)]) as url:
        yield url


def test_the_command_classifies_through_what_it_trained(folder, expres, server, tmp_path):
    out = tmp_path / "predictions.jsonl"
    done = pgn("predict", folder / "test" / "0", "--url", server, "--ckpt", expres, "--out", out)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert {record["label"] for record in records if "label" in record} <= set(
        load(expres).mapping.classes
    )
    assert sum(record.get("label") == "0" for record in records) > len(records) / 2


def test_what_is_hosted_is_what_was_trained(folder, server, tmp_path):
    torch.set_num_threads(1)
    task = load_task(folder, shots=4)
    model = fit_white_box(
        task, backbone.load("bundled"), "expres", recipe=recipe(epochs=1, prompt_tokens=2)
    )
    model.save(tmp_path / "e.safetensors")
    some = task.test.take(range(0, len(task.test), 10))
    with AdaptedClient(server, tmp_path / "e.safetensors") as client:
        answers = client.answers(some.paths)  # before the client's own floor of 1e-6
    found = [dict(zip(answer.labels, answer.scores, strict=True)) for answer in answers]
    log_p = np.log([[scores[label] for label in task.classes] for scores in found])
    np.testing.assert_allclose(log_p, model.log_probs(some), atol=1e-4)


@pytest.mark.parametrize(("head", "prototypes"), [(True, True), (True, False), (False, True)])
def test_hosted_masks_are_what_was_trained(server, tmp_path, head, prototypes):
    torch.manual_seed(0)
    frozen = backbone.load("bundled")
    start = LinearHead(torch.randn(192, 3), torch.randn(3)) if head else None
    model = MaskPrompts.create(frozen, 3, 2, start, prototypes=prototypes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape)
    card = model.save(tmp_path / "m.safetensors", frozen, ["background", "a", "b"])
    assert "classes" in checkpoint_summary(card)
    pictures = torch.randint(0, 256, (4, 3, 64, 64)).to(torch.uint8)
    name = f"{server}/v1/adapters/masks-{head}-{prototypes}"
    assert httpx.put(name, content=(tmp_path / "m.safetensors").read_bytes()).status_code in (
        200,
        201,
    )
    for picture, expected in zip(pictures, model.predict(pictures, frozen), strict=True):
        answer = httpx.post(
            f"{server}/v1/segment?adapter=masks-{head}-{prototypes}", content=png_of(picture)
        ).json()
        found = np.asarray(
            Image.open(io.BytesIO(base64.b64decode(answer["predictions"][0]["mask"])))
        )
        assert len(np.unique(expected)) > 1
        assert (found == expected.numpy()).mean() > 0.999, "but for ties"
    assert answer["classes"] == ["background", "a", "b"]


def png_of(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def test_names_of_masks_are_as_many_as_classes(tmp_path):
    frozen = backbone.load("bundled")
    with pytest.raises(ConfigurationError, match="got 1 names, expected one for each of 3 classes"):
        MaskPrompts.create(frozen, 3, 1, None).save(tmp_path / "m.safetensors", frozen, ["a"])


def test_each_tenant_has_its_own_and_a_wrong_key_has_none(folder, expres, tenants):
    picture = next((folder / "test" / "3").glob("*.png"))
    with AdaptedClient(tenants, expres, api_key=KEYS["anna"]) as client:
        label = client.classify(picture).label
        uploaded = client.usage.requests
    with AdaptedClient(tenants, expres, api_key=KEYS["anna"]) as client:
        assert client.classify(picture).label == label
        assert client.usage.requests == uploaded - 1, "it was there already"
    with AdaptedClient(tenants, expres, api_key=KEYS["bert"]) as client:
        client.classify(picture)
        assert client.usage.requests == uploaded, "another tenant uploads its own"
    with (
        AdaptedClient(tenants, expres, api_key="wrong") as client,
        pytest.raises(AuthenticationError),
    ):
        client.classify(picture)


async def ask(url, ckpt, picture):
    client = AsyncAdaptedClient(url, ckpt)
    try:
        return await client.classify(picture)
    finally:
        await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_asynchronous_client_agrees(folder, expres, server, anyio_backend):
    picture = next((folder / "test" / "3").glob("*.png"))
    with AdaptedClient(server, expres) as client:
        assert client.classify(picture).scores == (await ask(server, expres, picture)).scores


def test_a_model_of_other_weights_refuses_it(expres, folder, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(backbone.bundled_folder() / "bundled.safetensors")
    weights["norm.bias"] = weights["norm.bias"] + 0.1
    save_file(weights, tmp_path / "other.safetensors")
    picture = next((folder / "test" / "3").glob("*.png"))
    with (
        local_server(["--weights", str(tmp_path / "other.safetensors")]) as url,
        AdaptedClient(url, expres) as client,
        pytest.raises(CheckpointError, match="trained on another backbone"),
    ):
        client.classify(picture)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--library", "smooth"), "--library"),
        (("--layout", "ring"), "--layout"),
        (("--wire", "uint8"), "--wire"),
        (("--mapping", "ilm"), "--mapping"),
    ],
)
def test_options_of_prompts_in_pictures_are_refused(folder, tmp_path, words, said):
    done = pgn("train", folder, "--method", "expres", *words, "--out", tmp_path / "e.safetensors")
    assert done.returncode == 2
    assert f"expres: got {said}" in done.stderr


def test_more_prompt_tokens_than_servers_take_are_refused_before_the_training(folder, tmp_path):
    done = pgn(
        "train",
        folder,
        "--method",
        "expres",
        "--prompt-tokens",
        "129",
        "--out",
        tmp_path / "e.safetensors",
    )
    assert done.returncode == 2
    assert "--prompt-tokens: got 129, expected at most 128" in done.stderr


def test_prompt_tokens_are_of_expres_alone(folder, tmp_path):
    done = pgn("train", folder, "--prompt-tokens", "4", "--out", tmp_path / "e.safetensors")
    assert done.returncode == 2
    assert "--prompt-tokens: got it for pgn" in done.stderr


@pytest.mark.parametrize("command", ["adapt", "evaluate"])
def test_commands_about_prompts_say_that_it_is_none(folder, expres, server, tmp_path, command):
    words = {"adapt": (folder / "test", tmp_path), "evaluate": (folder, "--url", server)}[command]
    done = pgn(command, *words, "--ckpt", expres)
    assert done.returncode == 2
    assert (
        "got EXPRES, which runs on the server, expected prompts in images; use pgn predict"
    ) in done.stderr


def test_inspect_tells_what_it_is(expres):
    done = pgn("inspect", expres)
    assert done.returncode == 0, done.stderr
    assert "expres" in done.stdout
    assert "on the server" in done.stdout
