"""How many pairs to edit together, found by trying, and how long all will take, for --dry-run."""

from __future__ import annotations

import time

import torch

from configs.errors import UserError
from configs.schema import Config
from generate.directions import EditDirection
from generate.editors import Editor
from models.devices import pick_device
from models.teacher import Teacher

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # that a GPU is tried with; an H100 is busy with fewer than 64
CPU_BATCH = 16  # more would make a CPU no faster
MEMORY_SHARE = 0.9  # of a GPU that a batch may fill: the allocator loses some to fragments
SHORT_STEPS = 2  # of the edits that are timed
LONG_STEPS = 4


def largest_batch(editor: Editor, most: int) -> int:
    """How many pairs the editor's GPU holds at once, by trying: the largest of BATCHES, at most `most`.

    Memory does not depend on the number of steps, so a single step of every pass tells; but with
    guidance.maps=inversion, where the maps of the guided steps wait in memory, all steps are made.
    On a CPU nothing is tried: CPU_BATCH, at most `most`.
    """
    device = editor.teacher.device
    if device.type == "cpu":
        return min(CPU_BATCH, most)
    trial = editor if editor.guidance.maps == "inversion" else editor.shortened(1)
    memory_limit = MEMORY_SHARE * torch.cuda.get_device_properties(device).total_memory
    fits = 1
    for size in sorted({min(size, most) for size in BATCHES}):
        try:
            torch.cuda.reset_peak_memory_stats(device)
            _edit_blank_images(trial, size)
        except torch.OutOfMemoryError:
            break
        if torch.cuda.max_memory_reserved(device) > memory_limit:
            break
        fits = size
    torch.cuda.empty_cache()
    return fits


def time_for(config: Config, pairs: float) -> str:
    """About how long so many pairs take, in words, by timing a few steps of one batch.

    Where the teacher does not load, the words say that and why: a plan may be made before the
    weights are there.
    """
    try:
        editor = _editor_for_timing(config)
    except UserError as error:
        return f"unknown ({error})"
    batch = config.generate.batch or largest_batch(editor, config.generate.pairs_per_shard)
    seconds = seconds_a_pair(editor, batch, config.edit.steps)
    hours = seconds * pairs / 3600
    return f"{hours:.2f} hours ({seconds:.2f} s a pair in batches of {batch} on {editor.teacher.device})"


def seconds_a_pair(editor: Editor, batch: int, steps: int) -> float:
    """About how long one pair takes in batches of `batch`.

    Edits of SHORT_STEPS and of LONG_STEPS are timed, and the difference, which is that of a step,
    is extended to `steps`.
    """
    _seconds(editor, batch, SHORT_STEPS)  # kernels are loaded and chosen
    short = _seconds(editor, batch, SHORT_STEPS)
    long = _seconds(editor, batch, LONG_STEPS)
    a_step = max(long - short, 0.0) / (LONG_STEPS - SHORT_STEPS)
    return (short + (steps - SHORT_STEPS) * a_step) / batch


def _editor_for_timing(config: Config) -> Editor:
    """An editor with a direction of zeros, which takes no sentences and writes no cache."""
    device = pick_device(config.device)
    teacher = Teacher(config.teacher, device, config.generate.dtype, compiled=config.generate.compile)
    nothing_1TD = 0 * teacher.embed([""])
    return Editor(teacher, EditDirection(nothing_1TD, "", ""), config)


def _seconds(editor: Editor, batch: int, steps: int) -> float:
    """How long the edit of one batch takes with so many steps."""
    began = time.perf_counter()
    _edit_blank_images(editor.shortened(steps), batch)
    return time.perf_counter() - began


def _edit_blank_images(editor: Editor, batch: int) -> None:
    """Edit a batch of grey images, with a reconstruction, and wait for the GPU."""
    side = editor.teacher.resolution
    keys = [str(row) for row in range(batch)]
    edited = editor(torch.zeros(batch, 3, side, side), keys, keys, True)
    edited.pictures["edit"].cpu()
