"""Plugins: a study with an objective of its own runs; what is refused; what a kernel is told."""

import os
import re
import sys

import pandas as pd
import pytest

from oodlib.encoders import OBJECTIVES
from oodlib.scoring import DISTANCES
from oodlib.study import notebooks as execution
from oodlib.study.notebooks import do_run
from oodlib.study.parameters import VARIABLE, load_plugins
from oodlib.study.studies import StudyError, read_study

STUDY = """
plugins: [mine.py]
parameters: {objective: brier, distances: [mahalanobis, manhattan], epochs: 1, batch_size: 256, max_images: 20,
  arch: resnet20, input_size: 8, clusterings: [labels], choice_rules: []}
"""
PLUGIN = """
import numpy as np
import torch.nn.functional as F
from oodlib.scoring.distances import DISTANCES, Distance
from oodlib.encoders.objectives import OBJECTIVES, Objective


def brier(heads, y, temperature, config, memory):
    p = heads["classifier"].softmax(dim=1)
    return F.mse_loss(p, F.one_hot(y, p.shape[1]).float())


OBJECTIVES["brier"] = Objective(heads=("classifier",), n_views=1, temperature=1.0, loss=brier)
DISTANCES["manhattan"] = Distance(
    fit=lambda moments: {"centers": moments.means + moments.origin},
    base=lambda z, state: np.abs(z[:, None] - state["centers"]).sum(axis=2),
)
"""


@pytest.fixture(autouse=True)
def _as_before(monkeypatch):
    """What a test hands on to kernels and imports is gone after it."""
    monkeypatch.setenv(VARIABLE, "")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("oodlib_plugin_"):
            del sys.modules[name]
    OBJECTIVES.pop("brier", None)
    DISTANCES.pop("manhattan", None)


def test_a_study_with_an_objective_and_a_distance_of_its_own_runs_in_all_its_processes(project):
    (project.root / "mine.py").write_text(PLUGIN)
    project.bare_notebooks()
    project.write_study("own", STUDY)
    done = project.command("train", "own")
    assert done.returncode == 0, done.stderr
    (plan,), _ = read_study("own")
    assert do_run(plan, lambda event: None) == ""  # notebooks, each in a process of its own
    run = project.run_folder("own", "digits-resnet20-brier-s0")
    assert pd.read_csv(run / "history.csv").loss[0] < 0.2  # uniform guesses of 7 classes have 6/49
    assert "manhattan" in set(pd.read_csv(run / "metrics.csv").distance)


def test_a_run_hands_its_plugins_on_to_kernels_wherever_it_is_done(project, monkeypatch):
    (project.root / "mine.py").write_text("")
    project.write_study("own", "plugins: [mine.py]\nparameters: {}")
    (plan,), _ = read_study("own")
    assert plan.plugins == ("mine.py",)
    seen = []
    monkeypatch.setenv(VARIABLE, "")  # as on a worker, which has not read the study
    monkeypatch.setattr(execution, "execute", lambda *_: seen.append(os.environ[VARIABLE]))
    assert do_run(plan, lambda event: None) == ""
    assert set(seen) == {str(project.root / "mine.py")}


def test_a_plugin_is_imported_once(project):
    (project.root / "mine.py").write_text("from pathlib import Path\nPath('log').open('a').write('x')")
    load_plugins(["mine.py", "mine.py"])
    load_plugins([str(project.root / "mine.py")])
    assert (project.root / "log").read_text() == "x"


@pytest.mark.parametrize("name", ["outputs/own/mine.py", "data/mine.py", "elsewhere/mine.py", "../mine.py"])
def test_code_is_never_taken_from_data_outputs_or_outside(project, name, monkeypatch):
    monkeypatch.setenv("OODLIB_DATA", "elsewhere")
    path = project.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("raise SystemExit")
    (project.root / "link.py").symlink_to(path)
    for given in (name, "link.py", str(path)):
        with pytest.raises(ValueError, match="must be in the project .*, and not where data and outputs are"):
            load_plugins([given])


@pytest.mark.parametrize(
    ("plugins", "said"),
    [
        ("mine.py", "tried.yaml: 'plugins' must be a list of Python files, got 'mine.py'"),
        ("[3]", "tried.yaml: 'plugins' must be a list of Python files, got [3]"),
        ("[nosuch.py]", "tried.yaml: plugin 'nosuch.py' must be a .py file: there is no "),
        ("[notes.txt]", "tried.yaml: plugin 'notes.txt' must be a .py file: "),
        ("[bad.py]", "tried.yaml: plugin bad.py fails: ZeroDivisionError: division by zero"),
    ],
)
def test_plugins_that_are_refused(project, plugins, said):
    (project.root / "notes.txt").write_text("")
    (project.root / "bad.py").write_text("1 / 0")
    project.write_study("tried", f"plugins: {plugins}\nparameters: {{}}")
    with pytest.raises(StudyError, match=f"^{re.escape(said)}"):
        read_study("tried")
    assert "brier" not in OBJECTIVES
