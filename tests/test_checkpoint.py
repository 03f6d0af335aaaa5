"""Checkpoints: a training that was stopped, however, ends with the bits of one that was not; every fault is said."""

import multiprocessing
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
import torch
from conftest import PLAIN
from PIL import Image

from oodlib.data import ImageSet, folders, load_images
from oodlib.encoders import TrainingConfig
from oodlib.encoders.checkpoint import FORMAT, load_checkpoint, remove_checkpoint
from oodlib.encoders.epoch import Trainer
from oodlib.encoders.training import CHECKPOINT, SNAPSHOTS, make_trainer, train
from oodlib.files import read_tensors, write_tensors
from oodlib.study import Run
from oodlib.study.steps import train_step

SLOW_TO_IMPORT = ["sklearn.datasets", "torch._dynamo", "pytest"]
TINY = TrainingConfig(  # six steps in all, of the smallest network
    **PLAIN
    | {"arch": "airbench_4_8_8", "epochs": 3, "batch_size": 32, "input_size": 16, "warmup_epochs": 1, "jitter": 0.4}
)
RECIPE = replace(TINY, lookahead=True, flip=0.5, alternate_flip=True, translate=1, n_views=2, clip_norm=0.5)
RECIPE = replace(RECIPE, schedule="triangle", norm_bias_factor=8.0)
BREAKS = [  # a training, and the steps after which it is stopped, each time from where it went on
    (TINY, (1,)),
    (TINY, (6,)),
    (replace(TINY, objective="cider"), (3,)),
    (RECIPE, (5,)),
    (RECIPE, (1, 2, 1)),
    (replace(TINY, arch="resnet20", input_size=8, objective="joint", trained="heads"), (2,)),
]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def trainers(monkeypatch):
    """A list of the trainers that `train` makes, to look at their states."""
    made = []
    monkeypatch.setattr("oodlib.encoders.training.make_trainer", lambda *of: made.append(make_trainer(*of)) or made[-1])
    return made


def untimed(history):
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]


def bits(tensors):
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in tensors.items()}


def outcome(trainer):
    """Return all that a training ends with, apart from how long it took."""
    state = trainer.state
    parts = {name: module.state_dict() for name, module in state.modules().items()}
    parts |= {"momenta": state.momenta(), "losses": {"": state.losses}}
    return untimed(state.history), {part: bits(tensors) for part, tensors in parts.items()}


def train_until(n_steps, config, images, folder):
    """Train; in the last of `n_steps` steps this process gets SIGTERM. Something else handles it in the end."""
    steps, step = [], Trainer.step

    def interrupted(trainer, *batch):
        steps.append(batch)
        if len(steps) == n_steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, *batch)

    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "step", interrupted)
            with pytest.raises(SystemExit) as ended:
                train(config, images, folder)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 128 + signal.SIGTERM
    assert len(steps) == n_steps


@pytest.fixture(scope="module")
def processes():
    """A context whose processes start at once, with oodlib imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["oodlib.study.steps", "oodlib.encoders.training", *SLOW_TO_IMPORT])
    return context


def wait_for(condition, process):
    while not condition():
        assert process.is_alive()
        time.sleep(0.001)


def in_one_thread(function, *arguments):
    torch.set_num_threads(1)
    function(*arguments)


def train_on_files_in_a_session(config, root, folder):
    """Train as the first process of a session, on images that workers decode from files."""
    os.setsid()
    folders.IN_MEMORY_BYTES = 1000
    train(config, load_images(f"folder:{root}@8", "train"), folder)


@pytest.mark.parametrize(("config", "cuts"), BREAKS, ids=range(len(BREAKS)))
def test_stopped_by_sigterm_and_resumed_it_is_the_training_without_a_break(
    few, trainers, tmp_path, monkeypatch, config, cuts
):
    for n_steps in cuts:
        train_until(n_steps, config, few, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    _, history = train(config, few, tmp_path)
    train(config, few)
    assert outcome(trainers[-2]) == outcome(trainers[-1])
    monkeypatch.setattr(Trainer, "step", None)  # what was done is not trained again
    again, same_history = train(config, few, tmp_path)
    assert history == same_history
    assert outcome(trainers[-2]) == outcome(trainers[-1])
    assert not again.training


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_training_with_every_view_and_a_break_is_the_one_without(few, trainers, tmp_path):
    views = {"flip": 0.5, "jitter": 0.4, "grayscale": 0.2, "rotate": 15.0, "blur": 0.5, "erase": 0.5}
    config = replace(TINY, arch="resnet18", objective="supcon", input_size=32, **views)
    train_until(3, config, few, tmp_path)
    train(config, few, tmp_path)
    train(config, few)
    assert torch.backends.cudnn.deterministic
    assert outcome(trainers[-2]) == outcome(trainers[-1])


def test_resumed_after_an_error_it_goes_on_from_the_last_epoch_that_was_due(few, trainers, tmp_path, monkeypatch):
    config, steps, step = replace(TINY, epochs=4, checkpoint_epochs=2), [], Trainer.step

    def failing(trainer, *batch):
        steps.append((trainer.state.epoch, trainer.state.step))
        if len(steps) == 8:
            raise MemoryError
        return step(trainer, *batch)

    monkeypatch.setattr(Trainer, "step", failing)
    with pytest.raises(MemoryError):
        train(config, few, tmp_path)
    train(config, few, tmp_path)
    assert steps[8:] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    train(config, few)
    assert outcome(trainers[-2]) == outcome(trainers[-1])


def test_rows_before_the_break_are_printed_again_and_seconds_are_of_the_whole_epoch(few, tmp_path, capsys):
    train_until(3, TINY, few, tmp_path)
    rows = capsys.readouterr().out.splitlines()
    assert rows[-1] == "stopped by SIGTERM in epoch 2, after step 1"
    state = make_trainer(TINY, few).state
    load_checkpoint(tmp_path / CHECKPOINT, state, TINY)
    assert (state.epoch, state.step, len(state.history)) == (1, 1, 1)
    assert state.seconds > 0
    _, history = train(TINY, few, tmp_path)
    assert capsys.readouterr().out.splitlines()[:2] == rows[:2]
    assert history[1]["seconds"] > state.seconds
    assert history[1]["images_per_second"] * history[1]["seconds"] == pytest.approx(2 * 32)


def ends(folder):
    """Return the tensors and the history that a training left in its folder, and its snapshots' bytes by name."""
    tensors, about = read_tensors(folder / CHECKPOINT, FORMAT)
    snapshots = {path.name: path.read_bytes() for path in (folder / SNAPSHOTS).iterdir()}
    return bits(tensors), untimed(about["history"]), snapshots


def test_kills_at_random_moments_cost_no_bit(few, processes, tmp_path):
    config = replace(RECIPE, epochs=24, snapshot_epochs=1)
    history = train(config, few, tmp_path / "undisturbed")[1]
    epoch = max(row["seconds"] for row in history[1:])
    draw, kills, folder = random.Random(0), 0, tmp_path / "killed"
    while kills < 3:
        process = processes.Process(target=in_one_thread, args=(train, config, few, folder))
        reached = len(list((folder / SNAPSHOTS).glob("0*"))) if kills else 0
        process.start()
        wait_for(lambda: len(list((folder / SNAPSHOTS).glob("0*"))) > reached, process)  # noqa: B023
        time.sleep(draw.uniform(0, 3 * epoch))
        process.kill() if kills % 2 else process.terminate()
        process.join()
        if process.exitcode == 0:  # it was over before the kill
            break
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGTERM)
        kills += 1
    assert kills > 1
    train(config, few, folder)
    assert ends(folder) == ends(tmp_path / "undisturbed")


def test_sigterm_ends_a_process_by_the_signal_and_the_next_ends_with_the_same_bytes(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(TINY, epochs=4, snapshot_epochs=3)
    run, undisturbed = Run("stopped", "digits-airbench_4_8_8-ce-s0"), train_step("undisturbed", config)
    process = processes.Process(target=in_one_thread, args=(train_step, "stopped", config))
    process.start()
    wait_for((run.path / CHECKPOINT).exists, process)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert sorted(path.name for path in run.path.glob("*.*")) == [CHECKPOINT, "config.json"]
    assert "train" not in run.record
    (run.path / "checkpoint.partial-0123456789ab.safetensors").touch()  # as a killed process leaves it
    train_step("stopped", replace(config, checkpoint_epochs=2))  # which decides no weights
    for file in ("encoder.safetensors", "snapshots/0003.safetensors"):
        assert (run.path / file).read_bytes() == (undisturbed.path / file).read_bytes()
    names = ["config.json", "encoder.safetensors", "history.csv", "snapshots"]
    assert sorted(path.name for path in run.path.iterdir()) == names
    remove_checkpoint(run.path / CHECKPOINT)  # where there is none


def test_sigterm_to_all_processes_of_a_training_on_files_leaves_a_checkpoint(few, processes, tmp_path):
    for i, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
        path = tmp_path / "images" / "train" / str(label) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = replace(TINY, epochs=1000, checkpoint_epochs=1000, snapshot_epochs=1)  # SIGTERM alone makes it write
    folder, reached = tmp_path / "run", (0, 0)
    for delay in (0, 0.05):
        given = train_on_files_in_a_session, config, tmp_path / "images", folder
        process = processes.Process(target=in_one_thread, args=given)
        process.start()
        next_one = folder / SNAPSHOTS / f"{reached[0] + 1:04d}.safetensors"
        wait_for(next_one.exists, process)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == -signal.SIGTERM
        about = read_tensors(folder / CHECKPOINT, FORMAT)[1]
        assert (about["epoch"], about["step"]) > reached
        reached = about["epoch"], about["step"]


def test_a_thread_handles_no_signals(few):
    before, encoders = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: encoders.append(train(TINY, few)[0]))
    thread.start()
    thread.join()
    assert len(encoders) == 1
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def checkpoint(few, tmp_path_factory):
    """A checkpoint of TINY after its three epochs; look, do not touch."""
    folder = tmp_path_factory.mktemp("checkpoint")
    train(TINY, few, folder)
    return folder / CHECKPOINT


def test_a_checkpoint_that_does_not_fit_is_refused_and_stays(few, checkpoint, tmp_path):
    path, whole = tmp_path / CHECKPOINT, checkpoint.read_bytes()
    tensors, about = read_tensors(checkpoint, FORMAT)
    contents = {"whole": whole, "empty": b"", "cut": whole[: len(whole) // 3], "almost": whole[:-1]}
    older = about | {"config": {name: value for name, value in about["config"].items() if name != "erase"}}
    for name, said in (("older", older), ("foreign", {}), ("list", [])):
        write_tensors(path, tensors, FORMAT, said, "the checkpoint")
        contents[name] = path.read_bytes()
    fewer = ImageSet(few.images[few.labels < 6], few.labels[few.labels < 6], few.classes[:6], "fewer classes")
    for name, config, images, said in (
        *((name, TINY, few, "is no checkpoint") for name in ("empty", "cut", "almost", "foreign", "list")),
        ("older", TINY, few, "erase=None, not 0.0"),
        ("whole", replace(TINY, epochs=4, seed=1), few, "seed=0, not 1; epochs=3, not 4"),
        ("whole", replace(TINY, lookahead=True), few, "lookahead=False, not True"),
        ("whole", TINY, fewer, "does not fit this network and image set"),
    ):
        path.write_bytes(contents[name])
        with pytest.raises(ValueError, match=f"^{path} .*{said}.*; delete it to train anew$"):
            train(config, images, tmp_path)
        assert path.read_bytes() == contents[name]
        assert list(tmp_path.iterdir()) == [path]


def test_going_on_with_other_processes_or_another_torch_is_said(few, checkpoint, tmp_path, monkeypatch, capsys):
    path = tmp_path / CHECKPOINT
    path.write_bytes(checkpoint.read_bytes())
    train(TINY, few, tmp_path)
    assert "was written with" not in capsys.readouterr().out
    monkeypatch.setattr("oodlib.encoders.checkpoint._where", lambda: {"processes": 2, "torch": "9.0"})
    train(TINY, few, tmp_path)
    said = f"{path} was written with processes=1, not 2; torch='{torch.__version__}', not '9.0': the weights may differ"
    assert capsys.readouterr().out.startswith(said)
