"""The house: imports run one way, without circles, and nothing runs on import."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "oodlib"
ROOMS = ("", "data", "encoders", "clustering", "scoring", "study", "report", "plots", "app")  # "": the top modules
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path
    for path in PACKAGE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py")
}


def imports(path: Path) -> set[str]:
    """Return the modules of the package that a file imports, wherever in it, but for type checking."""
    found = set()
    todo = list(ast.parse(path.read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "oodlib":
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= inner or {node.module}
        todo += ast.iter_child_nodes(node)
    return found - {"oodlib"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 2 or parts[1] in ROOMS else ""


@pytest.mark.parametrize("module", MODULES)
def test_a_room_imports_only_from_those_above_it(module):
    own = ROOMS.index(room(module))
    later = [name for name in imports(MODULES[module]) if ROOMS.index(room(name)) > own]
    # the figures of separation are measured on clusters, but a reader looks for the module beside the metrics
    assert later == [] or module == "oodlib.separation"
    assert not [name for name in imports(MODULES[module]) if name == f"oodlib.{room(module)}"]  # but from its modules


@cache
def depth(module: str) -> int:
    """Return how many modules lie on the longest way down from a module; a circle is a RecursionError."""
    return 1 + max((depth(name) for name in imports(MODULES[module]) if name in MODULES and name != module), default=0)


def test_there_are_no_circles_and_few_layers():
    assert max(map(depth, MODULES)) <= LAYERS


LAYERS = 10  # on the longest way from a module down


def test_what_takes_seconds_to_import_is_imported_where_it_is_needed():
    code = """
import sys, oodlib
print([name for name in sys.modules if name.startswith("oodlib.")])
import oodlib.data
print({"torch", "torchvision", "sklearn", "matplotlib"} & set(sys.modules))
from oodlib.encoders import TrainingConfig, training
TrainingConfig()
print({"timm", "torchvision", "sklearn"} & set(sys.modules))"""
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\nset()\nset()\n"
    )
