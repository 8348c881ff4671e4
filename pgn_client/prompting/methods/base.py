"""Base classes of all prompting methods, as training loop, checkpoint and client use them.

A :class:`Method` computes scores of prompted images; the label mapping turns these scores, or
features in their place, into task classes. An
:class:`RGBMethod` makes images that can be sent to an endpoint. A :class:`WhiteBox` needs the
inside of the model, and serves for comparison only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from pgn_client.checkpoint.card import Card, LibraryCard
from pgn_client.errors import ConfigurationError
from pgn_client.imaging.geometry import Canvas
from pgn_client.prompting.generator import LocalClassifier, generator_input
from pgn_client.surrogate.backbone import Backbone
from pgn_client.surrogate.patch_embedding import PatchEmbedding

if TYPE_CHECKING:
    from pgn_client.surrogate.surrogate import Surrogate

Groups = list[dict[str, Any]]

RESIDUAL_SITES = ("norm1", "q", "k", "v", "proj")
"""Sites, places in a transformer block, where EXPRES adds residuals by default, as in the paper.

They are here because ``Setting`` needs them and ``expres`` imports this module.
"""


@dataclass(frozen=True)
class Rates:
    """Learning rates of the parameters that several methods have in common.

    Rates of other parameters are in the file of their method.

    Attributes:
        library: Rate of the library rows.
        bias: Rate of the bias of the mixture layer, which weights the library rows; the bias alone
            makes the input-independent prompt.
        mixture: Rate of the mixture layer's weights.
        trunk: Rate of the generator's CNN trunk and of the local classification head.
        mapping: Rate of the linear label mapping.
    """

    library: float
    bias: float
    mixture: float
    trunk: float
    mapping: float


@dataclass(frozen=True)
class Setting:
    """The sizes and options that a new method is created for.

    Attributes:
        canvas: Places of prompts and image in the image that is sent.
        classes: Number of task classes, C.
        width: Width of the backbone's tokens, D.
        depth: Number of the backbone's blocks.
        library: Kind of the token library, for methods that mix one.
        library_size: Number of library rows, L.
        backbone: The frozen model, for methods that copy it.
        prompt_tokens: Number of prompt tokens, m, for methods that add tokens to the sequence.
        sites: Sites, places in a transformer block, where EXPRES adds residuals.
    """

    canvas: Canvas
    classes: int
    width: int
    depth: int = 12
    library: str = "pixel"
    library_size: int = 64
    backbone: Backbone | None = None
    prompt_tokens: int = 10
    sites: tuple[str, ...] = RESIDUAL_SITES


class Method(nn.Module):
    """Base of all prompting methods.

    Attributes:
        name: Name of the method in the registry and on checkpoint cards.
        title: Name of the method in tables.
        layout: Default layout, the places of prompts and image in the image that is sent.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[str] = "ring"

    @classmethod
    def create(cls, setting: Setting) -> Method:
        """Create the method with fresh parameters.

        Raises:
            ConfigurationError: The setting does not suit the method.
        """
        raise TypeError(f"{cls.__name__} must define create")

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the label mapping's input for images without a prompt.

        Args:
            images: Images fitted to the canvas's box, (B, 3, h, w) uint8.
            surrogate: Local model of the endpoint.

        Returns:
            (B, S) scores for S endpoint labels, or (B, D) features from a white-box method.
        """
        return surrogate.scores(images)

    def scores(self, code: Any, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the label mapping's input for prompted images; differentiable.

        Args:
            code: First result of the method's own ``forward`` for the images.
            images: Images fitted to the canvas's box, (B, 3, h, w) uint8.
            surrogate: Local model of the endpoint.

        Returns:
            (B, S) float32 scores for S endpoint labels, or (B, D) features from a white-box method.
        """
        raise TypeError(f"{type(self).__name__} must define scores")

    def after_step(self, surrogate: Surrogate) -> None:
        """Move bounded parameters back into their bounds; training calls this after each step."""

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return optimizer groups of the prompt's parameters, without mapping and local head."""
        raise TypeError(f"{type(self).__name__} must define prompt_groups")

    def parameter_groups(self, rates: Rates) -> Groups:
        """Return optimizer groups of all the method's parameters to train."""
        return self.prompt_groups(rates)

    def learnable(self) -> int:
        """Return the number of trained values in the prompt, without mapping and local head."""
        # Parameters are only counted here, so their learning rates do not matter.
        total = 0
        for group in self.prompt_groups(Rates(0, 0, 0, 0, 0)):
            total += sum(parameter.numel() for parameter in group["params"])
        return total


class RGBMethod(Method):
    """A method whose prompt is made of pixels, so that it can be sent to an endpoint.

    Args:
        generator: The local classifier. Every RGB method has one, so that the use of local scores
            is the same for all. In a PGN, it is also the prompt generator.
    """

    def __init__(self, generator: LocalClassifier) -> None:
        super().__init__()
        self.generator = generator

    @classmethod
    def create(cls, setting: Setting) -> RGBMethod:
        """Create the method with fresh parameters for the sizes and options in ``setting``."""
        raise TypeError(f"{cls.__name__} must define create")

    @classmethod
    def restore(cls, card: Card, state: Mapping[str, Tensor]) -> RGBMethod:
        """Build the method from a checkpoint's card (metadata) and tensors, in evaluation mode.

        Raises:
            ConfigurationError: The card has no backbone or no layout.
            RuntimeError: The tensors do not fit the card; torch's message names them.
        """
        if card.backbone is None or card.layout is None:
            raise ConfigurationError(
                f"method {cls.name}: got a card without backbone or layout, expected both; "
                "train the checkpoint again"
            )

        # A method without a library has no such entry, and its `create` ignores the stand-in.
        library = card.library or LibraryCard("pixel", 1)
        canvas = Canvas.build(card.backbone.input_size, card.backbone.patch_size, card.layout)
        # Only latent rows depend on the width.
        width = state["library.rows"].shape[-1] if "library.rows" in state else 0
        setting = Setting(
            canvas,
            len(card.classes),
            width,
            library=library.kind,
            library_size=library.size,
        )

        # `create` draws random parameters, which the checkpoint's then replace. The fork keeps the
        # caller's random state. It has no devices, because `create` draws on the CPU only.
        with torch.random.fork_rng(devices=[]):
            model = cls.create(setting)
        model.load_state_dict(state)
        return model.eval()

    def start(self, *, peaked: bool) -> None:
        """Prepare the fresh parameters for training; by default, leave them as they are.

        Args:
            peaked: Whether prompts mixed from a token library start with contrast.
        """

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """Compute what the prompts depend on, and the local logits, of (B, 3, r, r) float images.

        Returns:
            The code, the first input of :meth:`painted`: for a PGN the mixture weights, for methods
            with one prompt for all images ``None``. And (B, C) logits of the local head for the C
            task classes.
        """
        return None, self.generator.classify(x)

    def parameter_groups(self, rates: Rates) -> Groups:
        """Return optimizer groups of the prompt, and one of the rest of the local classifier."""
        groups = self.prompt_groups(rates)
        # Identities, because `in` would compare tensors element by element.
        listed: set[int] = set()
        for group in groups:
            listed.update(id(parameter) for parameter in group["params"])

        classifier = [*self.generator.trunk.parameters(), *self.generator.local_head.parameters()]
        local = [parameter for parameter in classifier if id(parameter) not in listed]
        return [*groups, {"params": local, "lr": rates.trunk}]

    @torch.inference_mode()
    def render(
        self,
        images: Tensor,
        *,
        prompted_by: Tensor | None = None,
        resolution: int,
        embedding: PatchEmbedding | None = None,
        route: str = "exact",
    ) -> tuple[Tensor, Tensor]:
        """Return the prompts' pixels and the local head's scores for images, for serving.

        Args:
            images: Images fitted to the canvas's box, (B, 3, h, w) uint8.
            prompted_by: As many images for the generator to read instead of ``images``: other
                crops of them, or other images for a control experiment.
            resolution: Side of the generator's input, in pixels.
            embedding: Patch embedding of the endpoint's model, needed where the learned rows are
                tokens, which have to become pixels.
            route: Name of the procedure that turns such tokens into pixels.

        Returns:
            (B, K, P, P, 3) uint8 prompt patches, K per image, or (B, H, W, 3) uint8 whole images
            from a method that paints on the image itself; and (B, C) float32 log-probabilities of
            the C task classes.
        """
        source = images if prompted_by is None else prompted_by
        code, local = self(generator_input(source, resolution))
        painted = self.painted(code, images, embedding, route)
        pixels = (painted * 255).round().to(torch.uint8).movedim(-3, -1)
        return pixels, local.log_softmax(dim=-1)

    def scores(self, code: Any, images: Tensor, surrogate: Surrogate) -> Tensor:
        """Return the surrogate's scores for prompted images, (B, S) float32; differentiable.

        The painted pixels pass the wire, the degradation between client and model, and the patch
        embedding, as in serving.
        """
        painted = self.painted(code, images, None, "exact")
        return surrogate.pixel_scores(surrogate.paint(images, painted))

    def painted(
        self, code: Any, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return the prompts' pixels for images; differentiable.

        Args:
            code: First result of ``forward`` for the images.
            images: Images fitted to the canvas's box, (B, 3, h, w) uint8.
            embedding: Patch embedding of the endpoint, for the inversion of a latent library.
            route: Name of the inversion, which turns tokens into pixels.

        Returns:
            (B, K, 3, P, P) prompt patches, or (B, 3, H, W) whole images with their prompt, in
            [0, 1], unit space.
        """
        raise TypeError(f"{type(self).__name__} must define painted")


class WholeImage(RGBMethod):
    """A method that changes the whole image instead of adding prompt patches; pixels stay valid."""

    layout = "full"

    def paint(self, code: Any, unit: Tensor) -> Tensor:
        """Return (B, 3, H, W) images in [0, 1], unit space, with the prompt; differentiable.

        Args:
            code: First result of ``forward`` for the images.
            unit: Images, (B, 3, H, W) in [0, 1], unit space.
        """
        raise TypeError(f"{type(self).__name__} must define paint")

    def painted(
        self, code: Any, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return whole images with their prompt, (B, 3, H, W) in [0, 1], unit space."""
        return self.paint(code, images.float() / 255)


class WhiteBox(Method):
    """A method that needs the inside of the model, so it cannot be used with an endpoint.

    Attributes:
        reads_features: Whether the label mapping reads features from inside the model instead of
            the endpoint's scores.
    """

    layout = "full"
    reads_features: ClassVar[bool] = True

    def forward(self, x: Tensor) -> tuple[Any, None]:
        """Return ``None`` for the code and for the local logits: there is no local network."""
        return None, None


def require_layout(setting: Setting, method: type[Method]) -> None:
    """Check that the layout, the places of prompts in the image that is sent, suits the method.

    Raises:
        ConfigurationError: The layout has prompt cells, but the method uses none; or the layout has
            no prompt cells, but the method needs them.
    """
    cells = setting.canvas.prompts
    if method.layout == "full" and cells:
        raise ConfigurationError(
            f"method {method.name}: got {cells} prompt cells, expected layout full"
        )
    if method.layout != "full" and not cells:
        raise ConfigurationError(
            f"method {method.name}: got a layout without prompt cells, expected layout ring, "
            "corner or rows:N"
        )
