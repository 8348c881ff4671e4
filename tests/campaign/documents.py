"""Crafted journals, setups, caches, ledgers, endpoint files and lists.

Each is a ``ConfigurationError`` in one line, or the run works as with a whole file. One case in six
goes through the command: exit status 2 and one line.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from pgn_client import AdaptedClient
from pgn_client.errors import (
    BudgetExceededError,
    ConfigurationError,
    ImageError,
    NotRecordedError,
    PGNError,
)
from pgn_client.imaging.files import find_images
from pgn_client.wire.cache import AnswerCache
from pgn_client.wire.folders import predict_files
from tests.campaign.cases import MIB, ROOT, Fault, checked, what
from tests.campaign.commands import LABELS, answering, chance, command
from tests.campaign.mutate import json_bytes, json_text, mutated, odd_document, odd_value
from tests.campaign.peer import Peer

FILES = ROOT / "tests/compatibility/files"
IMAGES = 3
BUDGET = 2

ODD_SQL: tuple[Any, ...] = (
    *(None, 0, -1, -1000, 1, 2**63 - 1, -(2**63), 1e300, float("inf"), -0.5, 0.5),
    *("", "x", "\x1b[2J", "1e999", b"", b"\0\xff", "9" * 400),
)
"""Values that SQLite keeps in any column."""
ODD_TOML = (
    *(
        "1e999",
        "nan",
        "-inf",
        "1979-05-27T07:32:00Z",
        "07:32:00",
        '"\\u001b[2J"',
        "[]",
        "{}",
        "[[]]",
    ),
    *(
        "true",
        "-1",
        "9999999999999999999999",
        "{a={a={a=1}}}",
        '""',
        "0x1F",
        "[1, 'a']",
        '"""\n"""',
    ),
)
ENDPOINTS: tuple[dict[str, Any], ...] = (
    json.loads((FILES / "endpoint.json").read_text(encoding="utf-8")),
    json.loads((FILES / "custom.json").read_text(encoding="utf-8")),
    {
        "url": "http://127.0.0.1:9/a?k=1",
        "protocol": "pgn",
        "model": "vit",
        "labels": ["a", "b"],
        "limits": {"body_bytes": 10**6, "pixels": 10**6},
        "options": {"key_header": "X-API-Key: {key}"},
        "profile": "resize_crop:72:64",
        "codec": "jpeg:90:420",
        "output": "probabilities",
        "top_k": 5,
        "decimals": 4,
        "input_size": 64,
        "findings": {"resize": "bicubic"},
    },
    {
        "url": "http://127.0.0.1:9",
        "protocol": "oip",
        "options": {"input": "images", "datatype": "UINT8", "shape": [-1, 3, 4, 4], "output": "o"},
        "labels": ["a"],
    },
    {"url": "http://127.0.0.1:9", "protocol": "openai", "labels": ["a"], "model": "m"},
)


class Documents:
    """One crafted file of seven kinds, and a run that reads it."""

    name = "documents"
    workers = 1
    memory = 768 * MIB
    hang = 10

    @contextlib.contextmanager
    def open(self, folder: Path) -> Iterator[None]:
        self.folder = folder
        self.images = []
        for number in range(IMAGES):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            self.images.append(folder / f"{number}.png")
            Image.fromarray(pixels).save(self.images[-1])
        self.sent = 0
        self.peer = Peer()
        try:
            with self.peer.playing(answering):
                self._write_good()
                yield
        finally:
            self.peer.close()

    def _write_good(self) -> None:
        """Write a good file of every kind that a run writes."""
        good = self.folder / "good"
        good.mkdir()
        files = {"cache": good / "cache", "ledger": good / "ledger"}
        with self._client(**files) as client:
            list(predict_files(client, self.images, good / "out.jsonl"))
        self.good = {path.name: path.read_bytes() for path in good.iterdir() if path.is_file()}

    def _client(self, where: Any = None, **options: Any) -> AdaptedClient:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.method == "GET":
                return httpx.Response(404)
            self.sent += 1
            prediction = {"labels": LABELS, "scores": [0.7, 0.2, 0.1]}
            return httpx.Response(200, json={"output": "probs", "predictions": [prediction]})

        options |= {"transport": httpx.MockTransport(answer), "max_retries": 0}
        if where is None:
            options["protocol"] = "pgn"
        return AdaptedClient(where or self.peer.url, None, **options)

    def play(self, rng: random.Random, index: int) -> str:
        kinds: tuple[Callable[[random.Random, Path, bool], str], ...] = (
            self._journal,
            self._setup,
            self._cache,
            self._ledger,
            self._endpoint,
            self._list,
            self._labels,
        )
        kind = kinds[index % len(kinds)]
        place = self.folder / f"case {index}"
        place.mkdir()
        try:
            with_command = index // len(kinds) % 6 == 0
            outcome = kind(rng, place, with_command)
        except Fault as fault:
            raise Fault(f"{kind.__name__}: {fault}") from fault
        except Exception as error:
            raise Fault(f"{kind.__name__}: {what(error)}") from error
        finally:
            shutil.rmtree(place)
        return f"{kind.__name__[1:]}: {outcome}"

    def _predict(self, *words: object, accept: tuple[int, ...] = (0, 2)) -> str:
        listed = self.folder / "images.txt"
        listed.write_text("\n".join(map(str, self.images)), encoding="utf-8")
        endpoint = () if "--url" in words else ("--url", self.peer.url, "--protocol", "pgn")
        return command("predict", listed, *endpoint, *words, accept=accept)

    # ---- journals and their setups

    def _journal(self, rng: random.Random, place: Path, with_command: bool) -> str:
        lines = self.good["out.jsonl"].splitlines(keepends=True)
        way = rng.random()
        if way < 0.35:
            content = mutated(b"".join(lines), rng)
        elif way < 0.75:
            number = rng.randrange(len(lines))
            lines[number] = json_bytes(odd_document(json.loads(lines[number]), rng), rng) + b"\n"
            content = b"".join(lines)
        else:
            ways = (
                lambda: b"".join(rng.choices(lines, k=9)),
                lambda: b"".join(reversed(lines)),
                lambda: b"\xef\xbb\xbf" + b"".join(lines),
                lambda: b"\r\n".join(line.strip() for line in lines),
                lambda: b"\n\n".join(line.strip() for line in lines),
                lambda: b"".join(lines) + b"\0" * 4096,
                lambda: b"".join(lines)[:-1],
                lambda: b"".join(lines).decode().encode("utf-16"),
                lambda: b"[" + b",".join(lines) + b"]",
            )
            content = rng.choice(ways)()
        (place / "out.jsonl").write_bytes(content)
        (place / "out.jsonl.journal.json").write_bytes(self.good["out.jsonl.journal.json"])
        return self._resumed(place / "out.jsonl", with_command)

    def _setup(self, rng: random.Random, place: Path, with_command: bool) -> str:
        told = self.good["out.jsonl.journal.json"]
        if rng.random() < 0.3:
            told = mutated(told, rng)
        else:
            told = json_bytes(odd_document(json.loads(told), rng), rng)
        (place / "out.jsonl").write_bytes(self.good["out.jsonl"])
        (place / "out.jsonl.journal.json").write_bytes(told)
        return self._resumed(place / "out.jsonl", with_command)

    def _resumed(self, journal: Path, with_command: bool) -> str:
        if with_command:
            outcome = self._predict("--out", journal)
            if outcome != "exit 0":
                return outcome
        else:
            try:
                with self._client() as client:
                    list(predict_files(client, self.images, journal))
            except Exception as error:
                return checked(error, ConfigurationError)
            outcome = "works"
        names = [str(path) for path in self.images]
        records = [json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines()]
        listed = [record["path"] for record in records if record["path"] in names]
        if listed != names:
            raise Fault(f"the journal lists {listed}")
        if any(r["path"] in names and not isinstance(r["label"], str) for r in records):
            raise Fault(f"labels that are no texts: {[r['label'] for r in records]!r}"[:300])
        return outcome

    # ---- databases

    @staticmethod
    def _changed_rows(path: Path, table: str, column: str, value: Any) -> None:
        with (
            contextlib.closing(sqlite3.connect(path)) as database,
            # A column that takes no NULL keeps its value.
            contextlib.suppress(sqlite3.IntegrityError),
            database,
        ):
            database.execute(f"UPDATE {table} SET {column} = ?", (value,))

    @staticmethod
    def _script(path: Path, statements: str) -> None:
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.executescript(statements)

    def _cache(self, rng: random.Random, place: Path, with_command: bool) -> str:
        path = place / "cache"
        path.write_bytes(self.good["cache"])
        way = rng.random()
        if way < 0.25:
            path.write_bytes(mutated(self.good["cache"], rng))
        elif way < 0.6:
            document = json.loads('[["goldfish", "tench"], [0.75, 0.25], "probabilities", 1, null]')
            text = json_text(odd_document(document, rng), rng)
            value: Any = text.encode("utf-8", "replace") if chance(rng, 0.1) else text
            self._changed_rows(path, "answers", "answer", _storable(value))
        elif way < 0.75:
            table, column = rng.choice(
                (("answers", "answer"), ("models", "identity"), ("pictures", "picture"))
            )
            self._changed_rows(path, table, column, rng.choice(ODD_SQL))
        else:
            scripts = (
                "DROP TABLE answers",
                "DROP TABLE models; CREATE TABLE models (x)",
                "DROP TABLE answers; CREATE TABLE answers (key, answer, more)",
                "DROP TABLE pictures; CREATE VIEW pictures AS SELECT 1",
                "PRAGMA user_version = 99",
                "CREATE TRIGGER t AFTER INSERT ON answers BEGIN SELECT RAISE(ABORT, 'no'); END;",
                "DELETE FROM answers",
            )
            self._script(path, rng.choice(scripts))
        replay = chance(rng, 0.4)
        if with_command:
            return self._predict("--out", "-", "--replay" if replay else "--cache", path,
                                 accept=(0, 1, 2))  # fmt: skip
        allowed = (ConfigurationError, NotRecordedError) if replay else (ConfigurationError,)
        try:
            cache: Any = AnswerCache(path, replay=True) if replay else path
            with (
                contextlib.closing(cache) if replay else contextlib.nullcontext(),
                self._client(cache=cache) as client,
            ):
                for image in self.images:
                    score = client.classify(image).score
                    if not isinstance(score, float) or not math.isfinite(score):
                        raise Fault(f"a prediction with the score {score!r}")
                if not replay:
                    allowed = (ConfigurationError, ImageError)
                    client.drift()
        except Fault:
            raise
        except Exception as error:
            return checked(error, allowed)
        return "works"

    def _ledger(self, rng: random.Random, place: Path, with_command: bool) -> str:
        path = place / "ledger"
        path.write_bytes(self.good["ledger"])
        way = rng.random()
        empty = False
        if way < 0.3:
            path.write_bytes(mutated(self.good["ledger"], rng))
        elif way < 0.4:
            path.write_bytes(b"")
            empty = True
        elif way < 0.8:
            # Starts from a ledger with nothing spent, so that a fault shows as images sent.
            self._script(path, "UPDATE spent SET images = 0")
            column = rng.choice(("images", "images", "cost", "name", "endpoint"))
            value = odd_value(rng.choice((0, 1, 5)), rng) if chance(rng, 0.2) else None
            self._changed_rows(path, "spent", column, _storable(value or rng.choice(ODD_SQL)))
        else:
            scripts = (
                "DROP TABLE spent; CREATE TABLE spent (x)",
                "DROP TABLE spent; CREATE VIEW spent AS SELECT 1 AS images",
                "DROP TABLE spent; CREATE TABLE spent (endpoint, name, images, cost)",
                "CREATE TRIGGER t BEFORE UPDATE ON spent BEGIN SELECT RAISE(IGNORE); END;"
                "CREATE TRIGGER u BEFORE INSERT ON spent BEGIN SELECT RAISE(IGNORE); END;"
                "UPDATE spent SET images = 0",
                "PRAGMA user_version = 99",
            )
            self._script(path, rng.choice(scripts))
        options = {"budget": BUDGET, "ledger": path}
        if with_command:
            words = ("--out", "-", "--budget", BUDGET, "--ledger", path)
            outcome = self._predict(*words, accept=(0, 1, 2, 3))
            if outcome == "exit 0":
                raise Fault(f"{IMAGES} images were sent with a budget of {BUDGET}")
            return outcome
        before = self.sent
        outcome = "works"
        try:
            with self._client(**options) as client:
                for image in self.images:
                    client.classify(image)
        except Exception as error:
            outcome = checked(error, (ConfigurationError, BudgetExceededError))
        sent = self.sent - before
        if sent > BUDGET:
            raise Fault(f"{sent} images were sent with a budget of {BUDGET}")
        if empty and outcome != "ConfigurationError":
            raise Fault(f"an empty file is taken for a ledger with nothing spent: {sent} sent")
        return outcome

    # ---- endpoint files and lists

    def _endpoint(self, rng: random.Random, place: Path, with_command: bool) -> str:
        document = rng.choice(ENDPOINTS)
        if rng.random() < 0.35:
            path = place / "endpoint.toml"
            text = (FILES / "custom.toml").read_text(encoding="utf-8")
            lines = text.splitlines()
            numbers = [i for i, line in enumerate(lines) if " = " in line]
            number = rng.choice(numbers)
            lines[number] = lines[number].partition(" = ")[0] + " = " + rng.choice(ODD_TOML)
            content = "\n".join(lines).encode()
            path.write_bytes(content if chance(rng, 0.6) else mutated(text.encode(), rng))
        else:
            path = place / "endpoint.json"
            draw = rng.random()
            content = json_bytes(odd_document(document, rng), rng)
            if draw < 0.2:
                content = mutated(json.dumps(document).encode(), rng)
            path.write_bytes(content)
        if with_command:
            # Most URLs lead nowhere, so an error of the endpoint is as good.
            words = ("--out", "-", "--max-retries", 0, "--timeout", 1)
            return self._predict("--url", path, *words, accept=(0, 1, 2))
        try:
            client = self._client(path)
        except Exception as error:
            return checked(error, ConfigurationError)
        with client:
            try:
                client.classify(self.images[0])
            except Exception as error:
                return f"read, then {checked(error, PGNError)}"
        return "works"

    def _list(self, rng: random.Random, place: Path, with_command: bool) -> str:
        text = "\n".join(map(str, self.images)) + "\n"
        odd = ("\0", "x" * 5000, "\x1b[2J.png", "/dev/zero", "/", ".", "../..", "~", "//", "a\rb",
               "/proc/self/mem", str(self.folder), "\ufeff", " ", "\u2028", "é.png", "-",
               "http://h/a.png", "/dev/null", "con.png", "n" * 300 + ".png")  # fmt: skip
        for _ in range(rng.choice((1, 1, 3))):
            text += rng.choice(odd) + "\n"
        encoding = rng.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"))
        content = text.encode(encoding, "replace")
        path = place / rng.choice(("list.txt", "list", "list.csv"))
        path.write_bytes(content if chance(rng, 0.6) else mutated(content, rng))
        if with_command:
            words = ("--url", self.peer.url, "--protocol", "pgn", "--out", place / "out.jsonl")
            return command("predict", path, *words)
        try:
            files = find_images(path)
        except Exception as error:
            return checked(error, ConfigurationError)
        with self._client() as client:
            results = list(predict_files(client, files, place / "out.jsonl"))
        if [r.record["path"] for r in results] != [str(file) for file in files]:
            raise Fault("not every path of the list has a result, in order")
        for result in results:
            error = result.record["error"]
            if (result.record["label"] is None) != bool(error) or "\n" in (error or ""):
                raise Fault(f"got {result.record!r}"[:300])
        return "works"

    def _labels(self, rng: random.Random, place: Path, with_command: bool) -> str:
        path = place / "labels.json"
        draw = rng.random()
        if draw < 0.5:
            content = json_bytes(odd_document(LABELS, rng), rng)
        elif draw < 0.75:
            content = mutated(json.dumps(LABELS).encode(), rng)
        else:
            content = mutated("\n".join(LABELS).encode(), rng)
        path.write_bytes(content)
        return self._predict("--out", "-", "--source-labels", path, accept=(0, 1, 2))


def _storable(value: Any) -> Any:
    """Return a value that SQLite can keep in the place of one that it cannot."""
    if isinstance(value, int) and abs(value) >= 2**63:
        return float(value)
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    return value if isinstance(value, bytes | int | float | type(None)) else str(value)
