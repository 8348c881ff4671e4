"""Record and replay of an endpoint's answers: the same bytes to the same model are paid for once.

A file that was recorded refits mappings, and runs whole evaluations, without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import pathname2url

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer

CANARIES = 8
"""Images that are kept of each endpoint: a model that has changed answers none, or few, of them
exactly as before.
"""

_TABLES = {
    "answers": "answer TEXT NOT NULL",
    "models": "identity TEXT NOT NULL",
    "pictures": "endpoint TEXT NOT NULL, picture BLOB NOT NULL",
}


def endpoint_key(url: str, model: str | None, asked: str = "") -> str:
    """Return the fingerprint of an endpoint: the SHA-256, in hexadecimal, of its URL, its model and
    what is asked.

    Args:
        url: may hold a credential in its query.
        model: the caller's name for it.
        asked: labels and options, as JSON; empty where none are given.
    """
    return cache_key(url, model, asked, b"")


def cache_key(url: str, model: str | None, identity: str, body: bytes) -> str:
    """Return the SHA-256, in hexadecimal, of the endpoint, its model and the image's bytes.

    The parts are joined by a zero byte, which neither URL nor JSON holds, so that no two inputs are
    the same.

    Args:
        url: may hold a credential in its query, of which the digest shows nothing.
        model: the caller's name for it.
        identity: what the endpoint says of the model behind the URL, and the dialect it is asked
            in, as JSON.
        body: the image's bytes.
    """
    parts = [url.encode(), (model or "").encode(), identity.encode(), body]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


@dataclass(frozen=True, slots=True)
class Recorded:
    """An answer as it was recorded.

    Attributes:
        answer: the endpoint's.
        attempts: requests that it took then.
        request_id: the server's identifier then, if it gave one.
    """

    answer: Answer
    attempts: int = 0
    request_id: str | None = None


class AnswerCache:
    """A persistent map from key to Answer (SQLite); safe to use from several threads and processes.

    It also remembers the identity of the model that last answered at each endpoint, so that its
    answers can be replayed while that cannot be reached, and the first ``CANARIES`` images that
    were sent there, as they were sent, so that a drift of the model can be found by sending them
    again. An endpoint is named by its ``endpoint_key``.

    Args:
        path: the database file, made if missing; None keeps the answers in memory.
        replay: only read what is recorded; a client then sends nothing at all, and an image that
            is not recorded is an error.

    Raises:
        ConfigurationError: the file cannot be opened or is something else; or, to replay, is
            missing.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, replay: bool = False) -> None:
        self.replay = replay
        self._enough: set[str] = set()  # endpoints whose canaries are kept
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else os.fspath(path)
        if replay and (path is None or not Path(path).is_file()):
            raise ConfigurationError(
                f"replay: got {self._name}, expected a file that a run with a cache has recorded"
            )
        try:
            where = _only_reading(Path(self._name)) if replay else self._name
            self._db = sqlite3.connect(where, check_same_thread=False, timeout=30.0, uri=replay)
            weakref.finalize(self, self._db.close)  # of one that nobody closes
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            if replay:
                self._db.execute("SELECT 1 FROM answers, models LIMIT 0")
                return
            # with NORMAL: one write per answer, and no wait for the disk
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._db:
                for table, columns in _TABLES.items():
                    self._db.execute(
                        f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, {columns})"
                    )
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self._name

    def get(self, key: str) -> Recorded | None:
        """Return what is recorded, or None."""
        text = self._one("SELECT answer FROM answers WHERE key = ?", key)
        if text is None:
            return None
        labels, scores, kind, *took = json.loads(text)
        return Recorded(Answer(tuple(labels), tuple(scores), kind), *took)

    def put(
        self, key: str, answer: Answer, attempts: int = 0, request_id: str | None = None
    ) -> None:
        """Record an answer, and what it took; a later one for the same key replaces it."""
        text = json.dumps([answer.labels, answer.scores, answer.kind, attempts, request_id])
        self._write("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, text)

    def keep(self, endpoint: str, key: str, image: bytes) -> None:
        """Keep an image as it was sent, for ``canaries``, unless there are enough of this
        endpoint.
        """
        if endpoint in self._enough:
            return
        counted = "(SELECT COUNT(*) FROM images WHERE endpoint = ?)"
        values = (key, endpoint, image, endpoint, CANARIES)
        self._write(f"INSERT OR IGNORE INTO images SELECT ?, ?, ? WHERE {counted} < ?", *values)
        if int(self._one(f"SELECT {counted}", endpoint) or 0) >= CANARIES:
            self._enough.add(endpoint)

    def canaries(self, endpoint: str) -> list[tuple[Answer, bytes]]:
        """Return the images that are kept of an endpoint, oldest first, each with its recorded
        answer.
        """
        rows = self._rows(
            "SELECT key, image FROM images WHERE endpoint = ? ORDER BY rowid", endpoint
        )
        kept = ((self.get(key), bytes(image)) for key, image in rows)
        return [(found.answer, image) for found, image in kept if found is not None]

    def recall(self, endpoint: str) -> str | None:
        """Return the identity of the model that last answered there, or None."""
        return self._one("SELECT identity FROM models WHERE key = ?", endpoint)

    def remember(self, endpoint: str, identity: str) -> None:
        """Note the identity of the model there."""
        self._write("INSERT OR REPLACE INTO models VALUES (?, ?)", endpoint, identity)

    def _one(self, query: str, key: str) -> str | None:
        rows = self._rows(query, key)
        return str(rows[0][0]) if rows else None

    def _rows(self, query: str, key: str) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(query, (key,)).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _write(self, statement: str, *values: str | bytes | int) -> None:
        try:
            with self._lock, self._db:
                self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the file; the cache cannot be used afterwards."""
        with self._lock:  # SQLite crashes where one thread closes what another is using
            self._db.close()

    def _unusable(self, error: sqlite3.Error) -> ConfigurationError:
        return ConfigurationError(
            f"answer cache: cannot use {self._name!r} ({error}); give a new file in an existing, "
            "writable folder"
        )


def _only_reading(path: Path) -> str:
    """Return the URI that opens a database without writing a byte, also from a folder that cannot
    be written.

    A log beside it belongs to a run that is recording, or was killed while it did: its newest
    answers are in there.
    """
    recording = path.with_name(path.name + "-wal").exists()
    return f"file:{pathname2url(os.path.abspath(path))}?{'mode=ro' if recording else 'immutable=1'}"
