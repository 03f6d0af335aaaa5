"""Checkpoints: a training that was stopped, however, ends with the bits of one that was not; every fault is said."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import PLAIN
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from oodlib.data import ImageSet, folders, load_images
from oodlib.encoders import TrainingConfig, save_encoder
from oodlib.encoders.checkpoint import FORMAT, load_checkpoint, noticing_sigterm, remove_checkpoint, save_checkpoint
from oodlib.encoders.epoch import Trainer
from oodlib.encoders.training import CHECKPOINT, SNAPSHOTS, make_trainer, train
from oodlib.study import Run
from oodlib.study.steps import train_step

TINY = TrainingConfig(
    **PLAIN | {"epochs": 3, "batch_size": 32, "input_size": 8, "warmup_epochs": 1, "jitter": 0.4}
)  # six steps in all
CONFIGS = {
    "ce": TINY,
    "cider": replace(TINY, objective="cider"),
    "lookahead": replace(
        TINY,
        lookahead=True,
        flip=0.5,
        alternate_flip=True,
        translate=1,
        schedule="triangle",
        norm_bias_factor=8.0,
        n_views=2,
    ),
    "whitened": replace(TINY, arch="airbench_4_8_8", input_size=16, lookahead=True, clip_norm=0.5),
    "frozen": replace(TINY, objective="joint", trained="heads"),
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def few_digits():
    """Every tenth digit: 89 images, 80 to train on, two batches of 32 an epoch."""
    digits = load_images("digits", "train")
    return ImageSet(digits.images[::10], digits.labels[::10], digits.classes, "few")


@pytest.fixture(scope="module")
def few():
    return few_digits()


@pytest.fixture
def trainers(monkeypatch):
    """A list of the trainers that `train` makes, to look at their states."""
    made = []
    monkeypatch.setattr("oodlib.encoders.training.make_trainer", lambda *of: made.append(make_trainer(*of)) or made[-1])
    return made


def outcome(trainer):
    """Return all that a training ends with, apart from how long it took."""
    state = trainer.state
    history = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in state.history]
    modules = {name: module.state_dict() for name, module in state.modules().items()}
    return history, modules | {"momenta": state.momenta(), "losses": {"": state.losses}}


def assert_same(trainer, other):
    (history, tensors), (other_history, other_tensors) = outcome(trainer), outcome(other)
    assert history == other_history
    assert tensors.keys() == other_tensors.keys()
    for part, named in tensors.items():
        different = [name for name, tensor in named.items() if not torch.equal(tensor, other_tensors[part][name])]
        assert not different, part


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


# What other processes do


@pytest.fixture(scope="module")
def processes():
    """A context whose processes start at once, with oodlib imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["oodlib.encoders.training", "oodlib.study.steps", "pytest"])
    return context


def wait_for(condition, process):
    while not condition():
        assert process.is_alive()
        time.sleep(0.001)


def train_few(config, folder):
    torch.set_num_threads(1)
    train(config, few_digits(), folder)


def train_on_files_in_a_session(config, root, folder):
    """Train as the first process of a session, on images that workers decode from files."""
    os.setsid()
    torch.set_num_threads(1)
    folders.IN_MEMORY_BYTES = 1000
    train(config, load_images(f"folder:{root}@8", "train"), folder)


def train_run(study, config):
    torch.set_num_threads(1)
    train_step(study, config)


def write_too_much(path, save):
    """Save something of a training where files may have 100,000 bytes; exit with the error's number."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        save(path, make_trainer(TINY, few_digits()))
    except OSError as error:
        os._exit(error.errno if error.filename == str(path) and "the last one is kept" in str(error) else 1)


def checkpoint_of(path, trainer):
    save_checkpoint(path, trainer.state, TINY)


def encoder_of(path, trainer):
    save_encoder(trainer.state.encoder, path)


# Going on


@pytest.mark.parametrize("cuts", [(1,), (2,), (5,), (6,), (1, 2, 1)], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_by_sigterm_and_resumed_it_is_the_training_without_a_break(few, trainers, tmp_path, name, cuts):
    for n_steps in cuts:
        train_until(n_steps, CONFIGS[name], few, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    train(CONFIGS[name], few, tmp_path)
    train(CONFIGS[name], few)
    assert_same(*trainers[-2:])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_training_with_every_view_and_a_break_is_the_one_without(few, trainers, tmp_path):
    views = {"flip": 0.5, "jitter": 0.4, "grayscale": 0.2, "rotate": 15.0, "blur": 0.5, "erase": 0.5}
    config = replace(TINY, arch="resnet18", objective="supcon", input_size=32, **views)
    train_until(3, config, few, tmp_path)
    train(config, few, tmp_path)
    train(config, few)
    assert torch.backends.cudnn.deterministic
    assert_same(*trainers[-2:])


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
    assert_same(*trainers[-2:])


def test_a_training_that_was_done_is_not_trained_again(few, trainers, tmp_path, monkeypatch):
    encoder, history = train(TINY, few, tmp_path)
    monkeypatch.setattr(Trainer, "step", None)
    again, same_history = train(TINY, few, tmp_path)
    assert history == same_history
    assert_same(*trainers)
    assert not again.training


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
    with safe_open(folder / CHECKPOINT, framework="pt") as file:
        tensors = {name: file.get_tensor(name).numpy().tobytes() for name in file.keys()}  # noqa: SIM118
        history = json.loads(file.metadata()[FORMAT])["history"]
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in history]
    return tensors, rows, {path.name: path.read_bytes() for path in (folder / SNAPSHOTS).iterdir()}


def test_twenty_kills_at_random_moments_cost_no_bit(few, processes, tmp_path):
    configs = [replace(CONFIGS[name], epochs=16, snapshot_epochs=1) for name in ("ce", "cider", "lookahead")]
    undisturbed, epoch = [], 0.0
    for i, config in enumerate(configs):
        history = train(config, few, tmp_path / f"undisturbed-{i}")[1]
        undisturbed.append(ends(tmp_path / f"undisturbed-{i}"))
        epoch = max(epoch, *(row["seconds"] for row in history[1:]))
    idle = processes.Process(target=int)
    idle.start()
    idle.join()  # from here on, processes start at once
    draw, kills, finished, started = random.Random(0), 0, [0, 0, 0], 0.0
    while kills < 20:
        which = kills % 3
        folder = tmp_path / f"{which}-{finished[which]}"
        process, start = processes.Process(target=train_few, args=(configs[which], folder)), time.perf_counter()
        process.start()
        if not started:  # the first tells how long it takes to the first epoch's end
            wait_for((folder / CHECKPOINT).exists, process)
            started = time.perf_counter() - start
        time.sleep(draw.uniform(0, started + 4 * epoch))
        stop = signal.SIGKILL if draw.random() < 0.8 else signal.SIGTERM
        process.kill() if stop == signal.SIGKILL else process.terminate()
        process.join()
        if process.exitcode == 0:  # it was over, so this was no kill, and there is something to compare
            assert ends(folder) == undisturbed[which]
            finished[which] += 1
        else:
            assert process.exitcode == -stop
            kills += 1
    for which, config in enumerate(configs):
        folder = tmp_path / f"{which}-{finished[which]}"
        train(config, few, folder)
        assert ends(folder) == undisturbed[which]


def test_sigterm_ends_a_process_by_the_signal_and_the_next_ends_with_the_same_bytes(processes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = replace(TINY, epochs=4, snapshot_epochs=3)
    run, undisturbed = Run("stopped", "digits-resnet20-ce-s0"), train_step("undisturbed", config)
    process = processes.Process(target=train_run, args=("stopped", config))
    process.start()
    wait_for((run.path / CHECKPOINT).exists, process)
    process.terminate()
    process.join()
    assert process.exitcode == -signal.SIGTERM
    assert sorted(path.name for path in run.path.glob("*.*")) == [CHECKPOINT, "config.json"]
    assert "train" not in run.record
    train_step("stopped", replace(config, checkpoint_epochs=2))  # which decides no weights
    for file in ("encoder.safetensors", "snapshots/0003.safetensors"):
        assert (run.path / file).read_bytes() == (undisturbed.path / file).read_bytes()
    names = ["config.json", "encoder.safetensors", "history.csv", "snapshots"]
    assert sorted(path.name for path in run.path.iterdir()) == names


def test_sigterm_to_all_processes_of_a_training_on_files_leaves_a_checkpoint(few, processes, tmp_path):
    for i, (image, label) in enumerate(zip(few.images, few.labels, strict=True)):
        path = tmp_path / "images" / "train" / str(label) / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    config = replace(TINY, epochs=1000, checkpoint_epochs=1000, snapshot_epochs=1)  # SIGTERM alone makes it write
    folder, reached = tmp_path / "run", (0, 0)
    for delay in (0, 0.02, 0.05, 0.1):
        process = processes.Process(target=train_on_files_in_a_session, args=(config, tmp_path / "images", folder))
        process.start()
        next_one = folder / SNAPSHOTS / f"{reached[0] + 1:04d}.safetensors"
        wait_for(next_one.exists, process)
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGTERM)
        process.join()
        assert process.exitcode == -signal.SIGTERM
        with safe_open(folder / CHECKPOINT, framework="pt") as file:
            about = json.loads(file.metadata()[FORMAT])
        assert (about["epoch"], about["step"]) > reached
        reached = about["epoch"], about["step"]


def test_sigterm_is_noticed_in_the_block_and_only_there():
    other = []
    before = signal.signal(signal.SIGTERM, lambda *_: other.append(1))
    try:
        with noticing_sigterm() as stop:
            assert not stop.is_set()
            signal.raise_signal(signal.SIGTERM)
            assert stop.is_set()
        assert other == []
        signal.raise_signal(signal.SIGTERM)
        assert other == [1]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_thread_handles_no_signals(few):
    before, encoders = signal.getsignal(signal.SIGTERM), []
    thread = threading.Thread(target=lambda: encoders.append(train(TINY, few)[0]))
    thread.start()
    thread.join()
    assert len(encoders) == 1
    assert signal.getsignal(signal.SIGTERM) is before


# Faults


@pytest.fixture(scope="module")
def checkpoint(few, tmp_path_factory):
    """A checkpoint of TINY after its three epochs; look, do not touch."""
    folder = tmp_path_factory.mktemp("checkpoint")
    train(TINY, few, folder)
    return folder / CHECKPOINT


def assert_refused(config, images, path, content, said):
    """Assert that training says `said` of a checkpoint with this content, in a line, and leaves it as it is."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said) as refused:
        train(config, images, path.parent)
    assert str(refused.value).startswith(f"{path} ")
    assert str(refused.value).endswith("; delete it to train anew")
    assert "\n" not in str(refused.value)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("length", [0, 1, 8, 100, 0.3, 0.99, -1])
def test_a_checkpoint_that_is_cut_short(few, checkpoint, tmp_path, length):
    content = checkpoint.read_bytes()
    kept = int(length * len(content)) if isinstance(length, float) else length
    assert_refused(TINY, few, tmp_path / CHECKPOINT, content[:kept], " is no checkpoint, or is cut short ")


@pytest.mark.parametrize("content", [b"PK\x03\x04" + bytes(100), b"{}" * 50, bytes(64)], ids=["zip", "json", "zeros"])
def test_a_file_that_is_no_checkpoint(few, tmp_path, content):
    assert_refused(TINY, few, tmp_path / CHECKPOINT, content, " is no checkpoint, or is cut short ")


def test_an_encoder_is_no_checkpoint(few, tmp_path):
    train(replace(TINY, epochs=1, snapshot_epochs=1), few, tmp_path / "other")
    (content,) = (path.read_bytes() for path in tmp_path.glob("other/snapshots/*"))
    (tmp_path / "run").mkdir()
    said = f" is no checkpoint, or is cut short \\('{FORMAT}'\\)"
    assert_refused(TINY, few, tmp_path / "run" / CHECKPOINT, content, said)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"epochs": 4}, "epochs=3, not 4"),
        ({"learning_rate": 0.2, "seed": 1}, "seed=0, not 1; learning_rate=0.1, not 0.2"),
        ({"objective": "cider"}, "objective='ce', not 'cider'"),
        ({"lookahead": True}, "lookahead=False, not True"),
    ],
)
def test_a_checkpoint_of_another_configuration_names_the_difference(few, checkpoint, tmp_path, changed, said):
    said = f" is of a training with {said}; delete it to train anew"
    assert_refused(replace(TINY, **changed), few, tmp_path / CHECKPOINT, checkpoint.read_bytes(), said)


def test_a_checkpoint_of_an_older_version_names_the_setting_it_lacks(few, checkpoint, tmp_path):
    with safe_open(checkpoint, framework="pt") as file:
        about = json.loads(file.metadata()[FORMAT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del about["config"]["erase"]
    save_file(tensors, tmp_path / "older", {FORMAT: json.dumps(about)})
    content = (tmp_path / "older").read_bytes()
    (tmp_path / "older").unlink()
    assert_refused(TINY, few, tmp_path / CHECKPOINT, content, "is of a training with erase=None, not 0.0; delete")


def test_going_on_with_other_processes_or_another_torch_is_said(few, checkpoint, tmp_path, monkeypatch, capsys):
    path = tmp_path / CHECKPOINT
    path.write_bytes(checkpoint.read_bytes())
    train(TINY, few, tmp_path)
    assert "was written with" not in capsys.readouterr().out
    monkeypatch.setattr("oodlib.encoders.checkpoint._where", lambda: {"processes": 2, "torch": "9.0"})
    train(TINY, few, tmp_path)
    said = f"{path} was written with processes=1, not 2; torch='{torch.__version__}', not '9.0': the weights may differ"
    assert capsys.readouterr().out.startswith(said)


def test_a_checkpoint_of_another_image_set_does_not_fit(few, checkpoint, tmp_path):
    more = load_images("digits", "train")
    fewer = few.labels < 6
    others = [
        ImageSet(more.images[:200], more.labels[:200], more.classes, "more steps an epoch"),
        ImageSet(few.images[fewer], few.labels[fewer], few.classes[:6], "fewer classes"),
    ]
    for images in others:
        said = " does not fit this network and image set; delete it to train anew"
        assert_refused(TINY, images, tmp_path / CHECKPOINT, checkpoint.read_bytes(), said)


def full_disk(path, content):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_on_a_full_disk_the_last_checkpoint_stays_and_nothing_else(few, trainers, tmp_path, monkeypatch):
    path, said = tmp_path / CHECKPOINT, r"^\[Errno 28\] cannot write the checkpoint \(No space left on device\); "
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match=f"{said}there is none yet: '{path}'$"):
            train(TINY, few, tmp_path)
        assert not list(tmp_path.iterdir())
    train_until(3, TINY, few, tmp_path)
    content = path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match=f"{said}the last one is kept: '{path}'$"):
            train(TINY, few, tmp_path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]
    train(TINY, few, tmp_path)
    train(TINY, few)
    assert_same(*trainers[-2:])


@pytest.mark.parametrize("save", [checkpoint_of, encoder_of])
def test_a_file_that_is_cut_off_while_it_is_written_leaves_no_trace(processes, tmp_path, save):
    path = tmp_path / CHECKPOINT
    path.write_bytes(b"the last good one")
    process = processes.Process(target=write_too_much, args=(path, save))
    process.start()
    process.join()
    assert process.exitcode == errno.EFBIG
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"the last good one"


def test_a_folder_that_cannot_be_made(few, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write the checkpoint \(.*\); there is none yet: '.*checkpoint"):
        train(TINY, few, tmp_path / "file" / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_remove_takes_what_killed_processes_left_and_no_other_file(tmp_path):
    for name in (CHECKPOINT, "checkpoint.partial-0123456789ab.safetensors", "encoder.safetensors", "config.json"):
        (tmp_path / name).touch()
    for _ in range(2):
        remove_checkpoint(tmp_path / CHECKPOINT)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "encoder.safetensors"]
