"""Time our code beside a plain form of the same, in one run on one machine, at equal settings.

  python scripts/benchmark.py generate                                     the miniature, on this machine
  python scripts/benchmark.py generate benchmark.architecture=sd14 edit.steps=100 generate.dtype=float16 json=FILE     on a GPU
  python scripts/benchmark.py infer [benchmark.architecture=sd14]          one edit: the teacher, the generator, each exported file
  python scripts/benchmark.py filter [benchmark.architecture=vit_h]        scoring: the miniature, or SAM ViT-H and CLIP ViT-L-14
  python scripts/benchmark.py train                                        distill/train.py's step, at the miniature's size
  python scripts/benchmark.py train preset=paper source.images=x benchmark.side=256 distill.batch=64 distill.dtype=bfloat16 \
      distill.compile=true distill.workers=8 json=FILE                     on a GPU

Prints a Markdown table: seconds and memory a pair, pairs an hour, share of the machine's own matrix product rate, and the ratio to the
plain loop (scripts/plain.py); of infer, the ratio to the teacher and to the generator in eager float32. json=FILE
writes the same with the headline as `ratio`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.schema import Config
from scripts.benchmark_filter import benchmark_filter
from scripts.benchmark_infer import benchmark_infer
from scripts.benchmark_train import benchmark_train

SECTIONS = ("task", "teacher", "inversion", "edit", "guidance", "generate", "generator", "augment", "distill", "benchmark")
CAPTION = "a photo of a tree in summer"
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {  # of the printed table, those that a row has
    "seconds": ("seconds a pair", lambda value: f"{value:.3f}" if value >= 0.1 else f"{value:.5f}"),
    "images_per_s": ("images a second", lambda value: f"{value:.1f}"),
    "data_wait_share": ("waiting for data", lambda value: f"{value:.0%}"),
    "hour": ("pairs an hour", lambda value: f"{value:.0f}"),
    "memory": ("peak memory, GB", lambda value: f"{value / 1e9:.2f}"),
    "operations": ("TFLOP a pair", lambda value: f"{value / 1e12:.2f}"),
    "rate": ("of the matrix product rate", lambda value: f"{value:.0%}"),
    "ratio": ("ratio", lambda value: f"{value:.2f}"),
    "to_eager": ("to eager float32", lambda value: f"{value:.2f}"),
}
PRODUCT_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product gives the machine's rate


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in BENCHMARKS:
        return entry(__doc__, SECTIONS, lambda config: report(config, BENCHMARKS[name](config)), lambda config: {"benchmark": name}, rest)
    if name.startswith("-"):
        return entry(__doc__, SECTIONS, lambda config: None, lambda config: {}, [name, *rest])
    print(f"error: no benchmark '{name}'. There are: {', '.join(BENCHMARKS)}", file=sys.stderr)
    return 2


def benchmark_generate(config: Config) -> dict[str, Any]:
    """Stage 1: the plain loop against the editor, in the paper's and the reference code's form."""
    import torch

    from generate.batches import largest_batch
    from generate.directions import EditDirection
    from generate.editors import Editor
    from models.devices import pick_device
    from models.teacher import DTYPES, Teacher, load_pipeline
    from scripts.plain import PlainPix2PixZero

    device, dtype = pick_device(config.generate.device), config.generate.dtype
    build = {"": lambda: load_pipeline(config.teacher.path, dtype), "sd14": lambda: _stable_diffusion_14(DTYPES[dtype])}
    if config.benchmark.architecture not in build:
        raise UserError(f"benchmark.architecture={config.benchmark.architecture}: there are sd14, and none for the teacher's own")
    pipeline = build[config.benchmark.architecture]().to(device)
    side = 512 if config.benchmark.architecture else config.teacher.resolution
    count = config.benchmark.pairs
    torch.manual_seed(0)
    images = torch.rand(count, 3, side, side) * 2 - 1  # the speed depends on neither pixels nor weights
    attention = dict(pipeline.unet.attn_processors)
    plain = PlainPix2PixZero(pipeline, config.edit.steps)
    direction = 0.1 * torch.randn_like(plain.embed(CAPTION))

    def run_plain() -> None:
        for image in images[: config.benchmark.plain_pairs]:
            with torch.no_grad():
                latent = pipeline.vae.encode(image[None].to(device, DTYPES[dtype])).latent_dist.mode() * pipeline.vae.config.scaling_factor
            text = plain.embed(CAPTION)
            inverted = plain.invert(latent, text, config.inversion.lambda_ac, config.inversion.lambda_kl)
            for edited in plain.edit(inverted, torch.cat([text, text]), direction, config.guidance.amount, config.guidance.scale):
                with torch.no_grad():
                    pipeline.vae.decode(edited / pipeline.vae.config.scaling_factor)

    rows = {"plain loop, one at a time": _measure(run_plain, config.benchmark.plain_pairs, device)}
    pipeline.unet.set_attn_processor(attention)
    # Freezes the weights that the plain loop has gradients for.
    teacher = Teacher(replace(config.teacher, resolution=side), device, dtype, pipeline)
    follows = config.guidance.maps == "reference"  # else there is no reference pass, and no official form
    variants = {mode: replace(config, edit=replace(config.edit, mode=mode)) for mode in ("paper", "official")[: 1 + follows]}
    to_target = EditDirection(direction.float(), "", "")
    work = {mode: _arithmetic(Editor(teacher, to_target, variant), images[:1], follows) for mode, variant in variants.items()}
    batch = min(config.generate.batch or largest_batch(Editor(teacher, to_target, config), count), count)
    if config.generate.compile:
        teacher = Teacher(replace(config.teacher, resolution=side), device, dtype, pipeline, compiled=True)
    for mode, variant in variants.items():
        editor = Editor(teacher, to_target, variant)

        def run_ours(editor: Editor = editor) -> None:
            for part in images.split(batch):
                editor(part, [CAPTION] * len(part), [str(row) for row in range(len(part))], follows)

        row = _measure(run_ours, count, device, warm=config.generate.compile)
        row["rate"] = work[mode] / row["seconds"] / _product_rate(device, DTYPES[dtype])
        row["operations"] = work[mode]
        rows[f"ours, {mode}, batches of {batch}"] = row
    baseline = rows["plain loop, one at a time"]["seconds"]
    for row in rows.values():
        row["ratio"] = baseline / row["seconds"]
    return {
        "benchmark": "generate",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "settings": f"{config.benchmark.architecture or config.teacher.name}, {side} x {side}, {config.edit.steps} steps, {dtype}",
        "ratio": next(row["ratio"] for name, row in rows.items() if name.startswith(f"ours, {config.edit.mode}")),
        "rows": rows,
    }


def report(config: Config, found: dict[str, Any]) -> None:
    """Print the table; write it as JSON where json= says."""
    from generate.shards import write_json

    print(f"{found['benchmark']}: {found['settings']}; {found['device']}\n")
    rows = {name: row | {"hour": 3600 / row["seconds"]} for name, row in found["rows"].items()}
    columns = {key: column for key, column in COLUMNS.items() if any(key in row for row in rows.values())}
    print("| | " + " | ".join(title for title, _ in columns.values()) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(show(row[key]) if key in row else "" for key, (_, show) in columns.items()) + " |", flush=True)
    if config.json:
        write_json(Path(config.json), found)


def _measure(run: Callable[[], None], pairs: int, device: Any, warm: bool = False) -> dict[str, float]:
    """Seconds a pair, and the peak of the memory: the GPU's own, or on a CPU the process's so far."""
    import resource

    import torch

    on_gpu = device.type == "cuda"
    if on_gpu or warm:
        run()  # kernels are loaded and chosen
    if on_gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    began = time.perf_counter()
    run()
    if on_gpu:
        torch.cuda.synchronize(device)
    seconds = (time.perf_counter() - began) / pairs
    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "memory": torch.cuda.max_memory_allocated(device) if on_gpu else kilobytes * 1024}


def _arithmetic(editor: Any, image: Any, reconstruct: bool) -> float:
    """Floating point operations of one pair."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        editor(image, [CAPTION], ["0"], reconstruct)
    return counter.get_total_flops()


def _product_rate(device: Any, dtype: Any) -> float:
    """Floating point operations a second of a large square matrix product on this machine, the best of five."""
    import torch

    side = PRODUCT_SIDE[device.type]
    matrix, best = torch.randn(side, side, device=device, dtype=dtype), 0.0
    for _ in range(6):
        began = time.perf_counter()
        matrix @ matrix
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def _stable_diffusion_14(dtype: Any) -> Any:
    """Stable Diffusion 1.4's networks with random weights, and a small tokenizer that pads to its 77 tokens."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from configs.loader import find_file

    folder, levels = Path(find_file("models/miniature/teacher")), (128, 256, 512, 512)
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    parts = {
        "unet": UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=levels,
            layers_per_block=2,
            sample_size=512,
            scaling_factor=0.18215,
        ),
        "text_encoder": CLIPTextModel(text),
    }
    parts = {name: torch.nn.Module.to(module, dtype).eval() for name, module in parts.items()}  # diffusers' own warns
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    with torch.no_grad():
        return StableDiffusionPipeline(
            **parts, tokenizer=tokenizer, scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


BENCHMARKS = {"generate": benchmark_generate, "filter": benchmark_filter, "train": benchmark_train, "infer": benchmark_infer}


if __name__ == "__main__":
    raise SystemExit(main())
