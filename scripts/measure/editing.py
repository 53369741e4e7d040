"""The teacher's editors that benchmarks time; speed depends on neither pixels nor weights.

B batch, C channels, H W pixels, T tokens, D width.
"""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from transformers import CLIPTokenizer

from configs.files import find_file
from configs.schema import Config
from generate.directions import EditDirection
from generate.editors import Editor
from models.pipeline import DTYPES, load_parts
from models.teacher import Teacher
from scripts.measure.timing import measure
from scripts.published import stable_diffusion

CAPTION = "a photo of a tree in summer"
WARM_STEPS = 4  # of an edit that only loads, chooses and compiles kernels, or counts operations
STABLE_DIFFUSION_SIDE = 512  # pixels: what version 1.4 was made for


def open_pipeline(config: Config, device: torch.device) -> Any:
    """The teacher's pipeline; with benchmark.architecture one of Stable Diffusion 1.4's size."""
    if config.benchmark.architecture:
        return random_stable_diffusion(config.generate.dtype, device)
    parts = load_parts(config.teacher, config.generate.dtype)
    return StableDiffusionPipeline(**vars(parts), requires_safety_checker=False)


def random_stable_diffusion(dtype: str, device: torch.device) -> StableDiffusionPipeline:
    """Stable Diffusion 1.4's networks with random weights.

    The tokenizer is the miniature's, padding to 77 tokens as Stable Diffusion's does.
    """
    folder = Path(find_file("models/miniature/teacher"))
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", model_max_length=77)
    model = stable_diffusion.MODELS["sd14"]
    with torch.device(device):  # a GPU draws a billion random weights at once
        unet = stable_diffusion.unet(model)
        text_encoder = stable_diffusion.text_encoder(model)
        vae = stable_diffusion.vae(model)
    for network in (unet, text_encoder, vae):
        torch.nn.Module.to(network, DTYPES[dtype])  # the networks' own .to() warns of float16
        network.eval()
    return StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler.from_pretrained(folder / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def random_images(count: int, side: int) -> torch.Tensor:
    """B x 3 x side x side in [-1, 1]."""
    return torch.rand(count, 3, side, side) * 2 - 1


def editor_of(teacher: Teacher, config: Config) -> Editor:
    """The configured edit along a random direction."""
    direction_1TD = 0.1 * torch.randn_like(teacher.embed([CAPTION]))
    return Editor(teacher, EditDirection(direction_1TD, "", ""), config)


def edit_all(editor: Editor, image_BCHW: torch.Tensor, batch: int, reconstruct: bool) -> None:
    """Edit the images in batches."""
    for part_BCHW in image_BCHW.split(batch):
        keys = [str(row) for row in range(len(part_BCHW))]
        editor(part_BCHW, [CAPTION] * len(part_BCHW), keys, reconstruct)


def measure_editor(
    editor: Editor, image_BCHW: torch.Tensor, batch: int, reconstruct: bool
) -> dict[str, float]:
    """Seconds and memory of edit_all, see timing.measure."""
    run = partial(edit_all, editor, image_BCHW, batch, reconstruct)
    first = partial(edit_all, editor.shortened(WARM_STEPS), image_BCHW, batch, reconstruct)
    return measure(run, len(image_BCHW), editor.teacher.device, first)
