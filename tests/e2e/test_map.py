"""``pgn map``: prompts of a checkpoint, mapped anew to an endpoint over HTTP."""

import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pgn_client import PromptAdapter
from pgn_client.evaluation.demo import local_server, write_digits
from tests.e2e.conftest import dealt_out, pgn, without_key

pytestmark = pytest.mark.slow


def test_a_trained_checkpoint_is_fitted_to_what_the_endpoint_answers(
    digits, checkpoint, server, tmp_path
):
    out, cache = tmp_path / "mapped.safetensors", tmp_path / "answers.sqlite"
    words = [
        "map",
        digits,
        "--url",
        server,
        "--ckpt",
        checkpoint,
        "--shots",
        "12",
        "--out",
        out,
        "--cache",
        cache,
    ]
    done = pgn(*words)
    assert done.returncode == 0, done.stderr
    found, before = PromptAdapter.load(out), PromptAdapter.load(checkpoint)
    assert found.mapping.source == before.mapping.source
    assert found.info["metrics"]["uint8"] > 0.3
    assert found.info["seed"] == before.info["seed"]
    assert found.info["scores"] == "probabilities"
    assert "images sent" in done.stderr
    again = pgn(*words)
    assert "0 images sent" in again.stderr
    assert again.stdout == done.stdout


def test_an_import_is_mapped_and_then_compared_like_any_other(shared, tmp_path):
    """Random weights: what is tested is the way, not what it gains."""
    torch.manual_seed(0)
    write_digits(tmp_path / "few", images=80)
    weights, data = (
        tmp_path / "weights.safetensors",
        dealt_out(tmp_path / "few", tmp_path / "digits"),
    )
    save_file(timm.create_model("vit_small_patch32_224", pretrained=False).state_dict(), weights)
    model = ["--backbone", "vit_small_patch32_224", "--weights", weights]
    quick = [*model, "--inversion", "pseudo_inverse"]  # bounded takes minutes
    ours, mapped = tmp_path / "ours.safetensors", tmp_path / "mapped.safetensors"
    assert (
        pgn("import", shared / "golden" / "pgn_dino_sun397.pt", *quick, "--out", ours).returncode
        == 0
    )
    with local_server(["--model", "vit_small_patch32_224", "--weights", str(weights)]) as url:
        refused = pgn("evaluate", data, "--url", url, "--ckpt", ours, *model)
        assert refused.returncode == 2
        assert "pgn map" in refused.stderr
        done = pgn("map", data, "--url", url, "--ckpt", ours, "--out", mapped)
        assert done.returncode == 0, done.stderr
        assert "imported" in done.stdout
        compared = pgn("evaluate", data, "--url", url, "--ckpt", mapped, *model, "--json")
    assert compared.returncode == 0, compared.stderr
    report = json.loads(compared.stdout)
    stages = [
        "published",
        "latent",
        "float",
        "clipped",
        "uint8",
        "http_png",
        "jpeg95_444",
        "jpeg75_420",
    ]
    assert list(report["retention"]["agreement"]) == stages
    assert report["retention"]["http_png"] == pytest.approx(report["controls"]["own_prompt"])
    assert report["retention"]["http_png"] == pytest.approx(report["retention"]["uint8"], abs=0.1)
    rows = {row["name"]: row["accuracy"] for row in report["rows"]}
    assert rows["local head"] > 0.2  # chance is 0.1; fitted on the published trunk's features
    assert np.isfinite(list(rows.values())).all()


def test_without_a_checkpoint_only_a_mapping_is_fitted_and_read_without_torch(
    digits, server, tmp_path
):
    raw = tmp_path / "raw.safetensors"
    done = pgn(
        "map", digits, "--url", server, "--shots", "12", "--none-of-these", "0.3", "--out", raw
    )
    assert done.returncode == 0, done.stderr
    assert "as they are" in done.stdout
    code = (
        "import sys; from pgn_client import AdaptedClient\n"
        f"with AdaptedClient({server!r}, {str(raw)!r}) as c:\n"
        "    found = "
        f"list(c.classify_many(sorted(__import__('pathlib').Path({str(digits)!r}).rglob('*.png'))[::20]))\n"
        "print(sorted({p.label for p in found})); assert 'torch' not in sys.modules"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=without_key()
    )
    assert said.returncode == 0, said.stderr
    assert "none of these" in said.stdout
    assert "'0'" in said.stdout
    refused = pgn("evaluate", digits, "--url", server, "--ckpt", raw)
    assert refused.returncode == 2
    assert "mapping alone" in refused.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mapping", "nearest"], "identity, flm"),
        (["--out", "missing/x.safetensors"], "a folder that exists"),
        (["--none-of-these", "1"], "a share"),
    ],
)
def test_wrong_words_are_told_before_anything_is_sent(digits, checkpoint, tmp_path, words, message):
    out = [] if "--out" in words else ["--out", tmp_path / "x.safetensors"]
    done = pgn("map", digits, "--url", "http://127.0.0.1:9", "--ckpt", checkpoint, *out, *words)
    assert done.returncode == 2
    assert message in done.stderr
