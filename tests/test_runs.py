import hashlib
import json

import pytest

from oodlib.files import slug
from oodlib.study import Run
from oodlib.study.run import ARTEFACTS, run_name, study_folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Run("study", "digits-airbench_16_32_64-ce-s0")


def do(run: Run, step: str, parameters: dict, content: str = "x", **about) -> None:
    """Do a step that writes `content` into each of its artefacts."""
    with run.doing(step, parameters) as more:
        for artefact in ARTEFACTS[step]:
            if artefact == "embeddings":
                (run.path / artefact).mkdir(exist_ok=True)
            else:
                (run.path / artefact).write_text(content)
        more.update(about)


def test_names_keep_what_a_file_name_may_hold():
    for name, expected in (("noise:8", "noise_8"), ("folder:a/b c", "folder_a_b_c"), ("x..y-1", "x..y_1")):
        assert slug(name) == expected
    assert run_name("cifar10", "resnet18", "supcon", 3) == "cifar10-resnet18-supcon-s3"
    assert run_name("folder:a/b", "resnet18", "ce", 0) == "folder_a_b-resnet18-ce-s0"


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "a:b"])
def test_names_that_are_no_plain_folder_names_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="a study's name may hold letters, digits, '.', '_' and '-' only"):
        study_folder(name)
    with pytest.raises(ValueError, match="a run's name may hold letters"):
        Run("study", name)
    assert list(tmp_path.iterdir()) == []


def test_folders_are_below_the_projects_outputs(run, tmp_path):
    assert run.path == tmp_path / "outputs" / "study" / "runs" / "digits-airbench_16_32_64-ce-s0"
    assert run.embeddings_path("noise:8", "test") == run.path / "embeddings" / "noise_8-test.npz"
    assert (run.path.exists(), run.record, run.weights(), run.is_done("train", {"epochs": 1})) == (False, {}, "", False)


def test_a_step_is_recorded_with_parameters_seconds_and_weights(run):
    do(run, "train", {"epochs": 1}, environment={"device": "cpu"})
    record = json.loads((run.path / "config.json").read_text())
    assert record == run.record
    assert record["run"] == run.name
    assert record["train"].keys() == {"parameters", "seconds", "weights", "files", "environment"}
    assert record["train"]["parameters"] == {"epochs": 1}
    assert record["train"]["weights"] == hashlib.sha256(b"x").hexdigest() == run.weights()
    assert record["train"]["seconds"] >= 0
    assert run.is_done("train", {"epochs": 1})


def test_embedding_is_done_only_while_every_file_of_its_folder_is_there(run):
    do(run, "train", {})
    (run.path / "embeddings").mkdir()
    for name in ("digits-train.npz", "letters-test.npz"):
        (run.path / "embeddings" / name).touch()
    (run.path / "epochs.csv").touch()
    with run.doing("embed", {}):
        pass
    assert run.record["embed"]["files"] == ["embeddings/digits-train.npz", "embeddings/letters-test.npz"]
    assert run.is_done("embed", {})
    (run.path / "embeddings" / "letters-test.npz").unlink()
    assert not run.is_done("embed", {})


@pytest.mark.parametrize("step", list(ARTEFACTS))
def test_a_step_is_done_only_while_all_its_artefacts_are_there(run, step):
    do(run, "train", {})
    do(run, step, {"a": 1})
    assert run.is_done(step, {"a": 1})
    for artefact in ARTEFACTS[step]:
        path = run.path / artefact
        path.rename(run.path / "elsewhere")
        assert not run.is_done(step, {"a": 1})
        (run.path / "elsewhere").rename(path)
    assert run.is_done(step, {"a": 1})


def test_other_parameters_are_refused_with_every_difference(run):
    do(run, "train", {"epochs": 1, "seed": 0, "old": True})
    (run.path / "encoder.safetensors").unlink()  # a fresh clone has no weights
    said = "step 'train' of run 'digits-airbench_16_32_64-ce-s0' in study 'study'"
    with pytest.raises(ValueError, match=said) as refused:
        run.is_done("train", {"epochs": 2, "seed": 0, "new": []})
    for part in ("epochs=1, not 2", "old=True, not None", "new=None, not []", "another study name", str(run.path)):
        assert part in str(refused.value)
    assert "seed" not in str(refused.value)


def test_later_steps_follow_the_weights(run):
    do(run, "train", {}, content="first")
    do(run, "cluster", {"k": 3})
    (run.path / "encoder.safetensors").unlink()
    assert not run.is_done("train", {})
    do(run, "train", {}, content="other")
    assert not run.is_done("cluster", {"k": 3})
    do(run, "train", {}, content="first")  # trained again on the same machine: the later text is valid
    assert run.is_done("cluster", {"k": 3})


def test_weights_that_training_did_not_write_are_refused(run):
    do(run, "train", {}, content="whole")
    (run.path / "encoder.safetensors").write_text("who")
    with pytest.raises(ValueError, match=r"encoder\.safetensors is not the file that training wrote.*delete it"):
        run.is_done("train", {})


def test_a_step_cut_short_leaves_no_record_but_those_of_other_steps(run):
    do(run, "train", {})
    do(run, "cluster", {"k": 3})

    def cut_short():
        with run.doing("cluster", {"k": 3}):
            assert "cluster" not in run.record  # so a kill -9 from here on leaves none either
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cut_short()
    assert run.record.keys() == {"run", "train"}
    assert not run.is_done("cluster", {"k": 3})
    do(run, "cluster", {"k": 4})
    assert run.is_done("cluster", {"k": 4})


@pytest.mark.parametrize("text", ["", '{"run": "x", "tra'])
def test_a_config_that_is_cut_short_is_said_to_be(run, text):
    run.path.mkdir(parents=True)
    (run.path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is no JSON .* delete it to start the run anew"):
        run.is_done("train", {})
