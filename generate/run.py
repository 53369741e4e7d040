"""Make before/after pairs with pix2pix-zero: stage 1.

  accelerate launch generate/run.py task=tree2winter
  python generate/run.py task=tree2winter source.images=PHOTOS runs_dir=OUT

Reads rendered scenes or a folder of photographs, writes pair shards to <runs_dir>/<task>/<teacher>/pairs. Run the same command again to go
on after an interruption; a larger generate.pairs= adds to what is there.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.loader import digest, model_files, pairs_dir, to_yaml
from configs.schema import Config
from generate.shards import Pair, exclusive, is_finished, read_manifest, write_json, write_shard

if TYPE_CHECKING:
    from generate.editors import Editor
    from generate.sources import InputImage, InputSource

SECTIONS = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance", "generate")
IDENTITY = ("task", "teacher", "source", "direction", "inversion", "edit", "guidance")
LIBRARIES = ("torch", "diffusers", "transformers")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, generate, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What a run would do: number of images, pairs and shards, those already there, and about how much disk all take."""
    from generate.sources import open_source

    source = open_source(config.source, config.task, config.teacher.resolution, config.generate.pairs)
    shards = _shards(config, source)
    done = sum(_is_done(pairs_dir(config), index, ids) for index, ids in shards.items())
    pictures = 2 + (config.generate.save_reconstruction or config.generate.save_latents)
    size = len(source) * pictures * 3 * config.teacher.resolution**2  # a lossless PNG of a photograph is a little smaller than its pixels
    return {
        "writes to": pairs_dir(config),
        "pairs": len(source),
        "shards": len(shards),
        "shards already there": done,
        "disk for the pictures, about (GB)": round(size / 1e9, 2),
    }


def generate(config: Config) -> Path:
    """Make the pairs that are not there yet; returns their folder.

    Raises UserError where the folder was made with another configuration (unless force=true), where another process writes there, and,
    after all the work is done, where more of the images than source.max_unreadable_share could not be read.
    """
    from generate.sources import open_source
    from models.devices import process_group

    state = process_group()
    folder = pairs_dir(config)
    source = open_source(config.source, config.task, config.teacher.resolution, config.generate.pairs)
    with exclusive(folder, f"rank{state.process_index}"):
        if state.is_main_process:
            _claim(folder, config)
        state.wait_for_everyone()
        shards = _shards(config, source)
        missing = {index: ids for index, ids in shards.items() if not _is_done(folder, index, ids)}
        mine = {index: missing[index] for index in list(missing)[state.process_index :: state.num_processes]}
        if state.is_main_process:
            print(f"pairs: {len(source)} wanted, {len(shards) - len(missing)} of {len(shards)} shards already in {folder}", flush=True)
        if mine:
            _write_shards(config, folder, source, mine, state.is_main_process)
        state.wait_for_everyone()
    left_out = [item for index in shards for item in read_manifest(folder / f"{index:06d}.tar")["left_out"]]
    if left_out:
        first = "; ".join(f"{item['id']} ({item['reason']})" for item in left_out[:5])
        message = f"{len(left_out)} of {len(source)} images could not be read and were left out: {first}"
        if len(left_out) > config.source.max_unreadable_share * len(source):
            raise UserError(f"{message}. Mend or remove them, or raise source.max_unreadable_share")
        if state.is_main_process:
            print(message, flush=True)
    return folder


def _write_shards(config: Config, folder: Path, source: InputSource, shards: dict[int, range], talk: bool) -> None:
    from generate.directions import edit_direction
    from generate.editors import Editor
    from models.devices import pick_device
    from models.teacher import Teacher

    teacher = Teacher(config.teacher, pick_device(config.generate.device), config.generate.dtype)
    direction = edit_direction(teacher, config.task, config.direction, Path(config.runs_dir) / "directions")
    editor, made_with = Editor(teacher, direction, config), digest(_identity_values(config))
    progress = _Progress(sum(map(len, shards.values())), talk)
    if talk:
        print(direction.report, flush=True)
    for index, ids in shards.items():
        left_out: list[dict[str, str]] = []
        about = {"ids": [ids.start, ids.stop], "left_out": left_out, "configuration": made_with}
        common = {"seed": config.seed, "direction": direction.hash, "configuration": made_with, "versions": _versions()}
        write_shard(folder, index, _edit(config, editor, common, source, ids, left_out, progress), about)


def _edit(
    config: Config, editor: Editor, common: dict[str, Any], source: InputSource, ids: range, left_out: list, progress: _Progress
) -> Iterator[Pair]:
    """The pairs of one shard, edited in batches; inputs that cannot be read go to left_out."""
    from generate.sources import Unreadable

    inputs = []
    for index in ids:
        try:
            inputs.append(source.load(index))
        except Unreadable as error:
            left_out.append({"id": source.name(index), "reason": str(error)})
    for start in range(0, len(inputs), config.generate.batch):
        yield from _edit_batch(config, editor, common, inputs[start : start + config.generate.batch])
        progress.advance(len(inputs[start : start + config.generate.batch]))


def _edit_batch(config: Config, editor: Editor, common: dict[str, Any], inputs: list[InputImage]) -> Iterator[Pair]:
    import numpy as np
    import torch

    from generate.inversion import noise_statistics

    pixels = torch.from_numpy(np.stack([item.image for item in inputs])).permute(0, 3, 1, 2).float() / 127.5 - 1
    reconstruct = config.generate.save_reconstruction or config.generate.save_latents
    edited = editor(pixels, [item.caption for item in inputs], [item.key for item in inputs], reconstruct)
    levels = {name: ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy() for name, x in edited.pictures.items()}
    latents = {name: latent.cpu() for name, latent in edited.latents.items()}
    statistics = noise_statistics(latents["inverted"])
    for row, item in enumerate(inputs):
        record = {
            "source": item.about,
            "caption": item.caption,
            "caption_from": item.caption_from,
            "noise": statistics[row],
            **common,
        }
        kept = latents if config.generate.save_latents else {}
        arrays = {f"{name}_latent": latent[row].numpy() for name, latent in kept.items()}
        yield Pair(item.key, {"input": item.image, **{name: images[row] for name, images in levels.items()}}, record, arrays)


def _shards(config: Config, source: InputSource) -> dict[int, range]:
    size = config.generate.pairs_per_shard
    return {start // size: range(start, min(start + size, len(source))) for start in range(0, len(source), size)}


def _is_done(folder: Path, index: int, ids: range) -> bool:
    shard = folder / f"{index:06d}.tar"
    return is_finished(shard) and read_manifest(shard)["ids"] == [ids.start, ids.stop]


def _versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}


def _identity_values(config: Config) -> dict[str, Any]:
    """What decides a pair's pixels; where it lies, how many there are and on what device they are made does not."""
    values = {f"{name}.{key}": value for name in IDENTITY for key, value in asdict(getattr(config, name)).items()}
    for threshold in ("task.clip_gain", "task.overlap"):
        del values[threshold]
    return values | {
        "teacher.files": _files_digest(config.teacher.path),
        "direction.made_of": _direction_digest(config),
        "seed": config.seed,
        "generate.dtype": config.generate.dtype,
        "generate.pairs_per_shard": config.generate.pairs_per_shard,
    }


@lru_cache(maxsize=8)
def _files_digest(path: str) -> str:
    return digest(model_files(path))


def _direction_digest(config: Config) -> str:
    """Changes with the content of what the direction is made of."""
    from generate.directions import task_banks

    asked = config.direction
    files = [path for path in (asked.file, asked.source_embedding, asked.target_embedding, *asked.plus) if path]
    ready = asked.file or asked.source_embedding
    return digest([model_files(path) for path in files], [] if ready else task_banks(config.task, asked.sentences))


def _claim(folder: Path, config: Config) -> None:
    """Write the folder's configuration down, or refuse to go on in one that was made with another."""
    wanted = _identity_values(config)
    path = folder / "made_with.json"
    if path.exists() and not config.force:
        present = json.loads(path.read_text())
        changed = [key for key in sorted({*wanted, *present}) if wanted.get(key) != present.get(key)]
        if changed:
            rows = "; ".join(f"{key} was {present.get(key)}, now {wanted.get(key)}" for key in changed)
            raise UserError(f"{folder} was made with another configuration: {rows}. Take another runs_dir= or generate.out=, or force=true")
    write_json(path, wanted)
    (folder / "config.yaml").write_text(to_yaml(config))


class _Progress:
    """A line a batch: done, rate, time left."""

    def __init__(self, total: int, talk: bool) -> None:
        self.total, self.talk, self.done, self.began = total, talk, 0, time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        seconds = time.monotonic() - self.began
        if self.talk:
            left = seconds / self.done * (self.total - self.done)
            print(f"  {self.done}/{self.total} pairs, {seconds / self.done:.2f} s a pair, {left / 60:.1f} min left", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
