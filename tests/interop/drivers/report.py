"""What every driver does: read from stdin whom to ask about what, do its tasks, print what came
back as JSON.
"""

import base64
import json
import sys
from pathlib import Path


class Given:
    """What a test asks about.

    Attributes:
        url: the server.
        key: its key.
        picture: the path of an image file.
        labels: a closed set of labels, for the tasks that have one.
    """

    def __init__(self, url, key, picture, labels):
        self.url, self.key, self.picture, self.labels = url, key, picture, labels

    @property
    def data(self):
        """The bytes of the image."""
        return Path(self.picture).read_bytes()

    @property
    def base64(self):
        """The image as text."""
        return base64.b64encode(self.data).decode()


def tensor(given):
    """Return the image as the bundled model sees it: (1, 3, 64, 64) float32 in [-1, 1]."""
    import numpy as np
    from PIL import Image

    with Image.open(given.picture) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)
    return ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def report(*tasks):
    """Do every task; what it raises is an answer too."""
    given = Given(**json.load(sys.stdin))
    json.dump({task.__name__: _answer(task, given) for task in tasks}, sys.stdout)


def _answer(task, given):
    try:
        return task(given)
    except Exception as error:
        return {
            "error": type(error).__name__,
            "message": str(error),
            "code": getattr(error, "code", None),
        }
