"""A key of the configuration: its default, its help text and the values it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """The values that a key takes; None and () where there is no such limit."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()

    def allow(self, value: Any) -> bool:
        """Whether the value, or every one of a list or a dictionary, is within the limits; no number is
        infinite.
        """
        if isinstance(value, list):
            return all(self.allow(item) for item in value)
        if isinstance(value, dict):
            return all(self.allow(item) for item in value.values())
        if isinstance(value, float) and not math.isfinite(value):
            return False
        if value is None:
            return True
        if self.choices:
            return value in self.choices
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        """In words: 'from 0 to below 1', 'float32 or bfloat16'; empty where there are none."""
        if self.choices:
            *others, last = self.choices
            return f"{', '.join(others)} or {last}" if others else last
        low = f"above {self.above:g}" if self.above is not None else ""
        low = f"{self.at_least:g}" if self.at_least is not None else low
        high = f"below {self.below:g}" if self.below is not None else ""
        high = f"{self.at_most:g}" if self.at_most is not None else high
        if low and high:
            return f"{low}, to {high}" if self.at_least is None else f"from {low} to {high}"
        if low:
            return low if self.at_least is None else f"{low} or more"
        return f"at most {high}" if high else ""


def option(
    default: Any,
    text: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    first: bool = False,
) -> Any:
    """A field with its help text and its limits, which configs/loader.py checks and --help shows.

    The limits hold for a number or text, and for every one in a list; None is always allowed where the type
    allows it. A mutable default is copied for each instance. first: among those that people change first,
    which --help shows without being asked for all.
    """
    limits = Limits(at_least, above, at_most, below, tuple(choices))
    return field(
        default_factory=lambda: copy(default), metadata={"help": text, "limits": limits, "first": first}
    )
