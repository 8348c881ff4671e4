"""What is computed in the latent space is what a real server answers, under every profile, because
of the margin.
"""

import dataclasses
import tarfile

import numpy as np
import pytest
import torch

from pgn_client import AdaptedClient, ServerProfile
from pgn_client.evaluation.demo import local_server
from pgn_client.evaluation.fidelity import latent_log_probs
from pgn_client.imaging.codecs import open_image
from pgn_client.imaging.compositor import compose, fit_to_canvas
from pgn_client.mapping.label_mapping import log_scores
from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe

pytestmark = pytest.mark.slow


def agreement(adapter, surrogate, url, paths):
    """Label over HTTP against that of latent float32, and what answers without the margin differ
    by.

    Returns:
        Share of images with the same label, among those whose two likeliest classes are further
        apart than rounding to uint8 can bring them; share of these; greatest difference without the
        margin.
    """
    fitted = np.stack([fit_to_canvas(open_image(path), adapter.canvas) for path in paths])
    patches, _ = adapter.render(fitted)
    with AdaptedClient(url, adapter, fusion=None) as client:
        over_http = adapter.mapping(client.answers(paths))
    latent = latent_log_probs(adapter, surrogate, fitted)
    second, first = np.sort(latent, axis=1)[:, -2:].T
    sure = first - second > 0.1
    bare = [
        compose(p, q, adapter.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)
    ]
    with AdaptedClient(url, None) as client:
        without_margin = adapter.mapping.log_probs(
            log_scores(client.answers(bare), adapter.mapping.source)
        )
    same = latent.argmax(axis=1) == over_http.argmax(axis=1)
    return same[sure].mean(), sure.mean(), np.abs(without_margin - over_http).max()


@pytest.mark.parametrize(
    "profile", ["direct", "resize_crop:72:64", "shortest_edge:64", "letterbox:64"]
)
def test_the_bundled_vit_answers_what_was_trained_under_every_profile(checkpoint, digits, profile):
    from pgn_client import PromptAdapter

    adapter = PromptAdapter.load(checkpoint).with_profile(ServerProfile.parse(profile))
    paths = sorted(digits.rglob("*.png"))[::8]
    with local_server(["--profile", profile]) as url:
        same, sure, moved = agreement(adapter, backbone.load("bundled"), url, paths)
    assert same == 1.0
    assert sure > 0.9
    assert (moved > 0.1) == (profile == "resize_crop:72:64")  # only there is a margin to miss


@pytest.fixture(scope="module")
def real(shared, tmp_path_factory):
    """The real ViT-Tiny, its server's arguments, and a PGN trained for a moment on real aerial
    images.
    """
    folder = tmp_path_factory.mktemp("real")
    with tarfile.open(shared / "data" / "rsscn7.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    weights, labels = (
        shared / "weights" / "vit_tiny_patch16_224.safetensors",
        shared / "weights" / "imagenet_labels.json",
    )
    surrogate = backbone.load("vit_tiny_patch16_224", weights=weights, labels=labels)
    task = load_task(folder / "rsscn7", shots=4)
    task = dataclasses.replace(task, val=task.val.take(range(0, len(task.val), 15)))
    torch.set_num_threads(1)
    numbers = recipe(epochs=1, trunk_epochs=3, batch_size=14)
    adapter = fit(task, surrogate, profile=ServerProfile("direct"), recipe=numbers)
    arguments = [
        "--model",
        "vit_tiny_patch16_224",
        "--weights",
        str(weights),
        "--labels",
        str(labels),
    ]
    return surrogate, adapter, arguments, task.test.paths[::18]


@pytest.mark.shared
@pytest.mark.parametrize("profile", ["direct", "resize_crop:248:224"])
def test_the_real_vit_tiny_answers_what_was_trained_under_both_profiles(real, profile):
    surrogate, adapter, arguments, paths = real
    with local_server([*arguments, "--profile", profile]) as url:
        same, sure, moved = agreement(
            adapter.with_profile(ServerProfile.parse(profile)), surrogate, url, paths
        )
    assert same == 1.0
    assert sure > 0.9
    assert (moved > 0.1) == (profile != "direct")
