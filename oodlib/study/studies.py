"""The study, a YAML file, read into planned runs with the parameters of each of their notebooks, and checked.

A study's `parameters` are those of the notebooks; lists are crossed into runs, except where the notebook's own
parameter is a list. `when` changes parameters for some of the runs, later entries win:

    parameters: {objective: [ce, supcon], seed: [0, 1, 2], epochs: 30}
    when: [{if: {objective: supcon}, set: {epochs: 60}}]

`plugins` are Python files of the project, imported by every process that takes part: they add objectives and the like.

Everything is checked before anything starts.
"""

import ast
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from oodlib.files import project_root
from oodlib.study.parameters import check_type, declarations, hand_on, load_plugins
from oodlib.study.run import Run, run_name

NOTEBOOKS = {"train": "01_train", "embed": "02_embed", "cluster": "03_clusters", "evaluate": "04_evaluate"}
REPORT = "05_report"
STUDIES = "notebooks/studies"
NOT_STUDIED = ("study", "run", "data_root")  # parameters that say where things are; they decide no result


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study: its folder and record, the parameters of each of its steps, and the study's plugins."""

    run: Run
    parameters: dict[str, dict]
    plugins: tuple[str, ...] = ()


class StudyError(ValueError):
    """A study that cannot be run as it is written; the message says what to change."""


def study_names() -> list[str]:
    """Return the names of the studies in notebooks/studies."""
    return sorted(path.stem for path in (project_root() / STUDIES).glob("*.yaml"))


def study_path(study: str) -> Path:
    """Return the YAML file of a study. Raises StudyError naming the known ones."""
    folder, known = project_root() / STUDIES, study_names()
    if study not in known:
        where = (
            f"known: {', '.join(known)}" if known else f"there are none in {folder}; start it in the project's folder"
        )
        raise StudyError(f"unknown study {study!r}; {where}")
    return folder / f"{study}.yaml"


def notebook_parameters(notebook: str) -> dict[str, tuple[str, object]]:
    """Return the parameters of a notebook, each with its type's name and its default.

    Read here and not by papermill, so that training needs neither it nor Jupyter.
    """
    cells = json.loads((project_root() / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8"))["cells"]
    source = next("".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", ()))
    return {
        line.target.id: (ast.unparse(line.annotation), ast.literal_eval(line.value)) for line in declarations(source)
    }


def check_parameters(values: dict, known: dict[str, tuple[str, object]], where: str) -> None:
    """Raise StudyError unless every value has a known name and its parameter's type; an int may stand for a float."""
    for name, value in values.items():
        if name not in known or name in NOT_STUDIED:
            allowed = ", ".join(sorted(known.keys() - set(NOT_STUDIED)))
            raise StudyError(f"{where}: unknown parameter {name!r}; known: {allowed}")
        try:
            check_type(name, value, known[name][0])
        except ValueError as error:
            raise StudyError(f"{where}: {error}") from error


def choices(name: str, value: object, known: dict[str, tuple[str, object]]) -> list:
    """Return the values that a list of alternatives holds; where the parameter is a list itself, a list of lists."""
    if not isinstance(value, list):
        return [value]
    if known.get(name, ("", None))[0].startswith("list"):
        return value if value and all(isinstance(v, list) for v in value) else [value]
    return value


def crossed(parameters: dict, known: dict[str, tuple[str, object]]) -> list[dict]:
    """Return one dictionary for every combination of the listed values."""
    expanded = [[(name, choice) for choice in choices(name, value, known)] for name, value in parameters.items()]
    return [dict(combination) for combination in itertools.product(*expanded)]


def check_when(entries: object, known: dict[str, tuple[str, object]], where: str) -> list[dict]:
    """Return the entries of `when`. Raises StudyError for what has not its form, an unknown name or a wrong type."""
    if not isinstance(entries, list):
        raise StudyError(f"{where}: 'when' must be a list of entries with 'if' and 'set', got {entries!r}")
    for entry in entries:
        if not isinstance(entry, dict) or entry.keys() != {"if", "set"}:
            raise StudyError(f"{where}: an entry of 'when' must hold 'if' and 'set', got {entry!r}")
        if not all(isinstance(part, dict) for part in entry.values()):
            raise StudyError(f"{where}: 'if' and 'set' must hold parameters and their values, got {entry!r}")
        check_parameters(entry["set"], known, where)
        for name, value in entry["if"].items():
            for choice in choices(name, value, known):
                check_parameters({name: choice}, known, where)
    return entries


def read_study(study: str) -> tuple[list[PlannedRun], dict]:
    """Return a study's runs, and the parameters of its report.

    Its plugins are imported. Raises StudyError for an unknown study, a file that is not in the study's form, an unknown
    name or a wrong type, and a plugin that fails.
    """
    path = study_path(study)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("parameters"), dict)
        or content.keys() - {"parameters", "when", "plugins"}
    ):
        raise StudyError(f"{path.name} must hold 'parameters' and may hold 'when' and 'plugins', nothing else")
    plugins = _loaded_plugins(content.get("plugins") or [], path.name)
    by_step = {step: notebook_parameters(notebook) for step, notebook in {**NOTEBOOKS, "report": REPORT}.items()}
    known = {name: about for parameters in by_step.values() for name, about in parameters.items()}
    defaults = {name: default for name, (_, default) in known.items() if name not in NOT_STUDIED}
    when = check_when(content.get("when") or [], known, path.name)
    planned = {}
    for values in crossed(content["parameters"], known):
        check_parameters(values, known, path.name)
        values = defaults | values
        for entry in when:
            if all(values[name] in choices(name, value, known) for name, value in entry["if"].items()):
                values = values | entry["set"]
        run = Run(study, run_name(values["id_dataset"], values["arch"], values["objective"], values["seed"]))
        if run.name in planned:
            raise StudyError(
                f"{path.name}: two runs would be called {run.name}; a name holds ID set, arch, objective, seed"
            )
        steps = {step: {k: values[k] for k in by_step[step] if k not in NOT_STUDIED} for step in by_step}
        planned[run.name] = PlannedRun(run, steps, plugins)
    if not planned:
        raise StudyError(f"{path.name}: a parameter has an empty list of values, so there is no run")
    reports = [plan.parameters["report"] for plan in planned.values()]
    if any(report != reports[0] for report in reports):
        raise StudyError(f"{path.name}: the parameters of {REPORT} must be the same for all runs")
    return list(planned.values()), reports[0]


def _loaded_plugins(names: object, where: str) -> tuple[str, ...]:
    """Import a study's plugins, which may add to what it names; return their paths."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise StudyError(f"{where}: 'plugins' must be a list of Python files, got {names!r}")
    try:
        load_plugins(names)
        hand_on(names)
    except ValueError as error:
        raise StudyError(f"{where}: {' '.join(str(error).split())}") from error
    return tuple(names)
