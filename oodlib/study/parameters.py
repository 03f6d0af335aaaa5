"""The parameters of a notebook, brought to the types that its parameters cell declares.

A type is int, float, str, bool, list[int] or list[str]. papermill's -p makes a number of "2024" and knows no lists, so
where a list is declared a bare value is a list of one, and where a name is declared a number is its text.
"""

import ast
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from oodlib.data.sets import data_root
from oodlib.files import project_root, resolve

VARIABLE = "OODLIB_PLUGINS"  # paths, absolute or relative to the project's root, as PATH separates them


def plugin_path(name: str) -> Path:
    """Return the file of a plugin.

    Raises ValueError unless it is a .py file in the project, outside of data and outputs.
    """
    root, path = project_root().resolve(), resolve(name).resolve()
    data = (root / "outputs", root / "data", data_root().resolve())
    if path.suffix != ".py" or not path.is_file():
        raise ValueError(f"plugin {name!r} must be a .py file: there is no {path}")
    if not path.is_relative_to(root) or any(path.is_relative_to(folder) for folder in data):
        raise ValueError(f"plugin {name!r} must be in the project {root}, and not where data and outputs are")
    return path


def load_plugins(names: Sequence[str]) -> None:
    """Import plugins, each once in a process. Raises ValueError as `plugin_path`, and for one that fails."""
    for path in map(plugin_path, names):
        module = f"oodlib_plugin_{path.stem}_{abs(hash(path))}"
        if module in sys.modules:
            continue
        spec = spec_from_file_location(module, path)
        sys.modules[module] = module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules[module])
        except Exception as error:
            del sys.modules[module]
            raise ValueError(f"plugin {path.name} fails: {type(error).__name__}: {error}") from error


def plugins_of_environment() -> list[str]:
    """Return the paths of the plugins that this process has been told to load."""
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def hand_on(names: Sequence[str]) -> None:
    """Have the kernels that this process starts load these plugins; without any, what the user has set stays."""
    if names:
        os.environ[VARIABLE] = os.pathsep.join(str(plugin_path(name)) for name in names)


ELEMENTS = {"int": int, "float": (int, float), "str": str, "bool": bool, "list[int]": int, "list[str]": str}


def declarations(source: str) -> list[ast.AnnAssign]:
    """Return the lines NAME: TYPE = DEFAULT of a cell."""
    return [line for line in ast.parse(source).body if isinstance(line, ast.AnnAssign)]


def check_type(name: str, value: object, kind: str) -> None:
    """Raise ValueError unless a parameter's value has its type; an int may stand for a float."""
    if not kind.startswith("list"):
        if not _is(value, kind):
            raise ValueError(f"{name} must be of type {kind}, got {value!r} ({type(value).__name__})")
    elif not isinstance(value, list):
        raise ValueError(f"{name} must be of type {kind}, got {value!r} ({type(value).__name__})")
    elif wrong := [element for element in value if not _is(element, kind)]:
        raise ValueError(f"{name} must be of type {kind}, got {wrong[0]!r} in it")


def _is(value: object, kind: str) -> bool:
    return isinstance(value, ELEMENTS[kind]) and isinstance(value, bool) == (kind == "bool")


def as_declared(name: str, value: object, kind: str) -> object:
    """Return a parameter's value in its type: a bare value as a list of one, "" as an empty list, a number as its text.

    Raises ValueError as `check_type` for a value that makes no sense.
    """
    if kind.startswith("list") and not isinstance(value, list):
        value = [] if value == "" else [value]
    if kind == "str":
        value = _text(value)
    elif kind == "list[str]":
        value = [_text(element) for element in value]
    check_type(name, value, kind)
    return value


def _text(value: object) -> object:
    return str(value) if _is(value, "float") else value


def take_parameters(namespace: dict[str, object]) -> None:
    """Bring the parameters in the globals() of a notebook to the types that its parameters cell declares.

    Plugins that the environment names are loaded first, so that what they add can be named (see `plugins`).
    """
    load_plugins(plugins_of_environment())
    for source in namespace.get("In", ()):  # the cells that ran, as IPython keeps them
        with suppress(SyntaxError):
            for line in declarations(source):
                name, kind = ast.unparse(line.target), ast.unparse(line.annotation)
                if name in namespace and kind in ELEMENTS:
                    namespace[name] = as_declared(name, namespace[name], kind)
