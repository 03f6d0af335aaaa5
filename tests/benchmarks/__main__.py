"""Run the benchmarks: python tests/benchmarks [NAME ...] [--scale S] writes tables to outputs/benchmarks.

Each benchmark runs in a process of its own and belongs to one table, factors, training or deployment, where its row
replaces the one with the same key.
"""

import argparse
import json
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import deployment
import factors
import pandas as pd
import torch
import training

from oodlib.device import default_device, describe_machine, has_fast_bfloat16
from oodlib.files import resolve, write_text

TABLES = {
    "factors": {
        "benchmarks": factors.BENCHMARKS,
        "key": ["benchmark", "data", "other", "kind"],
        "columns": [
            "ours_seconds",
            "other_seconds",
            "ratio",
            "lowest_ratio",
            "repeats",
            "floor_seconds",
            "floor_share",
            "megabytes",
            "difference",
            "rank_correlation",
            "inertia",
            "inertia_other",
            "log_likelihood",
            "log_likelihood_other",
        ],
    },
    "training": {
        "benchmarks": training.BENCHMARKS,
        "key": ["benchmark", "data", "network", "batch", "device", "kind"],
        "columns": [
            "other",
            "ours_images_per_second",
            "other_images_per_second",
            "ratio",
            "lowest_ratio",
            "repeats",
            "hundred_epochs_seconds",
        ],
    },
    "deployment": {
        "benchmarks": deployment.BENCHMARKS,
        "key": ["benchmark", "data", "network", "batch", "device", "kind"],
        "columns": [
            "other",
            "ours_milliseconds",
            "other_milliseconds",
            "ours_images_per_second",
            "other_images_per_second",
            "ratio",
            "lowest_ratio",
            "repeats",
        ],
    },
}
PEERS = ("faiss-cpu", "pytorch-ood", "kornia", "torchvision")
TABLE_OF = {benchmark: name for name, table in TABLES.items() for benchmark in table["benchmarks"]}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory, side by side with other libraries.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(TABLE_OF)}; all where none is given")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - TABLE_OF.keys():
        parser.error(f"unknown benchmark {unknown.pop()!r}; known: {', '.join(TABLE_OF)}")
    for name in arguments.names or TABLE_OF:
        if arguments.in_process:
            for row in TABLES[TABLE_OF[name]]["benchmarks"][name](arguments.scale):
                print(json.dumps(row, default=float), flush=True)
        else:
            record(name, arguments.scale)


def record(name: str, scale: float) -> None:
    """Run one benchmark in a process of its own and bring its table up to date."""
    command = [sys.executable, str(Path(__file__).parent), name, "--scale", str(scale), "--in-process"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            rows.append(json.loads(line))
    if process.returncode:
        sys.exit(f"benchmark {name} failed")
    if rows and scale == 1:
        write(TABLE_OF[name], pd.DataFrame(rows))


def write(name: str, rows: pd.DataFrame) -> None:
    """Merge rows into the table on disk, and write it anew as csv and markdown.

    `kind` is that of the processor: "bfloat16" where it multiplies bfloat16 numbers, else its vector instructions.
    """
    fast = has_fast_bfloat16(torch.device("cpu"))
    folder, key = resolve("outputs") / "benchmarks", TABLES[name]["key"]
    rows = rows.assign(kind="bfloat16" if fast else torch.backends.cpu.get_cpu_capability())
    rows = rows.reindex(columns=key + TABLES[name]["columns"])
    path = folder / f"{name}.csv"
    before = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=key)
    is_new = before.set_index(key).index.isin(rows.set_index(key).index)
    table = pd.concat([before[~is_new], rows])
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    readable = table.map(lambda cell: "" if pd.isna(cell) else f"{cell:.4g}" if isinstance(cell, float) else cell)
    machine = describe_machine(default_device() if name == "training" else torch.device("cpu")) | peers()
    text = f"{readable.to_markdown(index=False, disable_numparse=True)}\n\n{json.dumps(machine)}\n"
    write_text(folder / f"{name}.md", text)


def peers() -> dict[str, str]:
    """Return the versions of what is compared with, where it is installed."""
    found = {}
    for name in PEERS:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


if __name__ == "__main__":  # workers of a DataLoader may import this file
    main()
