"""A run on disk: a folder, outputs/STUDY/runs/NAME, whose config.json says which steps made what is there.

A run goes through the steps train, embed, cluster, evaluate. config.json keeps, for each step done, its parameters, its
seconds, the SHA-256 of the weights it worked on and, where an artefact is a folder, the files in it. A step is done
when its artefacts are there, were made with the same parameters, and from the weights that are there now.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from time import perf_counter

from oodlib.files import differences, resolve, slug, write_atomically

IMAGE_SCORES = "image_scores.npz"
ARTEFACTS = {  # what each step writes
    "train": ("history.csv", "encoder.safetensors"),
    "embed": ("embeddings", "epochs.csv"),
    "cluster": ("clusters.csv", "clusters.npz", "projection.csv"),
    "evaluate": (
        "metrics.csv",
        "scores.csv",
        IMAGE_SCORES,
        "intervals.csv",
        "risk_coverage.csv",
        "false_alarms.csv",
        "choices.csv",
    ),
}
NO_STUDIES = ("reported", "benchmarks")  # folders of outputs/ that hold no study's runs


def run_name(id_dataset: str, arch: str, objective: str, seed: int) -> str:
    """Return the name of a run, ID-ARCH-OBJECTIVE-sSEED."""
    return f"{slug(id_dataset)}-{slug(arch)}-{objective}-s{seed}"


def study_folder(study: str) -> Path:
    """Return the folder of a study's outputs. Raises ValueError for a name that is no plain folder name, or taken."""
    if study in NO_STUDIES:
        raise ValueError(f"a study cannot be called {study!r}: that folder of outputs/ is taken")
    if not re.fullmatch(r"\w[\w.-]*", study):
        raise ValueError(f"a study's name may hold letters, digits, '.', '_' and '-' only, got {study!r}")
    return resolve("outputs") / study


class Run:
    """One run's folder and its record."""

    def __init__(self, study: str, name: str):
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise ValueError(f"a run's name may hold letters, digits, '.', '_' and '-' only, got {name!r}")
        self.study, self.name = study, name
        self.path = study_folder(study) / "runs" / name

    def __repr__(self) -> str:
        return f"Run({self.study!r}, {self.name!r})"

    @property
    def record(self) -> dict:
        """What config.json says; empty where there is none. Raises ValueError for a file that is no JSON."""
        try:
            return json.loads((self.path / "config.json").read_text())
        except FileNotFoundError:
            return {}
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{self.path / 'config.json'} is no JSON ({error}); delete it to start the run anew"
            ) from error

    def embeddings_path(self, dataset: str, split: str) -> Path:
        """Return where the embeddings of a set are."""
        return self.path / "embeddings" / f"{slug(dataset)}-{split}.npz"

    def weights(self) -> str:
        """Return the SHA-256 of the weights, empty where there are none."""
        path = self.path / "encoder.safetensors"
        if not path.is_file():
            return ""
        stat = path.stat()
        return _sha256(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)

    def is_done(self, step: str, parameters: dict) -> bool:
        """Return whether a step need not run again.

        Raises ValueError naming the difference when its artefacts were made with other parameters, or when the weights
        are not those that training wrote.
        """
        record = self.record.get(step)
        if record is None:
            return False
        self._check_same(step, record["parameters"], parameters)
        if not all((self.path / name).exists() for name in (*ARTEFACTS[step], *record["files"])):
            return False
        if step == "train" and record["weights"] != self.weights():
            raise ValueError(
                f"{self.path / 'encoder.safetensors'} is not the file that training wrote: cut short or replaced; "
                "delete it to train again"
            )
        return record["weights"] == self.weights()

    def _check_same(self, step: str, before: dict, now: dict) -> None:
        if different := differences(before, now):
            raise ValueError(
                f"step {step!r} of run {self.name!r} in study {self.study!r} was made with {'; '.join(different)}. "
                f"Give the new one another study name, or delete {self.path}"
            )

    @contextmanager
    def doing(self, step: str, parameters: dict) -> Iterator[dict]:
        """Time a step and record it once its artefacts are written; a step cut short leaves no record.

        The dictionary it gives takes what else the record shall say.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._write({key: value for key, value in self.record.items() if key != step})
        start = perf_counter()
        about = {}
        yield about
        seconds = round(perf_counter() - start, 3)
        folders = [self.path / name for name in ARTEFACTS[step] if (self.path / name).is_dir()]
        files = sorted(str(file.relative_to(self.path)) for folder in folders for file in folder.iterdir())
        done = {"parameters": parameters, "seconds": seconds, "weights": self.weights(), "files": files} | about
        self._write(self.record | {step: done})

    def _write(self, record: dict) -> None:
        text = json.dumps({"run": self.name} | record, indent=1) + "\n"
        write_atomically(self.path / "config.json", lambda temporary: temporary.write_text(text))


@cache
def _sha256(path: Path, *state: int) -> str:
    """Return a file's SHA-256; `state` tells one content from the next, so that each is read once in a process."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
