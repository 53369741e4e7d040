"""The part of scripts/benchmark.py that times one edit: the teacher's, the generator's in plain eager float32, and each exported file's.

All of them take and give pictures in the CPU's memory, but for the rows that say otherwise. Speed depends on neither pixels nor weights.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.loader import find_file, run_dir
from configs.schema import Config
from scripts.timing import say

ROUNDS = 5  # after one that does not count


def benchmark_infer(config: Config) -> dict[str, Any]:
    """Stage 3: the teacher beside the generator, of this run or else the one it starts from; `ratio` by the file that fits the device.

    With benchmark.pairs=0 there is no teacher, and `ratio` is to the eager float32.
    """
    import copy
    import tempfile

    import numpy as np
    import onnxruntime
    import torch

    from distill.formats import Edit, Picture, write
    from distill.translate import Translator
    from models.devices import pick_device

    if config.benchmark.architecture not in ("", "sd14"):
        raise UserError(f"benchmark.architecture={config.benchmark.architecture}: there are sd14, and none for the teacher's own")
    device, count = pick_device(config.generate.device), config.benchmark.images_at_once
    on_gpu = device.type == "cuda"
    generator, about = _generator(config)
    side = about["resolution"]
    images_BHWC = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    eager = Picture(Edit(copy.deepcopy(generator), about["z"])).to(device)  # what is exported stays on the CPU

    def run_eager() -> None:
        with torch.no_grad():
            eager(torch.from_numpy(images_BHWC).to(device)).cpu()

    runs: dict[str, Callable[[], object]] = {"PyTorch, eager, float32": run_eager}
    say("exporting")
    with tempfile.TemporaryDirectory() as name:
        runs_onnx = not on_gpu or "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        write(Path(name), generator, about, ("fp16", "pt2") if on_gpu else ("int8", "pt2"), images_BHWC, runs_onnx)
        for path in (path for path in sorted(Path(name).iterdir()) if path.suffix != ".safetensors"):
            runtime = "PyTorch" if path.suffix == ".pt2" else "ONNX Runtime"
            translator = Translator(path, torch.get_num_threads())
            runs[f"{runtime}, {path.name}"] = partial(translator, images_BHWC)
            if on_gpu and runtime == "PyTorch":
                runs[f"{runtime}, {path.name}, pictures on the GPU"] = partial(translator, torch.from_numpy(images_BHWC).to(device))
    if on_gpu:
        runs = {row: partial(_finished, run) for row, run in runs.items()}
    rows = _medians(runs, config.benchmark.calls, count)
    first = rows["PyTorch, eager, float32"]["seconds"]
    rows = {key: row | {"to_eager": first / row["seconds"]} for key, row in rows.items()}
    if config.benchmark.pairs:
        say("teacher")
        name = f"teacher, {config.edit.method}, {config.edit.steps} steps, batches of {config.benchmark.pairs}"
        rows = {name: _teacher(config, device, side)} | rows
        for row in rows.values():
            row["ratio"] = rows[name]["seconds"] / row["seconds"]
    used = "PyTorch, generator-fp16.pt2" if on_gpu else "ONNX Runtime, generator.onnx"
    return {
        "benchmark": "infer",
        "device": torch.cuda.get_device_name(device) if on_gpu else f"CPU, {torch.get_num_threads()} threads",
        "settings": f"{about['teacher']}, {side} x {side}, generator of {sum(p.numel() for p in generator.parameters()) / 1e6:.1f} M "
        f"parameters, {count} at once, median of {config.benchmark.calls} calls",
        "ratio": rows[used]["ratio" if config.benchmark.pairs else "to_eager"],
        "rows": rows,
    }


def _generator(config: Config) -> tuple[Any, dict[str, Any]]:
    """The run's exported generator, else the one its training starts from; with benchmark.side or architecture one of random weights."""
    from distill.formats import read
    from models.comodgan import CoModGenerator

    side = config.benchmark.side or (512 if config.benchmark.architecture else 0)
    if side:
        generator = CoModGenerator(side, **asdict(config.generator)).eval().requires_grad_(False)
        names = {"task": config.task.name, "source": "", "target": "", "git_revision": ""}
        about = {"teacher": config.benchmark.architecture or "untrained", "resolution": side, "z": None, "config": generator.config}
        return generator, names | about
    for path in (run_dir(config) / "export" / "generator.safetensors", Path(find_file(config.distill.init))):
        if path.is_file():
            return read(path)
    raise UserError(f"{run_dir(config) / 'export'} has no generator.safetensors: run distill/export.py, or set distill.init= to one")


def _medians(runs: Mapping[str, Callable[[], object]], calls: int, count: int) -> dict[str, dict[str, float]]:
    """Seconds an image of each one's middle call, taken in turns: other work on the machine disturbs some of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(1 + ROUNDS):
        for name, run in runs.items():
            timed = timeit.repeat(run, number=1, repeat=-(-calls // ROUNDS))
            seconds[name] += timed if round_ else []  # the first compiles, chooses kernels and records CUDA graphs
    return {name: {"seconds": statistics.median(values) / count} for name, values in seconds.items()}


def _finished(run: Callable[[], object]) -> None:
    """Run it, and wait for the GPU."""
    import torch

    run()
    torch.cuda.synchronize()


def _teacher(config: Config, device: Any, side: int) -> dict[str, float]:
    import torch

    from generate.directions import EditDirection
    from generate.editors import Editor
    from models.teacher import DTYPES, Teacher
    from scripts.timing import CAPTION, measure, stable_diffusion_14

    pipeline = stable_diffusion_14(DTYPES[config.generate.dtype], device) if config.benchmark.architecture else None
    teacher = Teacher(replace(config.teacher, resolution=side), device, config.generate.dtype, pipeline, config.generate.compile)
    editor = Editor(teacher, EditDirection(0.1 * torch.randn_like(teacher.embed([CAPTION])), "", ""), config)
    count = config.benchmark.pairs
    images_BCHW = torch.rand(count, 3, side, side) * 2 - 1

    def run() -> None:
        editor(images_BCHW, [CAPTION] * count, [str(row) for row in range(count)], False)

    return measure(run, count, device, warm=config.generate.compile)
