"""Regularised DDIM inversion (Parmar et al. 2023, section 3.2): an image's latent to the noise that DDIM turns back into it.

The predicted noise of each step is nudged towards white noise by two terms: the auto-correlation at random shifts over a pyramid, and
the KL divergence to a unit Gaussian. Both gradients are in closed form, and everything is per image: a batch of B equals B runs of 1.

Shapes: B batch, C latent channels, H W latent cells, S steps, O outer and I inner iterations, L pyramid levels.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import Inversion
from models.teacher import Step, Teacher

SMALLEST_LEVEL = 8  # cells; the pyramid 64, 32, 16, 8 of the reference code
VARIANCE_EPSILON = 1e-7


def ddim_step(latent_BCHW: Tensor, noise_BCHW: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """Move a latent from one alpha_bar to another along the predicted noise; either direction (Song et al. 2021, eq. 12, eta = 0)."""
    clean = (latent_BCHW - (1 - alpha_from) ** 0.5 * noise_BCHW) / alpha_from**0.5
    return alpha_to**0.5 * clean + (1 - alpha_to) ** 0.5 * noise_BCHW


class Solver:
    """Moves one trajectory along its levels; either direction.

    ddim: a first-order step a level. multistep: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2), which carries the clean image on along
    the line through the last two estimates, in lambda = log(sqrt(alpha_bar) / sqrt(1 - alpha_bar)); its first step, and steps between
    equal levels, are DDIM's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.clean: Tensor | None = None
        self.advance = 0.0  # of lambda in the last step

    def step(self, latent_BCHW: Tensor, noise_BCHW: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
        """The latent at the next level, from the noise predicted at this one."""
        if self.name == "multistep":
            clean = ahead = (latent_BCHW - (1 - alpha_from) ** 0.5 * noise_BCHW) / alpha_from**0.5
            advance = (math.log(alpha_to / (1 - alpha_to)) - math.log(alpha_from / (1 - alpha_from))) / 2
            if self.clean is not None and self.advance:
                ahead = clean + advance / self.advance / 2 * (clean - self.clean)
            self.clean, self.advance = clean, advance
            noise_BCHW = (latent_BCHW - alpha_from**0.5 * ahead) / (1 - alpha_from) ** 0.5
        return ddim_step(latent_BCHW, noise_BCHW, alpha_from, alpha_to)


@torch.no_grad()
def invert(
    teacher: Teacher,
    steps: Sequence[Step],
    latent_BCHW: Tensor,
    caption_BTD: Tensor,
    generators: Sequence[torch.Generator],
    config: Inversion,
    solver: str = "ddim",
    map_steps: int = 0,
) -> tuple[dict[str, Tensor], dict[int, list[Tensor]]]:
    """Invert latents under their captions (guidance scale 1): noises, B x C x H x W each, and the maps of the last map_steps steps.

    'inverted' is what the latents became, 'predicted' and 'regularised' the last step's noise before and after the regularisation; maps
    are by timestep. generators: one CPU generator an image, from which its shifts are drawn.
    """
    shifts_BSOICL = draw_shifts(generators, latent_BCHW.shape[1:3], len(steps), config).to(latent_BCHW.device)
    upwards, maps = Solver(solver), {}
    predicted = noise = latent_BCHW
    for index, (timestep, alpha_from, alpha_to) in enumerate(steps):
        if index >= len(steps) - map_steps:
            predicted, maps[timestep] = teacher.noise_and_maps(latent_BCHW, timestep, caption_BTD)
        else:
            predicted = teacher.noise(latent_BCHW, timestep, caption_BTD)
        noise = regularise(predicted, shifts_BSOICL[:, -1 - index], config)
        latent_BCHW = upwards.step(latent_BCHW, noise, alpha_from, alpha_to)
    return {"inverted": latent_BCHW, "predicted": predicted, "regularised": noise}, maps


def steps_upwards(schedule: Sequence[Step]) -> list[Step]:
    """DDIM backwards: the latent is at the level *below* a step's timestep; the lowest is evaluated at the last timestep, above it."""
    below = [*schedule[1:], schedule[-1]]
    return [
        Step(low.timestep, step.alpha_next, step.alpha) for step, low in zip(schedule, below, strict=True)
    ][::-1]


def official_steps_upwards(teacher: Teacher, count: int) -> list[Step]:
    """The reference code's inverse schedule: the timesteps upwards but the first and the last, alpha_bar one training step early."""
    alphas = teacher.scheduler.alphas_cumprod.tolist()
    stride = teacher.scheduler.config.num_train_timesteps // count
    return [Step(t, alphas[t - 1], alphas[t + stride - 1]) for t, _, _ in teacher.schedule(count)[-2:0:-1]]


def draw_shifts(
    generators: Sequence[torch.Generator], channels_height: Sequence[int], steps: int, config: Inversion
) -> Tensor:
    """Random shifts r ~ U{1 .. side/2 - 1} for every pyramid level: B x S x O x I x C x L integers."""
    shape = (steps, config.outer_iterations, config.inner_iterations, channels_height[0])
    beyond = [max(side // 2, 2) for side in _pyramid_sides(channels_height[1])]
    return torch.stack(
        [torch.stack([torch.randint(1, most, shape, generator=g) for most in beyond], -1) for g in generators]
    )


def regularise(noise_BCHW: Tensor, shifts_BOICL: Tensor, config: Inversion) -> Tensor:
    """The predicted noise after outer x (inner auto-correlation steps, one KL step)."""
    circulants = symmetric_circulants(noise_BCHW, shifts_BOICL) if config.lambda_ac else []
    for outer in range(config.outer_iterations):
        for inner in range(config.inner_iterations if config.lambda_ac else 0):
            gradient = auto_correlation_gradient(
                noise_BCHW, [level[:, outer, inner] for level in circulants], config.pool_gain
            )
            noise_BCHW = noise_BCHW - config.lambda_ac / config.inner_iterations * gradient
        if config.lambda_kl:
            noise_BCHW = noise_BCHW - config.lambda_kl * kl_gradient(noise_BCHW)
    return noise_BCHW


def symmetric_circulants(noise_BCHW: Tensor, shifts_BxCL: Tensor) -> list[Tensor]:
    """For each level the matrices S_r with S_r v = roll(v, r) + roll(v, -r), for the shifts given: (..., C, side, side) a level. With a
    shift of its own for every image and channel a matrix product is one batched call, where rolls would be a gather.
    """
    sides = _pyramid_sides(noise_BCHW.shape[2])
    return [
        _circulants(side, noise_BCHW.device, noise_BCHW.dtype)[shifts_BxCL[..., level]]
        for level, side in enumerate(sides)
    ]


@lru_cache(maxsize=32)
def _circulants(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    identity = torch.eye(side, device=device, dtype=dtype)
    return torch.stack([identity.roll(r, 0) + identity.roll(-r, 0) for r in range(max(side // 2, 2))])


def auto_correlation_gradient(noise_BCHW: Tensor, circulants: list[Tensor], pool_gain: float = 1.0) -> Tensor:
    """Gradient of L_ac: the sum over levels, channels and both axes of mean(n * roll(n, r))^2; a circulant B x C x side x side a level.

    With m = mean(n * roll(n, r)) over N cells: dL/dn = 2 m (roll(n, r) + roll(n, -r)) / N, and the mean is half of mean(n * S_r n), as both
    rolls have the same one. Coarser levels reach the finest through the average pooling: a quarter to each of four cells, times pool_gain.
    """
    circulant, *coarser = circulants
    gradient = torch.zeros_like(noise_BCHW)
    for neighbours in (circulant @ noise_BCHW, noise_BCHW @ circulant):
        mean = (noise_BCHW * neighbours).mean((2, 3), keepdim=True) / 2
        gradient = gradient + 2 * mean / noise_BCHW[0, 0].numel() * neighbours
    if coarser:
        pooled = auto_correlation_gradient(F.avg_pool2d(noise_BCHW, 2) * pool_gain, coarser, pool_gain)
        gradient = gradient + F.interpolate(pooled, scale_factor=2, mode="nearest") * (pool_gain / 4)
    return gradient


def kl_gradient(noise_BCHW: Tensor) -> Tensor:
    """Gradient of L_kl = var + mean^2 - 1 - log(var + eps), with the unbiased variance over each whole image."""
    count = noise_BCHW[0].numel()
    variance, mean = torch.var_mean(noise_BCHW, (1, 2, 3), keepdim=True)
    return (1 - 1 / (variance + VARIANCE_EPSILON)) * 2 * (noise_BCHW - mean) / (count - 1) + 2 * mean / count


def noise_statistics(noise_BCHW: Tensor) -> list[dict[str, float]]:
    """For each image 'mean', 'variance' and 'auto_correlation': the root mean square over channels, axes and all shifts below half the side
    of mean(n * roll(n, r)). White unit noise of N cells a channel has 0, 1 and about 1 / sqrt(N).
    """
    noise_BCHW = noise_BCHW.double().cpu()
    shifts = range(1, max(noise_BCHW.shape[2] // 2, 2))
    products = [
        (noise_BCHW * noise_BCHW.roll(shift, axis)).mean((2, 3)) for shift in shifts for axis in (2, 3)
    ]
    correlation = torch.stack(products).square().mean((0, 2)).sqrt()
    variance, mean = torch.var_mean(noise_BCHW, (1, 2, 3))
    found = {"mean": mean, "variance": variance, "auto_correlation": correlation}
    return [
        {name: round(float(values[row]), 4) for name, values in found.items()}
        for row in range(len(noise_BCHW))
    ]


def _pyramid_sides(height: int) -> list[int]:
    sides = [height]
    while sides[-1] > SMALLEST_LEVEL and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides
