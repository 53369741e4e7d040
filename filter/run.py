"""Stage 2: score every pair with CLIP and LPIPS (and a segmenter, where the task names a foreground) and select the good ones.

    python filter/run.py task=tree2winter
    python filter/run.py task=cat2dog --select overlap=0.7 clip_gain=0.1          # select anew from the stored scores, at once
    python filter/run.py task=cat2dog --select keep=0.6 by=clip_gain lpips_input_edit=0.1:0.6
    accelerate launch filter/run.py task=tree2winter preset=paper                 # the shards are shared out over the processes

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.files import exclusive, write_json
from configs.loader import CHOICES, known_keys
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from filter.report import write_page
from filter.score_table import (
    OVERLAP_SCORES,
    SCORES,
    is_current,
    models_identity,
    read_scores,
    scores_path,
    write_scores,
)
from filter.selection import criteria, selection_of
from generate.shards import Pair, finished_shards, locate, read_manifest, read_pair, verify
from models.devices import pick_device, process_group

SECTIONS = ("task", "generate", "scorer", "segmenter", "filter")
QUANTILES = (0.1, 0.5, 0.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Score and select as the command line says; returns the exit code."""
    arguments, selecting = split_select(list(sys.argv[1:] if argv is None else argv))
    return entry(
        __doc__,
        SECTIONS,
        lambda config: print_summary(score_and_select(config, not selecting)),
        plan,
        arguments,
    )


def split_select(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments with `--select A=1 B=2` as filter.select=, and whether it is there. Configuration keys may stand among its own."""
    if "--select" not in arguments:
        return arguments, False
    place, keys = arguments.index("--select"), {*CHOICES, *known_keys()}
    after = [argument for argument in arguments[place:] if argument != "--select"]
    rest = [
        item
        for item in after
        if item.startswith("--") or "." in item.partition("=")[0] or item.partition("=")[0] in keys
    ]
    asked = [item for item in after if item not in rest]
    return [*arguments[:place], *rest, *(["filter.select=" + json.dumps(asked)] if asked else [])], True


def score_and_select(config: Config, score: bool = True) -> dict[str, Any]:
    """Score the pairs that have no current scores, then select. score=False: select by the scores that are there, whatever made them.

    Returns selection.json's content and 'rows' (as read_scores gives them), 'asked', 'page' and 'scored' (pairs scored by this process);
    in other processes than the main one an empty dict. UserError without pairs, a model's weights, or with score=False a shard's scores.
    """
    asked, stale = criteria(config), stale_shards(config)
    rank, world, barrier = _processes()
    scored = _score(config, dict(list(stale.items())[rank::world]), rank) if score else 0
    barrier()
    if rank:
        return {}
    rows = read_scores(config)
    selection = selection_of(rows, asked)
    write_json(run_dir(config) / "selection.json", selection)
    if stale and not score:
        print(
            f"note: the scores of {len(stale)} shards were made with other models or texts than this configuration's"
        )
    return {
        **selection,
        "rows": rows,
        "asked": str(asked),
        "page": write_page(config, rows, asked),
        "scored": scored,
    }


def stale_shards(config: Config) -> dict[Path, dict[str, Any]]:
    """The finished shards without current scores, each with what its score file must say to be used as it is."""
    models = models_identity(config)
    wanted = {
        shard: {**models, "shard_sha256": read_manifest(shard)["sha256"]}
        for shard in finished_shards(pairs_dir(config))
    }
    return {
        shard: about for shard, about in wanted.items() if not is_current(scores_path(config, shard), about)
    }


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""

    def pairs(shards: Iterable[Path]) -> int:
        return sum(len(read_manifest(shard)["keys"]) for shard in shards)

    return {
        "pairs": pairs(finished_shards(pairs_dir(config))),
        "pairs to score": pairs(stale_shards(config)),
        "segmenter": config.segmenter.model
        if config.task.source_noun
        else "not run: the task names no foreground",
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
    print(
        "flags:", ", ".join(f"{count} {flag}" for flag, count in outcome["flags"].items() if count) or "none"
    )
    print(
        f"kept {len(outcome['kept'])} of {outcome['total']} pairs ({outcome['yield']:.1%}): {outcome['asked']}"
    )
    print(f"look at them: {outcome['page']}")
    if not outcome["kept"]:
        print(
            "no pair passes: look at the scores above and ask for less (--select keep=0.5 by=clip_gain), or make better pairs"
        )


def _processes() -> tuple[int, int, Callable[[], None]]:
    """Rank, number of processes, and a barrier; passes one itself, so that all have listed the stale shards before any is scored."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return 0, 1, lambda: None
    state = process_group()
    state.wait_for_everyone()
    return state.process_index, state.num_processes, state.wait_for_everyone


def _score(config: Config, wanted: Mapping[Path, dict[str, Any]], rank: int) -> int:
    """Score the shards and write their files; returns the number of pairs."""
    if not wanted:
        return 0
    began, count = time.perf_counter(), 0
    score_batch = batch_scorer(config, pick_device(config.device))
    with (
        exclusive(run_dir(config) / "scores", f"process-{rank}"),
        ThreadPoolExecutor(config.filter.workers) as pool,
    ):
        for shard, pairs in _read_ahead(wanted, pool):
            rows: list[dict[str, Any]] = []
            while batch := list(islice(pairs, config.filter.batch)):
                found = score_batch(batch)
                rows += (
                    {"key": pair.key} | {name: found[name][at] for name in found}
                    for at, pair in enumerate(batch)
                )
            write_scores(scores_path(config, shard), rows, wanted[shard])
            count += len(rows)
            print(f"{shard.name}: {len(rows)} pairs scored", flush=True)
    print(f"this process scored {count} pairs in {time.perf_counter() - began:.1f} s")
    return count


def _read_ahead(shards: Iterable[Path], pool: ThreadPoolExecutor) -> Iterator[tuple[Path, Iterator[Pair]]]:
    """Each shard, verified, and its pairs; those of the next one are decoded in the pool meanwhile, so two shards are in memory."""
    waiting: deque[tuple[Path, Iterator[Pair]]] = deque()
    for shard in shards:
        verify(shard)
        waiting.append((shard, pool.map(partial(read_pair, names=("input", "edit")), locate(shard))))
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


def batch_scorer(
    config: Config, device: Any, scorer: Any = None, segmenter: Any = None
) -> Callable[[Sequence[Pair]], dict[str, Any]]:
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
            found: dict[str, Any] = clip_scores(
                *pictures_BD, *scorer.text_features((task.source, task.target)).double().cpu().numpy()
            )
            if segmenter:
                masks = (
                    segmenter.segment(inputs, task.source_noun),
                    segmenter.segment(edits, task.target_noun),
                )
                overlaps = [overlap_scores(*pair) for pair in zip(*masks, strict=True)]
                found |= {name: [overlap[name] for overlap in overlaps] for name in OVERLAP_SCORES}
        return found | picture_scores(perceptual, inputs, edits)

    return score


if __name__ == "__main__":
    sys.exit(main())
