"""Train a prompt in Python, save it, and read its card.

Two epochs show the calls; a good prompt needs more.

python examples/train_in_python.py demo_out/digits digits.safetensors
"""

import sys

from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe


def main(data: str, out: str) -> None:
    # For your endpoint, give a timm name: the weights must be those of the hosted model.
    surrogate = backbone.load("bundled")
    task = load_task(data, shots=10, seed=0)

    adapter = fit(task, surrogate, recipe=recipe(epochs=2, augment="shift"), seed=0, progress=True)
    adapter.save(out)

    metrics = adapter.info["metrics"]
    print(f"validation accuracy: prompt {metrics['uint8']:.3f}, local head {metrics['local']:.3f}")
    print(f"weight of the local head in the fusion: {adapter.info['fusion']:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
