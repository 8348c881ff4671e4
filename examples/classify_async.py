"""Classify images with the async client, many at a time.

python examples/classify_async.py http://127.0.0.1:8000 demo_out/pgn.safetensors demo_out/digits/3
"""

import asyncio
import sys
from collections import Counter
from pathlib import Path

from pgn_client import AsyncAdaptedClient, Prediction


async def main(url: str, checkpoint: str, folder: str) -> None:
    paths = sorted(Path(folder).glob("*.png"))[:50]
    async with AsyncAdaptedClient(url, checkpoint, max_concurrency=16, timeout=60) as client:
        labels = Counter()
        async for result in client.classify_many(paths):
            labels[result.label if isinstance(result, Prediction) else "failed"] += 1
        print(labels.most_common())
        print(client.usage)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:])) if len(sys.argv) == 4 else sys.exit(__doc__)
