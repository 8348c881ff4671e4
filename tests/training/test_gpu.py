"""Training on a GPU: the same function in bfloat16, exact where it is measured."""

import pytest
import torch

from pgn_client.evaluation.demo import write_digits
from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.mark.parametrize("library", ["pixel", "latent"])
def test_a_prompt_trained_on_the_gpu_serves_from_the_cpu(tmp_path, library):
    write_digits(tmp_path, images=300)
    surrogate = backbone.load("bundled", device="cuda")
    adapter = fit(
        load_task(tmp_path), surrogate, library=library, recipe=recipe(epochs=1, trunk_epochs=2)
    )
    metrics = adapter.info["metrics"]
    assert metrics["uint8"] > 0.3
    if library == "pixel":
        assert abs(metrics["uint8"] - metrics["latent"]) < 0.2
    assert adapter.prepare([])[:] == []
