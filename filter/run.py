"""Stage 2: score every pair with CLIP (and segment-anything, where the task names a foreground) and select the good
ones.

    python filter/run.py task=tree2winter
    accelerate launch filter/run.py task=tree2winter teacher=sd14      # the shards are shared out over the processes

Reads <run>/pairs; writes <run>/scores/*.parquet (all raw scores) and <run>/selection.json. A shard is scored once:
run it again with another task.clip_gain= or task.overlap= and only the selection is made anew, at once. It is scored
again where its pairs, the texts, the scorer or the segmenter have changed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.loader import pairs_dir, run_dir
from configs.schema import Config

SECTIONS = ("task", "generate", "scorer", "segmenter", "filter")
QUANTILES = (0.1, 0.5, 0.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Score and select as the command line says; returns the exit code."""
    return entry(__doc__ or "", SECTIONS, lambda config: print_summary(score_and_select(config)), plan, argv)


def score_and_select(config: Config) -> dict[str, Any]:
    """Score the pairs that have no current scores, then select.

    Returns the content of selection.json and, beside it, 'rows' (every score, see score_table.read_scores), 'scored'
    (pairs scored in this call) and 'seconds' (that took). In processes other than the main one: an empty dict.
    UserError without pairs, or without a model's weights.
    """
    from filter.score_table import read_scores
    from filter.selection import selection_of, thresholds
    from generate.shards import write_json

    limits = thresholds(config.task, config.scorer.gain_unit)
    wanted = stale_shards(config)
    rank, world, barrier = _processes()
    began = time.perf_counter()
    scored = _score(config, dict(list(wanted.items())[rank::world]), rank) if wanted else 0
    barrier()
    if rank != 0:
        return {}
    rows = read_scores(config)
    selection = selection_of(rows, limits)
    write_json(run_dir(config) / "selection.json", selection)
    return {**selection, "rows": rows, "scored": scored, "seconds": time.perf_counter() - began if scored else 0.0}


def stale_shards(config: Config) -> dict[Path, dict[str, Any]]:
    """The finished shards without current scores, each with what its score file must say (score_table.identity)."""
    from filter.score_table import identity, is_current, models_identity, scores_path
    from generate.shards import finished_shards

    models = models_identity(config)
    wanted = {shard: identity(models, shard) for shard in finished_shards(pairs_dir(config))}
    return {shard: about for shard, about in wanted.items() if not is_current(scores_path(config, shard), about)}


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    from filter.selection import thresholds
    from generate.shards import finished_shards, read_manifest

    shards, stale = finished_shards(pairs_dir(config)), stale_shards(config)
    return {
        "pairs": sum(len(read_manifest(shard)["keys"]) for shard in shards),
        "pairs to score": sum(len(read_manifest(shard)["keys"]) for shard in stale),
        "segmenter": config.segmenter.model if config.task.source_noun else "not run: the task names no foreground",
        "thresholds": thresholds(config.task, config.scorer.gain_unit),
        "out": run_dir(config),
    }


def print_summary(outcome: Mapping[str, Any]) -> None:
    """The yield and the distribution of every score, on standard output."""
    import numpy as np

    from filter.score_table import SCORES

    if not outcome:
        return
    print(f"{'score':18}{'pairs':>7}{'mean':>9}" + "".join(f"{f'{share:.0%}':>9}" for share in QUANTILES))
    for name in SCORES:
        values = [row[name] for row in outcome["rows"] if row[name] is not None]
        if values:
            numbers = [np.mean(values), *np.quantile(values, QUANTILES)]
            print(f"{name:18}{len(values):7}" + "".join(f"{number:9.4f}" for number in numbers))
    limits = ", ".join(f"{name} >= {limit:g}" for name, limit in outcome["thresholds"].items() if limit is not None) or "no threshold"
    print(f"kept {len(outcome['kept'])} of {outcome['total']} pairs ({outcome['yield']:.1%}): {limits}")
    if outcome["scored"]:
        print(f"this process scored {outcome['scored']} pairs in {outcome['seconds']:.1f} s")
    if not outcome["kept"]:
        print("no pair passes: look at the scores above and lower task.clip_gain= or task.overlap=, or make better pairs")


def _processes() -> tuple[int, int, Callable[[], None]]:
    """Rank, number of processes, and a barrier; passes one barrier, so that every process has listed the stale shards
    before any is scored.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, lambda: None
    from models.devices import process_group

    state = process_group()
    state.wait_for_everyone()
    return state.process_index, state.num_processes, state.wait_for_everyone


def _score(config: Config, wanted: Mapping[Path, dict[str, Any]], rank: int) -> int:
    """Score the shards and write their files; returns the number of pairs."""
    from filter.score_table import scores_path, write_scores
    from generate.shards import exclusive, verify
    from models.clip_scorer import ClipScorer
    from models.devices import pick_device

    if not wanted:
        return 0
    device = pick_device(config.filter.device)
    scorer = ClipScorer(config.scorer, device)
    segmenter = None
    if config.task.source_noun:
        from models.segmenter import Segmenter

        segmenter = Segmenter(config.segmenter, scorer, device)
    count = 0
    with exclusive(run_dir(config) / "scores", f"process-{rank}"):
        for shard, about in wanted.items():
            verify(shard)
            keys, scores = _score_shard(config, shard, scorer, segmenter)
            write_scores(scores_path(config, shard), keys, scores, about)
            count += len(keys)
            print(f"{shard.name}: {len(keys)} pairs scored", flush=True)
    return count


def _score_shard(config: Config, shard: Path, scorer: Any, segmenter: Any) -> tuple[list[str], dict[str, list[float | None]]]:
    from filter.clip_gain import score_clip
    from filter.overlap import score_overlap
    from filter.score_table import SCORES
    from generate.shards import locate, read_pair

    task, size = config.task, config.filter.batch
    locations = locate(shard)
    scores: dict[str, list[float | None]] = {name: [] for name in SCORES}
    for start in range(0, len(locations), size):
        pairs = [read_pair(location, ("input", "edit")) for location in locations[start : start + size]]
        inputs, edits = [pair.images["input"] for pair in pairs], [pair.images["edit"] for pair in pairs]
        found: dict[str, Any] = {**score_clip(scorer, inputs, edits, (task.source, task.target))}
        if segmenter:
            found |= score_overlap(segmenter, inputs, edits, (task.source_noun, task.target_noun))
        for name in SCORES:
            scores[name].extend(found.get(name, [None] * len(pairs)))
    return [location.key for location in locations], scores


if __name__ == "__main__":
    sys.exit(main())
