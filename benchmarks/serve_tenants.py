"""Many tenants' EXPRES on one server: what sharing a batch costs, what memory it takes, and what
times tell.

    python benchmarks/serve_tenants.py --model vit_tiny_patch16_224 --weights W

Four measurements, each printed as it is done:

- *labels*: a batch of 32 images of 8 tenants against each image alone;
- *throughput*: that batch against one of 32 images of one tenant, and against the model without
  adapters, in turns; medians, and their ratio with the 5th and 95th percentile of the turns.
  Tenants have 10 prompts, or 4 to 32;
- *memory*: resident memory after every 50 of 200 tenants' adapters, read from files as a server
  reads them;
- *times*: over HTTP, how long "no such adapter" takes for a name that another tenant has and for
  one that nobody has, in turns, each first in half of them; the difference of the medians with a 95
  % bootstrap interval.

Run it on an idle machine: it measures time.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray

from mock_server.adapters import Adapter, Store, read
from mock_server.app import create_app
from mock_server.model import Asked, ServedModel, load
from mock_server.settings import Settings

SITES = ("norm1", "q", "k", "v", "proj")
CLASSES = [f"class {i}" for i in range(10)]
Floats = NDArray[np.float64]


def file_of(model: ServedModel, seed: int, prompts: int) -> bytes:
    """An adapter of random numbers, for ten classes."""
    draw, network = torch.Generator().manual_seed(seed), model.network
    width, depth = model.width, len(network.blocks)  # type: ignore[arg-type]
    shapes = {"prompts": (prompts, width), "mapping.weight": (width, 10), "mapping.bias": (10,)}
    shapes |= {f"residuals.{site}": (depth, prompts, width) for site in SITES}
    card = {"method": "expres", "schema": 1, "classes": CLASSES}
    card |= {"backbone": {"features_sha256": model.features_sha256}}
    tensors = {name: 0.2 * torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    return safetensors.torch.save(tensors, {"pgn_client": json.dumps(card)})


def adapter(model: ServedModel, seed: int, prompts: int = 10) -> Adapter:
    """The same, read."""
    return read(file_of(model, seed, prompts), "mine", model)


def turns(ways: dict[str, Callable[[], object]], count: int) -> dict[str, Floats]:
    """Time each way ``count`` times, in turns; seconds."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(count):
        for name, act in ways.items():
            start = time.perf_counter()
            act()
            found[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in found.items()}


def throughput(model: ServedModel, own: Sequence[Adapter], count: int) -> None:
    """Compare one tenant's batch with that of eight, on the same images."""
    size, draw = model.preprocessing.input_size, np.random.default_rng(0)
    pixels = draw.normal(size=(32, 3, size, size)).astype(np.float32)
    single = [Asked(x, adapter=own[0]) for x in pixels]
    mixed = [Asked(x, adapter=own[i % 8]) for i, x in enumerate(pixels)]
    together = [a.argmax() for a in model.run(mixed)]
    alone = [model.run([one])[0].argmax() for one in mixed]
    print(f"  same labels: {sum(a == b for a, b in zip(together, alone, strict=True))} of 32")
    bare = [Asked(x) for x in pixels]
    asked = {"one tenant": single, "eight tenants": mixed, "no adapter": bare}
    found = turns(
        {name: (lambda batch=batch: model.run(batch)) for name, batch in asked.items()}, count
    )
    for name, seconds in found.items():
        print(f"  {name:<14}{32 / np.median(seconds):8.1f} images/s")
    ratio = found["one tenant"] / found["eight tenants"]
    low, middle, high = np.quantile(ratio, (0.05, 0.5, 0.95))
    print(
        f"  eight tenants / one tenant: {middle:.3f} times the throughput [{low:.3f}, "
        f"{high:.3f}] of {count} turns"
    )


def memory(model: ServedModel) -> None:
    """Put one adapter for each of 200 tenants into a store."""
    store = Store(1)
    first = size = 0
    for tenant in range(201):
        if tenant % 50 == 0:
            gc.collect()
            first = first or resident()
            grown = resident() - first
            print(
                f"  {tenant:>3} tenants: {size / 1e6:7.2f} MB of numbers, resident memory + "
                f"{grown / 1e6:7.2f} MB"
            )
        store.put(str(tenant), adapter(model, tenant))
        size += store.get(str(tenant), "mine").size


def resident() -> int:
    """Resident memory of this process, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


async def times(model: ServedModel, count: int) -> None:
    """Ask for a name that another tenant has, and for one that nobody has, in turns."""
    keys = {"anna": "anna-key-0123456789", "bert": "bert-key-0123456789"}
    app = create_app(Settings(tenants=keys), model)
    found: dict[str, list[float]] = {"taken": [], "spare": []}
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as client,
    ):
        await client.put(
            "/v1/adapters/taken", content=file_of(model, 0, 10), headers={"X-API-Key": keys["anna"]}
        )
        for turn in range(count):
            for name in sorted(found, reverse=turn % 2 == 1):
                start = time.perf_counter()
                answer = await client.get(
                    f"/v1/adapters/{name}", headers={"X-API-Key": keys["bert"]}
                )
                found[name].append(time.perf_counter() - start)
                if answer.status_code != 404:
                    raise SystemExit(f"{name}: {answer.status_code}")
    a, b = (1e6 * np.array(values) for values in found.values())
    draw = np.random.default_rng(0)
    picks = draw.integers(0, count, (2000, count))
    low, high = np.quantile(
        np.median(a[picks], axis=1) - np.median(b[picks], axis=1), (0.025, 0.975)
    )
    print(f"  another's name {np.median(a):.1f} µs, nobody's {np.median(b):.1f} µs, "
          f"difference {np.median(a) - np.median(b):+.2f} µs [{low:+.2f}, {high:+.2f}], "
          f"{count} turns")  # fmt: skip


def main() -> None:
    """Measure and print."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--model", default="bundled")
    p.add_argument("--weights", type=Path)
    p.add_argument("--turns", type=int, default=15)
    args = p.parse_args()
    model = load(Settings(model=args.model, weights=args.weights))
    print(f"{model.name} on {model.device}, {torch.get_num_threads()} threads")
    print("memory:")  # first, while nothing that was freed is left to be used again
    memory(model)
    print("ten prompts each:")
    throughput(model, [adapter(model, i) for i in range(8)], args.turns)
    print("4 to 32 prompts, the one tenant has 32:")
    throughput(model, [adapter(model, i, 32 - 4 * i) for i in range(8)], args.turns)
    print("times:")
    asyncio.run(times(model, 100 * args.turns))


if __name__ == "__main__":
    main()
