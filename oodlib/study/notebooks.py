"""The notebooks of a planned run, executed by papermill one after another; a step that is done is not done again."""

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from oodlib.files import project_root
from oodlib.study.parameters import hand_on
from oodlib.study.studies import NOTEBOOKS, PlannedRun

if TYPE_CHECKING:
    import psutil

WAIT = 20  # seconds that training has to write a checkpoint
# what happens to a run: "start" or "end" of a step, and the seconds it took, None where it was done already
Tell = Callable[[tuple[str, str, str, float | None]], object]


def do_run(plan: PlannedRun, tell: Tell, data_root: str = "") -> str:
    """Bring a run through its steps and tell of each; return what failed at the first that did, empty where none."""
    run = plan.run
    hand_on(plan.plugins)
    for step, notebook in NOTEBOOKS.items():
        try:
            if run.is_done(step, plan.parameters[step]):
                tell(("end", run.name, step, None))
                continue
            tell(("start", run.name, step, None))
            start = time.monotonic()
            where = {"study": run.study, "data_root": data_root} | ({} if step == "train" else {"run": run.name})
            execute(notebook, run.path / f"{notebook}.ipynb", plan.parameters[step] | where)
            tell(("end", run.name, step, time.monotonic() - start))
        except Exception as error:  # whatever stops a run must not stop the others
            return f"{notebook}, {what_failed(error)}"
    return ""


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


def end_kernels() -> None:
    """Send SIGTERM to the kernels of this process and wait for their end, for training first writes a checkpoint.

    Each has a session of its own, so neither Ctrl-C nor Slurm's signal reaches it. Those that are left end when this
    process does, at once.
    """
    import psutil

    asked, deadline = set(), time.monotonic() + WAIT
    while time.monotonic() < deadline and (kernels := _kernels()):
        for kernel in kernels:
            if kernel not in asked:  # a thread that was between two notebooks may just have started one
                asked.add(kernel)
                with suppress(psutil.NoSuchProcess):
                    kernel.terminate()
        time.sleep(0.05)


def _kernels() -> list["psutil.Process"]:
    """Return the processes that this one started and that run."""
    import psutil

    kernels = []
    for child in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if child.status() != psutil.STATUS_ZOMBIE:
                kernels.append(child)
    return kernels


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
