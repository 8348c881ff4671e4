"""``pgn probe``: what an unknown endpoint does to images and answers, measured with a few of
them.
"""

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


def add_probe(commands: Subparsers) -> None:
    """``pgn probe``."""
    example = "pgn probe http://127.0.0.1:8000 --out endpoint.json"
    help = (
        "find out what an endpoint does to images and answers; writes endpoint.json, which "
        "other commands take"
    )
    p = command(commands, "probe", run_probe, help, example)
    add_endpoint_options(p, positional=True)
    p.add_argument(
        "--limit",
        type=int,
        default=40,
        metavar="N",
        help="send at most N images, retries aside (40)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the images' colours (0)")
    p.add_argument(
        "--out", type=Path, default=Path("endpoint.json"), metavar="FILE", help="(endpoint.json)"
    )
    p.add_argument("--json", action="store_true", help="the findings as JSON on stdout")


def run_probe(args: argparse.Namespace) -> int:
    """Measure, tell, and write the endpoint's file."""
    if args.cache or args.replay:
        raise ConfigurationError("--cache, --replay: a probe needs fresh answers; leave them out")
    if args.out.is_dir() or not args.out.parent.is_dir():
        raise ConfigurationError(f"--out: got {args.out}, expected a file in a folder that exists")
    with connect(args, None) as client:
        info = client.info()
        found = _measure(client, args.limit, args.seed)
        noise = {} if "noise" not in found else {"noise": found["noise"]}
        endpoint = replace(
            client.endpoint,
            protocol=(client.protocol or "auto").split()[0],
            found=_found(found, info),
            limits=_limits(client, found),
        )
        found = _spoken(client, info) | found | noise
        used = client.usage
    findings = {name: asdict(finding) for name, finding in found.items()}
    endpoint.write(args.out, findings)
    tell(to_json(findings) if args.json else _table(found))
    talk(f"{used.images} images sent; written: {args.out}")
    if "?" in endpoint.url:
        talk(
            f"warning: {args.out} holds the URL's query; if a token is in it, keep the file as "
            "secret as the token"
        )
    return OK


def _measure(client: AdaptedClient, limit: int, seed: int) -> dict[str, Finding]:
    """Spend images: first on what happens to an image, then, with what is left, on how large one
    may be.
    """
    from pgn_client.probe import Finding, find_bytes, find_pixels, probe

    def send(data: bytes) -> int:
        before = client.usage.bytes_sent
        client.answer(data, as_it_is=True)
        return client.usage.bytes_sent - before

    measured = probe(client.answers, limit=limit, seed=seed)
    found = {name: getattr(measured, name) for name in MEASURED}
    quiet = (
        ("answers to one image twice are equal")
        if not measured.noise
        else "answers to one image differ so much"
    )
    found["noise"] = Finding(measured.noise, "certain", quiet)
    found["body_bytes"] = find_bytes(send, limit - client.usage.images)
    found["pixels"] = find_pixels(send, limit - client.usage.images)
    return found


def _spoken(client: AdaptedClient, info: ModelInfo | None) -> dict[str, Finding]:
    """What needs no image of its own: the wire format, and what headers say of rates."""
    from pgn_client.probe import Finding

    why = "the endpoint describes itself so" if info else "it answers what is asked in this form"
    spoken = {"protocol": Finding(client.protocol, "certain", why)}
    rates = "; ".join(f"{name}: {value}" for name, value in sorted(client.rate_limits.items()))
    spoken["rate_limits"] = (
        Finding(rates, "certain", "headers") if rates else Finding.unknown("no header tells")
    )
    return spoken


def _found(found: dict[str, Finding], info: ModelInfo | None) -> Found:
    """What the commands go by; where nothing could be measured, what the endpoint itself tells."""
    from pgn_client.wire.endpoint import Found

    values = {name: found[name].value for name in MEASURED}
    for name in ("profile", "input_size"):
        told = getattr(info, name, None)
        if values[name] is None and told is not None:
            values[name] = told
            found[name] = replace(
                found[name], value=told, certainty="likely", evidence="the endpoint tells so itself"
            )
        elif told is not None and values[name] != told:
            talk(f"warning: {name}: measured {values[name]}, but the endpoint tells {told}")
    top_k, decimals = (values.pop(name) for name in ("top_k", "decimals"))
    return Found(
        **values,  # type: ignore[arg-type]
        top_k=None if top_k is None else 0 if top_k == "all" else int(top_k),
        decimals=None if decimals is None else -1 if decimals == "none" else int(decimals),
    )


def _limits(client: AdaptedClient, found: dict[str, Finding]) -> Limits:
    """The smallest that was refused, less one, where the endpoint itself tells no limit."""
    told = client.endpoint.limits
    seen = {
        name: found[name].value
        for name in ("body_bytes", "pixels")
        if found[name].certainty == "certain"
    }
    return replace(
        told,
        **{name: int(value) for name, value in seen.items() if value and not getattr(told, name)},
    )


def _table(found: dict[str, Finding]) -> str:
    values = {name: "?" if f.value is None else str(f.value) for name, f in found.items()}
    wide = max(map(len, values.values())) + 2
    lines = [f"{'':<13}{'found':<{wide}}{'':<10}why"]
    for name, finding in found.items():
        lines.append(
            f"{name.replace('_', ' '):<13}{values[name]:<{wide}}"
            f"{finding.certainty:<10}{finding.evidence}"
        )
    return "\n".join(lines)
