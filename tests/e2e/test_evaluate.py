"""``pgn evaluate``: the comparison over HTTP, and what it leaves in its folder."""

import json

from PIL import Image

from pgn_client.evaluation.demo import write_digits
from tests.e2e.conftest import pgn


def test_a_checkpoint_is_compared_and_its_report_is_left_in_a_folder(checkpoint, server, tmp_path):
    out, few = tmp_path / "results", tmp_path / "digits"
    write_digits(few, images=100)
    words = ["--url", server, "--ckpt", checkpoint, "--price-per-image", "0.002"]
    done = pgn("evaluate", few, *words, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["verdict"] in done.stdout
    assert report["verdict"].startswith("not the checkpoint's own data")
    assert "cost per 1,000" in done.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 5 * len(report["examples"]) == 20
    rows = {row["name"]: row for row in report["rows"]}
    test = report["split"]["test"]
    assert rows["PGN"]["queries_test"] == test
    assert rows["PGN"]["queries_fit"] == report["split"]["val"]
    assert rows["raw + mapping"]["queries_fit"] > report["split"]["train"]
    assert rows["PGN"]["cost_per_1000"] == 2
    assert rows["local head"]["cost_per_1000"] == rows["local head"]["queries"] == 0
    assert report["retention"]["http_png"] == rows["PGN"]["accuracy"]
    with Image.open(out / "steps.png") as sheet:
        assert sheet.width > sheet.height > 600
    # trained on other images than the checkpoint, so of no use to a later call
    assert not list(out.glob("iip-*"))
