import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.compositor import compose, seen_by_server
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting import methods
from pgn_client.prompting.generator import generator_input
from pgn_client.prompting.methods import REGISTRY, RGBMethod, Setting
from pgn_client.surrogate.degradation import SUBSAMPLINGS, Wire, jpeg
from pgn_client.surrogate.surrogate import Surrogate
from pgn_client.types import ServerProfile

CANVAS = Canvas.build(32, 8, "ring")
PROFILE = ServerProfile("resize_crop", 37, 32)
RGB = [name for name, method in REGISTRY.items() if issubclass(method, RGBMethod)]


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(
        torch.uint8
    )


class TestParse:
    @given(
        st.builds(
            Wire,
            quality=st.one_of(st.none(), st.integers(1, 95)),
            subsampling=st.just("420"),
            shift=st.sampled_from([0.0, 0.5, 4.0, 12.25]),
            scale=st.sampled_from([0.0, 0.05, 0.5]),
        )
    )
    def test_reads_what_it_writes(self, wire):
        assert Wire.parse(str(wire)) == wire

    def test_of_several_parts(self):
        assert Wire.parse("jpeg:75:444+shift:4+scale:0.05") == Wire(75, "444", 4.0, 0.05)
        assert Wire.parse("jpeg:80") == Wire(80, "420")
        assert Wire.parse("jpeg:100 + shift:4") == Wire(100, shift=4.0)
        assert Wire.parse("uint8") == Wire()

    def test_a_wire_without_sense_cannot_be_made(self):
        with pytest.raises(ConfigurationError, match="quality from 1 to 100"):
            Wire(quality=0)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "png",
            "uint8+uint8",
            "uint8+jpeg:75+uint8",
            "jpeg",
            "jpeg:",
            "jpeg:x",
            "jpeg:0",
            "jpeg:101",
            "jpeg:75:411",
            "shift",
            "shift:-1",
            "shift:nan",
            "shift:inf",
            "scale:1",
            "scale:-0.1",
            "scale:x",
            "uint8:3",
            "jpeg:75+",
            "jpeg:75+jpeg:50",
            "shift:1+shift:2",
        ],
    )
    def test_what_makes_no_sense_is_refused(self, text):
        with pytest.raises(ConfigurationError, match="wire: got"):
            Wire.parse(text)


class TestWay:
    def test_grey_values_are_rounded_and_gradients_pass(self):
        x = (255 * torch.rand(2, 3, 32, 32)).requires_grad_()
        arrived = Wire()(x, CANVAS)
        assert torch.equal(arrived.detach(), x.detach().round())
        arrived.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))

    def test_whole_grey_values_arrive_as_they_are(self):
        x = pixels(2, 3, 32, 32)
        assert torch.equal(Wire()(x, CANVAS), x.float())

    @pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
    @pytest.mark.parametrize("profile", [ServerProfile("direct"), PROFILE])
    def test_jpeg_is_done_to_the_whole_sent_picture_and_then_cropped(self, subsampling, profile):
        """As the real way: composed with margin, encoded by Pillow, then resize and crop."""
        canvas = Canvas.build(32, 8, "ring", profile)
        picture, patches = (
            np.ascontiguousarray(pixels(*s).numpy()) for s in ((16, 16, 3), (12, 8, 8, 3))
        )
        sent = compose(picture, patches, canvas)
        expected = seen_by_server(jpeg(sent, 60, SUBSAMPLINGS[subsampling]), profile, 32)
        bare = np.asarray(compose(picture, patches, canvas, margin=False))
        x = torch.from_numpy(bare.copy()).permute(2, 0, 1)[None]
        found = Wire(60, subsampling)(x, canvas)[0].permute(1, 2, 0)
        assert (found.numpy() == expected).all()

    def test_gradients_pass_through_jpeg(self):
        x = (255 * torch.rand(2, 3, 32, 32)).requires_grad_()
        Wire(50)(x, CANVAS).sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))

    def test_what_is_random_moves_a_picture_within_its_limits(self):
        x = torch.zeros(200, 3, 32, 32)
        x[:, :, 12:20, 12:20] = 255  # a square in the middle
        torch.manual_seed(0)
        arrived = Wire(shift=4, scale=0.2)(x, CANVAS)[:, 0]
        at = torch.arange(32.0) + 0.5
        mass = arrived.sum(dim=(1, 2))
        for centre in ((arrived.sum(2) * at).sum(1) / mass, (arrived.sum(1) * at).sum(1) / mass):
            assert (centre - 16).abs().max() <= 4 * 1.25 + 0.2
            assert (centre - 16).abs().max() > 2
        side = (mass / 255).sqrt()
        assert 8 / 1.2 - 0.5 < side.min() < 7.5 < 8.5 < side.max() < 8 / 0.8 + 0.5

    def test_jpeg_comes_before_the_move_as_on_the_way(self):
        """What moves is the decoded image: shifted by whole pixels it is that image's, not a
        new JPEG's.
        """
        x = pixels(1, 3, 32, 32)
        torch.manual_seed(1)
        moved = Wire(30, "420", shift=6)(x, CANVAS)
        torch.manual_seed(1)
        assert torch.equal(moved, Wire(shift=6)(Wire(30, "420")(x, CANVAS), CANVAS))

    def test_where_it_settles_nothing_is_random(self):
        wire, x = Wire(75, "420", shift=4, scale=0.2), pixels(2, 3, 32, 32)
        assert str(wire.settled) == "jpeg:75:420"
        assert torch.equal(*(wire.settled(x, CANVAS) for _ in range(2)))
        assert not torch.equal(*(wire(x, CANVAS) for _ in range(2)))


class TestThroughASurrogate:
    @pytest.mark.parametrize("name", RGB)
    @pytest.mark.parametrize("wire", [Wire(), Wire(70)])
    def test_training_computes_what_is_served(self, name, wire, make_backbone):
        """In the loop: painted, rounded, re-encoded. Served: rendered as uint8, composed,
        re-encoded.
        """
        torch.manual_seed(3)
        layout = methods.get(name).layout
        canvas = Canvas.build(32, 8, layout, PROFILE)
        model = methods.get(name).create(Setting(canvas, 3, 24, library_size=6)).eval()
        with torch.no_grad():
            for part, parameter in model.named_parameters():
                if not part.startswith(("generator.trunk", "mask.")):
                    parameter.add_(0.3 * torch.randn_like(parameter))
        pictures = pixels(3, 3, *canvas.box[2:])
        surrogate = Surrogate(make_backbone(), canvas, wire=wire)
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            loop = model.scores(code, pictures, surrogate)
        patches, _ = model.render(pictures, resolution=16)
        sent = [
            compose(p, q, canvas)
            for p, q in zip(pictures.permute(0, 2, 3, 1).numpy(), patches.numpy(), strict=True)
        ]
        if wire.quality:
            sent = [jpeg(image, wire.quality, 2) for image in sent]
        seen = np.stack([seen_by_server(image, PROFILE, 32) for image in sent])
        served = Surrogate(surrogate.backbone, canvas).pixel_scores(
            torch.from_numpy(seen).permute(0, 3, 1, 2)
        )
        torch.testing.assert_close(loop, served, rtol=1e-4, atol=1e-4)

    def test_a_neutral_canvas_takes_the_same_way(self, make_backbone):
        surrogate = Surrogate(make_backbone(), CANVAS, wire=Wire(20))
        pictures = pixels(2, 3, 16, 16)
        sent = [compose(p, None, CANVAS) for p in pictures.permute(0, 2, 3, 1).numpy()]
        seen = np.stack([np.asarray(jpeg(image, 20, 2)) for image in sent])
        expected = Surrogate(surrogate.backbone, CANVAS).pixel_scores(
            torch.from_numpy(seen).permute(0, 3, 1, 2)
        )
        torch.testing.assert_close(surrogate.scores(pictures), expected)

    @pytest.mark.parametrize("name", ["pgn", "input_independent", "blend"])
    def test_without_rounding_both_paths_are_one_function(self, name, make_backbone):
        torch.manual_seed(3)
        canvas = Canvas.build(32, 8, methods.get(name).layout)
        model = methods.get(name).create(Setting(canvas, 3, 24, library_size=6)).eval()
        model.start(peaked=True)
        pictures, surrogate = pixels(3, 3, *canvas.box[2:]), Surrogate(make_backbone(), canvas)
        with torch.no_grad():
            code, _ = model(generator_input(pictures, 16))
            latent = model.scores(code, pictures, surrogate)
            rgb = RGBMethod.scores(model, code, pictures, surrogate)
        torch.testing.assert_close(latent, rgb, rtol=1e-4, atol=1e-4)


def test_a_sent_picture_is_rgb_whatever_the_subsampling():
    image = Image.fromarray(pixels(16, 16, 3).numpy())
    assert all(jpeg(image, 75, s).mode == "RGB" for s in SUBSAMPLINGS.values())
