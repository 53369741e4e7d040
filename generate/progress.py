"""How far a long run is: bars on a terminal; elsewhere a line a batch, and one of its steps now and then.

Whoever edits for a screen watches instead: `watching` gets every step, and what each step predicts.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

from tqdm import tqdm

if TYPE_CHECKING:
    from torch import Tensor

STEPS_EVERY_S = 10.0  # a batch that is done sooner prints nothing of its steps
WIDTH = 100  # of a bar, characters

Item = TypeVar("Item")


def on_terminal() -> bool:
    """Whether bars are drawn: who reads a file or a pipe gets lines."""
    return sys.stderr.isatty()


class Watcher(Protocol):
    """Who follows the edits of a `watching` block. What it raises ends the edit."""

    def stepped(self, name: str, done: int, total: int) -> None:
        """So many steps of the pass `name`, 'inversion' or 'edit', are done."""

    def predicted(self, latent_BCHW: Tensor, noise_BCHW: Tensor, alpha: float) -> None:
        """The edit's latent at alpha_bar `alpha`, and the noise that is predicted in it."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Tell the watcher of every step of the edits that this thread makes inside the block."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


def tell_prediction(latent_BCHW: Tensor, noise_BCHW: Tensor, alpha: float) -> None:
    """Give the watcher, where there is one, what the edit's step predicts."""
    watcher = _watcher.get()
    if watcher:
        watcher.predicted(latent_BCHW, noise_BCHW, alpha)


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
    watcher = _watcher.get()
    if watcher:
        yield from _watched(name, steps, watcher)
    elif os.environ.get("RANK", "0") != "0":
        yield from steps
    elif on_terminal():
        yield from tqdm(steps, desc=f"  {name}", unit="step", ncols=WIDTH, leave=False)
    else:
        yield from _told_in_lines(name, steps)


def _watched(name: str, steps: Sequence[Item], watcher: Watcher) -> Iterator[Item]:
    for count, step in enumerate(steps, start=1):
        yield step
        watcher.stepped(name, count, len(steps))


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
