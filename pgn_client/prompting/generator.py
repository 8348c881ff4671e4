"""The local half of PGN: a small CNN that weights the rows of a token library for each image.

Reference: Loedeman et al., Prompt Generation Networks, arXiv 2210.06466; the network follows the
authors' code.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

TRUNK_WIDTH = 128
"""Number of features that the generator's trunk, a small ResNet, computes for an image."""


class ResidualBlock(nn.Module):
    """A block of the ResNet-10 trunk: conv3x3 BN ReLU conv3x3 BN + shortcut, ReLU.

    The shortcut of a down-sampling block is a 1x1 convolution with bias and without BN.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.downsample = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map features, (B, inputs, h, w), to (B, outputs, h/stride, w/stride)."""
        return torch.relu(self.net(x) + self.downsample(x))


class ResNet10(nn.Module):
    """The generator's trunk, exactly as published: (B, 3, r, r) float, normalized → (B, 128)
    features.
    """

    def __init__(self) -> None:
        super().__init__()
        self.input_net = nn.Sequential(
            nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.blocks = nn.Sequential(
            ResidualBlock(16, 16, 1),
            ResidualBlock(16, 32, 2),
            ResidualBlock(32, 64, 2),
            ResidualBlock(64, 128, 2),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return the (B, 128) features of (B, 3, r, r) images, after global average pooling."""
        features: Tensor = self.blocks(self.input_net(x)).mean(dim=(2, 3))
        return features


class LocalClassifier(nn.Module):
    """A small CNN that classifies images locally, without the endpoint: trunk plus linear head.

    Deviation: ours. Training it warms up the trunk of a prompt generator, and its scores can be
    fused with the endpoint's.

    Args:
        classes: Number of task classes, C.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.trunk = ResNet10()
        self.local_head = nn.Linear(TRUNK_WIDTH, classes)

    def classify(self, x: Tensor) -> Tensor:
        """Return the (B, C) logits of (B, 3, r, r) float images, normalized."""
        logits: Tensor = self.local_head(self.trunk(x))
        return logits


class PromptGenerator(LocalClassifier):
    """The generator: from an image to mixture weights over a token library, and local class logits.

    Args:
        prompts: Number of prompts per image, K.
        library_size: Number of library rows, L.
        classes: Number of task classes, C.

    Attributes:
        head_teaches_trunk: Whether gradients of the local head reach the trunk, in addition to
            those of the prompt. False reproduces the published PGN, whose trunk learns from the
            prompt alone.
    """

    def __init__(self, prompts: int, library_size: int, classes: int) -> None:
        super().__init__(classes)
        self.mixture = nn.Linear(TRUNK_WIDTH, prompts * library_size)
        self.shape = (prompts, library_size)
        self.head_teaches_trunk = True

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the mixture weights and the local head's logits of images.

        Args:
            x: Images, (B, 3, r, r) float, normalized.

        Returns:
            (B, K, L) float32 mixture weights for K prompts, which sum to 1 over the L library rows;
            (B, C) logits of the local head for the C task classes.
        """
        features = self.trunk(x)

        # The softmax stays in float32 under autocast: weights that do not sum to 1 would make the
        # mixture of rows inexact.
        weights = self.mixture(features).float().unflatten(-1, self.shape).softmax(dim=-1)

        head_input = features if self.head_teaches_trunk else features.detach()
        return weights, self.local_head(head_input)


def generator_input(images: Tensor, resolution: int) -> Tensor:
    """Resize images to the generator's square input and scale them to [-1, 1].

    Args:
        images: Images already fitted to their place in the image that is sent, (B, 3, h, w) uint8,
            so that the generator's input is the same in training and in serving.
        resolution: Side of the generator's input, r, in pixels.

    Returns:
        Input of the generator, (B, 3, r, r) float32 in [-1, 1], resized bilinearly with
        antialiasing.
    """
    unit = images.float() / 255
    small = nn.functional.interpolate(
        unit, size=(resolution, resolution), mode="bilinear", antialias=True
    )
    return small * 2 - 1
