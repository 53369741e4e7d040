"""What the benchmarks share: a clock, the machine's own rate, and Stable Diffusion 1.4's networks without a download."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

CAPTION = "a photo of a tree in summer"
PRODUCT_SIDE = {"cuda": 8192, "cpu": 2048}  # of the square matrices whose product gives the machine's rate


def measure(
    run: Callable[[], object], pairs: int, device: Any, warm: bool = False, first: Callable[[], object] | None = None
) -> dict[str, float]:
    """Seconds a pair, and the peak of the memory: the GPU's own, or on a CPU the process's so far.

    On a GPU, and with `warm`, `first` runs before the clock does, or else `run` itself: kernels are loaded, chosen and compiled there.
    """
    import resource

    import torch

    on_gpu = device.type == "cuda"
    if on_gpu or warm:
        (first or run)()
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


def product_rate(device: Any, dtype: Any) -> float:
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


def stable_diffusion_14(dtype: Any) -> Any:
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
