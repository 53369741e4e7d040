"""The scores on disk: one parquet file a shard, every raw score whatever the thresholds, and what the scores were
made with.

    scores/000000.parquet   for pairs/000000.tar; its metadata `zero2gan` is the JSON that `identity` gives

A file whose identity is not today's (another model, text or shard) is stale, and its shard is scored again. The library versions that are
written down with it do not count: an upgrade is no reason to score 15,000 pairs anew.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from configs.errors import UserError
from configs.loader import digest, model_files, pairs_dir, run_dir, scorer_files
from configs.schema import Config, Scorer, Segmenter
from filter.clip_gain import CLIP_SCORES
from filter.overlap import OVERLAP_SCORES
from filter.pictures import PICTURE_SCORES, flags_of
from generate.shards import finished_shards, read_manifest

FORMAT = 2
METADATA = b"zero2gan"
LIBRARIES = ("torch", "open_clip_torch", "segment-anything", "transformers", "lpips")
SCORES = CLIP_SCORES + OVERLAP_SCORES + PICTURE_SCORES
SCHEMA = pyarrow.schema(
    [("key", pyarrow.string()), *((name, pyarrow.float64()) for name in SCORES), ("flags", pyarrow.list_(pyarrow.string()))]
)


def scores_path(config: Config, shard: Path) -> Path:
    """The score file of a shard."""
    return run_dir(config) / "scores" / f"{shard.stem}.parquet"


def models_identity(config: Config) -> dict[str, Any]:
    """What every score file of this configuration must say of its models and texts. UserError where only one noun is
    named.
    """
    task, scorer, segmenter = config.task, asdict(config.scorer), asdict(config.segmenter)
    if bool(task.source_noun) != bool(task.target_noun):
        raise UserError("task.source_noun and task.target_noun go together: name both or neither")
    del scorer["gain_unit"], segmenter["batch"], segmenter["points_per_batch"]  # the scores are the same whatever these are
    nouns = [task.source_noun, task.target_noun] if task.source_noun else None
    weights = {"scorer": scorer_files(config.scorer)}
    if nouns:
        weights |= {name: model_files(segmenter[name]) for name in ("model", "checkpoint", "detector")}
    return {
        "format": FORMAT,
        "scorer": _name(config.scorer),
        "segmenter": _name(config.segmenter) if nouns else None,
        "texts": [task.source, task.target],
        "nouns": nouns,
        "settings": digest(scorer, segmenter if nouns else None, config.filter.dtype),
        "weights": weights,
    }


def identity(models: Mapping[str, Any], shard: Path) -> dict[str, Any]:
    """What the score file of a shard must say to be used as it is."""
    return {**models, "shard_sha256": read_manifest(shard)["sha256"]}


def is_current(path: Path, wanted: Mapping[str, Any]) -> bool:
    """Whether a score file is there, whole, and made as `wanted`."""
    with contextlib.suppress(OSError, ValueError, KeyError, pyarrow.ArrowException):
        about = json.loads(pyarrow.parquet.read_schema(path).metadata[METADATA])
        return {name: value for name, value in about.items() if name != "versions"} == wanted
    return False


def write_scores(path: Path, keys: Sequence[str], scores: Mapping[str, Sequence[float | None]], about: Mapping[str, Any]) -> None:
    """Write one score file, whole or not at all. scores: each of SCORES, as long as keys; None and NaN become null; they make the flags."""
    columns = [pyarrow.array(keys, pyarrow.string())]
    columns += [pyarrow.array(scores[name], pyarrow.float64(), from_pandas=True) for name in SCORES]  # from_pandas: NaN is null
    flags = [flags_of(dict(zip(SCORES, row, strict=True))) for row in zip(*(scores[name] for name in SCORES), strict=True)]
    columns.append(pyarrow.array(flags, SCHEMA.field("flags").type))
    made_with = {**about, "versions": {name: version(name) for name in LIBRARIES}}
    table = pyarrow.Table.from_arrays(columns, schema=SCHEMA.with_metadata({METADATA: json.dumps(made_with, sort_keys=True)}))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            pyarrow.parquet.write_table(table, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_scores(config: Config) -> list[dict[str, Any]]:
    """One row a pair ('key', SCORES with None for null, 'flags') of every finished shard, in order.

    Whatever models made them: filter/run.py renews the files first. UserError where a shard has no score file, one of other pairs, or an
    older version's.
    """
    rows: list[dict[str, Any]] = []
    for shard in finished_shards(pairs_dir(config)):
        path = scores_path(config, shard)
        try:
            found = pyarrow.parquet.read_table(path, schema=SCHEMA).to_pylist()
        except (OSError, ValueError, pyarrow.ArrowException) as error:
            raise UserError(f"{path} is missing or unreadable: run filter/run.py to score the pairs") from error
        older = any(row["flags"] is None for row in found)
        if older or [row["key"] for row in found] != read_manifest(shard)["keys"]:
            what = "an older version's scores" if older else f"the scores of other pairs than {shard}"
            raise UserError(f"{path} holds {what}: run filter/run.py to score the pairs again")
        rows += found
    return rows


def _name(part: Scorer | Segmenter) -> str:
    return " ".join(
        filter(None, [part.model, part.pretrained] if isinstance(part, Scorer) else [part.model, part.checkpoint, part.detector])
    )
