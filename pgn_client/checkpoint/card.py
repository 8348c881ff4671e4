"""The card of a checkpoint: its metadata, that is everything but the tensors.

``Card.from_json`` is the only way to read a card. It checks the type and the bounds of every value
before anything of that size is allocated. Names and values are those of the JSON in the file's
header, which ``PromptAdapter.info`` and ``pgn inspect --json`` show.

Schema 2 adds keys to schema 1 and changes none, so both are read in the same way. A card keeps the
schema that it was read with, and therefore its fingerprint. The added keys are reserved for coming
versions. Some of them would change the predictions: a client of this version refuses a checkpoint
that sets those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pgn_client.checkpoint.entry import NULL, Bounds, Entry, shown
from pgn_client.errors import CheckpointError

SCHEMA = 2
"""Version of the card format in new checkpoints; newer ones are refused."""
HOSTED = "expres"
"""The card's ``method`` for a checkpoint that runs on the server (EXPRES)."""
RAW = "raw"
"""The card's ``method`` for a checkpoint that holds only a label mapping, no prompts."""

# Bounds are far beyond any real value: they keep a damaged card from allocating memory.
Name = Annotated[str, Bounds(0, 1000)]
Side = Annotated[int, Bounds(1, 2048)]
"""Side of an image or a patch, in pixels."""
Count = Annotated[int, Bounds(0, 2**40)]
Seed = Annotated[int, Bounds(0, 2**64 - 1)]
Share = Annotated[float, Bounds(0, 1)]
Number = Annotated[float, Bounds(-1e30, 1e30)]
Interpolation = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Inversion = Literal["exact", "bounded", "pseudo_inverse"]
Channel = tuple[Number, Number, Number]


@dataclass(frozen=True)
class BackboneCard(Entry):
    """Card entry of the surrogate, the local model that the prompts were trained through.

    Attributes:
        name: The timm name, or ``bundled``.
        input_size: Side of the model input, in pixels.
        patch_size: Side of a patch, in pixels.
        mean: Mean per channel, subtracted from pixels in [0, 1].
        std: Standard deviation per channel, by which pixels are divided after ``mean`` is
            subtracted.
        patch_embedding_sha256: SHA-256 of the patch embedding; ``None`` for a model that is not a
            plain ViT.
        weights_sha256: SHA-256 of all weights.
        features_sha256: SHA-256 of all weights except the head; only for EXPRES.
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
    """Card entry of the input of the prompt generator, the network that makes the prompts.

    Attributes:
        resolution: Side of the input, in pixels.
        profile: Resize and crop of the user's image, as a profile string, for a generator that
            reads that image; ``None`` for one that reads the canvas, the image that the model sees.
        interpolation: Interpolation of the resize in ``profile``.
    """

    resolution: Side
    profile: Name | None = None
    interpolation: Interpolation | None = None


@dataclass(frozen=True)
class LibraryCard(Entry):
    """Card entry of the token library, the learned rows that are mixed into prompts.

    Attributes:
        kind: Kind of the library; see ``prompting.token_library``.
        size: Number of rows.
    """

    kind: Name
    size: Annotated[int, Bounds(1, 2**16)]


@dataclass(frozen=True)
class MappingCard(Entry):
    """Card entry of the label mapping, which turns endpoint answers into task classes.

    The mapping's arrays are the tensors ``mapping.weight`` and ``mapping.bias``.

    Attributes:
        kind: Kind of the mapping; see ``mapping.label_mapping``.
        source: The S endpoint labels whose scores the mapping reads; ``None`` for EXPRES, whose
            mapping runs on the server and reads the model's output tokens.
        classes: C task classes.
        open: Whether the endpoint may return labels outside ``source``.
    """

    kind: Name
    source: tuple[str, ...] | None = None
    classes: tuple[str, ...] | None = None
    open: bool | None = None


@dataclass(frozen=True)
class RecipeCard(Entry):
    """Card entry of the training settings of a prompt.

    The other fields of ``training.recipe.Recipe`` are in ``extra``.

    Attributes:
        augment: Name of the augmentation.
        mapping: Requested kind of label mapping.
        top_k: Number of labels that the endpoint returns; ``None`` for all.
        decimals: Number of decimals to which the endpoint rounds probabilities; ``None`` for no
            rounding.
        wire: Simulated degradation of the images on their way to the model.
    """

    augment: Name = "none"
    mapping: Name | None = None
    top_k: Annotated[int, Bounds(1, 2**40)] | None = None
    decimals: Annotated[int, Bounds(0, 1000)] | None = None
    wire: Name | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the entry as an object for ``json.dumps``.

        Where ``mapping`` is set, ``top_k`` and ``decimals`` are written even if they are ``null``;
        every other field that is ``None`` is left out.
        """
        written = super().to_json()
        if self.mapping is None:
            return written
        # All checkpoints of schema 1 have them so, and their fingerprint covers it.
        return {"top_k": self.top_k, "decimals": self.decimals} | written

    @property
    def numbers(self) -> dict[str, Any]:
        """The fields of ``training.recipe.Recipe``; empty where this package trained no prompts."""
        # Every recipe of a training has rates; the one that stands for an import has none.
        if "rates" not in self.extra:
            return {}
        return {"augment": self.augment} | dict(self.extra)


@dataclass(frozen=True)
class DataCard(Entry):
    """Card entry of the images that a checkpoint was trained on; see ``imaging.dataset.Task``.

    Attributes:
        digest: SHA-256 over classes, training images and validation images.
        train: Number of training images.
        val: Number of validation images.
        shots: Limit of training images per class; ``None`` for no limit.
        seed: Seed of the splits and of the draw of training images.
        parts: Data of each task by name, where several tasks were joined; else ``None``.
    """

    digest: Name
    train: Count
    val: Count
    shots: Count | None = field(default=None, metadata=NULL)
    seed: Seed = 0
    parts: Mapping[str, DataCard] | None = None


@dataclass(frozen=True)
class MetricsCard(Entry):
    """Card entry of the accuracies, in [0, 1], on the validation images.

    The accuracies are optimistic: the same images chose the epoch, the mapping and the fusion
    weight.

    Attributes:
        split: The split that was measured, ``val``.
        n: Number of validation images.
        epoch: Epoch of the checkpoint; ``None`` where nothing was trained.
        latent: Accuracy of the prompts in latent space, before they become pixels.
        uint8: Accuracy of the uint8 prompts that are served, without the local head.
        local: Accuracy of the local head alone.
        fused: Accuracy of the endpoint fused with the local head.
        mapping: Description of how the mapping was chosen.
        perplexity: Mean perplexity of the weights that mix library rows into prompts, in rows;
            ``None`` for a method without mixtures.
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
    """Card entry of one task, in a checkpoint for several tasks.

    Attributes:
        fusion: Weight of the local head for the task, in [0, 1].
        metrics: Accuracies on the task's validation images.
    """

    fusion: Share
    metrics: MetricsCard


@dataclass(frozen=True)
class ImportCard(Entry):
    """Card entry of an imported published checkpoint: its file name and SHA-256."""

    file: Name
    sha256: Name


@dataclass(frozen=True)
class ReachCard(Entry):
    """Card entry that says how closely pixels can reproduce the rows of a latent library.

    The rows of a latent library are tokens, which an inversion turns into pixels. See
    ``prompting.inversion.reach`` for the definitions.

    Attributes:
        norm: Median norm of the rows.
        norm_most: Maximum norm of the rows.
        norm_of_pixels: Median norm of the tokens of random patches.
        bounded: Median relative residual of the bounded inversion.
        bounded_most: Maximum relative residual of the bounded inversion.
        pseudo_inverse: Median relative residual of the clipped pseudo-inverse.
        pseudo_inverse_most: Maximum relative residual of the clipped pseudo-inverse.
        condition: Condition number of the patch embedding; ``None`` where pixels cannot reach every
            direction.
    """

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
    """Card entry of a linear probe on a public backbone (schema 2); this version cannot serve it.

    Attributes:
        backbone: The timm name of the backbone.
        weights_sha256: SHA-256 of the backbone's weights.
    """

    backbone: Name
    weights_sha256: Name


@dataclass(frozen=True)
class FusionCard(Entry):
    """Card entry of the weights of endpoint, local head and linear probe in a three-way fusion.

    It belongs to schema 2; this version cannot serve it.
    """

    endpoint: Share
    local: Share
    probe: Share


@dataclass(frozen=True)
class Card(Entry):
    """The complete card of a checkpoint: all its metadata.

    Every field that describes prompts, from ``backbone`` to ``inversion``, is ``None`` for a
    checkpoint that holds only a label mapping.

    Attributes:
        method: Method of the prompts: ``pgn``, another method of ``prompting.methods``, ``raw``
            (only a label mapping, no prompts), or ``expres`` (runs on the server; see
            ``tests/contract/adapters``).
        classes: C task classes.
        mapping: Label mapping from endpoint classes to task classes; ``None`` only during training.
        fusion: Weight α of the local head, in [0, 1]: served score = (1 - α) log p_endpoint +
            α log p_local.
        backbone: The surrogate, the local model that the prompts were trained through.
        profile: Server's resize and crop, as a profile string such as ``resize_crop:248:224``.
        layout: Position of the prompts: ``ring``, ``corner``, ``rows:N``, ``cells:…`` or ``full``.
        generator: Input of the prompt generator.
        library: The token library; ``None`` for a method without one.
        inversion: Method that turns latent tokens into pixels: ``exact``, ``bounded`` or
            ``pseudo_inverse``.
        none_below: Threshold in [0, 1]: a best class with a lower probability becomes "none of
            these".
        learnable: Number of trained parameters of ``prompt``, ``mapping`` and ``local`` classifier.
        seed: Seed of the training.
        recipe: Training settings.
        data: Images that the checkpoint was trained on.
        metrics: Accuracies on the validation images.
        versions: Versions of the packages that made the checkpoint.
        parts: Entry of every task, by name, in a checkpoint for several tasks (whose classes are
            ``TASK/CLASS``).
        part_of: Names of all tasks, in a checkpoint for one of several tasks.
        reach: Distance of a latent library's rows from what pixels can produce.
        imported: The published checkpoint that was imported; such a card has no seed, recipe, data
            or metrics.
        interrupted: Whether Ctrl-C ended the training.
        mapped: Whether ``pgn map`` fitted the mapping.
        prompted_on: Digest of the images that the prompt was trained on, where they differ from
            ``data``.
        surrogate: User's statement about the surrogate: the ``same`` model as the hosted one, or a
            ``stand_in`` (schema 2).
        temperature: Divisor of the served log-probabilities (schema 2).
        linear_probe: Linear probe that is fused with the endpoint (schema 2).
        fusion_weights: Weights of endpoint, local head and linear probe (schema 2).
        decode: Version of the image decoding (schema 2).
        runtime: Software that computes the prompts (schema 2).
        scores: Meaning of the endpoint's scores that the mapping reads: ``probabilities``,
            ``logits``, ``sigmoid``, ``label`` or ``embedding``; ``None`` if unknown.
        schema: Schema of the card, 1 or 2.
        fingerprint: SHA-256 over all tensors and the card without this field; ``None`` before the
            card is written.
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
    scores: Name | None = None
    schema: Annotated[int, Bounds(1, SCHEMA)] = SCHEMA
    fingerprint: Name | None = None

    @classmethod
    def of(cls, card: Card | Mapping[str, Any]) -> Card:
        """Return the argument if it is a ``Card``, else the ``Card`` read from that JSON object."""
        return card if isinstance(card, cls) else cls.from_json(card)

    @classmethod
    def from_json(cls, value: Any, where: str = "") -> Card:
        """Read a card from JSON, and check that it has the fields that its ``method`` needs.

        Args:
            value: Value that ``json.loads`` returned.
            where: Dotted path of the card, for error messages; empty for a whole card.

        Raises:
            CheckpointError: A needed field is missing, or a value is of another type or out of
                bounds.
        """
        try:
            card = super().from_json(value, where)
        except RecursionError:
            raise CheckpointError("the card is nested too deeply") from None

        needed = ["mapping"]
        if card.method != RAW:
            needed += ["backbone", "profile"]
        if card.method not in (RAW, HOSTED):
            needed += ["layout", "generator", "inversion"]

        for name in needed:
            if getattr(card, name) is None:
                raise CheckpointError(f"{name} is missing; method {shown(card.method)} needs it")

        if card.mapping and card.method != HOSTED:
            for name in ("source", "classes"):
                if getattr(card.mapping, name) is None:
                    raise CheckpointError(f"mapping.{name} is missing")
        return card

    @property
    def not_served(self) -> list[str]:
        """Names of the fields for which this version refuses to serve the checkpoint."""
        reserved = ("temperature", "linear_probe", "fusion_weights")
        return [name for name in reserved if getattr(self, name) is not None]

    def to_json(self) -> dict[str, Any]:
        """Return the card as an object for ``json.dumps``.

        A field that is ``None`` is left out, unless its metadata is ``NULL``. A card that holds
        only a label mapping also leaves out the ``NULL`` fields ``library`` and, in ``metrics``,
        every ``None``.
        """
        written = super().to_json()
        if self.backbone is None:
            del written["library"]
            if "metrics" in written:
                metrics = written["metrics"].items()
                written["metrics"] = {name: value for name, value in metrics if value is not None}
        return written

    @property
    def resolution(self) -> int:
        """Side of the generator's input, in pixels; 1 where there is no generator."""
        return self.generator.resolution if self.generator else 1

    @property
    def has_local_head(self) -> bool:
        """Whether the checkpoint has a local head, a classifier that runs in the client."""
        return self.backbone is not None and self.method != HOSTED


@dataclass(frozen=True)
class ServedBackbone(Entry):
    """The backbone fields that a client compares with the endpoint's description of its model."""

    name: Name | None = None
    input_size: Side | None = None
    patch_embedding_sha256: Name | None = None


@dataclass(frozen=True)
class ServedRecipe(Entry):
    """The only field of the training settings that a client needs.

    Attributes:
        top_k: Number of returned labels per image that the mapping was fitted on; ``None`` for all.
    """

    top_k: Annotated[int, Bounds(1, 2**40)] | None = None


@dataclass(frozen=True)
class ServedCard(Entry):
    """The fields of an adapter's ``info``, the checkpoint's card, that a client reads.

    The adapter may be a user's own class, so every field may be missing.
    """

    method: Name | None = None
    fingerprint: Name | None = None
    profile: Name | None = None
    fusion: Share | None = None
    none_below: Share | None = None
    backbone: ServedBackbone | None = None
    recipe: ServedRecipe | None = None
    surrogate: Literal["same", "stand_in"] | None = None
    scores: Name | None = None
