"""What an earlier version wrote is read today, and says the same.

The files, and ``expected.json``, were written by ``make.py`` with the code of commit 6894f70.
Answers come from ``toy``, an endpoint that uses nothing of the project. Only public names and
commands are used, so that these tests stay as they are wherever a module moves. Texts for people
may change; numbers, names and the files themselves may not.
"""

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from base64 import b64decode
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

import pgn_client
from pgn_client import AdaptedClient, PGNError, PromptAdapter, ServerProfile
from pgn_client.cli import main
from tests.compatibility.toy import URL, Toy, fixed_images

FILES = Path(__file__).parent / "files"


def _read(name):
    """Read the expectations; one name stands for the toy's labels, which many cards hold."""
    text = (FILES / name).read_text(encoding="utf-8")
    labels = json.loads(text)["toy"]["labels"]
    return json.loads(text.replace('"<labels>"', json.dumps(labels)))


EXPECTED = _read("expected.json")
CHECKPOINTS = EXPECTED["checkpoints"]
SENT = np.load(FILES / "sent.npz")
PROMPTS = [name for name, told in CHECKPOINTS.items() if "local" in told]
ON_SERVER = ["expres", "masks"]
ANSWERED = [n for n, told in CHECKPOINTS.items() if "predictions" in told and n not in ON_SERVER]
RAW = ["predict", "--url", URL, "--protocol", "pgn", "--json"]


def toy(**options):
    told = EXPECTED["toy"]
    return Toy(told["labels"], told["patch_embedding_sha256"], **options)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.delenv("PGN_API_KEY", raising=False)


@pytest.fixture
def answering(monkeypatch):
    """Return a function that lets a toy answer in the place of the network."""

    def answer(model):
        transport = httpx.HTTPTransport
        monkeypatch.setattr(transport, "handle_request", lambda _, request: model(request))
        return model

    return answer


@pytest.fixture
def endpoint(answering):
    """The endpoint of that time."""
    return answering(toy())


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def unpacked(name, folder):
    """Put a file, which lies there compressed, into a folder."""
    path = Path(folder) / name
    path.write_bytes(gzip.decompress((FILES / f"{name}.gz").read_bytes()))
    return path


def checkpoint(name, folder):
    return unpacked(f"{name}.safetensors", folder)


def extracted(name, folder="."):
    with zipfile.ZipFile(FILES / name) as archive:
        archive.extractall(folder)


def pgn(*words, status=0):
    """Run a command; return what it prints on stdout."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([str(word) for word in words]) == status
    return out.getvalue()


def records(text):
    return [json.loads(line) for line in text.splitlines()]


def same_images(found, name):
    """Whether images are the recorded ones; another build of torch may round a few otherwise."""
    assert len(found) == len(SENT[name])
    for image, expected in zip(found, SENT[name], strict=True):
        differs = np.abs(np.asarray(image).astype(int) - expected.astype(int))
        assert differs.max() <= 1
        assert (differs > 0).mean() < 1e-3


def same_prediction(found, expected):
    assert found["label"] == expected["label"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)


def same_records(found, expected):
    """Whether predictions are the recorded ones; the sentence of an error may be another."""
    told = ("path", "label", "sha256", "attempts")
    assert [{k: r[k] for k in told} for r in found] == [{k: r[k] for k in told} for r in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() >= other.keys()
        assert (one["error"] is None) == (other["error"] is None)
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)


def same_numbers(found, expected, place="", within=1e-3):
    """Whether a document has all entries of an earlier one, and the same numbers in them."""
    assert isinstance(found, type(expected)) or {type(found), type(expected)} == {int, float}, place
    if isinstance(expected, dict):
        assert found.keys() >= expected.keys(), place
        for key, value in expected.items():
            same_numbers(found[key], value, f"{place}.{key}", within)
    elif isinstance(expected, list):
        assert len(found) == len(expected), place
        for i, value in enumerate(expected):
            same_numbers(found[i], value, f"{place}[{i}]", within)
    elif isinstance(expected, bool) or place.endswith((".name", ".a", ".b", ".set")):
        assert found == expected, place
    elif isinstance(expected, int | float):
        assert found == pytest.approx(expected, rel=within, abs=within), place


# ---- checkpoints


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_is_verified_and_has_the_card_that_was_written(name, tmp_path):
    printed = pgn("inspect", checkpoint(name, tmp_path), "--json")
    assert json.loads(printed) == CHECKPOINTS[name]["card"]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_sends_the_same_images_and_its_local_head_says_the_same(name, tmp_path):
    adapter = PromptAdapter.load(checkpoint(name, tmp_path))
    assert repr(adapter) == CHECKPOINTS[name]["repr"]
    prepared = adapter.prepare(fixed_images())
    same_images([item.image for item in prepared], name)
    local = [item.local_log_probs for item in prepared]
    np.testing.assert_allclose(local, CHECKPOINTS[name]["local"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_for_another_server_profile_has_the_same_fingerprint(name, tmp_path):
    adapter = PromptAdapter.load(checkpoint(name, tmp_path))
    moved = adapter.with_profile(ServerProfile.parse("resize_crop:72:64"))
    assert moved.info["fingerprint"] == CHECKPOINTS[name]["with_profile"]
    assert moved(fixed_images())[0].size == (72, 72)


@pytest.mark.parametrize("name", PROMPTS)
def test_a_checkpoint_that_is_saved_again_stays_the_same(name, tmp_path):
    PromptAdapter.load(checkpoint(name, tmp_path)).save(tmp_path / "again.safetensors")
    found = PromptAdapter.load(tmp_path / "again.safetensors").info
    assert found == CHECKPOINTS[name]["card"]  # the fingerprint on it covers all tensors


@pytest.mark.parametrize("name", ANSWERED)
def test_a_checkpoint_reads_the_answers_of_an_endpoint_as_before(name, endpoint, tmp_path):
    told = CHECKPOINTS[name]
    fusion = 0.5 if "local" in told else None
    path = checkpoint(name, tmp_path)
    with AdaptedClient(URL, path, protocol="pgn", fusion=fusion) as client:
        found = [client.classify(image) for image in fixed_images()]
    assert len(endpoint.images) == len(found)
    for prediction, expected in zip(found, told["predictions"], strict=True):
        same_prediction({"label": prediction.label, "scores": dict(prediction.scores)}, expected)


def test_a_mapping_of_embeddings_reads_embeddings(answering, here):
    answering(toy(output="embedding"))
    extracted("digits.zip")
    path = checkpoint("map_embeddings", here)
    found = records(pgn(*RAW, "digits/train", "--ckpt", path, "--out", "-"))
    right = [record["label"] == Path(record["path"]).parent.name for record in found]
    assert np.mean(right) > 0.9


def test_a_task_of_a_union_is_the_checkpoint_that_was_written_beside_it(tmp_path):
    union = PromptAdapter.load(checkpoint("union", tmp_path))
    fingerprints = {name: union.for_task(name).info["fingerprint"] for name in union.info["parts"]}
    assert fingerprints == CHECKPOINTS["union"]["parts"]
    assert fingerprints["second"] == CHECKPOINTS["union.second"]["card"]["fingerprint"]


def test_a_published_checkpoint_is_imported_as_before(tmp_path):
    theirs = unpacked("theirs.pt", tmp_path)
    pgn("import", theirs, "--out", tmp_path / "ours.safetensors")
    adapter = PromptAdapter.load(tmp_path / "ours.safetensors")
    same_images(adapter(fixed_images()), "fresh")
    card, before = adapter.info, CHECKPOINTS["imported"]["card"]
    assert card.keys() >= before.keys()
    assert {k: card[k] for k in ("imported", "layout", "library", "generator", "mapping")} == {
        k: before[k] for k in ("imported", "layout", "library", "generator", "mapping")
    }


# ---- checkpoints that run on the server


@pytest.fixture(scope="module")
def server():
    """The project's own server, in its own process."""
    command = [sys.executable, "-m", "mock_server", "--port", "0"]
    environment = {k: v for k, v in os.environ.items() if k != "PGN_API_KEY"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            yield process.stdout.readline().removeprefix("listening on ").strip()
        finally:
            process.terminate()


def test_a_checkpoint_that_runs_on_the_server_is_hosted_and_answers_as_before(server, tmp_path):
    with AdaptedClient(server, checkpoint("expres", tmp_path)) as client:
        same_images([client.adapt(image) for image in fixed_images()], "expres")
        found = [client.classify(image) for image in fixed_images()]
    for prediction, expected in zip(found, CHECKPOINTS["expres"]["predictions"], strict=True):
        assert prediction.label == expected["label"]
        assert dict(prediction.scores) == pytest.approx(expected["scores"], abs=1e-4)


def test_an_adapter_that_answers_masks_is_hosted_and_answers_as_before(server, tmp_path):
    data = checkpoint("masks", tmp_path).read_bytes()
    httpx.put(f"{server}/v1/adapters/masks", content=data).raise_for_status()
    for image, expected in zip(fixed_images(), CHECKPOINTS["masks"]["masks"], strict=True):
        image.save(file := io.BytesIO(), "PNG")
        answer = httpx.post(f"{server}/v1/segment?adapter=masks", content=file.getvalue()).json()
        told = answer["predictions"][0]["mask"], expected
        found, before = (np.asarray(Image.open(io.BytesIO(b64decode(text)))) for text in told)
        assert found.shape == before.shape
        assert (found != before).mean() < 2e-3  # pixels on the border of two classes


# ---- journals, ledgers and recorded answers


PREDICT = ["--fusion", "0.5", "--out", "predictions.jsonl"]


@pytest.fixture
def journal(here):
    """A folder with a journal of five images, one of them broken, and the images."""
    extracted("digits.zip")
    extracted("journal.zip")
    return [*RAW, *PREDICT, "--ckpt", checkpoint("pgn_pixel", here)]


def test_a_journal_goes_on_and_nothing_is_sent_twice(journal, endpoint, here):
    before = records((here / "predictions.jsonl").read_text())
    printed = records(pgn(*journal, "all.txt", status=1))
    assert len(endpoint.images) == EXPECTED["journal"]["sent"]
    same_records(printed, EXPECTED["journal"]["printed"])
    assert printed == records((here / "predictions.jsonl").read_text())
    assert [r for r in printed if r in before and r["label"]] == [r for r in before if r["label"]]


def test_a_journal_that_is_complete_sends_nothing_and_stays_the_same(journal, endpoint, here):
    before = (here / "predictions.jsonl").read_bytes()
    pgn(*journal, "first.txt", status=1)  # the broken image stays broken
    assert endpoint.images == []
    assert records((here / "predictions.jsonl").read_text())[:4] == records(before.decode())[:4]


def test_a_journal_is_not_mixed_with_another_setup(journal, endpoint, here):
    before = (here / "predictions.jsonl").read_bytes()
    pgn(*journal, "all.txt", "--query-below", "0.9", status=2)
    assert (here / "predictions.jsonl").read_bytes() == before


def test_a_folder_of_adapted_images_goes_on_and_none_is_made_twice(here):
    extracted("digits.zip")
    extracted("adapted.zip")
    path = checkpoint("pgn_pixel", here)
    assert sorted(p.name for p in Path("adapted").iterdir()) == EXPECTED["adapted"]
    before = {p: p.read_bytes() for p in Path("adapted").glob("*.png")}
    for target in before:
        os.utime(target, (1, 1))
    Path("digits/test/0/more.png").write_bytes(next(Path("digits/test/1").iterdir()).read_bytes())
    pgn("adapt", "digits/test/0", "adapted", "--ckpt", path)
    assert {p: p.read_bytes() for p in before} == before
    assert {p.stat().st_mtime for p in before} == {1}
    assert Path("adapted/more.png").exists()


@pytest.mark.parametrize("left", [0, 1])
def test_a_ledger_holds_what_was_spent(left, endpoint, tmp_path):
    ledger = unpacked("ledger.sqlite", tmp_path)
    options = {"budget": EXPECTED["ledger"]["images"] + left, "ledger": ledger, "protocol": "pgn"}
    with AdaptedClient(URL, None, **options) as client:
        for _ in range(left):
            client.classify(fixed_images()[0])
        with pytest.raises(PGNError):
            client.classify(fixed_images()[0])
    assert len(endpoint.images) == left


def encoded_as_before():
    """Whether Pillow encodes PNG as it did: recorded answers go by the bytes that were sent."""
    found = []
    for path in sorted(Path("digits/test/1").iterdir()):
        with Image.open(path) as image:
            image.convert("RGB").save(file := io.BytesIO(), "PNG")
        found.append(hashlib.sha256(file.getvalue()).hexdigest())
    return found == EXPECTED["cache"]["encoded"]


@pytest.fixture
def recorded(here):
    """A folder with recorded answers, and the images that they are to."""
    extracted("digits.zip")
    return unpacked("answers.sqlite", here)


def test_recorded_answers_are_replayed_and_nothing_is_sent(recorded, endpoint):
    if not encoded_as_before():
        pytest.skip("this Pillow encodes PNG to other bytes, so no recorded answer can be found")
    raw = [*RAW, "digits/test/1", "--out", "-", "--replay", recorded]
    same_records(records(pgn(*raw)), EXPECTED["cache"]["replayed"])
    mapped = records(pgn(*raw, "--ckpt", checkpoint("map_alone", ".")))
    same_records(mapped, EXPECTED["cache"]["mapped"])
    assert endpoint.images == []


def test_recorded_answers_are_not_paid_again(recorded, endpoint):
    if not encoded_as_before():
        pytest.skip("this Pillow encodes PNG to other bytes, so no recorded answer can be found")
    images = sorted(Path("digits/test/1").iterdir())
    with AdaptedClient(URL, None, protocol="pgn", cache=recorded) as client:
        assert client.recorded(images) == EXPECTED["cache"]["recorded"] == len(images)
        client.answers(images)
    assert endpoint.images == []


def test_the_recorded_images_are_sent_again_to_an_endpoint_that_has_not_changed(recorded, endpoint):
    pgn("drift", "--url", URL, "--protocol", "pgn", "--cache", recorded)
    assert len(endpoint.images) == EXPECTED["cache"]["canaries"]


def test_an_endpoint_that_has_changed_is_told_from_the_recorded_one(recorded, answering):
    answering(toy(seed=8))
    pgn("drift", "--url", URL, "--protocol", "pgn", "--cache", recorded, status=1)


# ---- files that describe an endpoint


@pytest.mark.parametrize("name", ["custom.toml", "custom.json", "endpoint.json"])
def test_a_file_that_describes_an_endpoint_says_the_same(name):
    with AdaptedClient(FILES / name, None) as client:
        told = asdict(client.endpoint)
    told = json.loads(json.dumps({k: v for k, v in told.items() if k != "credential"}))
    assert told == EXPECTED["endpoints"][name]


@pytest.mark.parametrize("name", ["custom.toml", "custom.json"])
def test_an_endpoint_of_a_file_is_asked_and_read_as_before(name, endpoint, here, monkeypatch):
    extracted("digits.zip")
    monkeypatch.setenv("PGN_API_KEY", "a-key-for-the-toy")
    printed = pgn("predict", "digits/test/2", "--url", FILES / name, "--out", "-", "--json")
    expected = EXPECTED["endpoints"]["request"]
    for request in endpoint.images:
        assert str(request.url) == expected["url"]
        assert request.headers["x-api-key"] == expected["key"]
        assert json.loads(request.content)["parameters"] == expected["parameters"]
    same_records(records(printed), EXPECTED["endpoints"]["printed"])


def test_prompts_get_the_margin_that_a_probe_has_found(tmp_path):
    path = checkpoint("pgn_pixel", tmp_path)
    with AdaptedClient(FILES / "endpoint.json", path) as client:
        assert client.adapt(fixed_images()[0]).size == (72, 72)


# ---- trainings, reports and tables


def test_an_interrupted_training_goes_on(here):
    extracted("digits.zip")
    path = unpacked("resumed.safetensors.resume", here)
    state = torch.load(path, weights_only=True)
    state["identity"]["versions"] = {  # of today: a training does not go on with another torch
        "pgn_client": pgn_client.__version__,
        "torch": str(torch.__version__),
    }
    torch.save(state, path)
    card = json.loads(pgn(*EXPECTED["state"]["words"], "--resume"))
    first, second = card["metrics"]["history"]
    assert first == EXPECTED["state"]["history"][0]
    assert second == pytest.approx(EXPECTED["state"]["history"][1], abs=0.05)
    found = PromptAdapter.load("resumed.safetensors")(fixed_images())
    differs = np.stack([np.asarray(image) for image in found]) - SENT["resumed"].astype(float)
    assert np.abs(differs).mean() < 2
    assert not path.exists()


def test_a_comparison_of_earlier_checkpoints_leaves_the_same_report(endpoint, here):
    extracted("digits.zip")
    for name in ("pgn_pixel", "input_independent"):
        checkpoint(name, here)
    pgn(*EXPECTED["report"]["words"])
    found = json.loads(Path("report/report.json").read_text(encoding="utf-8"))
    before = json.loads((FILES / "report.json").read_text(encoding="utf-8"))
    same_numbers(found, before | {"seconds": found["seconds"]})
    page = Path("report/report.html").read_text(encoding="utf-8")
    counts = EXPECTED["report"]["page"]
    assert {tag: page.count(f"<{tag}") for tag in counts} == counts


def test_the_runs_of_a_benchmark_give_the_same_table_and_are_not_repeated(endpoint, here):
    extracted("digits.zip")
    extracted("benchmark.zip")
    table = json.loads(Path("bench/table.json").read_text(encoding="utf-8"))
    text = Path("bench/table.md").read_text(encoding="utf-8")
    before = {p: p.read_bytes() for p in Path("bench/digits").rglob("*") if p.is_file()}
    settings = json.loads(Path("bench/settings.json").read_text(encoding="utf-8"))
    settings["version"] = pgn_client.__version__  # a table is of one version
    Path("bench/settings.json").write_text(json.dumps(settings))
    pgn("benchmark", *EXPECTED["benchmark"]["words"], "--out", "bench")
    assert endpoint.images == []
    found = json.loads(Path("bench/table.json").read_text(encoding="utf-8"))
    same_numbers(found, table, within=1e-9)
    assert Path("bench/table.md").read_text(encoding="utf-8").count("|") == text.count("|")
    assert {p: p.read_bytes() for p in Path("bench/digits").rglob("*") if p.is_file()} == before
