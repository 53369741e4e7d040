"""DiffusionCLIP (Kim, Kwon and Ye 2022): a diffusion model's copy, fine-tuned by CLIP to a target text.

Pictures are inverted to a middle timestep by deterministic DDIM, and the copy is fine-tuned so that
what it makes of them there moves as the texts do, without moving further than that takes.

Shapes: B pictures, C channels, H W pixels, D width of a CLIP feature.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import cosine_similarity

from configs.files import whole_file
from generate.inversion import ddim_step, steps_upwards
from models.clip_scorer import ClipScorer
from models.teacher import Step
from models.unconditional import Unconditional

# The paper's values, but for the steps upwards, of which it has 40.
PICTURES = 50
BATCH = 4  # pictures an update
ROUNDS = 5  # over all pictures
SCHEDULE = 10  # steps from noise to picture
STEPS_DOWN = 6  # the last of them, from half of the timesteps; each is an update, the variant that fits a GPU
FINER = 10  # steps upwards for one of them downwards
IDENTITY_WEIGHT = 0.3  # of L1, beside a directional loss of weight 1
SETTINGS = (PICTURES, BATCH, ROUNDS, SCHEDULE, STEPS_DOWN, FINER, IDENTITY_WEIGHT)


def directional_loss(image_BD: Tensor, reference_BD: Tensor, text_D: Tensor) -> Tensor:
    """1 - the cosine of the change between CLIP's features and the texts' (equation 7), B.

    image_BD, reference_BD: features of the new pictures and of those that they come from. text_D: the
    target's feature minus the source's.
    """
    return 1 - cosine_similarity(image_BD - reference_BD, text_D[None], dim=-1)


def fine_tuned(
    model: Unconditional,
    scorer: ClipScorer,
    text_D: Tensor,
    image_BCHW: Tensor,
    lr: float,
    seed: int,
    cache: Path,
) -> Unconditional:
    """The copy of `model` that moves pictures in [-1, 1] along text_D; from `cache` where it is there."""
    tuned = copy.copy(model)
    tuned.unet = copy.deepcopy(model.unet)
    if cache.exists():
        tuned.unet.load_state_dict(load_file(cache, device=str(model.device)))
        return tuned
    tuned.unet.requires_grad_(True)
    _fine_tune(model, tuned, scorer, text_D, image_BCHW, lr, seed)
    tuned.unet.requires_grad_(False)
    with whole_file(cache) as stream:
        stream.write(save({name: tensor.contiguous() for name, tensor in tuned.unet.state_dict().items()}))
    return tuned


def _fine_tune(
    model: Unconditional,
    tuned: Unconditional,
    scorer: ClipScorer,
    text_D: Tensor,
    image_BCHW: Tensor,
    lr: float,
    seed: int,
) -> None:
    """Change the weights of `tuned` (algorithm 1 of the paper's appendix, an update a step)."""
    latent_BCHW = inverted_partly(model, image_BCHW)
    with torch.no_grad():
        reference_BD = scorer.differentiable_features(to_unit(image_BCHW))
    steps = model.schedule(SCHEDULE)[-STEPS_DOWN:]
    optimiser = torch.optim.Adam(tuned.unet.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    for round_ in range(ROUNDS):
        losses = []
        for chosen in torch.randperm(len(image_BCHW), generator=generator).split(BATCH):
            now_BCHW = latent_BCHW[chosen]
            for step in steps:
                noise_BCHW = tuned.noise(now_BCHW, step.timestep)
                clean_BCHW = ddim_step(now_BCHW, noise_BCHW, step.alpha, 1.0)  # the predicted picture
                moved_BD = scorer.differentiable_features(to_unit(clean_BCHW))
                direction = directional_loss(moved_BD, reference_BD[chosen], text_D).mean()
                identity = (clean_BCHW - image_BCHW[chosen]).abs().mean()
                optimiser.zero_grad()
                (direction + IDENTITY_WEIGHT * identity).backward()
                optimiser.step()
                now_BCHW = ddim_step(now_BCHW, noise_BCHW.detach(), step.alpha, step.alpha_next)
            losses.append(float(direction.detach()))
        mean = sum(losses) / len(losses)
        print(f"  fine-tuning: round {round_ + 1} of {ROUNDS}, directional loss {mean:.3f}", flush=True)


@torch.no_grad()
def inverted_partly(model: Unconditional, image_BCHW: Tensor) -> Tensor:
    """The pictures where STEPS_DOWN begin, by DDIM upwards without regularisation."""
    top = highest_timestep(model)
    steps = [step for step in model.schedule(SCHEDULE * FINER) if step.timestep <= top]
    latents = []
    for latent_BCHW in image_BCHW.split(BATCH):
        for step in steps_upwards(steps):
            noise_BCHW = model.noise(latent_BCHW, step.timestep)
            latent_BCHW = ddim_step(latent_BCHW, noise_BCHW, step.alpha, step.alpha_next)
        latents.append(latent_BCHW)
    return torch.cat(latents)


def highest_timestep(model: Unconditional) -> int:
    """Where the pictures are inverted to, and the fine-tuned steps begin."""
    return model.schedule(SCHEDULE)[-STEPS_DOWN].timestep


@torch.no_grad()
def sample(model: Unconditional, noise_BCHW: Tensor, steps: Sequence[Step]) -> Tensor:
    """The pictures, not clamped, that DDIM makes of noise in steps downwards, B x C x H x W.

    As diffusers' DDIMPipeline without clipping each step's clean picture, which no inversion could undo.
    """
    latent_BCHW = noise_BCHW
    for step in steps:
        predicted_BCHW = model.noise(latent_BCHW, step.timestep)
        latent_BCHW = ddim_step(latent_BCHW, predicted_BCHW, step.alpha, step.alpha_next)
    return latent_BCHW


def to_unit(signed_BCHW: Tensor) -> Any:
    """Pictures in [-1, 1] in [0, 1], clamped."""
    return (signed_BCHW / 2 + 0.5).clamp(0, 1)
