"""Rule 24: whatever is wrong with a file from elsewhere is one line and an error of ours.

For each kind of file a seeded generator makes 500 damaged ones: a value of the JSON replaced,
removed or wrapped, or bytes cut, changed or inserted. A file that is read none the less is all
right; any exception but ours, and any message of two lines, is not.
"""

import contextlib
import copy
import gzip
import io
import json
import random
import shutil
import sqlite3
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from pgn_client import checkpoint
from pgn_client.checkpoint import Card
from pgn_client.cli import main
from pgn_client.cli.console import error_text, tell_records
from pgn_client.cli.options import source_labels
from pgn_client.errors import CheckpointError, PGNError, printable
from pgn_client.prompting.adapter import load
from pgn_client.types import Answer
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.endpoint import Endpoint
from pgn_client.wire.folders import adapt_files, predict_files
from pgn_client.wire.ledger import Ledger
from tests.wire.fakes import Server, ToyAdapter, client, file_bytes, picture

FILES = Path(__file__).parents[1] / "compatibility" / "files"
TIMES = 500
ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    0.5,
    -0.0,
    2**63,
    -(2**63),
    10**400,
    1e308,
    float("inf"),
    float("-inf"),
    float("nan"),
    "",
    " ",
    "a",
    "\0",
    "\x1b[31mred",
    "two\nlines",
    "\ud800",
    "‮",
    "x" * 5000,
    "../../x",
    [],
    [None],
    [[]],
    ["a", "a"],
    {},
    {"": {}},
    [0] * 100,
)
"""Values that a careful reader expects nowhere."""
DEEP = "[" * 100_000 + "]" * 100_000


def places(value, path=()):
    """The path of every value inside a JSON value."""
    yield path
    inside = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(inside, dict):
        return
    for key, inner in inside.items():
        yield from places(inner, (*path, key))


def damaged_json(value, chance):
    """The text of a JSON value with one to three of its values replaced, removed or wrapped."""
    value = copy.deepcopy(value)
    deep = False
    for _ in range(chance.randint(1, 3)):
        path = chance.choice(list(places(value)))
        if not path:
            continue
        parent = value
        for key in path[:-1]:
            parent = parent[key]
        kind = chance.randrange(6)
        if kind == 0:
            del parent[path[-1]]
        elif kind == 1:
            parent[path[-1]] = [parent[path[-1]]]
        elif kind == 2 and isinstance(parent, dict):
            parent[chance.choice(("new", "", "\x1b[2J", "two\nlines"))] = copy.deepcopy(
                chance.choice(ODD)
            )
        elif kind == 3 and not deep and chance.random() < 0.2:
            parent[path[-1]] = "DEEP"
            deep = True
        else:
            parent[path[-1]] = copy.deepcopy(chance.choice(ODD))
    text = json.dumps(value)
    return text.replace('"DEEP"', DEEP) if deep else text


def damaged_bytes(data, chance):
    """A file's bytes, cut, changed or with others inserted."""
    data = bytearray(data)
    kind = chance.randrange(4)
    place = chance.randrange(len(data))
    if kind == 0:
        return bytes(data[:place])
    if kind == 1:
        return bytes(data[place:])
    for _ in range(chance.choice((1, 1, 8, 64))):
        place = chance.randrange(min(len(data), chance.choice((16, 200, len(data)))))
        if kind == 2:
            data[place] = chance.randrange(256)
        else:
            data[place:place] = chance.choice((b"\0" * 8, b"[[[[", b"\xff\xfe", b'"', b"1e999"))
    return bytes(data)


def refused_or_read(use):
    """Use a damaged file; return whether it was refused, as the rule wants it."""
    try:
        use()
    except PGNError as error:
        text = error_text(error)
        assert text.isprintable(), text
        assert len(text) < 3000
        return True
    return False


def unpacked(name):
    return gzip.decompress((FILES / f"{name}.gz").read_bytes())


def with_card(text, tensors):
    """A checkpoint's bytes with any text as its card."""
    return save(tensors, metadata={"pgn_client": text})


def sealed(text, tensors):
    """A card's text with its true fingerprint, so that the border behind it is reached."""
    try:
        card = json.loads(text)
        card["fingerprint"] = checkpoint.fingerprint(card, tensors)
        return json.dumps(card)
    except (ValueError, TypeError, RecursionError):
        return text


@pytest.mark.parametrize("name", ["pgn_pixel", "map_counted", "expres"])
def test_500_damaged_checkpoints(name, tmp_path):
    chance = random.Random(name)
    path = tmp_path / "c.safetensors"
    path.write_bytes(unpacked(f"{name}.safetensors"))
    card, tensors = checkpoint.read(path)
    whole = path.read_bytes()

    def use():
        adapter = load(path)
        checkpoint.summary(adapter.info)
        checkpoint.summary(checkpoint.read_card(path))

    refused = 0
    for _ in range(TIMES):
        if chance.random() < 0.75:
            data = with_card(sealed(damaged_json(card, chance), tensors), tensors)
        else:
            data = damaged_bytes(whole, chance)
        path.write_bytes(data)
        refused += refused_or_read(use)
    assert refused > TIMES // 4


@pytest.mark.parametrize(
    "text",
    [
        '{"schema": 1e999}',
        '{"schema": "x"}',
        '{"schema": 1, "extra": ' + DEEP + "}",
        '{"schema": 1, "extra": ' + "[" * 90 + "]" * 90 + "}",
        "[1]",
        "1",
        "null",
        "",
        '{"schema": NaN}',
    ],
)
def test_a_crafted_card_is_one_line_and_status_2(text, tmp_path, capsys):
    path = tmp_path / "c.safetensors"
    path.write_bytes(with_card(text, {"a": np.zeros(1)}))
    assert main(["inspect", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: checkpoint ")
    assert len(said.splitlines()) == 1


def test_a_tensor_that_numpy_does_not_have_is_one_line(tmp_path):
    header = json.dumps(
        {
            "__metadata__": {"pgn_client": '{"schema": 1}'},
            "a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]},
        }
    ).encode()
    path = tmp_path / "c.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(path)


@pytest.mark.parametrize("name", ["endpoint.json", "custom.json", "custom.toml"])
def test_500_damaged_endpoint_files(name, tmp_path):
    chance = random.Random(name)
    whole = (FILES / name).read_bytes()
    path = tmp_path / name
    refused = 0
    for _ in range(TIMES):
        if name.endswith(".json") and chance.random() < 0.7:
            path.write_text(damaged_json(json.loads(whole), chance))
        else:
            path.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(lambda: Endpoint.read(path))
    assert refused > TIMES // 4


@pytest.fixture
def predicted(tmp_path):
    """A journal of three predictions, its setup beside it, and the function that resumes it."""
    (tmp_path / "in").mkdir()
    files = [tmp_path / "in" / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(file_bytes(picture(number)))
    out = tmp_path / "p.jsonl"
    with client(Server(), protocol="pgn") as c:
        list(predict_files(c, files, out))

        def resume():
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                tell_records(predict_files(c, files, out), as_json=True)

        yield out, resume


def test_500_damaged_journals(predicted):
    out, resume = predicted
    chance = random.Random("journals")
    whole = out.read_bytes()
    records = [json.loads(line) for line in whole.splitlines()]
    refused = 0
    for _ in range(TIMES):
        if chance.random() < 0.6:
            lines = [json.dumps(record) for record in records]
            lines[chance.randrange(3)] = damaged_json(chance.choice(records), chance)
            out.write_text("\n".join(lines) + "\n")
        else:
            out.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(resume)
    assert refused > TIMES // 4


def test_500_damaged_lists_of_adapted_images(tmp_path):
    chance = random.Random("adapted")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(file_bytes(picture()))

    def adapt():
        list(adapt_files(ToyAdapter(), tmp_path / "in", tmp_path / "out"))

    adapt()
    journal = tmp_path / "out" / "adapted.jsonl"
    whole = journal.read_bytes()
    refused = 0
    for _ in range(TIMES):
        if chance.random() < 0.6:
            journal.write_text(damaged_json(json.loads(whole), chance) + "\n")
        else:
            journal.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(adapt)
    assert refused > 50


def test_500_damaged_setups_of_journals(predicted):
    out, resume = predicted
    chance = random.Random("setups")
    setup = out.with_name("p.jsonl.journal.json")
    lines = out.read_bytes()
    whole = setup.read_bytes()
    refused = 0
    for number in range(TIMES):
        out.write_bytes(lines)
        if number == 0:
            setup.write_text("[]")
        elif chance.random() < 0.6:
            setup.write_text(damaged_json(json.loads(whole), chance))
        else:
            setup.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(resume)
    assert refused > TIMES // 4


def test_500_damaged_rows_of_a_cache(tmp_path):
    chance = random.Random("rows")
    path = tmp_path / "a.sqlite"
    cache = AnswerCache(path)
    cache.put("k", Answer(("a", "b"), (0.75, 0.25)), 2, "r")
    cache.keep("e", "k", b"png")
    cache.remember("e", '["m", "pgn"]')
    (answer,) = cache._db.execute("SELECT answer FROM answers").fetchone()

    def use():
        cache.get("k")
        cache.canaries("e")
        cache.recall("e")

    refused = 0
    for _ in range(TIMES):
        row = damaged_json(json.loads(answer), chance)
        if chance.random() < 0.2:
            row = chance.choice((None, 7, b"\xff\0", "[" * 9, DEEP, row[: len(row) // 2]))
        with cache._db as db, contextlib.suppress(sqlite3.IntegrityError, UnicodeEncodeError):
            db.execute("UPDATE answers SET answer = ?", (row,))
            db.execute("UPDATE pictures SET picture = ?", (chance.choice((b"x", 10**12, "text")),))
            db.execute("UPDATE models SET identity = ?", (chance.choice(('["a"]', "{", "7")),))
        refused += refused_or_read(use)
    cache.close()
    assert refused > TIMES // 4


@pytest.mark.parametrize("kind", ["cache", "ledger"])
def test_500_damaged_databases(kind, tmp_path):
    chance = random.Random(kind)
    whole = unpacked("answers.sqlite" if kind == "cache" else "ledger.sqlite")
    folder = tmp_path / "of one"
    folder.mkdir()
    path = folder / "d.sqlite"
    path.write_bytes(whole)
    with contextlib.closing(sqlite3.connect(path)) as db:
        table = "answers" if kind == "cache" else "spent"
        (key,) = db.execute(f"SELECT * FROM {table}").fetchone()[:1]

    def use():
        store = AnswerCache(path) if kind == "cache" else Ledger(path)
        with contextlib.closing(store):
            if kind == "cache":
                store.get(key)
                store.put("k", Answer(("a",), (1.0,)))
            else:
                store.spent(key)
                store.reserve(key, "m", 10**6, 1.0)

    refused = 0
    for _ in range(TIMES):
        # With the log of the last use, which belongs to another content.
        shutil.rmtree(folder)
        folder.mkdir()
        path.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(use)
    assert refused > TIMES // 4


def test_500_damaged_states_of_training(tmp_path):
    torch = pytest.importorskip("torch")
    from pgn_client.training.run import Run, load_state

    chance = random.Random("states")
    path = tmp_path / "c.resume"
    layer = torch.nn.Linear(2, 2)
    sgd = torch.optim.SGD(layer.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, lambda _: 1.0)
    run = Run(layer, layer, sgd, schedule)
    state = {"model": layer.state_dict(), "mapping": layer.state_dict(), "epoch": 1, "best": None}
    state |= {"optimiser": sgd.state_dict(), "schedule": schedule.state_dict(), "history": []}
    state["random"] = torch.get_rng_state()
    saved = {"identity": {"seed": 0}, "run": state}
    torch.save(saved, path)
    whole = path.read_bytes()

    def use():
        run.load_state_dict(load_state(path, saved["identity"]))

    before = torch.get_rng_state()
    refused = 0
    for number in range(TIMES):
        if number % 5 == 0:
            crafted = copy.deepcopy(saved)
            place = chance.choice(("identity", "run"))
            crafted[place] = chance.choice((None, [], 7, "text", {}, {"model": 1}, {1: 2}))
            if chance.random() < 0.5:
                crafted = {**saved, "run": {**saved["run"], chance.choice(list(saved["run"])): 7}}
            torch.save(crafted, path)
        else:
            path.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(use)
    torch.set_rng_state(before)
    assert refused > TIMES // 4


def test_500_damaged_benchmarks(tmp_path):
    pytest.importorskip("torch")
    from pgn_client.evaluation.benchmark import summary
    from pgn_client.evaluation.benchmark.runs import _require_settings

    chance = random.Random("benchmarks")
    with zipfile.ZipFile(FILES / "benchmark.zip") as file:
        file.extractall(tmp_path)
    out = tmp_path / "bench"
    settings = out / "settings.json"
    ours = json.loads(settings.read_text())
    methods = ["padding", "pgn@small", "vpt_shallow"]
    victims = [path for path in sorted(out.rglob("*.*")) if path.suffix in (".json", ".npz")]
    victims.remove(out / "table.json")

    def use():
        if victim == settings:
            _require_settings(out, ours)
        else:
            summary.summarise(out, ["digits"], methods, [0], None)

    refused = 0
    for number in range(TIMES):
        # Half of them the settings, because reading all runs takes longer.
        victim = settings if number % 2 else chance.choice(victims)
        whole = victim.read_bytes()
        if victim.suffix == ".json" and chance.random() < 0.7:
            victim.write_text(damaged_json(json.loads(whole), chance))
        else:
            victim.write_bytes(damaged_bytes(whole, chance))
        refused += refused_or_read(use)
        victim.write_bytes(whole)
    assert refused > TIMES // 4


def test_500_damaged_lists_of_labels(tmp_path):
    pytest.importorskip("torch")
    from pgn_client.surrogate.backbone import read_labels

    chance = random.Random("labels")
    path = tmp_path / "labels.json"
    names = ["cat", {"name": "dog"}, "tree"]
    for number in range(TIMES):
        text = DEEP if number == 0 else damaged_json([names], chance)
        path.write_bytes(damaged_bytes(text.encode(), chance) if number % 3 == 1 else text.encode())
        refused_or_read(lambda: read_labels(path))
        refused_or_read(lambda: source_labels(str(path)))


# ---- paths


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{}", "--url", "http://127.0.0.1:9"],
        ["inspect", "{}"],
        ["adapt", "{}", "out", "--ckpt", "nowhere"],
        ["adapt", ".", "{}", "--ckpt", "{}"],
        ["predict", ".", "--url", "{}.json"],
        ["predict", ".", "--url", "http://127.0.0.1:9", "--ckpt", "{}"],
    ],
)
@pytest.mark.parametrize("argument", ["a" * 5000, "a\0b"])
def test_an_argument_that_is_no_path_is_one_line_and_status_2(
    words, argument, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(file_bytes(picture()))
    assert main([word.replace("{}", argument) for word in words]) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith("error: ")


def test_an_output_folder_that_is_a_file_is_one_line_and_status_2(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(file_bytes(picture()))
    (tmp_path / "out").write_text("mine")
    path = tmp_path / "c.safetensors"
    path.write_bytes(unpacked("pgn_pixel.safetensors"))
    assert main(["adapt", str(tmp_path / "a.png"), str(tmp_path / "out"), "--ckpt", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# ---- names on terminals

NAMES = ("\x1b]0;owned\x07", "two\nlines", "‮reversed", "plain")


def test_names_of_a_checkpoint_do_not_act_on_the_terminal(tmp_path, capsys):
    card = {
        "method": "raw",
        "classes": list(NAMES),
        "mapping": {"kind": "linear", "source": ["s"], "classes": list(NAMES)},
    }
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, card, {"mapping.weight": np.zeros((4, 1)), "mapping.bias": np.zeros(4)})
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert all(line.isprintable() for line in text.splitlines())
    (classes,) = [line for line in text.splitlines() if line.startswith("classes")]
    assert "two\\nlines" in classes
    assert main(["inspect", "--json", str(path)]) == 0
    text = capsys.readouterr().out
    assert json.loads(text)["classes"] == list(NAMES)
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize("as_json", [False, True])
def test_labels_of_predictions_and_paths_do_not_act_on_the_terminal(as_json, capsys):
    records = [
        {"path": f"in/{name}.png", "label": name, "score": 0.5, "error": None} for name in NAMES
    ] + [{"path": name, "label": None, "score": None, "error": f"got {name}"} for name in NAMES]
    tell_records(iter(records), as_json=as_json, people=True)
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == (8 if as_json else 4)
    assert len(said.err.splitlines()) == 4
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())


def test_printable_text_is_json_inside_quotes():
    text = "a\x1b\n\x7f\u202e\ud800\U000e0001 é"
    assert printable(text).isascii() is False  # é stays
    assert json.loads(f'"{printable(text)}"') == text


# ---- copies


def test_a_caller_who_changes_the_info_of_an_adapter_changes_nothing_else(tmp_path):
    card = {"method": "raw", "classes": ["a"], "later": {"list": [1]}}
    card["mapping"] = {"kind": "linear", "source": ["s"], "classes": ["a"]}
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, card, {"mapping.weight": np.zeros((1, 1)), "mapping.bias": np.zeros(1)})
    adapter = load(path)
    adapter.info["later"]["list"].append(2)
    assert adapter.info["later"] == {"list": [1]}
    assert Card.from_json(adapter.info).extra["later"] == {"list": [1]}
