"""Inputs to pairs, a batch at a time; and how large a batch may be and how long it takes."""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from configs.errors import UserError
from configs.files import find_file
from configs.runs import pairs_dir
from configs.schema import Config, Generate
from generate.directions import EditDirection, edit_direction
from generate.editors import Editor
from generate.inversion import noise_statistics
from generate.shards import Pair, write_shard
from generate.sources import InputImage, InputSource, Unreadable
from models.devices import pick_device
from models.pictures import images_of
from models.teacher import Teacher

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # beyond them an H100 has been busy for long
CPU_BATCH = 16
MEMORY_SHARE = 0.9  # of a GPU: what the allocator cuts into pieces is lost
MAX_TOKENS = 40  # BLIP's captions have about ten

LIBRARIES = ("torch", "diffusers", "transformers")

Captioner = Callable[[Sequence[np.ndarray]], list[str]]


def write_shards(
    config: Config, source: InputSource, shards: dict[int, range], made_with: str, rank: int
) -> None:
    """Make the pairs of these inputs and write them, a line a shard in the log. made_with: hash of what decides the pixels."""
    editor, folder = _editor(config), pairs_dir(config)
    device = editor.teacher.device
    settings = replace(
        config.generate, batch=config.generate.batch or largest_batch(editor, config.generate.pairs_per_shard)
    )
    captioner = blip_captioner(config.source.captioner, device) if config.source.captioner else None
    versions = {name: version(name) for name in LIBRARIES} | {"python": platform.python_version()}
    common = {
        "seed": config.seed,
        "direction": editor.direction.hash,
        "configuration": made_with,
        "versions": versions,
    }
    maker = PairMaker(editor, settings, captioner, common)
    progress = _progress(sum(map(len, shards.values()))) if rank == 0 else lambda count: None
    if rank == 0:
        print(f"{editor.direction.report}\nbatches of {settings.batch} on {device}", flush=True)
    for index, ids in shards.items():
        began = time.monotonic()
        left_out: list[dict[str, str]] = []
        about = {"ids": [ids.start, ids.stop], "left_out": left_out, "configuration": made_with}
        write_shard(folder, index, maker.pairs(source, ids, left_out, progress), about)
        took = f"{len(ids) - len(left_out)} pairs, {len(left_out)} left out, {time.monotonic() - began:.1f} s"
        with open(folder / "log.txt", "a") as log:
            log.write(
                f"{datetime.now():%Y-%m-%d %H:%M:%S} {index:06d}.tar: {took}, process {rank} on {device}\n"
            )


def _editor(config: Config, for_timing: bool = False) -> Editor:
    """for_timing: with a direction of nothing, which takes no sentences and writes no cache."""
    settings = config.generate
    teacher = Teacher(config.teacher, pick_device(config.device), settings.dtype, compiled=settings.compile)
    if for_timing:
        return Editor(teacher, EditDirection(0 * teacher.embed([""]), "", ""), config)
    return Editor(
        teacher,
        edit_direction(teacher, config.task, config.direction, Path(config.runs_dir) / "directions"),
        config,
    )


def _progress(total: int) -> Callable[[int], None]:
    """Told how many more pairs are done, prints a line: how many of all, the rate, the time left, and when that is."""
    done, began = 0, time.monotonic()

    def advance(count: int) -> None:
        nonlocal done
        done += count
        seconds = (time.monotonic() - began) / done
        left = timedelta(seconds=seconds * (total - done))
        until = f"{left.total_seconds() / 60:.1f} min left, until {datetime.now() + left:%a %H:%M}"
        print(f"  {done}/{total} pairs, {seconds:.2f} s a pair, {until}", flush=True)

    return advance


@dataclass
class PairMaker:
    """Edits the inputs of a source. common: what the record of every pair says.

    UserError where an edit is not finite or a batch does not fit into memory.
    """

    editor: Editor
    config: Generate
    captioner: Captioner | None
    common: dict[str, Any]

    def pairs(
        self, source: InputSource, ids: range, left_out: list[dict[str, str]], done: Callable[[int], None]
    ) -> Iterator[Pair]:
        """The pairs of these inputs, in order; unreadable inputs and flagged edits go to left_out. done: told how many, batch by batch."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            waiting = [(index, pool.submit(source.load, index)) for index in ids]
            batch: list[InputImage] = []
            for index, item in waiting:
                try:
                    batch.append(item.result())
                except Unreadable as error:
                    left_out.append({"id": source.names[index], "why": "unreadable", "reason": str(error)})
                if len(batch) == self.config.batch or (batch and index == ids[-1]):
                    yield from self._edit(batch, left_out)
                    done(len(batch))
                    batch = []

    def _edit(self, inputs: list[InputImage], left_out: list[dict[str, str]]) -> Iterator[Pair]:
        captions = self._captions(inputs)
        images = [item.image for item in inputs if item.image.size]
        pixels_BCHW = (
            torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1 if images else None
        )
        reconstruct = self.config.save_reconstruction or self.config.save_latents
        try:
            edited = self.editor(
                pixels_BCHW, [caption for caption, _ in captions], [item.key for item in inputs], reconstruct
            )
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"generate.batch={len(inputs)} does not fit into the GPU's memory: lower it; 0 finds the largest"
            ) from error
        finite_B = [
            all(row.isfinite().all() for row in rows)
            for rows in zip(*edited.latents.values(), *edited.pictures.values(), strict=True)
        ]
        if False in finite_B:
            key = inputs[finite_B.index(False)].key
            raise UserError(
                f"{key}: the edit is not finite in generate.dtype={self.config.dtype}; take bfloat16 or float32"
            )
        made = [
            picture
            for name, picture in edited.pictures.items()
            if name != "reconstruction" and self.config.safety_checker
        ]
        flags = [self.editor.teacher.flagged(picture) for picture in made]
        levels = {name: images_of(picture) for name, picture in edited.pictures.items()}
        latents = {
            f"{name}_latent": latent.cpu().numpy()
            for name, latent in edited.latents.items()
            if self.config.save_latents
        }
        statistics = {name: noise_statistics(noise) for name, noise in edited.noises.items()}
        for row, (item, (caption, caption_from)) in enumerate(zip(inputs, captions, strict=True)):
            if any(flagged[row] for flagged in flags):
                left_out.append(
                    {
                        "id": str(item.source["id"]),
                        "why": "flagged",
                        "reason": "by the teacher's safety checker",
                    }
                )
                continue
            noise = {name: rows[row] for name, rows in statistics.items()}
            record = {
                "source": item.source,
                "caption": caption,
                "caption_from": caption_from,
                "noise": noise,
                **self.common,
            }
            pictures = {"input": item.image} | {name: picture[row] for name, picture in levels.items()}
            yield Pair(item.key, pictures, record, {name: latent[row] for name, latent in latents.items()})

    def _captions(self, inputs: list[InputImage]) -> list[tuple[str, str]]:
        captions = [(item.caption, item.caption_from) for item in inputs]
        bare = [row for row, item in enumerate(inputs) if item.caption_from == "task.caption"]
        if self.captioner and bare:
            for row, caption in zip(bare, self.captioner([inputs[row].image for row in bare]), strict=True):
                captions[row] = (caption, "source.captioner") if caption else captions[row]
        return captions


def blip_captioner(path: str, device: torch.device) -> Captioner:
    """Captions RGB uint8 images by a BLIP model (Li et al. 2022) of a hub name or folder: the most probable words, the same every time.
    UserError where it does not load.
    """
    from transformers import BlipForConditionalGeneration, BlipProcessor

    try:
        processor = BlipProcessor.from_pretrained(find_file(path))
        model = BlipForConditionalGeneration.from_pretrained(find_file(path)).to(device).eval()
    except (OSError, ValueError) as error:
        message = f"source.captioner={path} does not load as a BLIP model: {str(error).splitlines()[0][:200]}"
        advice = "Salesforce/blip-image-captioning-base is one; name a folder where the hub is not reached"
        raise UserError(f"{message}. {advice}") from error

    def caption(images: Sequence[np.ndarray]) -> list[str]:
        pixels = processor(images=[image.copy() for image in images], return_tensors="pt").pixel_values.to(
            device
        )
        words = model.generate(pixel_values=pixels, max_new_tokens=MAX_TOKENS, num_beams=1, do_sample=False)
        return [text.strip() for text in processor.batch_decode(words, skip_special_tokens=True)]

    return caption


def time_for(config: Config, pairs: float) -> str:
    """About how long so many pairs take, in words, by timing a few steps of one batch; the teacher may not be here yet."""
    try:
        editor = _editor(config, for_timing=True)
    except UserError as error:
        return f"unknown ({error})"
    batch = config.generate.batch or largest_batch(editor, config.generate.pairs_per_shard)
    seconds = seconds_a_pair(editor, batch, config.edit.steps)
    return f"{seconds * pairs / 3600:.2f} hours ({seconds:.2f} s a pair in batches of {batch} on {editor.teacher.device})"


def largest_batch(editor: Editor, most: int) -> int:
    """How many pairs, a power of two or `most`, the editor's GPU holds at once, by trying; on a CPU the smaller of CPU_BATCH and most.

    Memory does not depend on the number of steps, so one step of each pass tells; but with guidance.maps=inversion.
    """
    device = editor.teacher.device
    if device.type == "cpu":
        return min(CPU_BATCH, most)
    probe = editor if editor.guidance.maps == "inversion" else editor.shortened(1)
    fits = 1
    for size in sorted({min(size, most) for size in BATCHES}):
        try:
            torch.cuda.reset_peak_memory_stats(device)
            _try(probe, size)
        except torch.OutOfMemoryError:
            break
        if (
            torch.cuda.max_memory_reserved(device)
            > MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
        ):
            break
        fits = size
    torch.cuda.empty_cache()
    return fits


def seconds_a_pair(editor: Editor, batch: int, steps: int) -> float:
    """About how long one pair takes in batches of `batch`: two steps and four are timed, and the difference is extended to all."""
    times = []
    for some in (2, 2, 4):  # in the first, kernels are loaded and chosen
        began = time.perf_counter()
        _try(editor.shortened(some), batch)
        times.append(time.perf_counter() - began)
    _, two, four = times
    return (two + (steps - 2) * max(four - two, 0.0) / 2) / batch


def _try(editor: Editor, batch: int) -> None:
    side = editor.teacher.resolution
    names = [str(row) for row in range(batch)]
    edited = editor(torch.zeros(batch, 3, side, side), names, names, True)
    edited.pictures["edit"].cpu()  # waits for the GPU
