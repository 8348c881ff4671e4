"""The house rules of the source tree, read from its syntax trees: floors, two arms, names.

Every import counts, also one inside a function. Exempt are those under ``if TYPE_CHECKING:``, which
never run.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folders and files of the package, from the ground up: each imports only from lines above its own.
FLOORS = (
    ("errors", "arrays", "version", "moved"),
    ("types",),
    ("imaging", "mapping"),
    ("checkpoint",),
    ("surrogate",),
    ("prompting",),
    ("wire", "segmentation", "training"),
    ("probe",),
    ("evaluation",),
    ("cli",),
    ("__init__", "__main__"),
)
GROUND = {
    "errors": set(),
    "arrays": set(),
    "version": set(),
    "moved": set(),
    "types": {"errors", "arrays"},
}
"""What the ground may import of the package."""
TORCH = {"torch", "torchvision", "timm"}
HEAVY = TORCH | {"scipy"}
"""Packages of the extra [train], which the light client does not have."""
TORCH_FREE = (
    "errors",
    "arrays",
    "version",
    "moved",
    "types",
    "checkpoint",
    "imaging",
    "mapping",
    "wire",
    "probe",
)
HTTPX = ("wire.transport",)
"""The only module that imports httpx."""
TRAINERS = ("training", "evaluation", "cli")
"""The only folders that import training; it never imports the client, so whatever it asks is given
to it.
"""
MEETING_POINT = ("wire.loaded_adapter", "prompting.adapter")
"""A client that is given a checkpoint's path opens it: the one import, inside a function, where the
arms meet.
"""
OPENERS = ("evaluation.queries", "evaluation.demo", "evaluation.benchmark")
"""The only modules of the study that know the client."""
VALUES = tuple(
    f"evaluation.{name}"
    for name in (
        "candidate",
        "selection",
        "results",
        "comparison",
        "verdict",
        "report",
        "metrics",
        "statistics",
    )
)
"""Results and how they are shown, which load neither torch nor httpx."""

NAMES_THAT_SAY_NOTHING = {
    "utils",
    "util",
    "helpers",
    "helper",
    "common",
    "manager",
    "managers",
    "misc",
}


@dataclass(frozen=True)
class Import:
    """One imported name: its dotted module path, the line, and whether it is inside a function."""

    target: str
    line: int
    in_function: bool


@dataclass(frozen=True)
class Module:
    """One source file."""

    path: Path

    @property
    def name(self) -> str:
        return ".".join(self.path.relative_to(ROOT).with_suffix("").parts)

    @property
    def package(self) -> str:
        return self.path.relative_to(ROOT).parts[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    @property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self.name.split(".")[:-1]))


def _imports(node, parents, in_function=False):
    if isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }:
        children = node.orelse
    else:
        children = ast.iter_child_nodes(node)
        for target in _targets(node, parents):
            yield Import(target, node.lineno, in_function)
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in children:
        yield from _imports(child, parents, inside)


def _targets(node, parents):
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        above = parents[: len(parents) - node.level + 1] if node.level else []
        module = ".".join([*above, *([node.module] if node.module else [])])
        return [f"{module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in {
        "import_module",
        "importlib.import_module",
        "__import__",
    }:
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant)]
    return []


def _modules(package):
    return [
        Module(path)
        for path in sorted((ROOT / package).rglob("*.py"))
        if "__pycache__" not in path.parts
    ]


CLIENT = _modules("pgn_client")
SERVER = _modules("mock_server")
each_client_module = pytest.mark.parametrize("module", CLIENT, ids=lambda m: m.name)
each_module = pytest.mark.parametrize("module", CLIENT + SERVER, ids=lambda m: m.name)


def below(path, prefixes):
    """Whether a dotted path is one of the prefixes, or lies below one."""
    return any(path == prefix or path.startswith(f"{prefix}.") for prefix in prefixes)


def floor_of(path):
    """The number of a path's floor, or ``None`` for a path without one."""
    return next(
        (number for number, names in enumerate(FLOORS) if path.split(".")[0] in names), None
    )


def inside(module):
    """The dotted path of a module below the package; that of a folder's ``__init__`` is the
    folder's.
    """
    return module.name.removeprefix("pgn_client.").removesuffix(".__init__")


def internal(module):
    """Yield (path, import) of what a module imports from the package, its own folder aside."""
    for found in module.imports:
        package, *rest = found.target.split(".")
        if package == "pgn_client" and rest and rest[0] != inside(module).split(".")[0]:
            yield ".".join(rest), found


def external(module):
    return {found.target.split(".")[0] for found in module.imports}


def test_every_path_that_a_rule_names_exists():
    named = {
        *(name for floor in FLOORS for name in floor),
        *TORCH_FREE,
        *TRAINERS,
        *MEETING_POINT,
        *OPENERS,
        *VALUES,
    }
    named.discard("__init__")
    for name in sorted(named):
        path = ROOT / "pgn_client" / name.replace(".", "/")
        assert path.is_dir() or path.with_suffix(".py").is_file(), f"{name} is not there any more"


def test_the_root_holds_only_what_everyone_needs():
    files = {path.stem for path in (ROOT / "pgn_client").glob("*.py")}
    assert files == {
        "__init__",
        "__main__",
        "arrays",
        "errors",
        "moved",
        "types",
        "version",
    }


@each_client_module
def test_imports_go_down_only(module):
    own = floor_of(inside(module))
    assert own is not None, f"place {inside(module)} on a floor"
    for path, found in internal(module):
        assert floor_of(path) is not None, f"line {found.line}: {path} is on no floor"
        met = (
            below(inside(module), MEETING_POINT[:1])
            and below(path, MEETING_POINT[1:])
            and found.in_function
        )
        down = floor_of(path) < own
        assert down or met, (
            f"line {found.line}: {inside(module)} (floor {own}) imports {path} (floor "
            f"{floor_of(path)})"
        )


@each_client_module
def test_the_ground_stands_on_nothing(module):
    if inside(module) in GROUND:
        assert {path.split(".")[0] for path, _ in internal(module)} <= GROUND[inside(module)]


@each_client_module
def test_the_arms_do_not_import_each_other(module):
    """The pixel arm makes images, the wire arm sends them; they meet where a client opens a
    checkpoint.
    """
    for path, found in internal(module):
        if below(
            inside(module),
            ("prompting", "surrogate", "training", "segmentation", "imaging", "mapping"),
        ):
            assert not below(path, ("wire", "probe")), (
                f"line {found.line}: {inside(module)} imports {path}"
            )
        if below(inside(module), ("wire", "probe")) and below(
            path, ("prompting", "surrogate", "training")
        ):
            assert (inside(module), ".".join(path.split(".")[:2])) == MEETING_POINT, (
                f"line {found.line}: {path}"
            )
            assert found.in_function


@each_client_module
def test_torch_stays_out_of_the_wire_arm_and_of_neutral_modules(module):
    if below(inside(module), (*TORCH_FREE, *VALUES)):
        assert not external(module) & TORCH


@each_client_module
def test_only_the_client_imports_httpx(module):
    if not below(inside(module), HTTPX):
        assert "httpx" not in external(module)


@each_client_module
def test_only_the_study_and_the_commands_import_training(module):
    if any(below(path, ("training",)) for path, _ in internal(module)):
        assert below(inside(module), TRAINERS)


@each_client_module
def test_the_study_knows_the_client_in_few_places(module):
    if below(inside(module), ("evaluation",)) and any(
        below(path, ("wire",)) for path, _ in internal(module)
    ):
        assert below(inside(module), OPENERS)


@each_module
def test_client_and_server_share_no_code(module):
    other = {"pgn_client": "mock_server", "mock_server": "pgn_client"}[module.package]
    assert other not in external(module)


@each_module
def test_a_name_says_what_is_inside(module):
    assert not set(module.name.split(".")) & NAMES_THAT_SAY_NOTHING


@each_module
def test_user_input_is_never_checked_by_assert(module):
    lines = [node.lineno for node in ast.walk(module.tree) if isinstance(node, ast.Assert)]
    assert not lines, f"assert in lines {lines}: python -O removes it; raise an error of the tree"


def test_type_checking_imports_are_exempt_and_all_others_are_seen():
    source = """
import a.b
if TYPE_CHECKING:
    import never
else:
    import fallback
def f():
    from pgn_client import c
    from . import d
    from ..e import g
    import_module("h.i")
"""
    found = {(i.target, i.in_function) for i in _imports(ast.parse(source), ["p", "q"])}
    assert found == {
        ("a.b", False),
        ("fallback", False),
        ("pgn_client.c", True),
        ("p.q.d", True),
        ("p.e.g", True),
        ("h.i", True),
    }


MAPPING = [inside(module) for module in CLIENT if below(inside(module), ("mapping",))]


def in_a_child(code, tmp_path):
    """Run code in a fresh interpreter in an empty folder, writing no bytecode; return what it
    printed.
    """
    command = [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("pgn_client", HEAVY | {"httpx"}),
        ("pgn_client.wire.client", HEAVY),
        ("pgn_client.wire.folders", HEAVY),
        ("pgn_client.probe", HEAVY | {"httpx"}),
        ("pgn_client.prompting.adapter", HEAVY | {"httpx"}),
        ("pgn_client.cli", HEAVY | {"httpx"}),
        *((f"pgn_client.{name}", HEAVY | {"httpx"}) for name in (*MAPPING, *VALUES)),
    ],
)
def test_importing_loads_nothing_heavy(name, heavy, tmp_path):
    loaded = set(in_a_child(f"import {name}; print(*sys.modules)", tmp_path).split())
    assert name in loaded
    assert not loaded & heavy


@pytest.mark.parametrize("name", ["pgn_client", "pgn_client.wire.client"])
def test_importing_starts_no_thread_and_writes_no_file(name, tmp_path):
    code = """
import threading
opened = []
def watch(event, args):
    if event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+"):
        opened.append(args[0])
    if event in {"os.mkdir", "socket.connect", "subprocess.Popen"}:
        opened.append(event)
sys.addaudithook(watch)
import NAME
print(threading.active_count(), opened)
""".replace("NAME", name)
    assert in_a_child(code, tmp_path).split() == ["1", "[]"]
    assert not list(tmp_path.iterdir())


def test_every_public_name_has_a_home():
    tree = Module(ROOT / "pgn_client" / "__init__.py").tree
    values = {
        target.id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(target := node.targets[0], ast.Name)
    }
    assert set(values["__all__"]) == {*values["_HOMES"], "__version__"}
