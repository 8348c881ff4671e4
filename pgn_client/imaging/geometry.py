"""Position of the prompts and the user's image in the image that a server resizes and crops.

The *canvas* is the H x W image that reaches the model's patch embedding. Prompts fill whole cells
of the canvas's patch grid; cells are numbered row by row. The user's image fills a rectangle of the
other cells. If the server crops, a *margin* surrounds the canvas, and the crop removes exactly the
margin: the sent image already has the size that the server resizes to, so the resize changes
nothing.

This is our own design: the published PGN appends tokens and does not place them in an image.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.types import ServerProfile

Box = tuple[int, int, int, int]  # top, left, height, width


def crop_offset(resize: int, crop: int) -> int:
    """Return the distance from the image's edge to a center crop, in pixels, as in torchvision."""
    return round((resize - crop) / 2)


def ring(grid: int) -> tuple[list[int], Box]:
    """Return the prompt cells of the layout ``ring``, the border of the grid, and the image's box.

    There are 4 (grid - 1) prompt cells: 52 on a 14 x 14 grid, 24 on 7 x 7. The box is (top, left,
    height, width) in grid cells.
    """
    border = (0, grid - 1)
    cells = [cell for cell in range(grid**2) if cell // grid in border or cell % grid in border]
    return cells, (1, 1, grid - 2, grid - 2)


def corner(grid: int) -> tuple[list[int], Box]:
    """Return the prompt cells of the layout ``corner`` and the image's box, in grid cells.

    The prompt cells are the last row and the last column of the grid, 2 grid - 1 cells: 27 on a
    14 x 14 grid, 13 on 7 x 7. The box is (top, left, height, width).
    """
    last = grid - 1
    cells = [cell for cell in range(grid**2) if cell // grid == last or cell % grid == last]
    return cells, (0, 0, grid - 1, grid - 1)


MOST_CELLS = 256
"""Largest number of patches along one side of the canvas, the image that the model sees."""


def last_rows(grid: int, count: int) -> tuple[list[int], Box]:
    """Return the prompt cells in the last ``count`` rows of the grid, and the image's box above.

    The box is (top, left, height, width) in grid cells.
    """
    return list(range((grid - count) * grid, grid * grid)), (0, 0, grid - count, grid)


def explicit(text: str, grid: int) -> tuple[list[int], Box]:
    """Return the prompt cells and the image's box that an explicit layout lists, in grid cells.

    The layout is ``C1,C2,…@TOP,LEFT,HEIGHT,WIDTH``. Cells are numbered row by row from 0; prompt k
    goes to cell Ck.

    Cells that are neither in the list nor in the box stay gray.

    Raises:
        ConfigurationError: The text has another form, or cells and box do not fit the grid or
            overlap.
    """
    listed, _, rectangle = text.partition("@")
    try:
        cells = [int(c) for c in listed.split(",")]
        top, left, height, width = (int(n) for n in rectangle.split(","))
    except ValueError as error:
        raise ConfigurationError(
            f"layout: got cells:{text!r}, expected cells:C1,C2,…@TOP,LEFT,HEIGHT,WIDTH in "
            "grid cells"
        ) from error

    fits = (
        min(top, left) >= 0
        and min(height, width) >= 1
        and top + height <= grid
        and left + width <= grid
    )
    free = {
        cell
        for cell in range(grid * grid)
        if not (top <= cell // grid < top + height and left <= cell % grid < left + width)
    }
    if not fits or len(set(cells)) < len(cells) or not set(cells) <= free:
        raise ConfigurationError(
            f"layout: got cells:{text}, expected a box on a {grid} x {grid} grid, and different "
            f"cells outside that box, from 0 to {grid * grid - 1} row by row"
        )
    return cells, (top, left, height, width)


def room_for(prompts: int, grid: int) -> str:
    """Return a layout text with room for a number of prompts: ``cells:C1,…@0,0,HEIGHT,WIDTH``.

    The image's box is the largest nearly square one in the top left corner that leaves enough
    cells. The prompts use the last cells outside it.

    Raises:
        ConfigurationError: The prompts leave no cell for the image.
    """
    boxes: list[tuple[int, int]] = []
    for width in range(1, grid + 1):
        for height in (width - 1, width):
            # A height of 0 leaves no image.
            if height and grid * grid - height * width >= prompts:
                boxes.append((height, width))
    if not boxes:
        raise ConfigurationError(
            f"layout: got {prompts} prompts, expected fewer than {grid * grid} grid cells"
        )

    height, width = max(boxes, key=lambda box: box[0] * box[1])
    free = [cell for cell in range(grid * grid) if cell // grid >= height or cell % grid >= width]
    return f"cells:{','.join(map(str, free[-prompts:]))}@0,0,{height},{width}"


def place(layout: str, grid: int) -> tuple[list[int], Box]:
    """Return the prompt cells of a layout and the user's image's box, both in grid cells.

    The layout ``full`` has no prompt cells: the image fills the grid, for methods that paint on the
    image itself.

    Raises:
        ConfigurationError: The layout is unknown, or leaves no room for the image.
    """
    name, _, number = layout.partition(":")
    if name == "cells":
        return explicit(number, grid)
    if layout == "full":
        return [], (0, 0, grid, grid)

    if layout in ("ring", "corner"):
        cells, box = ring(grid) if layout == "ring" else corner(grid)
    # Python reads no number of thousands of digits, and no grid has thousands of rows.
    elif name == "rows" and number.isdecimal() and len(number) <= 4 and int(number) > 0:
        # As many rows as the grid has leave no room, and more are no more.
        cells, box = last_rows(grid, min(int(number), grid))
    else:
        raise ConfigurationError(
            f"layout: got {layout!r}, expected ring, corner, full, rows:N with N at least 1, or "
            "cells as in cells:0,1,2@1,0,13,14"
        )

    if min(box[2:]) < 1:
        raise ConfigurationError(
            f"layout {layout!r} leaves no room for the image on a {grid} x {grid} grid; choose a "
            "layout with fewer prompts"
        )
    return cells, box


@dataclass(frozen=True, slots=True)
class Canvas:
    """Geometry of the image that is sent: where the prompts and the user's image are.

    The canvas is the part of the sent image that the model sees. Use :meth:`build` to make one.

    Attributes:
        size: Side of the canvas in pixels, H = W.
        patch: Side P of a patch, in pixels.
        cells: Row-major indices of the K grid cells that hold prompt patches; prompt k is in
            ``cells[k]``.
        box: Top, left, height and width of the user's image on the canvas, in pixels.
        sent: Side of the image that is sent, in pixels.
        offset: Distance from the top and left edges of the sent image to the canvas, in pixels.
    """

    size: int
    patch: int
    cells: tuple[int, ...]
    box: Box
    sent: int
    offset: int

    @classmethod
    def build(
        cls, size: int, patch: int, layout: str = "ring", profile: ServerProfile | None = None
    ) -> Canvas:
        """Return the geometry of the image that is sent to a hosted model.

        Args:
            size: Side of the model input, in pixels.
            patch: Side of a patch, in pixels.
            layout: Layout of the prompts; see :func:`place`.
            profile: Server's resize and crop; ``None`` for ``direct``.

        Raises:
            ShapeError: ``size`` is not a multiple of ``patch``.
            ConfigurationError: The layout is unknown or too large, or the profile ends at another
                size than the model input.
        """
        if size % patch:
            raise ShapeError(
                f"canvas: got input size {size}, expected a multiple of the patch side {patch}"
            )

        # Before the cells are listed: the largest ViTs have grids of a few dozen.
        if size // patch > MOST_CELLS:
            raise ConfigurationError(
                f"canvas: got {size // patch} patches to a side, expected at most {MOST_CELLS}"
            )
        cells, box = place(layout, size // patch)
        sent, offset = sent_size(size, profile or ServerProfile("direct"))
        top, left, height, width = (n * patch for n in box)
        return cls(size, patch, tuple(cells), (top, left, height, width), sent, offset)

    @property
    def prompts(self) -> int:
        """Number of prompt patches, K."""
        return len(self.cells)

    def corners(self) -> list[tuple[int, int]]:
        """Return top and left of each prompt cell on the canvas, in pixels, in ``cells`` order."""
        grid = self.size // self.patch
        return [(cell // grid * self.patch, cell % grid * self.patch) for cell in self.cells]


def sent_size(size: int, profile: ServerProfile) -> tuple[int, int]:
    """Return the side of the image to send, and the offset of the canvas in it, in pixels.

    The canvas is the image that the model should see. With these values the server's resize and
    crop leave exactly the canvas. A resize to the size that an image already has changes nothing,
    for every profile, and a center crop only removes the margin.

    Args:
        size: Side of the model input, in pixels.
        profile: Server's resize and crop.

    Raises:
        ConfigurationError: The profile ends at another size than the model input.
    """
    seen = profile.crop if profile.kind == "resize_crop" else profile.resize or size
    if seen != size:
        raise ConfigurationError(
            f"server profile {profile}: ends at {seen} px, but the model's input is {size} px; "
            "give the profile that the server really applies"
        )

    if profile.kind != "resize_crop":
        return size, 0
    # A profile with a crop always has a resize; the alternative is for the type checker only.
    resize = profile.resize or size
    return resize, crop_offset(resize, size)
