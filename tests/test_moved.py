"""Module paths of version 0.1 lead to where their names are now, and warn."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from pgn_client.moved import MOVED, new_homes

NAMES = json.loads(
    (Path(__file__).parent / "compatibility" / "names.json").read_text(encoding="utf-8")
)
"""Module below the package, as of commit 6894f70 → its public names, but for names of array types.
"""
GONE = {
    "benchmark.runs": {"PROBE", "RAW"},
    "cli.predict": {"add_adapt", "add_inspect", "run_adapt", "run_inspect"},
    "cli.serve": {"add_demo", "run_demo"},
    "cli.train": {"add_evaluate", "run_evaluate"},
    "probe": {"Asker"},
    "refit": {"IMPORTED_RECIPE", "queries"},
    "report": {"steps_sheet"},
    "session": {"ends_all"},
    "report.markup": {"Markup", "join", "tag", "void"},
    "report.page": {"STYLE"},
    "report.pictures": {"columns", "steps_sheet"},
}
"""Names of parts that no longer exist in this form; CHANGELOG.md says what takes their place."""


@pytest.mark.parametrize("module", [name for name in NAMES if set(NAMES[name]) != GONE.get(name)])
@pytest.mark.filterwarnings("ignore:.* has moved to .*:DeprecationWarning")
def test_every_public_name_is_found_under_its_old_path(module):
    found = import_module(f"pgn_client.{module}")
    assert {name for name in NAMES[module] if not hasattr(found, name)} == GONE.get(module, set())


def test_an_old_path_names_the_new_one_at_the_importing_line():
    code = "import warnings\nwarnings.simplefilter('error')\nfrom pgn_client.backbone import load"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "line 3, in <module>" in done.stderr
    expected = (
        "pgn_client.backbone has moved to pgn_client.surrogate.backbone and "
        "pgn_client.surrogate.patch_embedding"
    )
    assert f"DeprecationWarning: {expected}; the next release removes the old path" in done.stderr


@pytest.mark.filterwarnings("ignore:.* has moved to .*:DeprecationWarning")
def test_a_name_is_the_same_object_under_both_paths():
    from pgn_client import statistics
    from pgn_client.evaluation.statistics import mcnemar
    from pgn_client.mapping.fusion import fuse

    assert (statistics.mcnemar, statistics.fuse) == (mcnemar, fuse)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = statistics.nothing


def test_what_lay_below_a_moved_folder_moved_with_it():
    assert new_homes("pgn_client.protocols.oip") == ("pgn_client.wire.protocols.oip",)
    assert new_homes("pgn_client.protocols.v1") == ("pgn_client.wire.protocols.kserve_v1",)
    assert new_homes("pgn_client.nothing") is None
    assert new_homes("json.decoder") is None


def test_no_old_path_is_a_module_that_exists():
    package = Path(import_module("pgn_client").__file__).parent
    for old in MOVED:
        path = package / old.replace(".", "/")
        assert not path.with_suffix(".py").exists(), f"{old} is both old and new"
        assert not (path / "__init__.py").exists(), f"{old} is both old and new"


def test_importing_the_package_loads_no_old_module():
    code = (
        "import pgn_client, sys; print([m for m in sys.modules if m in ('pgn_client.backbone', "
        "'pgn_client.client')])"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.filterwarnings("ignore:.* has moved to .*:DeprecationWarning")
def test_a_star_import_from_an_old_path_brings_its_names():
    names = {}
    exec("from pgn_client.ledger import *", names)
    assert "Ledger" in names
    assert "Ledger" in dir(import_module("pgn_client.ledger"))


def test_nonsense_below_an_old_path_is_not_found():
    with pytest.raises(ModuleNotFoundError, match=r"pgn_client\.protocols\.nonsense"):
        import_module("pgn_client.protocols.nonsense")
