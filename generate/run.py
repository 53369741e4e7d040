"""Make before/after pairs with pix2pix-zero, or another editor: stage 1.

  zero2gan generate task=tree2winter runs_dir=runs/mine
  zero2gan generate task=custom task.source=tree task.target="blossoming tree" source.images=PHOTOS
  zero2gan generate runs/mine/tree2winter/miniature generate.pairs=500       more of the same
  zero2gan generate task=tree2winter source.images=PHOTOS edit.pipeline=timbrooks/instruct-pix2pix \\
      edit.instruction="make it winter"
  zero2gan generate task=tree2winter source.pairs=FOLDER                     pairs that exist
  accelerate launch generate/run.py task=tree2winter preset=paper            every GPU there is

Reads rendered scenes, photographs, webdataset tars, prompts or ready pairs (source.*), writes pair
shards to <runs_dir>/<task>/<teacher>/pairs and the keys to run.yaml beside them, which later stages
read. Run the same command again to go on after an interruption; a larger generate.pairs= adds to what
is there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import digest, exclusive, find_file, model_files, write_json
from configs.loader import to_yaml
from configs.methods import needs_teacher
from configs.runs import (
    FREE_FOR_ALL,
    changes,
    command,
    pairs_dir,
    remember,
    run_dir,
    scorer_files,
    settings_of,
    training_side,
)
from configs.schema import Config, Direction, Task
from generate.banks import task_banks
from generate.shards import is_finished, read_manifest
from generate.sources import InputSource, open_source
from models.devices import process_group

# What --help shows.
SECTIONS = (
    "task",
    "teacher",
    "source",
    "direction",
    "inversion",
    "edit",
    "guidance",
    "generate",
    "scorer",
)
# The keys and sections that do not change a pair. Every other key does, and wants another folder.
FREE = (
    *FREE_FOR_ALL,
    # how many pairs there are, where they lie, and how they are made
    "generate.pairs",
    "generate.out",
    "generate.batch",
    "generate.compile",
    # what else is kept or left out beside them
    "generate.save_reconstruction",
    "generate.save_latents",
    "generate.safety_checker",
    "source.max_unreadable_share",
    # the later stages; the scorer's files count where it retrieves images
    "task.clip_gain",
    "task.overlap",
    "scorer",
    "segmenter",
    "filter",
    "generator",
    "augment",
    "distill",
)
# What run.yaml has of this stage.
REMEMBERED = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance", "generate", "seed")
# Keys that count for one method alone, so that the folders of all others know nothing of them.
OF_ONE_METHOD = {
    "source.pairs": "pairs",
    "source.pair_names": "pairs",
    "edit.pipeline": "pipeline",
    "edit.instruction": "pipeline",
    "edit.arguments": "pipeline",
}
# What a shard's manifest says of the inputs that it lacks, and what that means in a message.
LEFT_OUT = {"unreadable": "images could not be read", "flagged": "edits were flagged by the safety checker"}
SETTINGS = "made_with.json"  # beside the shards: what they were made with
NAMED = 5  # inputs that were left out that a message names


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""

    def work(config: Config) -> None:
        generate(config, remembered=True)
        if process_group().is_main_process:
            print(f"next: {command('filter', run_dir(config))}")

    return entry(__doc__, SECTIONS, work, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What a run would do: pairs, shards, those already there, disk space, and time for the rest.

    UserError where the run itself would refuse the folder.
    """
    config = for_this_device(config)
    refuse_early(config)
    refuse_other_settings(pairs_dir(config), config)
    source = input_source(config, retrieve=False)
    shards = split_into_shards(len(source.names), config.generate.pairs_per_shard)
    missing = missing_shards(pairs_dir(config), shards)
    return {
        "writes to": pairs_dir(config),
        "pairs": len(source.names),
        "shards": len(shards),
        "shards already there": len(shards) - len(missing),
        "disk for the pictures, about (GB)": round(_picture_bytes(config, len(source.names)) / 1e9, 2),
        "the generator will train at (pixels)": training_side(config),
        "time for the rest, about": partial(_time_for_the_rest, config, missing),
    }


def _picture_bytes(config: Config, pairs: int) -> int:
    """About the size of all pictures: a lossless PNG is a little smaller than its pixels."""
    has_reconstruction = config.generate.save_reconstruction or config.generate.save_latents
    pictures = 3 if has_reconstruction and needs_teacher(config.edit.method) else 2
    return pairs * pictures * 3 * config.teacher.resolution**2


def _time_for_the_rest(config: Config, missing: Mapping[int, range]) -> str:
    """About how long the missing shards take all processes together, in words."""
    if not missing:
        return "none"
    from generate.batch_size import time_for

    processes = int(os.environ.get("WORLD_SIZE", 1))
    return time_for(config, sum(map(len, missing.values())) / processes)


def generate(config: Config, remembered: bool = False) -> Path:
    """Make the pairs that are not there yet; returns their folder.

    remembered: these are the run's own pairs, so run.yaml says how they are made. Raises UserError
    where the folder was made with other settings (unless force=true), where another process writes
    there, and, after all the work is done, where more of the images than source.max_unreadable_share
    could not be read.
    """
    config = for_this_device(config)
    refuse_early(config)
    state = process_group()
    rank = state.process_index
    folder = pairs_dir(config)
    with exclusive(folder, f"rank{rank}"):
        # Retrieval looks at every image, in the first process: the others read the features it kept.
        with state.main_process_first():
            if state.is_main_process:
                claim(folder, config)
                if remembered:
                    remember(config, REMEMBERED)
            source = input_source(config)
        count = len(source.names)
        shards = split_into_shards(count, config.generate.pairs_per_shard)
        missing = missing_shards(folder, shards)
        mine = list(missing)[rank :: state.num_processes]
        # A shard that another process finished before this one looked would shift the shares.
        state.wait_for_everyone()
        if state.is_main_process:
            present = f"{len(shards) - len(missing)} of {len(shards)} shards"
            print(f"pairs: {count} wanted, {present} already in {folder}", flush=True)
            _say_what_to_know(config, missing)
        if mine:
            from generate.pairs import write_shards

            my_shards = {index: shards[index] for index in mine}
            write_shards(config, source, my_shards, digest(made_with(config)), rank)
        state.wait_for_everyone()
    _report_left_out(config, folder, shards, printed=state.is_main_process)
    return folder


def for_this_device(config: Config) -> Config:
    """The configuration with float32 in the place of float16 where the device lacks operators for that."""
    from models.devices import has_half, pick_device

    device = pick_device(config.device)
    if config.generate.dtype == "float16" and not has_half(device):
        _tell_of_float32("this CPU" if device.type == "cpu" else device.type)
        return replace(config, generate=replace(config.generate, dtype="float32"))
    return config


@cache  # told once
def _tell_of_float32(device: str) -> None:
    print(f"generate.dtype=float16 is for a GPU that has all of it: {device} computes in float32", flush=True)


def refuse_early(config: Config) -> None:
    """UserError for what the method cannot do, as far as it is known before any weight is loaded."""
    if needs_teacher(config.edit.method):
        refuse_side(config)
        return
    from generate.editors import picture_editor

    if config.source.prompts:
        raise UserError(
            "source.prompts: a Stable Diffusion teacher makes pictures of them, and there is none with "
            f"edit.method={config.edit.method}: name pictures with source.images=FOLDER"
        )
    picture_editor(config.edit.method).check(config)


def refuse_side(config: Config) -> None:
    """UserError for a teacher.resolution that its VAE has not, before any weight is loaded."""
    from models.teacher import refuse_resolution

    folder = Path(find_file(config.teacher.config or config.teacher.path))
    try:
        vae = json.loads((folder / "vae" / "config.json").read_text())
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return  # a hub name, or a folder that is refused when it is loaded
    refuse_resolution(config.teacher.resolution, factor)


def _say_what_to_know(config: Config, missing: Mapping[int, range]) -> None:
    """Print what a user would rather know now than when the pairs are there."""
    side = training_side(config)
    if side != config.teacher.resolution:
        print(f"the generator will train at {side} x {side}: set distill.resolution= for another", flush=True)
    if not missing:
        return
    from generate.batch_size import slow_on_cpu

    slow = slow_on_cpu(config, sum(map(len, missing.values())))
    if slow:
        print(f"warning: {slow}", flush=True)


def input_source(config: Config, retrieve: bool = True) -> InputSource:
    """The run's inputs: of a large source the nearest ones, where source.retrieve.k is set.

    retrieve=False: for a plan, as many as there will be, without a look at the images.
    """
    k = config.source.retrieve.k
    limit = config.generate.pairs
    resolution = config.teacher.resolution
    if not k:
        return open_source(config.source, config.task, resolution, limit)
    if not config.source.images:
        raise UserError("source.retrieve.k: name the images to choose from with source.images=")
    if not retrieve:
        return open_source(config.source, config.task, resolution, min(k, limit))
    from generate.retrieval import nearest

    all_images = open_source(config.source, config.task, resolution, sys.maxsize)
    return nearest(all_images, config)


def split_into_shards(count: int, size: int) -> dict[int, range]:
    """Number of the shard -> indices of its inputs, `size` a shard."""
    shards = {}
    for index, start in enumerate(range(0, count, size)):
        shards[index] = range(start, min(start + size, count))
    return shards


def missing_shards(folder: Path, shards: Mapping[int, range]) -> dict[int, range]:
    """Those that are not in the folder, or there with other inputs, as a last shard that was not full."""
    missing = {}
    for index, ids in shards.items():
        path = _shard_path(folder, index)
        if not (is_finished(path) and read_manifest(path)["ids"] == [ids.start, ids.stop]):
            missing[index] = ids
    return missing


def _shard_path(folder: Path, index: int) -> Path:
    return folder / f"{index:06d}.tar"


def _report_left_out(config: Config, folder: Path, shards: Mapping[int, range], printed: bool) -> None:
    """Print what was left out, and why. UserError where too many images could not be read."""
    count = sum(map(len, shards.values()))
    left_out = []
    for index in shards:
        left_out += read_manifest(_shard_path(folder, index))["left_out"]
    for why, meaning in LEFT_OUT.items():
        items = [item for item in left_out if item["why"] == why]
        if not items:
            continue
        first = "; ".join(f"{item['id']} ({item['reason']})" for item in items[:NAMED])
        message = f"{len(items)} of {count} {meaning} and were left out: {first}"
        if why == "unreadable" and len(items) > config.source.max_unreadable_share * count:
            raise UserError(f"{message}. Mend or remove them, or raise source.max_unreadable_share")
        if printed:
            print(message, flush=True)


def refuse_other_settings(folder: Path, config: Config) -> None:
    """UserError where the folder's shards were made with other settings, unless force=true."""
    path = folder / SETTINGS
    has_shards = any(map(is_finished, folder.glob("[0-9]*.tar")))
    if config.force or not has_shards or not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): make the pairs anew in another runs_dir=") from error
    rows = changes(before, made_with(config))
    if rows:
        raise UserError(
            f"{folder} was made with another configuration: {'; '.join(rows)}. "
            "Take another runs_dir= or generate.out=, or force=true"
        )


def claim(folder: Path, config: Config) -> None:
    """Write down what the folder is made with; UserError where its shards were made otherwise."""
    refuse_other_settings(folder, config)
    # Temporary files are a killed process's: no process writes before the main process has been here.
    for torn in folder.glob(".*.tmp"):
        torn.unlink()
    write_json(folder / SETTINGS, made_with(config))
    (folder / "config.yaml").write_text(to_yaml(config))


def made_with(config: Config) -> dict[str, Any]:
    """What decides a pair's pixels, as JSON: all settings but FREE, and hashes of models and sentences.

    Of the inputs their place counts (source.images, source.prompts, source.pairs), not their content.
    """
    method = config.edit.method
    free = [*FREE, *(key for key, user in OF_ONE_METHOD.items() if user != method)]
    editor = model_files(config.edit.pipeline)
    direction = ""
    if needs_teacher(method):
        editor = model_files(config.teacher.path) | model_files(config.teacher.config)
        direction = _direction_hash(config.task, config.direction)
    source_models: list[Any] = [model_files(config.source.captioner)]
    if config.source.retrieve.k > 0:
        source_models += [config.scorer, scorer_files(config.scorer)]
    return settings_of(config, free) | {
        "teacher.files": digest(editor),
        "direction.made_of": direction,
        "source.models": digest(source_models),
    }


def _direction_hash(task: Task, config: Direction) -> str:
    """A hash of what the direction is made of: its ready files, or the sentences."""
    files = [path for path in (config.file, *config.files) if path]
    if files:
        return digest([model_files(path) for path in files])
    return digest(task_banks(task, config))


if __name__ == "__main__":
    raise SystemExit(main())
