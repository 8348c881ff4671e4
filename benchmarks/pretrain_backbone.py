"""Pre-train the bundled backbone, a small ViT, from labels alone.

    python benchmarks/pretrain_backbone.py DATA --out mock_server/weights

DATA holds ``train/`` and ``val/`` with one folder per class (Tiny ImageNet: 200 classes,
64 x 64 images). Nothing is distilled and nothing is initialised from other weights, so the
result is an honest, independent surrogate for any other ViT.

Expected: about an hour on 2 CPU cores (bfloat16), a few minutes on one GPU; the accuracy that the
shipped file reached stands in its JSON card, beside the recipe that made it.

The recipe is short-schedule training: half of the patch tokens are dropped in all but the last
epochs (Liu et al. 2022, arXiv 2208.07220), which doubles the images seen per second; hidden
matrices are updated with Muon, the rest with AdamW; linear warm-up, then linear decay to zero.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn import functional as F

ARCHITECTURE = {
    "img_size": 64,
    "patch_size": 8,
    "embed_dim": 192,  # = 3 * 8 * 8: the patch embedding is square, as in ViT-B/16
    "depth": 6,
    "num_heads": 3,
    "mlp_ratio": 4.0,
    "global_pool": "token",
}
MEAN = STD = (0.5, 0.5, 0.5)


def load_split(folder: Path, classes: list[str]) -> tuple[Tensor, Tensor]:
    """Return all images of a split, (n, 3, 64, 64) uint8, and their class indices, (n,) int64."""
    files = [
        (path, i) for i, name in enumerate(classes) for path in sorted((folder / name).iterdir())
    ]
    side = ARCHITECTURE["img_size"]

    def decode(item: tuple[Path, int]) -> np.ndarray:
        image = Image.open(item[0]).convert("RGB")
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decode, files)))
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(
        [i for _, i in files]
    )


def normalise(images: Tensor) -> Tensor:
    """Map uint8 pixels to the normalised space, (x / 255 - 0.5) / 0.5."""
    return images.float() / 127.5 - 1.0


def augment(x: Tensor) -> Tensor:
    """Random resized crop, flip, and colour jitter; one draw per image, whole batch at once."""
    n = len(x)
    area = torch.empty(n, device=x.device).uniform_(0.3, 1.0)
    ratio = torch.empty(n, device=x.device).uniform_(-0.29, 0.29).exp()  # 3/4 .. 4/3
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    flip = torch.randint(0, 2, (n,), device=x.device) * 2 - 1
    theta = torch.zeros(n, 2, 3, device=x.device)
    theta[:, 0, 0], theta[:, 1, 1] = width * flip, height
    theta[:, 0, 2] = (torch.rand(n, device=x.device) * 2 - 1) * (1 - width)
    theta[:, 1, 2] = (torch.rand(n, device=x.device) * 2 - 1) * (1 - height)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    gain, shift, saturation = (
        torch.empty(n, 1, 1, 1, device=x.device).uniform_(-0.3, 0.3) for _ in range(3)
    )
    grey = x.mean(1, keepdim=True)
    return (grey + (x - grey) * (1 + saturation)) * (1 + gain) + shift


def batches(images: Tensor, labels: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch of shuffled, augmented batches; the last incomplete one is dropped."""
    order = torch.randperm(len(images))
    for start in range(0, len(order) - size + 1, size):
        rows = order[start : start + size]
        yield augment(normalise(images[rows])), labels[rows]


def optimisers(model: nn.Module, lr: float, weight_decay: float) -> list[torch.optim.Optimizer]:
    """Muon for the weight matrices of the blocks, AdamW for everything else."""
    matrices = [
        p for name, p in model.named_parameters() if name.startswith("blocks.") and p.ndim == 2
    ]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=lr, weight_decay=weight_decay, betas=(0.9, 0.98)),
    ]


@torch.inference_mode()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 accuracy in float32, in [0, 1]."""
    model.eval()
    right = [
        (model(normalise(x)).argmax(1) == y).sum().item()
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return sum(right) / len(labels)


def train(
    model: nn.Module, data: dict[str, tuple[Tensor, Tensor]], args: argparse.Namespace
) -> None:
    """Train in place; print a line per epoch."""
    device = next(model.parameters()).device
    steps = args.epochs * (len(data["train"][0]) // args.batch_size)
    optims = optimisers(model, args.lr, args.weight_decay)
    base = [g["lr"] for o in optims for g in o.param_groups]
    step = 0
    for epoch in range(args.epochs):
        whole = epoch >= args.epochs - args.whole_epochs
        model.patch_drop = nn.Identity() if whole else PatchDropout(args.patch_drop)
        model.train()
        started, total = time.time(), 0.0
        for x, y in batches(*data["train"], args.batch_size):
            scale = min(
                (step + 1) / args.warmup_steps, (steps - step) / (steps - args.warmup_steps)
            )
            for group, lr in zip((g for o in optims for g in o.param_groups), base, strict=True):
                group["lr"] = lr * scale
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(x)
            loss = F.cross_entropy(logits.float(), y, label_smoothing=0.1)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for o in optims:
                o.step()
                o.zero_grad()
            total += loss.item()
            step += 1
            if args.max_steps and step >= args.max_steps:
                print(
                    f"stopped: loss {total / step:.3f}, {time.time() - started:.0f} s", flush=True
                )
                return
        seconds = time.time() - started
        mean = total / (len(data["train"][0]) // args.batch_size)
        top1 = accuracy(model, *data["val"])
        print(
            f"epoch {epoch + 1}/{args.epochs} loss {mean:.3f} val {top1:.4f} {seconds:.0f} s",
            flush=True,
        )


def save(
    model: nn.Module, classes: list[str], top1: float, args: argparse.Namespace, n: dict[str, int]
) -> None:
    """Write float16 weights and their JSON card."""
    args.out.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, args.out / "bundled.safetensors")
    names = {}
    if args.names:
        names = {row["wnid"]: row["name"] for row in json.loads(args.names.read_text())}
    half = math.sqrt(top1 * (1 - top1) / n["val"]) * 1.96
    card = {
        "name": "bundled",
        "architecture": ARCHITECTURE,
        "parameters": sum(t.numel() for t in tensors.values()),
        "dtype": "float16",
        "mean": MEAN,
        "std": STD,
        "classes": [names.get(c, c) for c in classes],
        "wnids": classes,
        "data": f"Tiny ImageNet (64 x 64): {n['train']} training and {n['val']} validation "
        "images, 200 classes",
        "recipe": {
            k: getattr(args, k)
            for k in (
                "epochs",
                "whole_epochs",
                "patch_drop",
                "batch_size",
                "lr",
                "weight_decay",
                "warmup_steps",
                "seed",
            )
        }
        | {
            "script": "benchmarks/pretrain_backbone.py",
            "precision": "bfloat16 autocast",
            "initialised_from": None,
        },
        "accuracy": {
            "split": "val",
            "top1": round(top1, 4),
            "ci95": [round(top1 - half, 4), round(top1 + half, 4)],
        },
    }
    (args.out / "bundled.json").write_text(json.dumps(card, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--names", type=Path, help='JSON list of {"wnid", "name"}, to call classes by name'
    )
    parser.add_argument("--epochs", type=int, default=22)
    parser.add_argument(
        "--whole-epochs", type=int, default=2, help="last epochs, in which no patch is dropped"
    )
    parser.add_argument("--patch-drop", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--warmup-steps", type=int, default=300)
    parser.add_argument("--max-steps", type=int, default=0, help="stop early, to compare settings")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classes = sorted(p.name for p in (args.data / "train").iterdir())
    data = {split: load_split(args.data / split, classes) for split in ("train", "val")}
    data = {split: (x.to(device), y.to(device)) for split, (x, y) in data.items()}
    model = timm.models.VisionTransformer(num_classes=len(classes), **ARCHITECTURE).to(device)
    train(model, data, args)
    if not args.max_steps:
        model.half().float()  # what is shipped is what is measured
        save(
            model,
            classes,
            accuracy(model, *data["val"]),
            args,
            {k: len(v[0]) for k, v in data.items()},
        )


if __name__ == "__main__":
    main()
