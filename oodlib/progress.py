"""Progress: what long work is at, and about how long it will take yet, on standard error; and loading beside work."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

EVERY = 4  # seconds between two lines
BATCH = 64  # images that are decoded and embedded at a time
Key, Loaded = TypeVar("Key"), TypeVar("Loaded")


class Progress:
    """Say now and then how many of `total` steps of a kind of work are done."""

    def __init__(self, what: str, total: int):
        self.what, self.total, self.done = what, total, 0
        self.start = self.said = time.monotonic()

    def step(self, n: int = 1) -> None:
        """Count n more steps as done."""
        self.done += n
        now = time.monotonic()
        if now - self.said >= EVERY and self.done < self.total:
            self.said = now
            left = (now - self.start) * (self.total - self.done) / self.done
            say(f"{self.what}: {self.done:,} of {self.total:,}, about {_minutes(left)} left")


def say(text: str) -> None:
    """Print a line on standard error."""
    print(text, file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def loaded_ahead(load: Callable[[Key], Loaded], keys: Iterable[Key]) -> Iterator[Loaded]:
    """Yield load(key) of each key in order; the next one is loaded in a thread while the caller works on this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = None
        for key in keys:
            here, coming = coming, pool.submit(load, key)
            if here is not None:
                yield here.result()
        if coming is not None:
            yield coming.result()
