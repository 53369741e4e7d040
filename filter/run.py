"""Stage 2: score every pair with CLIP and LPIPS (and a segmenter, where the task names a foreground) and select the good ones.

    python filter/run.py task=tree2winter
    python filter/run.py task=cat2dog --select overlap=0.7 clip_gain=0.1          # select anew from the stored scores, at once
    python filter/run.py task=cat2dog --select keep=0.6 by=clip_gain lpips_input_edit=0.1:0.6
    accelerate launch filter/run.py task=tree2winter teacher=sd14                 # the shards are shared out over the processes

Reads <run>/pairs; writes <run>/scores/*.parquet (all raw scores), <run>/selection.json and <run>/filter.html to look at. A shard is scored
once, and again where its pairs, the texts, the scorer or the segmenter have changed.

--select takes the place of the task's own thresholds (task.clip_gain, task.overlap) and never runs a network. SCORE=LOW or SCORE=LOW:HIGH
or SCORE=:HIGH bounds any raw score; keep=SHARE by=SCORE keeps the best share of all pairs, by=-SCORE the lowest. The same in one command
with the scoring: filter.select=[overlap=0.7,clip_gain=0.1].
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.loader import CHOICES, known_keys, pairs_dir, run_dir
from configs.schema import Config
from filter.report import write_page
from filter.score_table import OVERLAP_SCORES, SCORES, is_current, models_identity, read_scores, scores_path, write_scores
from filter.selection import Criteria, criteria, selection_of
from generate.shards import Pair, exclusive, finished_shards, locate, read_manifest, read_pair, verify, write_json
from models.devices import pick_device, process_group

SECTIONS = ("task", "generate", "scorer", "segmenter", "filter")
QUANTILES = (0.1, 0.5, 0.9)
READ_AHEAD = 2  # batches being decoded while one is scored


def main(argv: Sequence[str] | None = None) -> int:
    """Score and select as the command line says; returns the exit code."""
    arguments, alone = split_select(list(sys.argv[1:] if argv is None else argv))
    work = select_again if alone else score_and_select
    return entry(__doc__ or "", SECTIONS, lambda config: print_summary(work(config)), plan, arguments)


def split_select(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments with `--select A=1 B=2` as filter.select=, and whether it is there. Configuration keys may stand among its own."""
    rest: list[str] = []
    asked: list[str] = []
    selecting = False
    for argument in arguments:
        name = argument.partition("=")[0]
        if argument.startswith("--"):
            selecting = argument == "--select"
        if selecting and not ("." in name or name in CHOICES or name in known_keys()):
            asked.append(argument)
        else:
            rest.append(argument)
    if asked[1:]:
        rest.append("filter.select=" + json.dumps([item for item in asked if item != "--select"]))
    return rest, bool(asked)


def score_and_select(config: Config) -> dict[str, Any]:
    """Score the pairs that have no current scores, then select.

    Returns selection.json's content and 'rows' (as read_scores gives them), 'asked', 'page', 'scored' (pairs scored in this call) and
    'seconds' (that took); in other processes than the main one an empty dict. UserError without pairs, or without a model's weights.
    """
    asked = criteria(config)
    wanted = stale_shards(config)
    rank, world, barrier = _processes()
    began = time.perf_counter()
    scored = _score(config, dict(list(wanted.items())[rank::world]), rank)
    seconds = time.perf_counter() - began
    barrier()
    return {**_select(config, asked), "scored": scored, "seconds": seconds} if rank == 0 else {}


def select_again(config: Config) -> dict[str, Any]:
    """Select from the scores that are there, whatever made them; returns as score_and_select. UserError where a shard has none."""
    outcome = _select(config, criteria(config))
    stale = len(stale_shards(config))
    if stale:
        print(f"note: the scores of {stale} shards were made with other models or texts than this configuration's")
    return {**outcome, "scored": 0, "seconds": 0.0}


def _select(config: Config, asked: Criteria) -> dict[str, Any]:
    rows = read_scores(config)
    selection = selection_of(rows, asked)
    write_json(run_dir(config) / "selection.json", selection)
    return {**selection, "rows": rows, "asked": str(asked), "page": write_page(config, rows, asked)}


def stale_shards(config: Config) -> dict[Path, dict[str, Any]]:
    """The finished shards without current scores, each with what its score file must say to be used as it is."""
    models = models_identity(config)
    wanted = {shard: {**models, "shard_sha256": read_manifest(shard)["sha256"]} for shard in finished_shards(pairs_dir(config))}
    return {shard: about for shard, about in wanted.items() if not is_current(scores_path(config, shard), about)}


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    shards, stale = finished_shards(pairs_dir(config)), stale_shards(config)
    return {
        "pairs": sum(len(read_manifest(shard)["keys"]) for shard in shards),
        "pairs to score": sum(len(read_manifest(shard)["keys"]) for shard in stale),
        "segmenter": config.segmenter.model if config.task.source_noun else "not run: the task names no foreground",
        "keeps": criteria(config),
        "out": run_dir(config),
    }


def print_summary(outcome: Mapping[str, Any]) -> None:
    """The yield and the distribution of every score, on standard output."""
    if not outcome:
        return
    print(f"{'score':18}{'pairs':>7}{'mean':>9}" + "".join(f"{f'{share:.0%}':>9}" for share in QUANTILES))
    for name in SCORES:
        values = [row[name] for row in outcome["rows"] if row[name] is not None]
        if values:
            numbers = [np.mean(values), *np.quantile(values, QUANTILES)]
            print(f"{name:18}{len(values):7}" + "".join(f"{number:9.4g}" for number in numbers))
    raised = ", ".join(f"{count} {flag}" for flag, count in outcome["flags"].items() if count)
    print(f"flags: {raised}" if raised else "flags: none")
    print(f"kept {len(outcome['kept'])} of {outcome['total']} pairs ({outcome['yield']:.1%}): {outcome['asked']}")
    print(f"look at them: {outcome['page']}")
    if outcome["scored"]:
        print(f"this process scored {outcome['scored']} pairs in {outcome['seconds']:.1f} s")
    if not outcome["kept"]:
        print("no pair passes: look at the scores above and ask for less (--select keep=0.5 by=clip_gain), or make better pairs")


def _processes() -> tuple[int, int, Callable[[], None]]:
    """Rank, number of processes, and a barrier; passes one itself, so that all have listed the stale shards before any is scored."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, lambda: None
    state = process_group()
    state.wait_for_everyone()
    return state.process_index, state.num_processes, state.wait_for_everyone


def _score(config: Config, wanted: Mapping[Path, dict[str, Any]], rank: int) -> int:
    """Score the shards and write their files; returns the number of pairs."""
    if not wanted:
        return 0
    score_batch = batch_scorer(config, pick_device(config.filter.device))
    count = 0
    with exclusive(run_dir(config) / "scores", f"process-{rank}"), ThreadPoolExecutor(config.filter.workers) as pool:
        for shard, batches in groupby(_read_ahead(config, wanted, pool), key=lambda item: item[0]):
            keys: list[str] = []
            scores: dict[str, list[float | None]] = {name: [] for name in SCORES}
            for _, pairs in batches:
                found = score_batch(pairs)
                keys += [pair.key for pair in pairs]
                for name in SCORES:
                    scores[name].extend(found.get(name, [None] * len(pairs)))
            write_scores(scores_path(config, shard), keys, scores, wanted[shard])
            count += len(keys)
            print(f"{shard.name}: {len(keys)} pairs scored", flush=True)
    return count


def _read_ahead(config: Config, shards: Sequence[Path] | Mapping[Path, Any], pool: ThreadPoolExecutor) -> Iterator[tuple[Path, list[Pair]]]:
    """The shards' pairs in batches of filter.batch; the next ones are decoded in the pool meanwhile. Every shard is verified first."""
    waiting: deque[tuple[Path, list[Any]]] = deque()
    for shard in shards:
        verify(shard)
        locations = locate(shard)
        for start in range(0, len(locations), config.filter.batch):
            part = locations[start : start + config.filter.batch]
            waiting.append((shard, [pool.submit(read_pair, location, ("input", "edit")) for location in part]))
            if len(waiting) > READ_AHEAD:
                ready, reading = waiting.popleft()
                yield ready, [pair.result() for pair in reading]
    for ready, reading in waiting:
        yield ready, [pair.result() for pair in reading]


def batch_scorer(config: Config, device: Any, scorer: Any = None, segmenter: Any = None) -> Callable[[Sequence[Pair]], dict[str, Any]]:
    """Loads the networks (but the scorer and segmenter given); gives a function from a batch of pairs to their raw scores by name.

    UserError without a model's weights, or for an unknown filter.dtype. LPIPS is computed in float32 always.
    """
    import torch

    from filter.scores import clip_scores, overlap_scores, picture_scores
    from models.clip_scorer import ClipScorer
    from models.perceptual import perceptual_loss

    task, dtypes = config.task, {"float32": False, "bfloat16": device.type == "cuda"}
    if config.filter.dtype not in dtypes:
        raise UserError(f"filter.dtype={config.filter.dtype}: it is {' or '.join(dtypes)}")
    scorer, perceptual = scorer or ClipScorer(config.scorer, device), perceptual_loss(device)
    if task.source_noun and segmenter is None:
        from models.segmenter import open_segmenter

        segmenter = open_segmenter(config.segmenter, scorer, device)

    def score(pairs: Sequence[Pair]) -> dict[str, Any]:
        inputs, edits = ([pair.images[name] for pair in pairs] for name in ("input", "edit"))
        with torch.autocast(device.type, torch.bfloat16, enabled=dtypes[config.filter.dtype]):
            pictures_BD = [scorer.image_features(images).double().cpu().numpy() for images in (inputs, edits)]
            found: dict[str, Any] = clip_scores(*pictures_BD, *scorer.text_features((task.source, task.target)).double().cpu().numpy())
            if segmenter:
                masks = segmenter.segment(inputs, task.source_noun), segmenter.segment(edits, task.target_noun)
                overlaps = [overlap_scores(*pair) for pair in zip(*masks, strict=True)]
                found |= {name: [overlap[name] for overlap in overlaps] for name in OVERLAP_SCORES}
        return found | picture_scores(perceptual, inputs, edits)

    return score


if __name__ == "__main__":
    sys.exit(main())
