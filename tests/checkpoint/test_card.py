"""The typed card: what was read is written, and whatever is wrong is refused before it is used."""

import contextlib
import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pgn_client import CheckpointError, PromptAdapter, checkpoint
from pgn_client.checkpoint import Card
from pgn_client.checkpoint.card import BackboneCard, DataCard, MappingCard, ServedCard
from pgn_client.prompting.adapter import load

FILES = Path(__file__).parents[1] / "compatibility" / "files"
OF_SCHEMA_1 = sorted(path.name.removesuffix(".gz") for path in FILES.glob("*.safetensors.gz"))


@pytest.fixture
def unpacked(tmp_path):
    """Return a function that unpacks a checkpoint of an earlier version."""

    def unpack(name):
        path = tmp_path / name
        path.write_bytes(gzip.decompress((FILES / f"{name}.gz").read_bytes()))
        return path

    return unpack


@pytest.fixture
def card(unpacked):
    """The card of a PGN, as JSON."""
    return checkpoint.read_card(unpacked("pgn_pixel.safetensors"))


@pytest.mark.parametrize("name", OF_SCHEMA_1)
def test_a_card_of_schema_1_is_written_as_it_was_read(unpacked, name):
    path = unpacked(name)
    header, tensors = checkpoint.read(path)
    typed = Card.from_json(header)
    assert typed.schema == 1
    assert not typed.extra
    assert json.dumps(typed.to_json(), sort_keys=True) == json.dumps(header, sort_keys=True)
    assert checkpoint.write(path, typed.to_json(), tensors) == header


def test_what_is_trained_anew_has_schema_2_and_what_runs_on_the_server_schema_1(
    make_adapter, tmp_path
):
    make_adapter().save(tmp_path / "new.safetensors")
    assert checkpoint.read_card(tmp_path / "new.safetensors")["schema"] == 2
    hosted = Card(method="expres", classes=("a", "b")).to_json()
    assert checkpoint.write(tmp_path / "hosted.safetensors", hosted, {})["schema"] == 1


def test_keys_that_this_version_does_not_know_are_kept(card):
    card["new"] = {"a": [1, None]}
    card["backbone"]["newer"] = 3
    typed = Card.from_json(card)
    assert typed.extra == {"new": {"a": [1, None]}}
    assert replace(typed, fusion=0.5).to_json() == card | {"fusion": 0.5}


BIG = pytest.param(10**400, id="400 digits")
PLACES = [
    ("fusion",),
    ("seed",),
    ("backbone", "input_size"),
    ("backbone", "patch_size"),
    ("generator", "resolution"),
    ("library", "size"),
    ("data", "train"),
    ("metrics", "uint8"),
    ("recipe", "top_k"),
]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -1, 1e300, BIG, "7", [7], True])
@pytest.mark.parametrize("place", PLACES, ids=".".join)
def test_no_number_is_out_of_bounds_or_of_another_type(card, place, value):
    *parents, last = place
    entry = card
    for name in parents:
        entry = entry[name]
    entry[last] = value
    with pytest.raises(CheckpointError) as error:
        Card.from_json(card)
    assert str(error.value).startswith(".".join(place))
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [None, 3, "x", [], [1], {}, {"x": 1}, True, 1.5])
def test_a_card_with_any_value_replaced_is_refused_or_read(unpacked, value):
    """Nothing but our own error comes out, whatever one of the values is."""
    path = unpacked("union.second.safetensors")
    header, tensors = checkpoint.read(path)
    for name in header:
        changed = {**header, name: value}
        changed.pop("fingerprint", None)
        checkpoint.write(path, changed | {"schema": 1}, tensors)
        with contextlib.suppress(CheckpointError):
            load(path)


@pytest.mark.parametrize("text", ['{"schema": 1e999}', "[" * 100_000, '{"schema": ' + "[" * 5000])
def test_a_header_that_breaks_the_parser_is_refused(tmp_path, text):
    path = tmp_path / "a.safetensors"
    head = json.dumps({"__metadata__": {"pgn_client": text}}).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read_card(path)


@pytest.mark.parametrize(
    "asks",
    [
        {"temperature": 2.0},
        {"linear_probe": {"backbone": "b", "weights_sha256": "ab"}},
        {"fusion_weights": {"endpoint": 0.5, "local": 0.25, "probe": 0.25}},
    ],
)
def test_what_this_version_cannot_serve_is_refused_with_the_remedy(make_adapter, tmp_path, asks):
    adapter = make_adapter()
    path = tmp_path / "a.safetensors"
    checkpoint.write(path, adapter.info | asks, adapter._tensors)
    with pytest.raises(CheckpointError, match=f"got {next(iter(asks))}.*upgrade: pip install"):
        PromptAdapter.load(path)


def test_reserved_keys_that_change_nothing_are_read(card):
    card |= {"surrogate": "stand_in", "decode": 2, "runtime": "numpy"}
    typed = Card.from_json(card)
    assert (typed.surrogate, typed.decode, typed.runtime) == ("stand_in", 2, "numpy")
    with pytest.raises(CheckpointError, match=r"surrogate: got 'other', expected one of same, st"):
        Card.from_json(card | {"surrogate": "other"})


def test_messages_name_the_place_and_what_was_expected():
    with pytest.raises(CheckpointError, match=r"^mean: got \[0, 1\], expected a list of 3$"):
        BackboneCard.from_json({"name": "b", "input_size": 8, "patch_size": 8, "mean": [0, 1]})
    part = {"digest": "d", "train": -1, "val": 1}
    with pytest.raises(CheckpointError, match=r"^parts\.a\.train: got -1, expected from 0 to "):
        DataCard.from_json({"digest": "d", "train": 1, "val": 1, "parts": {"a": part}})
    with pytest.raises(CheckpointError, match=r"^the card: got None, expected an object$"):
        Card.from_json(None)


def test_a_whole_number_is_a_number_and_stays_one():
    mapping = MappingCard("linear", ("a",), ("b",))
    typed = Card.from_json(
        {"method": "raw", "classes": ["b"], "mapping": mapping.to_json(), "fusion": 1}
    )
    assert json.dumps(typed.to_json()["fusion"]) == "1"


def test_a_client_reads_of_any_adapter_only_what_it_needs():
    served = ServedCard.from_json({"fusion": None, "backbone": {"input_size": 8}, "more": object()})
    assert (served.fusion, served.none_below, served.fingerprint) == (None, None, None)
    assert served.backbone.input_size == 8
    with pytest.raises(CheckpointError, match="fusion: got 'a', expected a number"):
        ServedCard.from_json({"fusion": "a"})


def changed(unpacked, name, change, tensors=None):
    """Write a checkpoint of an earlier version with a changed card."""
    path = unpacked(f"{name}.safetensors")
    header, arrays = checkpoint.read(path)
    del header["fingerprint"]
    change(header)
    arrays |= tensors or {}
    present = {name: array for name, array in arrays.items() if array is not None}
    checkpoint.write(path, header, present)
    return path


def nested(depth):
    part = {"digest": "d", "train": 1, "val": 1}
    for _ in range(depth):
        part = {"digest": "d", "train": 1, "val": 1, "parts": {"a": part}}
    return part


def huge_grid(layout):
    def change(card):
        card["backbone"].update(input_size=2048, patch_size=1)
        card["layout"] = layout

    return change


CRAFTED = {
    "a grid of millions": ("pgn_pixel", huge_grid("ring")),
    "more rows than the grid": ("pgn_pixel", huge_grid("rows:9999")),
    "a million classes": ("expres", lambda card: card.update(classes=["a"] * 10**6)),
    "nested parts": ("pgn_pixel", lambda card: card.update(data=nested(300))),
    "a margin of gigabytes": (
        "pgn_pixel",
        lambda card: card.update(profile="resize_crop:99999:64"),
    ),
    "an unknown interpolation": (
        "imported",
        lambda card: card["generator"].update(interpolation="z"),
    ),
    "a crop of gigabytes": (
        "imported",
        lambda card: card["generator"].update(profile="letterbox:99999"),
    ),
    "an input of gigabytes": ("pgn_pixel", lambda card: card["generator"].update(resolution=8192)),
    "a library of gigabytes": ("pgn_pixel", lambda card: card["library"].update(size=2**24)),
    "a method of two lines": ("pgn_pixel", lambda card: card.update(method="a\nb")),
    "a key of two lines": ("pgn_pixel", lambda card: card["versions"].update({"a\nb": 5})),
    "a key with an escape": ("pgn_pixel", lambda card: card["learnable"].update({"\x1b[31m": "x"})),
    "a key of a megabyte": ("pgn_pixel", lambda card: card["versions"].update({"k" * 10**6: 5})),
    "a long layout": ("pgn_pixel", lambda card: card.update(layout="x" * 900_000)),
}


@pytest.mark.parametrize("case", CRAFTED)
def test_a_crafted_card_is_refused_in_one_short_line(unpacked, case):
    path = changed(unpacked, *CRAFTED[case])
    with pytest.raises(CheckpointError) as error:
        load(path)
    text = str(error.value).replace(str(path), "")
    assert text.isprintable()
    assert len(text) < 500


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("pgn_latent_bounded", {"embedding.bias": np.zeros(3, np.float32)}),
        ("pgn_latent_bounded", {"embedding.bias": None}),
        ("pgn_pixel", {"library.rows": np.array(1, np.float32)}),
    ],
)
def test_tensors_that_do_not_fit_are_a_checkpoint_error(unpacked, name, tensors):
    path = changed(unpacked, name, lambda card: None, tensors)
    with pytest.raises(CheckpointError, match="do not fit"):
        PromptAdapter.load(path).runtime  # noqa: B018 (the property builds the model)


def test_the_info_of_another_adapter_may_hold_numbers_of_numpy():
    info = {"fusion": np.float32(0.5), "backbone": {"input_size": np.int64(64), "name": None}}
    served = ServedCard.from_json(info | {"none_below": None})
    assert (served.fusion, served.backbone.input_size) == (0.5, 64)
    assert type(served.fusion) is float
