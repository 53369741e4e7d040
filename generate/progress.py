"""What a long run prints: a line for every batch, and within a batch one every few seconds."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

STEPS_EVERY_S = 10.0  # a batch that is done sooner prints nothing of its steps

Item = TypeVar("Item")


class Progress:
    """Prints a line for every batch: the pairs done, the rate, the time left, and when that is."""

    def __init__(self, total: int, printed: bool) -> None:
        self.total = total
        self.printed = printed
        self.done = 0
        self.began = time.monotonic()

    def advance(self, count: int) -> None:
        """`count` more inputs are done."""
        self.done += count
        seconds = (time.monotonic() - self.began) / self.done
        left = timedelta(seconds=seconds * (self.total - self.done))
        if self.printed:
            print(
                f"  {self.done}/{self.total} pairs, {seconds:.2f} s a pair, "
                f"{left.total_seconds() / 60:.1f} min left, until {datetime.now() + left:%a %H:%M}",
                flush=True,
            )


def told(name: str, steps: Sequence[Item]) -> Iterator[Item]:
    """The steps of a pass over a batch, one by one; the first process prints how far it is.

    A GPU works behind what it is asked for: there the lines come a little early.
    """
    began = time.monotonic()
    last = began
    for count, step in enumerate(steps, start=1):
        yield step
        now = time.monotonic()
        if now - last >= STEPS_EVERY_S and os.environ.get("RANK", "0") == "0":
            last = now
            seconds = (now - began) / count
            left = seconds * (len(steps) - count) / 60
            print(
                f"    {name}: step {count} of {len(steps)}, {seconds:.1f} s a step, "
                f"{left:.1f} min left of it",
                flush=True,
            )
