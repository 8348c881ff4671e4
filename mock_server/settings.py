"""The server's options, and the command line that sets them."""

from __future__ import annotations

import argparse
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from mock_server.errors import ConfigurationError
from mock_server.faults import FaultPlan
from mock_server.preprocess import MOST_PIXELS, Jpeg, Profile

SHORTEST_KEY = 16
"""Fewest characters of a tenant's key: only the key separates the tenants, so it must be hard to
guess.
"""
_KEY = re.compile(f"[!-~]{{{SHORTEST_KEY},}}")
Output = Literal["probs", "logits", "label", "embedding"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Options that the owner of a hosted model decides.

    Attributes:
        model: ``bundled`` or the name of a timm model.
        weights: Path of a safetensors file, loaded strictly; None loads the model's own weights.
        labels: Path of a JSON list of class names, or of objects with ``wnid`` and ``name``; None
            takes the model's own names.
        profile: Resize and crop; None takes the model's own.
        top_k: Largest number of labels in a response; None is all.
        output: Content of a response: softmax probabilities, logits, the best label alone, or an
            embedding (the pooled features).
        jpeg: JPEG re-encoding of each received image, or None.
        decimals: Number of decimals that scores are rounded to; None does not round.
        host: Address to bind.
        port: Port to bind; 0 takes a free port.
        device: Device for the model: ``auto``, ``cpu`` or ``cuda``.
        max_batch_size: Largest number of images in one forward pass.
        max_wait: Longest wait for a full batch, in seconds.
        max_queue: Largest number of images that may wait, and of images in one request. If the
            queue is full, the server returns 503.
        max_body_bytes: Longest request body in bytes; for a longer one the server returns 413.
        max_pixels: Largest image in pixels, up to `MOST_PIXELS`; for a larger one the server
            returns 413.
        api_key: Key that clients must send, or None.
        tenants: Name and key of each tenant. Clients must send one of these keys (or ``api_key``),
            and see only the adapters of its tenant.
        max_adapters: Largest number of adapters per tenant.
        max_adapter_bytes: Largest adapter file in bytes.
        faults: Schedule of deliberate faults, or None.
    """

    # A test keeps these defaults equal to those of the command line in `_parser`.
    model: str = "bundled"
    weights: Path | None = None
    labels: Path | None = None
    profile: Profile | None = None
    top_k: int | None = None
    output: Output = "probs"
    jpeg: Jpeg | None = None
    decimals: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    device: str = "auto"
    max_batch_size: int = 8
    max_wait: float = 0.005
    max_queue: int = 64
    # Room for a full batch of 8 images of 224 px as FP32 tensors, 4.8 MB.
    max_body_bytes: int = 8 * 1024**2
    max_pixels: int = 4096**2
    # repr=False keeps the keys out of logs and tracebacks.
    api_key: str | None = field(default=None, repr=False)
    tenants: Mapping[str, str] = field(default_factory=dict, repr=False)
    max_adapters: int = 64
    max_adapter_bytes: int = 8 * 1024**2
    faults: FaultPlan | None = None

    def __post_init__(self) -> None:
        if self.max_pixels > MOST_PIXELS:
            raise ConfigurationError(
                f"--max-pixels {self.max_pixels} is more than Pillow decodes: {MOST_PIXELS}"
            )
        _check_tenants(self.tenants, self.api_key)
        if self.output == "embedding" and self.top_k is not None:
            raise ConfigurationError(
                "--top-k limits labels, and --output embedding returns none; drop one of them"
            )

    @classmethod
    def from_arguments(cls, arguments: Sequence[str] | None = None) -> Settings:
        """Parse the command line.

        Args:
            arguments: Command-line arguments; None takes those of the process.

        Raises:
            ConfigurationError: An option does not exist or has an invalid value.
        """
        given = _parser().parse_args(arguments)
        return cls(
            model=given.model,
            weights=_existing(given.weights),
            labels=_existing(given.labels),
            profile=None if given.profile is None else Profile.parse(given.profile),
            top_k=given.top_k,
            output=given.output,
            jpeg=None if given.jpeg is None else Jpeg.parse(given.jpeg),
            decimals=given.round,
            host=given.host,
            port=given.port,
            device=given.device,
            max_batch_size=given.max_batch_size,
            max_wait=given.max_wait,
            max_queue=given.max_queue,
            max_body_bytes=given.max_body_bytes,
            max_pixels=given.max_pixels,
            api_key=_key_from(given.api_key_env),
            tenants={} if given.tenants is None else read_tenants(given.tenants),
            max_adapters=given.max_adapters,
            max_adapter_bytes=given.max_adapter_bytes,
            faults=None
            if given.faults is None
            else FaultPlan.load(given.faults, default_seed=given.seed),
        )


class _Parser(argparse.ArgumentParser):
    """Argument parser that raises `ConfigurationError` instead of exiting with the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise ``message`` as a configuration error."""
        raise ConfigurationError(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mock_server",
        description="Host a frozen ViT behind HTTP.",
        epilog="example: pgn serve --port 8000 --profile resize_crop:72:64 --top-k 5 --jpeg 75:420",
    )
    parser.add_argument(
        "--model",
        default="bundled",
        metavar="bundled|TIMM_NAME",
        help="model to host (default %(default)s)",
    )
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="safetensors file with the weights, loaded strictly (default the model's own weights)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help='JSON list of class names, or of objects {"wnid", "name"} '
        "(default the model's own names)",
    )
    parser.add_argument(
        "--device",
        choices=["auto", "cpu", "cuda"],
        default="auto",
        help="device for the model (default %(default)s)",
    )
    _add_response_options(parser)
    _add_serving_options(parser)
    return parser


def _add_response_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("images and responses")
    group.add_argument(
        "--profile",
        metavar="P",
        help="resize and crop, with sides in pixels: direct, resize_crop:RESIZE:CROP, "
        "shortest_edge:SIDE or letterbox:SIDE (default the model's own)",
    )
    group.add_argument(
        "--jpeg",
        metavar="Q[:SUB]",
        help="re-encode each image as JPEG of quality Q, 1 to 100, with chroma subsampling SUB, "
        "444, 422 or 420; without SUB it is 420 (default no re-encoding)",
    )
    group.add_argument(
        "--output",
        choices=["probs", "logits", "label", "embedding"],
        default="probs",
        help="content of a response (default %(default)s)",
    )
    group.add_argument(
        "--top-k",
        type=_positive,
        metavar="N",
        help="largest number of labels in a response (default all)",
    )
    group.add_argument(
        "--round",
        type=_not_negative,
        metavar="DECIMALS",
        help="round the scores to DECIMALS (default no rounding)",
    )


def _add_serving_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("serving")
    group.add_argument("--host", default="127.0.0.1", help="address to bind (default %(default)s)")
    group.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="port to bind; 0 takes a free port (default %(default)s)",
    )
    group.add_argument(
        "--max-batch-size",
        type=_positive,
        default=8,
        metavar="N",
        help="largest number of images in one forward pass (default %(default)s)",
    )
    group.add_argument(
        "--max-wait",
        type=_seconds,
        default=0.005,
        metavar="SECONDS",
        help="longest wait for a full batch (default %(default)s)",
    )
    group.add_argument(
        "--max-queue",
        type=_positive,
        default=64,
        metavar="N",
        help="largest number of waiting images; a full queue returns 503 (default %(default)s)",
    )
    group.add_argument(
        "--max-body-bytes",
        type=_positive,
        default=8 * 1024**2,
        metavar="N",
        help="longest request body; a longer one returns 413 (default %(default)s, that is 8 MiB)",
    )
    group.add_argument(
        "--max-pixels",
        type=_positive,
        default=4096**2,
        metavar="N",
        help="most pixels (width x height) of an image; a larger one is answered with HTTP 413 "
        "(default %(default)s, that is 4096 x 4096)",
    )
    group.add_argument(
        "--api-key-env",
        metavar="VAR",
        help="environment variable with the key that clients must send (default no key)",
    )
    group.add_argument(
        "--tenants",
        type=Path,
        metavar="FILE",
        help='JSON object {"TENANT": "KEY", ...}; each tenant has its own adapters '
        "(default no tenants)",
    )
    group.add_argument(
        "--max-adapters",
        type=_positive,
        default=64,
        metavar="N",
        help="largest number of adapters per tenant (default %(default)s)",
    )
    group.add_argument(
        "--max-adapter-bytes",
        type=_positive,
        default=8 * 1024**2,
        metavar="N",
        help="largest adapter file in bytes (default %(default)s, that is 8 MiB)",
    )
    group.add_argument(
        "--faults",
        type=Path,
        metavar="FILE",
        help="JSON schedule of deliberate faults, see mock_server/faults.py (default no faults)",
    )
    group.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed for the faults if their file has none (default %(default)s)",
    )


def read_tenants(path: Path) -> dict[str, str]:
    """Read the tenants' keys from a JSON file.

    Args:
        path: JSON file with one object of tenant names and keys.

    Raises:
        ConfigurationError: The file does not hold a JSON object of different, valid keys. The
            message never contains a key.
    """
    try:
        # As pairs, because a dict would hide a tenant who is named twice.
        pairs = json.loads(path.read_text("utf-8"), object_pairs_hook=list)
        tenants = dict(pairs)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ConfigurationError(
            f'{path} cannot be read as a JSON object, {{"TENANT": "KEY", ...}} '
            f"({type(error).__name__})"
        ) from None  # A JSON error holds the content of the file, that is the keys.
    if not tenants or len(tenants) < len(pairs):
        raise ConfigurationError(f"{path} must name at least one tenant, and no tenant twice")
    _check_tenants(tenants, None)
    return tenants


def _check_tenants(tenants: Mapping[str, str], api_key: str | None) -> None:
    """Check that every key can be sent, and that the keys distinguish the tenants."""
    keys = list(tenants.values())
    # An empty name stands for the owner, see `routes.payload.OWNER`.
    valid = all(tenants) and all(isinstance(key, str) and _KEY.fullmatch(key) for key in keys)
    if api_key is not None:
        keys.append(api_key)
    # Invalid keys may be lists, which no set can hold, so the set is built only from valid ones.
    if not valid or len(set(keys)) < len(keys):
        raise ConfigurationError(
            "the tenants' keys must be different from each other and from --api-key-env's, of "
            f"{SHORTEST_KEY} or more printable ASCII characters without blanks, and each tenant "
            "must have a name"
        )


def _positive(text: str) -> int:
    return _at_least(1, text)


def _not_negative(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"expected a whole number from {least}, got {text!r}")
    return int(text)


def _port(text: str) -> int:
    if _at_least(0, text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port up to 65535, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    # The comparison also rejects NaN and infinity, which `float` accepts.
    if not 0 <= seconds < 3600:
        raise argparse.ArgumentTypeError(f"expected seconds from 0 to 3600, got {text!r}")
    return seconds


def _existing(path: Path | None) -> Path | None:
    if path is not None and not path.is_file():
        raise ConfigurationError(f"no such file: {path}")
    return path


def _key_from(variable: str | None) -> str | None:
    # From the environment, because other users of the machine can read a process's arguments.
    if variable is None:
        return None
    key = os.environ.get(variable)
    if not key:
        raise ConfigurationError(f"the environment variable {variable} of --api-key-env is not set")
    return key
