"""Writes the golden files: a tiny backbone, adapters, and what they answer by the equations, in
NumPy.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

HERE = Path(__file__).parent
D, DEPTH, HEADS, SIDE, PATCH = 8, 2, 2, 8, 4
SITES = ("norm1", "q", "k", "v", "proj", "norm2", "mlp")
MASKS = "segment"
ADAPTERS = {
    "default": (3, SITES[:5]),
    "every_site": (5, SITES),
    "plain": (1, ()),
    "some": (2, ("k", "mlp")),
}
ADAPTERS |= {MASKS: (12, SITES[:5])}


def backbone(draw):
    """Return a state dict of random numbers, of which no part is neutral."""
    hidden = 4 * D
    shapes = {"cls_token": (1, 1, D), "pos_embed": (1, 1 + (SIDE // PATCH) ** 2, D)}
    shapes |= {"patch_embed.proj.weight": (D, 3, PATCH, PATCH), "patch_embed.proj.bias": (D,)}
    for i in range(DEPTH):
        for name, shape in (
            ("norm1", (D,)), ("attn.qkv", (3 * D, D)), ("attn.proj", (D, D)), ("norm2", (D,)),
            ("mlp.fc1", (hidden, D)), ("mlp.fc2", (D, hidden)),
        ):  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    shapes |= {"norm.weight": (D,), "norm.bias": (D,), "head.weight": (3, D), "head.bias": (3,)}
    return {
        k: (0.4 * draw.normal(size=s) + (k.endswith(("norm1.weight", "norm2.weight")))).astype(
            "<f4"
        )
        for k, s in shapes.items()
    }


def features_sha256(state):
    """Hash as the contract has it."""
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.startswith("head."):
            digest.update(name.encode() + state[name].tobytes())
    return digest.hexdigest()


def norm(x, w, name):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x):
    from math import erf

    return 0.5 * x * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def answer(state, adapter, pixels):
    """(8, 8, 3) uint8 → (C,) log-probabilities, float64."""
    w, a = ({k: v.astype(float) for k, v in part.items()} for part in (state, adapter))
    x = ((pixels / 255 - 0.5) / 0.5).transpose(2, 0, 1)
    grid = SIDE // PATCH
    cells = [
        x[:, r * PATCH : (r + 1) * PATCH, c * PATCH : (c + 1) * PATCH]
        for r in range(grid)
        for c in range(grid)
    ]
    kernel = w["patch_embed.proj.weight"].reshape(D, -1)
    tokens = np.stack([kernel @ cell.ravel() for cell in cells]) + w["patch_embed.proj.bias"]
    z = np.concatenate(
        [np.concatenate([w["cls_token"][0], tokens]) + w["pos_embed"][0], a["prompts"]]
    )
    m = len(a["prompts"])

    def add(y, site, i):
        if f"residuals.{site}" in a:
            y[-m:] += a[f"residuals.{site}"][i]
        return y

    for i in range(DEPTH):
        u = add(norm(z, w, f"blocks.{i}.norm1"), "norm1", i)
        parts = np.split(linear(u, w, f"blocks.{i}.attn.qkv"), 3, axis=-1)
        q, k, v = (
            add(y, s, i).reshape(len(z), HEADS, -1).transpose(1, 0, 2)
            for y, s in zip(parts, "qkv", strict=True)
        )
        scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(D // HEADS))
        mixed = (scores / scores.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(len(z), D)
        z = z + add(linear(mixed, w, f"blocks.{i}.attn.proj"), "proj", i)
        h = add(norm(z, w, f"blocks.{i}.norm2"), "norm2", i)
        z = z + add(
            linear(gelu(linear(h, w, f"blocks.{i}.mlp.fc1")), w, f"blocks.{i}.mlp.fc2"), "mlp", i
        )
    z = norm(z, w, "norm")
    if "prototypes.weight" in a:
        return scores_of_patches(z[1:-m], z[-m:], a)
    y = z[-m:].mean(0) @ a["mapping.weight"] + a["mapping.bias"]
    return y - np.log(np.exp(y).sum())


def scores_of_patches(patches, outputs, a):
    """(N, C), by the formula of the contract."""
    means = outputs.reshape(len(a["mapping.bias"]), -1, D).mean(1)
    lengths = np.linalg.norm(patches, axis=1)[:, None] * np.linalg.norm(means, axis=1)
    return (
        patches @ a["mapping.weight"]
        + a["mapping.bias"]
        + a["prototypes.weight"] * (patches @ means.T) / lengths
    )


def mask(scores):
    """(N, C) → (8, 8), the best class of bilinearly enlarged scores; pixel i is at (i + 0.5) / P -
    0.5 cells.
    """
    grid = SIDE // PATCH
    at = np.clip((np.arange(SIDE) + 0.5) / PATCH - 0.5, 0, grid - 1)
    ways = np.maximum(0, 1 - np.abs(at[:, None] - np.arange(grid)))
    large = np.einsum("hi,wj,ijc->hwc", ways, ways, scores.reshape(grid, grid, -1))
    return large.argmax(-1)


def main():
    """Write everything."""
    draw = np.random.default_rng(0)
    state = backbone(draw)
    save_file(state, HERE / "backbone.safetensors")
    pictures = [draw.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(3)]
    expected = {"features_sha256": features_sha256(state), "pictures": [], "log_probs": {}}
    for pixels in pictures:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        expected["pictures"].append(base64.b64encode(buffer.getvalue()).decode())
    for number, (name, (m, sites)) in enumerate(ADAPTERS.items()):
        classes = [f"class {i}" for i in range(2 + number)]
        shapes = {
            "prompts": (m, D),
            "mapping.weight": (D, len(classes)),
            "mapping.bias": (len(classes),),
        }
        shapes |= {f"residuals.{site}": (DEPTH, m, D) for site in sites}
        if name == MASKS:
            shapes["prototypes.weight"] = (1,)
        adapter = {k: draw.normal(0, 0.5, s).astype("<f4") for k, s in shapes.items()}
        card = {"method": "expres", "schema": 1, "classes": classes}
        card |= {"backbone": {"features_sha256": expected["features_sha256"]}}
        save_file(adapter, HERE / f"adapter_{name}.safetensors", {"pgn_client": json.dumps(card)})
        found = [answer(state, adapter, p) for p in pictures]
        if name == MASKS:
            expected["masks"] = [mask(scores).tolist() for scores in found]
        else:
            expected["log_probs"][name] = [log_p.round(6).tolist() for log_p in found]
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
