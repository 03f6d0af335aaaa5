"""Studies: what is planned from a YAML file, what is refused, what is done again, and what survives a kill -9."""

import json
import os
import re
import signal

import pytest
from conftest import half_of_the_cores
from filelock import FileLock

from oodlib.__main__ import main
from oodlib.study import Run, runner
from oodlib.study.run import ARTEFACTS
from oodlib.study.runner import run_study
from oodlib.study.studies import NOTEBOOKS, StudyError, crossed, notebook_parameters, read_study

STEPS = list(NOTEBOOKS)
BASE = "digits-airbench_16_32_64"  # of the names of runs


def plan(project, text: str) -> list:
    project.write_study("tried", text)
    return read_study("tried")[0]


def refuse(project, text: str) -> str:
    """Return why a study is refused: one sentence, and nothing on disk."""
    project.write_study("tried", text)
    before = project.files()
    with pytest.raises(StudyError) as refused:
        run_study("tried", jobs=1)
    assert project.files() == before
    assert not (project.root / "outputs").exists()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_lists_are_crossed_into_runs_and_no_parameters_are_the_defaults(project):
    runs = plan(project, "parameters: {objective: [ce, supcon], seed: [0, 1, 2], epochs: 3}")
    assert [r.run.name for r in runs] == [f"{BASE}-{o}-s{s}" for o in ("ce", "supcon") for s in (0, 1, 2)]
    assert {r.parameters["train"]["epochs"] for r in runs} == {3}
    (default,) = plan(project, "parameters: {}")
    for step, notebook in NOTEBOOKS.items():
        defaults = {name: value for name, (_, value) in notebook_parameters(notebook).items()}
        assert default.parameters[step] == {k: v for k, v in defaults.items() if k in default.parameters[step]}
        assert defaults.keys() - default.parameters[step].keys() <= {"study", "run", "data_root"}


def test_a_parameter_that_is_a_list_is_not_crossed_but_a_list_of_lists_is(project):
    (run,) = plan(project, "parameters: {near_ood: [digits789, letters], far_ood: []}")
    assert run.parameters["embed"]["near_ood"] == ["digits789", "letters"]
    assert run.parameters["embed"]["far_ood"] == []
    known = {"seed": ("int", 0), "near_ood": ("list[str]", ["a"])}
    expected = [{"seed": seed, "near_ood": near} for seed in (0, 1) for near in (["a"], ["b", "c"])]
    assert crossed({"seed": [0, 1], "near_ood": [["a"], ["b", "c"]]}, known) == expected
    assert "two runs would be called" in refuse(project, "parameters: {near_ood: [[digits789], [letters, photos]]}")


def test_when_changes_the_runs_it_names_and_later_entries_see_defaults_and_earlier_ones_and_win(project):
    text = """
parameters: {objective: [ce, supcon, simclr], seed: [0, 1], epochs: 5, near_ood: [digits789, letters], far_ood: []}
when:
  - {if: {objective: [supcon, simclr]}, set: {epochs: 9, crop: 0.2}}
  - {if: {objective: supcon, seed: 1}, set: {epochs: 11}}
  - {if: {epochs: 9, batch_size: 64}, set: {batch_size: 32}}
  - {if: {near_ood: [letters]}, set: {max_images: 1}}
  - {if: {near_ood: [[letters], [digits789, letters]], seed: 1}, set: {max_images: 2}}
"""
    runs = {r.run.name.removeprefix(f"{BASE}-"): r.parameters for r in plan(project, text)}
    train = {name: [of["train"][p] for p in ("epochs", "batch_size", "crop")] for name, of in runs.items()}
    crop = notebook_parameters("01_train")["crop"][1]
    others = {name: [9, 32, 0.2] for name in ("supcon-s0", "simclr-s0", "simclr-s1")} | {"supcon-s1": [11, 64, 0.2]}
    assert train == {"ce-s0": [5, 64, crop], "ce-s1": [5, 64, crop]} | others
    assert {name[-1]: of["embed"]["max_images"] for name, of in runs.items()} == {"0": 0, "1": 2}


WHEN = "parameters: {}\nwhen: "
REFUSED = [
    ("parameters: {objectiv: ce}", "tried.yaml: unknown parameter 'objectiv'; known: alpha, alternate_flip, .*decay"),
    ("parameters: {data_root: /x}", "unknown parameter 'data_root'"),  # where things are is not for a study to say
    ("parameters: {1: 2}", "unknown parameter 1"),
    ("parameters: {learning_rate: 1e-3}", "learning_rate must be of type float, got '1e-3' \\(str\\)"),
    ("parameters: {seed: [0, [1]]}", "seed must be of type int, got \\[1\\] \\(list\\)"),
    ("parameters: {n_clusters: [7, 8.5]}", "n_clusters must be of type list\\[int\\], got 8.5 in it"),
    ("parameters: {seed: []}", "tried.yaml: a parameter has an empty list of values, so there is no run"),
    ("parameters: {objective: cee}", f"{BASE}-cee-s0: unknown objective 'cee'; known: ce, logitnorm"),
    ("parameters: {arch: vgg}", "unknown arch 'vgg'; known: airbench, airbench_WIDTH_WIDTH_WIDTH, resnet20, resnet18"),
    ("parameters: {clusterings: [labels, dbscan]}", "unknown clustering 'dbscan'; known: labels, .*kmeans"),
    ("parameters: {n_neighbors: 0}", "n_neighbors must be at least 1, got 0"),
    ("parameters: {known_outliers: [0]}", "known must be at least 1, got 0"),
    ("parameters: {alpha: 1.5}", "alpha must be between 0 and 1, got 1.5"),
    ("parameters: {id_dataset: mnits}", "unknown image set 'mnits'"),
    ("parameters: {far_ood: [photos, nosuch]}", "unknown image set 'nosuch': allowed are digits, .*cifar10"),
    ("parameters: {near_ood: [digits]}", "OOD set 'digits' is there twice, or is the ID set 'digits'"),
    ("parameters: {near_ood: [], far_ood: []}", "name at least one OOD set"),
    ("parameters: {max_images: -1}", "max_images must not be negative, got -1"),
    ("parameters: {epochs: [1, 2]}", f"two runs would be called {BASE}-ce-s0; a name holds ID set, arch"),
    ("parameters: [ce]", "tried.yaml must hold 'parameters' and may hold 'when' and 'plugins', nothing else"),
    ("", "tried.yaml must hold 'parameters'"),
    ("parameters: {}\nwehn: []", "tried.yaml must hold 'parameters' and may hold 'when' and 'plugins', nothing else"),
    ("parameters: {seed: [0\n", "tried.yaml is no YAML: .* line 2"),
    ("parameters: !!python/object/apply:os.system [touch owned]", "tried.yaml is no YAML: .*python/object"),
    (WHEN + "5", "'when' must be a list of entries with 'if' and 'set', got 5"),
    (WHEN + "[{if: {seed: 0}}]", "an entry of 'when' must hold 'if' and 'set', got"),
    (WHEN + "[{if: seed, set: {epochs: 1}}]", "'if' and 'set' must hold parameters and their values"),
    (WHEN + "[{if: {sed: [0, 1]}, set: {epochs: 1}}]", "unknown parameter 'sed'"),
    (WHEN + "[{if: {seed: ['0']}, set: {epochs: 1}}]", "seed must be of type int, got '0'"),
    (WHEN + "[{if: {seed: 9}, set: {epochs: [1, 2]}}]", "epochs must be of type int, got \\[1, 2\\]"),
    ("parameters: {seed: [0, 1]}\nwhen: [{if: {seed: 1}, set: {shown_seed: 1}}]", "05_report must be the same for all"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED)
def test_what_cannot_be_run_is_refused_in_one_sentence_and_changes_nothing(project, text, message):
    assert re.search(message, refuse(project, text))


def test_a_study_that_cannot_be_found_or_read_is_refused(project, tmp_path, monkeypatch):
    studies = project.root / "notebooks" / "studies"
    (studies / "tried.yaml").write_bytes(b"\xff\xfe\x00")  # no text
    known = ", ".join(sorted(path.stem for path in studies.glob("*.yaml")))
    for name, said in (
        ("nosuch", f"unknown study 'nosuch'; known: {known}"),
        ("../studies/tried", "unknown study '../studies/tried'"),
        ("tried", "tried.yaml is no YAML: "),
    ):
        with pytest.raises(StudyError, match=said):
            run_study(name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError, match="there are none in .*notebooks/studies; start it in the project's folder"):
        run_study("digits")


def test_the_committed_studies_can_be_read(project):
    for path in (project.root / "notebooks" / "studies").glob("*.yaml"):
        runs, report = read_study(path.stem)
        assert len(runs) > 1
        assert report.keys() == {"compared", "detector", "detectors", "shown_seed"}
        assert report["shown_seed"] in {plan.parameters["train"]["seed"] for plan in runs}


def test_every_run_goes_through_its_steps_in_order_and_what_is_done_is_not_done_again(fast, capsys):
    assert run_study("fast", jobs=1) == []
    done = list(fast.log)
    assert [notebook for notebook, _ in done] == list(NOTEBOOKS.values()) * 2 + ["05_report"]
    printed = capsys.readouterr().out
    assert "study fast: 2 runs, 1 side by side" in printed
    assert f"[  8/8] {BASE}-ce-s1 04_evaluate in" in printed
    run_study("fast", jobs=2)
    assert fast.log == done
    (Run("fast", f"{BASE}-ce-s1").path / "metrics.csv").unlink()
    run_study("fast", jobs=2)
    assert fast.log == [*done, ("04_evaluate", f"{BASE}-ce-s1")]
    fast.project.write_study("fast", "parameters: {seed: [0, 1], n_neighbors: 20}")
    before = fast.project.files()
    with pytest.raises(StudyError, match="step 'evaluate' of run .* was made with n_neighbors=50, not 20.* study name"):
        run_study("fast", jobs=2)
    assert fast.project.files() == before


def test_the_time_that_is_left_is_judged_by_the_steps_of_this_call(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(runner.time, "monotonic", lambda: now[0])
    progress = runner.Progress(96)
    for i in range(18):  # 72 steps that were done before
        for step in NOTEBOOKS:
            progress._ended(f"run {i}", step, None)
    assert progress._left() == ""
    progress._started("last", "train")
    for step in NOTEBOOKS:
        now[0] += 60
        progress._ended("last", step, 60.0)
    assert progress._left() == " · about 20:00 left"  # 20 steps, a minute each


def test_a_run_that_fails_is_named_and_the_others_finish(fast, capsys):
    fast.fail |= {("01_train", f"{BASE}-ce-s{seed}") for seed in (0, 1)}
    assert len(run_study("fast", jobs=2)) == 2
    assert {notebook for notebook, _ in fast.log} == {"01_train"}  # no report of nothing
    fast.fail.clear()
    fast.log.clear()
    fast.fail.add(("02_embed", f"{BASE}-ce-s0"))
    failures = run_study("fast", jobs=1)
    assert failures == [f"{BASE}-ce-s0: 02_embed, ZeroDivisionError: division by zero"]
    assert [notebook for notebook, _ in fast.log] == ["01_train", "02_embed", *NOTEBOOKS.values(), "05_report"]
    assert f"FAILED {failures[0]}" in capsys.readouterr().out
    fast.fail.clear()
    fast.log.clear()
    assert run_study("fast", jobs=1) == []  # the next call does what is missing
    assert [notebook for notebook, _ in fast.log] == ["02_embed", "03_clusters", "04_evaluate", "05_report"]


def test_a_second_runner_is_refused_while_the_first_runs_and_the_cores_are_shared_out(fast, monkeypatch):
    monkeypatch.setattr(runner, "usable_cores", lambda: 8)
    (fast.project.root / "outputs" / "fast").mkdir(parents=True)
    with FileLock(fast.project.root / "outputs" / "fast" / "study.lock"):
        with pytest.raises(StudyError, match="study 'fast' is being run by another process"):
            run_study("fast", jobs=7)
        assert fast.log == []
    assert run_study("fast", jobs=7) == []  # no more side by side than there are runs
    assert os.environ["OMP_NUM_THREADS"] == "4"


def test_the_study_leaves_every_artefact_made_with_every_parameter_and_no_partial_file(studied, monkeypatch):
    monkeypatch.chdir(studied.root)
    names = [f"{BASE}-{objective}-s{seed}" for objective in ("ce", "supcon") for seed in (0, 1)]
    assert sorted(path.name for path in (studied.root / "outputs" / "small" / "runs").iterdir()) == names
    texts = {artefact for step in STEPS for artefact in ARTEFACTS[step]} | {"config.json"}
    for planned in read_study("small")[0]:
        notebooks = {f"{name}.ipynb" for name in NOTEBOOKS.values()} if planned.run.name == names[0] else set()
        assert {path.name for path in planned.run.path.iterdir()} == texts | notebooks
        for step in STEPS:
            assert planned.run.record[step]["parameters"] == planned.parameters[step]
            assert planned.run.is_done(step, planned.parameters[step])
    assert not list(studied.root.rglob("*.partial*"))


def test_artefacts_cut_short_are_refused_before_anything_starts(studied_copy):
    path = studied_copy.run_folder("small", f"{BASE}-supcon-s1") / "encoder.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    before = studied_copy.files()
    with pytest.raises(
        StudyError, match=f"{BASE}-supcon-s1: .* is not the file that training wrote: .* to train again"
    ):
        run_study("small", jobs=2)
    assert studied_copy.files() == before


def test_one_deleted_artefact_is_made_again_and_a_run_that_explodes_does_not_stop_it(studied_copy, monkeypatch, capsys):
    monkeypatch.setattr("oodlib.study.runner.report_is_current", lambda study, parameters: True)
    studied_copy.bare_notebooks()
    again = f"{BASE}-ce-s1"
    metrics = studied_copy.run_folder("small", again) / "metrics.csv"
    expected = metrics.read_bytes()
    metrics.unlink()
    explodes = "when: [{if: {seed: 2}, set: {learning_rate: 1.0e+30}}]\n"
    more = studied_copy.read_study("small").replace("[ce, supcon]", "ce").replace("[0, 1]", "[0, 1, 2]")
    studied_copy.write_study("small", more + explodes)
    before = studied_copy.files()
    assert main(["small", "--jobs", "2"]) == 1
    said = capsys.readouterr()
    assert metrics.read_bytes() == expected
    changed = {name for name, state in studied_copy.files().items() if before.get(name) != state}
    changed = [name.split("/")[3:5] for name in changed if name.startswith("outputs/small/runs/")]
    runs = {run: {name for of, name in changed if of == run} for run, _ in changed}
    failed = f"{BASE}-ce-s2"
    assert runs.keys() == {again, failed}
    # the step writes its files, its record and its notebook; the same bytes, but the record's seconds
    assert runs[again] == {*ARTEFACTS["evaluate"], "config.json", "04_evaluate.ipynb"}
    assert re.search(rf"FAILED {failed}: 01_train, cell \d+: FloatingPointError: the loss is no longer", said.err)
    assert f"incomplete, and left out: {failed}" in said.out


def test_a_killed_study_goes_on_and_gives_the_same_bytes(studied, project, monkeypatch):
    monkeypatch.setattr("oodlib.study.runner.report_is_current", lambda study, parameters: True)
    project.bare_notebooks()
    monkeypatch.setattr(runner, "usable_cores", half_of_the_cores)  # two runs side by side had as many threads
    text = studied.read_study("small").replace("[ce, supcon]", "ce").replace("[0, 1]", "1")
    project.write_study("small", text)
    run, undisturbed = (of.run_folder("small", f"{BASE}-ce-s1") for of in (project, studied))
    status, _ = project.stop("small", run / "clusters.npz", signal.SIGKILL, half_of_the_cores())  # in the middle of 03
    assert status == -signal.SIGKILL, "the study ended before it could be killed"
    assert not (run / "metrics.csv").exists()
    assert run_study("small") == []
    for name in ("metrics.csv", "clusters.csv", "encoder.safetensors"):
        assert (run / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert json.loads((run / "config.json").read_text()).keys() == {"run", *STEPS}
