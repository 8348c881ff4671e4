"""Draw the image at the top of the README: photo, framed photo, hosted model, label.

    python benchmarks/draw_pipeline.py --out docs/pipeline.png

The script trains a PGN for a few seconds through the bundled ViT, on crops of two photographs. It
then frames one crop, sends it over HTTP to the bundled ViT on a mock server, and draws the label
that comes back. The frame and the label are real. The drawing is an illustration and not a result,
because the crop overlaps with those of the training.

The photographs come with scikit-learn (``sklearn/datasets/images``), under CC BY 2.0. The README
there attributes both to danielbuechele, and links flower.jpg to
https://www.flickr.com/photos/vultilion/6056698931/. Only flower.jpg is shown: cropped, reduced, and
in its second copy framed. Credit these sources and changes wherever you publish the image.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from sklearn.datasets import load_sample_image

from pgn_client import AdaptedClient, Prediction, PromptAdapter
from pgn_client.evaluation.demo import local_server
from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe
from pgn_client.types import Answer

SIZE = (900, 260)
SIDE = 128  # of both photographs as they are drawn; a multiple of the 64 px that are sent
DETAIL = 3  # lines and letters are drawn so many times larger, then reduced
SHOWN = (120, 0, 547, 427)  # the crop of flower.jpg: left, top, right, bottom
CLASSES = ("flower", "china")  # file names in scikit-learn
CROPS = 60  # of each photograph

INK, SOFT, LINE = "#1f2933", "#52606d", "#7b8794"
HERE, THERE, RESULT = "#e8f1fa", "#fdf0e1", "#2f6f4f"

# Left edge, right edge, color and heading of each panel.
PANELS = (
    (10, 440, HERE, "your machine"),
    (458, 686, THERE, "their server"),
    (704, 890, HERE, "your machine"),
)
PHOTO, FRAMED, TOP = 30, 292, 68  # where the two photographs stand


def main() -> None:
    """Train, send one crop, draw, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("docs/pipeline.png"), help="path to write (%(default)s)"
    )
    out = parser.parse_args().out

    photo = Image.fromarray(load_sample_image("flower.jpg")).crop(SHOWN)
    adapter = train_for_a_moment()
    with local_server() as url, AdaptedClient(url, adapter, fusion=None) as client:
        framed, own, prediction = client.adapt(photo), client.answer(photo), client.classify(photo)

    drawing = draw(photo, framed, own, prediction)
    drawing.quantize(256, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {out.stat().st_size} bytes, label {prediction.label} ({prediction.score:.2f})")


def train_for_a_moment(seed: int = 0) -> PromptAdapter:
    """Return a PGN that tells crops of the two photographs apart."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for name in CLASSES:
            photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
            (Path(folder) / name).mkdir()
            for i in range(CROPS):
                side = int(rng.integers(200, 420))
                left = int(rng.integers(photo.width - side + 1))
                top = int(rng.integers(photo.height - side + 1))
                crop = photo.crop((left, top, left + side, top + side))
                crop.resize((96, 96)).save(Path(folder) / name / f"{i:03d}.png")

        task = load_task(Path(folder), seed=seed)
        numbers = recipe(epochs=3, trunk_epochs=5, augment="flip")
        return fit(task, backbone.load("bundled"), recipe=numbers, seed=seed, progress=False)


def draw(
    photo: Image.Image, framed: Image.Image, own: Answer, prediction: Prediction
) -> Image.Image:
    """Return the drawing.

    Args:
        photo: RGB, square.
        framed: RGB, the image that is sent.
        own: The endpoint's scores for its own classes.
        prediction: The label of the task.
    """
    large = Image.new("RGB", (SIZE[0] * DETAIL, SIZE[1] * DETAIL), "white")
    pen = Pen(ImageDraw.Draw(large))
    for left, right, color, heading in PANELS:
        pen.panel((left, 14, right, 246), color)
        pen.text((left + right) / 2, 34, heading, 15, SOFT)

    middle = TOP + SIDE / 2
    pen.arrow(PHOTO + SIDE + 14, FRAMED - 14, middle)
    centre = (PHOTO + SIDE + FRAMED) / 2
    pen.text(centre, middle - 38, "small network", 15)
    pen.text(centre, middle - 20, "paints a prompt", 15)
    pen.text(PHOTO + SIDE / 2, TOP + SIDE + 22, "photo", 16)
    pen.text(FRAMED + SIDE / 2, TOP + SIDE + 22, "framed photo", 16)

    pen.arrow(FRAMED + SIDE + 8, 484, middle)
    pen.box((492, TOP, 652, TOP + SIDE))
    pen.text(572, middle - 34, "hosted ViT", 20)
    pen.text(572, middle - 10, "frozen, unchanged", 14, SOFT)
    pen.text(572, middle + 16, "scores of its own", 14, SOFT)
    pen.text(572, middle + 34, f"{len(own.labels)} classes", 14, SOFT)
    pen.text(572, TOP + SIDE + 22, "HTTP in, HTTP out", 16)

    pen.arrow(660, 726, middle)
    pen.text(797, middle - 34, "label mapping", 15)
    pen.text(797, middle + 2, prediction.label, 32, RESULT)
    pen.text(797, middle + 32, f"one of your {len(prediction.scores)} classes", 14, SOFT)
    pen.text(797, TOP + SIDE + 22, "label", 16)

    small = large.resize(SIZE, Image.Resampling.LANCZOS)
    small.paste(photo.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (PHOTO, TOP))
    small.paste(framed.resize((SIDE, SIDE), Image.Resampling.NEAREST), (FRAMED, TOP))
    return small


class Pen:
    """Draws in the coordinates of the finished drawing, on one that is ``DETAIL`` times larger."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self.draw = draw

    def panel(self, corners: tuple[float, float, float, float], color: str) -> None:
        """A colored ground with round corners."""
        self.draw.rounded_rectangle(larger(*corners), 12 * DETAIL, fill=color)

    def box(self, corners: tuple[float, float, float, float]) -> None:
        """A white box with an edge."""
        self.draw.rounded_rectangle(
            larger(*corners), 8 * DETAIL, fill="white", outline=LINE, width=2 * DETAIL
        )

    def text(self, x: float, y: float, text: str, size: int, color: str = INK) -> None:
        """Text around its centre."""
        font = ImageFont.load_default(size * DETAIL)
        self.draw.text(larger(x, y), text, fill=color, font=font, anchor="mm")

    def arrow(self, start: float, end: float, y: float) -> None:
        """A level arrow, to the right."""
        self.draw.line(larger(start, y, end - 8, y), fill=SOFT, width=3 * DETAIL)
        self.draw.polygon(larger(end, y, end - 12, y - 7, end - 12, y + 7), fill=SOFT)


def larger(*numbers: float) -> list[float]:
    """Return coordinates on the large drawing."""
    return [number * DETAIL for number in numbers]


if __name__ == "__main__":
    main()
