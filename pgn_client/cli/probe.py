"""``pgn probe``: measure what an unknown endpoint does to images and scores, with a few images."""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pgn_client.cli.console import talk, tell
from pgn_client.cli.options import OK, Subparsers, add_endpoint_options, command, connect, to_json
from pgn_client.errors import ConfigurationError

if TYPE_CHECKING:
    from pgn_client.probe import Finding
    from pgn_client.types import ModelInfo
    from pgn_client.wire.client import AdaptedClient
    from pgn_client.wire.endpoint import Found, Limits

MEASURED = ("profile", "input_size", "codec", "output", "top_k", "decimals")
"""Names of the findings that ``pgn probe`` writes into the endpoint file for other commands."""


def add_probe(commands: Subparsers) -> None:
    """Add the subcommand ``pgn probe``, which measures what an endpoint does to images."""
    example = "pgn probe http://127.0.0.1:8000 --out endpoint.json"
    help = (
        "measure what an endpoint does to images and scores; other commands accept the file that "
        "it writes"
    )
    p = command(commands, "probe", run_probe, help, example)
    add_endpoint_options(p, positional=True)
    p.add_argument(
        "--limit",
        type=int,
        default=40,
        metavar="N",
        help="largest number of images to send, not counting retries (default 40)",
    )
    p.add_argument(
        "--seed", type=int, default=0, help="seed for the colors of the images (default 0)"
    )
    p.add_argument(
        "--out",
        type=Path,
        default=Path("endpoint.json"),
        metavar="FILE",
        help="path of the endpoint file to write (default endpoint.json)",
    )
    p.add_argument("--json", action="store_true", help="print the findings as JSON on stdout")


def run_probe(args: argparse.Namespace) -> int:
    """Measure an endpoint, print the findings, write the endpoint file; return the exit status."""
    if args.cache or args.replay:
        raise ConfigurationError(
            "--cache, --replay: got one of them, expected none, because a probe needs fresh "
            "answers; leave them out"
        )
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")

    with connect(args, None) as client:
        info = client.info()
        measured = _measure(client, args.limit, args.seed)
        endpoint = replace(
            client.endpoint,
            # The client adds the dialect after the name; the endpoint file holds the name alone.
            protocol=(client.protocol or "auto").split()[0],
            found=_found(measured, info),
            limits=_limits(client, measured),
        )

        findings = _reported(client, info) | measured
        used = client.usage

    values = {name: asdict(finding) for name, finding in findings.items()}
    # Printed even if the file cannot be written, because the findings are paid for.
    try:
        endpoint.write(args.out, values)
    finally:
        tell(to_json(values) if args.json else _table(findings))
    talk(f"{used.images} images sent; saved: {args.out}")
    if "?" in endpoint.url:
        talk(
            f"warning: {args.out} holds the query of the URL; if it contains a token, keep the "
            "file secret too"
        )
    return OK


def _measure(client: AdaptedClient, limit: int, seed: int) -> dict[str, Finding]:
    """Send synthetic images to an endpoint, and return what they show: name -> finding.

    The images that are left after the probe test how large an image may be.
    """
    from pgn_client.probe import Finding, find_bytes, find_pixels, probe
    from pgn_client.wire.protocols.options import meaning

    def send(data: bytes) -> int:
        # The body is longer than the file in formats that encode images as base64.
        before = client.usage
        client.answer(data, as_it_is=True)
        after = client.usage
        # A retry sends the same body once more.
        return (after.bytes_sent - before.bytes_sent) // (after.requests - before.requests)

    measured = probe(client.answers, limit=limit, seed=seed)
    findings = {name: getattr(measured, name) for name in MEASURED}
    stated = meaning(client.endpoint)
    if stated is not None:
        # The answers have been read with it already, so they cannot show another meaning.
        findings["output"] = Finding(stated, "certain", "the endpoint file says so")
    if measured.noise:
        noise = "largest distance between two answers to the same image"
    else:
        noise = "two answers to the same image are equal"
    findings["noise"] = Finding(measured.noise, "certain", noise)
    findings["body_bytes"] = find_bytes(send, limit - client.usage.images)
    findings["pixels"] = find_pixels(send, limit - client.usage.images)
    return findings


def _reported(client: AdaptedClient, info: ModelInfo | None) -> dict[str, Finding]:
    """Return the findings that need no images: name -> protocol or rate limits in headers."""
    from pgn_client.probe import Finding

    if info:
        evidence = "the endpoint's description of its model names it"
    else:
        evidence = "the endpoint answers requests in this format"
    protocol = Finding(client.protocol, "certain", evidence)

    limits = "; ".join(f"{name}: {value}" for name, value in sorted(client.rate_limits.items()))
    if limits:
        rate_limits = Finding(limits, "certain", "headers of the responses")
    else:
        rate_limits = Finding.unknown("no header of the responses has a rate limit")
    return {"protocol": protocol, "rate_limits": rate_limits}


def _found(findings: dict[str, Finding], info: ModelInfo | None) -> Found:
    """Return the values of the findings for the endpoint file, which other commands read.

    If a profile or an input size could not be measured, the endpoint's own report replaces it, also
    in ``findings``.

    Args:
        findings: Name -> finding.
        info: The endpoint's description of its model; ``None`` if it returned none.
    """
    from pgn_client.wire.endpoint import Found

    values = {name: findings[name].value for name in MEASURED}
    for name in ("profile", "input_size"):
        reported = getattr(info, name, None)
        if values[name] is None and reported is not None:
            values[name] = reported
            findings[name] = replace(
                findings[name],
                value=reported,
                certainty="likely",
                evidence="the endpoint reports this value itself",
            )
        elif reported is not None and values[name] != reported:
            talk(f"warning: {name}: measured {values[name]}, but the endpoint reports {reported}")

    # In the endpoint file, 0 labels stand for all, and -1 decimals for no rounding.
    top_k = values.pop("top_k")
    decimals = values.pop("decimals")
    return Found(
        # The values of findings have one wide type, which does not tell which field has which.
        **values,  # type: ignore[arg-type]
        top_k=_number(top_k, "all", 0),
        decimals=_number(decimals, "none", -1),
    )


def _number(value: str | float | None, word: str, number: int) -> int | None:
    """Return a finding's value as a whole number; ``number`` replaces the value ``word``."""
    if value is None:
        return None
    return number if value == word else int(value)


def _limits(client: AdaptedClient, findings: dict[str, Finding]) -> Limits:
    """Return the size limits for images: the endpoint's own, else those that are measured."""
    limits = client.endpoint.limits
    measured: dict[str, int] = {}
    for name in ("body_bytes", "pixels"):
        finding = findings[name]
        # The client refuses images above a limit, so a mere guess must not become one.
        if finding.certainty == "certain" and finding.value and not getattr(limits, name):
            measured[name] = int(finding.value)
    return replace(limits, **measured)


def _table(findings: dict[str, Finding]) -> str:
    """Return the findings as a table in plain text."""
    values = {
        name: "?" if finding.value is None else str(finding.value)
        for name, finding in findings.items()
    }
    width = max(map(len, values.values())) + 2
    lines = [f"{'':<13}{'value':<{width}}{'':<10}evidence"]
    for name, finding in findings.items():
        title = name.replace("_", " ")
        lines.append(f"{title:<13}{values[name]:<{width}}{finding.certainty:<10}{finding.evidence}")
    return "\n".join(lines)
