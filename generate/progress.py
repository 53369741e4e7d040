"""What a long run prints: a line for every batch, and within a batch one every few seconds.

Whoever edits for a screen watches instead: `watching` gets every step, and what each step predicts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

STEPS_EVERY_S = 10.0  # a batch that is done sooner prints nothing of its steps

Item = TypeVar("Item")


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
    watcher = _watcher.get()
    for count, step in enumerate(steps, start=1):
        yield step
        if watcher:
            watcher.stepped(name, count, len(steps))
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
