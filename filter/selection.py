"""Which pairs are good enough: pure arithmetic on the stored scores, so another selection costs
nothing.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.files import find_file
from configs.loader import nearest
from configs.schema import Config
from filter.score_table import FLAGS, GENERATOR_SCORES, OVERLAP_SCORES, SCORES

Row = Mapping[str, Any]  # 'key', the scores, and 'flags' where there are any
ALIASES = {"overlap": "overlap_iou"}
VETOED = "vetoed"  # the reason why such a pair is dropped
SYNTAX = "SCORE=LOW, SCORE=LOW:HIGH, SCORE=:HIGH, keep=SHARE, by=SCORE or veto=FILE"


@dataclass(frozen=True)
class Criteria:
    """What a pair must have to be kept; all of it.

    at_least, at_most: bounds on raw scores, by name. keep: the pair is among this share of all
    pairs, the best by the score `by`; None: no share. by: the score's name, which is good where it
    is high, or with a '-' before it where it is low. reject: none of these flags.
    """

    at_least: Mapping[str, float] = field(default_factory=dict)
    at_most: Mapping[str, float] = field(default_factory=dict)
    keep: float | None = None
    by: str = "clip_gain"
    reject: Sequence[str] = ()
    veto: Sequence[str] = ()
    veto_file: str = ""

    @property
    def by_score(self) -> str:
        """The name of the score that ranks the pairs."""
        return self.by.removeprefix("-")

    @property
    def low_is_good(self) -> bool:
        """Whether the lowest of that score are the best."""
        return self.by.startswith("-")

    def __str__(self) -> str:
        parts = []
        for name, low in self.at_least.items():
            parts.append(f"{name} >= {low:g}")
        for name, high in self.at_most.items():
            parts.append(f"{name} <= {high:g}")
        if self.keep is not None:
            parts.append(f"the best {100 * self.keep:g}% by {self.by}")
        for flag in self.reject:
            parts.append(f"not {flag}")
        if self.veto:
            parts.append(f"not the {len(self.veto)} of {self.veto_file}")
        return ", ".join(parts) or "everything"


def criteria(config: Config) -> Criteria:
    """Those of filter.select, or the task's own thresholds where it is empty.

    UserError for what cannot be selected by.
    """
    if config.filter.select:
        chosen = parse(config.filter.select, config.filter.reject)
    else:
        chosen = task_thresholds(config)
    bounded = [*chosen.at_least, *chosen.at_most, chosen.by_score]
    need_masks = [name for name in bounded if name in OVERLAP_SCORES]
    if need_masks and not (config.task.source_noun and config.task.target_noun):
        raise UserError(
            f"{need_masks[0]} needs masks: set task.source_noun and task.target_noun,"
            " or ask for no overlap (task.overlap=null)"
        )
    need_generator = [name for name in bounded if name in GENERATOR_SCORES]
    if need_generator and not config.filter.generator:
        raise UserError(
            f"{need_generator[0]} needs a generator: set filter.generator to an exported generator.onnx"
        )
    return chosen


def task_thresholds(config: Config) -> Criteria:
    """The task's own bounds: task.clip_gain, in the units of the paper's CLIP, and task.overlap."""
    at_least = {}
    if config.task.clip_gain is not None:
        at_least["clip_gain"] = config.task.clip_gain * config.scorer.gain_unit
    if config.task.overlap is not None:
        at_least["overlap_iou"] = config.task.overlap
    return Criteria(at_least, reject=config.filter.reject)


def parse(items: Sequence[str], reject: Sequence[str]) -> Criteria:
    """The criteria of --select's items. UserError for an item that is not as SYNTAX says."""
    at_least: dict[str, float] = {}
    at_most: dict[str, float] = {}
    keep = None
    by = ""
    veto_file = ""
    for item in items:
        name, _, value = item.partition("=")
        if name == "keep":
            keep = _share(item, value)
        elif name == "by":
            sign = "-" if value.startswith("-") else ""
            by = sign + _score(value.removeprefix("-"))
        elif name == "veto" and value:
            veto_file = value
        elif value.strip(":"):
            low, _, high = value.partition(":")
            if low:
                at_least[_score(name)] = _number(item, low)
            if high:
                at_most[_score(name)] = _number(item, high)
            if low and high and _number(item, low) > _number(item, high):
                raise UserError(f"--select {item}: no score is above the first and below the second")
        else:
            raise UserError(f"--select {item}: it is {SYNTAX}")
    if by and keep is None:
        raise UserError(f"--select by={by} says by what, but not how many: add keep=0.6")
    veto = read_veto(veto_file) if veto_file else []
    return Criteria(at_least, at_most, keep, by or "clip_gain", reject, veto, veto_file)


def read_veto(name: str) -> list[str]:
    """The keys in a text file, one a line; empty lines and those that begin with # count for nothing.

    UserError where the file cannot be read or holds no text.
    """
    path = Path(find_file(str(Path(name).expanduser())))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:  # a ValueError: the bytes are no text
        raise UserError(
            f"--select veto={name} cannot be read ({error}): it is a text file with a pair's key a line,"
            " as filter.html saves it"
        ) from error
    keys = [line.strip() for line in lines]
    return list(dict.fromkeys(key for key in keys if key and not key.startswith("#")))


def unknown_veto(table: Sequence[Row], criteria: Criteria) -> list[str]:
    """The vetoed keys that no row has. UserError where that is all of them: it is another run's file."""
    known = {row["key"] for row in table}
    unknown = [key for key in criteria.veto if key not in known]
    if unknown and len(unknown) == len(criteria.veto):
        raise UserError(
            f"--select veto={criteria.veto_file} names no pair of this run ('{unknown[0]}', ...): it holds a"
            " pair's key a line, as this run's filter.html saves it"
        )
    return unknown


def _share(item: str, text: str) -> float:
    share = _number(item, text or "0")
    if not 0 < share <= 1:
        raise UserError(f"--select {item}: a share above 0 and up to 1, as keep=0.6")
    return share


def _score(name: str) -> str:
    """The full name of a score."""
    full = ALIASES.get(name, name)
    if full not in SCORES:
        hint = nearest(name, list(SCORES))
        names = ", ".join(["overlap", *SCORES])
        raise UserError(f"--select: no score '{name}'{hint} There are: {names}")
    return full


def _number(item: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise UserError(f"--select {item}: '{text}' is no number; it is {SYNTAX}")
    return number


def select(table: Sequence[Row], criteria: Criteria) -> tuple[list[str], dict[str, str]]:
    """The keys of the pairs that are kept, in the table's order, and key -> reason of the others.

    A score that is null or NaN is within no bound and in no share.
    """
    best = {row["key"] for row in _best(table, criteria)}
    vetoed = frozenset(criteria.veto)
    kept = []
    dropped = {}
    for row in table:
        reason = VETOED if row["key"] in vetoed else _reason(row, criteria, best)
        if reason:
            dropped[row["key"]] = reason
        else:
            kept.append(row["key"])
    return kept, dropped


def _best(table: Sequence[Row], criteria: Criteria) -> Sequence[Row]:
    """The best `keep` of all pairs, best first, of equals the first; the whole table without a share."""
    if criteria.keep is None:
        return table
    known = [row for row in table if _has(row, criteria.by_score)]
    ranked = sorted(known, key=itemgetter(criteria.by_score), reverse=not criteria.low_is_good)
    return ranked[: round(criteria.keep * len(table))]


def down_to(table: Sequence[Row], criteria: Criteria) -> float | None:
    """The score of the last of the best `keep`; None without such a share, and of an empty one."""
    best = _best(table, criteria)
    if criteria.keep is None or not best:
        return None
    return best[-1][criteria.by_score]


def _reason(row: Row, criteria: Criteria, best: Collection[str]) -> str:
    """Why the row is dropped; '' where it is kept. best: the keys of the share."""
    for flag in criteria.reject:
        if flag in row.get("flags", ()):
            return f"flagged {flag}"
    for name, low in criteria.at_least.items():
        if not _has(row, name):
            return _missing(name)
        if row[name] < low:
            return f"{name} {row[name]:.4f} below {low:g}"
    for name, high in criteria.at_most.items():
        if not _has(row, name):
            return _missing(name)
        if row[name] > high:
            return f"{name} {row[name]:.4f} above {high:g}"
    if row["key"] not in best:
        if not _has(row, criteria.by_score):
            return _missing(criteria.by_score)
        return f"not in the best {100 * (criteria.keep or 0):g}% by {criteria.by}"
    return ""


def _has(row: Row, name: str) -> bool:
    """Whether the row has this score: it is neither None nor NaN, which is unlike itself."""
    return row[name] is not None and row[name] == row[name]


def _missing(name: str) -> str:
    return "no foreground" if name in OVERLAP_SCORES else f"no {name}"


def selection_of(table: Sequence[Row], criteria: Criteria) -> dict[str, Any]:
    """The content of selection.json.

    'thresholds': lower bounds, 'clip_gain' and 'overlap' always there. 'at_most': upper bounds.
    'keep': the share asked for, by which score, and the score of its last pair; or None. 'reject':
    flags. 'veto': the vetoed keys of the table. 'kept': keys. 'dropped': key to reason. 'total': of
    all pairs. 'yield': the share kept, 0 of an empty table. 'flags': how many pairs have each.
    """
    kept, dropped = select(table, criteria)
    thresholds: dict[str, float | None] = {"clip_gain": None, "overlap": None}
    for name, low in criteria.at_least.items():
        thresholds["overlap" if name == "overlap_iou" else name] = low
    keep = None
    if criteria.keep is not None:
        keep = {"share": criteria.keep, "by": criteria.by, "down_to": down_to(table, criteria)}
    flags = dict.fromkeys(FLAGS, 0)
    for row in table:
        for flag in row.get("flags", ()):
            flags[flag] += 1
    return {
        "thresholds": thresholds,
        "at_most": criteria.at_most,
        "keep": keep,
        "reject": criteria.reject,
        "veto": [key for key, reason in dropped.items() if reason == VETOED],
        "kept": kept,
        "dropped": dropped,
        "total": len(table),
        "yield": len(kept) / len(table) if table else 0.0,
        "flags": flags,
    }
