"""Stage 2: score every pair with CLIP, LPIPS and, for a task with a foreground, a segmenter; then select.

    zero2gan filter RUN                                          # RUN: the folder that generate named
    zero2gan filter RUN --select overlap=0.7 clip_gain=0.1       # of stored scores: at once
    zero2gan filter RUN --select keep=0.6 by=clip_gain lpips_input_edit=0.1:0.6 veto=veto.txt
    accelerate launch filter/run.py run=RUN                      # the processes share the shards

Reads <run>/pairs; writes <run>/scores/*.parquet (all raw scores), <run>/selection.json and
<run>/filter.html to look at. A shard is scored once, and again where its pairs, the texts, the
scorer or the segmenter have changed.

--select takes the place of the task's own thresholds (task.clip_gain, task.overlap) and never runs
a network. SCORE=LOW or SCORE=LOW:HIGH or SCORE=:HIGH bounds any raw score; keep=SHARE by=SCORE
keeps the best share of all pairs, by=-SCORE the lowest. veto=FILE drops the pairs whose keys a text
file names, as filter.html saves it. The same in one command with the scoring:
filter.select=[overlap=0.7,clip_gain=0.1].
"""

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.cli import entry
from configs.files import exclusive, write_json
from configs.loader import CHOICES, known_keys
from configs.runs import command, pairs_dir, remember, run_dir
from configs.schema import Config
from filter.report import write_page
from filter.score_table import SCORES, read_scores, scores_path, stale_shards, write_scores
from filter.selection import criteria, selection_of, unknown_veto
from generate.shards import Pair, finished_shards, locate, read_manifest, read_pair, verify
from models.devices import pick_device, process_group
from models.published import SAM_FILES, sam_checkpoint

if TYPE_CHECKING:
    from accelerate import PartialState

    from filter.scores import PairScorer

SECTIONS = ("task", "generate", "scorer", "segmenter", "filter")
REMEMBERED = ("task.clip_gain", "task.overlap", "scorer", "segmenter", "filter")  # in run.yaml
LOW_YIELD = 1 / 3  # below it the selection is more likely at fault than the pairs
DECODING_THREADS = 4  # of pictures, while the pairs before are scored
QUANTILES = (0.1, 0.5, 0.9)  # of each score that are printed


def main(argv: Sequence[str] | None = None) -> int:
    """Score and select as the command line says; returns the exit code."""
    arguments, selecting = split_select(list(sys.argv[1:] if argv is None else argv))

    def work(config: Config) -> None:
        outcome = score_and_select(config, score=not selecting)
        print_summary(outcome)
        if outcome.get("kept"):
            print(f"next: {command('train', run_dir(config))}")

    return entry(__doc__, SECTIONS, work, plan, arguments)


def split_select(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """The arguments with `--select A=1 B=2` as filter.select=, and whether it is there.

    Keys of the configuration may stand among its own.
    """
    if "--select" not in arguments:
        return list(arguments), False
    place = arguments.index("--select")
    others = list(arguments[:place])
    items = []
    for argument in arguments[place:]:
        if argument == "--select":
            continue
        if is_option_or_key(argument):
            others.append(argument)
        else:
            items.append(argument)
    if items:
        others.append("filter.select=" + json.dumps(items))
    return others, True


def is_option_or_key(argument: str) -> bool:
    """Whether an argument is an --option, or sets a key of the configuration."""
    name = argument.partition("=")[0]
    return argument.startswith("--") or "." in name or name in CHOICES or name in known_keys()


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    return {
        "pairs": count_pairs(finished_shards(pairs_dir(config))),
        "pairs to score": count_pairs(stale_shards(config)),
        "segmenter": _segmenter_of(config),
        "keeps": criteria(config),
        "out": run_dir(config),
    }


def _segmenter_of(config: Config) -> str:
    """Which segmenter a run uses, or why it will refuse to."""
    settings = config.segmenter
    if not config.task.source_noun:
        return "not run: the task names no foreground"
    if settings.model in SAM_FILES and not sam_checkpoint(settings).is_file():
        return f"{settings.model}, but there is no {sam_checkpoint(settings)}: set segmenter.checkpoint first"
    return settings.model


def count_pairs(shards: Iterable[Path]) -> int:
    """How many pairs the shards hold."""
    return sum(len(read_manifest(shard)["keys"]) for shard in shards)


def score_and_select(config: Config, score: bool = True) -> dict[str, Any]:
    """Score the pairs that have no current scores, then select.

    score=False: select by the scores that are there, whatever made them. Returns selection.json's
    content and 'rows' (as read_scores gives them), 'criteria', 'page' and 'scored' (how many pairs
    this process scored); in other processes than the main one an empty dict. UserError without
    pairs, a model's weights, or with score=False a shard's scores.
    """
    chosen = criteria(config)
    stale = stale_shards(config)
    process = processes()
    process.wait_for_everyone()  # all have listed the stale shards before any is scored

    scored = 0
    if score:
        mine = dict(list(stale.items())[process.process_index :: process.num_processes])
        scored = score_shards(config, mine, process.process_index)
        process.wait_for_everyone()
    if process.process_index:
        return {}

    rows = read_scores(config)
    remember(config, REMEMBERED)
    if stale and not score:
        what = "were made with other models or texts than this configuration's"
        print(f"note: the scores of {len(stale)} shards {what}")
    unknown = unknown_veto(rows, chosen)
    if unknown:
        few = ", ".join(unknown[:3]) + (", ..." if len(unknown) > 3 else "")
        print(f"note: {chosen.veto_file} names {len(unknown)} keys that no pair has ({few})")
    selection = selection_of(rows, chosen)
    write_json(run_dir(config) / "selection.json", selection)
    page = write_page(config, rows, chosen)
    return {**selection, "rows": rows, "criteria": str(chosen), "page": page, "scored": scored}


class OneProcess:
    """The one process there is, with the names of accelerate, which loads slower than a selection is made."""

    process_index = 0
    num_processes = 1

    def wait_for_everyone(self) -> None:
        """There is nobody to wait for."""


def processes() -> "OneProcess | PartialState":
    """This process's place among those that score together."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return OneProcess()
    return process_group()


def score_shards(config: Config, shards: Mapping[Path, Mapping[str, Any]], process_index: int) -> int:
    """Score the shards and write a file for each; returns the number of pairs.

    shards: with what each one's scores are made with, for the file to say. UserError where another
    process writes there.
    """
    if not shards:
        return 0
    from filter.scores import PairScorer

    began = time.perf_counter()
    scorer = PairScorer(config, pick_device(config.device))
    count = 0
    writer = f"process-{process_index}"
    with exclusive(run_dir(config) / "scores", writer), ThreadPoolExecutor(DECODING_THREADS) as pool:
        for shard, pairs in read_ahead(shards, pool):
            rows = score_pairs(scorer, pairs, config.filter.batch)
            write_scores(scores_path(config, shard), rows, shards[shard])
            count += len(rows)
            print(f"{shard.name}: {len(rows)} pairs scored", flush=True)
    print(f"this process scored {count} pairs in {time.perf_counter() - began:.1f} s")
    return count


def score_pairs(scorer: "PairScorer", pairs: Iterator[Pair], batch_size: int) -> list[dict[str, Any]]:
    """A row a pair, its key and its scores by name; batch_size of them are scored together."""
    rows = []
    while batch := list(islice(pairs, batch_size)):
        scores = scorer(batch)
        for index, pair in enumerate(batch):
            row: dict[str, Any] = {"key": pair.key}
            for name, values in scores.items():
                row[name] = values[index]
            rows.append(row)
    return rows


def read_ahead(shards: Iterable[Path], pool: ThreadPoolExecutor) -> Iterator[tuple[Path, Iterator[Pair]]]:
    """Each shard, verified, and its pairs.

    Those of the next shard are decoded in the pool meanwhile, so that two shards are in memory.
    """
    decode = partial(read_pair, names=("input", "edit"))
    ready = None
    for shard in shards:
        verify(shard)
        decoding = (shard, pool.map(decode, locate(shard)))
        if ready:
            yield ready
        ready = decoding
    if ready:
        yield ready


def print_summary(outcome: Mapping[str, Any]) -> None:
    """Print the yield and the distribution of every score; nothing in other processes than the main one."""
    if not outcome:
        return
    titles = [f"{share:.0%}" for share in QUANTILES]
    print(f"{'score':18}{'pairs':>7}{'mean':>12}" + "".join(f"{title:>12}" for title in titles))
    for name in SCORES:
        values = [row[name] for row in outcome["rows"] if row[name] is not None]
        if values:
            numbers = [np.mean(values), *np.quantile(values, QUANTILES)]
            print(f"{name:18}{len(values):7}" + "".join(f"{number:12.4g}" for number in numbers))

    flags = [f"{count} {flag}" for flag, count in outcome["flags"].items() if count]
    kept = len(outcome["kept"])
    print(f"flags: {', '.join(flags) or 'none'}")
    print(f"kept {kept} of {outcome['total']} pairs ({outcome['yield']:.1%}): {outcome['criteria']}")
    print(f"look at them: {outcome['page']}")
    if kept < outcome["total"] * LOW_YIELD:
        share = command("filter", outcome["page"].parent, "--select", "keep=0.6", "by=clip_directional")
        print(
            "that is few. An absolute bound carries over from another model or task only roughly; "
            f"the best 60 % by the change in picture and text: {share}"
        )


if __name__ == "__main__":
    sys.exit(main())
