"""The command line: python -m oodlib [STUDY] runs a study, train STUDY trains its encoders alone, publish STUDY writes
its results to outputs/reported, list shows names.

For photos of your own: images FOLDER makes a detector and a page about them, score DIR PHOTO … judges others by it.
"""

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oodlib.study.studies import PlannedRun

SAY_EVERY = 5  # seconds between the lines of a training


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised as Ctrl-C is."""


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; return the exit status: 0 done, 1 some run failed, 2 the request is wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments == ["list"]:
        return list_names()
    if arguments[:1] in (["images"], ["score"]):
        from oodlib.app.commands import run_command

        return run_command(arguments)
    command = arguments[0] if arguments[:1] in (["train"], ["publish"]) else ""
    training = command == "train"
    parser = argparse.ArgumentParser(f"python -m oodlib {command}".rstrip(), description=__doc__)
    if command:
        parser.add_argument("study", help="name of a file in notebooks/studies, without .yaml")
    if training:
        parser.add_argument(
            "--run",
            help="train this run only, ID-ARCH-OBJECTIVE-sSEED; in several processes: "
            "torchrun --nproc-per-node N -m oodlib -- train STUDY --run RUN",
        )
        parser.add_argument(
            "--minutes", type=float, default=math.inf, help="stop by itself after so long; the next call goes on"
        )
    elif not command:
        parser.add_argument(
            "study", nargs="?", default="digits", help="name of a file in notebooks/studies, without .yaml"
        )
        parser.add_argument("--jobs", type=int, default=0, help="runs side by side; default: what fits the machine")
        parser.add_argument(
            "--dask", metavar="ADDRESS", help="run on the dask cluster whose scheduler is at tcp://HOST:PORT"
        )
    options = parser.parse_args(arguments[1:] if command else arguments)
    try:
        if training:
            return train_only(options.study, options.run, options.minutes)
        if command == "publish":
            return publish_results(options.study)
        return run(options.study, options.jobs, options.dask)
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        _complain(f"oodlib: {error}")
        return 2
    except KeyboardInterrupt as stop:
        try:
            if not training:
                _end_kernels()
            _complain("\nstopped; the next call goes on from here")
        finally:  # also when Ctrl-C comes twice; not sys.exit: that would wait for the threads of the notebooks
            os._exit(128 + (signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT))


def run(study: str, jobs: int, dask: str | None) -> int:
    """Run a study, print its main table and where the report is."""
    from oodlib.report.tables import main_table_text
    from oodlib.study.reported import run_folders
    from oodlib.study.run import study_folder
    from oodlib.study.runner import run_study

    if jobs < 0:
        raise ValueError(f"--jobs must not be negative, got {jobs}")
    with sigterm_interrupts():
        failures = run_study(study, jobs, dask)
    if run_folders(study)[0]:
        print(f"\n{main_table_text(study)}\nreport: {study_folder(study) / 'report'}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM do as Ctrl-C does: it comes to this process alone, and the notebooks' kernels must hear of it."""

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # sent twice, it must not cut short what the first one asked for
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except Terminated:
        raise  # and ignore what else comes until the process ends
    else:
        signal.signal(signal.SIGTERM, before)


def _end_kernels() -> None:
    from oodlib.study.notebooks import end_kernels

    _complain("\nstopping: encoders in training write their checkpoints")
    end_kernels()


def publish_results(study: str) -> int:
    """Write a study's results to outputs/reported, and say where and which runs are left out."""
    from oodlib.study.reported import publish, run_folders

    folder = publish(study)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    print(f"{folder}: {size / 1e6:.1f} MB; incomplete, and left out: {', '.join(run_folders(study)[1]) or 'none'}")
    return 0


def list_names() -> int:
    """Print all that can be named in a study."""
    from oodlib.study.checks import names

    for parameter, known in names().items():
        print(f"{parameter}: {', '.join(known)}")
    return 0


def train_only(study: str, name: str | None, minutes: float) -> int:
    """Train the runs of a study one after another in this process, or in those that torchrun started.

    The first seed of every cell comes first, so that what is done when the minutes are over is worth most. Where the
    command runs twice side by side, as two processes fill a big GPU better than one, each takes the runs that the other
    has not begun.
    """
    from oodlib.encoders import distributed
    from oodlib.study.checks import check_trainings
    from oodlib.study.studies import read_study

    if not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes:g}")
    until = time.monotonic() + 60 * minutes
    with distributed.process_group():
        with distributed.together():
            runs = read_study(study)[0]
            chosen = [plan for plan in runs if name in (None, plan.run.name)]
            if not chosen:
                raise ValueError(f"unknown run {name!r}; known: {', '.join(plan.run.name for plan in runs)}")
            if distributed.rank() == 0:
                check_trainings(chosen)  # which fetches the image sets: once, not in every process
        chosen = sorted(chosen, key=lambda plan: plan.parameters["train"]["seed"])
        n_trained = _train_until(study, chosen, until, wait=name is not None)
        rest = "" if n_trained == len(chosen) else "; the next call goes on"
        distributed.say(f"{n_trained} of {len(chosen)} runs are trained{rest}")
    return 0


def _train_until(study: str, runs: list["PlannedRun"], until: float, wait: bool) -> int:
    """Train runs until a time of time.monotonic; return how many of them are trained.

    Without `wait`, what another process is training is left to it, and not counted.
    """
    from filelock import Timeout

    from oodlib.encoders import distributed
    from oodlib.encoders.settings import TrainingConfig
    from oodlib.encoders.training import OutOfTime
    from oodlib.study.steps import train_step

    start, n_trained = time.monotonic(), 0
    for n, plan in enumerate(runs):
        if distributed.anywhere(time.monotonic() >= until):
            break
        distributed.say(f"{plan.run.name} · {n + 1} of {len(runs)} · {time.monotonic() - start:.0f} s")
        try:
            train_step(study, TrainingConfig(**plan.parameters["train"]), until=until, say_every=SAY_EVERY, wait=wait)
            n_trained += 1
        except Timeout:
            distributed.say("another process is training it")
        except OutOfTime as stopped:
            distributed.say(f"{plan.run.name} {stopped}")
            break
    return n_trained


def _complain(text: str) -> None:
    if os.environ.get("RANK", "0") == "0":  # of the processes that torchrun starts, the first speaks for all
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
