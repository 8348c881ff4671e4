"""Images and money spent, with a hard cap that holds over threads, processes, crashes and restarts.

What counts against a budget is every time that an image is sent, retries included: the provider may
bill each of them. It is written down before the image is sent, so that whatever ends the process
leaves it counted; only what provably never left this machine is given back.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.types import Usage


class Ledger:
    """How often images were sent to each endpoint, and what that cost (SQLite); a file outlives its
    process.

    Safe to use from several threads, and the file from several processes: all that spend together
    keep to one budget.

    Args:
        path: the database file, made if missing; None keeps the ledger in memory.

    Raises:
        ConfigurationError: the file cannot be opened or is something else.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._lock = threading.Lock()
        self._name = ":memory:" if path is None else os.fspath(path)
        with self._telling():
            self._db = sqlite3.connect(
                self._name, check_same_thread=False, timeout=30.0, isolation_level=None
            )
        weakref.finalize(self, self._db.close)  # of one that nobody closes
        try:
            with self._telling():
                self._db.execute("PRAGMA journal_mode = WAL")
                # money: also a power cut loses no image
                self._db.execute("PRAGMA synchronous = FULL")
                columns = (
                    "endpoint TEXT PRIMARY KEY, name TEXT NOT NULL, images INTEGER "
                    "NOT NULL, "
                    "cost REAL NOT NULL"
                )
                self._db.execute(f"CREATE TABLE IF NOT EXISTS spent ({columns})")
        except ConfigurationError:
            self._db.close()
            raise

    def spent(self, endpoint: str) -> tuple[int, float]:
        """Return how many images were sent to an endpoint, and what those with a known price cost.

        Args:
            endpoint: its fingerprint, that of URL and model.
        """
        with self._telling(), self._lock:
            row = self._db.execute(
                "SELECT images, cost FROM spent WHERE endpoint = ?", (endpoint,)
            ).fetchone()
        return (0, 0.0) if row is None else (int(row[0]), float(row[1]))

    def reserve(self, endpoint: str, name: str, budget: int | None, price: float) -> None:
        """Write down one image that is about to be sent.

        Args:
            endpoint: its fingerprint.
            name: of the endpoint, for people; without any credential.
            budget: images that may be sent there in all, since the ledger began; None is no limit.
            price: of this image, in any currency; 0 where it is unknown.

        Raises:
            BudgetExceededError: it would be one too many; nothing is written.
        """
        with self._writing():
            if budget is not None:
                row = self._db.execute(
                    "SELECT images FROM spent WHERE endpoint = ?", (endpoint,)
                ).fetchone()
                if (row[0] if row else 0) >= budget:
                    raise BudgetExceededError(row[0] if row else 0, budget)
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, 1, ?) ON CONFLICT (endpoint) DO UPDATE "
                "SET images = images + 1, cost = cost + excluded.cost",
                (endpoint, name, price),
            )

    def release(self, endpoint: str, price: float) -> None:
        """Take back one image that never left this machine."""
        with self._writing():
            change = (
                "UPDATE spent SET images = images - 1, cost = MAX(cost - ?, 0) WHERE endpoint = ?"
            )
            self._db.execute(change, (price, endpoint))

    def close(self) -> None:
        """Close the file; the ledger cannot be used afterwards."""
        with self._lock:  # SQLite crashes where one thread closes what another is using
            self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Hold off all other writers, of other processes too, from before the first look to after
        the last change.
        """
        with self._telling(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigurationError(
                f"ledger: cannot use {self._name!r} ({error}); give a new file in an existing, "
                "writable folder"
            ) from error


class Account:
    """What one client, and the copies of it, spend at one endpoint. Safe to use from several
    threads.

    Args:
        ledger: where it is written down.
        endpoint: the fingerprint of URL and model.
        name: of the endpoint, for people.
        budget: how often images may be sent there, by all that share the ledger; None is no limit.
        price_per_image: in any currency; None leaves ``cost`` unknown.

    Raises:
        ConfigurationError: a budget or price that is none.
    """

    def __init__(
        self,
        ledger: Ledger,
        endpoint: str,
        name: str,
        budget: int | None = None,
        price_per_image: float | None = None,
    ) -> None:
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int) or budget < 0
        ):
            raise ConfigurationError(
                f"budget: got {budget!r}, expected a number of images, 0 or more, or None"
            )
        known = isinstance(price_per_image, int | float) and not isinstance(price_per_image, bool)
        if price_per_image is not None and not (known and 0 <= price_per_image < math.inf):
            raise ConfigurationError(
                f"price_per_image: got {price_per_image!r}, expected 0 or more, or None"
            )
        self.ledger, self.budget, self.price = ledger, budget, price_per_image
        self._endpoint, self._name = endpoint, name
        self._lock = threading.Lock()
        self._images = self._billable = self._requests = self._retries = self._bytes = 0

    def reserve(self) -> None:
        """Write down that an image is about to be sent.

        Raises:
            BudgetExceededError: it would be one too many; nothing is written.
        """
        self.ledger.reserve(self._endpoint, self._name, self.budget, self.price or 0.0)
        with self._lock:
            self._billable += 1

    def release(self) -> None:
        """Take back what was reserved for an image that never left this machine."""
        self.ledger.release(self._endpoint, self.price or 0.0)
        with self._lock:
            self._billable -= 1

    @property
    def refusal(self) -> BudgetExceededError | None:
        """The error with which the next image would be refused; None where there is budget left."""
        if self.budget is None:
            return None
        images, _ = self.ledger.spent(self._endpoint)
        return BudgetExceededError(images, self.budget) if images >= self.budget else None

    def asked(self) -> None:
        """Count one image, however often it was sent."""
        with self._lock:
            self._images += 1

    def sent(self, size: int, *, retry: bool) -> None:
        """Count one HTTP request with ``size`` body bytes."""
        with self._lock:
            self._requests += 1
            self._retries += retry
            self._bytes += size

    @property
    def usage(self) -> Usage:
        """What the client has used so far."""
        with self._lock:
            cost = None if self.price is None else self._billable * self.price
            return Usage(
                self._images, self._requests, self._retries, self._bytes, cost, self._billable
            )
