"""The command line: what it prints, its exit status, and that a wrong request changes nothing."""

import re
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
from filelock import FileLock

from oodlib import __main__
from oodlib.__main__ import main
from oodlib.data.decoding import usable_cores
from oodlib.study import Run

ARCH = "airbench_16_32_64"
SMALL_NET = "arch: airbench_4_8_8"


def test_a_study_prints_its_table_and_where_the_report_is(studied):
    printed = (studied.root / "printed.txt").read_text()
    assert "study small: 4 runs, 2 side by side" in printed
    assert "[ 16/16] digits-airbench_16_32_64-ce-s0 04_evaluate in " in printed
    assert "AUROC %, mean ± sd over 2 seed(s); ID is the positive class" in printed
    assert "incomplete" not in printed
    assert printed.endswith(f"report: {studied.root / 'outputs' / 'small' / 'report'}\n")
    table = pd.read_csv(studied.root / "outputs" / "small" / "report" / "main_auroc.csv")
    cell = table[(table.objective == "supcon") & (table.detector == "knn") & (table.ood_dataset == "letters")].iloc[0]
    (row,) = [line for line in printed.splitlines() if line.startswith("|") and " supcon " in line and " knn " in line]
    assert f" {cell['mean']:.1f} ± {cell.sd:.1f} " in row.replace("**", "")


def test_a_finished_study_does_nothing_again_and_prints_the_same_table(studied_copy, capsys):
    before = studied_copy.files()
    assert main(["small", "--jobs", "2"]) == 0
    assert studied_copy.files() == before
    texts = (studied_copy.root / "printed.txt").read_text(), capsys.readouterr().out
    assert texts[1].startswith("study small: 4 runs, 2 side by side\n\n")
    tables = [[line for line in text.splitlines() if line.startswith("|")] for text in texts]
    assert tables[0] == tables[1] != []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], "unknown study 'nosuch'; known: "),
        (["digits", "--jobs", "-1"], "--jobs must not be negative, got -1"),
        (["train", "nosuch"], "unknown study 'nosuch'; known: "),
        (["train", "digits", "--run", f"digits-{ARCH}-ce-s9"], f"unknown run 'digits-{ARCH}-ce-s9'; known: digits-"),
        (["tried"], "tried.yaml: unknown parameter 'epoch'; known: "),
        (["train", "tried"], "tried.yaml: unknown parameter 'epoch'; known: "),
        *((["train", "digits", "--minutes", n], f"--minutes must be positive, got {n}") for n in ("0", "nan")),
    ],
)
def test_a_wrong_request_is_one_line_and_status_2(project, capsys, arguments, message):
    project.write_study("tried", "parameters: {epoch: 3}")
    before = project.files()
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"oodlib: {message}")
    assert said.err.count("\n") == 1
    assert project.files() == before
    assert not (project.root / "outputs").exists()


def test_arguments_of_another_form_are_refused_help_names_all_commands_and_digits_is_the_default(monkeypatch, capsys):
    wrong = ["digits", "--jobs", "two"], ["digits", "other"], ["train"], ["--nosuch"]
    for status, arguments in [(2, line) for line in wrong] + [(0, ["--help"]), (0, ["train", "--help"])]:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == status
        said = capsys.readouterr()
        assert "usage: python -m oodlib" in (said.err if status else said.out)
        named = [name for name in ("train", "publish", "list", "images", "score") if name in said.out]
        assert len(named) == (0 if status else 5)
    called = []
    monkeypatch.setattr(__main__, "run", lambda *arguments: called.append(arguments) or 0)
    assert main([]) == 0
    assert called == [("digits", 0, None)]


def test_failures_give_status_1_and_go_to_stderr_with_a_table_of_what_is_complete(studied_copy, monkeypatch, capsys):
    failures = ["a-run: 02_embed, cell 4: ValueError: no"]
    monkeypatch.setattr("oodlib.study.runner.run_study", lambda study, jobs, dask: failures)
    (studied_copy.run_folder("small", f"digits-{ARCH}-ce-s1") / "intervals.csv").unlink()
    for study, parts in (("small", ["mean ± sd over 1–2 seed(s)", f"left out: digits-{ARCH}-ce-s1"]), ("digits", [])):
        assert main([study]) == 1
        said = capsys.readouterr()
        assert said.err == f"FAILED {failures[0]}\n"
        assert all(part in said.out for part in parts)
        assert bool(said.out) == bool(parts)  # without a complete run there is no table
    failures.clear()
    assert main(["small"]) == 0


def test_train_alone_writes_the_artefacts_of_the_training_step(project, capsys):
    project.write_study("tried", "parameters: {seed: [0, 1], epochs: 1, batch_size: 256}")
    run = Run("tried", f"digits-{ARCH}-ce-s1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", "tried", "--run", run.name]) == 0
    torch.set_num_threads(threads)
    assert [path.name for path in sorted(run.path.iterdir())] == ["config.json", "encoder.safetensors", "history.csv"]
    assert [path.name for path in run.path.parent.iterdir()] == [run.name]
    assert run.record.keys() == {"run", "train"}
    capsys.readouterr()
    assert main(["train", "tried", "--run", run.name]) == 0
    assert "is trained already" in capsys.readouterr().out


BARE = """
import builtins, sys
absent = {"papermill", "IPython", "ipykernel", "nbformat", "jupyterlab", "scikit_posthocs", "seaborn", "matplotlib"}
found = builtins.__import__
def bare(name, *arguments, **named):
    if name.split(".")[0] in absent:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return found(name, *arguments, **named)
builtins.__import__ = bare
from oodlib.__main__ import main
sys.exit(main(["train", "tried", *sys.argv[1:]]))
"""


def train_bare(project, *arguments):
    """Train in a process that has neither Jupyter nor what draws; return its lines."""
    done = subprocess.run(
        [sys.executable, "-c", BARE, *arguments], cwd=project.root, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_training_alone_needs_no_jupyter_and_takes_the_first_seed_of_every_cell_first(project):
    project.write_study("tried", "parameters: {objective: [ce, logitnorm], seed: [0, 1], epochs: 1, batch_size: 256}")
    lines = train_bare(project, "--minutes", "30")
    runs = [f"digits-{ARCH}-{objective}-s{seed}" for seed in (0, 1) for objective in ("ce", "logitnorm")]
    begun = [line.split(" · ") for line in lines if " · " in line]
    assert [name for name, *_ in begun] == runs
    assert [place for _, place, _ in begun] == ["1 of 4", "2 of 4", "3 of 4", "4 of 4"]
    assert all(project.run_folder("tried", run).joinpath("encoder.safetensors").is_file() for run in runs)
    again = train_bare(project)
    assert sum("is trained already" in line for line in again) == 4


def test_what_another_process_is_training_is_left_to_it(project, capsys):
    project.write_study("tried", f"parameters: {{seed: [0, 1], epochs: 1, batch_size: 256, {SMALL_NET}}}")
    first, second = (project.run_folder("tried", f"digits-airbench_4_8_8-ce-s{seed}") for seed in (0, 1))
    first.mkdir(parents=True)
    with FileLock(first.parents[1] / f"{first.name}.lock"):
        assert main(["train", "tried"]) == 0
    printed = capsys.readouterr().out
    assert "another process is training it" in printed
    assert "\n1 of 2 runs are trained" in printed
    assert [(folder / "encoder.safetensors").is_file() for folder in (first, second)] == [False, True]


def test_when_the_minutes_are_over_it_stops_by_itself_and_the_next_call_goes_on_to_the_same_bytes(project):
    project.write_study("tried", f"parameters: {{seed: [0, 1], epochs: 9999, batch_size: 64, {SMALL_NET}}}")
    first = "digits-airbench_4_8_8-ce-s0"
    lines = train_bare(project, "--minutes", "0.1")
    assert lines[-1] == "0 of 2 runs are trained; the next call goes on"
    assert lines[-2].startswith(f"{first} stopped in epoch ")
    left = sorted(path.name for path in project.run_folder("tried", first).iterdir())
    assert left == ["checkpoint.safetensors", "config.json"]
    for study in ("whole", "parts"):
        project.write_study(study, f"parameters: {{epochs: 60, batch_size: 64, {SMALL_NET}}}")
    assert main(["train", "whole"]) == 0
    while main(["train", "parts", "--minutes", "0.01"]) == 0:
        if Run("parts", first).record.get("train"):
            break
    weights = [Run(study, first).weights() for study in ("whole", "parts")]
    assert weights[0] == weights[1] != ""


def test_a_study_that_is_stopped_leaves_checkpoints_and_goes_on_to_the_same_bytes(project):
    rare = "checkpoint_epochs: 1000, snapshot_epochs: 1"  # only a training that is stopped writes a checkpoint
    for name in ("stopped", "undisturbed"):
        text = f"parameters: {{arch: resnet20, batch_size: 32, input_size: 8, epochs: 6, {rare}}}"
        project.write_study(name, text)
    stopped, undisturbed = (Run(name, "digits-resnet20-ce-s0") for name in ("stopped", "undisturbed"))
    for epoch, stop, status in ((1, signal.SIGTERM, 143), (3, signal.SIGINT, 130)):
        reached = stopped.path / "snapshots" / f"{epoch:04d}.safetensors"
        code, said = project.stop("stopped", reached, stop)
        assert code == status
        assert said.endswith("stopped; the next call goes on from here\n")
        assert "Traceback" not in said
        assert (stopped.path / "checkpoint.safetensors").exists()
        assert "train" not in stopped.record
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())  # as one run alone had
    for run in (stopped, undisturbed):
        assert main(["train", run.study]) == 0
    torch.set_num_threads(threads)
    assert stopped.weights() == undisturbed.weights() != ""
    assert not (stopped.path / "checkpoint.safetensors").exists()


def test_two_processes_find_train_write_and_refuse_as_one(project):
    small = "arch: resnet20, epochs: 2, batch_size: 256, input_size: 8, snapshot_epochs: 1"
    odd = "{if: {seed: 2}, set: {batch_size: 33}}"
    project.write_study("tried", f"parameters: {{seed: [0, 1, 2], {small}}}\nwhen: [{odd}]")
    found, trained, refused = (Run("tried", f"digits-resnet20-ce-s{seed}") for seed in range(3))
    assert main(["train", "tried", "--run", found.name]) == 0
    before = project.files()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "oodlib", "train", "tried"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    first_lines = [rf"{found.name} · 1 of 3 · \d+ s", f"{found.name} is trained.*", f"{trained.name} · 2 of 3 · .*"]
    printed = done.stdout.splitlines()
    assert all(map(re.fullmatch, first_lines, printed[:3])), done.stderr
    header, *rows, last = printed[3:]
    assert header.split()[0] == "epoch"
    assert [row.split()[0] for row in rows] == ["1", "2"]
    assert last.startswith(f"{refused.name} · 3 of 3 · ")
    assert done.stderr.count("oodlib: 2 processes cannot share a batch of 33 evenly\n") == 1
    assert "exitcode  : 2 " in done.stderr  # in torchrun's report; its own is 1
    assert done.returncode == 1
    assert project.files().items() >= before.items()
    assert trained.record["train"]["parameters"]["batch_size"] == 256
    assert refused.record == {"run": refused.name}
    assert list(pd.read_csv(trained.path / "history.csv").epoch) == [1, 2]
    files = ["config.json", "encoder.safetensors", "history.csv", "snapshots"]
    assert sorted(path.name for path in trained.path.iterdir()) == files
    last = (trained.path / "snapshots" / "0002.safetensors").read_bytes()
    assert last == (trained.path / "encoder.safetensors").read_bytes()


def test_an_explosion_in_training_alone_is_status_2_and_of_several_processes_the_first_says_so(
    project, monkeypatch, capsys
):
    project.write_study("tried", "parameters: {epochs: 1, learning_rate: 1.0e+30, batch_size: 256}")
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert main(["train", "tried"]) == 2
        assert capsys.readouterr().err.count("oodlib: the loss is no longer finite") == lines


def test_list_shows_all_that_can_be_named(project, capsys):
    (project.root / "data").mkdir()
    (project.root / "data" / "mine-test.npz").touch()
    assert main(["list"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    named = {parameter: text.split(", ") for parameter, text in lines.items()}
    assert named["studies"] == ["cifar", "cifar-pretrained", "cifar-small", "cifar-unsmoothed", "digits"]
    assert {"digits", "noise:SIDE", "cifar10", "mine", "folder:PATH[@SIDE]"} <= set(named["image sets"])
    assert named["objective"] == ["ce", "logitnorm", "simclr", "supcon", "joint", "cider"]
    assert {"kmeans", "gmm"} <= set(named["clusterings"])
    assert {"cosine", "mahalanobis"} <= set(named["distances"])
    assert named["thresholds"] == ["global", "conformal", "per-cluster", "conformal-cluster"]
    assert named["choice_rules"] == ["left-out classes", "virtual outliers", "left-out classes of notebook 06"]
    assert "resnet18" in named["arch"]
    assert {"knn", "msp", "fdbd", "nnguide"} < set(named["detectors without clusters"])
    assert named["pool"] == ["token", "avg"]
    assert "known_outliers" in named
