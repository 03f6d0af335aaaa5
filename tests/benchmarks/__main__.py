"""Run the benchmarks: python tests/benchmarks [NAME ...] [--scale S] writes outputs/benchmarks/factors.{csv,md,png}.

Each benchmark runs in a process of its own. A row replaces the one of the same benchmark and data in the table.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
import torch
from factors import BENCHMARKS

from oodlib.device import describe_machine
from oodlib.figures import save_figure, use_style
from oodlib.files import resolve
from oodlib.report import write_text

COLUMNS = [
    "benchmark",
    "data",
    "other",
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
    "log_likelihood",
    "log_likelihood_other",
]


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory, side by side with other libraries.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(BENCHMARKS)}; all where none is given")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - BENCHMARKS.keys():
        parser.error(f"unknown benchmark {unknown.pop()!r}; known: {', '.join(BENCHMARKS)}")
    for name in arguments.names or BENCHMARKS:
        if arguments.in_process:
            for row in BENCHMARKS[name](arguments.scale):
                print(json.dumps(row, default=float), flush=True)
        else:
            record(name, arguments.scale)


def record(name: str, scale: float) -> None:
    """Run one benchmark in a process of its own and bring the table up to date."""
    command = [sys.executable, str(Path(__file__).parent), name, "--scale", str(scale), "--in-process"]
    rows = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            print(line, end="", flush=True)
            rows.append(json.loads(line))
    if process.returncode:
        sys.exit(f"benchmark {name} failed")
    if scale == 1:
        write(pd.DataFrame(rows))


def write(rows: pd.DataFrame) -> None:
    """Merge rows into the table on disk, and write it anew as csv, markdown and a figure."""
    folder = resolve("outputs") / "benchmarks"
    path = folder / "factors.csv"
    before = pd.read_csv(path) if path.is_file() else pd.DataFrame(columns=["benchmark", "data"])
    is_new = before.set_index(["benchmark", "data"]).index.isin(rows.set_index(["benchmark", "data"]).index)
    table = pd.concat([before[~is_new], rows]).reindex(columns=COLUMNS)
    write_text(path, table.to_csv(index=False, float_format="%.6g"))
    readable = table.map(lambda cell: "" if pd.isna(cell) else f"{cell:.4g}" if isinstance(cell, float) else cell)
    machine = describe_machine(torch.device("cpu"))
    text = f"{readable.to_markdown(index=False, disable_numparse=True)}\n\n{json.dumps(machine)}\n"
    write_text(folder / "factors.md", text)
    draw(table[table.ratio.notna()], folder)


def draw(table: pd.DataFrame, folder: Path) -> None:
    """Draw how many times faster each benchmark is."""
    use_style()
    names = table.benchmark + " (" + table.data + ")\nagainst " + table.other
    figure, axis = plt.subplots(figsize=(7, 0.5 * len(table) + 1.2), layout="constrained")
    sns.barplot(x=table.ratio, y=names, ax=axis, color="C0")
    axis.bar_label(axis.containers[0], fmt="%.1f ×", padding=3)
    axis.axvline(1, color="0.3", linewidth=1)
    axis.set(xlabel="times faster", ylabel="")
    axis.margins(x=0.15)
    save_figure(figure, folder, "factors")


main()
