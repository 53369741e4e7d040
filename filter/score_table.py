"""The scores: which there are, and how they lie on disk.

    scores/000000.parquet   one row a pair of pairs/000000.tar: its key, every raw score, its flags

The file's metadata `zero2gan` is JSON: 'made_with' (see `made_with` below) and 'versions' of the
libraries. A file that was made with something else is stale, and its shard is scored again.
Library versions do not count: an upgrade is no reason to score 15,000 pairs anew.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from configs.errors import UserError
from configs.files import digest, model_files, whole_file
from configs.runs import FREE_FOR_ALL, changes, pairs_dir, run_dir, scorer_files, settings_of
from configs.schema import Config
from generate.shards import finished_shards, read_manifest
from models.published import segmenter_files

SCORES: dict[str, str] = {  # name -> meaning; filter/scores.py computes them
    # CLIP: cosines of unit features
    "sim_input_source": "cosine of input and source text",
    "sim_input_target": "cosine of input and target text",
    "sim_edit_source": "cosine of edit and source text",
    "sim_edit_target": "cosine of edit and target text",
    "clip_gain": "how much nearer to the target text the edit is than the input",
    "clip_directional": "cosine of the change in picture and the change in text",
    "image_image": "cosine of input and edit",
    # overlap: the foreground masks
    "overlap_iou": "foreground masks: intersection over union",
    "overlap_dice": "foreground masks: twice the intersection over the sum",
    "area_input": "foreground of the input, share of the picture",
    "area_edit": "foreground of the edit, share of the picture",
    # the pictures themselves
    "lpips_input_edit": "LPIPS between input and edit",
    "lpips_generator": "LPIPS between the edit and that of filter.generator",
    "sharpness_input": "variance of the Laplacian",
    "sharpness_edit": "variance of the Laplacian",
    "sharpness_ratio": "sharpness of the edit over that of the input",
}
# Null where filter.generator names none.
GENERATOR_SCORES = ("lpips_generator",)
# Those that need masks: null where the task names no foreground.
OVERLAP_SCORES = ("overlap_iou", "overlap_dice", "area_input", "area_edit")


@dataclass(frozen=True)
class Flag:
    """What is plainly wrong with a pair: raised where one of these scores is below the limit."""

    scores: tuple[str, ...]
    below: float


FLAGS = {
    # A safety checker's black picture. One colour has sharpness 0; the softest of 32 of the
    # miniature's edits has 234.
    "blank": Flag(("sharpness_input", "sharpness_edit"), below=1.0),
    # The edit is the input. JPEG of quality 90 does more (.04 to .09 on the miniature's scenes),
    # its reconstructions .10 and more.
    "unchanged": Flag(("lpips_input_edit",), below=0.02),
    # The segmenter found no such object: one pixel would be more.
    "no_foreground_input": Flag(("area_input",), below=1e-12),
    "no_foreground_edit": Flag(("area_edit",), below=1e-12),
}

# Keys and sections that change no score. The pairs' own content is in the shard's hash, however
# they were made.
FREE = (
    *FREE_FOR_ALL,
    # what chooses pairs by their scores, and what names things
    "task.name",
    "task.clip_gain",
    "task.overlap",
    "scorer.gain_unit",
    "filter.select",
    "filter.reject",
    # what made the pairs
    "task.source_bank",
    "task.target_bank",
    "task.caption",
    "task.swap",
    "task.scene_input",
    "teacher",
    "source",
    "direction",
    "inversion",
    "edit",
    "guidance",
    "generate",
    "seed",
    # what is done with them, or how
    "task.scene_truth",
    "filter.batch",
    "filter.generator",  # its content counts, see made_with
    "generator",
    "augment",
    "distill",
)

FORMAT = 4  # raised where the code gives other scores than before for the same settings
METADATA = b"zero2gan"
LIBRARIES = ("torch", "open_clip_torch", "segment-anything", "transformers", "lpips")
SCHEMA = pyarrow.schema(
    {
        "key": pyarrow.string(),
        **dict.fromkeys(SCORES, pyarrow.float64()),
        "flags": pyarrow.list_(pyarrow.string()),
    }
)


def flags_of(row: Mapping[str, Any]) -> list[str]:
    """The names of FLAGS that a pair's raw scores raise. A score that is None or missing raises none."""
    raised = []
    for name, flag in FLAGS.items():
        for score in flag.scores:
            value = row.get(score)
            if value is not None and value < flag.below:
                raised.append(name)
                break
    return raised


def scores_path(config: Config, shard: Path) -> Path:
    """The score file of a shard."""
    return run_dir(config) / "scores" / f"{shard.stem}.parquet"


def made_with(config: Config) -> dict[str, Any]:
    """What this configuration's scores are made with, but for the pairs: keys, the models' files, FORMAT.

    A task without foreground nouns runs no segmenter, so that no key of it counts. UserError where
    only one noun is named.
    """
    task = config.task
    if bool(task.source_noun) != bool(task.target_noun):
        raise UserError("task.source_noun and task.target_noun go together: name both or neither")
    files = {
        "scorer.files": digest(scorer_files(config.scorer)),
        "lpips_generator.files": digest(model_files(config.filter.generator)),
    }
    if not task.source_noun:
        return {**settings_of(config, [*FREE, "segmenter"]), **files, "format": FORMAT}
    for part, hashes in segmenter_files(config.segmenter).items():
        files[f"segmenter.{part}.files"] = digest(hashes)
    return {**settings_of(config, FREE), **files, "format": FORMAT}


def stale_shards(config: Config) -> dict[Path, dict[str, Any]]:
    """The finished shards without current scores, each with what its new scores are made with."""
    models = made_with(config)
    stale = {}
    for shard in finished_shards(pairs_dir(config)):
        wanted = {**models, "shard": read_manifest(shard)["sha256"]}
        if not is_current(scores_path(config, shard), wanted):
            stale[shard] = wanted
    return stale


def is_current(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a score file is there, whole, and made with what is wanted."""
    with contextlib.suppress(OSError, ValueError, KeyError, pyarrow.ArrowException):
        metadata = json.loads(pyarrow.parquet.read_schema(path).metadata[METADATA])
        return not changes(metadata["made_with"], wanted)
    return False


def write_scores(path: Path, rows: Sequence[Mapping[str, Any]], inputs: Mapping[str, Any]) -> None:
    """Write one score file, whole or not at all.

    rows: 'key' and scores by name; a score that is missing, None or NaN becomes null. The flags
    are added. inputs: what the scores were made with.
    """
    table = []
    for row in rows:
        table_row = dict(row)
        for name, value in row.items():
            if value != value:  # NaN is unlike itself
                table_row[name] = None
        table_row["flags"] = flags_of(table_row)
        table.append(table_row)
    versions = {name: version(name) for name in LIBRARIES}
    metadata = json.dumps({"made_with": inputs, "versions": versions}, sort_keys=True)
    schema = SCHEMA.with_metadata({METADATA: metadata})
    with whole_file(path) as stream:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table, schema), stream)


def read_scores(config: Config) -> list[dict[str, Any]]:
    """One row a pair of every finished shard, in order: 'key', SCORES (None for null) and 'flags'.

    The scores may have been made with other models or texts than this configuration's.
    UserError where a shard has no score file, one of other pairs, or an older version's.
    """
    rows: list[dict[str, Any]] = []
    for shard in finished_shards(pairs_dir(config)):
        path = scores_path(config, shard)
        shard_rows = read_score_file(path)
        keys = [row["key"] for row in shard_rows]
        if keys != read_manifest(shard)["keys"] or any(row["flags"] is None for row in shard_rows):
            raise UserError(
                f"{path} is an older version's, or of other pairs than {shard}:"
                " run `zero2gan filter` to score the pairs again"
            )
        rows += shard_rows
    return rows


def read_score_file(path: Path) -> list[dict[str, Any]]:
    """One row a pair of a file of scores. UserError where it is missing or cannot be read."""
    try:
        return pyarrow.parquet.read_table(path, schema=SCHEMA).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"{path} is missing or unreadable: zero2gan filter scores the pairs again") from error
