"""Measure the filter against the true edit: is what it keeps nearer to the truth than what it drops?

  python scripts/evaluate_filter.py task=tree2winter

Reads the run's pairs (rendered scenes) and scores; run filter/run.py first. Prints, for several thresholds on CLIP gain and for the
task's own selection, the share kept and the mean distance to the true edit of what is kept and dropped; writes <run>/filter_truth.json.
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
QUANTILES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7)
BATCH = 64


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, lambda config: print_table(evaluate_filter(config)), plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What would be measured."""
    return {"reads": pairs_dir(config), "writes": run_dir(config) / "filter_truth.json"}


def evaluate_filter(config: Config) -> dict[str, Any]:
    """'rows': one a selection (see _row); 'correlation' of CLIP gain with LPIPS to the truth. UserError without a true edit or scores."""
    from filter.score_table import read_scores
    from filter.selection import select, thresholds
    from generate.shards import write_json

    if not config.task.scene_truth:
        raise UserError(f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against")
    table = read_scores(config)
    distances = _distances_to_truth(config)
    measured = np.array([distances[row["key"]] for row in table])
    gains = np.array([row["clip_gain"] for row in table], np.float64)
    rows = [_row(f"CLIP gain >= {limit:.3f}", gains >= limit, measured) for limit in np.quantile(gains, QUANTILES)]
    limits = thresholds(config.task, config.scorer.gain_unit)
    kept = set(select(table, **limits)[0])
    asked = ", ".join(f"{name} >= {limit:.3f}" for name, limit in limits.items() if limit is not None)
    rows.append(_row(f"the task's own: {asked}", np.array([row["key"] in kept for row in table]), measured))
    found = {"pairs": len(table), "correlation": float(np.corrcoef(gains, measured[:, 0])[0, 1]), "rows": rows}
    write_json(run_dir(config) / "filter_truth.json", found)
    return found


def _distances_to_truth(config: Config) -> dict[str, tuple[float, float]]:
    """(LPIPS, PSNR in dB) of each pair's edit to the true edit, by key. UserError for pairs of photographs."""
    from generate.shards import read_pairs
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from scripts.evaluate import true_edit
    from scripts.metrics import lpips_distance, psnr

    perceptual = perceptual_loss(pick_device(config.filter.device))
    found: dict[str, tuple[float, float]] = {}
    waiting: list[tuple[str, np.ndarray, np.ndarray]] = []

    def measure() -> None:
        edits, truths = (np.stack(images) for images in zip(*(images for _, *images in waiting), strict=True))
        pairs = zip(lpips_distance(perceptual, edits, truths).tolist(), psnr(edits, truths).tolist(), strict=True)
        found.update(zip((key for key, *_ in waiting), pairs, strict=True))
        waiting.clear()

    for pair in read_pairs(pairs_dir(config)):
        if "scene_seed" not in pair.record["source"]:
            raise UserError(f"{pair.key} in {pairs_dir(config)} is a photograph: only rendered scenes have a true edit")
        waiting.append((pair.key, pair.images["edit"], true_edit(config, pair.record["source"], pair.images["edit"].shape[0])))
        if len(waiting) == BATCH:
            measure()
    if waiting:
        measure()
    return found


def _row(name: str, kept: np.ndarray, measured: np.ndarray) -> dict[str, Any]:
    """'selection', 'kept' (share) and the means 'lpips_kept', 'lpips_dropped', 'psnr_kept', 'psnr_dropped'; None of an empty set."""
    means = {
        f"{column}_{side}": float(measured[chosen, place].mean()) if chosen.any() else None
        for place, column in enumerate(("lpips", "psnr"))
        for side, chosen in (("kept", kept), ("dropped", ~kept))
    }
    return {"selection": name, "kept": float(kept.mean()), **means}


def print_table(found: dict[str, Any]) -> None:
    """Print the rows as a Markdown table."""
    print(f"{found['pairs']} pairs; correlation of CLIP gain and LPIPS to the truth {found['correlation']:+.2f}\n")
    print("| selection | kept | LPIPS to truth: kept / dropped | PSNR to truth, dB: kept / dropped |\n|---|---|---|---|")
    for row in found["rows"]:
        cells = [
            " / ".join("none" if row[f"{column}_{side}"] is None else f"{row[f'{column}_{side}']:{form}}" for side in ("kept", "dropped"))
            for column, form in (("lpips", ".3f"), ("psnr", ".2f"))
        ]
        print(f"| {row['selection']} | {row['kept']:.0%} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    raise SystemExit(main())
