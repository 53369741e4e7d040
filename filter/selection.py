"""Which pairs are good enough: pure arithmetic on the stored scores, so another selection costs nothing."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from configs.errors import UserError
from configs.loader import nearest
from configs.schema import Config
from filter.score_table import FLAGS, OVERLAP_SCORES, SCORES

Row = Mapping[str, Any]
ALIASES = {"overlap": "overlap_iou"}
SYNTAX = "SCORE=LOW, SCORE=LOW:HIGH, SCORE=:HIGH, keep=SHARE or by=SCORE"


@dataclass(frozen=True)
class Criteria:
    """What a pair must have: raw scores within bounds, a place among the best `keep` (a share) `by` a score ('-NAME': low is good), and no
    flag of `reject`.
    """

    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    keep: float | None = None
    by: str = "clip_gain"
    reject: Sequence[str] = ()

    def __str__(self) -> str:
        parts = [f"{name} >= {low:g}" for name, low in self.at_least.items()]
        parts += [f"{name} <= {high:g}" for name, high in self.at_most.items()]
        parts += [f"the best {100 * self.keep:g}% by {self.by}"] if self.keep is not None else []
        return ", ".join(parts + [f"not {flag}" for flag in self.reject]) or "everything"


def criteria(config: Config) -> Criteria:
    """filter.select's, or the task's own thresholds where it is empty. UserError for what cannot be selected by."""
    task, settings = config.task, config.filter
    unknown = [flag for flag in settings.reject if flag not in FLAGS]
    if unknown:
        raise UserError(f"filter.reject: no flag '{unknown[0]}'. There are: {', '.join(FLAGS)}")
    if settings.select:
        asked = _parse(settings.select, settings.reject)
    else:
        limits = {
            "clip_gain": task.clip_gain and task.clip_gain * config.scorer.gain_unit,
            "overlap_iou": task.overlap,
        }
        asked = Criteria(
            {name: limit for name, limit in limits.items() if limit is not None}, reject=settings.reject
        )
    masked = [
        name
        for name in (*asked.at_least, *asked.at_most, asked.by.removeprefix("-"))
        if name in OVERLAP_SCORES
    ]
    if masked and not (task.source_noun and task.target_noun):
        raise UserError(
            f"{masked[0]} needs masks: set task.source_noun and task.target_noun, or ask for no overlap (task.overlap=null)"
        )
    return asked


def _parse(items: Sequence[str], reject: Sequence[str]) -> Criteria:
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}
    keep, by = None, ""
    for item in items:
        name, _, value = item.partition("=")
        if name == "keep":
            keep = _number(item, value or "0")
            if not 0 < keep <= 1:
                raise UserError(f"--select {item}: a share above 0 and up to 1, as keep=0.6")
        elif name == "by":
            by = ("-" if value.startswith("-") else "") + _score(value.removeprefix("-"))
        elif not value.strip(":"):
            raise UserError(f"--select {item}: it is {SYNTAX}")
        else:
            for limits, limit in zip((at_least, at_most), value.split(":", 1), strict=False):
                if limit:
                    limits[_score(name)] = _number(item, limit)
    if by and keep is None:
        raise UserError(f"--select by={by} says by what, but not how many: add keep=0.6")
    return Criteria(at_least, at_most, keep, by or "clip_gain", reject)


def _score(name: str) -> str:
    if ALIASES.get(name, name) not in SCORES:
        raise UserError(
            f"--select: no score '{name}'{nearest(name, SCORES)} There are: overlap, {', '.join(SCORES)}"
        )
    return ALIASES.get(name, name)


def _number(item: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--select {item}: '{text}' is no number; it is {SYNTAX}") from error


def select(table: Sequence[Row], asked: Criteria) -> tuple[list[str], dict[str, str]]:
    """The keys that pass, in the table's order, and the others with the reason of each.

    table: rows with 'key', the scores and optionally 'flags'. A score that is null or NaN passes no bound and is in no share.
    """
    best = {row["key"] for row in _best(table, asked)}
    dropped = {row["key"]: reason for row in table if (reason := _reason(row, asked, best))}
    return [row["key"] for row in table if row["key"] not in dropped], dropped


def _best(table: Sequence[Row], asked: Criteria) -> Sequence[Row]:
    """The best `keep` of all pairs (of equals the first), best first; where no share is asked for, all."""
    if asked.keep is None:
        return table
    sign, name = 1 if asked.by.startswith("-") else -1, asked.by.removeprefix("-")
    ranked = sorted((row for row in table if not _missing(name, row)), key=lambda row: sign * row[name])
    return ranked[: round(asked.keep * len(table))]


def down_to(table: Sequence[Row], asked: Criteria) -> float | None:
    """The score of the last of the best `keep`; None where no share is asked for, and of an empty table."""
    best = _best(table, asked)
    return None if asked.keep is None or not best else best[-1][asked.by.removeprefix("-")]


def _reason(row: Row, asked: Criteria, best: Collection[str]) -> str:
    """Why the row is dropped; '' where it is kept."""
    for flag in asked.reject:
        if flag in row.get("flags", ()):
            return f"flagged {flag}"
    for limits, sign, side in ((asked.at_least, 1, "below"), (asked.at_most, -1, "above")):
        for name, limit in limits.items():
            if _missing(name, row) or sign * row[name] < sign * limit:
                return _missing(name, row) or f"{name} {row[name]:.4f} {side} {limit:g}"
    if row["key"] not in best:
        return (
            _missing(asked.by.removeprefix("-"), row)
            or f"not in the best {100 * (asked.keep or 0):g}% by {asked.by}"
        )
    return ""


def _missing(name: str, row: Row) -> str:
    """Why the row has no such score; '' where it has one."""
    if row[name] is not None and row[name] == row[name]:
        return ""
    return "no foreground" if name in OVERLAP_SCORES else f"no {name}"


def selection_of(table: Sequence[Row], asked: Criteria) -> dict[str, Any]:
    """The content of selection.json: 'thresholds' (lower bounds; 'clip_gain' and 'overlap' always there), 'at_most', 'keep', 'reject',
    'kept', 'dropped' (key to reason), 'total', 'yield' (the share kept; 0 of an empty table) and 'flags' (how many pairs have each).
    """
    kept, dropped = select(table, asked)
    lows = {"overlap" if name == "overlap_iou" else name: low for name, low in asked.at_least.items()}
    return {
        "thresholds": {"clip_gain": None, "overlap": None, **lows},
        "at_most": asked.at_most,
        "keep": asked.keep and {"share": asked.keep, "by": asked.by, "down_to": down_to(table, asked)},
        "reject": asked.reject,
        "kept": kept,
        "dropped": dropped,
        "total": len(table),
        "yield": len(kept) / len(table) if table else 0.0,
        "flags": {flag: sum(flag in row.get("flags", ()) for row in table) for flag in FLAGS},
    }
