"""Save exactly the image that the client would send, without sending it.

python examples/look_at_prompts.py demo_out/pgn.safetensors demo_out/digits/3/0003.png sent.png
"""

import sys

from PIL import Image

from pgn_client import PromptAdapter


def main(checkpoint: str, image: str, out: str) -> None:
    adapter = PromptAdapter.load(checkpoint)
    (sent,) = adapter([Image.open(image)])
    sent.save(out)
    canvas = adapter.canvas
    print(f"{out}: {sent.width} x {sent.height} px, {canvas.prompts} prompt patches")
    print(f"box of the image (top, left, height, width): {canvas.box}")
    print(f"trained for {adapter.info['backbone']['name']} behind {adapter.info['profile']}")


if __name__ == "__main__":
    main(*sys.argv[1:]) if len(sys.argv) == 4 else sys.exit(__doc__)
