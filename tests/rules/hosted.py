"""An endpoint of two classes on this machine, and images for it: for tests of whole commands."""

import contextlib
import gzip
import hashlib
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgn_client.cli import main

FILES = Path(__file__).parents[1] / "compatibility" / "files"


class Endpoint(BaseHTTPRequestHandler):
    """A hosted model of two classes, whose scores depend on how dark an image is."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        known = self.path.endswith("/v1/model")
        card = {"name": "toy", "input_size": 8, "profile": "direct", "classes": ["a", "b"]}
        self.answer(200 if known else 404, card if known else {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.seen += 1
        with contextlib.suppress(OSError):
            body = Image.open(io.BytesIO(body)).convert("L").tobytes()
        share = float(np.frombuffer(body, np.uint8).mean()) / 255
        share = 0.9 * share + 0.1 * hashlib.sha256(body).digest()[0] / 255
        prediction = {"labels": ["a", "b"], "scores": [share, 1 - share]}
        answer = {"model": "toy", "output": "probs", "predictions": [prediction]}
        self.answer(200, answer)

    def answer(self, status, value):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Endpoint) as http:
        http.seen = 0
        # A client that has read enough closes its connections.
        http.handle_error = lambda *_: None
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield http
        finally:
            http.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def place(server, tmp_path_factory):
    """A folder with images of two classes, dark and bright, a checkpoint, and recorded answers."""
    folder = tmp_path_factory.mktemp("place")
    chance = np.random.default_rng(0)
    for name, level in (("dark", 40), ("bright", 180)):
        (folder / "in" / name).mkdir(parents=True)
        for number in range(12):
            pixels = chance.integers(level, level + 60, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "in" / name / f"{number:02}.png")
    checkpoint = gzip.decompress((FILES / "pgn_pixel.safetensors.gz").read_bytes())
    (folder / "pgn.safetensors").write_bytes(checkpoint)
    words = ["predict", folder / "in", "--url", url(server), "--out", folder / "first.jsonl"]
    assert main([*map(str, words), "--cache", str(folder / "a.sqlite")]) == 0
    return folder


def url(server):
    return f"http://127.0.0.1:{server.server_address[1]}"
