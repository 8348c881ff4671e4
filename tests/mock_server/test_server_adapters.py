"""Tenants' adapters: golden files, isolation, refusals, and that an answer does not depend on its
company.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

from mock_server import adapters
from mock_server.errors import ConfigurationError, RequestError
from mock_server.model import Asked, host
from mock_server.preprocess import Preprocessing, Profile
from mock_server.settings import Settings, read_tenants

pytestmark = pytest.mark.anyio

GOLDEN = Path(__file__).parents[1] / "contract" / "adapters"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text("utf-8"))
PICTURES = [base64.b64decode(text) for text in EXPECTED["pictures"]]
NAMES = sorted(EXPECTED["log_probs"])
KEYS = {"anna": "anna-key-0123456789", "bert": "bert-key-0123456789"}
ANNA, BERT = ({"X-API-Key": key} for key in KEYS.values())


@pytest.fixture(scope="module")
def golden_model():
    network = timm.models.VisionTransformer(
        img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3
    )
    network.load_state_dict(safetensors.torch.load_file(GOLDEN / "backbone.safetensors"))
    half = (0.5, 0.5, 0.5)
    preprocessing = Preprocessing(
        Profile(), input_size=8, interpolation="bicubic", mean=half, std=half
    )
    return host(network, name="golden", classes=["a", "b", "c"], preprocessing=preprocessing)


def file_of(name="default"):
    return (GOLDEN / f"adapter_{name}.safetensors").read_bytes()


def changed(card=None, drop=(), **tensors):
    """The golden file with another card or other tensors; a key's dots are written __."""
    data = file_of()
    length = int.from_bytes(data[:8], "little")
    own = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pgn_client"]) | (card or {})
    kept = {k: v for k, v in safetensors.torch.load(data).items() if k not in drop}
    kept |= {k.replace("__", "."): v for k, v in tensors.items()}
    return safetensors.torch.save(kept, {"pgn_client": json.dumps(own)})


def scores_of(answer, name):
    """Log-probabilities in the classes' order of an answer's first prediction."""
    classes = [
        f"class {i}" for i in range(2 + ["default", "every_site", "plain", "some"].index(name))
    ]
    [prediction] = answer.json()["predictions"]
    found = dict(zip(prediction["labels"], prediction["scores"], strict=True))
    return [found[label] for label in classes]


@pytest.mark.parametrize("name", NAMES)
async def test_golden_adapters_answer_what_the_equations_say(open_client, golden_model, name):
    async with open_client(golden_model, output="logits") as client:
        assert (await client.put(f"/v1/adapters/{name}", content=file_of(name))).status_code == 201
        for picture, expected in zip(PICTURES, EXPECTED["log_probs"][name], strict=True):
            answer = await client.post(f"/v1/classify?adapter={name}", content=picture)
            assert scores_of(answer, name) == pytest.approx(expected, abs=1e-4)


def masks_of(answer):
    return [
        np.asarray(Image.open(BytesIO(base64.b64decode(one["mask"])))).tolist()
        for one in answer.json()["predictions"]
    ]


async def test_a_golden_adapter_for_masks_answers_them(open_client, golden_model):
    assert len({value for mask in EXPECTED["masks"] for row in mask for value in row}) > 2
    async with open_client(golden_model) as client:
        card = (await client.put("/v1/adapters/m", content=file_of("segment"))).json()
        assert card["task"] == "segment"
        numbers = 12 * 8 * (1 + 5 * 2) + 9 * len(card["classes"]) + 1
        assert card["bytes"] == 4 * numbers + sum(map(len, card["classes"]))
        for picture, expected in zip(PICTURES, EXPECTED["masks"], strict=True):
            answer = await client.post("/v1/segment?adapter=m", content=picture)
            assert masks_of(answer) == [expected]
            assert answer.json()["classes"] == card["classes"]
        together = await client.post("/v1/segment?adapter=m", json={"images": EXPECTED["pictures"]})
        assert masks_of(together) == EXPECTED["masks"]


async def test_masks_and_classes_are_not_mixed_up(open_client, golden_model):
    async with open_client(golden_model) as client:
        await client.put("/v1/adapters/m", content=file_of("segment"))
        await client.put("/v1/adapters/c", content=file_of())
        for path, said in (
            ("/v1/classify?adapter=m", "this adapter is for /v1/segment"),
            ("/v1/segment?adapter=c", "this adapter is for /v1/classify"),
            ("/v1/segment", "segmenting needs ?adapter=NAME"),
            ("/v1/segment?adapter=m&top_k=1", "unknown key or parameter"),
        ):
            answer = await client.post(path, content=PICTURES[0])
            assert answer.status_code == 400
            assert said in answer.json()["error"]["message"]
        bad = await client.post("/v1/segment?adapter=m", content=b"no picture")
        assert bad.status_code == 422
        body = {"images": ["bm8=", EXPECTED["pictures"][0]]}
        first, last = (await client.post("/v1/segment?adapter=m", json=body)).json()["predictions"]
        assert first["error"]["code"] == "invalid_image"
        assert "mask" in last


def test_a_batch_may_hold_masks_and_classes(golden_model):
    def made(name):
        return adapters.read(file_of(name), name, golden_model)

    pixels = np.random.default_rng(1).normal(size=(3, 8, 8)).astype(np.float32)
    asked = [Asked(pixels, adapter=made(name)) for name in ("segment", "default", "plain")]
    for together, one in zip(golden_model.run(asked), asked, strict=True):
        np.testing.assert_allclose(together, golden_model.run([one])[0], atol=2e-5)


def test_the_model_is_told_by_its_weights_without_the_head(golden_model):
    assert golden_model.features_sha256 == EXPECTED["features_sha256"]


async def test_an_adapter_is_put_listed_replaced_and_deleted(open_client, golden_model):
    async with open_client(golden_model) as client:
        made = await client.put("/v1/adapters/one", content=file_of())
        assert made.status_code == 201
        card = made.json()
        assert (card["name"], card["classes"], card["prompts"]) == (
            "one",
            ["class 0", "class 1"],
            3,
        )
        assert card["bytes"] == 4 * (3 * 8 + 5 * 2 * 3 * 8 + 8 * 2 + 2) + len("class 0class 1")
        assert (await client.get("/v1/adapters/one")).json() == card
        again = await client.put("/v1/adapters/one", content=file_of("some"))
        assert again.status_code == 200
        assert again.json()["sha256"] != card["sha256"]
        assert (await client.get("/v1/adapters")).json() == {"adapters": [again.json()], "most": 64}
        assert (await client.delete("/v1/adapters/one")).status_code == 204
        for answer in (
            await client.get("/v1/adapters/one"),
            await client.delete("/v1/adapters/one"),
            await client.post("/v1/classify?adapter=one", content=PICTURES[0]),
        ):
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"


async def test_a_hash_beside_the_name_is_that_file_or_nothing(open_client, golden_model):
    async with open_client(golden_model) as client:
        sha256 = (await client.put("/v1/adapters/one", content=file_of())).json()["sha256"]
        for reference, status in (
            (f"one@{sha256}", 200),
            ("one@" + "0" * 64, 404),
            (f"two@{sha256}", 404),
        ):
            answer = await client.post(f"/v1/classify?adapter={reference}", content=PICTURES[0])
            assert answer.status_code == status


async def test_numbers_that_are_not_finite_are_the_adapters_fault(open_client, golden_model):
    wild = changed(mapping__weight=torch.full((8, 2), 3e38), mapping__bias=torch.full((2,), 3e38))
    async with open_client(golden_model) as client:
        assert (await client.put("/v1/adapters/wild", content=wild)).status_code == 201
        answer = await client.post("/v1/classify?adapter=wild", content=PICTURES[0])
        assert answer.status_code == 400
        assert "your adapter returns non-finite numbers" in answer.json()["error"]["message"]


async def test_a_server_of_embeddings_takes_no_adapters(open_client, golden_model):
    async with open_client(golden_model, output="embedding") as client:
        for answer in (
            await client.put("/v1/adapters/one", content=file_of()),
            await client.post("/v1/classify?adapter=one", content=PICTURES[0]),
        ):
            assert answer.status_code == 400
            assert "embeddings" in answer.json()["error"]["message"]


async def test_the_model_itself_answers_as_before(open_client, golden_model):
    async with open_client(golden_model) as client:
        before = await client.post("/v1/classify", content=PICTURES[0])
        await client.put("/v1/adapters/one", content=file_of())
        await client.post("/v1/classify?adapter=one", content=PICTURES[0])
        after = await client.post("/v1/classify", content=PICTURES[0])
    assert before.json() == after.json()
    assert after.json()["predictions"][0]["labels"][0] in "abc"
    assert not any(module._forward_hooks for module in golden_model.network.modules())


async def test_owners_limits_hold_for_adapters_too(open_client, golden_model):
    async with open_client(golden_model, top_k=1) as client:
        await client.put("/v1/adapters/one", content=file_of("every_site"))
        [found] = (await client.post("/v1/classify?adapter=one", content=PICTURES[0])).json()[
            "predictions"
        ]
        assert len(found["labels"]) == 1
    async with open_client(golden_model, output="label") as client:
        await client.put("/v1/adapters/one", content=file_of("every_site"))
        [found] = (await client.post("/v1/classify?adapter=one", content=PICTURES[0])).json()[
            "predictions"
        ]
        assert found["scores"] == [1.0]


async def test_in_a_batch_a_bad_picture_hurts_nobody(open_client, golden_model):
    async with open_client(golden_model, output="logits") as client:
        await client.put("/v1/adapters/one", content=file_of())
        body = {"images": [EXPECTED["pictures"][0], "bm8=", EXPECTED["pictures"][1]]}
        first, bad, last = (await client.post("/v1/classify?adapter=one", json=body)).json()[
            "predictions"
        ]
    assert bad["error"]["code"] == "invalid_image"
    for found, expected in ((first, 0), (last, 1)):
        assert max(found["scores"]) == pytest.approx(
            max(EXPECTED["log_probs"]["default"][expected]), abs=1e-4
        )


# ---- tenants


def told(answer):
    """All that an answer tells, but for the request's own id."""
    body = answer.json() if answer.content else {}
    body.get("error", {}).pop("request_id", None)
    return answer.status_code, body, sorted(set(answer.headers) - {"x-request-id", "date"})


async def test_a_tenant_sees_nothing_of_anothers(open_client, golden_model):
    async with open_client(golden_model, tenants=KEYS) as client:
        await client.put("/v1/adapters/taken", content=file_of(), headers=ANNA)
        for ask in (
            lambda name: client.get(f"/v1/adapters/{name}", headers=BERT),
            lambda name: client.delete(f"/v1/adapters/{name}", headers=BERT),
            lambda name: client.post(
                f"/v1/classify?adapter={name}", content=PICTURES[0], headers=BERT
            ),
        ):
            taken, free = told(await ask("taken")), told(await ask("free"))
            assert taken == free
            assert taken[0] == 404
        assert (await client.get("/v1/adapters", headers=BERT)).json()["adapters"] == []
        assert (await client.get("/v1/adapters/taken", headers=ANNA)).status_code == 200


async def test_one_name_of_two_tenants_is_two_adapters(open_client, golden_model):
    async with open_client(golden_model, tenants=KEYS, output="logits") as client:
        for headers, name in ((ANNA, "default"), (BERT, "some")):
            put = await client.put("/v1/adapters/mine", content=file_of(name), headers=headers)
            assert put.status_code == 201, (
                "for the second tenant the name is as new as for the first"
            )
        for headers, name in ((ANNA, "default"), (BERT, "some")):
            answer = await client.post(
                "/v1/classify?adapter=mine", content=PICTURES[0], headers=headers
            )
            assert scores_of(answer, name) == pytest.approx(
                EXPECTED["log_probs"][name][0], abs=1e-4
            )
        await client.delete("/v1/adapters/mine", headers=BERT)
        assert (await client.get("/v1/adapters/mine", headers=ANNA)).status_code == 200


async def test_a_full_tenant_leaves_the_others_their_room(open_client, golden_model):
    async with open_client(golden_model, tenants=KEYS, max_adapters=2) as client:
        for name, status in (("a", 201), ("b", 201), ("c", 400), ("b", 200)):
            put = await client.put(f"/v1/adapters/{name}", content=file_of(), headers=ANNA)
            assert put.status_code == status
        assert (
            await client.put("/v1/adapters/a", content=file_of(), headers=BERT)
        ).status_code == 201
        full = await client.put("/v1/adapters/c", content=file_of(), headers=ANNA)
        assert ("you have 2 adapters, the largest number allowed; DELETE one first") in full.json()[
            "error"
        ]["message"]


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer anna"}])
async def test_without_a_tenants_key_nothing_is_done(open_client, golden_model, headers):
    async with open_client(golden_model, tenants=KEYS) as client:
        for answer in (
            await client.put("/v1/adapters/one", content=file_of(), headers=headers),
            await client.get("/v1/adapters/one", headers=headers),
            await client.get("/v1/adapters", headers=headers),
            await client.delete("/v1/adapters/one", headers=headers),
            await client.post("/v1/classify?adapter=one", content=PICTURES[0], headers=headers),
            await client.post("/v1/classify", content=PICTURES[0], headers=headers),
        ):
            assert answer.status_code == 401
        assert (await client.get("/v1/adapters", headers=ANNA)).json()["adapters"] == []


async def test_the_owners_key_is_a_tenant_of_its_own(open_client, golden_model):
    async with open_client(golden_model, tenants=KEYS, api_key="owner") as client:
        owner = {"Authorization": "Bearer owner"}
        await client.put("/v1/adapters/one", content=file_of(), headers=owner)
        assert (await client.get("/v1/adapters/one", headers=owner)).status_code == 200
        assert (await client.get("/v1/adapters/one", headers=ANNA)).status_code == 404


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        "no",
        '{"a": 1}',
        '{"a": "short"}',
        '{"": "kkkkkkkkkkkkkkkk"}',
        '{"a": "kkkkkkkkkkkkkkk\\ud800"}',
        '{"a": "                "}',
        '{"a": "kkkkkkkkkkkkkkkk", "a": "jkkkkkkkkkkkkkkk"}',
        json.dumps({"a": "k" * 16, "b": "k" * 16}),
    ],
)
def test_a_file_of_tenants_that_cannot_work_is_refused(tmp_path, text):
    path = tmp_path / "tenants.json"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match="tenant") as refused:
        read_tenants(path)
    assert "kkkk" not in str(refused.value)


def test_a_tenants_key_is_not_the_owners():
    with pytest.raises(
        ConfigurationError, match="different from each other and from --api-key-env's"
    ):
        Settings(tenants={"a": "k" * 16}, api_key="k" * 16)


def test_keys_of_tenants_are_in_no_repr(tmp_path):
    path = tmp_path / "tenants.json"
    path.write_text(json.dumps(KEYS))
    settings = Settings.from_arguments(
        ["--tenants", str(path), "--max-adapters", "3", "--max-adapter-bytes", "9"]
    )
    assert (settings.tenants, settings.max_adapters, settings.max_adapter_bytes) == (KEYS, 3, 9)
    assert "key-0123" not in repr(settings)


# ---- refusals

NAN, INF = torch.full((3, 8), float("nan")), torch.full((3, 8), float("inf"))
REFUSED = {
    "no safetensors": (b"hello, this is no adapter", "not a safetensors file with a card"),
    "cut short": (file_of()[:-5], "its tensors cannot be read"),
    "header length beyond the end": (
        b"\xff" * 8 + file_of()[8:],
        "not a safetensors file with a card",
    ),
    "without a card": (
        safetensors.torch.save({"prompts": torch.zeros(3, 8)}),
        "not a safetensors file with a card",
    ),
    "another method": (changed({"method": "pgn"}), "the method on its card is not expres"),
    "another schema": (changed({"schema": 2}), "the schema on its card is not 1"),
    "another backbone": (changed({"backbone": {"features_sha256": "0" * 64}}), "another backbone"),
    "no backbone": (changed({"backbone": None}), "another backbone"),
    "classes twice": (changed({"classes": ["a", "a"]}), "different names"),
    "one class": (changed({"classes": ["a"]}), "different names"),
    "classes that are no texts": (changed({"classes": [1, 2]}), "a class must be text"),
    "a class without a name": (
        changed({"classes": ["", "a"]}),
        "a class must be text of 1 to 256 characters",
    ),
    "half of a pair of surrogates": (changed({"classes": ["\ud800", "a"]}), "a class must be text"),
    "an endless name": (changed({"classes": ["a" * 257, "b"]}), "a class must be text"),
    "another normalisation": (
        changed(
            {"backbone": {"features_sha256": EXPECTED["features_sha256"], "mean": [0.4, 0.5, 0.5]}}
        ),
        "trained with another mean",
    ),
    "more classes than numbers": (changed({"classes": ["a", "b", "c"]}), "must have the shape"),
    "NaN": (changed(prompts=NAN), "not finite"),
    "infinite": (changed(prompts=INF), "not finite"),
    "float64": (changed(prompts=torch.zeros(3, 8, dtype=torch.float64)), "not float32"),
    "no prompts": (changed(drop=["prompts"]), "prompts must be (m, 8), m from 1 to 128"),
    "empty prompts": (changed(prompts=torch.zeros(0, 8)), "m from 1 to 128"),
    "too many prompts": (changed(prompts=torch.zeros(129, 8)), "m from 1 to 128"),
    "prompts of another width": (
        changed(prompts=torch.zeros(3, 9)),
        "prompts must have the shape (3, 8)",
    ),
    "no mapping": (
        changed(drop=["mapping.bias"]),
        "it must have prompts, mapping.weight, mapping.bias",
    ),
    "an unknown tensor": (changed(extra=torch.zeros(1)), "and nothing else"),
    "more than 255 classes for masks": (
        changed(
            {"classes": [str(i) for i in range(256)]},
            mapping__weight=torch.zeros(8, 256),
            mapping__bias=torch.zeros(256),
            prototypes__weight=torch.zeros(1),
        ),
        "at most 255 classes",
    ),
    "prompts that classes cannot share": (
        changed(prototypes__weight=torch.zeros(1)),
        "the same number of prompts for each",
    ),
    "another depth": (
        changed(residuals__q=torch.zeros(3, 3, 8)),
        "residuals.q must have the shape (2, 3, 8)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_malformed_adapter_is_refused_with_its_reason_and_the_old_one_stays(
    open_client, golden_model, case
):
    data, reason = REFUSED[case]
    async with open_client(golden_model) as client:
        old = (await client.put("/v1/adapters/one", content=file_of())).json()
        answer = await client.put("/v1/adapters/one", content=data)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]
        assert (await client.get("/v1/adapters/one")).json() == old


@pytest.mark.parametrize("packed", [False, True])
async def test_an_oversized_adapter_is_refused(open_client, golden_model, packed):
    body = bytes(200_000)
    headers = {"Content-Encoding": "gzip"} if packed else {}
    async with open_client(golden_model, max_adapter_bytes=100_000) as client:
        answer = await client.put(
            "/v1/adapters/one", content=gzip.compress(body) if packed else body, headers=headers
        )
    assert answer.status_code == 413
    assert "100000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("name", [".hidden", "a" * 65, "a b", "ä", "-dash"])
async def test_odd_names_are_refused(open_client, golden_model, name):
    async with open_client(golden_model) as client:
        assert (await client.put(f"/v1/adapters/{name}", content=file_of())).status_code == 400


async def test_a_name_of_digits_is_a_name(open_client, golden_model):
    async with open_client(golden_model) as client:
        await client.put("/v1/adapters/12", content=file_of())
        assert (
            await client.post("/v1/classify?adapter=12", content=PICTURES[0])
        ).status_code == 200


def test_a_model_that_is_no_plain_vit_takes_no_adapters(golden_model):
    with pytest.raises(RequestError, match="not a plain ViT"):
        adapters.read(
            file_of(), "one", replace(golden_model, network=timm.create_model("resnet18"))
        )


# ---- one batch for many


def many(golden_model):
    """Eight tenants' adapters, of different numbers of prompts and sites."""
    found = []
    for i in range(8):
        data = file_of(NAMES[i % 4])
        one = adapters.read(data, str(i), golden_model)
        draw = torch.Generator().manual_seed(i)
        for tensor in (one.prompts, one.weight, *one.residuals.values()):
            tensor += 0.3 * torch.randn(tensor.shape, generator=draw)
        found.append(one)
    return found


def test_a_batch_of_many_tenants_is_what_each_gets_alone(golden_model):
    own = many(golden_model)
    draw = np.random.default_rng(3)
    asked = [
        Asked(draw.normal(size=(3, 8, 8)).astype(np.float32), adapter=own[i % 8]) for i in range(32)
    ]
    asked.insert(5, Asked(asked[0].pixels))  # one for the model itself
    together, alone = golden_model.run(asked), [golden_model.run([one])[0] for one in asked]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
        assert a.argmax() == b.argmax()
    assert len({tuple(a) for a in together}) == 33, "otherwise the comparison would say nothing"


def test_what_an_adapter_makes_of_its_numbers_stays_its_own(golden_model):
    wild, calm = many(golden_model)[:2]
    wild.prompts.fill_(3e38)
    pixels = np.ones((3, 8, 8), np.float32)
    broken, fine = golden_model.run([Asked(pixels, adapter=wild), Asked(pixels, adapter=calm)])
    np.testing.assert_allclose(fine, golden_model.run([Asked(pixels, adapter=calm)])[0], atol=2e-5)
    assert not np.isfinite(broken).all()


async def test_tenants_at_the_same_time_get_their_own_answers(open_client, golden_model):
    keys = {f"tenant{i}": f"key-of-tenant-number-{i}" for i in range(8)}
    async with open_client(
        golden_model, tenants=keys, output="logits", max_batch_size=32, max_wait=0.05
    ) as client:
        for i, key in enumerate(keys.values()):
            headers = {"X-API-Key": key}
            put = await client.put(
                "/v1/adapters/mine", content=file_of(NAMES[i % 4]), headers=headers
            )
            assert put.status_code == 201

        async def ask(i):
            headers = {"X-API-Key": list(keys.values())[i % 8]}
            answer = await client.post(
                "/v1/classify?adapter=mine", content=PICTURES[i % 3], headers=headers
            )
            return scores_of(answer, NAMES[i % 4])

        for i, found in enumerate(await asyncio.gather(*map(ask, range(32)))):
            assert found == pytest.approx(EXPECTED["log_probs"][NAMES[i % 4]][i % 3], abs=1e-4)
