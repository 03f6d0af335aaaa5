"""Paths and whole files: a path as the user wrote it goes in, an absolute path or a complete file on disk comes out."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path


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


def write_atomically(path: str | Path, writer: Callable[[Path], object]) -> None:
    """Write a file so that `path` always holds the old content or the whole new one, never a part.

    `writer(temporary)` writes to a temporary name in the same folder (made if missing), which is then renamed. The name
    differs between processes, also of several machines on one file system, so the last to finish wins whole. It keeps
    the suffix, because numpy and matplotlib choose by it. If the writer fails the temporary file is removed and its
    error passes on.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.partial-{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        writer(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # after a successful rename there is nothing left to remove


def remove_partial_files(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of the files `name`, without suffix, in a folder; none may be writing them."""
    for left in folder.glob(f"{name}.partial-*"):
        left.unlink(missing_ok=True)
