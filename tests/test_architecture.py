"""The house rules of the source tree, read from its syntax trees: layers, two arms, names and sizes.

Every import counts, also one inside a function. Exempt are those under ``if TYPE_CHECKING:``, which never run, the
edges of ``FUNCTION_LEVEL_EDGES``, which must stay inside a function, and the named ``PEER_EDGES``.
"""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports go down only, and peers of one layer do not import each other. A sub-package is one unit.
LAYERS = (
    {"errors", "types"},
    {"counting", "regression"},
    {
        "geometry",
        "labels",
        "statistics",
        "measures",
        "codecs",
        "retry",
        "endpoint",
        "checkpoint",
        "ledger",
        "cache",
        "http_options",
    },
    {"backbone", "generator", "protocols", "compositor"},
    {"inversion", "exchange", "reading"},
    {"library", "discovery", "drift", "hosting"},
    {"methods", "session"},
    {"adapter"},
    {"client"},
    {"probe", "batch"},
    {"training", "published", "segmentation"},
    {"retention"},
    {"candidates"},
    {"judgement"},
    {"evaluation", "refit"},
    {"benchmark"},
    {"report"},
    {"pipeline", "demo", "console"},
    {"cli"},
    {"__main__"},
)
# A value that cannot be read raises an error of the tree, so the errors lie at the very bottom.
PEER_EDGES = {("types", "errors")}
NEUTRAL = {
    "errors",
    "types",
    "counting",
    "regression",
    "geometry",
    "labels",
    "statistics",
    "measures",
    "codecs",
    "checkpoint",
}
WIRE = {
    "retry",
    "endpoint",
    "http_options",
    "protocols",
    "ledger",
    "cache",
    "exchange",
    "reading",
    "discovery",
    "drift",
    "hosting",
    "session",
    "client",
    "probe",
    "batch",
}
PIXEL = {
    "backbone",
    "generator",
    "compositor",
    "inversion",
    "library",
    "methods",
    "adapter",
    "training",
    "published",
    "segmentation",
}
ON_TOP = {
    "retention",
    "candidates",
    "judgement",
    "evaluation",
    "refit",
    "benchmark",
    "report",
    "demo",
    "console",
    "pipeline",
    "cli",
    "__main__",
}

TORCH = {"torch", "torchvision", "timm"}
TORCH_FREE = NEUTRAL | WIRE | {"compositor", "__init__"}
IMPORTERS_OF_TRAINING = {
    "retention",
    "candidates",
    "judgement",
    "evaluation",
    "refit",
    "benchmark",
    "demo",
    "pipeline",
    "cli",
}
# A client that is given a checkpoint path opens it; that is the one place where the arms meet.
FUNCTION_LEVEL_EDGES = {("session", "adapter")}

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 50
NAMES_THAT_SAY_NOTHING = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "misc"}


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
    def unit(self) -> str:
        """The first name below the package: a module, or a sub-package as a whole."""
        return self.name.split(".")[1]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.path.read_text(encoding="utf-8"), str(self.path))

    @property
    def imports(self) -> list[Import]:
        return list(_imports(self.tree, self.name.split(".")[:-1]))


def _imports(node, parents, in_function=False):
    if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
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
    return [Module(path) for path in sorted((ROOT / package).rglob("*.py")) if "__pycache__" not in path.parts]


CLIENT = _modules("pgn_client")
SERVER = _modules("mock_server")
each_client_module = pytest.mark.parametrize("module", CLIENT, ids=lambda m: m.name)
each_module = pytest.mark.parametrize("module", CLIENT + SERVER, ids=lambda m: m.name)


def layer_of(unit):
    return next((number for number, units in enumerate(LAYERS) if unit in units), None)


def internal(module):
    """Yield (unit, import) of what a module imports from its own package, itself aside."""
    for found in module.imports:
        package, *rest = found.target.split(".")
        if package == "pgn_client" and rest and rest[0] not in {module.unit, "__version__"}:
            yield rest[0], found


def external(module):
    return {found.target.split(".")[0] for found in module.imports}


@each_client_module
def test_every_module_has_a_layer_and_an_arm(module):
    if module.unit != "__init__":
        assert layer_of(module.unit) is not None, f"place {module.unit} in LAYERS, as in the architecture"
        assert sum(module.unit in side for side in (NEUTRAL, WIRE, PIXEL, ON_TOP)) == 1, (
            f"place {module.unit} in an arm"
        )


@each_client_module
def test_imports_go_down_only(module):
    own = layer_of(module.unit)
    for unit, found in internal(module):
        assert module.unit != "__init__", f"line {found.line}: the package imports nothing of itself until it is asked"
        assert layer_of(unit) is not None, f"line {found.line}: import {unit} from the module that defines it"
        named = (module.unit, unit) in PEER_EDGES or (found.in_function and (module.unit, unit) in FUNCTION_LEVEL_EDGES)
        down = layer_of(unit) < own or named
        assert down, f"line {found.line}: {module.unit} (layer {own}) imports {unit} (layer {layer_of(unit)})"


@each_client_module
def test_the_arms_do_not_import_each_other(module):
    other = PIXEL | ON_TOP if module.unit in WIRE else WIRE | ON_TOP if module.unit in PIXEL else set()
    other = WIRE | PIXEL | ON_TOP if module.unit in NEUTRAL else other
    for unit, found in internal(module):
        allowed = (module.unit, unit) in FUNCTION_LEVEL_EDGES and found.in_function
        assert unit not in other or allowed, f"line {found.line}: {module.unit} imports {unit} of the other arm"


@each_client_module
def test_torch_stays_out_of_the_wire_arm_and_of_neutral_modules(module):
    if module.unit in TORCH_FREE:
        assert not external(module) & TORCH


@each_client_module
def test_only_the_client_imports_httpx(module):
    if module.name != "pgn_client.wire.client":
        assert "httpx" not in external(module)


@each_client_module
def test_only_the_top_imports_training(module):
    if "training" in {unit for unit, _ in internal(module)}:
        assert module.unit in IMPORTERS_OF_TRAINING


@each_module
def test_client_and_server_share_no_code(module):
    other = {"pgn_client": "mock_server", "mock_server": "pgn_client"}[module.package]
    assert other not in external(module)


@each_module
def test_a_name_says_what_is_inside(module):
    assert not set(module.name.split(".")) & NAMES_THAT_SAY_NOTHING


@each_module
def test_a_file_stays_readable_in_one_sitting(module):
    lines = len(module.path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_FILE_LINES, f"{lines} lines: split it where it has two reasons to change"


def code_lines(function):
    """Lines of the body without its docstring: a long list of documented options is no long function."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


@each_module
def test_a_function_stays_readable_at_a_glance(module):
    functions = [node for node in ast.walk(module.tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    too_long = {f.name: n for f in functions if (n := code_lines(f)) > MAX_FUNCTION_LINES}
    assert not too_long


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


def in_a_child(code, tmp_path):
    """Run code in a fresh interpreter in an empty folder, writing no bytecode; return what it printed."""
    command = [sys.executable, "-B", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("name", "heavy"),
    [
        ("pgn_client", {"torch", "torchvision", "timm", "httpx"}),
        ("pgn_client.wire.client", TORCH),
        ("pgn_client.wire.folders", TORCH),
        ("pgn_client.probe", TORCH | {"httpx"}),
        ("pgn_client.prompting.adapter", TORCH | {"httpx"}),
        ("pgn_client.cli", TORCH | {"httpx"}),
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
