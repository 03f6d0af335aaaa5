"""Runs on a dask cluster: workers bring planned runs through their steps, and write into the caller's folders.

A worker gets whole runs. It must have this package and see the caller's files, under the same paths; where it was
started does not matter, it changes into the project's folder. That holds for its whole process, so start workers with
`--nthreads 1`. OMP_NUM_THREADS and CUDA_VISIBLE_DEVICES are a worker's own business: its notebooks inherit what it was
started with, and dask's nanny sets OMP_NUM_THREADS to 1 where it is not set.

When a worker dies, dask gives its run to another, which goes on from the last artefact or checkpoint. When the caller
is stopped, workers finish the runs that they are at, and the next call waits for these.

joblib's dask backend would do less: it waits for ever for a task that dask gives up, and where the cluster has one
thread it computes in the caller.
"""

import asyncio
import logging
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from oodlib.files import project_root
from oodlib.study.notebooks import Tell, do_run
from oodlib.study.run import Run
from oodlib.study.studies import PlannedRun, StudyError

if TYPE_CHECKING:
    from distributed import Client

CONNECT = 10  # seconds within which a scheduler must answer


@contextmanager
def connected(address: str) -> Iterator["Client"]:
    """Give a client of the scheduler at an address, tcp://HOST:PORT, or tls:// as dask's own configuration says.

    Raises StudyError for an address of another form, where dask is missing, and where no scheduler answers.
    """
    if not re.fullmatch(r"(tcp|tls)://([\w.-]+|\[[\da-fA-F:.]+\]):\d+", address):
        raise StudyError(f"--dask must be tcp://HOST:PORT or tls://HOST:PORT, got {address!r}")
    try:
        from distributed import Client
    except ImportError as error:
        raise StudyError(f"--dask needs dask and distributed ({error}): install oodlib[cluster]") from error
    try:
        found = asyncio.run(_identity(address))["type"]
    except Exception as error:  # what answers may be anything else, and fail in any way
        why = f": {error}" if str(error) else f" within {CONNECT} s"
        raise StudyError(f"no dask scheduler answers at {address}{why}") from error
    if found != "Scheduler":
        raise StudyError(f"{address} is the address of a dask {found.lower()}, not of the scheduler")
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # what it logs, with tracebacks, it also raises
    with Client(address, set_as_default=False) as client:
        yield client


async def _identity(address: str) -> dict:
    """Ask what is at an address. A client would wait for ever for something that accepts and never answers."""
    from distributed import Security, rpc

    async with rpc(address, connection_args=Security().get_connection_args("client")) as scheduler:
        return await asyncio.wait_for(scheduler.identity(), CONNECT)


def do_run_on(client: "Client", tell: Tell) -> Callable[[PlannedRun], str]:
    """Return a function that does as `do_run` on a worker, waits for it, and raises what dask gives it up for."""
    topic = f"oodlib-{uuid4().hex}"
    where = (str(project_root()), os.environ.get("OODLIB_DATA", ""), topic)  # a worker's environment is another
    client.subscribe_topic(topic, lambda event: tell(tuple(event[1])))

    def begin(*arguments):  # nested, so that dask sends its code: a worker without this package can say so
        from oodlib.study.dask_cluster import do_run_of

        return do_run_of(*arguments)

    def do_one(plan: PlannedRun) -> str:
        key = f"{plan.run.name}-{uuid4().hex}"  # as it stands in dask's dashboard
        about = (plan.run.study, plan.run.name, plan.parameters, plan.plugins)
        try:
            return client.submit(begin, *where, *about, key=key, pure=False).result()
        except CancelledError:
            return "the connection to the scheduler is lost; the next call goes on from here"

    return do_one


def do_run_of(
    root: str, data_root: str, topic: str, study: str, name: str, parameters: dict[str, dict], plugins: tuple[str, ...]
) -> str:
    """Bring a run through its steps on this worker, in the project at `root`; return what failed, empty where none."""
    from distributed import get_worker
    from filelock import FileLock

    worker = get_worker()
    if not Path(root).is_dir():
        return f"worker {worker.address} has no folder {root}; workers must see the caller's files"
    os.chdir(root)
    run = Run(study, name)
    run.path.mkdir(parents=True, exist_ok=True)
    # a worker that dask has given up, or whose caller was stopped, may still be at this run
    with FileLock(run.path / "run.lock"):
        return do_run(PlannedRun(run, parameters, plugins), lambda event: worker.log_event(topic, event), data_root)
