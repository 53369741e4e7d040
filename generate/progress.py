"""How far a long run is: bars on a terminal; elsewhere a line a batch, and one of its steps now and then."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import TypeVar

from tqdm import tqdm

STEPS_EVERY_S = 10.0  # a batch that is done sooner prints nothing of its steps
WIDTH = 100  # of a bar, characters

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether bars are drawn: who reads a file or a pipe gets lines."""
    return sys.stderr.isatty()


class Progress:
    """Tells after every batch the pairs done, the rate, the time left, and when that is.

    printed: whether this process tells it.
    """

    def __init__(self, total: int, printed: bool) -> None:
        self.total = total
        self.printed = printed
        self.done = 0
        self.began = time.monotonic()
        self.bar = tqdm(
            total=total, desc="pairs", unit="pair", ncols=WIDTH, disable=not (printed and on_terminal())
        )

    def advance(self, count: int) -> None:
        """`count` more inputs are done."""
        self.done += count
        self.bar.update(count)
        if self.done >= self.total:
            self.bar.close()
        if not self.printed or on_terminal():
            return
        seconds = (time.monotonic() - self.began) / self.done
        left = timedelta(seconds=seconds * (self.total - self.done))
        print(
            f"  {self.done}/{self.total} pairs, {seconds:.2f} s a pair, "
            f"{left.total_seconds() / 60:.1f} min left, until {datetime.now() + left:%a %H:%M}",
            flush=True,
        )


def told(name: str, steps: Sequence[Item]) -> Iterator[Item]:
    """The steps of a pass over a batch, one by one; the first process tells how far it is.

    A GPU works behind what it is asked for: there it is told a little early.
    """
    if os.environ.get("RANK", "0") != "0":
        yield from steps
    elif on_terminal():
        yield from tqdm(steps, desc=f"  {name}", unit="step", ncols=WIDTH, leave=False)
    else:
        yield from _told_in_lines(name, steps)


def _told_in_lines(name: str, steps: Sequence[Item]) -> Iterator[Item]:
    began = time.monotonic()
    last = began
    for count, step in enumerate(steps, start=1):
        yield step
        now = time.monotonic()
        if now - last >= STEPS_EVERY_S:
            last = now
            seconds = (now - began) / count
            left = seconds * (len(steps) - count) / 60
            print(
                f"    {name}: step {count} of {len(steps)}, {seconds:.1f} s a step, "
                f"{left:.1f} min left of it",
                flush=True,
            )
