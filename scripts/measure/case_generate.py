"""What `scripts/benchmark.py generate` times: our editor beside the reference code's loop.

B batch, C channels, H W pixels, T tokens, D width.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import Config
from generate.batch_size import largest_batch
from models.devices import pick_device
from models.teacher import Teacher
from scripts.measure.benchmark import Result
from scripts.measure.editing import (
    CAPTION,
    STABLE_DIFFUSION_SIDE,
    WARM_STEPS,
    edit_all,
    editor_of,
    measure_editor,
    open_pipeline,
    random_images,
)
from scripts.measure.plain import PlainPix2PixZero
from scripts.measure.timing import measure, product_rate, progress


def run(config: Config) -> Result:
    """The plain loop on one pair, then ours on benchmark.pairs, in the paper's and the official form."""
    settings = config.benchmark
    device = pick_device(config.device)
    progress("networks")
    pipeline = open_pipeline(config, device).to(device)
    side = STABLE_DIFFUSION_SIDE if settings.architecture else config.teacher.resolution
    image_BCHW = random_images(settings.pairs, side)

    progress("plain loop")
    rows = {"plain loop, one at a time": measure_plain(pipeline, config, image_BCHW[:1], device)}
    # The teacher takes the plain loop's attention off the UNet, and freezes the weights that it has
    # gradients for.
    teacher_config = replace(config.teacher, resolution=side)
    teacher = Teacher(teacher_config, device, config.generate.dtype, pipeline)
    batch = config.generate.batch or largest_batch(editor_of(teacher, config), settings.pairs)
    batch = min(batch, settings.pairs)
    # Where the maps are the inversion's there is no reference pass, and no official form.
    reconstruct = config.guidance.maps == "reference"
    forms = {}
    for mode in ("paper", "official") if reconstruct else ("paper",):
        forms[mode] = replace(config, edit=replace(config.edit, mode=mode))
    progress("arithmetic")
    operations = {}
    for mode, form in forms.items():
        operations[mode] = count_operations(teacher, form, image_BCHW[:1], reconstruct)
    rate = product_rate(device, teacher.dtype)

    if config.generate.compile:
        teacher = Teacher(teacher_config, device, config.generate.dtype, pipeline, compiled=True)
    for mode, form in forms.items():
        progress(f"ours, {mode}")
        row = measure_editor(editor_of(teacher, form), image_BCHW, batch, reconstruct)
        row["operations"] = operations[mode]
        row["rate"] = operations[mode] / row["seconds"] / rate
        rows[_row_name(mode, batch)] = row

    network = settings.architecture or config.teacher.name
    timed = f"{network}, {side} x {side}, {config.edit.steps} steps, {config.generate.dtype}"
    return Result(timed, device, rows, _row_name(config.edit.mode, batch))


def _row_name(mode: str, batch: int) -> str:
    return f"ours, {mode}, batches of {batch}"


def measure_plain(
    pipeline: Any, config: Config, image_1CHW: torch.Tensor, device: torch.device
) -> dict[str, float]:
    """Seconds and memory of edit_plainly of one image."""
    edit = partial(edit_plainly, pipeline, config, image_1CHW)
    return measure(partial(edit, config.edit.steps), 1, device, first=partial(edit, WARM_STEPS))


def edit_plainly(pipeline: Any, config: Config, image_1CHW: torch.Tensor, steps: int) -> None:
    """Edit one image by the plain loop, from pixels to pixels."""
    plain = PlainPix2PixZero(pipeline, steps)
    vae = pipeline.vae
    with torch.no_grad():
        distribution = vae.encode(image_1CHW.to(vae.device, vae.dtype)).latent_dist
        latent_1CHW = distribution.mode() * vae.config.scaling_factor
    text_1TD = plain.embed(CAPTION)
    direction_1TD = 0.1 * torch.randn_like(text_1TD)
    inverted_1CHW = plain.invert(
        latent_1CHW, text_1TD, config.inversion.lambda_ac, config.inversion.lambda_kl
    )
    texts_2TD = torch.cat([text_1TD, text_1TD])
    amount = config.guidance.amount
    for edited_1CHW in plain.edit(inverted_1CHW, texts_2TD, direction_1TD, amount, config.guidance.scale):
        with torch.no_grad():
            vae.decode(edited_1CHW / vae.config.scaling_factor)


def count_operations(teacher: Teacher, config: Config, image_1CHW: torch.Tensor, reconstruct: bool) -> float:
    """Floating point operations of one pair.

    A pair costs a fixed number and as many again for each step, so two short edits tell the whole.
    """
    counts = {}
    for steps in (WARM_STEPS, 2 * WARM_STEPS):
        short = replace(config, edit=replace(config.edit, steps=steps))
        with FlopCounterMode(display=False) as counter:
            edit_all(editor_of(teacher, short), image_1CHW, 1, reconstruct)
        counts[steps] = counter.get_total_flops()
    a_step = (counts[2 * WARM_STEPS] - counts[WARM_STEPS]) / WARM_STEPS
    return counts[WARM_STEPS] + a_step * (config.edit.steps - WARM_STEPS)
