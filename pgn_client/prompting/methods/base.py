"""What every method is to the training loop, the checkpoint and the client.

A :class:`Method` says what the label mapping reads when images pass through it. An
:class:`RGBMethod` makes images that can be sent to an endpoint; a :class:`WhiteBox` needs the
inside of the model, and is there to be compared with.
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
"""Where EXPRES adds residuals unless told otherwise."""


@dataclass(frozen=True)
class Rates:
    """Learning rate of each part; a method that has other parts says their rate in its own file.

    Attributes:
        library: of the library rows.
        bias: of the mixture's bias, which *is* the input-independent prompt.
        mixture: of the mixture's weights.
        trunk: of the trunk and the local head.
        mapping: of the linear label mapping.
    """

    library: float
    bias: float
    mixture: float
    trunk: float
    mapping: float


@dataclass(frozen=True)
class Setting:
    """What a method is drawn for.

    Attributes:
        canvas: where prompts and image go.
        classes: C.
        width: D of the backbone.
        depth: number of its blocks.
        library: kind of the token library, of methods that mix one.
        library_size: L.
        backbone: the frozen model, of methods that copy it.
        prompt_tokens: m, of methods whose tokens travel beside the patches.
        sites: where EXPRES adds residuals.
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
    """Base of all methods.

    Attributes:
        name: as the registry and checkpoint cards have it. title: as tables have it.
        layout: where it paints unless told otherwise.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    layout: ClassVar[str] = "ring"

    @classmethod
    def create(cls, setting: Setting) -> Method:
        """Draw a new one.

        Raises:
            ConfigurationError: the setting does not suit the method.
        """
        raise TypeError(f"{cls.__name__} does not say how it is made")

    def neutral(self, images: Tensor, surrogate: Surrogate) -> Tensor:
        """What the mapping would read without any prompt: (B, 3, h, w) uint8 → (B, S)."""
        return surrogate.scores(images)

    def scores(self, code: Any, images: Tensor, surrogate: Surrogate) -> Tensor:
        """What the mapping reads with the prompt: (B, S) float32, differentiable.

        Args:
            code: what the method's own ``forward`` said of the images.
            images: (B, 3, h, w) uint8, fitted to the canvas's box.
            surrogate: the endpoint as training sees it.
        """
        raise TypeError(f"{type(self).__name__} does not say what it answers")

    def after_step(self, surrogate: Surrogate) -> None:
        """Called after each step of a training: what has bounds goes back into them."""

    def prompt_groups(self, rates: Rates) -> Groups:
        """Return optimiser groups of what makes the prompt: the parameters a paper would count."""
        raise TypeError(f"{type(self).__name__} does not say what learns")

    def parameter_groups(self, rates: Rates) -> Groups:
        """Return optimiser groups of all that learns."""
        return self.prompt_groups(rates)

    def learnable(self) -> int:
        """Return how many numbers make the prompt, without label mapping and local head."""
        zero = Rates(0, 0, 0, 0, 0)
        return sum(p.numel() for group in self.prompt_groups(zero) for p in group["params"])


class RGBMethod(Method):
    """A method whose prompt is made of pixels: whatever it has learnt can be sent to an endpoint.

    Args:
        generator: the local classifier, which every RGB method carries, so that all are fused and
            gated alike; a PGN's generator shares its trunk.
    """

    def __init__(self, generator: LocalClassifier) -> None:
        super().__init__()
        self.generator = generator

    @classmethod
    def create(cls, setting: Setting) -> RGBMethod:
        """Draw a new one, as :meth:`Method.create`."""
        raise TypeError(f"{cls.__name__} does not say how it is made")

    @classmethod
    def restore(cls, card: Card, state: Mapping[str, Tensor]) -> RGBMethod:
        """Build one from a checkpoint's card and tensors, in evaluation mode.

        Raises:
            RuntimeError: the tensors do not fit the card; torch says which.
        """
        if card.backbone is None or card.layout is None:
            raise ConfigurationError(f"method {cls.name}: got a card without backbone or layout")
        library = card.library or LibraryCard("pixel", 1)
        canvas = Canvas.build(card.backbone.input_size, card.backbone.patch_size, card.layout)
        # pixels do not need it
        width = state["library.rows"].shape[-1] if "library.rows" in state else 0
        setting = Setting(
            canvas,
            len(card.classes),
            width,
            library=library.kind,
            library_size=library.size,
        )
        # what is drawn is overwritten, and the caller's draws stay as they are
        with torch.random.fork_rng(devices=[]):
            model = cls.create(setting)
        model.load_state_dict(state)
        return model.eval()

    def start(self, *, peaked: bool) -> None:
        """Begin a training; ``peaked`` lets a token library's prompts start with contrast."""

    def forward(self, x: Tensor) -> tuple[Any, Tensor]:
        """(B, 3, r, r) → what the method says of the images, and (B, C) logits of the local
        head.
        """
        return None, self.generator.classify(x)

    def parameter_groups(self, rates: Rates) -> Groups:
        """As the prompt's, with the local classifier where the prompt does not share it."""
        groups = self.prompt_groups(rates)
        listed = {id(p) for group in groups for p in group["params"]}
        g = self.generator
        local = [
            p for p in [*g.trunk.parameters(), *g.local_head.parameters()] if id(p) not in listed
        ]
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
        """Serve: images → what is painted, in whole grey values, and the local head's opinion.

        Args:
            images: (B, 3, h, w) uint8, fitted to the canvas's box.
            prompted_by: images whose prompts are painted instead of their own; a control.
            resolution: side of the generator's input, in pixels.
            embedding: the endpoint's patch embedding, where a latent library has to be inverted.
            route: of that inversion.

        Returns:
            (B, K, P, P, 3) uint8 prompt patches, or (B, H, W, 3) uint8 whole canvases from a method
            that paints the image itself; (B, C) float32 log-probabilities.
        """
        source = images if prompted_by is None else prompted_by
        code, local = self(generator_input(source, resolution))
        painted = self.painted(code, images, embedding, route)
        return (painted * 255).round().to(torch.uint8).movedim(-3, -1), local.log_softmax(dim=-1)

    def scores(self, code: Any, images: Tensor, surrogate: Surrogate) -> Tensor:
        """See :class:`Method`; what is painted goes through wire and patch embedding, as when it is
        served.
        """
        return surrogate.pixel_scores(
            surrogate.paint(images, self.painted(code, images, None, "exact"))
        )

    def painted(
        self, code: Any, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """Return (B, K, 3, P, P) patches or (B, 3, H, W) canvases in [0, 1], unit space;
        differentiable.
        """
        raise TypeError(f"{type(self).__name__} does not say what it paints")


class WholeImage(RGBMethod):
    """A method that changes the image itself, all over the canvas, and keeps it within valid
    pixels.
    """

    layout = "full"

    def paint(self, code: Any, unit: Tensor) -> Tensor:
        """(B, 3, H, W) images in [0, 1] → the same, differentiable, with the prompt in them."""
        raise TypeError(f"{type(self).__name__} does not say how it paints")

    def painted(
        self, code: Any, images: Tensor, embedding: PatchEmbedding | None, route: str
    ) -> Tensor:
        """See :class:`RGBMethod`: whole canvases."""
        return self.paint(code, images.float() / 255)


class WhiteBox(Method):
    """A method that needs more than the endpoint offers: it cannot be deployed, and tables mark it
    so.

    Attributes:
        reads_features: whether the mapping reads features from inside the model, rather than
            answers.
    """

    layout = "full"
    reads_features: ClassVar[bool] = True

    def forward(self, x: Tensor) -> tuple[Any, None]:
        """Say nothing of the images: there is no generator and no local head."""
        return None, None


def require_layout(setting: Setting, method: type[Method]) -> None:
    """Refuse a layout that leaves the method nothing to paint on.

    Raises:
        ConfigurationError: prompt cells for a method that paints the whole image, or none for one
            that needs them.
    """
    whole = method.layout == "full"
    if whole != (setting.canvas.prompts == 0):
        expected = "full" if whole else "ring, corner or rows:N"
        got = f"{setting.canvas.prompts} prompt cells" if whole else "a layout without prompt cells"
        raise ConfigurationError(f"method {method.name}: got {got}, expected layout {expected}")
