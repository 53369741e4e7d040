"""What `scripts/benchmark.py infer` times: the exported generator's files, beside its teacher.

B batch, C channels, H W pixels.
"""

import copy
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from configs.errors import UserError
from configs.files import find_file
from configs.runs import run_dir
from configs.schema import Config
from distill.formats import read_generator, write_formats
from distill.graphs import Edit, Picture
from models.comodgan import CoModGenerator, make_generator
from models.devices import pick_device
from models.teacher import Teacher
from models.translator import Translator
from scripts.measure.benchmark import Result
from scripts.measure.editing import (
    STABLE_DIFFUSION_SIDE,
    editor_of,
    measure_editor,
    open_pipeline,
    random_images,
)
from scripts.measure.timing import medians, progress

EAGER = "PyTorch, eager, float32"
# By the device; the files run on a CPU where the GPU is none of CUDA's.
HEADLINES = {"cuda": "PyTorch, generator-fp16.pt2"}
HEADLINE = "ONNX Runtime, generator.onnx"
FORMATS = {"cuda": ("fp16", "pt2")}  # beside generator.onnx
CPU_FORMATS = ("int8", "pt2")

Call = Callable[[], object]


def run(config: Config) -> Result:
    """The teacher beside the generator of this run, or else the one it starts from.

    Pictures come from the CPU's memory and go there, but for the rows that say otherwise. With
    benchmark.pairs=0 there is no teacher, and `ratio` is to the eager float32.
    """
    settings = config.benchmark
    device = pick_device(config.device)
    generator, metadata = generator_to_time(config)
    side = metadata["resolution"]
    shape_BHWC = (settings.images_at_once, side, side, 3)
    image_BHWC = np.random.default_rng(0).integers(0, 256, shape_BHWC, dtype=np.uint8)

    calls = {EAGER: _eager_call(generator, image_BHWC, device)}
    progress("exporting")
    with tempfile.TemporaryDirectory() as folder:
        runs_onnx = device.type != "cuda" or "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        write_formats(
            Path(folder), generator, metadata, FORMATS.get(device.type, CPU_FORMATS), image_BHWC, runs_onnx
        )
        calls |= _file_calls(Path(folder), image_BHWC, device)
        seconds = medians(calls, settings.calls)

    rows = {}
    if settings.pairs:
        progress("teacher")
        name = f"teacher, {config.edit.method}, {config.edit.steps} steps, batches of {settings.pairs}"
        rows[name] = _teacher_row(config, side, device)
    for name, value in seconds.items():
        rows[name] = {"seconds": value / settings.images_at_once, "to_eager": seconds[EAGER] / value}
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    timed = (
        f"{metadata['teacher']}, {side} x {side}, generator of {parameters / 1e6:.1f} M parameters, "
        f"{settings.images_at_once} at once, median of {settings.calls} calls"
    )
    return Result(timed, device, rows, HEADLINES.get(device.type, HEADLINE))


def generator_to_time(config: Config) -> tuple[CoModGenerator, dict[str, Any]]:
    """The run's exported generator, else the one its training starts from, and its metadata.

    With benchmark.side or benchmark.architecture one of random weights.
    """
    side = config.benchmark.side
    if config.benchmark.architecture and not side:
        side = STABLE_DIFFUSION_SIDE
    if side:
        generator = make_generator(side, config.generator).eval().requires_grad_(False)
        metadata = dict.fromkeys(("task", "source", "target", "git_revision"), "")
        metadata["teacher"] = config.benchmark.architecture or "untrained"
        return generator, {**metadata, "resolution": side, "config": generator.config}
    exported = run_dir(config) / "export" / "generator.safetensors"
    for path in (exported, Path(find_file(config.distill.init))):
        if path.is_file():
            return read_generator(path)
    raise UserError(
        f"{exported.parent} has no generator.safetensors: run `zero2gan export`, or set distill.init= to one"
    )


def _eager_call(generator: CoModGenerator, image_BHWC: np.ndarray, device: torch.device) -> Call:
    """The generator as PyTorch runs it, a copy of it: what is exported stays on the CPU."""
    picture = Picture(Edit(copy.deepcopy(generator))).to(device)

    @torch.no_grad()
    def call() -> None:
        picture(torch.from_numpy(image_BHWC).to(device)).cpu()

    return call


def _file_calls(folder: Path, image_BHWC: np.ndarray, device: torch.device) -> dict[str, Call]:
    """Each exported file in its runtime; a .pt2 on a GPU also with pictures that are there already."""
    calls: dict[str, Call] = {}
    for path in sorted((*folder.glob("*.onnx"), *folder.glob("*.pt2"))):
        runtime = "PyTorch" if path.suffix == ".pt2" else "ONNX Runtime"
        name = f"{runtime}, {path.name}"
        translator = Translator(path, torch.get_num_threads())
        calls[name] = partial(translator, image_BHWC)
        if device.type == "cuda" and path.suffix == ".pt2":
            on_gpu_BHWC = torch.from_numpy(image_BHWC).to(device)
            calls[f"{name}, pictures on the GPU"] = partial(_call_and_wait, translator, on_gpu_BHWC)
    return calls


def _call_and_wait(translator: Translator, image_BHWC: torch.Tensor) -> None:
    translator(image_BHWC)
    torch.cuda.synchronize()


def _teacher_row(config: Config, side: int, device: torch.device) -> dict[str, float]:
    """The teacher's edit of benchmark.pairs images at once, without a reconstruction."""
    pairs = config.benchmark.pairs
    pipeline = open_pipeline(config, device)
    teacher_config = replace(config.teacher, resolution=side)
    teacher = Teacher(teacher_config, device, config.generate.dtype, pipeline, config.generate.compile)
    return measure_editor(editor_of(teacher, config), random_images(pairs, side), pairs, reconstruct=False)
