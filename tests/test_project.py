"""The project as a newcomer meets it: README, docs, examples, every command's help, the demo in
small, the wheel.
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from pgn_client.cli import build_parser, main
from pgn_client.evaluation.demo import local_server

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
(SUBPARSERS,) = (
    action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)
)
COMMANDS = sorted(SUBPARSERS.choices)
ROWS = [
    "raw + mapping",
    "local head",
    "linear probe",
    "raw ⊕ local",
    "linear probe ⊕ local",
    "IIP",
    "IIP ⊕ local",
    "PGN",
    "PGN ⊕ local",
    "served",
]
URL = "http://127.0.0.1:8000"  # as the pages write it


def run(*command, **options):
    options = {"capture_output": True, "text": True, "check": False} | options
    return subprocess.run([str(c) for c in command], **options)


def blocks(language, page):
    return re.findall(
        rf"^```{language}\n(.*?)^```",
        page.read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )


def commands(page):
    """The commands of a page but ``pgn serve``, each as one line."""
    lines = "".join(blocks("console", page)).replace("\\\n", " ").splitlines()
    return [
        line for line in lines if line.startswith("$ pgn ") and not line.startswith("$ pgn serve")
    ]


def names(pages):
    return {"argvalues": pages, "ids": [str(page.relative_to(ROOT)) for page in pages]}


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A fresh folder in which the demo has run, at reduced size, and left what the README speaks
    of.
    """
    folder = tmp_path_factory.mktemp("newcomer")
    done = run(
        *(sys.executable, "-m", "pgn_client", "demo"),
        "--pictures",
        "400",
        "--epochs",
        "2",
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    (folder / "demo_out" / "stdout.txt").write_text(done.stdout)
    shutil.copy(next((folder / "demo_out" / "digits" / "7").glob("*.png")), folder / "seven.png")
    return folder


@pytest.fixture(scope="session")
def url():
    with local_server() as url:
        yield url


def test_the_demo_prints_every_rival_and_leaves_a_true_report(folder):
    out = folder / "demo_out"
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert [row["name"] for row in report["rows"]] == ROWS
    printed = (out / "stdout.txt").read_text()
    for row in report["rows"]:
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert f"{row['name']:<22}{row['accuracy']:>9.3f}" in printed
    assert report["verdict"] in printed
    assert report["verdict"].split(": ")[1] in (out / "report.html").read_text(encoding="utf-8")
    retention = report["retention"]
    assert set(retention) >= {
        "latent",
        "uint8",
        "http_png",
        "jpeg95_444",
        "jpeg75_420",
        "agreement",
    }
    assert retention["http_png"] == next(
        r["accuracy"] for r in report["rows"] if r["name"] == "PGN"
    )
    assert retention["agreement"]["http_png"] >= 0.99
    assert {"seconds", "seed", "versions"} <= set(report)


def test_the_demo_shows_pictures_before_and_after(folder):
    with Image.open(folder / "demo_out" / "before_after.png") as sheet:
        assert sheet.width > 1000
        assert len(sheet.convert("RGB").getcolors(maxcolors=2**24)) > 1000


def test_the_targets_of_make_are_what_they_say():
    assert "pgn demo" in run("make", "-n", "demo", cwd=ROOT).stdout
    # make's own lines about folders are left out
    test, test_all = (
        [line for line in run("make", "-n", name, cwd=ROOT).stdout.splitlines() if "pytest" in line]
        for name in ("test", "test-all")
    )
    assert len(test) == 1
    assert "-m slow" not in test[0]
    assert test_all[0] == test[0]
    assert test_all[-1] == f"{test[0].rstrip()} -m slow "
    assert "-m pytest -m interop" in run("make", "-n", "interop", cwd=ROOT).stdout


@pytest.mark.parametrize("page", **names([page for page in PAGES if blocks("python", page)]))
def test_the_python_of_a_page_runs(folder, url, page):
    for code in blocks("python", page):
        # not in every reduced demo
        code = code.replace(URL, url).replace("demo_out/digits/7/0007.png", "seven.png")
        done = run(sys.executable, "-W", "error", "-c", code, cwd=folder)
        assert done.returncode == 0, done.stderr
        if page == README:
            assert "missing.png" in done.stdout
            assert (folder / "sent.png").exists()


def _slow_but(first, pages):
    """Parameters in which every page but the first is slow: each trains and evaluates."""
    return [page if page == first else pytest.param(page, marks=pytest.mark.slow) for page in pages]


WITH_COMMANDS = [page for page in PAGES if commands(page)]


@pytest.mark.parametrize("page", _slow_but(README, WITH_COMMANDS), ids=names(WITH_COMMANDS)["ids"])
def test_the_commands_of_a_page_run(folder, url, page):
    for text in blocks("toml", page):
        (folder / "service.toml").write_text(text.replace(URL, url), encoding="utf-8")
    for line in commands(page):
        command = shlex.split(line.removeprefix("$ pgn ").replace(URL, url))
        if command[0] == "train":
            command += ["--epochs", "1", "--shots", "4"]  # the same way, in seconds
        done = run(sys.executable, "-m", "pgn_client", *command, cwd=folder)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pytest.mark.parametrize("command", COMMANDS)
def test_the_readme_names_every_command(command):
    assert re.search(rf"`(pgn )?{command}`", README.read_text(encoding="utf-8"))


def test_the_readme_is_short_and_its_python_shorter():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 130
    (code,) = blocks("python", README)
    assert len(code.splitlines()) <= 12


@pytest.mark.parametrize("page", **names(PAGES))
def test_a_page_is_short_and_its_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert lines[0].startswith("# ")
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120
    targets = [
        link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link
    ]
    assert not [target for target in targets if not (page.parent / target).exists()]


def test_every_page_can_be_reached_from_the_readme():
    linked = set(re.findall(r"\]\(docs/(\w+\.md)\)", README.read_text(encoding="utf-8")))
    assert linked == {page.name for page in PAGES} - {"README.md"}


def test_the_drawing_of_the_readme_is_small():
    with Image.open(ROOT / "docs" / "pipeline.png") as drawing:
        assert drawing.size == (900, 260)
    assert (ROOT / "docs" / "pipeline.png").stat().st_size <= 60_000


@pytest.mark.parametrize(
    ("example", "arguments"),
    [
        ("classify.py", ["URL", "demo_out/pgn.safetensors", "demo_out/digits/3"]),
        ("classify_async.py", ["URL", "demo_out/pgn.safetensors", "demo_out/digits/3"]),
        ("look_at_prompts.py", ["demo_out/pgn.safetensors", "seven.png", "looked.png"]),
        pytest.param(
            *("train_in_python.py", ["demo_out/digits", "again.safetensors"]),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_example_runs(folder, url, example, arguments):
    path = ROOT / "examples" / example
    assert len(path.read_text().splitlines()) <= 60
    done = run(
        sys.executable,
        "-W",
        "error",
        path,
        *[url if a == "URL" else a for a in arguments],
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_every_example_is_tested():
    tested = {"classify.py", "classify_async.py", "look_at_prompts.py", "train_in_python.py"}
    assert {p.name for p in (ROOT / "examples").glob("*.py")} == tested


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c != "serve"]
)  # serve hands --help to the server
def test_every_command_explains_itself_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"example: pgn {command} " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", ["train", "benchmark"])
def test_help_names_every_method(command):
    from pgn_client.prompting.methods import REGISTRY, RGBMethod

    named = set(
        re.findall(r"\w+", run(sys.executable, "-m", "pgn_client", command, "--help").stdout)
    )
    offered = {
        name
        for name, method in REGISTRY.items()
        if command == "benchmark" or issubclass(method, RGBMethod)
    }
    assert offered <= named, offered - named


def test_serve_hands_its_arguments_to_the_server_unparsed():
    done = run(sys.executable, "-m", "pgn_client", "serve", "--help")
    assert done.returncode == 0
    assert "--max-batch-size" in done.stdout


def test_an_unknown_command_is_status_2():
    assert run(sys.executable, "-m", "pgn_client", "nonsense").returncode == 2


def test_the_help_loads_nothing_heavy():
    code = (
        "import sys\nfrom pgn_client.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'httpx', 'numpy', 'PIL', 'fastapi'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_same_everywhere():
    from pgn_client.version import __version__

    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version == __version__
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_core_needs_neither_torch_nor_a_server():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    core = {re.split(r"[<>=]", d)[0] for d in project["dependencies"]}
    assert core == {"httpx", "jmespath", "numpy", "pillow", "safetensors", "tqdm"}


def test_the_bundled_weights_are_small_and_say_where_they_come_from():
    folder = ROOT / "mock_server" / "weights"
    assert (folder / "bundled.safetensors").stat().st_size <= 6_000_000
    card = json.loads((folder / "bundled.json").read_text())
    assert card["parameters"] <= 3_000_000
    assert card["recipe"]["initialised_from"] is None
    low, high = card["accuracy"]["ci95"]
    assert low < card["accuracy"]["top1"] < high


def test_no_file_names_this_machine_or_a_registry():
    listed = run("git", "ls-files", cwd=ROOT)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(^|[\s\"'(=])/(work|farm|home|root)/|pypi\.org|npmjs|pythonhosted")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".json", ".yml", ""}
            and path.is_file()
            and path.name != Path(__file__).name
        ):
            text = path.read_text(encoding="utf-8", errors="ignore")
            found += [f"{name}: {m.group(0)!r}" for m in pattern.finditer(text)]
    assert not found


def test_the_wheel_holds_both_packages_the_weights_and_the_templates(tmp_path):
    """What is installed is what was tested: the file list that the build backend collects."""
    code = (
        "from hatchling.builders.wheel import WheelBuilder\n"
        f"found = WheelBuilder({str(ROOT)!r}).recurse_included_files()\n"
        "print('\\n'.join(f.distribution_path for f in found))"
    )
    if run(sys.executable, "-c", "import hatchling").returncode != 0:
        pytest.skip("hatchling is not installed here; the build brings its own")
    files = run(sys.executable, "-c", code, env=os.environ).stdout.split()
    for name in (
        "pgn_client/py.typed",
        "mock_server/app.py",
        "mock_server/weights/bundled.safetensors",
        "pgn_client/wire/ready/google-vision.toml",
    ):
        assert name in files
    templates = "pgn_client/evaluation/report/templates"
    on_disk = {f"{templates}/{path.name}" for path in (ROOT / templates).iterdir()}
    assert f"{templates}/page.html.jinja" in on_disk
    assert on_disk <= set(files)
