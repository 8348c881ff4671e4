"""What the synchronous and the asynchronous client have in common: arguments and properties."""

from __future__ import annotations

import contextlib
import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, Self, cast
from urllib.parse import unquote_plus, urlsplit

from pgn_client.errors import ConfigurationError
from pgn_client.imaging.codecs import ImageSource
from pgn_client.types import Adapter, Usage
from pgn_client.wire.cache import AnswerCache, endpoint_key
from pgn_client.wire.call_options import CallOptions, Weights, check_number, check_whole
from pgn_client.wire.endpoint import Credential, Endpoint
from pgn_client.wire.http_options import HttpOptions
from pgn_client.wire.ledger import Account, Ledger
from pgn_client.wire.loaded_adapter import LoadedAdapter
from pgn_client.wire.prepare import MAX_BATCH
from pgn_client.wire.rate_limit import Pacer
from pgn_client.wire.session import Session
from pgn_client.wire.transport import Connect

SAME: Any = ...
"""Default of the arguments of ``with_options``: keep the client's current value."""


class BaseClient(ABC):
    """Base of ``AdaptedClient``, which documents the arguments, and ``AsyncAdaptedClient``."""

    def __init__(
        self,
        url: str | os.PathLike[str],
        pgn_ckpt: str | os.PathLike[str] | Adapter | None,
        *,
        protocol: str = "auto",
        model: str | None = None,
        api_key: str | None = None,
        timeout: float = 30.0,
        max_retries: int = 4,
        max_concurrency: int = 8,
        requests_per_second: float | None = None,
        bytes_per_second: float | None = None,
        fusion: float | Literal["auto"] | None = "auto",
        query_below: float | None = None,
        budget: int | None = None,
        price_per_image: float | None = None,
        price_per_hour: float | None = None,
        ledger: str | os.PathLike[str] | Ledger | None = None,
        cache: str | os.PathLike[str] | AnswerCache | None = None,
        transport: Any = None,
        http: Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
    ) -> None:
        check_whole("max_concurrency", max_concurrency, least=1)
        rate_limits = (
            ("requests_per_second", requests_per_second),
            ("bytes_per_second", bytes_per_second),
        )
        for name, limit in rate_limits:
            if limit is not None:
                check_number(name, limit, "a number above 0, or None", above=0)
        options = CallOptions(timeout, max_retries, Weights(fusion, query_below))

        http_options = HttpOptions(http)
        endpoint = _endpoint(url, protocol, model, labels)
        credential = _credential(api_key, http_options, endpoint.url)
        endpoint = replace(endpoint, credential=credential)
        adapter = LoadedAdapter(pgn_ckpt)
        self.max_concurrency = int(max_concurrency)
        self._borrows = False

        # The stack closes the opened files if a later argument is invalid.
        with contextlib.ExitStack() as opened:
            if not isinstance(ledger, Ledger):
                ledger = opened.enter_context(contextlib.closing(Ledger(ledger)))
            fingerprint = endpoint_key(endpoint.url, endpoint.model)
            account = Account(
                ledger, fingerprint, endpoint.name, budget, price_per_image, price_per_hour
            )
            if cache is not None and not isinstance(cache, AnswerCache):
                cache = opened.enter_context(contextlib.closing(AnswerCache(cast("str", cache))))

            pacer = Pacer(requests_per_second, bytes_per_second)
            self._session = Session(endpoint, adapter, options, account, pacer, cache)
            self._open(Connect(endpoint, http_options, self.max_concurrency), transport)
            self._opened = opened.pop_all()

    @abstractmethod
    def _open(self, connect: Connect, transport: Any) -> None:
        """Create what sends and waits, such as connections; the constructor calls it last."""

    def with_options(
        self,
        *,
        pgn_ckpt: str | os.PathLike[str] | Adapter | None = SAME,
        timeout: float = SAME,
        max_retries: int = SAME,
        fusion: float | Literal["auto"] | None = SAME,
        query_below: float | None = SAME,
    ) -> Self:
        """Return a copy of this client with other options.

        The copy shares the connections, the rate and concurrency limits, the budget and usage, the
        cache, and the detected protocol and model. Closing the copy closes none of these. Closing
        this client also ends the copy.

        Args:
            pgn_ckpt: Path of a checkpoint, an adapter, or None. Here and below, an omitted option
                keeps this client's value.
            timeout: Time limit for one call in seconds.
            max_retries: Largest number of retries of one call.
            fusion: Weight in [0, 1] of the local head, the checkpoint's own small classifier;
                ``auto`` for the weight in the checkpoint, or None for 0.
            query_below: Confidence in [0, 1] from which the local head answers alone, or None.

        Raises:
            ConfigurationError: An argument is invalid.
        """
        session = self._session
        weights = session.options.weights
        options = CallOptions(
            session.options.timeout if timeout is SAME else timeout,
            session.options.max_retries if max_retries is SAME else max_retries,
            Weights(
                weights.fusion if fusion is SAME else fusion,
                weights.query_below if query_below is SAME else query_below,
            ),
        )
        adapter = session.adapter if pgn_ckpt is SAME else LoadedAdapter(pgn_ckpt)

        # A shallow copy shares the connections and everything else that is not replaced.
        client = copy.copy(self)
        client._session = session.with_options(adapter, options)
        client._borrows = True
        return client

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.name!r}, protocol={self.endpoint.protocol!r})"

    @property
    def endpoint(self) -> Endpoint:
        """The hosted model's address and settings, with the request limits that it describes."""
        return self._session.endpoint

    @property
    def timeout(self) -> float:
        """Time limit for one call in seconds."""
        return float(self._session.options.timeout)

    @property
    def usage(self) -> Usage:
        """Images, requests, bytes and cost of this client and its copies so far."""
        return self._session.account.usage

    @property
    def rate_limits(self) -> dict[str, str]:
        """The latest rate limit headers of the endpoint's responses, names in lower case."""
        return dict(self._session.remote.accepted.rates)

    @property
    def protocol(self) -> str | None:
        """Name of the endpoint's protocol and dialect (its variant); None until it is known."""
        protocol = self._session.remote.accepted.protocol
        return None if protocol is None else protocol.dialect

    @property
    def chunk(self) -> int:
        """Number of images that are adapted (painted with prompts) in one batch."""
        return min(self.max_concurrency, MAX_BATCH)

    def pace(self, size: int) -> float:
        """Return the seconds by which sending ``size`` bytes delays the next request.

        Only the client's own rate limits count.
        """
        return self._session.pacer.seconds(size)

    def recorded(self, images: Iterable[ImageSource]) -> int:
        """Return how many images have an answer in the cache; sends nothing.

        Only answers of the model that was last seen at the endpoint count.
        """
        return self._session.recorded(images, self.chunk)

    def fingerprint(self) -> dict[str, Any]:
        """Return the settings that determine predictions, as JSON values without any credential."""
        return self._session.fingerprint()

    def _close(self) -> None:
        """Close the cache and ledger files that this client opened; a copy has opened none."""
        self._session.closed = True
        if not self._borrows:
            self._opened.close()


def _endpoint(
    url: str | os.PathLike[str], protocol: str, model: str | None, labels: Sequence[str] | None
) -> Endpoint:
    """Return the endpoint for a URL or an endpoint file; other arguments override the file."""
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels or ()):
        raise ConfigurationError(f"labels: got {str(labels)[:100]!r}, expected a list of strings")
    if model is not None and not isinstance(model, str):
        raise ConfigurationError(f"model: got {model!r}, expected a name or None")
    # A value of another type goes to ``Endpoint``, whose check of the URL names it in the error.
    endpoint = Endpoint.open(url) if isinstance(url, str | os.PathLike) else Endpoint(url)
    return replace(
        endpoint,
        protocol=endpoint.protocol if protocol == "auto" else protocol,
        model=model or endpoint.model,
        labels=endpoint.labels if labels is None else tuple(labels),
    )


def _credential(api_key: str | None, http: HttpOptions, url: str) -> Credential:
    """Return the secrets that authorize requests: the API key, or the caller's header or ``auth``.

    The credential also hides other secrets in messages: the proxy's password, and the values in the
    URL's query, which may be tokens.

    Raises:
        ConfigurationError: There are two ways to authorize, or the key cannot be sent.
    """
    authorizes = "authorization" in map(str.lower, http.headers) or "auth" in http.arguments()
    if api_key is not None and authorizes:
        raise ConfigurationError(
            "api_key: got a key, and another authorization in http=; give only one of them"
        )
    key = api_key
    if api_key is None and not authorizes:
        key = os.environ.get("PGN_API_KEY") or None
    return Credential(key, http.headers, http.secrets(), (*http.passwords(), *_query_values(url)))


def _query_values(url: str) -> Iterator[str]:
    """Yield the values in a URL's query, both as spelled there and decoded."""
    for part in urlsplit(url).query.split("&"):
        # A part without "=" may be a bare token.
        value = part.partition("=")[2] or part
        # Shorter values are too common to redact, and too short to be a token.
        if len(value) > 3:
            yield value
            yield unquote_plus(value)
