"""Record and replay of an endpoint's answers: the same bytes to the same model are paid for once."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading

from pgn_client.errors import ConfigurationError
from pgn_client.types import Answer


def cache_key(url: str, model: str | None, body: bytes) -> str:
    """Return the SHA-256, in hexadecimal, of the endpoint, its model and the picture's bytes.

    The parts are joined by a zero byte, which no URL holds, so that no two triples give the same input.
    """
    return hashlib.sha256(b"\0".join([url.encode(), (model or "").encode(), body])).hexdigest()


class AnswerCache:
    """A persistent map from key to Answer (SQLite); safe to use from several threads and processes.

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
                self._db.execute("CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, answer TEXT NOT NULL)")
        except sqlite3.Error as error:
            self._db.close()
            raise self._unusable(error) from error

    def get(self, key: str) -> Answer | None:
        """Return the recorded answer, or None."""
        with self._lock:
            row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        labels, scores, kind = json.loads(row[0])
        return Answer(tuple(labels), tuple(scores), kind)

    def put(self, key: str, answer: Answer) -> None:
        """Record an answer; a later one for the same key replaces it."""
        text = json.dumps([answer.labels, answer.scores, answer.kind])
        with self._lock, self._db:
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, text))

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
