"""The scores: which there are, and how they lie on disk: one parquet file a shard, every raw score whatever the thresholds.

    scores/000000.parquet   for pairs/000000.tar; its metadata `zero2gan` is JSON: the shard's hash, models_identity, library versions

A file made with another model, text or shard is stale, and its shard is scored again. Library versions do not count: an upgrade is no
reason to score 15,000 pairs anew.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from configs.errors import UserError
from configs.files import digest, model_files, whole_file
from configs.runs import pairs_dir, run_dir, scorer_files
from configs.schema import Config
from generate.shards import finished_shards, read_manifest

CLIP_SCORES = {
    "sim_input_source": "cosine of input and source text",
    "sim_input_target": "cosine of input and target text",
    "sim_edit_source": "cosine of edit and source text",
    "sim_edit_target": "cosine of edit and target text",
    "clip_gain": "how much nearer to the target text the edit is than the input",
    "clip_directional": "cosine of the change in picture and the change in text",
    "image_image": "cosine of input and edit",
}
OVERLAP_SCORES = {
    "overlap_iou": "foreground masks: intersection over union",
    "overlap_dice": "foreground masks: twice the intersection over the sum",
    "area_input": "foreground of the input, share of the picture",
    "area_edit": "foreground of the edit, share of the picture",
}
PICTURE_SCORES = {
    "lpips_input_edit": "LPIPS between input and edit",
    "sharpness_input": "variance of the Laplacian",
    "sharpness_edit": "variance of the Laplacian",
    "sharpness_ratio": "sharpness of the edit over that of the input",
}
SAYS = CLIP_SCORES | OVERLAP_SCORES | PICTURE_SCORES
SCORES = tuple(SAYS)

FLAGS = {  # what is plainly wrong with a pair, and the scores of which one below the limit says so
    # A safety checker's black picture. One colour has sharpness 0; the softest of 32 of the miniature's edits has 234.
    "blank": (("sharpness_input", "sharpness_edit"), 1.0),
    # The edit is the input. JPEG of quality 90 does more (.04 to .09 on the miniature's scenes), its reconstructions .10 and more.
    "unchanged": (("lpips_input_edit",), 0.02),
    "no_foreground_input": (
        ("area_input",),
        1e-12,
    ),  # the segmenter found no such object: one pixel would be more
    "no_foreground_edit": (("area_edit",), 1e-12),
}

FORMAT = 2
METADATA = b"zero2gan"
LIBRARIES = ("torch", "open_clip_torch", "segment-anything", "transformers", "lpips")
SCHEMA = pyarrow.schema(
    [
        ("key", pyarrow.string()),
        *((name, pyarrow.float64()) for name in SCORES),
        ("flags", pyarrow.list_(pyarrow.string())),
    ]
)


def flags_of(row: Mapping[str, Any]) -> list[str]:
    """The FLAGS that a pair's raw scores raise; a score that is not there raises none."""
    return [
        flag
        for flag, (names, limit) in FLAGS.items()
        if any(row.get(name) is not None and row[name] < limit for name in names)
    ]


def scores_path(config: Config, shard: Path) -> Path:
    """The score file of a shard."""
    return run_dir(config) / "scores" / f"{shard.stem}.parquet"


def models_identity(config: Config) -> dict[str, Any]:
    """What every score file of this configuration must say of its models and texts. UserError where only one noun is named."""
    task, scorer, segmenter = config.task, asdict(config.scorer), asdict(config.segmenter)
    if bool(task.source_noun) != bool(task.target_noun):
        raise UserError("task.source_noun and task.target_noun go together: name both or neither")
    del (
        scorer["gain_unit"],
        segmenter["batch"],
        segmenter["points_per_batch"],
    )  # the scores are the same whatever these are
    nouns = [task.source_noun, task.target_noun] if task.source_noun else None
    parts = {name: segmenter[name] for name in ("model", "checkpoint", "detector")} if nouns else {}
    return {
        "format": FORMAT,
        "scorer": " ".join(filter(None, (scorer["model"], scorer["pretrained"]))),
        "segmenter": " ".join(filter(None, parts.values())) or None,
        "texts": [task.source, task.target],
        "nouns": nouns,
        "settings": digest(scorer, segmenter if nouns else None, config.filter.dtype),
        "weights": {
            "scorer": scorer_files(config.scorer),
            **{name: model_files(path) for name, path in parts.items()},
        },
    }


def is_current(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a score file is there, whole, and made as `wanted`."""
    with contextlib.suppress(OSError, ValueError, KeyError, pyarrow.ArrowException):
        about = json.loads(pyarrow.parquet.read_schema(path).metadata[METADATA])
        return {name: value for name, value in about.items() if name != "versions"} == wanted
    return False


def write_scores(path: Path, rows: Sequence[Mapping[str, Any]], about: Mapping[str, Any]) -> None:
    """Write one score file, whole or not at all. rows: 'key' and scores by name; one that is missing, None or NaN becomes null."""
    numbers = [{name: None if value != value else value for name, value in row.items()} for row in rows]
    made_with = {**about, "versions": {name: version(name) for name in LIBRARIES}}
    schema = SCHEMA.with_metadata({METADATA: json.dumps(made_with, sort_keys=True)})
    with whole_file(path) as stream:
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([row | {"flags": flags_of(row)} for row in numbers], schema), stream
        )


def read_scores(config: Config) -> list[dict[str, Any]]:
    """One row a pair ('key', SCORES with None for null, 'flags') of every finished shard, in order.

    Whatever models made them. UserError where a shard has no score file, one of other pairs, or an older version's.
    """
    rows: list[dict[str, Any]] = []
    for shard in finished_shards(pairs_dir(config)):
        path = scores_path(config, shard)
        try:
            found = pyarrow.parquet.read_table(path, schema=SCHEMA).to_pylist()
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(
                f"{path} is missing or unreadable: run filter/run.py to score the pairs"
            ) from error
        if [row["key"] for row in found] != read_manifest(shard)["keys"] or any(
            row["flags"] is None for row in found
        ):
            raise UserError(
                f"{path} is an older version's, or of other pairs than {shard}: run filter/run.py to score the pairs again"
            )
        rows += found
    return rows
