"""Images and money spent, with a hard cap."""

from __future__ import annotations

import threading

from pgn_client.errors import BudgetExceededError, ConfigurationError
from pgn_client.types import Usage


class Ledger:
    """Counts what is sent, and refuses an image beyond the budget before anything is sent for it.

    An image counts once, however often it is retried, and also when the endpoint refuses it: the provider may bill
    it. It does not count when no connection came about. Safe to use from several threads.

    Args:
        budget: number of images that may be sent; None is no limit.
        price_per_image: in any currency; None leaves ``cost`` unknown.
    """

    def __init__(self, budget: int | None = None, price_per_image: float | None = None) -> None:
        if budget is not None and (isinstance(budget, bool) or not isinstance(budget, int) or budget < 0):
            raise ConfigurationError(f"budget: got {budget!r}, expected a number of images, 0 or more, or None")
        if price_per_image is not None and not price_per_image >= 0:
            raise ConfigurationError(f"price_per_image: got {price_per_image!r}, expected 0 or more, or None")
        self.budget, self.price = budget, price_per_image
        self._lock = threading.Lock()
        self._images = self._requests = self._retries = self._bytes = 0

    def reserve(self) -> None:
        """Count one image.

        Raises:
            BudgetExceededError: it would be one too many; nothing is counted.
        """
        with self._lock:
            if self.budget is not None and self._images >= self.budget:
                raise BudgetExceededError(self._images, self.budget)
            self._images += 1

    @property
    def refusal(self) -> BudgetExceededError | None:
        """The error with which the next image would be refused; None where there is budget left."""
        with self._lock:
            spent = self.budget is not None and self._images >= self.budget
            return BudgetExceededError(self._images, self.budget or 0) if spent else None

    def release(self) -> None:
        """Take back one image that never left this machine."""
        with self._lock:
            self._images -= 1

    def sent(self, size: int, *, retry: bool) -> None:
        """Count one HTTP request with ``size`` body bytes."""
        with self._lock:
            self._requests += 1
            self._retries += retry
            self._bytes += size

    @property
    def usage(self) -> Usage:
        """What has been used so far."""
        with self._lock:
            cost = None if self.price is None else self._images * self.price
            return Usage(self._images, self._requests, self._retries, self._bytes, cost)
