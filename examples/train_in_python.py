"""Train a prompt from Python, keep it, and read its card. A few epochs, to show the calls, not to
be good.

python examples/train_in_python.py demo_out/digits digits.safetensors
"""

import sys

from pgn_client.surrogate import backbone
from pgn_client.training import fit, load_task, recipe


def main(data: str, out: str) -> None:
    # or a timm name, with the hosted model's published weights
    surrogate = backbone.load("bundled")
    task = load_task(data, shots=10, seed=0)
    adapter = fit(task, surrogate, recipe=recipe(epochs=2, augment="shift"), seed=0, progress=True)
    adapter.save(out)
    metrics = adapter.info["metrics"]
    print(
        f"validation: prompt {metrics['uint8']:.3f}, local head {metrics['local']:.3f}, α "
        f"{adapter.info['fusion']:.2f}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 3 else sys.exit(__doc__)
