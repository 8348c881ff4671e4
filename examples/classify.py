"""Classify images through a hosted ViT with a checkpoint.

python examples/classify.py http://127.0.0.1:8000 demo_out/pgn.safetensors demo_out/digits/3
"""

import sys
from pathlib import Path

from pgn_client import AdaptedClient, ImageFailure


def main(url: str, checkpoint: str, folder: str) -> None:
    paths = sorted(Path(folder).glob("*.png"))[:20]
    with AdaptedClient(url, checkpoint, price_per_image=0.001) as client:
        for path, result in zip(paths, client.classify_many(paths), strict=True):
            if isinstance(result, ImageFailure):
                print(f"{path.name}: {result.error}")
            else:
                print(f"{path.name}: {result.label} ({result.score:.2f}, {result.source})")
        print(client.usage)


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
