"""Writes the fixtures in ``files/``: run it with the code of commit 6894f70, or leave it alone.

    git clone . OLD && git -C OLD checkout 6894f70
    OMP_NUM_THREADS=1 PYTHONPATH=OLD python tests/compatibility/make.py   # OLD: its absolute path

The fixtures are what the product wrote at that commit, and ``expected.json`` and ``sent.npz`` are
what it then read from them. This file says how they came about. It uses the module paths and
private parts of that commit: nothing imports it, and it does not run with later code. All is
seeded.

Checkpoints are small because their tensors are coarse: before they were saved, the convolutions of
the trunk were set to zero in most places and all else was rounded. The metrics on their cards are
of the training, before that.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tempfile
import types
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pgn_client.benchmark.runs
import torch
from pgn_client.adapter import load
from pgn_client.cache import AnswerCache
from pgn_client.compositor import fit_picture
from pgn_client.demo import local_server, write_digits
from pgn_client.endpoint import Endpoint
from pgn_client.generator import PromptGenerator, generator_input
from pgn_client.methods.published import NAMES
from pgn_client.training.wire import Wire
from PIL import Image
from toy import URL, Toy, fixed_images

import pgn_client.evaluation
import pgn_client.training.loop
from pgn_client import AdaptedClient, PromptAdapter, ServerProfile, backbone
from pgn_client.cli import main
from pgn_client.segmentation import MaskPrompts
from pgn_client.segmentation.linear import LinearHead
from pgn_client.training import fit, fit_white_box, load_task, recipe, union

OUT = Path(__file__).resolve().parent / "files"
SPLITS = {"train": 8, "val": 4, "test": 5}
PROFILE = "resize_crop:72:64"
SMALL = {"epochs": 1, "trunk_epochs": 1, "library_size": 4, "resolution": 16, "augment": "none"}
PROBED = 48231
"""Port of the server that was probed: its URL is in ``endpoint.json``."""

KINDS: dict[str, dict[str, Any]] = {
    "pgn_pixel": {},
    "pgn_smooth_rows": {"library": "smooth", "layout": "rows:2", "mapping": "blm+"},
    "pgn_luma_corner": {"library": "luma", "layout": "corner", "mapping": "ilm"},
    "pgn_latent_bounded": {"library": "latent"},
    "pgn_latent_pseudo_inverse": {"library": "latent", "inversion": "pseudo_inverse"},
    "pgn_reachable": {"library": "reachable", "mapping": "blm"},
    "pgn_wire": {"library": "smooth", "wire": Wire.parse("jpeg:75:420")},
    "pgn_profile": {"profile": ServerProfile.parse(PROFILE), "top_k": 5, "decimals": 4},
    "pgn_paper": {"recipe": {"optimiser": "sgd", "peaked_start": False, "warm_mapping": False}},
    "input_independent": {"method": "input_independent"},
    "padding": {"method": "padding", "mapping": "flm"},
    "masked": {"method": "masked", "recipe": {"epochs": 6}},
    "low_rank": {"method": "low_rank", "recipe": {"epochs": 6}},
    "blend": {"method": "blend"},
    "no_prompt": {"method": "no_prompt"},
    "grey_frame": {"method": "grey_frame"},
}
"""Arguments of ``training.fit``, by the checkpoint's name."""


def rounded(array: np.ndarray, step: float) -> np.ndarray:
    """Round to multiples of a step; what is no floating-point number stays."""
    if array.dtype.kind != "f":
        return array
    return np.asarray(np.round(array / step) * step, dtype=array.dtype)


def coarse_tensor(name: str, array: np.ndarray) -> np.ndarray:
    """Make one tensor of a checkpoint small once it is compressed."""
    if ("trunk" in name or name.startswith("mask.")) and array.ndim == 4:
        least = np.quantile(np.abs(array), 0.985 if "trunk" in name else 0.8)
        step = 1 / 16
        kept = np.sign(array) * np.maximum(np.round(np.abs(array) / step), 1) * step
        return np.where(np.abs(array) >= least, kept, 0).astype(array.dtype)
    if name.endswith("running_var"):
        return np.maximum(rounded(array, 1 / 64), np.float32(1 / 64))
    if name in ("pattern", "up", "down"):  # they start at zero, and move little
        return rounded(array, 1 / 256)
    loose = ("library.rows", "mapping.", "generator.mixture", "embedding.")
    return rounded(array, 1 / 16 if any(part in name for part in loose) else 1 / 64)


def coarse(adapter: PromptAdapter, images: list[Image.Image]) -> PromptAdapter:
    """Round a checkpoint; fit the trunk's normalisation to what is left of its convolutions."""
    tensors = {k: coarse_tensor(k, np.asarray(v)) for k, v in adapter._tensors.items()}
    draft = PromptAdapter(adapter.info, tensors)
    model, _ = draft.runtime
    seen = draft.looked_at(images)
    if seen is None:
        seen = np.stack([fit_picture(image, draft.canvas) for image in images])
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    model.train()
    with torch.no_grad():
        pictures = torch.from_numpy(seen).permute(0, 3, 1, 2)
        model(generator_input(pictures, draft.info["generator"]["resolution"]))
    state = {k: v.numpy() for k, v in model.state_dict().items()}
    statistics = [k for k in state if "running_" in k or "tracked" in k]
    tensors |= {k: coarse_tensor(k, state[k]) for k in statistics}
    return PromptAdapter(adapter.info, tensors)


def packed(path: Path) -> None:
    """Keep a file, compressed, with no time in it."""
    (OUT / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))


def zipped(name: str, files: dict[str, bytes]) -> None:
    """Keep some files as one archive, with no time in it."""
    with zipfile.ZipFile(OUT / name, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for inside, data in sorted(files.items()):
            archive.writestr(zipfile.ZipInfo(inside), data, zipfile.ZIP_DEFLATED, 9)


def below(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder, by their path from where this runs."""
    return {p.as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pgn(*words: object, status: int = 0) -> str:
    """Run a command and return what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        got = main([str(word) for word in words])
    if got != status:
        raise SystemExit(f"pgn {' '.join(map(str, words))}: exit status {got}")
    return out.getvalue()


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def answering(toy: Toy) -> None:
    """Let the toy answer whatever is sent."""
    httpx.HTTPTransport.handle_request = lambda self, request: toy(request)


def write_data() -> None:
    """Write the images of three digits into train, val and test."""
    write_digits(Path("all"))
    for digit in "012":
        files = iter(sorted(Path("all", digit).iterdir()))
        for split, count in SPLITS.items():
            target = Path("digits", split, digit)
            target.mkdir(parents=True)
            for _ in range(count):
                shutil.copy(next(files), target)
    zipped("digits.zip", below(Path("digits")))


def train(surrogate: Any, images: list[Image.Image]) -> None:
    """Train a checkpoint of every kind."""
    task = load_task("digits")
    for name, options in KINDS.items():
        numbers = recipe(**SMALL | options.get("recipe", {}))
        found = fit(task, surrogate, **options | {"recipe": numbers, "seed": 0})
        coarse(found, images).save(f"{name}.safetensors")
    both = fit(union({"first": task, "second": task}), surrogate, recipe=recipe(**SMALL), seed=30)
    both = coarse(both, images)
    both.save("union.safetensors")
    both.for_task("second").save("union.second.safetensors")
    few = recipe(**SMALL, prompt_tokens=2)
    hosted = fit_white_box(task, surrogate, "expres", recipe=few, seed=31)
    make_coarse(hosted.model)
    make_coarse(hosted.mapping)
    hosted.save("expres.safetensors", ServerProfile.parse("direct"))
    write_masks(surrogate)


def make_coarse(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.copy_(torch.from_numpy(rounded(tensor.numpy(), 1 / 64)))


def write_masks(surrogate: Any) -> None:
    """Draw prompts that answer masks; they are not trained."""
    torch.manual_seed(32)
    head = LinearHead(torch.randn(surrogate.width, 2) / 8, torch.zeros(2))
    model = MaskPrompts.create(surrogate, 2, 1, head)
    for residual in model.prompts.residuals.values():
        torch.nn.init.normal_(residual, std=0.3)
    make_coarse(model)
    model.save("masks.safetensors", surrogate, ["background", "digit"])


def import_published(images: list[Image.Image]) -> None:
    """Import a state dict of the published form, which is drawn here."""
    torch.manual_seed(1)
    theirs = {v: k for k, v in NAMES.items()}
    state = {"tl_vectors": 0.1 * torch.randn(6, 192)}
    for name, tensor in PromptGenerator(5, 6, 2).state_dict().items():
        for prefix, published in theirs.items():
            if f"generator.{name}".startswith(prefix):
                state[published + f"generator.{name}".removeprefix(prefix)] = tensor
    state = {k: torch.from_numpy(coarse_tensor(f"trunk {k}", v.numpy())) for k, v in state.items()}
    torch.save(state, "theirs.pt")
    packed(Path("theirs.pt"))
    pgn("import", "theirs.pt", "--out", "fresh.safetensors")
    coarse(PromptAdapter.load("fresh.safetensors"), images).save("imported.safetensors")


def fit_mappings(toy: Toy) -> None:
    """Fit label mappings to the toy's answers: alone, and of checkpoints."""
    fitted = ["map", "digits", "--url", URL, "--protocol", "pgn"]
    pgn(*fitted, "--out", "map_alone.safetensors")
    pgn(*fitted, "--out", "map_alone_none.safetensors", "--none-of-these", "0.4")
    pgn(*fitted, "--out", "map_counted.safetensors", "--mapping", "blm")
    pgn(*fitted, "--ckpt", "pgn_pixel.safetensors", "--out", "map_prompted.safetensors")
    none = ["--out", "map_prompted_none.safetensors", "--none-of-these", "0.4"]
    pgn(*fitted, "--ckpt", "grey_frame.safetensors", *none)
    pgn(*fitted, "--ckpt", "imported.safetensors", "--out", "map_imported.safetensors")
    answering(Toy(toy.labels, toy.card["patch_embedding_sha256"], output="embedding"))
    pgn(*fitted, "--out", "map_embeddings.safetensors")
    answering(toy)


def read_checkpoint(path: Path, sent: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return what this code reads from a checkpoint."""
    adapter, images = load(path), fixed_images()
    told: dict[str, Any] = {
        "repr": repr(adapter),
        "card": json.loads(pgn("inspect", path, "--json")),
    }
    if path.stem == "masks":
        return told
    prepared = adapter.prepare(images)
    local = [item.local_log_probs for item in prepared]
    if isinstance(adapter, PromptAdapter):
        told["local"] = [[round(float(v), 6) for v in row] for row in local]
        moved = adapter.with_profile(ServerProfile.parse(PROFILE))
        told["with_profile"] = moved.info["fingerprint"]
        if "parts" in adapter.info:
            parts = {p: adapter.for_task(p).info for p in adapter.info["parts"]}
            told["parts"] = {p: info["fingerprint"] for p, info in parts.items()}
    if told["card"]["method"] != "raw":
        sent[path.stem] = np.stack([np.asarray(item.image) for item in prepared])
    if path.stem not in ("expres", "map_embeddings"):
        fusion = 0.5 if "local" in told else None
        with AdaptedClient(URL, path, protocol="pgn", fusion=fusion) as client:
            found = [client.classify(image) for image in images]
        told["predictions"] = [{"label": p.label, "scores": dict(p.scores)} for p in found]
    return told


def read_hosted(expected: dict[str, Any]) -> None:
    """Ask the mock server of this commit about the checkpoints that run there."""
    with local_server() as url:
        with AdaptedClient(url, "expres.safetensors") as client:
            found = [client.classify(image) for image in fixed_images()]
        one = [{"label": p.label, "scores": dict(p.scores)} for p in found]
        expected["expres"]["predictions"] = one
        data = Path("masks.safetensors").read_bytes()
        httpx.put(f"{url}/v1/adapters/m", content=data).raise_for_status()
        expected["masks"]["masks"] = []
        for image in fixed_images():
            image.save(buffer := io.BytesIO(), "PNG")
            answer = httpx.post(f"{url}/v1/segment?adapter=m", content=buffer.getvalue())
            expected["masks"]["masks"].append(answer.json()["predictions"][0]["mask"])


def write_journals(toy: Toy) -> dict[str, Any]:
    """Leave journals, a ledger and recorded answers of runs that others go on with."""
    test = sorted(Path("digits/test").rglob("*.png"))
    Path("broken.png").write_bytes(b"broken")
    Path("first.txt").write_text("\n".join(map(str, [*test[:4], "broken.png"])) + "\n")
    Path("all.txt").write_text("\n".join(map(str, [*test[:7], "broken.png"])) + "\n")
    words = [
        "--url",
        URL,
        "--protocol",
        "pgn",
        "--ckpt",
        "pgn_pixel.safetensors",
        "--fusion",
        "0.5",
        "--json",
    ]
    spend = ["--ledger", "ledger.sqlite", "--budget", "50", "--price-per-image", "0.25"]
    pgn("predict", "first.txt", *words, *spend, "--out", "predictions.jsonl", status=1)
    names = ("predictions.jsonl", "predictions.jsonl.journal.json")
    files = {n: Path(n).read_bytes() for n in names}
    zipped(
        "journal.zip",
        files | {n: Path(n).read_bytes() for n in ("broken.png", "first.txt", "all.txt")},
    )
    packed(Path("ledger.sqlite"))
    with sqlite3.connect("ledger.sqlite") as db:
        ((images, cost),) = db.execute("SELECT images, cost FROM spent").fetchall()
    before = len(toy.images)
    printed = pgn("predict", "all.txt", *words, "--out", "predictions.jsonl", status=1)
    journal = {"sent": len(toy.images) - before, "printed": lines(printed)}
    pgn("adapt", "digits/test/0", "adapted", "--ckpt", "pgn_pixel.safetensors")
    zipped("adapted.zip", below(Path("adapted")))
    return {
        "journal": journal,
        "ledger": {"images": images, "cost": cost},
        "cache": write_cache(toy),
        "adapted": sorted(p.name for p in Path("adapted").iterdir()),
    }


def write_cache(toy: Toy) -> dict[str, Any]:
    """Record answers; replay them."""
    raw = ["predict", "digits/test/1", "--url", URL, "--protocol", "pgn", "--out", "-", "--json"]
    prompted = [*raw, "--ckpt", "map_alone.safetensors"]
    pgn(*raw, "--cache", "answers.sqlite", "--max-concurrency", "1")  # in the order of the images
    cache = AnswerCache("answers.sqlite")
    count = len(cache)
    cache.close()
    replayed, mapped = (
        pgn(*raw, "--replay", "answers.sqlite"),
        pgn(*prompted, "--replay", "answers.sqlite"),
    )
    packed(Path("answers.sqlite"))
    before = len(toy.images)
    again = ["drift", "--url", URL, "--protocol", "pgn", "--cache", "answers.sqlite", "--json"]
    drift = json.loads(pgn(*again))
    return {
        "recorded": count,
        "encoded": [encoded(path) for path in sorted(Path("digits/test/1").iterdir())],
        "replayed": lines(replayed),
        "mapped": lines(mapped),
        "canaries": len(toy.images) - before,
        "drift": drift,
    }


def encoded(path: Path) -> str:
    """Return the digest of an image as Pillow encodes it: recorded answers go by these bytes."""
    buffer = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(buffer, "PNG")
    return hashlib.sha256(buffer.getvalue()).hexdigest()


CUSTOM = """url = "http://127.0.0.1:9"
protocol = "custom"
model = "toy-1"
[options]
key_header = "X-API-Key: {key}"
path = "/custom"
body = { inputs = "{base64}", parameters = { top_k = 5, name = "{model}" } }
labels = "[*].label"
scores = "[*].score"
[limits]
body_bytes = 1000000
"""


def write_endpoints(toy: Toy) -> dict[str, Any]:
    """Describe endpoints: one by hand, the same as the product writes it, and one by a probe."""
    Path("custom.toml").write_text(CUSTOM)
    Endpoint.read("custom.toml").write("custom.json")
    server = ["--profile", PROFILE, "--jpeg", "75", "--top-k", "20", "--port", str(PROBED)]
    with real_network(), local_server(server) as url:
        pgn("probe", url, "--protocol", "huggingface", "--out", "endpoint.json")
    found = {}
    for name in ("custom.toml", "custom.json", "endpoint.json"):
        shutil.copy(name, OUT)
        read = Endpoint.read(name)
        told = asdict(read)
        del told["credential"]
        found[name] = json.loads(json.dumps(told))
    image = "digits/test/2"
    words = ["predict", image, "--url", "custom.toml", "--out", "-", "--json"]
    os.environ["PGN_API_KEY"] = "a-key-for-the-toy"
    before = len(toy.images)
    printed = lines(pgn(*words))
    request = toy.images[before]
    found["request"] = {
        "url": str(request.url),
        "key": request.headers["x-api-key"],
        "parameters": json.loads(request.content)["parameters"],
    }
    found["printed"] = printed
    del os.environ["PGN_API_KEY"]
    return found


REAL = httpx.HTTPTransport.handle_request


@contextlib.contextmanager
def real_network() -> Any:
    """Let httpx send again."""
    toy, httpx.HTTPTransport.handle_request = httpx.HTTPTransport.handle_request, REAL
    yield
    httpx.HTTPTransport.handle_request = toy


STATE = [
    "train",
    "digits",
    "--epochs",
    "2",
    "--preset",
    "small",
    "--library-size",
    "4",
    "--batch-size",
    "6",
]
STATE += ["--augment", "none", "--seed", "5", "--out", "resumed.safetensors", "--json"]


def write_state(sent: dict[str, np.ndarray]) -> dict[str, Any]:
    """Leave a training that was interrupted after its first epoch; go on with it."""
    keep = pgn_client.training.loop.save_state

    def kept(path: Path, run: Any, card: Any) -> None:
        keep(path, run, card)
        raise KeyboardInterrupt

    pgn_client.training.loop.save_state = kept
    pgn(*STATE, status=130)
    pgn_client.training.loop.save_state = keep
    state = torch.load("resumed.safetensors.resume", weights_only=True)
    run = state["run"]
    for part in (run["model"], run["best"]["model"]):
        for name, tensor in part.items():
            part[name] = torch.from_numpy(coarse_tensor(name, tensor.numpy()))
    for one in run["optimiser"]["state"].values():
        for name in ("exp_avg", "exp_avg_sq"):
            if one[name].numel() > 600:
                one[name] = torch.zeros_like(one[name])
    torch.save(state, "resumed.safetensors.resume")
    packed(Path("resumed.safetensors.resume"))
    card = json.loads(pgn(*STATE, "--resume"))
    items = PromptAdapter.load("resumed.safetensors").prepare(fixed_images())
    sent["resumed"] = np.stack([np.asarray(item.image) for item in items])
    return {"words": STATE, "history": card["metrics"]["history"]}


def write_report() -> dict[str, Any]:
    """Compare a prompt with its rivals on the toy's answers."""
    words = ["evaluate", "digits", "--url", URL, "--protocol", "pgn"]
    words += ["--ckpt", "pgn_pixel.safetensors", "--rival", "input_independent.safetensors"]
    words += ["--price-per-image", "0.001", "--out", "report"]
    pgn(*words)
    shutil.copy(Path("report", "report.json"), OUT)
    page = Path("report", "report.html").read_text("utf-8")
    return {"words": words, "page": {tag: page.count(f"<{tag}") for tag in ("table", "svg", "img")}}


BENCH = ["digits:none", "--methods", "pgn@small", "padding", "vpt_shallow", "--epochs", "1"]
BENCH += ["--url", URL]


def write_benchmark() -> None:
    """Measure three methods; tables are made without the trained weights, which are left out."""
    pgn("benchmark", *BENCH, "--out", "bench")
    left_out = (".safetensors", ".png", ".sqlite")
    files = below(Path("bench"))
    zipped("benchmark.zip", {k: v for k, v in files.items() if not k.endswith(left_out)})


def run() -> None:
    """Write all fixtures."""
    torch.set_num_threads(1)
    httpx.HTTPTransport.handle_request = REAL
    still = types.SimpleNamespace(monotonic=lambda: 0.0)  # reports do not tell how long it took
    pgn_client.evaluation.time = pgn_client.benchmark.runs.time = still
    OUT.mkdir(exist_ok=True)
    for old in OUT.iterdir():
        old.unlink()
    surrogate = backbone.load("bundled")
    toy = Toy(surrogate.labels, surrogate.card()["patch_embedding_sha256"])
    write_data()
    images = [Image.open(p).convert("RGB") for p in sorted(Path("digits/train").rglob("*.png"))]
    answering(toy)
    train(surrogate, images)
    import_published(images)
    fit_mappings(toy)
    fresh = PromptAdapter.load("fresh.safetensors")
    sent = {"fresh": np.stack([np.asarray(image) for image in fresh(fixed_images())])}
    expected: dict[str, Any] = {"checkpoints": {}}
    expected["report"] = write_report()
    checkpoints = [p for p in sorted(Path(".").glob("*.safetensors")) if p.stem != "fresh"]
    for path in checkpoints:
        packed(path)
        expected["checkpoints"][path.stem] = read_checkpoint(path, sent)
    with real_network():
        read_hosted(expected["checkpoints"])
    expected |= write_journals(toy)
    expected["endpoints"] = write_endpoints(toy)
    expected["state"] = write_state(sent)
    write_benchmark()
    expected["benchmark"] = {"words": BENCH}
    np.savez_compressed(OUT / "sent.npz", **sent)
    text = json.dumps(expected, ensure_ascii=False, sort_keys=True)  # one list stands for many
    text = text.replace(json.dumps(list(toy.labels), ensure_ascii=False), '"<labels>"')
    expected = {"toy": {"labels": toy.labels, **toy.card}} | json.loads(text)
    text = json.dumps(expected, indent=1, ensure_ascii=False)
    (OUT / "expected.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run()
