"""Measure the filter against the true edit: precision, recall and yield of its selections.

  python scripts/evaluate_filter.py task=tree2winter

Reads the run's pairs (rendered scenes) and scores; run filter/run.py first. An edit is good where its LPIPS to the true edit is below the
unchanged input's by the share filter.good_margin: it went a stated part of the way that the true edit goes, whatever any scorer says, and
each scene is its own yardstick, as busy scenes are far from everything. Prints for each selection its yield, precision (good among the
kept), recall (kept among the good) and the mean distances to the true edit of what is kept and dropped; writes <run>/filter_truth.json.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.files import write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from filter.score_table import read_scores
from filter.selection import Criteria, criteria, select
from generate.shards import read_pairs
from models.devices import pick_device
from scripts.measure.truth import true_edit

SECTIONS = ("task", "teacher", "generate", "scorer", "segmenter", "filter")
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)  # of the best by CLIP gain
RIVALS = (
    "clip_directional",
    "sim_edit_target",
    "image_image",
    "-lpips_input_edit",
    "sharpness_ratio",
    "overlap_iou",
)
RIVAL_SHARE = 0.6  # at which the other scores are compared
FORMATS = {"kept": ".0%", "precision": ".0%", "recall": ".0%"}  # of the printed columns
FORMATS |= {"lpips_kept": ".3f", "lpips_dropped": ".3f", "psnr_kept": ".2f", "psnr_dropped": ".2f"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(
        __doc__,
        SECTIONS,
        lambda config: print_table(evaluate_filter(config)),
        lambda config: {"reads": pairs_dir(config), "writes": run_dir(config) / "filter_truth.json"},
        argv,
    )


def evaluate_filter(config: Config) -> dict[str, Any]:
    """'rows': one a selection, the configured one last; 'pairs'; 'good' (share); 'correlation' of CLIP gain and LPIPS to truth.

    A row has 'selection', 'kept' (share), 'precision', 'recall' and the means 'lpips_kept', 'lpips_dropped', 'psnr_kept', 'psnr_dropped';
    None of an empty set. UserError without a true edit or scores.
    """
    if not config.task.scene_truth:
        raise UserError(
            f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against"
        )
    asked, table = criteria(config), read_scores(config)
    lpips, of_input, psnr = _distances_to_truth(
        config
    )  # of the same pairs in the same order: read_scores sees to that
    good = lpips <= (1 - config.filter.good_margin) * of_input
    scored = {name for name in table[0] if table[0][name] is not None}
    selections = [Criteria(), *(Criteria(keep=share) for share in SHARES)]
    selections += [Criteria(keep=RIVAL_SHARE, by=name) for name in RIVALS if name.removeprefix("-") in scored]
    rows = []
    for selection in [*selections, asked]:
        keys = set(select(table, selection)[0])
        kept = np.array([row["key"] in keys for row in table])
        row = {
            "selection": str(selection),
            "kept": float(kept.mean()),
            "precision": _mean(good[kept]),
            "recall": _mean(kept[good]),
        }
        for name, values in (("lpips", lpips), ("psnr", psnr)):
            row |= {f"{name}_kept": _mean(values[kept]), f"{name}_dropped": _mean(values[~kept])}
        rows.append(row)
    gains = np.array([row["clip_gain"] for row in table], np.float64)
    correlation = float(np.corrcoef(gains, lpips)[0, 1])
    found = {"pairs": len(table), "good": float(good.mean()), "correlation": correlation, "rows": rows}
    write_json(run_dir(config) / "filter_truth.json", found)
    return found


def _distances_to_truth(config: Config) -> np.ndarray:
    """To each pair's true edit: LPIPS of the edit and of the input, PSNR of the edit in dB; 3 x N. UserError for pairs of photographs."""
    from models.perceptual import perceptual_loss
    from scripts.measure.metrics import lpips_distance, psnr

    perceptual = perceptual_loss(pick_device(config.device))
    rows = []
    for pair in read_pairs(pairs_dir(config)):
        if "scene_seed" not in pair.record["source"]:
            raise UserError(
                f"{pair.key} in {pairs_dir(config)} is a photograph: only rendered scenes have a true edit"
            )
        truth = true_edit(config, pair.record["source"], pair.images["edit"].shape[0])
        images = np.stack([pair.images["edit"], pair.images["input"]])
        of_edit, of_input = lpips_distance(perceptual, images, np.stack([truth, truth]))
        rows.append((of_edit, of_input, psnr(images[:1], truth[None])[0]))
    return np.array(rows, np.float64).T


def _mean(values: np.ndarray) -> float | None:
    """None of no values."""
    return float(values.mean()) if values.size else None


def print_table(found: dict[str, Any]) -> None:
    """Print the rows as a Markdown table."""
    print(
        f"{found['pairs']} pairs, {found['good']:.0%} good; correlation of CLIP gain and LPIPS to truth {found['correlation']:+.2f}\n"
    )
    print(
        "| selection | kept | precision | recall | LPIPS to truth: kept / dropped | PSNR to truth, dB: kept / dropped |"
    )
    print("|---|---|---|---|---|---|")
    for row in found["rows"]:
        cells = ["none" if row[name] is None else format(row[name], form) for name, form in FORMATS.items()]
        print(
            f"| {' | '.join([row['selection'], *cells[:3], ' / '.join(cells[3:5]), ' / '.join(cells[5:])])} |"
        )


if __name__ == "__main__":
    raise SystemExit(main())
