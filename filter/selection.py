"""Which pairs are good enough: pure arithmetic on the stored scores, so a new threshold costs nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs.errors import UserError
from configs.schema import Task

Row = Mapping[str, Any]


def thresholds(task: Task, gain_unit: float) -> dict[str, float | None]:
    """{'clip_gain', 'overlap'} in the units of the scores; None: not asked for. UserError for an overlap without
    nouns.
    """
    if task.overlap is not None and not (task.source_noun and task.target_noun):
        raise UserError(f"task.overlap={task.overlap} needs masks: set task.source_noun and task.target_noun, or task.overlap=null")
    return {"clip_gain": None if task.clip_gain is None else task.clip_gain * gain_unit, "overlap": task.overlap}


def select(table: Iterable[Row], clip_gain: float | None, overlap: float | None) -> tuple[list[str], dict[str, str]]:
    """The keys that pass, in the table's order, and the others with the reason of each.

    table: rows with 'key', 'clip_gain' and 'overlap_iou'. A score that is null or NaN passes no threshold that is
    asked for.
    """
    kept: list[str] = []
    dropped: dict[str, str] = {}
    for row in table:
        reason = _reason(row, clip_gain, overlap)
        if reason:
            dropped[row["key"]] = reason
        else:
            kept.append(row["key"])
    return kept, dropped


def _reason(row: Row, clip_gain: float | None, overlap: float | None) -> str:
    gain, iou = row["clip_gain"], row["overlap_iou"]
    if clip_gain is not None and (gain is None or not gain >= clip_gain):
        return "no CLIP score" if gain is None or gain != gain else f"CLIP gain {gain:.4f} below {clip_gain:g}"
    if overlap is not None and (iou is None or not iou >= overlap):
        return "no foreground" if iou is None or iou != iou else f"overlap {iou:.4f} below {overlap:g}"
    return ""


def selection_of(table: Sequence[Row], limits: Mapping[str, float | None]) -> dict[str, Any]:
    """The content of selection.json: thresholds, kept, dropped, total, yield (the share kept; 0 of an empty table)."""
    kept, dropped = select(table, limits["clip_gain"], limits["overlap"])
    total = len(table)
    return {
        "thresholds": dict(limits),
        "kept": kept,
        "dropped": dropped,
        "total": total,
        "yield": len(kept) / total if total else 0.0,
    }
