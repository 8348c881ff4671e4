"""A model without plain patches, trained for and served over HTTP: all goes through the rendered
image.
"""

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from pgn_client import AdaptedClient, PromptAdapter
from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.fidelity import follow
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import fit_to_canvas
from pgn_client.surrogate import backbone
from tests.e2e.conftest import dealt_out, pgn

pytestmark = pytest.mark.slow

MODEL = "test_convnext"  # timm's smallest: random weights, 160 pixels


def test_a_convnext_endpoint_answers_what_was_trained(digits, tmp_path):
    torch.manual_seed(0)
    data, weights = dealt_out(digits, tmp_path / "digits"), tmp_path / "weights.safetensors"
    save_file(timm.create_model(MODEL, pretrained=False).state_dict(), weights)
    checkpoint = tmp_path / "pgn.safetensors"
    quick = ["--shots", "3", "--epochs", "1", "--library", "smooth"]
    done = pgn(
        "train", data, "--backbone", MODEL, "--weights", weights, *quick, "--out", checkpoint
    )
    assert done.returncode == 0, done.stderr
    adapter = PromptAdapter.load(checkpoint)
    paths = sorted((data / "test").rglob("*.png"))[:40]
    assert {image.size for image in adapter([open_image(path) for path in paths[:3]])} == {
        (168, 168)
    }
    fitted = np.stack([fit_to_canvas(open_image(path), adapter.canvas) for path in paths])
    expected = follow(adapter, backbone.load(MODEL, weights=weights), fitted)
    with (
        local_server(["--model", MODEL, "--weights", str(weights)]) as url,
        AdaptedClient(url, adapter) as client,
    ):
        found = adapter.mapping(client.answers(paths))
    np.testing.assert_allclose(found, expected["uint8"], atol=1e-3)
    # rounding to whole grey values, in a random model
    np.testing.assert_allclose(found, expected["latent"], atol=0.2)
    assert np.ptp(found, axis=0).max() > 1
