"""Make before/after pairs with pix2pix-zero: stage 1.

  accelerate launch generate/run.py task=tree2winter
  python generate/run.py task=tree2winter source.images=PHOTOS runs_dir=OUT

Reads rendered scenes, photographs, webdataset tars or prompts (source.*), writes pair shards to <runs_dir>/<task>/<teacher>/pairs. Run the
same command again to go on after an interruption; a larger generate.pairs= adds to what is there.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.loader import digest, model_files, pairs_dir, scorer_files, to_yaml
from configs.schema import Config
from generate.shards import exclusive, is_finished, read_manifest, write_json, write_shard
from generate.sources import InputSource, open_source
from models.devices import pick_device, process_group

if TYPE_CHECKING:
    from generate.editors import Editor

SECTIONS = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance", "prompt_to_prompt", "generate", "scorer")
IDENTITY = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance", "prompt_to_prompt")
LEFT_OUT = {"unreadable": "images could not be read", "flagged": "edits were flagged by the safety checker"}
LIBRARIES = ("torch", "diffusers", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, generate, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What a run would do: number of images, pairs and shards, those already there, about how much disk all take, and how long the rest."""
    source = input_source(config, look=False)
    shards = _shards(config, source)
    missing = _missing(pairs_dir(config), shards)
    left, count = sum(map(len, missing.values())), len(source.names)
    pictures = 2 + (config.generate.save_reconstruction or config.generate.save_latents)
    size = count * pictures * 3 * config.teacher.resolution**2  # a lossless PNG of a photograph is a little smaller than its pixels
    return {
        "writes to": pairs_dir(config),
        "pairs": count,
        "shards": len(shards),
        "shards already there": len(shards) - len(missing),
        "disk for the pictures, about (GB)": round(size / 1e9, 2),
        "time for the rest, about": _time(config, left / int(os.environ.get("WORLD_SIZE", 1))) if left else "none",
    }


def _time(config: Config, pairs: float) -> str:
    """By timing a few steps of one batch; the teacher may not be here yet."""
    from generate.batches import largest_batch, seconds_a_pair

    try:
        editor = _editor(config, for_timing=True)
    except UserError as error:
        return f"unknown ({error})"
    batch = config.generate.batch or largest_batch(editor, config.generate.pairs_per_shard)
    seconds = seconds_a_pair(editor, batch, config.edit.steps)
    return f"{seconds * pairs / 3600:.2f} hours ({seconds:.2f} s a pair in batches of {batch} on {editor.teacher.device})"


def generate(config: Config) -> Path:
    """Make the pairs that are not there yet; returns their folder.

    Raises UserError where the folder was made with another configuration (unless force=true), where another process writes there, and,
    after all the work is done, where more of the images than source.max_unreadable_share could not be read.
    """
    state = process_group()
    folder = pairs_dir(config)
    with exclusive(folder, f"rank{state.process_index}"):
        if state.is_main_process:
            _claim(folder, config)
            source = input_source(config)  # retrieval looks at every image, once: the others wait and read what it found
        state.wait_for_everyone()
        if not state.is_main_process:
            source = input_source(config)
        count, shards = len(source.names), _shards(config, source)
        missing = _missing(folder, shards)
        mine = {index: missing[index] for index in list(missing)[state.process_index :: state.num_processes]}
        if state.is_main_process:
            print(f"pairs: {count} wanted, {len(shards) - len(missing)} of {len(shards)} shards already in {folder}", flush=True)
        if mine:
            _write_shards(config, folder, source, mine, state.process_index)
        state.wait_for_everyone()
    left_out = [item for index in shards for item in read_manifest(folder / f"{index:06d}.tar")["left_out"]]
    for why, meaning in LEFT_OUT.items():
        found = [item for item in left_out if item["why"] == why]
        if not found:
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
    if k:
        if not config.source.images:
            raise UserError("source.retrieve.k: name the images to choose from with source.images=")
        limit = sys.maxsize if look else min(k, limit)
    source = open_source(config.source, config.task, config.teacher.resolution, limit)
    if not (k and look):
        return source
    from generate.retrieval import nearest

    return nearest(source, config)


def _editor(config: Config, for_timing: bool = False) -> Editor:
    """for_timing: with a direction of nothing, which takes no sentences and writes no cache."""
    from generate.directions import EditDirection, edit_direction
    from generate.editors import Editor
    from models.teacher import Teacher

    settings = config.generate
    teacher = Teacher(config.teacher, pick_device(settings.device), settings.dtype, compiled=settings.compile)
    if for_timing:
        return Editor(teacher, EditDirection(0 * teacher.embed([""]), "", ""), config)
    return Editor(teacher, edit_direction(teacher, config.task, config.direction, Path(config.runs_dir) / "directions"), config)


def _write_shards(config: Config, folder: Path, source: InputSource, shards: dict[int, range], rank: int) -> None:
    from generate.batches import PairMaker, largest_batch
    from generate.captions import Captioner

    editor, made_with = _editor(config), digest(_identity_values(config))
    device = editor.teacher.device
    captioner = Captioner(config.source.captioner, device) if config.source.captioner else None
    settings = replace(config.generate, batch=config.generate.batch or largest_batch(editor, config.generate.pairs_per_shard))
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    common = {"seed": config.seed, "direction": editor.direction.hash, "configuration": made_with, "versions": versions}
    maker = PairMaker(editor, settings, captioner, common)
    progress = _progress(sum(map(len, shards.values()))) if rank == 0 else lambda count: None
    if rank == 0:
        print(f"{editor.direction.report}\nbatches of {settings.batch} on {device}", flush=True)
    for index, ids in shards.items():
        began, left_out = time.monotonic(), []  # type: ignore[var-annotated]
        about = {"ids": [ids.start, ids.stop], "left_out": left_out, "configuration": made_with}
        write_shard(folder, index, maker.pairs(source, ids, left_out, progress), about)
        took = f"{len(ids) - len(left_out)} pairs, {len(left_out)} left out, {time.monotonic() - began:.1f} s"
        with open(folder / "log.txt", "a") as log:
            log.write(f"{datetime.now():%Y-%m-%d %H:%M:%S} {index:06d}.tar: {took}, process {rank} on {device}\n")


def _shards(config: Config, source: InputSource) -> dict[int, range]:
    size = config.generate.pairs_per_shard
    ids = range(len(source.names))
    return {start // size: ids[start : start + size] for start in range(0, len(ids), size)}


def _missing(folder: Path, shards: dict[int, range]) -> dict[int, range]:
    """Those that are not there, or hold other inputs."""
    paths = {index: folder / f"{index:06d}.tar" for index in shards}
    held = {index: read_manifest(path)["ids"] for index, path in paths.items() if is_finished(path)}
    return {index: ids for index, ids in shards.items() if held.get(index) != [ids.start, ids.stop]}


def _identity_values(config: Config) -> dict[str, Any]:
    """What decides a pair's pixels; where it lies, how many there are and on what device they are made does not."""
    values = {f"{name}.{key}": value for name in IDENTITY for key, value in asdict(getattr(config, name)).items()}
    for threshold in ("task.clip_gain", "task.overlap"):
        del values[threshold]
    return values | {
        "teacher.files": digest(model_files(config.teacher.path)),
        "direction.made_of": _direction_digest(config),
        "source.models": digest(model_files(config.source.captioner), scorer_files(config.scorer) if config.source.retrieve.k else ""),
        "seed": config.seed,
        "generate.dtype": config.generate.dtype,
        "generate.pairs_per_shard": config.generate.pairs_per_shard,
    }


def _direction_digest(config: Config) -> str:
    """Changes with the content of what the direction is made of."""
    from generate.directions import task_banks

    asked = config.direction
    files = [path for path in (asked.file, asked.source_embedding, asked.target_embedding, *asked.plus) if path]
    banks = ([], []) if asked.file or asked.source_embedding else task_banks(config.task, asked, Path(config.runs_dir) / "banks")
    return digest([model_files(path) for path in files], banks)


def _claim(folder: Path, config: Config) -> None:
    """Write the folder's configuration down, or refuse to go on in one whose shards were made with another."""
    wanted = _identity_values(config)
    path = folder / "made_with.json"
    if path.exists() and not config.force and any(map(is_finished, folder.glob("[0-9]*.tar"))):
        present = json.loads(path.read_text())
        changed = [key for key in sorted({*wanted, *present}) if wanted.get(key) != present.get(key)]
        if changed:
            rows = "; ".join(f"{key} was {present.get(key)}, now {wanted.get(key)}" for key in changed)
            raise UserError(f"{folder} was made with another configuration: {rows}. Take another runs_dir= or generate.out=, or force=true")
    for torn in folder.glob(".*.tmp"):  # of a killed process: nobody writes before the main process is here
        torn.unlink()
    write_json(path, wanted)
    (folder / "config.yaml").write_text(to_yaml(config))


def _progress(total: int) -> Callable[[int], None]:
    """Told how many pairs are done, prints a line: how many of all, the rate, the time left, and when that is."""
    done, began = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        seconds = (time.monotonic() - began) / done
        left = timedelta(seconds=seconds * (total - done))
        rest = f"{left.total_seconds() / 60:.1f} min left, until {datetime.now() + left:%a %H:%M}"
        print(f"  {done}/{total} pairs, {seconds:.2f} s a pair, {rest}", flush=True)

    return advance


if __name__ == "__main__":
    raise SystemExit(main())
