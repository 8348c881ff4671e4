"""Everything of a client but the waiting: options, local work, what to send, how to read the answer.

    picture -> adapter (local) -> PNG -> endpoint -> answer -> label mapping -> (fusion) -> Prediction

``AdaptedClient`` and ``AsyncAdaptedClient`` inherit this and add only sending and sleeping.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pgn_client.cache import AnswerCache, cache_key
from pgn_client.codecs import PNG, ImageSource, open_image
from pgn_client.endpoint import Credential, Endpoint
from pgn_client.errors import (
    AuthenticationError,
    CheckpointError,
    ConfigurationError,
    ConnectionFailedError,
    EndpointError,
    MissingDependencyError,
    PGNError,
    TimedOutError,
)
from pgn_client.exchange import Clocks, Exchange, Pacer, Steps
from pgn_client.ledger import Ledger
from pgn_client.protocols import Payload, Protocol, open_protocol, possible
from pgn_client.protocols.base import digest, excerpt
from pgn_client.retry import RetryPolicy
from pgn_client.types import Adapter, Answer, ImageFailure, ModelInfo, Prediction, Prepared, Usage

T = TypeVar("T")
LogProbs = NDArray[np.float64]

MAX_BATCH = 16  # pictures adapted together

_log = logging.getLogger("pgn_client")


@dataclass(frozen=True, slots=True)
class Job:
    """One picture after all local work: what to send, unless the local head is ``confident``."""

    payload: Payload
    local: LogProbs | None = None
    confident: bool = False


@dataclass(frozen=True, slots=True)
class Reply:
    """An endpoint's answer, and what it took: nothing for a recorded one."""

    answer: Answer
    attempts: int = 0
    request_id: str | None = None


class Session(ABC):
    """What both clients share; see ``AdaptedClient`` for the arguments."""

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
        fusion: float | Literal["auto"] | None = "auto",
        query_below: float | None = None,
        budget: int | None = None,
        price_per_image: float | None = None,
        cache: str | os.PathLike[str] | AnswerCache | None = None,
        transport: Any = None,
        labels: Sequence[str] | None = None,
        auth: Any = None,
    ) -> None:
        _check("timeout", timeout, "seconds, above 0", lambda x: 0 < x < math.inf)
        _check("max_retries", max_retries, "a whole number, 0 or more", lambda x: x >= 0 and x == int(x))
        _check("max_concurrency", max_concurrency, "a whole number, 1 or more", lambda x: x >= 1 and x == int(x))
        if requests_per_second is not None:
            _check("requests_per_second", requests_per_second, "a number above 0, or None", lambda x: 0 < x < math.inf)
        if fusion not in ("auto", None):
            _check("fusion", fusion, '"auto", None, or a number in [0, 1]', lambda x: 0 <= x <= 1)
        if query_below is not None:
            _check("query_below", query_below, "a probability in [0, 1], or None", lambda x: 0 <= x <= 1)
        if pgn_ckpt is None and (query_below is not None or fusion not in ("auto", None, 0)):
            raise ConfigurationError("fusion and query_below need the local head of a checkpoint: got pgn_ckpt=None")
        if auth is not None and not callable(auth) and not hasattr(auth, "auth_flow"):
            raise ConfigurationError(f"auth: got {type(auth).__name__}, expected an httpx.Auth; for a key use api_key=")
        key = api_key if api_key is not None else os.environ.get("PGN_API_KEY") or None
        self.endpoint = _endpoint(url, protocol, model, labels, Credential(key))
        open_protocol(self.endpoint)  # a wrong name or option is told now, not at the first picture
        self.timeout, self.max_concurrency = float(timeout), int(max_concurrency)
        self._checkpoint, self._fusion, self._query_below = pgn_ckpt, fusion, query_below
        self._policy = RetryPolicy(max_retries=int(max_retries))
        self._ledger = Ledger(budget, price_per_image)
        self._pacer = Pacer(requests_per_second)
        self._clocks = Clocks()
        self._cache = cache if isinstance(cache, AnswerCache) else None if cache is None else AnswerCache(cache)
        self._owns_cache = self._cache is not cache
        self._transport, self._auth = transport, auth
        self._local_work = threading.Lock()
        self._adapter: Adapter | None = None
        self._protocol: Protocol | None = None
        self._info: ModelInfo | None = None
        self._failure: EndpointError | None = None  # of the last attempt to ask about the model
        self._recalled: str | None = None  # what the cache remembers of the model while the endpoint is out of reach
        self._asked_model = self._verified = self._closed = False
        self._open()

    @abstractmethod
    def _open(self) -> None:
        """Make what sends and waits; the last thing that the constructor does."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.endpoint.name!r}, protocol={self.endpoint.protocol!r})"

    @property
    def usage(self) -> Usage:
        """What this client has used so far."""
        return self._ledger.usage

    @property
    def protocol(self) -> str | None:
        """The wire format that is spoken, and its dialect; None before the first question."""
        return None if self._protocol is None else self._protocol.dialect

    def fingerprint(self) -> dict[str, Any]:
        """Return what this client's predictions depend on, as JSON; holds no credential."""
        adapter = self._open_adapter()
        url = self.endpoint.url  # two models may differ in the query alone, which may hold a token: only a digest
        query = f"?sha256:{hashlib.sha256(url.encode()).hexdigest()[:16]}" if "?" in url else ""
        told = [self.endpoint.labels, dict(self.endpoint.options)]
        return {
            **({"asked": digest(*told)} if any(told) else {}),
            "endpoint": self.endpoint.name + query,
            "model": self.endpoint.model,
            "checkpoint": adapter.info.get("fingerprint", "unnamed") if adapter is not None else None,
            "fusion": self._fusion,
            "query_below": self._query_below,
        }

    # ---- local work: open, adapt, encode; runs torch, so it never runs in an event loop

    def _open_adapter(self) -> Adapter | None:
        """Return the adapter, loading the checkpoint at the first use."""
        if self._adapter is None and self._checkpoint is not None:
            if isinstance(self._checkpoint, str | os.PathLike):
                from pgn_client.adapter import PromptAdapter

                self._adapter = cast(Adapter, PromptAdapter.load(self._checkpoint))
            else:
                self._adapter = self._checkpoint
        return self._adapter

    def _prepare(self, sources: Sequence[ImageSource]) -> list[Prepared | PGNError]:
        images = [caught(open_image, source) for source in sources]
        with self._local_work:
            return prepare_each(self._open_adapter(), images)

    def _job(self, item: Prepared, *, always: bool) -> Job:
        """Decide whether the endpoint is asked at all (``always``: it is)."""
        alpha = self._alpha(item.local_log_probs)
        local = item.local_log_probs
        confident = alpha == 1.0
        if self._query_below is not None and local is not None:
            confident |= bool(math.exp(float(local.max())) >= self._query_below)
        if confident and not always:
            return Job(Payload(b"", ""), local, confident=True)
        pixels = item.image.width * item.image.height
        return Job(Payload(PNG.encode(item.image), PNG.media_type, pixels, item.image), local)

    def _jobs(self, sources: Sequence[ImageSource], *, always: bool) -> list[Job | PGNError]:
        refusal = self._ledger.refusal
        if refusal is not None and self._always_asks():
            return [refusal for _ in sources]  # none of them could be answered: spare their preparation
        items = self._prepare(sources)
        return [item if isinstance(item, PGNError) else self._job(item, always=always) for item in items]

    def _always_asks(self) -> bool:
        """Whether no picture can be answered without the endpoint."""
        if self._cache is not None or self._query_below is not None:
            return False
        with self._local_work:
            adapter = self._open_adapter()
        return (adapter.info.get("fusion") if adapter is not None and self._fusion == "auto" else self._fusion) != 1

    def _only_job(self, source: ImageSource, *, always: bool) -> Job:
        return raised(self._jobs([source], always=always)[0])

    def _only_picture(self, source: ImageSource) -> Image.Image:
        return raised(self._prepare([source])[0]).image

    def _alpha(self, local: LogProbs | None) -> float:
        """Return the weight of the local head: the card's, or the caller's."""
        if self._fusion == "auto":
            wish = self._adapter.info.get("fusion") if self._adapter is not None else None
            return float(wish) if wish is not None and local is not None else 0.0
        alpha = float(self._fusion or 0.0)
        if local is None and (alpha > 0 or self._query_below is not None):
            raise ConfigurationError("fusion and query_below need a checkpoint with a local head: got one without")
        return alpha

    # ---- decisions about the network, as steps for the drivers

    def _exchange(self, deadline: float | None = None) -> Exchange:
        if self._closed:
            raise ConfigurationError("this client is closed; make a new one")
        return Exchange(self.endpoint, self._policy, self._ledger, self._pacer, self._clocks, self.timeout, deadline)

    def _is_ready(self, before: EndpointError | None, *, for_info: bool = False) -> bool:
        """Whether nothing needs to be asked about the model before the first picture.

        Args:
            before: the failure that was known when this call began. A newer one is shared by all who waited for it:
                otherwise they would find it out again, one after the other.
            for_info: whether the model's description is what is wanted.

        Raises:
            EndpointError: asking failed meanwhile.
        """
        named = self.endpoint.protocol != "auto"
        if named and self._protocol is None:
            self._protocol = open_protocol(self.endpoint)
        needless = self._protocol is not None and self._protocol.complete and not for_info
        if named and self._checkpoint is None and self._cache is None and needless:
            return True
        if self._asked_model:
            self._verify_once()
            return True
        if self._failure is None or self._failure is before:
            return False
        if for_info or self._recalled is None:
            raise self._failure
        return True

    def _settle(self, exchange: Exchange, *, for_info: bool) -> Steps[None]:
        """Find the protocol, and check that the checkpoint was made for this model.

        Where nobody can be reached, recorded answers of the model that was last seen there can still be given.
        """
        try:
            found = yield from exchange.discover(*possible(self.endpoint))
        except EndpointError as error:
            away = isinstance(error, ConnectionFailedError | TimedOutError)
            self._failure, self._recalled = error, self._recall() if away else None
            if for_info or self._recalled is None:
                raise
            return
        told = {k: v for k, v in asdict(found.limits).items() if v is not None}
        self.endpoint = replace(self.endpoint, limits=replace(self.endpoint.limits, **told))
        self._info, self._failure, self._recalled = found.info, None, None
        protocol, plainer = found.protocol, found.protocol.plainer()
        _log.info("%s speaks %s", self.endpoint.name, protocol.dialect)
        if plainer is not None and self._identity(plainer) == self._recall():
            protocol = plainer
        self._speak(protocol)
        self._asked_model = True
        self._verify_once()

    def _verify_once(self) -> None:
        if self._adapter is not None and not self._verified:
            _verify(self._adapter.info, self._info, self.endpoint)
            self._verified = True

    def _recall(self) -> str | None:
        """Return the identity of the model whose answers were recorded last."""
        return None if self._cache is None else self._cache.recall(self.endpoint.url, self.endpoint.model)

    def _speak(self, protocol: Protocol) -> None:
        """Stay with a dialect; a later run with the same cache goes on in it."""
        self._protocol = protocol
        if self._cache is not None:
            self._cache.remember(self.endpoint.url, self.endpoint.model, self._identity(protocol))

    def _identity(self, protocol: Protocol) -> str:
        """Return what tells this model, and the form of its answers, from another behind the same URL."""
        info = self._info or ModelInfo("")
        told = [info.name, info.weights_sha256, info.patch_embedding_sha256, info.profile]
        return json.dumps([*told, protocol.dialect])

    def _known(self, job: Job) -> Reply | None:
        """Return the reply to a picture for which nothing needs to be sent.

        Raises:
            EndpointError: its answer is not recorded, and the endpoint is out of reach.
        """
        if job.confident:
            return Reply(Answer((), ()))
        recorded = None if self._cache is None else self._cache.get(self._key(job.payload, self._protocol))
        if recorded is None and self._recalled is not None and self._failure is not None:
            raise self._failure
        return None if recorded is None else Reply(recorded)

    def _reply(self, exchange: Exchange, payload: Payload) -> Steps[Reply]:
        asked = self._protocol or open_protocol(self.endpoint)
        answer, spoken = yield from exchange.ask(asked, payload)
        if asked.proven and self._protocol is not asked:
            self._speak(asked)  # another picture was refused at the same time, and not for the dialect
        elif spoken is not asked and not asked.proven:
            self._speak(spoken)
        if self._cache is not None:
            self._cache.put(self._key(payload, spoken), answer)
        return Reply(answer, exchange.attempts, exchange.request_id)

    def _key(self, payload: Payload, protocol: Protocol | None) -> str:
        identity = self._recalled or (self._identity(protocol) if protocol is not None else "")
        return cache_key(self.endpoint.url, self.endpoint.model, identity, payload.data)

    def _predict(self, job: Job, reply: Reply) -> Prediction:
        """Turn what is known into a Prediction.

        Fusion is a weighted geometric mean: log p = (1 - alpha) log p_endpoint + alpha log p_local, normalised.
        """
        if self._adapter is None:
            if reply.answer.kind == "embedding":
                raise ConfigurationError(
                    f"{self.endpoint.name} answers with embeddings, which name no class: got pgn_ckpt=None, expected "
                    "a checkpoint that reads them; make one with pgn map"
                )
            return _ranked(reply.answer.labels, _probabilities(reply.answer), "endpoint", reply)
        mapping = self._adapter.mapping
        if job.confident and job.local is not None:
            return _ranked(mapping.classes, np.exp(job.local), "local", reply)
        log_probs = np.asarray(mapping([reply.answer])[0], dtype=np.float64)
        alpha = self._alpha(job.local)
        if alpha == 0.0 or job.local is None:
            return _ranked(mapping.classes, np.exp(log_probs), "endpoint", reply)
        fused = (1 - alpha) * np.maximum(log_probs, -700.0) + alpha * np.maximum(job.local, -700.0)
        return _ranked(mapping.classes, np.exp(fused - np.logaddexp.reduce(fused)), "both", reply)

    def _close(self) -> None:
        self._closed = True
        if self._owns_cache and self._cache is not None:
            self._cache.close()


def caught(call: Callable[[Any], T], argument: Any) -> T | PGNError:
    """Return what a call returns, or the error of this library that it raises."""
    try:
        return call(argument)
    except PGNError as error:
        return error


def raised(value: T | PGNError) -> T:
    """Return a value, or raise it if it is an error: the inverse of ``caught``."""
    if isinstance(value, PGNError):
        raise value
    return value


def asks(job: Job | PGNError) -> bool:
    """Whether the endpoint, or what is recorded of it, has to be asked."""
    return isinstance(job, Job) and not job.confident


def ends_all(result: object) -> PGNError | None:
    """Return the error of a picture's result that concerns every other picture too: a refused key, a wrong set-up."""
    wrong = (AuthenticationError, CheckpointError, ConfigurationError, MissingDependencyError)
    return result.error if isinstance(result, ImageFailure) and isinstance(result.error, wrong) else None


def _endpoint(
    url: str | os.PathLike[str], protocol: str, model: str | None, labels: Sequence[str] | None, credential: Credential
) -> Endpoint:
    """Open a URL, or a file that describes an endpoint; what is said beside the file wins."""
    described = isinstance(url, os.PathLike) or (isinstance(url, str) and url.endswith((".json", ".toml")))
    endpoint = Endpoint.read(url) if described and "://" not in os.fspath(url) else Endpoint(cast(str, url))
    return replace(
        endpoint,
        protocol=endpoint.protocol if protocol == "auto" else protocol,
        model=model or endpoint.model,
        labels=endpoint.labels if labels is None else tuple(labels),
        credential=credential,
    )


def _check(name: str, value: Any, expected: str, fits: Callable[[Any], bool]) -> None:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not fits(value):
        raise ConfigurationError(f"{name}: got {value!r}, expected {expected}")


def _probabilities(answer: Answer) -> NDArray[np.float64]:
    """Return an answer's scores as probabilities: the softmax of logits, anything else as it is."""
    scores = np.asarray(answer.scores, dtype=np.float64)
    return np.exp(scores - np.logaddexp.reduce(scores)) if answer.kind == "logits" else scores


def _ranked(
    classes: Sequence[str],
    probabilities: NDArray[np.float64],
    source: Literal["endpoint", "local", "both"],
    reply: Reply,
) -> Prediction:
    order = np.argsort(-probabilities, kind="stable")
    scores = {classes[i]: float(probabilities[i]) for i in order}
    label = next(iter(scores))
    return Prediction(label, scores[label], scores, source, reply.attempts, reply.request_id)


def _verify(card: Mapping[str, Any], info: ModelInfo | None, endpoint: Endpoint) -> None:
    """Compare a checkpoint's card with what the endpoint says; warn where it says nothing.

    Raises:
        CheckpointError: made for another backbone, input size or preprocessing.
    """
    backbone: Mapping[str, Any] = card.get("backbone") or {}
    made_for = (
        ("patch embedding", backbone.get("patch_embedding_sha256"), info and info.patch_embedding_sha256),
        ("input size", backbone.get("input_size"), info and info.input_size),
        ("profile", card.get("profile"), endpoint.found.profile or (info and info.profile)),
    )
    for what, expected, got in made_for:
        if expected is not None and got is not None and str(expected) != str(got):
            said, name = (excerpt(str(text), endpoint.credential.redact) for text in (got, info.name if info else got))
            remedy = f"--profile {said}" if what == "profile" else f"--backbone {name}"
            raise CheckpointError(
                f"the checkpoint was made for another model: {what} of {endpoint.name}: got {said}, "
                f"expected {expected} "
                f"(checkpoint for {backbone.get('name', 'an unnamed backbone')}); train again with {remedy}"
            )
    if made_for[0][1] is None or made_for[0][2] is None:
        who = endpoint.name if made_for[0][1] is not None else "the checkpoint"
        _log.warning(
            "%s tells no patch embedding (only plain ViTs have one): that the checkpoint fits the model is unverified",
            who,
        )


def prepare_each(adapter: Adapter | None, images: Sequence[Image.Image | PGNError]) -> list[Prepared | PGNError]:
    """Adapt pictures together; one that fails, now or before, leaves the others alone.

    Raises:
        CheckpointError, ConfigurationError, MissingDependencyError: what concerns every picture.
    """
    if adapter is None:
        return [image if isinstance(image, PGNError) else Prepared(image) for image in images]
    good = [image for image in images if not isinstance(image, PGNError)]
    try:
        ready: Iterator[Prepared | PGNError] = iter(adapter.prepare(good) if good else [])
    except (CheckpointError, ConfigurationError, MissingDependencyError):
        raise
    except PGNError:
        ready = iter([caught(lambda image: adapter.prepare([image])[0], image) for image in good])
    return [image if isinstance(image, PGNError) else next(ready) for image in images]
