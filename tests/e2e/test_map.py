"""``pgn map``: prompts of a checkpoint, mapped anew to an endpoint over HTTP."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pgn_client import PromptAdapter
from pgn_client.demo import local_server, write_digits
from tests.e2e.conftest import dealt_out, pgn


def test_a_trained_checkpoint_is_fitted_to_what_the_endpoint_answers(digits, checkpoint, server, tmp_path):
    out, cache = tmp_path / "mapped.safetensors", tmp_path / "answers.sqlite"
    words = ["map", digits, "--url", server, "--ckpt", checkpoint, "--shots", "12", "--out", out, "--cache", cache]
    done = pgn(*words)
    assert done.returncode == 0, done.stderr
    found, before = PromptAdapter.load(out), PromptAdapter.load(checkpoint)
    assert found.mapping.source == before.mapping.source
    assert found.info["metrics"]["uint8"] > 0.3
    assert found.info["seed"] == before.info["seed"]
    assert "images sent" in done.stderr
    again = pgn(*words)
    assert "0 images sent" in again.stderr
    assert again.stdout == done.stdout


def test_an_import_is_mapped_and_then_compared_like_any_other(shared, tmp_path):
    """Random weights: what is tested is the way, not what it gains."""
    torch.manual_seed(0)
    write_digits(tmp_path / "few", pictures=80)
    weights, data = tmp_path / "weights.safetensors", dealt_out(tmp_path / "few", tmp_path / "digits")
    save_file(timm.create_model("vit_small_patch32_224", pretrained=False).state_dict(), weights)
    model = ["--backbone", "vit_small_patch32_224", "--weights", weights]
    quick = [*model, "--inversion", "pseudo_inverse"]  # bounded takes minutes
    ours, mapped = tmp_path / "ours.safetensors", tmp_path / "mapped.safetensors"
    assert pgn("import", shared / "golden" / "pgn_dino_sun397.pt", *quick, "--out", ours).returncode == 0
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
    stages = ["published", "latent", "float", "clipped", "uint8", "http_png", "jpeg95_444", "jpeg75_420"]
    assert list(report["retention"]["agreement"]) == stages
    assert report["retention"]["http_png"] == pytest.approx(report["controls"]["own_prompt"])
    assert report["retention"]["http_png"] == pytest.approx(report["retention"]["uint8"], abs=0.1)
    rows = {row["name"]: row["accuracy"] for row in report["rows"]}
    assert rows["local head"] > 0.2  # chance is 0.1; fitted on the published trunk's features
    assert np.isfinite(list(rows.values())).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--mapping", "nearest"], "identity, flm"), (["--out", "missing/x.safetensors"], "a folder that exists")],
)
def test_wrong_words_are_told_before_anything_is_sent(digits, checkpoint, tmp_path, words, message):
    out = [] if "--out" in words else ["--out", tmp_path / "x.safetensors"]
    done = pgn("map", digits, "--url", "http://127.0.0.1:9", "--ckpt", checkpoint, *out, *words)
    assert done.returncode == 2
    assert message in done.stderr
