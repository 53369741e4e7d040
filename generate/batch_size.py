"""How many pairs to edit together, found by trying, and how long all will take."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.errors import UserError
from configs.files import find_file
from configs.methods import needs_teacher
from configs.schema import Config
from generate.directions import EditDirection
from generate.editors import METHODS, Editor
from models.devices import PeakMemory, free_memory, pick_device
from models.teacher import Teacher

BATCHES = (1, 2, 4, 8, 16, 32, 64)  # that a GPU is tried with; an H100 is busy with fewer than 64
CPU_BATCH = 16  # more would make a CPU no faster
MEMORY_SHARE = 0.9  # of what is free that a batch may fill: the allocator loses some to fragments
LEAST_BYTES = 1 << 20  # that a pair is taken to need: less is not measured well
SLOW_S = 600.0  # a pair that takes a CPU longer is worth a word before hours have passed
CPU_SHARE = 0.3  # of a CPU's rate of products that Stable Diffusion's UNet reaches, measured on two cores
PRODUCT_SIDE = 1024  # of the matrices whose product tells a CPU's rate
PRODUCTS = 3
TOKENS = 77  # of a text; other numbers change the arithmetic little
SHORT_STEPS = 2  # of the edits that are timed
LONG_STEPS = 4


def largest_batch(editor: Editor, most: int) -> int:
    """How many pairs the editor's memory holds at once, by trying; at most `most`.

    Memory does not depend on the number of steps, so a single step of every pass tells; but with
    guidance.maps=inversion, where the maps of the guided steps wait in memory, all steps are made.
    A GPU is tried with the BATCHES until one is too large. A CPU, and Apple's GPU, edit one pair, and as
    many fit as that took, on a CPU at most CPU_BATCH.
    """
    device = editor.teacher.device
    trial = editor if editor.guidance.maps == "inversion" else editor.shortened(1)
    if device.type == "cpu":
        return 1 if most == 1 else min(CPU_BATCH, most, _pairs_that_fit(trial))
    if device.type == "mps":
        return 1 if most == 1 else min(BATCHES[-1], most, _pairs_that_fit_apple(trial))
    gpu = torch.get_device_module(device)
    memory_limit = MEMORY_SHARE * gpu.get_device_properties(device).total_memory
    fits = 1
    for size in sorted({min(size, most) for size in BATCHES}):
        try:
            gpu.reset_peak_memory_stats(device)
            _edit_blank_images(trial, size)
        except torch.OutOfMemoryError:
            break
        if gpu.max_memory_reserved(device) > memory_limit:
            break
        fits = size
    gpu.empty_cache()
    return fits


def _pairs_that_fit(trial: Editor) -> int:
    """How many pairs the computer's memory holds beside the networks, by editing one; at least 1."""
    free = MEMORY_SHARE * free_memory()
    with PeakMemory() as peak:
        _edit_blank_images(trial, 1)
    if peak.bytes > free:
        print(
            f"warning: a pair takes {peak.bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB were free", flush=True
        )
    return max(1, int(free / max(peak.bytes, LEAST_BYTES)))


def _pairs_that_fit_apple(trial: Editor) -> int:
    """How many pairs an Apple GPU holds, by editing one; at least 1.

    It tells no peak, but what it has taken it keeps until empty_cache.
    """
    torch.mps.empty_cache()
    before = torch.mps.driver_allocated_memory()
    _edit_blank_images(trial, 1)
    pair = torch.mps.driver_allocated_memory() - before
    torch.mps.empty_cache()
    free = MEMORY_SHARE * torch.mps.recommended_max_memory() - before
    return max(1, int(free / max(pair, LEAST_BYTES)))


def slow_on_cpu(config: Config, pairs: float) -> str:
    """In words how long the pairs will take a CPU, and what to do instead; '' where that is no news.

    Known before any weight is loaded: from the arithmetic of the UNet that the teacher's folder
    describes, and this machine's rate of matrix products. It is no measurement.
    """
    if pick_device(config.device).type != "cpu" or not needs_teacher(config.edit.method):
        return ""
    folder = Path(find_file(config.teacher.config or config.teacher.path))
    try:
        unet = json.loads((folder / "unet" / "config.json").read_text())
        vae = json.loads((folder / "vae" / "config.json").read_text())
        cells = config.teacher.resolution // 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # a hub name, or a folder that is refused when it is loaded
    operations = unet_operations(unet, cells) * unet_rows_a_step(config) * config.edit.steps
    seconds = operations / (CPU_SHARE * operations_a_second())
    if seconds < SLOW_S:
        return ""
    hours = seconds / 3600
    return (
        f"about {hours:.1f} hours a pair on this CPU, {hours * pairs:.0f} hours for {pairs:.0f} (by the "
        "arithmetic of its UNet): take a GPU (device=cuda), fewer generate.pairs= or edit.steps=, "
        "preset=paper,fast, or teacher=miniature to try the way"
    )


def unet_operations(unet: Mapping[str, Any], cells: int) -> float:
    """Floating point operations of a UNet on one latent of cells x cells. unet: its config.json."""
    from diffusers import UNet2DConditionModel

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = UNet2DConditionModel.from_config(dict(unet))
        text_1TD = torch.zeros(1, TOKENS, network.config.cross_attention_dim)
        network(torch.zeros(1, network.config.in_channels, cells, cells), torch.tensor(0), text_1TD)
    return float(counter.get_total_flops())


def unet_rows_a_step(config: Config) -> float:
    """How many rows a step of a pair sends through the UNet on average; a backward pass counts as two."""
    method = METHODS[config.edit.method]
    guidance = config.guidance
    rows = 1 + guidance.scale_until  # the edit, and what classifier-free guidance leads it away from
    if method.noise in ("ddim", "regularised"):
        rows += 1  # the inversion
    has_reference = method.replaced or (method.guided and guidance.maps == "reference")
    if has_reference or config.generate.save_reconstruction:
        rows += 1
    elif method.guided:
        rows += guidance.self_attention  # the reference, as far as its self-attention is taken
    if method.guided:
        rows += 3 * guidance.until / guidance.every  # the edit's maps, and their gradient
    return rows


def operations_a_second() -> float:
    """This processor's rate of float32 matrix products; the fastest of a few counts."""
    matrix = torch.ones(PRODUCT_SIDE, PRODUCT_SIDE)
    seconds = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - began)
    return 2 * PRODUCT_SIDE**3 / min(seconds)


def time_for(config: Config, pairs: float) -> str:
    """About how long so many pairs take, in words, by timing a few steps of one batch.

    Where they would take a CPU hours, nothing is timed. Where the teacher does not load, the words
    say that and why: a plan may be made before the weights are there.
    """
    slow = slow_on_cpu(config, pairs)
    if slow:
        return slow
    if not needs_teacher(config.edit.method):
        return "unknown: the first batch tells"
    try:
        editor = _editor_for_timing(config)
    except UserError as error:
        return f"unknown ({error})"
    most = min(config.generate.pairs_per_shard, math.ceil(pairs))
    batch = min(config.generate.batch or largest_batch(editor, most), most)
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
