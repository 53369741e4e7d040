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
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.schema import Config
from scripts.benchmark_filter import benchmark_filter
from scripts.benchmark_infer import benchmark_infer
from scripts.benchmark_train import benchmark_train
from scripts.timing import CAPTION, measure, product_rate, say, stable_diffusion_14

SECTIONS = ("task", "teacher", "inversion", "edit", "guidance", "generate", "generator", "augment", "distill", "benchmark")
WARM_STEPS = 4  # of an edit that only loads, chooses and compiles kernels, or counts operations
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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if name in BENCHMARKS:
        return entry(__doc__, SECTIONS, lambda config: report(config, _run(name, config)), lambda config: {"benchmark": name}, rest)
    if name.startswith("-"):
        return entry(__doc__, SECTIONS, lambda config: None, lambda config: {}, [name, *rest])
    print(f"error: no benchmark '{name}'. There are: {', '.join(BENCHMARKS)}", file=sys.stderr)
    return 2


def _run(name: str, config: Config) -> dict[str, Any]:
    least = 0 if name == "infer" else 1
    for key in ("pairs", "plain_pairs"):
        if getattr(config.benchmark, key) < least:
            raise UserError(f"benchmark.{key}={getattr(config.benchmark, key)}: {name} takes {least} or more")
    return BENCHMARKS[name](config)


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
    build = {"": lambda: load_pipeline(config.teacher.path, dtype), "sd14": lambda: stable_diffusion_14(DTYPES[dtype], device)}
    if config.benchmark.architecture not in build:
        raise UserError(f"benchmark.architecture={config.benchmark.architecture}: there are sd14, and none for the teacher's own")
    say("networks")
    pipeline = build[config.benchmark.architecture]().to(device)
    side = 512 if config.benchmark.architecture else config.teacher.resolution
    count = config.benchmark.pairs
    torch.manual_seed(0)
    images = torch.rand(count, 3, side, side) * 2 - 1  # the speed depends on neither pixels nor weights
    attention = dict(pipeline.unet.attn_processors)
    size = pipeline.tokenizer.model_max_length, pipeline.text_encoder.config.hidden_size
    direction = 0.1 * torch.randn(1, *size, device=device, dtype=DTYPES[dtype])

    def run_plain(steps: int = config.edit.steps) -> None:
        plain = PlainPix2PixZero(pipeline, steps)
        for image in images[: config.benchmark.plain_pairs]:
            with torch.no_grad():
                latent = pipeline.vae.encode(image[None].to(device, DTYPES[dtype])).latent_dist.mode() * pipeline.vae.config.scaling_factor
            text = plain.embed(CAPTION)
            inverted = plain.invert(latent, text, config.inversion.lambda_ac, config.inversion.lambda_kl)
            for edited in plain.edit(inverted, torch.cat([text, text]), direction, config.guidance.amount, config.guidance.scale):
                with torch.no_grad():
                    pipeline.vae.decode(edited / pipeline.vae.config.scaling_factor)

    say("plain loop")
    first_plain = partial(run_plain, WARM_STEPS)
    rows = {"plain loop, one at a time": measure(run_plain, config.benchmark.plain_pairs, device, first=first_plain)}
    pipeline.unet.set_attn_processor(attention)
    # Freezes the weights that the plain loop has gradients for.
    teacher = Teacher(replace(config.teacher, resolution=side), device, dtype, pipeline)
    follows = config.guidance.maps == "reference"  # else there is no reference pass, and no official form
    variants = {mode: replace(config, edit=replace(config.edit, mode=mode)) for mode in ("paper", "official")[: 1 + follows]}
    to_target = EditDirection(direction.float(), "", "")
    say("arithmetic")
    work = {mode: _arithmetic(teacher, to_target, variant, images[:1], follows) for mode, variant in variants.items()}
    batch = min(config.generate.batch or largest_batch(Editor(teacher, to_target, config), count), count)
    if config.generate.compile:
        teacher = Teacher(replace(config.teacher, resolution=side), device, dtype, pipeline, compiled=True)
    for mode, variant in variants.items():

        def run_ours(variant: Config = variant) -> None:
            editor = Editor(teacher, to_target, variant)
            for part in images.split(batch):
                editor(part, [CAPTION] * len(part), [str(row) for row in range(len(part))], follows)

        say(f"ours, {mode}")
        row = measure(run_ours, count, device, config.generate.compile, partial(run_ours, _of_steps(variant, WARM_STEPS)))
        row["rate"] = work[mode] / row["seconds"] / product_rate(device, DTYPES[dtype])
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


def _of_steps(config: Config, steps: int) -> Config:
    return replace(config, edit=replace(config.edit, steps=steps), inversion=replace(config.inversion, steps=None))


def _arithmetic(teacher: Any, direction: Any, config: Config, image: Any, reconstruct: bool) -> float:
    """Floating point operations of one pair: a part of their own plus as many for each step, so two short edits tell."""
    from torch.utils.flop_counter import FlopCounterMode

    from generate.editors import Editor

    counts = []
    for steps in (WARM_STEPS, 2 * WARM_STEPS):
        with FlopCounterMode(display=False) as counter:
            Editor(teacher, direction, _of_steps(config, steps))(image, [CAPTION], ["0"], reconstruct)
        counts.append(counter.get_total_flops())
    return counts[0] + (counts[1] - counts[0]) * (config.edit.steps / WARM_STEPS - 1)


BENCHMARKS = {"generate": benchmark_generate, "filter": benchmark_filter, "train": benchmark_train, "infer": benchmark_infer}


if __name__ == "__main__":
    raise SystemExit(main())
