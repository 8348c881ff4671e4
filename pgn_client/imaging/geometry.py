"""Where prompts and image go in an image that a server will resize and crop; integers only.

The *canvas* is the H x W image that reaches the patch embedding. Prompt cells are whole grid
cells of it, row-major; the user's image fills the rectangle that is left. Around the canvas,
where the server crops, lies a *margin* that the crop removes: an image that is sent at the size
the server resizes to passes the resize unchanged.

This is our own design: the published PGN appends tokens and has no image to place them in.
"""

from __future__ import annotations

from dataclasses import dataclass

from pgn_client.errors import ConfigurationError, ShapeError
from pgn_client.types import ServerProfile

Box = tuple[int, int, int, int]  # top, left, height, width


def crop_offset(resize: int, crop: int) -> int:
    """Return where a centre crop starts, in pixels: Python's ``round((r - c) / 2)``, as torchvision
    does.
    """
    return round((resize - crop) / 2)


def ring(grid: int) -> tuple[list[int], Box]:
    """The border cells; the image is inside. K = 4 (grid - 1): 52 on 14 x 14, 24 on 7 x 7."""
    border = (0, grid - 1)
    cells = [r * grid + c for r in range(grid) for c in range(grid) if r in border or c in border]
    return cells, (1, 1, grid - 2, grid - 2)


def corner(grid: int) -> tuple[list[int], Box]:
    """The last row and the last column; K = 2 grid - 1: 27 on 14 x 14, 13 on 7 x 7."""
    cells = [r * grid + c for r in range(grid) for c in range(grid) if grid - 1 in (r, c)]
    return cells, (0, 0, grid - 1, grid - 1)


def last_rows(grid: int, count: int) -> tuple[list[int], Box]:
    """The last ``count`` rows; K = count * grid."""
    return list(range((grid - count) * grid, grid * grid)), (0, 0, grid - count, grid)


def explicit(text: str, grid: int) -> tuple[list[int], Box]:
    """``C1,C2,…@TOP,LEFT,HEIGHT,WIDTH``: prompt k goes to cell Ck; cells that are in neither list
    nor box stay grey.

    Raises:
        ConfigurationError: it cannot be read, or cells and box do not fit the grid or each other.
    """
    listed, _, rectangle = text.partition("@")
    try:
        cells, box = (
            [int(c) for c in listed.split(",")],
            tuple(int(n) for n in rectangle.split(",")),
        )
        top, left, height, width = box
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
            "cells outside "
            f"that box, from 0 to {grid * grid - 1} row by row"
        )
    return cells, (top, left, height, width)


def room_for(prompts: int, grid: int) -> str:
    """Return an explicit layout for so many prompts: the largest nearly square box at the top left
    that leaves room.

    Raises:
        ConfigurationError: there is no such box.
    """
    boxes = [
        (h, w)
        for w in range(1, grid + 1)
        for h in (w - 1, w)
        if h and grid * grid - h * w >= prompts
    ]
    if not boxes:
        raise ConfigurationError(
            f"layout: got {prompts} prompts, expected fewer than {grid * grid} grid cells"
        )
    height, width = max(boxes, key=lambda box: box[0] * box[1])
    left = [c for c in range(grid * grid) if c // grid >= height or c % grid >= width]
    return f"cells:{','.join(map(str, left[-prompts:]))}@0,0,{height},{width}"


def place(layout: str, grid: int) -> tuple[list[int], Box]:
    """Return the prompt cells of a layout and the image's box, both in grid cells.

    ``full`` has no cells: the image fills the canvas, for methods that paint on the image
    itself.

    Raises:
        ConfigurationError: an unknown layout, or one that leaves no room for the image.
    """
    name, _, number = layout.partition(":")
    if name == "cells":
        return explicit(number, grid)
    if layout == "full":
        return [], (0, 0, grid, grid)
    if layout in ("ring", "corner"):
        cells, box = ring(grid) if layout == "ring" else corner(grid)
    elif name == "rows" and number.isdecimal() and int(number) > 0:
        cells, box = last_rows(grid, int(number))
    else:
        raise ConfigurationError(
            f"layout: got {layout!r}, expected ring, corner, full, rows:N with N at least 1, or "
            "cells:…@…"
        )
    if min(box[2:]) < 1:
        raise ConfigurationError(
            f"layout {layout!r} leaves no room for the image on a {grid} x {grid} grid; choose a "
            "smaller one"
        )
    return cells, box


@dataclass(frozen=True, slots=True)
class Canvas:
    """The geometry of what is sent; made by :meth:`build`.

    Attributes:
        size: H = W of the image that the model sees, in pixels.
        patch: P, in pixels.
        cells: K grid cells that hold prompt patches, row-major indices; prompt k sits in
            ``cells[k]``.
        box: top, left, height, width of the user's image on the canvas, in pixels.
        sent: side of the image that is sent, in pixels.
        offset: where the canvas starts in it, in pixels, down and right.
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
        """Place prompts and image for a model with input ``size`` and patch side ``patch`` behind
        ``profile``.

        Raises:
            ShapeError: ``size`` is no multiple of ``patch``.
            ConfigurationError: the layout is unknown or too large, or the profile ends at another
                size.
        """
        if size % patch:
            raise ShapeError(
                f"canvas: got input size {size}, expected a multiple of the patch side {patch}"
            )
        cells, box = place(layout, size // patch)
        sent, offset = sent_size(size, profile or ServerProfile("direct"))
        top, left, height, width = (n * patch for n in box)
        return cls(size, patch, tuple(cells), (top, left, height, width), sent, offset)

    @property
    def prompts(self) -> int:
        """K, the number of prompt patches."""
        return len(self.cells)

    def corners(self) -> list[tuple[int, int]]:
        """Top and left of each prompt cell on the canvas, in pixels, in the order of ``cells``."""
        grid = self.size // self.patch
        return [(cell // grid * self.patch, cell % grid * self.patch) for cell in self.cells]


def sent_size(size: int, profile: ServerProfile) -> tuple[int, int]:
    """Return the side to send, and where the canvas starts in it, so that the server's model sees
    exactly the canvas.

    A resize to the size an image already has is the identity, for every profile; what a centre
    crop removes is margin.

    Raises:
        ConfigurationError: the profile ends at another size than the model's input.
    """
    seen = profile.crop if profile.kind == "resize_crop" else profile.resize or size
    if seen != size:
        raise ConfigurationError(
            f"server profile {profile}: ends at {seen} px, but the model's input is {size} px; "
            "give the profile that the server really applies"
        )
    if profile.kind != "resize_crop":
        return size, 0
    resize = profile.resize or size
    return resize, crop_offset(resize, size)
