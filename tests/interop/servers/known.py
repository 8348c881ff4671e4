"""The classifier behind every real server: it needs NumPy only, and a test computes its answers
again.

Mean colour of each quarter of the picture, then a fixed linear map: channels that are swapped, rows
that are columns, a flip, or a wrong normalisation all change the answer.
"""

import base64
import io
import sys

import numpy as np

NAME = "colours"
CLASSES = ("goldfish", "tabby", "crane", "lynx", "jay")
SIDE = 32  # of the pictures that the servers of tensors take
MEAN, STD = 0.5, 0.25  # these see (pixels / 255 - MEAN) / STD
WEIGHTS = 3 * np.sin(1.7 * np.arange(12 * len(CLASSES)) ** 1.3).reshape(12, len(CLASSES))


def logits(pixels):
    """Return (5,) logits of (H, W, 3) pixels in [0, 1]; H and W are even."""
    high, wide, _ = pixels.shape
    quarters = np.asarray(pixels, np.float64).reshape(2, high // 2, 2, wide // 2, 3).mean((1, 3))
    return (quarters.ravel() - 0.5) @ WEIGHTS


def probabilities(pixels):
    """Return the (5,) softmax of the logits."""
    weights = np.exp(logits(pixels) - logits(pixels).max())
    return weights / weights.sum()


def of_tensor(images):
    """Return (B, 5) float32 logits of (B, 3, H, W) normalised images."""
    pixels = np.asarray(images, np.float64) * STD + MEAN
    return np.stack([logits(image.transpose(1, 2, 0)) for image in pixels]).astype(np.float32)


def of_file(data):
    """Return (5,) probabilities of a picture file's bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return probabilities(np.asarray(picture.convert("RGB")) / 255)


def of_base64(text):
    """Return (5,) probabilities of a picture file in base64."""
    return of_file(base64.b64decode(text))


def port():
    """Return the port that the script was told."""
    return int(sys.argv[1])
