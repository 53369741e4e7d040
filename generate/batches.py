"""Inputs to pairs, a batch at a time; and how large a batch may be and how long it takes."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from configs.errors import UserError
from configs.schema import Generate
from generate.captions import Captioner
from generate.editors import Edited, Editor
from generate.inversion import noise_statistics
from generate.shards import Pair
from generate.sources import InputImage, InputSource, Unreadable
from models.teacher import to_levels

CPU_BATCH = 16
LARGEST_BATCH = 64  # beyond it an H100 has been busy for long
MEMORY_SHARE = 0.9  # of a GPU: what the allocator cuts into pieces is lost


class PairMaker:
    """Edits the inputs of a source. UserError where an edit is not finite or a batch does not fit into memory."""

    def __init__(self, editor: Editor, config: Generate, captioner: Captioner | None, common: dict[str, Any]) -> None:
        """common: what the record of every pair says."""
        self.editor, self.config, self.captioner, self.common = editor, config, captioner, common
        self.reconstruct = config.save_reconstruction or config.save_latents

    def pairs(self, source: InputSource, ids: range, left_out: list[dict[str, str]], done: Callable[[int], None]) -> Iterator[Pair]:
        """The pairs of these inputs, in order; unreadable inputs and flagged edits go to left_out. done: told how many, batch by batch."""
        with ThreadPoolExecutor(self.config.workers) as pool:
            waiting = [(index, pool.submit(source.load, index)) for index in ids]
            batch: list[InputImage] = []
            for place, (index, item) in enumerate(waiting):
                try:
                    batch.append(item.result())
                except Unreadable as error:
                    left_out.append({"id": source.names[index], "why": "unreadable", "reason": str(error)})
                if len(batch) == self.config.batch or (batch and place == len(waiting) - 1):
                    yield from self._edit(batch, left_out)
                    done(len(batch))
                    batch = []

    def _edit(self, inputs: list[InputImage], left_out: list[dict[str, str]]) -> Iterator[Pair]:
        captions = self._captions(inputs)
        images = [item.image for item in inputs if item.image.size]
        pixels_BCHW = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1 if images else None
        try:
            edited = self.editor(pixels_BCHW, [caption for caption, _ in captions], [item.key for item in inputs], self.reconstruct)
        except torch.OutOfMemoryError as error:
            raise UserError(f"generate.batch={len(inputs)} does not fit into the GPU's memory: lower it; 0 finds the largest") from error
        levels, latents, flagged = self._checked(edited, inputs)
        statistics = {name: noise_statistics(noise) for name, noise in edited.noises.items()}
        for row, item in enumerate(inputs):
            if flagged[row]:
                left_out.append({"id": str(item.about["id"]), "why": "flagged", "reason": "by the teacher's safety checker"})
                continue
            caption, caption_from = captions[row]
            noise = {name: rows[row] for name, rows in statistics.items()}
            record = {"source": item.about, "caption": caption, "caption_from": caption_from, "noise": noise, **self.common}
            pictures = {"input": item.image} | {name: picture[row] for name, picture in levels.items()}
            kept = latents if self.config.save_latents else {}
            yield Pair(item.key, pictures, record, {f"{name}_latent": latent[row].numpy() for name, latent in kept.items()})

    def _captions(self, inputs: list[InputImage]) -> list[tuple[str, str]]:
        captions = [(item.caption, item.caption_from) for item in inputs]
        bare = [row for row, item in enumerate(inputs) if item.caption_from == "task.caption"]
        if self.captioner and bare:
            for row, caption in zip(bare, self.captioner([inputs[row].image for row in bare]), strict=True):
                captions[row] = (caption, "source.captioner") if caption else captions[row]
        return captions

    def _checked(self, edited: Edited, inputs: list[InputImage]) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor], list[bool]]:
        """Pictures as 8-bit levels and latents, on the CPU, and which samples the safety checker flags."""
        flagged = [False] * len(inputs)
        if self.config.safety_checker:
            made = [picture for name, picture in edited.pictures.items() if name != "reconstruction"]
            flagged = [any(flags) for flags in zip(*map(self.editor.teacher.flagged, made), strict=True)]
        latents = {name: latent.cpu() for name, latent in edited.latents.items()}
        made_of = [*latents.values(), *edited.pictures.values()]
        finite_B = torch.stack([tensor.isfinite().flatten(1).all(1).cpu() for tensor in made_of]).all(0)
        if not finite_B.all():
            key = inputs[int(finite_B.int().argmin())].key
            raise UserError(f"{key}: the edit is not finite in generate.dtype={self.config.dtype}; take bfloat16 or float32")
        return {name: to_levels(picture) for name, picture in edited.pictures.items()}, latents, flagged


def largest_batch(editor: Editor, most: int) -> int:
    """How many pairs, a power of two or `most`, the editor's GPU holds at once, by trying; on a CPU the smaller of CPU_BATCH and most.

    Memory does not depend on the number of steps, so one step of each pass tells; but with guidance.maps=inversion.
    """
    device = editor.teacher.device
    if device.type == "cpu":
        return min(CPU_BATCH, most)
    probe = editor if editor.guidance.maps == "inversion" else editor.shortened(1)
    fits, size = 1, 1
    while size <= min(most, LARGEST_BATCH):
        try:
            torch.cuda.reset_peak_memory_stats(device)
            _try(probe, size)
        except torch.OutOfMemoryError:
            break
        if torch.cuda.max_memory_reserved(device) > MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory:
            break
        fits, size = size, size * 2 if size == most else min(size * 2, most)
    torch.cuda.empty_cache()
    return fits


def seconds_a_pair(editor: Editor, batch: int, steps: int) -> float:
    """About how long one pair takes in batches of `batch`: two steps and four are timed, and the difference is extended to all."""
    _try(editor.shortened(2), batch)  # kernels are loaded and chosen
    times = []
    for some in (2, 4):
        began = time.perf_counter()
        _try(editor.shortened(some), batch)
        times.append(time.perf_counter() - began)
    return (times[0] + (steps - 2) * max(times[1] - times[0], 0.0) / 2) / batch


def _try(editor: Editor, batch: int) -> None:
    side = editor.teacher.resolution
    names = [str(row) for row in range(batch)]
    edited = editor(torch.zeros(batch, 3, side, side), names, names, True)
    edited.pictures["edit"].cpu()  # waits for the GPU
