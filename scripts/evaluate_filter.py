"""Measure the filter against the true edit: precision, recall and yield of its selections.

  python scripts/evaluate_filter.py task=tree2winter

Reads the run's pairs (rendered scenes) and scores; run filter/run.py first. An edit is good where
its LPIPS to the true edit is below the unchanged input's by a quarter of that: it went a stated
part of the way that the true edit goes, whatever any scorer says, and each scene is its own
yardstick, as busy scenes are far from everything. Prints for each selection its yield, precision
(good among the kept), recall (kept among the good) and the mean distances to the true edit of what
is kept and dropped; writes <run>/filter_truth.json.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.files import write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from filter.score_table import read_scores
from filter.selection import Criteria, Row, criteria, select
from generate.shards import read_pairs
from models.devices import pick_device
from scripts.measure.truth import true_edit

SECTIONS = ("task", "teacher", "generate", "scorer", "segmenter", "filter")
GOOD_MARGIN = 0.25  # a good edit is nearer to the true one than the input is by this share of its LPIPS
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.3)  # of the best by CLIP gain
RIVALS = (  # other scores that could rank the pairs ('-': low is good), compared at RIVAL_SHARE
    "clip_directional",
    "sim_edit_target",
    "image_image",
    "-lpips_input_edit",
    "-lpips_generator",
    "sharpness_ratio",
    "overlap_iou",
)
RIVAL_SHARE = 0.6


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""

    def work(config: Config) -> None:
        print_table(evaluate_filter(config))

    def plan(config: Config) -> dict[str, Any]:
        return {"reads": pairs_dir(config), "writes": run_dir(config) / "filter_truth.json"}

    return entry(__doc__, SECTIONS, work, plan, argv)


@dataclass
class Truth:
    """How far N pairs are from their true edits."""

    lpips_edit_N: np.ndarray  # of the edit
    lpips_input_N: np.ndarray  # of the unchanged input
    psnr_edit_N: np.ndarray  # of the edit, dB

    @property
    def good_N(self) -> np.ndarray:
        """Which edits are good, bool."""
        return self.lpips_edit_N <= (1 - GOOD_MARGIN) * self.lpips_input_N


def evaluate_filter(config: Config) -> dict[str, Any]:
    """Measure the selections, write <run>/filter_truth.json and return its content.

    'rows': one a selection, the configured one last; 'pairs'; 'good' (share); 'correlation' of
    CLIP gain and LPIPS to truth. A row has 'selection', 'kept' (share), 'precision', 'recall' and
    the means 'lpips_kept', 'lpips_dropped', 'psnr_kept', 'psnr_dropped'; None of an empty set.
    UserError without a true edit or scores.
    """
    if not config.task.scene_truth:
        raise UserError(
            f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against"
        )
    configured = criteria(config)
    table = read_scores(config)
    truth = distances_to_truth(config)  # of the same pairs in the same order: read_scores sees to that

    rows = []
    for selection in [*selections_to_compare(table), configured]:
        rows.append(measure(table, truth, selection))
    gain_N = np.array([row["clip_gain"] for row in table], np.float64)
    result = {
        "pairs": len(table),
        "good": float(truth.good_N.mean()),
        "correlation": float(np.corrcoef(gain_N, truth.lpips_edit_N)[0, 1]),
        "rows": rows,
    }
    write_json(run_dir(config) / "filter_truth.json", result)
    return result


def selections_to_compare(table: Sequence[Row]) -> list[Criteria]:
    """Everything, the best shares by CLIP gain, and one by each rival that the pairs have a score of."""
    selections = [Criteria()]
    for share in SHARES:
        selections.append(Criteria(keep=share))
    for name in RIVALS:
        if table[0][name.removeprefix("-")] is not None:
            selections.append(Criteria(keep=RIVAL_SHARE, by=name))
    return selections


def measure(table: Sequence[Row], truth: Truth, selection: Criteria) -> dict[str, Any]:
    """One row of the table, as evaluate_filter describes it."""
    keys = set(select(table, selection)[0])
    kept_N = np.array([row["key"] in keys for row in table])
    return {
        "selection": str(selection),
        "kept": float(kept_N.mean()),
        "precision": mean_or_none(truth.good_N[kept_N]),
        "recall": mean_or_none(kept_N[truth.good_N]),
        "lpips_kept": mean_or_none(truth.lpips_edit_N[kept_N]),
        "lpips_dropped": mean_or_none(truth.lpips_edit_N[~kept_N]),
        "psnr_kept": mean_or_none(truth.psnr_edit_N[kept_N]),
        "psnr_dropped": mean_or_none(truth.psnr_edit_N[~kept_N]),
    }


def mean_or_none(values: np.ndarray) -> float | None:
    """The mean; None of no values."""
    return float(values.mean()) if values.size else None


def distances_to_truth(config: Config) -> Truth:
    """The distances of the run's pairs to their true edits. UserError for photographs, which have none."""
    from models.perceptual import perceptual_loss
    from scripts.measure.metrics import lpips_distance, psnr

    perceptual = perceptual_loss(pick_device(config.device))
    lpips_edit = []
    lpips_input = []
    psnr_edit = []
    for pair in read_pairs(pairs_dir(config)):
        source = pair.record["source"]
        if "scene_seed" not in source:
            raise UserError(
                f"{pair.key} in {pairs_dir(config)} is a photograph: only rendered scenes have a true edit"
            )
        edit = pair.images["edit"]
        truth = true_edit(config, source, edit.shape[0])
        images = np.stack([edit, pair.images["input"]])
        of_edit, of_input = lpips_distance(perceptual, images, np.stack([truth, truth]))
        lpips_edit.append(of_edit)
        lpips_input.append(of_input)
        psnr_edit.append(psnr(edit[None], truth[None])[0])
    return Truth(
        lpips_edit_N=np.array(lpips_edit, np.float64),
        lpips_input_N=np.array(lpips_input, np.float64),
        psnr_edit_N=np.array(psnr_edit, np.float64),
    )


def print_table(result: dict[str, Any]) -> None:
    """Print the rows as a Markdown table."""
    correlation = f"correlation of CLIP gain and LPIPS to truth {result['correlation']:+.2f}"
    print(f"{result['pairs']} pairs, {result['good']:.0%} good; {correlation}\n")
    print(
        "| selection | kept | precision | recall | LPIPS to truth: kept / dropped"
        " | PSNR to truth, dB: kept / dropped |"
    )
    print("|---|---|---|---|---|---|")
    for row in result["rows"]:
        lpips = f"{cell(row['lpips_kept'], '.3f')} / {cell(row['lpips_dropped'], '.3f')}"
        psnr = f"{cell(row['psnr_kept'], '.2f')} / {cell(row['psnr_dropped'], '.2f')}"
        shares = (
            f"{cell(row['kept'], '.0%')} | {cell(row['precision'], '.0%')} | {cell(row['recall'], '.0%')}"
        )
        print(f"| {row['selection']} | {shares} | {lpips} | {psnr} |")


def cell(value: float | None, form: str) -> str:
    """A number in the table."""
    return "none" if value is None else format(value, form)


if __name__ == "__main__":
    raise SystemExit(main())
