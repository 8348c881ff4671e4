"""The card of a checkpoint: everything about it that is no tensor, typed and bounded.

``Card.from_json`` is the one way in, and refuses what cannot be right before anything is allocated
by it. Names and values are those of the JSON in the file's header, which
``PromptAdapter.info`` and ``pgn inspect --json`` show.

Schema 2 adds keys to schema 1 and changes none, so both are read alike; a card that was read keeps
its schema, and with it its fingerprint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pgn_client.checkpoint.entry import NULL, Bounds, Entry
from pgn_client.errors import CheckpointError

SCHEMA = 2
"""The newest schema, which is written."""
HOSTED = "expres"
"""The method of a checkpoint that runs on the server."""
RAW = "raw"
"""The method of a label mapping alone."""

Name = Annotated[str, Bounds(0, 1000)]
Side = Annotated[int, Bounds(1, 8192)]
"""Side of an image or a patch, in pixels."""
Count = Annotated[int, Bounds(0, 2**40)]
Seed = Annotated[int, Bounds(0, 2**64 - 1)]
Share = Annotated[float, Bounds(0, 1)]
Number = Annotated[float, Bounds(-1e30, 1e30)]
Inversion = Literal["exact", "bounded", "pseudo_inverse"]
Channel = tuple[Number, Number, Number]


@dataclass(frozen=True)
class BackboneCard(Entry):
    """The surrogate that prompts were trained through.

    Attributes:
        name: Its timm name, or ``bundled``.
        input_size: Side of its input, in pixels.
        patch_size: Side of a patch, in pixels.
        mean: Per channel, subtracted from pixels in [0, 1].
        std: Per channel, which they are then divided by.
        patch_embedding_sha256: Digest of the patch embedding; ``None`` for what is no plain ViT.
        weights_sha256: Digest of all weights.
        features_sha256: Digest of all weights but the head, of EXPRES.
    """

    name: Name
    input_size: Side
    patch_size: Side
    mean: Channel
    std: Channel
    patch_embedding_sha256: Name | None = field(default=None, metadata=NULL)
    weights_sha256: Name | None = None
    features_sha256: Name | None = None


@dataclass(frozen=True)
class GeneratorCard(Entry):
    """What the generator looks at.

    Attributes:
        resolution: Side of its input, in pixels.
        profile: Resize and crop of the image itself, where it does not look at the canvas.
        interpolation: Of that resize.
    """

    resolution: Side
    profile: Name | None = None
    interpolation: Name | None = None


@dataclass(frozen=True)
class LibraryCard(Entry):
    """A token library: its kind (see ``prompting.token_library``) and number of rows."""

    kind: Name
    size: Annotated[int, Bounds(1, 2**24)]


@dataclass(frozen=True)
class MappingCard(Entry):
    """How endpoint classes become task classes; the arrays are ``mapping.weight`` and ``.bias``.

    Attributes:
        kind: See ``mapping.label_mapping``.
        source: S endpoint labels; ``None`` where it reads output tokens on the server.
        classes: C task classes.
        open: Whether the endpoint may return labels beside ``source``.
    """

    kind: Name
    source: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    open: bool | None = None


@dataclass(frozen=True)
class RecipeCard(Entry):
    """How a prompt was trained. The numbers of ``training.recipe.Recipe`` are in ``extra``.

    Attributes:
        augment: Name of the augmentation.
        mapping: Kind of label mapping that was asked for.
        top_k: Number of labels that the endpoint returns; ``None`` for all.
        decimals: Decimals to which it rounds probabilities; ``None`` for no rounding.
        wire: Degradation of the images on their way to the model.
    """

    augment: Name = "none"
    mapping: Name | None = None
    top_k: Annotated[int, Bounds(1, 2**40)] | None = None
    decimals: Annotated[int, Bounds(0, 1000)] | None = None
    wire: Name | None = None

    def to_json(self) -> dict[str, Any]:
        """As :meth:`Entry.to_json`; a recipe with a mapping always tells what is returned."""
        told = {} if self.mapping is None else {"top_k": self.top_k, "decimals": self.decimals}
        return told | super().to_json()

    @property
    def numbers(self) -> dict[str, Any]:
        """All that ``Recipe`` has; empty for a checkpoint that was not trained here."""
        return {} if "rates" not in self.extra else {"augment": self.augment} | dict(self.extra)


@dataclass(frozen=True)
class DataCard(Entry):
    """The images that a checkpoint was trained on: digest, sizes, shots, seed; ``parts`` of a union
    of tasks.
    """

    digest: Name
    train: Count
    val: Count
    shots: Count | None = field(default=None, metadata=NULL)
    seed: Seed = 0
    parts: Mapping[str, DataCard] | None = None


@dataclass(frozen=True)
class MetricsCard(Entry):
    """Accuracies on the validation images, which also chose: so they are optimistic.

    Attributes:
        split: ``val``.
        n: Number of validation images.
        epoch: Epoch of the checkpoint; ``None`` where nothing was trained.
        latent: Accuracy in latent space.
        uint8: Accuracy of what is served, without the local head.
        local: Accuracy of the local head alone.
        fused: Accuracy of both.
        mapping: How the mapping was chosen, in words.
        perplexity: Mean perplexity of the mixtures, in rows; ``None`` where there are none.
        history: Accuracy and log-loss after every epoch.
    """

    uint8: Share | None = None
    split: Name = "val"
    n: Count = 0
    epoch: Count | None = field(default=None, metadata=NULL)
    latent: Share | None = None
    local: Share | None = None
    fused: Share | None = None
    mapping: Name | None = None
    perplexity: Number | None = field(default=None, metadata=NULL)
    history: tuple[Mapping[str, Number], ...] | None = None


@dataclass(frozen=True)
class PartCard(Entry):
    """One task of a checkpoint for several."""

    fusion: Share
    metrics: MetricsCard


@dataclass(frozen=True)
class ImportCard(Entry):
    """File name and digest of a published checkpoint that was imported."""

    file: Name
    sha256: Name


@dataclass(frozen=True)
class ReachCard(Entry):
    """What pixels can reach of a latent library; see ``prompting.inversion.reach``."""

    norm: Number
    norm_most: Number
    norm_of_pixels: Number
    bounded: Number
    bounded_most: Number
    pseudo_inverse: Number
    pseudo_inverse_most: Number
    condition: Number | None = field(default=None, metadata=NULL)


@dataclass(frozen=True)
class ProbeCard(Entry):
    """A linear probe on a public backbone, from schema 2 on; this version does not serve it.

    Attributes:
        backbone: Its timm name.
        weights_sha256: Digest of its weights.
    """

    backbone: Name
    weights_sha256: Name


@dataclass(frozen=True)
class FusionCard(Entry):
    """Weights of a three-way fusion, from schema 2 on; this version does not serve it."""

    endpoint: Share
    local: Share
    probe: Share


@dataclass(frozen=True)
class Card(Entry):
    """A whole card.

    Attributes:
        method: ``pgn``, another method of ``prompting.methods``, ``raw`` (a mapping alone, without
            prompts), or ``expres`` (which runs on the server; see ``tests/contract/adapters``).
        classes: C task classes.
        mapping: How endpoint classes become task classes; ``None`` only while training.
        fusion: α: served score = (1 - α) log p_endpoint + α log p_local; 0 = endpoint alone, 1 =
            local head alone.
        backbone: The surrogate; ``None`` of a mapping alone, as all that describes prompts.
        profile: What the server does to an image's geometry, for example ``resize_crop:248:224``.
        layout: Where the prompts sit: ``ring``, ``corner``, ``rows:N``, ``cells:…`` or ``full``.
        generator: What the generator looks at.
        library: The token library; ``None`` of a method without one.
        inversion: ``exact``, ``bounded`` or ``pseudo_inverse``.
        none_below: "None of these" where the best class is less likely than this.
        learnable: How many numbers were trained: prompt, mapping, local classifier.
        seed: Seed of the training.
        recipe: How it was trained.
        data: The images it was trained on.
        metrics: Accuracies on the validation images.
        versions: Versions of the packages that made it.
        parts: Of a checkpoint for several tasks (classes are ``TASK/CLASS``): every task's own.
        part_of: Of a checkpoint for one of several tasks: the names of all.
        reach: What pixels can reach of a latent library.
        imported: The published checkpoint, which has no seed, recipe, data and metrics.
        interrupted: Whether Ctrl-C ended the training.
        mapped: Whether ``pgn map`` fitted the mapping.
        prompted_on: Digest of the images that the prompt was trained on, where ``data`` are others.
        surrogate: From schema 2 on: whether the user said that the surrogate is the hosted model.
        temperature: From schema 2 on: divides the served log-probabilities.
        linear_probe: From schema 2 on: a probe that is fused.
        fusion_weights: From schema 2 on: weights of endpoint, local head and probe.
        decode: From schema 2 on: version of how image files are decoded.
        runtime: From schema 2 on: what computes the prompts.
        schema: 1 or 2.
        fingerprint: SHA-256 over the card without it and all tensors; ``None`` before it is
            written.
    """

    method: Name
    classes: Annotated[tuple[str, ...], Bounds(1, 10**6)]
    mapping: MappingCard | None = None
    fusion: Share = 0.0
    backbone: BackboneCard | None = None
    profile: Name | None = None
    layout: Annotated[str, Bounds(0, 10**6)] | None = None
    generator: GeneratorCard | None = None
    library: LibraryCard | None = field(default=None, metadata=NULL)
    inversion: Inversion | None = None
    none_below: Share | None = None
    learnable: Mapping[str, Count] | None = None
    seed: Seed | None = None
    recipe: RecipeCard | None = None
    data: DataCard | None = None
    metrics: MetricsCard | None = None
    versions: Mapping[str, Name] | None = None
    parts: Mapping[str, PartCard] | None = None
    part_of: tuple[Name, ...] | None = None
    reach: ReachCard | None = None
    imported: ImportCard | None = None
    interrupted: bool | None = None
    mapped: bool | None = None
    prompted_on: Name | None = None
    surrogate: Literal["same", "stand_in"] | None = None
    temperature: Annotated[float, Bounds(1e-6, 1e6)] | None = None
    linear_probe: ProbeCard | None = None
    fusion_weights: FusionCard | None = None
    decode: Count | None = None
    runtime: Name | None = None
    schema: Annotated[int, Bounds(1, SCHEMA)] = SCHEMA
    fingerprint: Name | None = None

    @classmethod
    def of(cls, card: Card | Mapping[str, Any]) -> Card:
        """Return a card as it is, or read it from JSON."""
        return card if isinstance(card, cls) else cls.from_json(card)

    @classmethod
    def from_json(cls, value: Any, where: str = "") -> Card:
        """See :meth:`Entry.from_json`; whatever is wrong is a ``CheckpointError``.

        Raises:
            CheckpointError: Also where the method needs a part that is missing.
        """
        card = super().from_json(value, where)
        needed = ["mapping"]
        if card.method != RAW:
            needed += ["backbone", "profile"]
        if card.method not in (RAW, HOSTED):
            needed += ["layout", "generator", "inversion"]
        for name in needed:
            if getattr(card, name) is None:
                raise CheckpointError(f"{name} is missing, which method {card.method} needs")
        if card.mapping and card.method != HOSTED:
            for name in ("source", "classes"):
                if getattr(card.mapping, name) is None:
                    raise CheckpointError(f"mapping.{name} is missing")
        return card

    @property
    def not_served(self) -> list[str]:
        """Names of what the card asks for and this version cannot serve."""
        reserved = ("temperature", "linear_probe", "fusion_weights")
        return [name for name in reserved if getattr(self, name) is not None]

    def to_json(self) -> dict[str, Any]:
        """As :meth:`Entry.to_json`; a mapping alone tells nothing of prompts, not even ``null``."""
        written = super().to_json()
        if self.backbone is None:
            del written["library"]
            metrics = written.get("metrics", {})
            written |= {"metrics": {k: v for k, v in metrics.items() if v is not None}}
        return written

    @property
    def resolution(self) -> int:
        """Side of the generator's input, in pixels; 1 where there is no generator."""
        return self.generator.resolution if self.generator else 1

    @property
    def fuses(self) -> bool:
        """Whether there is a local head."""
        return self.backbone is not None and self.method != HOSTED

    @property
    def hosted(self) -> bool:
        """Whether it runs on the server."""
        return self.method == HOSTED


@dataclass(frozen=True)
class ServedBackbone(Entry):
    """What an endpoint's own description is compared with."""

    name: Name = "an unnamed backbone"
    input_size: Side | None = None
    patch_embedding_sha256: Name | None = None


@dataclass(frozen=True)
class ServedRecipe(Entry):
    """How many labels the mapping was fitted on."""

    top_k: Annotated[int, Bounds(1, 2**40)] | None = None


@dataclass(frozen=True)
class ServedCard(Entry):
    """What a client needs of the ``info`` of any adapter, also of one that is not ours; all of it
    may be missing.
    """

    method: Name | None = None
    fingerprint: Name | None = None
    profile: Name | None = None
    fusion: Share | None = None
    none_below: Share = 0.0
    backbone: ServedBackbone | None = None
    recipe: ServedRecipe | None = None
