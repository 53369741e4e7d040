"""Measure the filter against the true edit: precision, recall and yield of its selections.

  python scripts/evaluate_filter.py task=tree2winter

Reads the run's pairs (rendered scenes) and scores; run filter/run.py first. An edit is good where its LPIPS to the true edit is below the
unchanged input's by the share filter.good_margin: it went a stated part of the way that the true edit goes, whatever any scorer says, and
each scene is its own yardstick, as busy scenes are far from everything. Prints for each selection its yield, precision (good among the
kept), recall (kept among the good) and the mean distances to the true edit of what is kept and dropped; writes <run>/filter_truth.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.loader import pairs_dir, run_dir
from configs.schema import Config

SECTIONS = ("task", "teacher", "generate", "scorer", "segmenter", "filter")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)  # of the best by CLIP gain
RIVALS = ("clip_directional", "sim_edit_target", "image_image", "-lpips_input_edit", "sharpness_ratio", "overlap_iou")
RIVAL_SHARE = 0.6  # at which the other scores are compared
BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, lambda config: print_table(evaluate_filter(config)), plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What would be measured."""
    return {"reads": pairs_dir(config), "writes": run_dir(config) / "filter_truth.json"}


def evaluate_filter(config: Config) -> dict[str, Any]:
    """'rows': one a selection (see _row), the configured one last; 'pairs'; 'good' (share); 'correlation' of CLIP gain and LPIPS to truth.

    UserError without a true edit or scores.
    """
    from filter.score_table import read_scores
    from filter.selection import Criteria, criteria, select
    from generate.shards import write_json

    if not config.task.scene_truth:
        raise UserError(f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against")
    asked, table = criteria(config), read_scores(config)
    distances = _distances_to_truth(config)
    measured = np.array([distances[row["key"]] for row in table])
    good = measured[:, 0] <= (1 - config.filter.good_margin) * measured[:, 2]
    scored = {name for name in table[0] if table[0][name] is not None}
    selections = [Criteria(), *(Criteria(keep=share) for share in SHARES)]
    selections += [Criteria(keep=RIVAL_SHARE, by=name) for name in RIVALS if name.removeprefix("-") in scored]
    rows = []
    for selection in [*selections, asked]:
        kept = set(select(table, selection)[0])
        rows.append(_row(str(selection), np.array([row["key"] in kept for row in table]), good, measured))
    gains = np.array([row["clip_gain"] for row in table], np.float64)
    correlation = float(np.corrcoef(gains, measured[:, 0])[0, 1])
    found = {"pairs": len(table), "good": float(good.mean()), "correlation": correlation, "rows": rows}
    write_json(run_dir(config) / "filter_truth.json", found)
    return found


def _distances_to_truth(config: Config) -> dict[str, tuple[float, float, float]]:
    """(LPIPS, PSNR in dB) of each pair's edit to the true edit and LPIPS of its input to it, by key. UserError for pairs of photographs."""
    from generate.shards import read_pairs
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from scripts.evaluate import true_edit
    from scripts.metrics import lpips_distance, psnr

    perceptual = perceptual_loss(pick_device(config.filter.device))
    found: dict[str, tuple[float, float, float]] = {}
    waiting: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]] = []

    def measure() -> None:
        inputs, edits, truths = (np.stack(images) for images in zip(*(images for _, *images in waiting), strict=True))
        columns = lpips_distance(perceptual, edits, truths), psnr(edits, truths), lpips_distance(perceptual, inputs, truths)
        found.update(zip((key for key, *_ in waiting), zip(*(column.tolist() for column in columns), strict=True), strict=True))
        waiting.clear()

    for pair in read_pairs(pairs_dir(config)):
        if "scene_seed" not in pair.record["source"]:
            raise UserError(f"{pair.key} in {pairs_dir(config)} is a photograph: only rendered scenes have a true edit")
        truth = true_edit(config, pair.record["source"], pair.images["edit"].shape[0])
        waiting.append((pair.key, pair.images["input"], pair.images["edit"], truth))
        if len(waiting) == BATCH:
            measure()
    if waiting:
        measure()
    return found


def _row(name: str, kept: np.ndarray, good: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """'selection', 'kept' (share), 'precision', 'recall' and the means 'lpips_kept', 'lpips_dropped', 'psnr_kept', 'psnr_dropped'; None of
    an empty set.
    """
    means = {
        f"{column}_{side}": float(measured[chosen, place].mean()) if chosen.any() else None
        for place, column in enumerate(("lpips", "psnr"))
        for side, chosen in (("kept", kept), ("dropped", ~kept))
    }
    precision = float(good[kept].mean()) if kept.any() else None
    recall = float(kept[good].mean()) if good.any() else None
    return {"selection": name, "kept": float(kept.mean()), "precision": precision, "recall": recall, **means}


def print_table(found: dict[str, Any]) -> None:
    """Print the rows as a Markdown table."""
    print(f"{found['pairs']} pairs, {found['good']:.0%} good; correlation of CLIP gain and LPIPS to truth {found['correlation']:+.2f}\n")
    print("| selection | kept | precision | recall | LPIPS to truth: kept / dropped | PSNR to truth, dB: kept / dropped |")
    print("|---|---|---|---|---|---|")
    for row in found["rows"]:
        shares = ["none" if row[name] is None else f"{row[name]:.0%}" for name in ("kept", "precision", "recall")]
        means = [
            " / ".join("none" if row[f"{column}_{side}"] is None else f"{row[f'{column}_{side}']:{form}}" for side in ("kept", "dropped"))
            for column, form in (("lpips", ".3f"), ("psnr", ".2f"))
        ]
        print(f"| {' | '.join([row['selection'], *shares, *means])} |")


if __name__ == "__main__":
    raise SystemExit(main())
