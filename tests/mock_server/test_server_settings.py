from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from mock_server.errors import ConfigurationError
from mock_server.preprocess import Jpeg, Profile
from mock_server.settings import Settings


def test_the_defaults_of_the_command_line_are_those_of_the_settings():
    assert Settings.from_arguments([]) == Settings()


def test_every_switch_arrives(tmp_path, monkeypatch):
    files = {name: tmp_path / name for name in ("weights", "labels", "faults")}
    for file in files.values():
        file.write_text('{"rules": []}')
    monkeypatch.setenv("KEY", "s3cret")
    line = (
        "--model test_vit --profile resize_crop:168:160 --top-k 3 --output logits --jpeg 75:444 "
        "--round 4 --host ::1 "
        "--port 0 --device cpu --max-batch-size 2 --max-wait 0.1 --max-queue 5 --max-body-bytes "
        "100 --max-pixels 50 "
        "--api-key-env KEY --seed 7"
    )
    given = Settings.from_arguments(
        [*line.split(), *(part for n, f in files.items() for part in (f"--{n}", str(f)))]
    )
    assert given.faults is not None
    assert given.faults.seed == 7
    assert given == Settings(
        model="test_vit",
        weights=files["weights"],
        labels=files["labels"],
        profile=Profile("resize_crop", 168, 160),
        top_k=3,
        output="logits",
        jpeg=Jpeg(75, "444"),
        decimals=4,
        host="::1",
        port=0,
        device="cpu",
        max_batch_size=2,
        max_wait=0.1,
        max_queue=5,
        max_body_bytes=100,
        max_pixels=50,
        api_key="s3cret",
        faults=given.faults,
    )


@pytest.mark.parametrize(
    "line",
    [
        "--nothing",
        "--top-k 0",
        "--port 70000",
        "--port x",
        "--max-wait -1",
        "--max-wait nan",
        "--output best",
        "--profile squash",
        "--jpeg 200",
        "--weights missing.safetensors",
        "--labels missing.json",
        "--faults missing.json",
        "--api-key-env PGN_SURELY_UNSET",
    ],
)
def test_a_wrong_switch_is_a_configuration_error_of_one_line(line):
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_arguments(line.split())
    assert "\n" not in str(caught.value)


def test_more_pixels_than_pillow_decodes_are_a_configuration_error():
    most = 2 * Image.MAX_IMAGE_PIXELS
    assert Settings.from_arguments(["--max-pixels", str(most)]).max_pixels == most
    with pytest.raises(ConfigurationError, match=f"is more than Pillow decodes: {most}"):
        Settings.from_arguments(["--max-pixels", str(most + 1)])


def test_the_package_shares_no_code_with_the_client():
    folder = Path(__file__).resolve().parents[2] / "mock_server"
    assert not [file for file in folder.rglob("*.py") if "import pgn_client" in file.read_text()]
    assert not [file for file in folder.rglob("*.py") if "from pgn_client" in file.read_text()]
