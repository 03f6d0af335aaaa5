"""Plugins: Python files of the project that add to the dictionaries of names (objectives, distances, …) when imported.

A study names its plugins, and a kernel inherits their paths in the environment variable OODLIB_PLUGINS, which
`take_parameters` heeds. They are code, so they are never taken from where data and results lie.
"""

import os
import sys
from collections.abc import Sequence
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
