import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.imaging.geometry import Canvas, crop_offset, place, room_for, sent_size
from pgn_client.types import ServerProfile

LAYOUTS = st.sampled_from(["ring", "corner", "full", "rows:1", "rows:2", "rows:3"])
SIDES = st.integers(1, 4096)
PROFILES = st.one_of(
    st.just(ServerProfile("direct")),
    st.builds(ServerProfile, st.sampled_from(["shortest_edge", "letterbox"]), SIDES),
    st.tuples(SIDES, SIDES).map(lambda s: ServerProfile("resize_crop", max(s), min(s))),
)


class TestLayouts:
    @pytest.mark.parametrize(
        ("layout", "grid", "prompts"),
        [
            ("ring", 14, 52),
            ("ring", 7, 24),
            ("corner", 14, 27),
            ("corner", 7, 13),
            ("rows:1", 14, 14),
            ("rows:3", 14, 42),
            ("rows:2", 7, 14),
            ("full", 14, 0),
        ],
    )
    def test_number_of_prompts_is_the_documented_one(self, layout, grid, prompts):
        assert Canvas.build(grid * 16, 16, layout).prompts == prompts

    def test_ring_is_the_border_in_reading_order(self):
        assert place("ring", 4)[0] == [0, 1, 2, 3, 4, 7, 8, 11, 12, 13, 14, 15]

    def test_corner_is_the_last_row_and_column(self):
        assert place("corner", 3)[0] == [2, 5, 6, 7, 8]

    def test_rows_are_the_last_ones(self):
        assert place("rows:2", 3)[0] == [3, 4, 5, 6, 7, 8]

    def test_full_is_the_picture_alone(self):
        assert place("full", 3) == ([], (0, 0, 3, 3))

    def test_full_has_room_on_any_grid(self):
        assert place("full", 1) == ([], (0, 0, 1, 1))

    @given(layout=LAYOUTS, grid=st.integers(4, 40))
    def test_cells_and_box_cover_the_grid_without_overlap(self, layout, grid):
        cells, (top, left, height, width) = place(layout, grid)
        covered = np.zeros((grid, grid), int)
        covered[top : top + height, left : left + width] += 1
        np.add.at(covered.reshape(-1), np.array(cells, int), 1)
        assert (covered == 1).all()
        assert cells == sorted(cells)

    @pytest.mark.parametrize(
        "layout",
        ["", "Ring", "rows", "rows:", "rows:0", "rows:-1", "rows:1.5", "ring:2", "full:1", "frame"],
    )
    def test_an_unknown_layout_is_told_the_known_ones(self, layout):
        with pytest.raises(ConfigurationError, match=r"ring, corner, full, rows:N"):
            place(layout, 14)

    @pytest.mark.parametrize(
        ("layout", "grid"), [("ring", 2), ("ring", 1), ("corner", 1), ("rows:7", 7), ("rows:9", 7)]
    )
    def test_a_layout_without_room_for_the_picture_is_refused(self, layout, grid):
        with pytest.raises(ConfigurationError, match=re.escape(repr(layout)) + ".*no room"):
            place(layout, grid)


class TestCanvas:
    def test_box_and_corners_are_in_pixels(self):
        canvas = Canvas.build(224, 16, "corner")
        assert canvas.box == (0, 0, 208, 208)
        assert canvas.corners()[:2] == [(0, 208), (16, 208)]
        assert canvas.corners()[-1] == (208, 208)

    def test_without_a_profile_the_canvas_itself_is_sent(self):
        canvas = Canvas.build(224, 32)
        assert (canvas.sent, canvas.offset) == (224, 0)

    def test_a_crop_makes_the_sent_picture_as_large_as_the_resize(self):
        canvas = Canvas.build(224, 16, profile=ServerProfile("resize_crop", 248, 224))
        assert (canvas.sent, canvas.offset) == (248, 12)

    @pytest.mark.parametrize("kind", ["shortest_edge", "letterbox"])
    def test_profiles_without_a_crop_need_no_margin(self, kind):
        assert sent_size(224, ServerProfile(kind, 224)) == (224, 0)

    def test_a_size_that_is_no_multiple_of_the_patch_is_refused(self):
        with pytest.raises(ShapeError, match=r"225.*16"):
            Canvas.build(225, 16)

    @pytest.mark.parametrize(
        "profile", ["resize_crop:256:240", "shortest_edge:256", "letterbox:196"]
    )
    def test_a_profile_that_ends_at_another_size_is_refused_by_name(self, profile):
        with pytest.raises(ConfigurationError, match=rf"{profile}.*224 px"):
            Canvas.build(224, 16, profile=ServerProfile.parse(profile))


class TestCropOffset:
    @pytest.mark.parametrize(
        ("resize", "crop"),
        [
            (248, 224),
            (256, 224),
            (257, 224),
            (255, 224),
            (235, 224),
            (225, 224),
            (224, 224),
            (233, 224),
            (38, 31),
            (8, 1),
        ],
    )
    def test_is_where_torchvision_crops(self, resize, crop):
        from torchvision.transforms import CenterCrop

        rows = Image.fromarray(
            np.repeat(np.arange(resize, dtype=np.int32)[:, None], resize, axis=1)
        )
        assert np.asarray(CenterCrop(crop)(rows))[0, 0] == crop_offset(resize, crop)

    @pytest.mark.parametrize(("difference", "offset"), [(1, 0), (3, 2), (5, 2), (7, 4)])
    def test_halves_go_to_the_even_pixel(self, difference, offset):
        assert crop_offset(100 + difference, 100) == offset


class TestProfile:
    @given(PROFILES)
    def test_text_round_trips(self, profile):
        assert ServerProfile.parse(str(profile)) == profile

    @pytest.mark.parametrize(
        "text", ["direct", "resize_crop:256:224", "shortest_edge:224", "letterbox:224"]
    )
    def test_every_documented_form_is_read(self, text):
        assert str(ServerProfile.parse(text)) == text

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "crop",
            "direct:224",
            "resize_crop",
            "resize_crop:256",
            "resize_crop:256:0",
            "letterbox:-1",
            "letterbox:x",
            "shortest_edge:224:224",
            "resize_crop:256:224:1",
            "DIRECT",
        ],
    )
    def test_an_unknown_form_is_told_the_known_ones(self, text):
        with pytest.raises(
            ConfigurationError,
            match=r"direct, resize_crop:R:C, shortest_edge:R or "
            r"letterbox:R",
        ):
            ServerProfile.parse(text)

    def test_a_crop_larger_than_the_resize_is_refused(self):
        with pytest.raises(ConfigurationError, match="no larger than the resize"):
            ServerProfile.parse("resize_crop:224:256")


class TestExplicitCells:
    def test_prompts_go_where_they_are_told_in_that_order(self):
        canvas = Canvas.build(32, 8, "cells:15,3,12@0,0,2,2")
        assert canvas.cells == (15, 3, 12)
        assert canvas.box == (0, 0, 16, 16)
        assert canvas.corners() == [(24, 24), (0, 24), (24, 0)]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "15",
            "15@",
            "@0,0,2,2",
            "a@0,0,2,2",
            "15@0,0,2",
            "15@0,0,2,2,2",
            "16@0,0,2,2",
            "-1@0,0,2,2",
            "15,15@0,0,2,2",
            "5@0,0,2,2",
            "0@0,0,1000000000,1000000000",
            "15@3,0,2,2",
            "15@0,0,0,2",
            "15@-1,0,2,2",
        ],
    )
    def test_what_does_not_fit_is_refused(self, text):
        with pytest.raises(ConfigurationError, match="cells:"):
            Canvas.build(32, 8, f"cells:{text}")

    @given(grid=st.integers(2, 16), share=st.floats(0, 1))
    def test_room_is_found_for_any_number_of_prompts(self, grid, share):
        prompts = 1 + int(share * (grid * grid - 2))
        canvas = Canvas.build(grid * 8, 8, room_for(prompts, grid))
        assert canvas.prompts == prompts
        height, width = canvas.box[2] // 8, canvas.box[3] // 8
        assert abs(height - width) <= 1
        # none larger leaves that room
        assert grid * grid - min(height + 1, grid) * min(width + 1, grid) < prompts
