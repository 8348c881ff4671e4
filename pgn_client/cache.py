"""Record and replay of an endpoint's answers: the same bytes to the same model are paid for once."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer


def cache_key(url: str, model: str | None, identity: str, body: bytes) -> str:
    """Return the SHA-256, in hexadecimal, of the endpoint, its model and the picture's bytes.

    The parts are joined by a zero byte, which neither URL nor JSON holds, so that no two inputs are the same.

    Args:
        url: may hold a credential in its query, of which the digest shows nothing.
        model: the caller's name for it.
        identity: what the endpoint says of the model behind the URL, and the dialect it is asked in, as JSON.
        body: the picture's bytes.
    """
    parts = [url.encode(), (model or "").encode(), identity.encode(), body]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


class AnswerCache:
    """A persistent map from key to Answer (SQLite); safe to use from several threads and processes.

    It also remembers the identity of the model that last answered at each URL, so that its answers can be replayed
    while the endpoint cannot be reached.

    Args:
        path: the database file, made if missing; None keeps the answers in memory.

    Raises:
        ConfigurationError: the file cannot be opened or is something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else os.fspath(path)
        try:
            self._db = sqlite3.connect(self._name, check_same_thread=False, timeout=30.0)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._db.execute("PRAGMA journal_mode = WAL")  # with NORMAL: one write per answer, and no wait for the disk
            self._db.execute("PRAGMA synchronous = NORMAL")
            with self._db:
                for table, value in (("answers", "answer"), ("models", "identity")):
                    columns = f"(key TEXT PRIMARY KEY, {value} TEXT NOT NULL)"
                    self._db.execute(f"CREATE TABLE IF NOT EXISTS {table} {columns}")
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error

    def get(self, key: str) -> Answer | None:
        """Return the recorded answer, or None."""
        text = self._one("SELECT answer FROM answers WHERE key = ?", key)
        if text is None:
            return None
        labels, scores, kind = json.loads(text)
        return Answer(tuple(labels), tuple(scores), kind)

    def put(self, key: str, answer: Answer) -> None:
        """Record an answer; a later one for the same key replaces it."""
        text = json.dumps([answer.labels, answer.scores, answer.kind])
        self._write("INSERT OR REPLACE INTO answers VALUES (?, ?)", key, text)

    def recall(self, url: str, model: str | None) -> str | None:
        """Return the identity of the model that last answered there, or None."""
        return self._one("SELECT identity FROM models WHERE key = ?", cache_key(url, model, "", b""))

    def remember(self, url: str, model: str | None, identity: str) -> None:
        """Note the identity of the model there."""
        self._write("INSERT OR REPLACE INTO models VALUES (?, ?)", cache_key(url, model, "", b""), identity)

    def _one(self, query: str, key: str) -> str | None:
        try:
            with self._lock:
                row = self._db.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return None if row is None else str(row[0])

    def _write(self, statement: str, *values: str) -> None:
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
        self._db.close()

    def _unusable(self, error: sqlite3.Error) -> ConfigurationError:
        return ConfigurationError(
            f"answer cache: cannot use {self._name!r} ({error}); give a new file in an existing, writable folder"
        )
