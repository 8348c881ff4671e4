"""The server as a process of its own, with a random tiny ViT from a file."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import timm
import torch
from safetensors.torch import save_file

from mock_server.__main__ import main
from mock_server.model import ServedModel

FAULTS = {
    "rules": [
        {"kind": "close", "first": 2, "count": 1},
        {"kind": "cut_body", "first": 3, "count": 1},
        {"kind": "trickle", "first": 4, "count": 1},
    ]
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str]]:
    folder: Path = tmp_path_factory.mktemp("server")
    torch.manual_seed(0)
    save_file(
        timm.create_model("test_vit", pretrained=False).state_dict(), folder / "w.safetensors"
    )
    (folder / "faults.json").write_text(json.dumps(FAULTS))
    command = [
        sys.executable,
        "-m",
        "mock_server",
        "--port",
        "0",
        "--device",
        "cpu",
        "--model",
        "test_vit",
    ]
    files = ["--weights", str(folder / "w.safetensors"), "--faults", str(folder / "faults.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, *files],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline()
        process.kill()


@pytest.fixture(scope="module")
def url(server) -> str:
    return server[1].removeprefix("listening on ").strip()


def test_the_one_line_on_stdout_is_the_address(server):
    assert server[1].startswith("listening on http://127.0.0.1:")


def test_faults_reach_the_socket_and_leave_the_server_whole(url, png):
    """Request 1 is answered, 2 is hung up on, 3 is cut, 4 trickles, 5 is answered."""
    with httpx.Client(base_url=url, timeout=30) as client:
        first = client.post("/v1/classify", content=png())
        with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
            client.post("/v1/classify", content=png())
        with pytest.raises(
            httpx.RemoteProtocolError, match="without sending complete message body"
        ):
            client.post("/v1/classify", content=png())
        later = [client.post("/v1/classify", content=png()) for _ in range(2)]
    assert [answer.json() for answer in later] == [first.json()] * 2


def test_interrupting_ends_with_130_and_an_otherwise_silent_stdout(server, url):
    process, _ = server
    process.send_signal(signal.SIGINT)
    assert process.stdout.read() == ""
    assert process.wait(30) == 130
    assert "Traceback" not in process.stderr.read()


def test_a_configuration_error_exits_2_with_one_line_on_stderr(capsys):
    assert main(["--model", "vit_tiny_patch16_24"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: unknown model")
    assert err.count("\n") == 1


def test_a_missing_extra_exits_2_with_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main([]) == 2
    assert capsys.readouterr().err.endswith("run pip install 'pgn-client[server]'\n")


def test_a_taken_port_is_a_configuration_error(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w")
        line = [
            "--model",
            "test_vit",
            "--weights",
            str(tmp_path / "w"),
            "--port",
            str(taken.getsockname()[1]),
        ]
        assert main(line) == 2
    assert "error: cannot listen on 127.0.0.1" in capsys.readouterr().err


def test_a_model_that_fails_its_first_picture_exits_3_and_announces_nothing(
    tmp_path, monkeypatch, capsys
):
    save_file(timm.create_model("test_vit", pretrained=False).state_dict(), tmp_path / "w")
    monkeypatch.setattr(ServedModel, "run", lambda *_: 1 / 0)
    line = [
        "--model",
        "test_vit",
        "--weights",
        str(tmp_path / "w"),
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with pytest.raises(SystemExit) as caught:
        sys.exit(main(line))  # some versions of uvicorn exit by themselves
    assert caught.value.code == 3
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_say_that_they_are_tcp_so_that_asyncio_sends_small_answers_at_once(host):
    import socket

    from mock_server.__main__ import _bind

    with (
        _bind(host, 0) as listener,
        socket.create_connection(listener.getsockname()[:2]),
        listener.accept()[0] as accepted,
    ):
        assert accepted.proto == socket.IPPROTO_TCP
