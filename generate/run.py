"""Make before/after pairs with pix2pix-zero: stage 1.

  accelerate launch generate/run.py task=tree2winter
  python generate/run.py task=tree2winter source.images=PHOTOS runs_dir=OUT

Reads rendered scenes, photographs, webdataset tars or prompts (source.*), writes pair shards to <runs_dir>/<task>/<teacher>/pairs. Run the
same command again to go on after an interruption; a larger generate.pairs= adds to what is there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import digest, exclusive, model_files, write_json
from configs.loader import to_yaml
from configs.runs import pairs_dir, scorer_files
from configs.schema import Config
from generate.banks import task_banks
from generate.shards import is_finished, read_manifest
from generate.sources import InputSource, open_source
from models.devices import process_group

IDENTITY = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance")
SECTIONS = (*IDENTITY, "generate", "scorer")
LEFT_OUT = {"unreadable": "images could not be read", "flagged": "edits were flagged by the safety checker"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, generate, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What a run would do: number of images, pairs and shards, those already there, about how much disk all take, and how long the rest."""
    from generate.batches import time_for

    source = input_source(config, look=False)
    shards, missing = _shards(config, source)
    left, count = sum(map(len, missing.values())), len(source.names)
    pictures = 2 + (config.generate.save_reconstruction or config.generate.save_latents)
    size = (
        count * pictures * 3 * config.teacher.resolution**2
    )  # a lossless PNG of a photograph is a little smaller than its pixels
    return {
        "writes to": pairs_dir(config),
        "pairs": count,
        "shards": len(shards),
        "shards already there": len(shards) - len(missing),
        "disk for the pictures, about (GB)": round(size / 1e9, 2),
        "time for the rest, about": time_for(config, left / int(os.environ.get("WORLD_SIZE", 1)))
        if left
        else "none",
    }


def generate(config: Config) -> Path:
    """Make the pairs that are not there yet; returns their folder.

    Raises UserError where the folder was made with another configuration (unless force=true), where another process writes there, and,
    after all the work is done, where more of the images than source.max_unreadable_share could not be read.
    """
    state = process_group()
    folder = pairs_dir(config)
    with exclusive(folder, f"rank{state.process_index}"):
        with (
            state.main_process_first()
        ):  # its retrieval looks at every image, once: the others read what it found
            if state.is_main_process:
                _claim(folder, config)
            source = input_source(config)
        count, (shards, missing) = len(source.names), _shards(config, source)
        mine = dict(list(missing.items())[state.process_index :: state.num_processes])
        state.wait_for_everyone()  # a shard that another process finished before this one looked would shift the shares
        if state.is_main_process:
            print(
                f"pairs: {count} wanted, {len(shards) - len(missing)} of {len(shards)} shards already in {folder}",
                flush=True,
            )
        if mine:
            from generate.batches import write_shards

            write_shards(config, source, mine, digest(_identity_values(config)), state.process_index)
        state.wait_for_everyone()
    left_out = [item for index in shards for item in read_manifest(folder / f"{index:06d}.tar")["left_out"]]
    for why, meaning in LEFT_OUT.items():
        if not (found := [item for item in left_out if item["why"] == why]):
            continue
        first = "; ".join(f"{item['id']} ({item['reason']})" for item in found[:5])
        message = f"{len(found)} of {count} {meaning} and were left out: {first}"
        if why == "unreadable" and len(found) > config.source.max_unreadable_share * count:
            raise UserError(f"{message}. Mend or remove them, or raise source.max_unreadable_share")
        if state.is_main_process:
            print(message, flush=True)
    return folder


def input_source(config: Config, look: bool = True) -> InputSource:
    """The run's inputs. look: with source.retrieve.k, look at the images; else it is only a source of as many."""
    k, limit = config.source.retrieve.k, config.generate.pairs
    if k and not config.source.images:
        raise UserError("source.retrieve.k: name the images to choose from with source.images=")
    if not k or not look:
        return open_source(config.source, config.task, config.teacher.resolution, min(k or limit, limit))
    from generate.retrieval import nearest

    return nearest(open_source(config.source, config.task, config.teacher.resolution, sys.maxsize), config)


def _shards(config: Config, source: InputSource) -> tuple[dict[int, range], dict[int, range]]:
    """The inputs of each shard; and of those that are not there, or hold other inputs."""
    size, ids = config.generate.pairs_per_shard, range(len(source.names))
    shards = {start // size: ids[start : start + size] for start in range(0, len(ids), size)}

    def is_there(index: int, ids: range) -> bool:
        path = pairs_dir(config) / f"{index:06d}.tar"
        return is_finished(path) and read_manifest(path)["ids"] == [ids.start, ids.stop]

    return shards, {index: ids for index, ids in shards.items() if not is_there(index, ids)}


def _identity_values(config: Config) -> dict[str, Any]:
    """What decides a pair's pixels; where it lies, how many there are and on what device they are made does not."""
    asked = config.direction
    ready = [
        path for path in (asked.file, asked.source_embedding, asked.target_embedding, *asked.plus) if path
    ]
    banks = (
        ([], [])
        if asked.file or asked.source_embedding
        else task_banks(config.task, asked, Path(config.runs_dir) / "banks")
    )
    values = {
        f"{name}.{key}": value for name in IDENTITY for key, value in asdict(getattr(config, name)).items()
    }
    for key in ("task.clip_gain", "task.overlap", "source.scenes"):
        del values[key]
    return values | {
        "teacher.files": digest(model_files(config.teacher.path)),
        "direction.made_of": digest([model_files(path) for path in ready], banks),
        "source.models": digest(
            model_files(config.source.captioner),
            scorer_files(config.scorer) if config.source.retrieve.k else "",
        ),
        "seed": config.seed,
        "generate.dtype": config.generate.dtype,
        "generate.pairs_per_shard": config.generate.pairs_per_shard,
    }


def _claim(folder: Path, config: Config) -> None:
    """Write the folder's configuration down, or refuse to go on in one whose shards were made with another."""
    wanted = _identity_values(config)
    path = folder / "made_with.json"
    if path.exists() and not config.force and any(map(is_finished, folder.glob("[0-9]*.tar"))):
        present = json.loads(path.read_text())
        changed = [key for key in sorted({*wanted, *present}) if wanted.get(key) != present.get(key)]
        if changed:
            rows = "; ".join(f"{key} was {present.get(key)}, now {wanted.get(key)}" for key in changed)
            raise UserError(
                f"{folder} was made with another configuration: {rows}. Take another runs_dir= or generate.out=, or force=true"
            )
    for torn in folder.glob(".*.tmp"):  # of a killed process: nobody writes before the main process is here
        torn.unlink()
    write_json(path, wanted)
    (folder / "config.yaml").write_text(to_yaml(config))


if __name__ == "__main__":
    raise SystemExit(main())
