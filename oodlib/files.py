"""Files: paths relative to the project, files that are written whole or not at all, tensors with JSON about them."""

import json
import os
import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ON_THE_WAY = ("checkpoint_epochs", "snapshot_epochs")  # what training keeps on its way decides nothing


def project_root() -> Path:
    """Return the nearest folder, from the current one upwards, that holds notebooks/ and oodlib/; else the current one.

    JupyterLab starts a kernel in notebooks/, papermill starts it where it was called: both find the same project.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "oodlib").is_dir():
            return folder
    return here


def resolve(path: str | Path) -> Path:
    """Return `path` as an absolute path: a relative one is relative to the project's root, `~` is the home folder."""
    return project_root() / Path(path).expanduser()  # an absolute right-hand side replaces the left


def write_atomically(path: str | Path, writer: Callable[[Path], object], what: str = "the file") -> None:
    """Write a file so that `path` always holds the old content or the whole new one, never a part.

    `writer(temporary)` writes to a temporary name in the same folder (made if missing), which is then renamed. The
    content is on the disk before its name is, so that a power cut, too, leaves the one or the other. The temporary name
    differs between processes, also of several machines on one file system, so the last to finish wins whole; it keeps
    the suffix, because numpy and matplotlib choose by it. If the writer fails, the temporary file is removed and its
    error passes on, an OSError as one that names `path` and says whether the last `what` is kept.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.stem}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
            mode = temporary.stat().st_mode
            writer(temporary)
            if temporary.stat().st_mode != mode:  # safetensors writes files that only their owner may read
                temporary.chmod(mode)
            _flush(temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # after a successful rename there is nothing left to remove
        _flush(path.parent)
    except OSError as error:
        if error.errno is None:  # no error of the system
            raise
        kept = "the last one is kept" if path.exists() else "there is none yet"
        raise OSError(error.errno, f"cannot write {what} ({error.strerror}); {kept}", str(path)) from error


def _flush(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    if path.is_dir() and os.name != "posix":  # Windows opens no folder
        return
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial_files(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of the files `name`, without suffix, in a folder; none may be writing them."""
    for left in folder.glob(f"{name}.partial-*"):
        left.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: Mapping[str, "torch.Tensor"], kind: str, about: object, what: str) -> None:
    """Write tensors by name, and JSON about them under the name of their format, `kind`, to one safetensors file.

    The same tensors give the same bytes. Raises OSError as `write_atomically`.
    """
    from safetensors.torch import save

    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    content = save(tensors, {kind: json.dumps(about)})  # one entry: safetensors writes several in any order
    write_atomically(path, lambda temporary: temporary.write_bytes(content), what)


def read_tensors(path: str | Path, kind: str) -> tuple[dict[str, "torch.Tensor"], object]:
    """Return the tensors by name, on the CPU, and the JSON that `write_tensors` wrote under `kind`. Runs no code.

    Raises ValueError for a file that is cut short, foreign or of another format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if kind not in metadata:
            raise ValueError(f"{path} is no file of format {kind!r}, which its metadata {list(metadata)} lacks")
        return tensors, json.loads(metadata[kind])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no safetensors file, or is cut short: {error}") from error


def write_text(path: Path, text: str) -> Path:
    """Write a text file, whole or not at all; return where."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_text(text))
    return path


def slug(name: str) -> str:
    """Return a name as it stands in file names: what is no letter, digit, dot or underscore becomes an underscore."""
    return re.sub(r"[^\w.]+", "_", name)


def differences(before: dict, now: dict) -> list[str]:
    """Return how parameters differ, one text each; those of ON_THE_WAY do not count."""
    keys = [key for key in before | now if key not in ON_THE_WAY]
    return [f"{key}={before.get(key)!r}, not {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
