"""Records an endpoint's answers in a file and replays them: an image is paid for once per model.

With such a file, label mappings can be fitted and evaluations repeated without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import weakref
from contextlib import AbstractContextManager
from math import isfinite
from pathlib import Path
from typing import Any, TypeVar, get_args
from urllib.request import pathname2url

from pgn_client.errors import ConfigurationError, reading
from pgn_client.types import Answer, Reply, ScoreKind
from pgn_client.wire.database import database_errors

T = TypeVar("T")

CANARIES = 8
"""Number of images stored per endpoint, to detect later whether its model has changed (drift).

A changed model returns other scores for most or all of them.
"""

_TABLES = {
    "answers": {"answer": "TEXT NOT NULL"},
    "models": {"identity": "TEXT NOT NULL"},
    "pictures": {"endpoint": "TEXT NOT NULL", "picture": "BLOB NOT NULL"},
}
"""Table → type of each column but ``key``, its primary key."""


def endpoint_key(url: str, model: str | None, asked: str = "") -> str:
    """Return the fingerprint of an endpoint, a SHA-256 in hexadecimal.

    Args:
        url: URL of the endpoint; its query may hold a credential.
        model: Model name that the caller configured.
        asked: Source labels and wire format options of the endpoint, as JSON; empty without any.
    """
    # The key of an empty image: no image is empty, so an endpoint never shares a key with one.
    return cache_key(url, model, asked, b"")


def cache_key(url: str, model: str | None, identity: str, body: bytes) -> str:
    """Return the key of an image's answer in the cache, a SHA-256 in hexadecimal.

    Args:
        url: URL of the endpoint; its query may hold a credential, which the hash does not reveal.
        model: Model name that the caller configured.
        identity: Model identity as JSON: the endpoint's description of its model, and the dialect
            (the variant of the wire format) of the requests.
        body: Bytes of the image.
    """
    # Neither a URL nor JSON contains a zero byte, so different parts never join to the same bytes.
    parts = [url.encode(), (model or "").encode(), identity.encode(), body]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


class AnswerCache:
    """Store of recorded endpoint answers, in SQLite; safe for several threads and processes.

    Each answer has the key of its image, from ``cache_key``.

    The cache also stores two things per endpoint, under its ``endpoint_key``:

    - The identity of the model that answered last. With it, answers can be replayed while the
      endpoint is unreachable.
    - The first ``CANARIES`` images, with the bytes that were sent. Sending them again shows whether
      the model has changed.

    Args:
        path: Path of the database file, which is created if missing; None keeps the answers in
            memory.
        replay: Whether to only read recorded answers. A client then sends no requests, and an image
            without a recorded answer is an error.

    Raises:
        ConfigurationError: The file cannot be opened or is no database of answers; or it is missing
            and ``replay`` is set.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, replay: bool = False) -> None:
        self.replay = replay
        self._complete: set[str] = set()  # endpoints that have all their canaries
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else os.fspath(path)
        if replay and (path is None or not os.path.isfile(path)):
            raise ConfigurationError(
                f"replay: got {self._name}, expected a file that a run with a cache has recorded"
            )

        with database_errors("answer cache", self._name):
            database = _read_only_uri(Path(self._name)) if replay else self._name
            self._db = sqlite3.connect(database, check_same_thread=False, timeout=30.0, uri=replay)
        # For a cache that is never closed.
        weakref.finalize(self, self._db.close)

        try:
            with database_errors("answer cache", self._name):
                self._open()
        except ConfigurationError:
            self._db.close()
            raise

    def _open(self) -> None:
        """Check that the database is one of answers, and add what a new one lacks."""
        if self.replay:
            # Fails now, not at the first image, where the file is no database of answers. A replay
            # reads no kept images.
            self._db.execute("SELECT key, answer FROM answers LIMIT 0")
            self._db.execute("SELECT key, identity FROM models LIMIT 0")
            return

        tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master")}
        if tables and not tables & _TABLES.keys():
            # Another program's database, or a ledger: nothing is added to it.
            raise sqlite3.DatabaseError("it is a database of something else")
        # A write-ahead log with NORMAL needs one write per answer, and does not wait for the disk.
        # A power cut may lose the newest answers, which then cost their requests again.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        with self._db:
            for table, columns in _TABLES.items():
                types = ", ".join(f"{name} {kind}" for name, kind in columns.items())
                self._db.execute(
                    f"CREATE TABLE IF NOT EXISTS {table} (key TEXT PRIMARY KEY, {types})"
                )
        for table, columns in _TABLES.items():
            # Fails where an existing table has other columns.
            self._db.execute(f"SELECT key, {', '.join(columns)} FROM {table} LIMIT 0")

    @property
    def name(self) -> str:
        """Name of the cache's database file, for messages; ``:memory:`` without a file."""
        return self._name

    def get(self, key: str) -> Reply | None:
        """Return the recorded reply for a cache key: the answer, number of requests, request id.

        None if nothing is recorded.
        """
        text = self._one("SELECT answer FROM answers WHERE key = ?", key)
        if text is None:
            return None
        with self._damaged():
            return _reply(text)

    def put(
        self, key: str, answer: Answer, attempts: int = 0, request_id: str | None = None
    ) -> None:
        """Record an endpoint's answer; it replaces an earlier one with the same key.

        Args:
            key: Cache key of the image.
            answer: Answer to record.
            attempts: Number of requests that the answer took.
            request_id: Server's identifier of the request; None if it returned none.
        """
        text = json.dumps([answer.labels, answer.scores, answer.kind, attempts, request_id])
        self._write("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, text)

    def keep(self, endpoint: str, key: str, image: bytes) -> None:
        """Store a sent image for later drift checks, unless the endpoint has ``CANARIES`` of them.

        Args:
            endpoint: Fingerprint of the endpoint, from ``endpoint_key``.
            key: Cache key of the image.
            image: Bytes of the image as sent.
        """
        if endpoint in self._complete:
            return
        # One statement counts and inserts, so that several processes together keep the limit.
        count = "(SELECT COUNT(*) FROM pictures WHERE endpoint = ?)"
        values = (key, endpoint, image, endpoint, CANARIES)
        self._write(f"INSERT OR IGNORE INTO pictures SELECT ?, ?, ? WHERE {count} < ?", *values)
        if int(self._one(f"SELECT {count}", endpoint) or 0) >= CANARIES:
            self._complete.add(endpoint)

    def canaries(self, endpoint: str) -> list[tuple[Answer, bytes]]:
        """Return an endpoint's images stored for drift checks, oldest first.

        Returns:
            Pairs of the recorded answer and the bytes of the image.
        """
        rows = self._rows(
            "SELECT key, picture FROM pictures WHERE endpoint = ? ORDER BY rowid", endpoint
        )
        canaries = []
        for key, image in rows:
            recorded = self.get(key)
            if recorded is not None:
                with self._damaged():
                    canaries.append((recorded.answer, _typed(image, bytes)))
        return canaries

    def recall(self, endpoint: str) -> str | None:
        """Return the identity of the model that last answered at the endpoint; None if unknown."""
        identity = self._one("SELECT identity FROM models WHERE key = ?", endpoint)
        if identity is not None:
            with self._damaged():
                _typed(json.loads(identity), list)
        return identity

    def remember(self, endpoint: str, identity: str) -> None:
        """Store the identity of the model that last answered at the endpoint."""
        self._write("INSERT OR REPLACE INTO models VALUES (?, ?)", endpoint, identity)

    def _one(self, query: str, key: str) -> str | None:
        """Return the first column of a query's first row as text; None without a row."""
        rows = self._rows(query, key)
        return str(rows[0][0]) if rows else None

    def _damaged(self) -> AbstractContextManager[None]:
        """Context manager around the use of a stored row: one that is damaged is one error."""
        return reading(f"answer cache: a row of {self._name!r}", "give a new file")

    def _rows(self, query: str, key: str) -> list[tuple[Any, ...]]:
        with database_errors("answer cache", self._name), self._lock:
            return self._db.execute(query, (key,)).fetchall()

    def _write(self, statement: str, *values: str | bytes | int) -> None:
        # The connection's context manager commits, or rolls back if that fails.
        with database_errors("answer cache", self._name), self._lock, self._db:
            self._db.execute(statement, values)

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Close the cache's database file; the cache cannot be used afterwards."""
        # SQLite crashes if one thread closes the connection while another uses it.
        with self._lock:
            self._db.close()


def _reply(text: str) -> Reply:
    """Return the reply that a row of the cache holds as JSON.

    Raises:
        TypeError, ValueError: The row has another form.
    """
    # Files of earlier versions lack the attempts and the request id.
    labels, scores, kind, *attempts_and_id = _typed(json.loads(text), list)
    if kind not in get_args(ScoreKind):
        raise ValueError(f"got {kind!r:.40} as kind of the scores")
    answer = Answer(
        tuple(_typed(label, str) for label in _typed(labels, list)),
        tuple(_finite(score) for score in _typed(scores, list)),
        kind,
    )
    if len(answer.labels) != len(answer.scores):
        raise ValueError(f"got {len(answer.labels)} labels and {len(answer.scores)} scores")

    attempts, request_id = attempts_and_id or (0, None)
    if request_id is not None:
        _typed(request_id, str)
    return Reply(answer, _typed(attempts, int), request_id)


def _finite(number: Any) -> float:
    """Return a finite number.

    Raises:
        TypeError, ValueError: The value is none.
    """
    if isinstance(number, bool) or not isinstance(number, int | float) or not isfinite(number):
        raise ValueError(f"got {number!r:.40}, expected a finite number")
    return number


def _typed(value: Any, kind: type[T]) -> T:
    """Return a value that has this type.

    Raises:
        TypeError: It has another.
    """
    if not isinstance(value, kind):
        raise TypeError(f"got {type(value).__name__}, expected {kind.__name__}")
    return value


def _read_only_uri(path: Path) -> str:
    """Return the URI that opens an SQLite file read-only, even in a read-only folder."""
    # A write-ahead log next to the file holds the newest answers of a run that is recording, or was
    # killed while it was. ``immutable`` would ignore the log, so it is for files without one.
    has_log = path.with_name(path.name + "-wal").exists()
    mode = "mode=ro" if has_log else "immutable=1"
    return f"file:{pathname2url(os.path.abspath(path))}?{mode}"
