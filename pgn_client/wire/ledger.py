"""Counts sent images and their cost, and enforces a budget across threads, processes and restarts.

Each sending of an image counts, retries included, because the provider may bill each. The count is
written before the image is sent, so a crash cannot lose it. It is taken back only if the image
provably never left this machine.
"""

from __future__ import annotations

import math
import os
import secrets
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from pgn_client.errors import (
    BudgetExceededError,
    ConfigurationError,
    printable,
)
from pgn_client.types import Usage
from pgn_client.wire.database import database_errors

MOST_IMAGES = 2**53
"""Largest believable count of images; SQLite's own integers would overflow beyond 2 ** 63."""

_COLUMNS = ["endpoint", "name", "images", "cost"]
_TABLE = (
    "CREATE TABLE spent (endpoint TEXT PRIMARY KEY, name TEXT NOT NULL, images INTEGER NOT NULL, "
    "cost REAL NOT NULL)"
)


class Ledger:
    """Counts the images sent to each endpoint and their cost, in SQLite.

    Several threads may use one ledger, and several processes one ledger file; all of them then
    share one budget.

    Args:
        path: Path of the database file, which is created if missing; None keeps the ledger in
            memory.

    Raises:
        ConfigurationError: The file cannot be opened or is no ledger. An empty file is none either:
            the counts that it has lost must not become a fresh budget.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else os.fspath(path)
        with database_errors("ledger", self._name):
            if path is not None and not os.path.lexists(path):
                _create(Path(path))
            elif path is not None and os.path.getsize(path) == 0:
                raise ConfigurationError(
                    f"ledger: got {self._name!r}, which is empty, expected the counts of earlier "
                    "runs; restore the file, or remove it to count from 0"
                )
            self._db = _connected(self._name)
        # Closes the connection of a ledger that is dropped without ``close``.
        weakref.finalize(self, self._db.close)
        try:
            with database_errors("ledger", self._name):
                if path is None:
                    self._db.execute(_TABLE)
                self._check()
                # With WAL, a process that reads does not block the one that writes.
                self._db.execute("PRAGMA journal_mode = WAL")
                # The counts are money: with FULL, a power cut loses none of them.
                self._db.execute("PRAGMA synchronous = FULL")
        except ConfigurationError:
            self._db.close()
            raise

    def _check(self) -> None:
        """Check that the database has our table, with possible counts.

        Raises:
            ConfigurationError: It is another database, or a count or cost is impossible.
        """
        columns = [row[1] for row in self._db.execute("PRAGMA table_info(spent)")]
        if columns != _COLUMNS:
            raise ConfigurationError(
                f"ledger: got {self._name!r}, which is no ledger (its table spent has "
                f"{printable(', '.join(columns))[:80] or 'no columns'}), expected a file that "
                "--ledger has made; give another file"
            )
        wrong = self._db.execute(
            "SELECT name, images, cost FROM spent WHERE typeof(images) != 'integer' "
            "OR images NOT BETWEEN 0 AND ? OR typeof(cost) NOT IN ('integer', 'real') "
            # False for an infinite cost; SQLite stores NaN as NULL.
            "OR NOT cost BETWEEN 0 AND 1e300",
            (MOST_IMAGES,),
        ).fetchone()
        if wrong is not None:
            name, images, cost = wrong
            raise ConfigurationError(
                f"ledger: got {images!r:.40} images and a cost of {cost!r:.40} for "
                f"{printable(str(name))[:80]} in {self._name!r}, expected 0 or more of both; "
                "restore the file, or remove it to count from 0"
            )

    def spent(self, endpoint: str) -> tuple[int, float]:
        """Return the number of images sent to an endpoint, and their total cost.

        Images without a known price add nothing to the cost.

        Args:
            endpoint: Fingerprint of the endpoint's URL and model.
        """
        with database_errors("ledger", self._name), self._lock:
            row = self._db.execute(
                "SELECT images, cost FROM spent WHERE endpoint = ?", (endpoint,)
            ).fetchone()
        return (0, 0.0) if row is None else (int(row[0]), float(row[1]))

    def reserve(self, endpoint: str, name: str, budget: int | None, price: float) -> None:
        """Count one image that is about to be sent, if the budget allows it.

        Args:
            endpoint: Fingerprint of the endpoint's URL and model.
            name: Readable name of the endpoint, without any credential.
            budget: Total number of images that may be sent to the endpoint, counted since the
                ledger was created; None for no limit.
            price: Price of this image in any currency; 0 if it is unknown.

        Raises:
            BudgetExceededError: The image would exceed the budget; nothing is counted.
        """
        with self._writing():
            if budget is not None:
                row = self._db.execute(
                    "SELECT images FROM spent WHERE endpoint = ?", (endpoint,)
                ).fetchone()
                images = row[0] if row else 0
                if images >= budget:
                    raise BudgetExceededError(images, budget)
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, 1, ?) ON CONFLICT (endpoint) DO UPDATE "
                "SET images = images + 1, cost = cost + excluded.cost",
                (endpoint, name, price),
            )

    def release(self, endpoint: str, price: float) -> None:
        """Take back the count of one image that never left this machine."""
        with self._writing():
            # MAX: rounding of floats could leave a cost slightly below 0.
            self._db.execute(
                "UPDATE spent SET images = MAX(images - 1, 0), cost = MAX(cost - ?, 0) "
                "WHERE endpoint = ?",
                (price, endpoint),
            )

    def close(self) -> None:
        """Close the ledger's database file; the ledger cannot be used afterwards."""
        # SQLite crashes if one thread closes the connection while another uses it.
        with self._lock:
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Run a transaction that excludes all other writers, also those in other processes.

        The write lock is taken before the first read, so no count can change between check and
        update.
        """
        with database_errors("ledger", self._name), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                # Also after Ctrl-C, and after a COMMIT that failed: an open transaction would lock
                # out every other process. SQLite itself has ended it after some errors.
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise


def _connected(name: str) -> sqlite3.Connection:
    """Open an SQLite database."""
    return sqlite3.connect(
        name,
        # Threads share the connection, and a lock admits one at a time.
        check_same_thread=False,
        # In seconds: another process may hold the write lock for a moment.
        timeout=30.0,
        # With None, sqlite3 begins no transactions by itself; ``_writing`` does it.
        isolation_level=None,
    )


def _create(path: Path) -> None:
    """Create a ledger file with an empty table, unless another process has just done it.

    The file appears with its table, so that a file without one is always a damaged one.

    Raises:
        OSError: The file cannot be created.
    """
    with closing(_connected(":memory:")) as db:
        db.execute(_TABLE)
        content = db.serialize()

    partial = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        _write_new(partial, content)
        try:
            # Unlike a renamed file, a link never replaces the ledger of another process.
            os.link(partial, path)
        except FileExistsError:
            pass
        except OSError:
            # Some file systems have no links.
            with suppress(FileExistsError):
                _write_new(path, content)
    finally:
        partial.unlink(missing_ok=True)


def _write_new(path: Path, content: bytes) -> None:
    """Write a file that must not exist yet; an incomplete one is removed."""
    with path.open("xb") as file:
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except BaseException:
            path.unlink(missing_ok=True)
            raise


class Account:
    """Usage and budget of one client (and its copies) at one endpoint; safe for several threads.

    Args:
        ledger: Ledger that stores the counts.
        endpoint: Fingerprint of the endpoint's URL and model.
        name: Readable name of the endpoint.
        budget: Number of images that all clients with this ledger may send to the endpoint, retries
            included; None for no limit.
        price_per_image: Price of one image in any currency.
        price_per_hour: Price of one hour of the endpoint in the same currency. Without any price,
            ``cost`` is unknown.

    Attributes:
        ledger: Ledger that stores the counts.
        budget: Budget in images; None for no limit.
        price: Price of one image; None if it is unknown.
        price_per_hour: Price of one hour; None if it is unknown.

    Raises:
        ConfigurationError: The budget or a price is invalid.
    """

    def __init__(
        self,
        ledger: Ledger,
        endpoint: str,
        name: str,
        budget: int | None = None,
        price_per_image: float | None = None,
        price_per_hour: float | None = None,
    ) -> None:
        # True and False are ints in Python, but no numbers of images or prices.
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int) or budget < 0
        ):
            raise ConfigurationError(
                f"budget: got {budget!r}, expected a number of images, 0 or more, or None"
            )
        prices = {"price_per_image": price_per_image, "price_per_hour": price_per_hour}
        for option, price in prices.items():
            is_number = isinstance(price, int | float) and not isinstance(price, bool)
            if price is not None and not (is_number and 0 <= price < math.inf):
                raise ConfigurationError(f"{option}: got {price!r}, expected 0 or more, or None")

        self.ledger = ledger
        self.budget = budget
        self.price = price_per_image
        self.price_per_hour = price_per_hour
        self._endpoint = endpoint
        self._name = name

        self._lock = threading.Lock()
        self._images = 0
        self._billable = 0
        self._refused = 0
        self._requests = 0
        self._retries = 0
        self._bytes = 0
        # Of the first request and of the last event, on the monotonic clock.
        self._began: float | None = None
        self._ended = 0.0

    def reserve(self) -> None:
        """Count one image that is about to be sent, if the budget allows it.

        Raises:
            BudgetExceededError: The image would exceed the budget; nothing is counted.
        """
        self.ledger.reserve(self._endpoint, self._name, self.budget, self.price or 0.0)
        with self._lock:
            self._billable += 1

    def charge(self) -> None:
        """Count one image that was sent although no budget was asked."""
        self.ledger.reserve(self._endpoint, self._name, None, self.price or 0.0)
        with self._lock:
            self._billable += 1

    def release(self) -> None:
        """Take back the count of one image that never left this machine."""
        self.ledger.release(self._endpoint, self.price or 0.0)
        with self._lock:
            self._billable -= 1

    @property
    def refusal(self) -> BudgetExceededError | None:
        """Error that sending another image would raise; None if there is budget left."""
        if self.budget is None:
            return None
        images, _ = self.ledger.spent(self._endpoint)
        return BudgetExceededError(images, self.budget) if images >= self.budget else None

    def asked(self) -> None:
        """Count one image in ``usage.images``; call it once per image, not for each retry."""
        with self._lock:
            self._images += 1
            self._ended = time.monotonic()

    def refused(self) -> None:
        """Count one sent image that the endpoint refused with a status 4xx."""
        with self._lock:
            self._refused += 1

    def sent(self, size: int, *, retry: bool) -> None:
        """Count one HTTP request and the size of its body in the usage.

        Args:
            size: Size of the request body in bytes.
            retry: Whether the request is a retry.
        """
        with self._lock:
            self._requests += 1
            if retry:
                self._retries += 1
            self._bytes += size
            self._ended = time.monotonic()
            if self._began is None:
                self._began = self._ended

    @property
    def usage(self) -> Usage:
        """Images, requests, bytes and cost of the client and its copies so far."""
        with self._lock:
            return Usage(
                images=self._images,
                requests=self._requests,
                retries=self._retries,
                bytes_sent=self._bytes,
                cost=self._cost(),
                billable=self._billable,
                refused=self._refused,
            )

    def _cost(self) -> float | None:
        """Return the cost of the images and of the hours so far; None without a price."""
        if self.price is None and self.price_per_hour is None:
            return None
        hours = 0.0 if self._began is None else (self._ended - self._began) / 3600
        return self._billable * (self.price or 0.0) + hours * (self.price_per_hour or 0.0)
