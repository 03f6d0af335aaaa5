"""Functions in; their times, taken in turns, and their memory out. Embeddings of stated tightness to run them on."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np

PAGE = 4096


def embeddings(n: int, d: int, n_classes: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n unit vectors (n, d) float32 around class centres of length one, and their classes.

    `noise` is the length of what is added to a centre: 0.3 makes tight classes, 1 loose ones. The centres do not
    depend on the seed.
    """
    centers = np.random.default_rng(0).standard_normal((n_classes, d))
    centers /= np.linalg.norm(centers, axis=1, keepdims=True)
    rng = np.random.default_rng([1, seed])
    y = rng.integers(n_classes, size=n)
    z = centers[y] + noise / np.sqrt(d) * rng.standard_normal((n, d))
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32), y


def take_turns(functions: dict[str, Callable[[], object]], repeats: int) -> tuple[dict[str, list[float]], dict]:
    """Return the seconds of every run of every function, run in turns, and what each returned last."""
    seconds, results = {name: [] for name in functions}, {}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            results[name] = function()
            seconds[name].append(time.perf_counter() - start)
    return seconds, results


def compare(
    ours: Callable, other: Callable, repeats: int, floor: Callable | None = None
) -> tuple[dict, object, object]:
    """Return a row of medians, the ratio other / ours as the median of the turns, and what both returned last.

    floor: the matrix products that cannot be done without; `floor_share` is its time over ours.
    """
    functions = {"ours": ours, "other": other} | ({"floor": floor} if floor else {})
    seconds, results = take_turns(functions, repeats)
    ratios = [b / a for a, b in zip(seconds["ours"], seconds["other"], strict=True)]
    row = {f"{name}_seconds": round(median(times), 3) for name, times in seconds.items()}
    row |= {"ratio": round(median(ratios), 2), "lowest_ratio": round(min(ratios), 2), "repeats": repeats}
    if floor:
        shares = [b / a for a, b in zip(seconds["ours"], seconds["floor"], strict=True)]
        row["floor_share"] = round(median(shares), 2)
    return row, results["ours"], results["other"]


def compare_rates(ours: Callable, other: Callable, images: int, repeats: int) -> dict:
    """Return a row of images per second, and the ratio ours / other as the median of the turns.

    images: how many each handles in a turn. Both run once before, so that what is set up once is not timed.
    """
    take_turns({"ours": ours, "other": other}, 1)
    row, _, _ = compare(ours, other, repeats)
    rates = {f"{name}_images_per_second": round(images / row.pop(f"{name}_seconds")) for name in ("ours", "other")}
    return rates | row


def resident() -> float:
    """Return the resident memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


def growth(function: Callable[[], object]) -> float:
    """Return by how many MB the resident memory rises at most while a function runs."""
    before, highest, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest[0] = max(highest[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        function()
    finally:
        done.set()
        watcher.join()
    return highest[0]
