"""Software that we did not write, each in an environment of its own, on both sides of ours.

Nothing here runs unless it is asked for by its marker (``make interop``). An environment is made on
first use below ``.venvs`` and kept; where it cannot be made, its tests are skipped and say why.
"""

import functools
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from pgn_client.evaluation.demo import local_server

HERE = Path(__file__).parent
ENVIRONMENTS = HERE / ".venvs"
SECONDS_TO_INSTALL = 240
SECONDS_TO_START = 90
KEY = "interop-key-4711"

# What runs against us. A version is changed together with the notes on what it sends and needs.
PINS = {
    "huggingface_hub": ["huggingface_hub==2.4.0", "numpy"],
    "tritonclient": ["tritonclient[http]==2.73.0", "pillow"],
    "openai": ["openai==3.52.0"],
    "boto3": ["boto3==1.44.5"],
    "requests": ["requests==2.34.2"],
    "kserve": ["kserve==0.21.0", "pillow"],
    "mlserver": ["mlserver==1.7.1", "pillow"],
    "litserve": ["litserve==0.2.19", "numpy", "pillow"],
    "pytriton": ["nvidia-pytriton==0.7.0", "numpy<2"],
    "torchserve": ["torchserve==0.12.0", "torch", "numpy", "pyyaml"],
}


def python_of(name):
    """Return the Python of a package's environment, which is made if it is not there; skip where
    that fails.
    """
    python, failure = environment(name)
    if failure:
        pytest.skip(f"{PINS[name][0]} cannot be installed: {failure}")
    return python


@functools.cache
def environment(name):
    """Return the Python of a package's environment, and why it could not be made, if so; it is
    tried once.
    """
    version = "{}.{}".format(*sys.version_info)
    digest = hashlib.sha256("\n".join([version, *PINS[name]]).encode()).hexdigest()[:12]
    folder = ENVIRONMENTS / f"{name}-{digest}"
    python, finished = folder / "bin" / "python", folder / "finished"
    if finished.exists():
        return python, ""
    shutil.rmtree(folder, ignore_errors=True)
    if shutil.which("uv"):
        commands = [
            ["uv", "venv", "--python", version, folder],
            ["uv", "pip", "install", "--python", python],
        ]
    else:
        commands = [[sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install"]]
    failure = failure_of(commands[0]) or failure_of(commands[1] + PINS[name])
    if not failure:
        finished.touch()
    return python, failure


def failure_of(command):
    """Run a command; return why it failed, if it did."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SECONDS_TO_INSTALL, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not within {SECONDS_TO_INSTALL} seconds"
    return " ".join(done.stderr.split())[-300:] or "no reason given" if done.returncode else ""


@contextmanager
def our_server(*arguments):
    """Run a server of ours in its own process, with one thread and a key; yield its URL."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("INTEROP_KEY", KEY)
        with local_server(["--api-key-env", "INTEROP_KEY", *arguments]) as url:
            yield url


@pytest.fixture(scope="session")
def ours():
    """A server of ours."""
    with our_server() as url:
        yield url


@pytest.fixture(scope="session")
def our_features():
    """A server of ours that answers with features."""
    with our_server("--output", "embedding") as url:
        yield url


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """A PNG file of 64 x 64 pixels, whose best classes are a clear first, second, third, ..."""
    return painted(tmp_path_factory.mktemp("picture") / "patches.png", seed=187, side=64)


def painted(path, *, seed, side):
    """Write an image of 4 x 4 patches of random colours and some noise; return its path."""
    rng = np.random.default_rng(seed)
    patches = np.kron(rng.integers(0, 236, (4, 4, 3)), np.ones((side // 4, side // 4, 1)))
    Image.fromarray((patches + rng.integers(0, 20, patches.shape)).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def no_picture(tmp_path_factory):
    """A file that no decoder reads."""
    path = tmp_path_factory.mktemp("picture") / "no.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nnot a picture at all")
    return path


def asked(url, picture):
    """Return what our own format answers about an image: labels and scores, best first."""
    headers = {"authorization": f"Bearer {KEY}", "content-type": "image/png"}
    answer = httpx.post(f"{url}/v1/classify", content=picture.read_bytes(), headers=headers)
    [found] = answer.raise_for_status().json()["predictions"]
    return found["labels"], found["scores"]


@pytest.fixture(scope="session")
def truth(ours, picture):
    """What our own format answers: (labels, scores), best first."""
    return asked(ours, picture)


@pytest.fixture(scope="session")
def model(ours):
    """What our server says about its model."""
    return (
        httpx.get(f"{ours}/v1/model", headers={"authorization": f"Bearer {KEY}"})
        .raise_for_status()
        .json()
    )


@functools.cache
def drive(package, driver, url, picture, *, key=KEY, labels=()):
    """Run all tasks of a real client in its own environment, once; return what each of them
    answered, by its name.
    """
    given = {"url": url, "picture": str(picture), "key": key, "labels": labels}
    command = [python_of(package), HERE / "drivers" / f"{driver}.py"]
    done = subprocess.run(
        command,
        input=json.dumps(given),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _environment():
    """Return ours, without what would change the other's: a Python path, proxies, credentials."""
    dropped = ("PYTHON", "PGN_", "HF_", "AWS_", "OPENAI_")
    kept = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(dropped) and not k.lower().endswith("_proxy")
    }
    return kept | {"OMP_NUM_THREADS": "1"}


def free_ports(count):
    """Return so many ports that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def hosted(package, script, folder, *, ready, says="", ports=1):
    """Run a real server in its own environment and folder; yield its URL, and end it.

    Args:
        package: of the environment.
        script: the name of a file in ``servers``.
        folder: where it runs and may write.
        ready: the path that says with 200 that it is ready; asked at the last of its ports.
        says: what must stand in that answer.
        ports: how many it needs; the first is the one of the URL.
    """
    told = [str(port) for port in free_ports(ports)]
    url = f"http://127.0.0.1:{told[0]}"
    python = python_of(package)
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    environment = _environment() | {"TMPDIR": str(folder), "PATH": path, "LIT_SERVER_API_KEY": KEY}
    command = [python, HERE / "servers" / f"{script}.py", *told]
    log = folder / "log.txt"
    with (
        log.open("w") as talk,
        subprocess.Popen(
            command, cwd=folder, env=environment, stdout=talk, stderr=talk, start_new_session=True
        ) as process,
    ):
        try:
            _await(process, f"http://127.0.0.1:{told[-1]}{ready}", says, log)
            yield url
        finally:
            _end(process)


def _await(process, url, says, log):
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            # LitServe wants it of this question too
            answer = httpx.get(url, headers={"x-api-key": KEY})
            if answer.status_code == 200 and says in answer.text:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail(f"no answer at {url} within {SECONDS_TO_START} seconds: {log.read_text()[-2000:]}")


def _end(process):
    """Ask the server and all its processes to end; after ten seconds, make them."""
    for how, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, 10)):
        try:
            os.killpg(process.pid, how)
            process.wait(patience)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
