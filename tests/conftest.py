"""What several test files share: projects in temporary folders, one small study that ran in one, hand-made results."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

# before torch starts its threads: the networks here are too small for two, which on a busy machine wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

PLAIN = {  # a training without the default recipe: what the tests of the loop reckon with by hand
    "arch": "resnet20",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "norm_bias_factor": 1.0,
    "schedule": "cosine",
    "warmup_epochs": 2.0,
    "lookahead": False,
    "crop": 0.3,
    "translate": 0,
}
CHECKOUT = Path(__file__).parents[1]
PATHS = os.pathsep.join((str(CHECKOUT), str(CHECKOUT / "tests")))
SMALL = """
parameters:
  objective: [ce, supcon]
  seed: [0, 1]
  epochs: 1
  batch_size: 128
  max_images: 150
"""


def few_digits():
    """Return every tenth digit: 89 images of seven classes, 80 to train on, two batches of 32 an epoch."""
    from oodlib.data import ImageSet, load_images

    digits = load_images("digits", "train")
    return ImageSet(digits.images[::10], digits.labels[::10], digits.classes, "few")


@pytest.fixture(scope="session")
def few():
    return few_digits()


@dataclass(frozen=True)
class Project:
    """A project's folder with the notebooks and the package of this checkout, and studies of its own."""

    root: Path

    def write_study(self, name: str, text: str) -> None:
        (self.root / "notebooks" / "studies" / f"{name}.yaml").write_text(text)

    def read_study(self, name: str) -> str:
        return (self.root / "notebooks" / "studies" / f"{name}.yaml").read_text()

    def run_folder(self, study: str, run: str) -> Path:
        return self.root / "outputs" / study / "runs" / run

    def command(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run python -m oodlib in the project's folder."""
        return subprocess.run(self.arguments(*arguments), cwd=self.root, capture_output=True, text=True)

    @staticmethod
    def arguments(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "oodlib", *arguments]

    def stop(self, study: str, path: Path, stop: signal.Signals, n_cores: int | None = None) -> tuple[int, str]:
        """Run a study, on so many cores, until `path` is there, and send it a signal; return its status and stderr."""

        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # it is ignored where the tests run in the background
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:n_cores])

        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(self.arguments(study), cwd=self.root, preexec_fn=prepare, **pipes)
        deadline = time.monotonic() + 300  # on a busy machine
        while not path.exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(stop)
        said = process.communicate(timeout=60)[1]
        return process.returncode, said

    def bare_notebooks(self) -> None:
        """Leave of the notebooks of steps the cells that do them; those that teach and draw run in `studied`."""
        for path in (self.root / "notebooks").glob("0[1-4]_*.ipynb"):
            notebook = json.loads(path.read_text())
            code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
            (step,) = [cell for cell in code[3:] if "_step(" in "".join(cell["source"])]
            path.write_text(json.dumps(notebook | {"cells": [*code[:3], step]}))

    def files(self) -> dict[str, tuple[int, str]]:
        """Return the time and the SHA-256 of every file of the project's outputs and studies."""
        folders = (self.root / "outputs", self.root / "notebooks")
        paths = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]
        return {
            str(path.relative_to(self.root)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in paths
        }


def do_steps(plan) -> None:
    """Bring a planned run through its steps without notebooks, whose kernels take most of a small run's time."""
    from oodlib.encoders import TrainingConfig
    from oodlib.study import steps

    run = steps.train_step(plan.run.study, TrainingConfig(**plan.parameters["train"]))
    steps.embed_step(run, **plan.parameters["embed"])
    steps.cluster_step(run, **plan.parameters["cluster"])
    steps.evaluate_step(run, **plan.parameters["evaluate"])


def half_of_the_cores() -> int:
    """Return how many threads each of two runs side by side has; other numbers of threads round otherwise."""
    from oodlib.data.decoding import usable_cores

    return max(1, usable_cores() // 2)


def do_steps_of_all_but_the_first(study: str) -> None:
    from oodlib.study.studies import read_study

    for plan in read_study(study)[0][1:]:
        do_steps(plan)


def make_project(root: Path) -> Project:
    shutil.copytree(CHECKOUT / "notebooks", root / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    (root / "oodlib").symlink_to(CHECKOUT / "oodlib")
    return Project(root)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project without outputs; the test runs in its folder."""
    monkeypatch.delenv("OODLIB_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))  # run_study sets it: set it back
    made = make_project(tmp_path / "project")
    monkeypatch.chdir(made.root)
    return made


@pytest.fixture(scope="session")
def studied(tmp_path_factory):
    """A project in which study "small" ran, two objectives, two seeds. Look, do not touch.

    Its first run went through the notebooks, by the command line, which also wrote the report; the others through the
    steps alone. The first process of the tests that needs it runs it, for all.
    """
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "studied"
    printed = root / "printed.txt"
    with FileLock(f"{root}.lock"):
        if not printed.is_file():
            made = make_project(root)
            made.write_study("small", SMALL)
            steps = "from conftest import do_steps_of_all_but_the_first as do; do('small')"
            environment = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": str(half_of_the_cores())}
            subprocess.run([sys.executable, "-c", steps], cwd=root, check=True, env=environment)
            done = made.command("small", "--jobs", "2")
            assert done.returncode == 0, done.stdout + done.stderr
            printed.write_text(done.stdout)
    return Project(root)


@pytest.fixture
def studied_copy(studied, tmp_path, monkeypatch):
    """A copy of `studied` that a test may change; the test runs in its folder."""
    monkeypatch.delenv("OODLIB_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    shutil.copytree(studied.root, tmp_path / "project", symlinks=True)
    monkeypatch.chdir(tmp_path / "project")
    return Project(tmp_path / "project")


@pytest.fixture
def fast(project, monkeypatch):
    """A study of two runs whose steps write their artefacts at once; `log` is what was executed, `fail` what fails."""
    from oodlib.study import Run, notebooks, runner
    from oodlib.study.run import ARTEFACTS

    made = SimpleNamespace(log=[], fail=set(), parameters=[], threads=set(), project=project)
    report = ("05_report", "report")

    def execute(notebook: str, output: Path, parameters: dict) -> None:
        done = (notebook, output.parent.name)
        made.log.append(done)
        made.parameters.append(parameters)
        made.threads.add((done == report, threading.current_thread() is threading.main_thread()))
        if done in made.fail:
            raise ZeroDivisionError("division by zero")
        for step in [step for step, name in runner.NOTEBOOKS.items() if name == notebook]:  # none is the report's
            run = Run(parameters["study"], output.parent.name)
            with run.doing(step, {k: v for k, v in parameters.items() if k not in ("study", "run", "data_root")}):
                for artefact in ARTEFACTS[step]:
                    (run.path / artefact).write_text(run.name)

    for module in (notebooks, runner):
        monkeypatch.setattr(module, "execute", execute)
    monkeypatch.setattr(runner, "report_is_current", lambda study, parameters: report in made.log)
    project.write_study("fast", "parameters: {seed: [0, 1]}")
    return made


@pytest.fixture
def figure_style():
    """Figures in the style of the project, without a screen; all are closed after the test."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    from oodlib.plots.style import use_style

    with mpl.rc_context():
        use_style()
        yield
    plt.close("all")


def overlapping_texts(figure) -> list[tuple[str, str]]:
    """Return the pairs of titles, axis labels and legends of a figure that lie over each other."""
    figure.draw_without_rendering()  # the canvas of a closed figure draws nothing
    parts = [axis.title for axis in figure.axes] + [axis.xaxis.label for axis in figure.axes] + figure.legends
    parts += [axis.yaxis.label for axis in figure.axes] + ([figure._suptitle] if figure._suptitle else [])
    parts = [part for part in parts if part.get_visible() and (not hasattr(part, "get_text") or part.get_text())]
    boxes = [(part, part.get_window_extent()) for part in parts]
    pairs = [(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]]
    return [(str(a[0]), str(b[0])) for a, b in pairs if a[1].overlaps(b[1])]


OOD = {"digits789": "near", "letters": "near", "photos": "far", "noise:8": "sanity"}
DETECTORS = (("labels", 7, "mahalanobis"), ("labels", 7, "cosine"), ("kmeans", 10, "cosine"), ("none", 0, "knn"))
SHOWN = ("labels/mahalanobis", "labels/cosine", "knn")
COST = {"ce": 10.0, "simclr": 20.0, "supcon": 30.0}


@pytest.fixture
def make_results():
    """A function that makes `Results` as `collect` does, of numbers that a test gives."""
    return hand_made_results


def hand_made_results(
    auroc=lambda **of: 0.5,
    separation=lambda **of: 0.5,
    purity=lambda **of: 0.5,
    id_datasets=("digits",),
    archs=("resnet20",),
    objectives=("ce", "supcon"),
    seeds=(0, 1, 2),
    ood=OOD,
    detectors=DETECTORS,
    cost=COST,
):
    """Return results whose numbers are functions of id_dataset, arch, objective, seed, and ood and detector."""
    from oodlib.report.results import Results, detector_names, ranked
    from oodlib.study.reported import TABLES

    rng = np.random.default_rng(0)
    tables = {part: [] for part in ("runs", "decisions", *TABLES) if part != "metrics"}
    runs = [(i, a, o, s) for i in id_datasets for a in archs for o in objectives for s in seeds]
    for id_dataset, arch, objective, seed in runs:
        of = {"id_dataset": id_dataset, "arch": arch, "objective": objective, "seed": seed}
        about = {"run": f"{id_dataset}-{arch}-{objective}-s{seed}"} | of
        seconds = cost[objective] + seed
        accuracy = {"id_accuracy": 0.9 + seed / 100, "nearest_class_mean": 0.8 + seed / 100}
        spent = {"training_seconds": seconds, "network_inputs": round(100 * cost[objective]), "hardware": "cpu"}
        tables["runs"].append(about | accuracy | {"epochs": 2, "pretrained": False} | spent)
        for clustering, k, distance in detectors:
            name = pd.DataFrame([{"clustering": clustering, "n_clusters": k, "distance": distance}])
            detector = detector_names(name)[0]
            for dataset, group in ood.items():
                value = auroc(ood=dataset, detector=detector, **of)
                row = {"ood_dataset": dataset, "group": group, "base": detector, "threshold": "global", "seen": 0}
                values = {"auroc": value, "fpr95": 1 - value, "id_rejected": 0.05, "ood_rejected": value / 2}
                values |= {"fpr95_ood_positive": 0.75 - value / 2}
                values |= {"error_auroc": value - 0.01, "oscr": value - 0.02}
                values |= {"aurc": 1 - value, "augrc": (1 - value) / 2}
                row = about | name.iloc[0].to_dict() | row | values
                tables["decisions"] += [row, row | {"threshold": "conformal", "id_rejected": 0.04}]
        for cluster in range(3):
            common = about | {"cluster": str(cluster), "size": 5, "n_clusters": 3}
            for clustering, measure, value in (
                ("labels", "global_separation", separation(**of) + (cluster - 1) / 10),
                ("labels", "cluster_purity", 1.0),
                ("kmeans", "cluster_purity", purity(**of)),
            ):
                tables["clusters"].append(common | {"clustering": clustering, "measure": measure, "value": value})
        for rule, best in (("left-out classes", detectors[0]), ("virtual outliers", detectors[-1])):
            for detector in detectors:
                named = dict(zip(("clustering", "n_clusters", "distance"), detector, strict=True))
                tables["choices"].append(about | {"rule": rule, "auroc": 0.9 if detector == best else 0.8} | named)
        for dataset, group in ood.items():
            for epoch in (1, 2):
                row = {"epoch": epoch, "dataset": dataset, "group": group, "measure": "auroc", "value": epoch / 4}
                tables["epochs"].append(about | row)
        for epoch in (1, 2):
            row = {"epoch": epoch, "dataset": id_dataset, "group": "ID", "measure": "global_separation"}
            tables["epochs"].append(about | row | {"value": epoch / 5})
            tables["history"].append(
                about | {"epoch": epoch, "loss": 1 / epoch, "knn_accuracy": epoch / 3, "seconds": seconds / 2}
            )
        for position, dataset in enumerate((id_dataset, *ood)):
            for detector in SHOWN:
                scores = np.sort(-np.exp(position + rng.normal(size=101)))
                common = about | {"detector": detector, "dataset": dataset}
                tables["scores"] += [common | {"level": i / 100, "score": score} for i, score in enumerate(scores)]
                tables["extremes"] += [
                    common | {"extreme": extreme, "rank": rank, "index": rank, "score": 0.0}
                    for extreme in ("least", "most")
                    for rank in range(3)
                ]
            label = -1 if position else 0
            tables["projection"] += [
                about | {"dataset": dataset, "label": label if position else i % 3, "x": x, "y": y}
                for i, (x, y) in enumerate(rng.normal(size=(12, 2)) + position)
            ]
        for alpha in (0.05, 0.1, 0.5):
            rates = {"alpha": alpha, "rate": alpha, "n_reference": 90, "n_new": 300}
            spread = {"low": alpha / 2, "high": 2 * alpha, "band_low": alpha / 2, "band_high": 2 * alpha}
            rows = [{"threshold": "conformal"} | spread, {"threshold": "global", "rate": 2 * alpha}]
            tables["false_alarms"] += [about | {"detector": SHOWN[0]} | rates | row for row in rows]
    made = {part: pd.DataFrame(rows) for part, rows in tables.items()}
    return Results(**made, metrics=ranked(made["decisions"]), records=(), incomplete=())
