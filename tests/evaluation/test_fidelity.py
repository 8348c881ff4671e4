import numpy as np
import pytest
import torch

from pgn_client.errors import ConfigurationError
from pgn_client.evaluation import fidelity as retention
from pgn_client.evaluation.fidelity import agreement, follow, latent_log_probs, steps
from pgn_client.evaluation.report import GAP, TILE, sheet
from pgn_client.imaging.compositor import compose
from pgn_client.surrogate.surrogate import Surrogate

N = 40
CARD = {"recipe": {"top_k": None, "decimals": None}}


@pytest.fixture
def fitted():
    return np.random.default_rng(3).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


def over_http(adapter, backbone, fitted):
    """What an endpoint that hosts the backbone answers."""
    patches, _ = adapter.render(fitted)
    sent = [
        compose(p, q, adapter.canvas, margin=False) for p, q in zip(fitted, patches, strict=True)
    ]
    seen = torch.from_numpy(np.stack([np.asarray(image) for image in sent])).permute(0, 3, 1, 2)
    with torch.inference_mode():
        answers = Surrogate(backbone, adapter.canvas).pixel_scores(seen).double().numpy()
    return adapter.mapping.log_probs(answers)


class TestFollow:
    @pytest.mark.parametrize("library", ["pixel", "smooth", "luma"])
    def test_pixels_lose_nothing_before_they_are_rounded(
        self, make_adapter, make_backbone, fitted, library
    ):
        adapter, backbone = make_adapter(library=library, card=CARD), make_backbone()
        found = follow(adapter, backbone, fitted)
        np.testing.assert_allclose(found["float"], found["latent"], atol=1e-3)
        np.testing.assert_array_equal(found["float"], found["clipped"])
        np.testing.assert_allclose(found["uint8"], over_http(adapter, backbone, fitted), atol=1e-5)
        rounding, lossy = (
            abs(found[stage] - found["latent"]).max() for stage in ("uint8", "jpeg75_420")
        )
        assert 0 < rounding < 0.2
        assert lossy > 2 * rounding

    def test_of_a_pseudo_inverse_it_is_the_clipping_that_loses(
        self, make_adapter, make_backbone, fitted
    ):
        adapter = make_adapter(library="latent", card=CARD | {"inversion": "pseudo_inverse"})
        adapter._tensors["library.rows"] = 8000 * adapter._tensors["library.rows"]
        found = follow(adapter, make_backbone(), fitted)
        np.testing.assert_allclose(found["float"], found["latent"], atol=1e-2)
        assert abs(found["clipped"] - found["latent"]).max() > 0.1

    def test_stages_are_told_in_the_order_of_the_way(self, make_adapter, make_backbone, fitted):
        answers = np.zeros((N, 3))
        found = follow(make_adapter(card=CARD), make_backbone(), fitted, over_http=answers)
        assert list(found) == [
            "latent",
            "float",
            "clipped",
            "uint8",
            "http_png",
            "jpeg95_444",
            "jpeg75_420",
        ]
        assert found["http_png"] is answers

    def test_no_row_depends_on_its_batch(self, make_adapter, make_backbone, fitted, monkeypatch):
        whole = follow(make_adapter(card=CARD), make_backbone(), fitted)
        monkeypatch.setattr(retention, "BATCH", 7)
        parts = follow(make_adapter(card=CARD), make_backbone(), fitted)
        for stage, expected in whole.items():
            np.testing.assert_allclose(parts[stage], expected, atol=1e-4)

    def test_latent_is_there_by_itself(self, make_adapter, make_backbone, fitted):
        adapter, backbone = make_adapter(card=CARD), make_backbone()
        found = latent_log_probs(adapter, backbone, fitted)
        np.testing.assert_array_equal(found, follow(adapter, backbone, fitted)["latent"])

    def test_the_model_can_be_trained_on(self, make_adapter, make_backbone, fitted):
        """It comes back to the CPU, and none of its tensors stays in inference mode."""
        adapter = make_adapter(card=CARD)
        follow(adapter, make_backbone(), fitted)
        model, _ = adapter.runtime
        assert not any(tensor.is_inference() for tensor in [*model.parameters(), *model.buffers()])

    def test_a_generator_with_a_crop_of_its_own_must_be_shown_it(
        self, make_adapter, make_backbone, fitted
    ):
        eye = {
            "generator": {
                "resolution": 16,
                "profile": "resize_crop:16:16",
                "interpolation": "bilinear",
            }
        }
        for function in (follow, latent_log_probs):
            with pytest.raises(ConfigurationError, match=r"looked_at=adapter.looked_at\(images\)"):
                function(make_adapter(card=CARD | eye), make_backbone(), fitted)


class TestAgreement:
    def test_is_the_share_with_the_first_label(self):
        rows = {
            "latent": np.eye(3)[[0, 1, 2, 0]],
            "uint8": np.eye(3)[[0, 1, 2, 1]],
            "jpeg": np.eye(3)[[1, 2, 0, 0]],
        }
        assert agreement(rows) == {"latent": 1.0, "uint8": 0.75, "jpeg": 0.25}


class TestSteps:
    def test_what_is_seen_is_the_canvas_and_jpeg_errs(self, make_adapter, pictures):
        adapter = make_adapter()
        sent = adapter(pictures)
        found = steps(adapter, sent)
        assert [image.size for image in found["sent"]] == [(37, 37)] * 5
        assert {
            image.size for step, images in found.items() if step != "sent" for image in images
        } == {(32, 32)}
        bare = [np.asarray(image)[2:34, 2:34] for image in sent]
        assert all(
            (np.asarray(seen) == canvas).all()
            for seen, canvas in zip(found["seen"], bare, strict=True)
        )
        lossy, plain = (
            np.asarray(found["JPEG 75 4:2:0"][0]).astype(int),
            np.asarray(found["seen"][0]).astype(int),
        )
        assert (
            np.asarray(found["JPEG 75 - seen, x 4"][0]) == np.minimum(4 * abs(plain - lossy), 255)
        ).all()
        assert abs(plain - lossy).max() > 10

    def test_a_sheet_has_a_column_a_step(self, make_adapter, pictures):
        adapter = make_adapter()
        columns = [(images, step) for step, images in steps(adapter, adapter(pictures)).items()]
        assert sheet(columns).size[0] == GAP + 5 * (TILE + GAP)
        assert sheet([]).size[0] == GAP
