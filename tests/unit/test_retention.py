import numpy as np
import pytest
import torch

from pgn_client.compositor import compose
from pgn_client.report import GAP, TILE, sheet
from pgn_client.retention import _Asked, follow, latent_log_probs, retain, steps
from pgn_client.training.surrogate import Surrogate

N = 40
CARD = {"recipe": {"top_k": None, "decimals": None}}


@pytest.fixture
def fitted():
    return np.random.default_rng(3).integers(0, 256, (N, 16, 16, 3), dtype=np.uint8)


def retained(adapter, backbone, fitted):
    patches, _ = adapter.render(fitted)
    surrogate = Surrogate(backbone, adapter.canvas)
    seen = np.stack([np.asarray(compose(p, q, adapter.canvas, margin=False)) for p, q in zip(fitted, patches)])  # noqa: B905
    with torch.inference_mode():
        answers = surrogate.pixel_scores(torch.from_numpy(seen).permute(0, 3, 1, 2)).double().numpy()
    over_http = adapter.mapping.log_probs(answers)
    return retain(follow(adapter, backbone, fitted, over_http=over_http), over_http.argmax(axis=1))


class TestRetain:
    @pytest.mark.parametrize("library", ["pixel", "smooth", "luma"])
    def test_pixels_lose_nothing_before_they_are_re_encoded(self, make_adapter, make_backbone, fitted, library):
        found = retained(make_adapter(library=library, card=CARD), make_backbone(), fitted)["agreement"]
        assert found["latent"] == found["float"] == found["clipped"] == 1
        assert found["uint8"] == found["http_png"] >= 0.95

    def test_of_a_pseudo_inverse_it_is_the_clipping_that_loses(self, make_adapter, make_backbone, fitted):
        adapter = make_adapter(library="latent", card=CARD | {"inversion": "pseudo_inverse"})
        adapter._tensors["library.rows"] = 8000 * adapter._tensors["library.rows"]
        latent = latent_log_probs(adapter, make_backbone(), fitted)
        asked = _Asked(adapter, make_backbone())
        bare, clipped = (asked.painted(fitted, fitted, clipped=c) for c in (False, True))
        np.testing.assert_allclose(bare, latent, atol=1e-2)
        assert abs(clipped - latent).max() > 0.1
        assert retained(adapter, make_backbone(), fitted)["agreement"]["float"] == 1

    def test_stages_are_told_in_the_order_of_the_way(self, make_adapter, make_backbone, fitted):
        found = retained(make_adapter(card=CARD), make_backbone(), fitted)
        way = ["latent", "float", "clipped", "uint8", "http_png", "jpeg95_444", "jpeg75_420"]
        assert list(found) == [*way, "agreement"]
        assert list(found["agreement"]) == way
        assert found["http_png"] == 1


class TestSteps:
    def test_what_is_seen_is_the_canvas_and_jpeg_errs(self, make_adapter, pictures):
        adapter = make_adapter()
        sent = adapter(pictures)
        found = steps(adapter, sent)
        assert [image.size for image in found["sent"]] == [(37, 37)] * 5
        assert {image.size for step, images in found.items() if step != "sent" for image in images} == {(32, 32)}
        bare = [np.asarray(image)[2:34, 2:34] for image in sent]
        assert all((np.asarray(seen) == canvas).all() for seen, canvas in zip(found["seen"], bare, strict=True))
        lossy, plain = np.asarray(found["JPEG 75 4:2:0"][0]).astype(int), np.asarray(found["seen"][0]).astype(int)
        assert (np.asarray(found["its error x 4"][0]) == np.minimum(4 * abs(plain - lossy), 255)).all()
        assert abs(plain - lossy).max() > 10

    def test_a_sheet_has_a_column_a_step(self, make_adapter, pictures):
        adapter = make_adapter()
        columns = [(images, step) for step, images in steps(adapter, adapter(pictures)).items()]
        assert sheet(columns).size[0] == GAP + 5 * (TILE + GAP)
        assert sheet([]).size[0] == GAP
