"""Studies on a dask cluster: what is refused, what goes where, and that a run survives the kill -9 of its worker."""

import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from filelock import FileLock

from oodlib.__main__ import main
from oodlib.study import Run, dask_cluster, runner
from oodlib.study import notebooks as execution
from oodlib.study.runner import run_study
from oodlib.study.studies import NOTEBOOKS

dask, distributed = pytest.importorskip("dask"), pytest.importorskip("distributed")

RUNS = [f"digits-airbench_16_32_64-ce-s{seed}" for seed in (0, 1)]
STEPS = list(NOTEBOOKS.values())


def wait_for(condition: Callable[[], object], seconds: float = 300) -> object:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture
def cluster():
    """A scheduler and two workers of one thread, in this process."""
    about = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "protocol": "tcp://"}
    about |= {"dashboard_address": None}
    with dask.config.set({"distributed.comm.timeouts.connect": 1}), distributed.LocalCluster(**about) as made:
        yield made


def test_workers_do_the_runs_and_the_caller_the_report(fast, cluster, monkeypatch, capsys):
    monkeypatch.setenv("OODLIB_DATA", "/where/the/sets/are")  # which a worker's environment does not know
    assert run_study("fast", dask=cluster.scheduler_address) == []
    for run in RUNS:
        assert [notebook for notebook, name in fast.log if name == run] == STEPS
    assert fast.log[-1] == ("05_report", "report")
    assert fast.threads == {(False, False), (True, True)}
    assert {parameters["data_root"] for parameters in fast.parameters[:-1]} == {"/where/the/sets/are"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"study fast: 2 runs, up to 2 side by side on {cluster.scheduler_address}, 2 worker threads"
    assert sorted(line.split(" · ")[0].split("] ")[1] for line in lines[1:-1]) == [
        f"{run} {notebook} in 0 s" for run in RUNS for notebook in STEPS
    ]
    assert "[  8/8]" in lines[-2]


def test_a_run_that_dask_gives_up_is_named(fast, cluster, monkeypatch):
    def give_up(root, data_root, topic, study, name, parameters, plugins):
        if name == RUNS[0]:
            raise distributed.KilledWorker(name, SimpleNamespace(address="tcp://w"), 3)
        return ""

    monkeypatch.setattr(dask_cluster, "do_run_of", give_up)
    (failure,) = run_study("fast", dask=cluster.scheduler_address)
    assert failure.startswith(f"{RUNS[0]}: KilledWorker: ")
    assert "workers died while running it" in failure


def test_when_the_scheduler_is_lost_every_run_says_so(fast, cluster, monkeypatch):
    at_work, lost = threading.Event(), threading.Event()
    monkeypatch.setattr(execution, "execute", lambda *a: at_work.set() or lost.wait(60))
    with ThreadPoolExecutor(1) as pool:
        study = pool.submit(run_study, "fast", 0, cluster.scheduler_address)
        at_work.wait(60)
        cluster.sync(cluster.scheduler.close)
        failures = study.result()
        lost.set()
    said = "the connection to the scheduler is lost; the next call goes on from here"
    assert sorted(failures) == [f"{run}: {said}" for run in RUNS]


def test_jobs_is_how_many_runs_go_at_once(fast, cluster, monkeypatch):
    together = threading.Barrier(2, timeout=60)
    monkeypatch.setattr(execution, "execute", lambda *a: together.wait())
    assert run_study("fast", dask=cluster.scheduler_address) == []  # each step waits for the other run's
    together = threading.Barrier(2, timeout=0.2)
    failures = run_study("fast", jobs=1, dask=cluster.scheduler_address)
    assert failures == [f"{run}: 01_train, BrokenBarrierError: " for run in RUNS]


def test_without_a_worker_it_waits_for_one(fast, cluster, monkeypatch, capsys):
    monkeypatch.setattr(runner, "HEARTBEAT", 0.05)
    cluster.scale(0)
    wait_for(lambda: not cluster.scheduler.workers)
    printed = []
    with ThreadPoolExecutor(1) as pool:
        study = pool.submit(run_study, "fast", 0, cluster.scheduler_address)
        wait_for(lambda: printed.append(capsys.readouterr().out) or "] waiting for a worker\n" in "".join(printed))
        cluster.scale(1)
        assert study.result() == []
    assert "0 worker threads" in "".join(printed)


def test_a_run_that_a_worker_is_still_at_is_waited_for(fast, cluster):
    still = Run("fast", RUNS[0]).path
    still.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with FileLock(still / "run.lock"):
            study = pool.submit(run_study, "fast", 0, cluster.scheduler_address)
            wait_for(lambda: ("04_evaluate", RUNS[1]) in fast.log)
            assert {run for _, run in fast.log} == {RUNS[1]}
        assert study.result() == []
    assert [notebook for notebook, run in fast.log if run == RUNS[0]] == STEPS


def test_a_worker_that_lacks_the_files_or_this_package_says_so(fast, cluster, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(dask_cluster, "project_root", lambda: tmp_path / "elsewhere")
        failures = run_study("fast", dask=cluster.scheduler_address)
    workers = {worker.address for worker in cluster.workers.values()}
    said = [f"worker {w} has no folder {tmp_path}/elsewhere; workers must see the caller's files" for w in workers]
    assert len(failures) == 2
    assert {failure.split(": ", 1)[1] for failure in failures} <= set(said)
    monkeypatch.setitem(sys.modules, "oodlib.study.dask_cluster", None)
    why = "ModuleNotFoundError: import of oodlib.study.dask_cluster halted; None in sys.modules"
    assert sorted(run_study("fast", dask=cluster.scheduler_address)) == [f"{run}: {why}" for run in RUNS]
    assert fast.log == []


def refuse(fast, capsys, address: str) -> str:
    """Return why the command line refuses an address: one line, status 2, and nothing on disk."""
    before = fast.project.files()
    assert main(["fast", "--dask", address]) == 2
    assert fast.project.files() == before
    assert not (fast.project.root / "outputs").exists()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err.rstrip()


@pytest.mark.parametrize("listens", [False, True])
def test_where_no_scheduler_answers_one_sentence_says_so(fast, capsys, monkeypatch, listens):
    monkeypatch.setattr(dask_cluster, "CONNECT", 0.3)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        if listens:  # accepts, and never says a word
            other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        assert refuse(fast, capsys, address) == f"oodlib: no dask scheduler answers at {address} within 0.3 s"


def test_what_cannot_be_connected_to_is_refused(fast, capsys, cluster, monkeypatch):
    for address in (
        "localhost:8786",
        "http://localhost:8786",
        "tcp://localhost",
        "tcp://:1",
        "tcp://a b:1",
        "tcp://a:b",
    ):
        said = refuse(fast, capsys, address)
        assert said == f"oodlib: --dask must be tcp://HOST:PORT or tls://HOST:PORT, got {address!r}"
    address = cluster.workers[0].address
    said = refuse(fast, capsys, address)
    assert said == f"oodlib: {address} is the address of a dask worker, not of the scheduler"
    assert "no dask scheduler answers at tls://127.0.0.1:1: TLS expects" in refuse(fast, capsys, "tls://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "distributed", None)
    said = refuse(fast, capsys, cluster.scheduler_address)
    assert re.fullmatch(r"oodlib: --dask needs dask and distributed \(.*\): install oodlib\[cluster\]", said)


@pytest.fixture
def processes(tmp_path):
    """A scheduler and two workers of one thread, each a process, started outside the project; their address and ids."""
    started, file = {}, tmp_path / "scheduler.json"

    def start(name: str, *arguments: str) -> None:
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard", "--scheduler-file", str(file)]
        with (tmp_path / f"{name}.log").open("w") as log:
            started[name] = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)

    start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", "0")
    for name in ("a", "b"):
        start(name, "worker", "--nthreads", "1", "--no-nanny", "--name", name, "--local-directory", str(tmp_path))
    try:
        wait_for(file.exists)
        yield SimpleNamespace(address=json.loads(file.read_text())["address"], started=started)
    finally:
        for process in started.values():
            process.kill()  # terminated, a worker would wait for its scheduler
            process.wait()


def test_a_run_survives_its_worker_and_gives_the_bytes_of_a_local_study(
    studied, project, processes, monkeypatch, capsys
):
    monkeypatch.setattr("oodlib.study.runner.report_is_current", lambda study, parameters: True)  # it is the caller's
    project.write_study("small", studied.read_study("small").replace("[ce, supcon]", "ce").replace("[0, 1]", "0"))
    project.bare_notebooks()
    run = Run("small", RUNS[0])
    with ThreadPoolExecutor(1) as pool:
        study = pool.submit(run_study, "small", 0, processes.address)
        wait_for(lambda: (run.path / "04_evaluate.partial.ipynb").exists() or study.done())
        with distributed.Client(processes.address, set_as_default=False) as client:
            (busy,) = [worker for worker, keys in client.processing().items() if any(run.name in str(k) for k in keys)]
            name = client.scheduler_info()["workers"][busy]["name"]
        processes.started[name].kill()
        assert not (run.path / "04_evaluate.ipynb").exists(), "the run was over before its worker could be killed"
        before = run.record
        assert study.result() == []
    said = capsys.readouterr().out
    assert f"{run.name} 04_evaluate starts again, its worker is gone" in said
    assert "[  4/4] " in said
    for step in ("train", "embed", "cluster"):  # with their seconds: none was done again
        assert run.record[step] == before[step]
        assert said.count(f"{run.name} {NOTEBOOKS[step]} in ") == 1
    undisturbed = studied.run_folder("small", run.name)
    for file in ("metrics.csv", "clusters.csv", "encoder.safetensors"):
        assert (run.path / file).read_bytes() == (undisturbed / file).read_bytes(), file
    assert not list(run.path.glob("*.partial*"))
    assert {path.name for path in project.root.iterdir()} == {"notebooks", "oodlib", "outputs"}
