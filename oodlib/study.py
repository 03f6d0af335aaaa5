"""The study: a YAML file in; runs, each through the notebooks 01 to 04 by papermill, then the report, out.

A study's `parameters` are those of the notebooks; lists are crossed into runs, except where the notebook's own
parameter is a list. `when` changes parameters for some of the runs, later entries win:

    parameters: {objective: [ce, supcon], seed: [0, 1, 2], epochs: 30}
    when: [{if: {objective: supcon}, set: {epochs: 60}}]

Everything is checked before anything starts. A step that is done is not done again.
"""

import itertools
import json
import os
import queue
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import yaml

from oodlib.files import project_root
from oodlib.runs import Run, run_name, study_folder

NOTEBOOKS = {"train": "01_train", "embed": "02_embed", "cluster": "03_clusters", "evaluate": "04_evaluate"}
REPORT = "05_report"
NOT_STUDIED = ("study", "run", "data_root")  # parameters that say where things are; they decide no result
HEARTBEAT = 60  # seconds without news after which a line says what is still running


@dataclass(frozen=True)
class PlannedRun:
    """A run of a study: its folder and record, and the parameters of each of its steps."""

    run: Run
    parameters: dict[str, dict]


class StudyError(ValueError):
    """A study that cannot be run as it is written; the message says what to change."""


def study_path(study: str) -> Path:
    """Return the YAML file of a study. Raises StudyError naming the known ones."""
    folder = project_root() / "notebooks" / "studies"
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if study not in known:
        where = (
            f"known: {', '.join(known)}" if known else f"there are none in {folder}; start it in the project's folder"
        )
        raise StudyError(f"unknown study {study!r}; {where}")
    return folder / f"{study}.yaml"


def notebook_parameters(notebook: str) -> dict[str, tuple[str, object]]:
    """Return the parameters of a notebook, each with its type's name and its default."""
    import ast

    from papermill import inspect_notebook

    found = inspect_notebook(str(project_root() / "notebooks" / f"{notebook}.ipynb"))
    return {name: (about["inferred_type_name"], ast.literal_eval(about["default"])) for name, about in found.items()}


def check_parameters(values: dict, known: dict[str, tuple[str, object]], where: str) -> None:
    """Raise StudyError unless every value has a known name and its parameter's type; an int may stand for a float."""
    types = {"int": int, "float": (int, float), "str": str, "bool": bool, "list": list}
    for name, value in values.items():
        if name not in known or name in NOT_STUDIED:
            allowed = ", ".join(sorted(known.keys() - set(NOT_STUDIED)))
            raise StudyError(f"{where}: unknown parameter {name!r}; known: {allowed}")
        kind = known[name][0]
        if not isinstance(value, types[kind]) or (isinstance(value, bool) and kind != "bool"):
            raise StudyError(f"{where}: {name} must be of type {kind}, got {value!r} ({type(value).__name__})")
        # that of the default's elements; the lists that are empty by default hold names
        element = type((known[name][1] or [""])[0]) if kind == "list" else None
        if element and (wrong := [v for v in value if type(v) is not element]):
            raise StudyError(f"{where}: {name} must be a list of {element.__name__}, got {wrong[0]!r} in it")


def choices(name: str, value: object, known: dict[str, tuple[str, object]]) -> list:
    """Return the values that a list of alternatives holds; where the parameter is a list itself, a list of lists."""
    if not isinstance(value, list):
        return [value]
    if known.get(name, ("", None))[0] == "list":
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

    Raises StudyError for an unknown study, a file that is not in the study's form, an unknown name or a wrong type.
    """
    path = study_path(study)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path.name} is no YAML: {' '.join(str(error).split())}") from error
    if (
        not isinstance(content, dict)
        or not isinstance(content.get("parameters"), dict)
        or content.keys() - {"parameters", "when"}
    ):
        raise StudyError(f"{path.name} must hold 'parameters' and may hold 'when', nothing else")
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
        planned[run.name] = PlannedRun(run, steps)
    if not planned:
        raise StudyError(f"{path.name}: a parameter has an empty list of values, so there is no run")
    reports = [plan.parameters["report"] for plan in planned.values()]
    if any(report != reports[0] for report in reports):
        raise StudyError(f"{path.name}: the parameters of {REPORT} must be the same for all runs")
    return list(planned.values()), reports[0]


def check_runs(runs: list[PlannedRun]) -> None:
    """Check every name that the runs use, load every image set once, and compare with what is there on disk.

    Raises StudyError for the first thing that would fail; nothing is written but images that torchvision fetched.
    """
    from oodlib.clustering import CLUSTERINGS
    from oodlib.data import load_images
    from oodlib.detector import check_alpha
    from oodlib.product import check_detectors
    from oodlib.steps import check_ood_sets
    from oodlib.training import TrainingConfig

    sets = set()
    for plan in runs:
        training, embedding = plan.parameters["train"], plan.parameters["embed"]
        try:
            TrainingConfig(**training)
            check_ood_sets(training["id_dataset"], **embedding)
            clusterings, evaluation = plan.parameters["cluster"]["clusterings"], plan.parameters["evaluate"]
            if unknown := [name for name in clusterings if name not in CLUSTERINGS]:
                raise ValueError(f"unknown clustering {unknown[0]!r}; known: {', '.join(CLUSTERINGS)}")
            check_detectors(evaluation["distances"], evaluation["n_neighbors"], evaluation["known_outliers"])
            check_alpha(evaluation["alpha"])
            for step in NOTEBOOKS:
                plan.run.is_done(step, plan.parameters[step])
        except ValueError as error:
            raise StudyError(f"{plan.run.name}: {error}") from error
        sets |= {(training["id_dataset"], "train"), (training["id_dataset"], "test")}
        sets |= {(name, "test") for group in ("near_ood", "far_ood", "sanity_ood") for name in embedding[group]}
    for name, split in sorted(sets):
        try:
            load_images(name, split)
        except (ValueError, OSError) as error:
            raise StudyError(str(error)) from error


def execute(notebook: str, output: Path, parameters: dict) -> None:
    """Execute a notebook by papermill; the executed copy is there only when it ran to its end."""
    from papermill import execute_notebook

    partial = output.with_suffix(".partial.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    source = project_root() / "notebooks" / f"{notebook}.ipynb"
    quiet = ["--IPKernelApp.log_level=50"]  # a kernel's own warnings would stand between the progress lines
    execute_notebook(
        str(source), str(partial), parameters, kernel_name="python3", progress_bar=False, extra_arguments=quiet
    )
    _forget_paths(partial, notebook, output)
    partial.replace(output)


def _forget_paths(executed: Path, notebook: str, output: Path) -> None:
    """Make the paths that papermill notes in a notebook relative to the project: a report is for others to read."""
    content = json.loads(executed.read_text())
    relative = str(output.relative_to(project_root()))
    content["metadata"]["papermill"] |= {"input_path": f"notebooks/{notebook}.ipynb", "output_path": relative}
    executed.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def what_failed(error: Exception) -> str:
    """Return one line on what stopped a notebook: its error, and the cell where it is a cell's."""
    if hasattr(error, "ename"):
        return f"cell {error.exec_count}: {error.ename}: {error.evalue}"
    return f"{type(error).__name__}: {error}"


class Progress:
    """Prints a line whenever a step ends: how far, what is running, how long it may still take."""

    def __init__(self, n_steps: int, jobs: int):
        self.n_steps, self.jobs, self.start = n_steps, jobs, time.monotonic()
        self.n_ended, self.running = 0, {}
        self.events: queue.Queue = queue.Queue()

    def follow(self, n_runs: int) -> list[str]:
        """Print what the workers report until `n_runs` have ended; return a line for each that failed."""
        failures = []
        while n_runs:
            try:
                event, run, step, value = self.events.get(timeout=HEARTBEAT)
            except queue.Empty:
                self._print("still running")
                continue
            if event == "start":
                self.running[run] = NOTEBOOKS[step]
            elif event == "end":
                self._ended(run, step, value)
            elif event == "failed":
                self.running.pop(run, None)
                failures.append(f"{run}: {NOTEBOOKS[step]}, {value}")
                self._print(f"FAILED {failures[-1]}")
            else:
                n_runs -= 1
        return failures

    def _ended(self, run: str, step: str, seconds: float | None) -> None:
        self.n_ended += 1
        self.running.pop(run, None)
        if seconds is not None:  # None: it was done already
            self._print(f"{run} {NOTEBOOKS[step]} in {seconds:.0f} s")

    def _left(self) -> str:
        if self.n_ended < len(NOTEBOOKS) * self.jobs or self.n_ended == self.n_steps:
            return ""  # steps differ too much to judge by the first few
        rest = (time.monotonic() - self.start) * (self.n_steps / self.n_ended - 1)
        return f" · about {_clock(rest)} left"

    def _print(self, news: str) -> None:
        running = ", ".join(f"{run} {notebook}" for run, notebook in self.running.items())
        now = f" · running: {running}" if running else ""
        elapsed = _clock(time.monotonic() - self.start)
        print(f"{elapsed} [{self.n_ended:3d}/{self.n_steps}] {news}{self._left()}{now}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def _do_run(plan: PlannedRun, events: queue.Queue) -> None:
    """Bring one run through its steps; report each to `events`, and the first that fails."""
    for step, notebook in NOTEBOOKS.items():
        try:
            if plan.run.is_done(step, plan.parameters[step]):
                events.put(("end", plan.run.name, step, None))
                continue
            events.put(("start", plan.run.name, step, None))
            start = time.monotonic()
            where = {"study": plan.run.study} if step == "train" else {"study": plan.run.study, "run": plan.run.name}
            execute(notebook, plan.run.path / f"{notebook}.ipynb", plan.parameters[step] | where)
            events.put(("end", plan.run.name, step, time.monotonic() - start))
        except Exception as error:  # whatever stops a run must not stop the others
            events.put(("failed", plan.run.name, step, what_failed(error)))
            break
    events.put(("over", plan.run.name, "", None))


def default_jobs() -> int:
    """Return how many runs go side by side: up to four on the CPU, two where they share a GPU."""
    import torch

    return 2 if torch.cuda.is_available() else min(os.cpu_count() or 1, 4)


def run_study(study: str, jobs: int = 0) -> list[str]:
    """Run what is missing of a study, then its report; return a line for each run that failed.

    `jobs` runs go side by side, 0 chooses; the cores are shared out among them. Raises StudyError for a study that
    cannot be run, before anything starts, and where another process is running it.
    """
    from filelock import FileLock, Timeout

    runs, report_parameters = read_study(study)
    check_runs(runs)
    jobs = min(jobs or default_jobs(), len(runs))
    # the kernels inherit it: without, each would start a thread for every core
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // jobs))
    folder = study_folder(study)
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(len(runs) * len(NOTEBOOKS), jobs)
    pool = ThreadPoolExecutor(jobs)
    try:
        with FileLock(folder / "study.lock", timeout=0):
            print(f"study {study}: {len(runs)} runs, {jobs} side by side", flush=True)
            for plan in runs:
                pool.submit(_do_run, plan, progress.events)
            failures = progress.follow(len(runs))
            if len(failures) < len(runs):
                failures += _do_report(study, report_parameters)
    except Timeout:
        raise StudyError(f"study {study!r} is being run by another process") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted study does not wait for what is running
    return failures


def _do_report(study: str, parameters: dict) -> list[str]:
    from oodlib.report import report_is_current

    if report_is_current(study, parameters):
        return []
    print(f"writing the report ({REPORT})", flush=True)
    try:
        execute(REPORT, study_folder(study) / "report" / f"{REPORT}.ipynb", parameters | {"study": study})
    except Exception as error:  # the runs are done and stay; the report is what failed
        return [f"{REPORT}: {what_failed(error)}"]
    return []
