"""The runner of a study: its runs side by side, on this machine or on a dask cluster, then its report."""

import os
import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import TYPE_CHECKING

from oodlib.data.decoding import usable_cores
from oodlib.study.checks import check_runs
from oodlib.study.dask_cluster import connected, do_run_on
from oodlib.study.notebooks import do_run, execute, what_failed
from oodlib.study.reported import report_is_current
from oodlib.study.run import study_folder
from oodlib.study.studies import NOTEBOOKS, REPORT, PlannedRun, StudyError, read_study

if TYPE_CHECKING:
    from distributed import Client

HEARTBEAT = 60  # seconds without news after which a line says what is still running


class Progress:
    """Prints a line whenever a step ends: how far, what is running, how long it may still take."""

    def __init__(self, n_steps: int):
        self.n_steps, self.start = n_steps, time.monotonic()
        self.started, self.ended, self.running, self.most_running = set(), set(), {}, 0
        self.n_timed = 0  # steps that ended and had not been done before
        self.events: queue.Queue = queue.Queue()

    def follow(self, n_runs: int) -> list[str]:
        """Print what the workers report until `n_runs` are over; return a line for each that failed."""
        failures = []
        while n_runs:
            try:
                event, run, step, value = self.events.get(timeout=HEARTBEAT)
            except queue.Empty:
                self._print("still running" if self.running else "waiting for a worker")
                continue
            if event == "start":
                self._started(run, step)
            elif event == "end":
                self._ended(run, step, value)
            else:
                n_runs -= 1
                self.running.pop(run, None)
                if value:
                    failures.append(f"{run}: {value}")
                    self._print(f"FAILED {failures[-1]}")
        return failures

    def _started(self, run: str, step: str) -> None:
        self.running[run] = NOTEBOOKS[step]
        self.most_running = max(self.most_running, len(self.running))
        if (run, step) in self.started:
            self._print(f"{run} {NOTEBOOKS[step]} starts again, its worker is gone")
        self.started.add((run, step))

    def _ended(self, run: str, step: str, seconds: float | None) -> None:
        self.ended.add((run, step))
        self.running.pop(run, None)
        if seconds is not None:  # None: it was done already
            self.n_timed += 1
            self._print(f"{run} {NOTEBOOKS[step]} in {seconds:.0f} s")

    def _left(self) -> str:
        n_left = self.n_steps - len(self.ended)
        if self.n_timed < max(1, len(NOTEBOOKS) * self.most_running) or n_left == 0:
            return ""  # steps differ too much to judge by the first few
        rest = (time.monotonic() - self.start) * n_left / self.n_timed
        return f" · about {_clock(rest)} left"

    def _print(self, news: str) -> None:
        running = ", ".join(f"{run} {notebook}" for run, notebook in self.running.items())
        now = f" · running: {running}" if running else ""
        elapsed = _clock(time.monotonic() - self.start)
        print(f"{elapsed} [{len(self.ended):3d}/{self.n_steps}] {news}{self._left()}{now}", flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}" if minutes >= 60 else f"{minutes}:{seconds:02d}"


def default_jobs() -> int:
    """Return how many runs go side by side: up to four on the CPU, two where they share a GPU."""
    import torch

    return 2 if torch.cuda.is_available() else min(usable_cores(), 4)


def run_study(study: str, jobs: int = 0, dask: str | None = None) -> list[str]:
    """Run what is missing of a study, then its report; return a line for each run that failed.

    `jobs` runs go side by side. Here 0 chooses, and the cores are shared out among them; on the cluster of the dask
    scheduler at the address `dask`, 0 takes as many as there are worker threads, also those that join later. Raises
    StudyError, before anything starts, for a study that cannot be run, where another process is running it, and where
    there is no such scheduler.
    """
    from filelock import FileLock, Timeout

    runs, report_parameters = read_study(study)
    with nullcontext() if dask is None else connected(dask) as client:
        check_runs(runs)
        folder = study_folder(study)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "study.lock", timeout=0):
                failures = _run_here(study, runs, jobs) if client is None else _run_there(study, runs, jobs, client)
                if len(failures) < len(runs):
                    failures += _do_report(study, report_parameters)
        except Timeout:
            raise StudyError(f"study {study!r} is being run by another process") from None
    return failures


def _run_here(study: str, runs: list[PlannedRun], jobs: int) -> list[str]:
    jobs = min(jobs or default_jobs(), len(runs))
    # the kernels inherit it: without, each would start a thread for every core
    os.environ["OMP_NUM_THREADS"] = str(max(1, usable_cores() // jobs))
    print(f"study {study}: {len(runs)} runs, {jobs} side by side", flush=True)
    progress = Progress(len(runs) * len(NOTEBOOKS))
    return _side_by_side(runs, jobs, progress, lambda plan: do_run(plan, progress.events.put))


def _run_there(study: str, runs: list[PlannedRun], jobs: int, client: "Client") -> list[str]:
    jobs = min(jobs or len(runs), len(runs))  # of what no thread is free for, dask itself keeps a queue
    where = f"{client.scheduler.address}, {sum(client.nthreads().values())} worker threads"
    print(f"study {study}: {len(runs)} runs, up to {jobs} side by side on {where}", flush=True)
    progress = Progress(len(runs) * len(NOTEBOOKS))
    return _side_by_side(runs, jobs, progress, do_run_on(client, progress.events.put))


def _side_by_side(
    runs: list[PlannedRun], jobs: int, progress: Progress, do_one: Callable[[PlannedRun], str]
) -> list[str]:
    """Do the runs in `jobs` threads; return a line for each that failed. `do_one` returns what failed, or raises it."""

    def do_and_say(plan: PlannedRun) -> None:
        try:
            failure = do_one(plan)
        except Exception as error:
            failure = what_failed(error)
        progress.events.put(("over", plan.run.name, "", failure))

    pool = ThreadPoolExecutor(jobs)
    try:
        for plan in runs:
            pool.submit(do_and_say, plan)
        return progress.follow(len(runs))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # an interrupted study does not wait for what is running


def _do_report(study: str, parameters: dict) -> list[str]:
    if report_is_current(study, parameters):
        return []
    print(f"writing the report ({REPORT})", flush=True)
    try:
        execute(REPORT, study_folder(study) / "report" / f"{REPORT}.ipynb", parameters | {"study": study})
    except Exception as error:  # the runs are done and stay; the report is what failed
        return [f"{REPORT}: {what_failed(error)}"]
    return []
