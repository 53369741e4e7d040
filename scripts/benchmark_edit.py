"""What `scripts/benchmark.py` times of edits: `generate`, our editor and the reference code's loop; `infer`, the generator and its teacher.

Speed depends on neither pixels nor weights. B batch, C channels, H W pixels, T tokens, D width.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import timeit
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from configs.errors import UserError
from configs.files import find_file
from configs.runs import run_dir
from configs.schema import Config
from distill.formats import Edit, Picture, read, write
from generate.batch_size import largest_batch
from generate.directions import EditDirection
from generate.editors import Editor
from models.comodgan import CoModGenerator
from models.devices import pick_device
from models.teacher import DTYPES, Teacher, load_pipeline
from models.translator import Translator
from scripts.measure.plain import PlainPix2PixZero
from scripts.measure.timing import Found, measure, product_rate, say

CAPTION = "a photo of a tree in summer"
WARM_STEPS = 4  # of an edit that only loads, chooses and compiles kernels, or counts operations
EAGER = "PyTorch, eager, float32"
ROUNDS = 5  # of calls of each runtime, after one that does not count


def benchmark_generate(config: Config) -> Found:
    """The plain loop against the editor, in the paper's and in the reference code's form."""
    device, settings = pick_device(config.device), config.benchmark
    say("networks")
    pipeline = _pipeline(config, device).to(device)
    side, count = 512 if settings.architecture else config.teacher.resolution, settings.pairs
    image_BCHW = torch.rand(count, 3, side, side) * 2 - 1

    def run_plain(steps: int = config.edit.steps) -> None:
        plain, vae = PlainPix2PixZero(pipeline, steps), pipeline.vae
        for image_CHW in image_BCHW[: settings.plain_pairs]:
            with torch.no_grad():
                latent = (
                    vae.encode(image_CHW[None].to(device, vae.dtype)).latent_dist.mode()
                    * vae.config.scaling_factor
                )
            text = plain.embed(CAPTION)
            direction = 0.1 * torch.randn_like(text)
            inverted = plain.invert(latent, text, config.inversion.lambda_ac, config.inversion.lambda_kl)
            for edited in plain.edit(
                inverted, torch.cat([text, text]), direction, config.guidance.amount, config.guidance.scale
            ):
                with torch.no_grad():
                    vae.decode(edited / vae.config.scaling_factor)

    say("plain loop")
    rows = {
        "plain loop, one at a time": measure(
            run_plain, settings.plain_pairs, device, partial(run_plain, WARM_STEPS)
        )
    }
    make_teacher = partial(
        Teacher, replace(config.teacher, resolution=side), device, config.generate.dtype, pipeline
    )
    teacher = (
        make_teacher()
    )  # takes the plain loop's attention off the UNet, and freezes the weights that it has gradients for
    batch = min(config.generate.batch or largest_batch(_editor(teacher, config), count), count)
    follows = config.guidance.maps == "reference"  # else there is no reference pass, and no official form
    modes = {
        mode: replace(config, edit=replace(config.edit, mode=mode))
        for mode in ("paper", "official")[: 1 + follows]
    }
    say("arithmetic")
    operations = {
        mode: _operations(teacher, variant, image_BCHW[:1], follows) for mode, variant in modes.items()
    }
    rate = product_rate(device, teacher.dtype)
    if config.generate.compile:
        teacher = make_teacher(compiled=True)
    for mode, variant in modes.items():
        say(f"ours, {mode}")
        row = _measure_editor(_editor(teacher, variant), image_BCHW, batch, follows)
        row |= {"operations": operations[mode], "rate": operations[mode] / row["seconds"] / rate}
        rows[f"ours, {mode}, batches of {batch}"] = row
    about = f"{settings.architecture or config.teacher.name}, {side} x {side}, {config.edit.steps} steps, {config.generate.dtype}"
    return Found(about, device, rows, f"ours, {config.edit.mode}, batches of {batch}")


def _operations(teacher: Teacher, config: Config, image_1CHW: torch.Tensor, reconstruct: bool) -> float:
    """Floating point operations of one pair: a part of their own plus as many for each step, so two short edits tell."""
    counts = []
    for steps in (WARM_STEPS, 2 * WARM_STEPS):
        short = replace(config, edit=replace(config.edit, steps=steps))
        with FlopCounterMode(display=False) as counter:
            _edit(_editor(teacher, short), image_1CHW, 1, reconstruct)
        counts.append(counter.get_total_flops())
    return counts[0] + (counts[1] - counts[0]) * (config.edit.steps / WARM_STEPS - 1)


def _editor(teacher: Teacher, config: Config) -> Editor:
    return Editor(teacher, EditDirection(0.1 * torch.randn_like(teacher.embed([CAPTION])), "", ""), config)


def _measure_editor(
    editor: Editor, image_BCHW: torch.Tensor, batch: int, reconstruct: bool
) -> dict[str, float]:
    run, first = (
        partial(_edit, form, image_BCHW, batch, reconstruct)
        for form in (editor, editor.shortened(WARM_STEPS))
    )
    return measure(run, len(image_BCHW), editor.teacher.device, first)


def _edit(editor: Editor, image_BCHW: torch.Tensor, batch: int, reconstruct: bool) -> None:
    for part_BCHW in image_BCHW.split(batch):
        editor(
            part_BCHW, [CAPTION] * len(part_BCHW), [str(row) for row in range(len(part_BCHW))], reconstruct
        )


def benchmark_infer(config: Config) -> Found:
    """The teacher beside the generator, of this run or else the one it starts from; `ratio` by the file that fits the device.

    Pictures come from the CPU's memory and go there, but for the rows that say otherwise. With benchmark.pairs=0 there is no teacher, and
    `ratio` is to the eager float32.
    """
    device, settings = pick_device(config.device), config.benchmark
    on_gpu, count = device.type == "cuda", settings.images_at_once
    generator, about = _generator(config)
    side = about["resolution"]
    image_BHWC = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    eager = Picture(Edit(copy.deepcopy(generator), about["z"])).to(
        device
    )  # what is exported stays on the CPU

    @torch.no_grad()
    def run_eager() -> None:
        eager(torch.from_numpy(image_BHWC).to(device)).cpu()

    def run_on_gpu(translator: Translator, image_BHWC: torch.Tensor) -> None:
        translator(image_BHWC)
        torch.cuda.synchronize()

    runs: dict[str, Callable[[], object]] = {EAGER: run_eager}
    say("exporting")
    with tempfile.TemporaryDirectory() as folder:
        runs_onnx = not on_gpu or "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        write(
            Path(folder),
            generator,
            about,
            ("fp16", "pt2") if on_gpu else ("int8", "pt2"),
            image_BHWC,
            runs_onnx,
        )
        for path in sorted({*Path(folder).glob("*.onnx"), *Path(folder).glob("*.pt2")}):
            name = f"{'PyTorch' if path.suffix == '.pt2' else 'ONNX Runtime'}, {path.name}"
            translator = Translator(path, torch.get_num_threads())
            runs[name] = partial(translator, image_BHWC)
            if on_gpu and path.suffix == ".pt2":
                runs[f"{name}, pictures on the GPU"] = partial(
                    run_on_gpu, translator, torch.from_numpy(image_BHWC).to(device)
                )
    seconds = {name: middle / count for name, middle in _medians(runs, settings.calls).items()}
    rows = {name: {"seconds": value, "to_eager": seconds[EAGER] / value} for name, value in seconds.items()}
    if settings.pairs:
        say("teacher")
        teacher_config = replace(config.teacher, resolution=side)
        pipeline = _pipeline(config, device)
        teacher = Teacher(teacher_config, device, config.generate.dtype, pipeline, config.generate.compile)
        pictures = torch.rand(settings.pairs, 3, side, side) * 2 - 1
        row = _measure_editor(_editor(teacher, config), pictures, settings.pairs, False)
        rows = {
            f"teacher, {config.edit.method}, {config.edit.steps} steps, batches of {settings.pairs}": row
        } | rows
    parameters = sum(parameter.numel() for parameter in generator.parameters()) / 1e6
    calls = f"{count} at once, median of {settings.calls} calls"
    described = f"{about['teacher']}, {side} x {side}, generator of {parameters:.1f} M parameters, {calls}"
    return Found(
        described, device, rows, "PyTorch, generator-fp16.pt2" if on_gpu else "ONNX Runtime, generator.onnx"
    )


def _generator(config: Config) -> tuple[CoModGenerator, dict[str, Any]]:
    """The run's exported generator, else the one its training starts from; with benchmark.side or architecture one of random weights."""
    side = config.benchmark.side or (512 if config.benchmark.architecture else 0)
    if side:
        generator = CoModGenerator(side, **asdict(config.generator)).eval().requires_grad_(False)
        about = dict.fromkeys(("task", "source", "target", "git_revision"), "") | {
            "teacher": config.benchmark.architecture or "untrained"
        }
        return generator, about | {"resolution": side, "z": None, "config": generator.config}
    for path in (run_dir(config) / "export" / "generator.safetensors", Path(find_file(config.distill.init))):
        if path.is_file():
            return read(path)
    raise UserError(
        f"{run_dir(config) / 'export'} has no generator.safetensors: run distill/export.py, or set distill.init= to one"
    )


def _medians(runs: Mapping[str, Callable[[], object]], calls: int) -> dict[str, float]:
    """Seconds of each one's middle call, taken in turns: other work on the machine disturbs some of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_ in range(1 + ROUNDS):
        for name, run in runs.items():
            timed = timeit.repeat(run, number=1, repeat=-(-calls // ROUNDS))
            seconds[name] += (
                timed if round_ else []
            )  # the first compiles, chooses kernels and records CUDA graphs
    return {name: statistics.median(values) for name, values in seconds.items()}


def _pipeline(config: Config, device: torch.device) -> Any:
    """The teacher's; with benchmark.architecture Stable Diffusion 1.4's networks with random weights, and a small tokenizer that pads to
    its 77 tokens.
    """
    if not config.benchmark.architecture:
        return load_pipeline(config.teacher.path, config.generate.dtype)
    dtype = DTYPES[config.generate.dtype]
    folder, levels = Path(find_file("models/miniature/teacher")), (128, 256, 512, 512)
    down, up = ("DownEncoderBlock2D",) * 4, ("UpDecoderBlock2D",) * 4
    text = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device(device):  # a GPU draws a billion random weights at once
        parts = {
            "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            "vae": AutoencoderKL(
                down_block_types=down,
                up_block_types=up,
                block_out_channels=levels,
                layers_per_block=2,
                sample_size=512,
            ),
            "text_encoder": CLIPTextModel(text),
        }
    return StableDiffusionPipeline(
        **{
            name: torch.nn.Module.to(part, dtype).eval() for name, part in parts.items()
        },  # diffusers' own warns
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77),
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
