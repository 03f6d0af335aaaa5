"""Files: paths of a project, whole files or none, tensors that come back as they were written."""

import errno
import os
import stat
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from oodlib import files
from oodlib.files import project_root, read_tensors, remove_partial_files, resolve, write_atomically, write_tensors


@pytest.fixture
def project(tmp_path, monkeypatch):
    for folder in ("notebooks/studies", "oodlib"):
        (tmp_path / "project" / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


def test_project_root_is_the_nearest_above_or_else_the_current_folder(project, monkeypatch):
    for start in (".", "notebooks", "notebooks/studies", "oodlib"):
        monkeypatch.chdir(project / start)
        assert project_root() == project
        assert resolve("data/cifar10-test.npz") == project / "data" / "cifar10-test.npz"
    for folder, root in (("copy", project), ("copy/notebooks", project), ("copy/oodlib", project / "copy")):
        (project / folder).mkdir()
        monkeypatch.chdir(project / folder)
        assert project_root() == root
    for made in ("a", "b/notebooks", "c/oodlib"):  # nothing, or half of what makes a project
        (project.parent / made).mkdir(parents=True)
        monkeypatch.chdir(project.parent / made[0])
        assert project_root() == resolve("") == project.parent / made[0]
    monkeypatch.setenv("HOME", str(project.parent))
    assert resolve(project.parent / "elsewhere") == project.parent / "elsewhere"
    assert resolve("~/data") == project.parent / "data"


def test_write_makes_the_folder_replaces_and_leaves_one_file(tmp_path):
    path = tmp_path / "new" / "folder" / "table.csv"
    seen = []
    for text in ("old", "new"):
        write_atomically(path, lambda temporary, text=text: (seen.append(temporary), temporary.write_text(text)))
        assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["table.csv"]
    assert seen[0] != seen[1]
    assert {(p.parent, p.suffix, ".partial" in p.name) for p in seen} == {(path.parent, ".csv", True)}


def test_failure_keeps_the_old_file_removes_the_temporary_one_and_says_what_is_kept(tmp_path):
    path, full = tmp_path / "a.json", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    said = r"^\[Errno 28\] cannot write the table \(No space left on device\); "
    for before, kept in ((None, "there is none yet"), ("old", "the last one is kept")):
        if before:
            path.write_text(before)
        for error, match in ((ValueError("half-way"), "half-way"), (KeyboardInterrupt("^C"), "C"), (full, said + kept)):

            def fail(temporary: Path, error=error) -> None:
                temporary.write_text("ne")
                raise error

            with pytest.raises(type(error), match=match) as raised:
                write_atomically(path, fail, "the table")
            assert error is not full or raised.value.filename == str(path)
            assert [file.read_text() for file in tmp_path.iterdir()] == [before] * bool(before)


def test_content_is_on_the_disk_before_its_name_is_and_then_the_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace

    def note(descriptor: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", lambda *paths: (done.append("name"), replace(*paths)))
    write_atomically(tmp_path / "a", lambda temporary: temporary.write_text("whole"))
    assert done == ["content", "name", "folder"]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_who_may_read_a_file_is_the_umasks_choice_and_not_the_writers(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for name, own in (("shut", 0o600), ("open", 0o666)):
            write_atomically(tmp_path / name, lambda temporary, own=own: temporary.chmod(own))
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == mode
    finally:
        os.umask(before)


def _write_repeatedly(path: Path, letter: str) -> None:
    for _ in range(50):
        write_atomically(path, lambda temporary: temporary.write_text(letter * 10_000))


def test_processes_that_write_one_file_never_mix(tmp_path):
    path = tmp_path / "shared.txt"
    context = get_context("fork" if hasattr(os, "fork") else "spawn")
    writers = [context.Process(target=_write_repeatedly, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen | {path.read_text()} <= {"a" * 10_000, "b" * 10_000}
    assert os.listdir(tmp_path) == ["shared.txt"]


def test_what_a_killed_process_left_is_removed_and_no_other_file(tmp_path):
    left = []
    for name in ("0001.safetensors", "encoder.safetensors"):  # partial: the name that a writer was given
        write_atomically(tmp_path / name, lambda temporary: (left.append(temporary), temporary.touch()))
    for path in left:
        path.touch()
    remove_partial_files(tmp_path, "encoder")
    assert sorted(tmp_path.glob("*.partial*")) == left[:1]
    remove_partial_files(tmp_path)
    remove_partial_files(tmp_path / "none")
    assert sorted(os.listdir(tmp_path)) == ["0001.safetensors", "encoder.safetensors"]


def test_tensors_and_what_is_said_of_them_come_back(tmp_path):
    path, about = tmp_path / "a.safetensors", {"epoch": 3, "names": ["a", "ü"]}
    tensors = {"w": torch.randn(3, 2).T, "n": torch.tensor(7), "half": torch.ones(2, dtype=torch.float16)}
    write_tensors(path, tensors, "kind-1", about, "the tensors")
    found, said = read_tensors(path, "kind-1")
    assert said == about
    assert found.keys() == tensors.keys()
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in tensors.items()
    )
    content = path.read_bytes()
    write_tensors(path, tensors, "kind-1", about, "the tensors")
    assert path.read_bytes() == content
    with pytest.raises(ValueError, match=r"a\.safetensors .*'kind-2'.*'kind-1'"):
        read_tensors(path, "kind-2")


def test_a_file_without_whole_tensors_or_their_metadata_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, {"w": torch.zeros(9)}, "kind", {}, "the tensors")
    whole = path.read_bytes()
    for content in (b"", b"PK\x03\x04 a zip file", bytes(64), b"{}" * 50, whole[:-1], whole[:100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            read_tensors(path, "kind")
    for metadata in ({"kind": "{"}, {"format": "pt"}, None):
        save_file({"w": torch.zeros(1)}, path, metadata)
        with pytest.raises(ValueError, match=r"a\.safetensors"):
            read_tensors(path, "kind")


def test_differences_are_named_but_not_those_of_what_is_kept_on_the_way():
    before = {"epochs": 3, "seed": 0, "snapshot_epochs": 1}
    assert files.differences(before, {"epochs": 4, "snapshot_epochs": 2}) == ["epochs=3, not 4", "seed=0, not None"]
