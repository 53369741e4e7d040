"""Regularised DDIM inversion (Parmar et al. 2023, section 3.2): the noise that DDIM turns into an image.

DDIM run backwards gives noise that is neither white nor of unit variance, and such noise edits
badly. At each step two terms therefore pull the predicted noise towards white Gaussian noise: the
auto-correlation at random shifts, over a pyramid of average-pooled levels, and the KL divergence to
a unit Gaussian. Both gradients are in closed form, and every image has sums and random draws of its
own: a batch of B equals B runs of 1.

Shapes: B images, C latent channels, H W latent cells, S steps, O outer and I inner iterations, L
pyramid levels, T text tokens, D text width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.schema import Inversion
from generate.progress import told
from models.teacher import NoisePredictor, Step

OUTER_ITERATIONS = 5  # regularisation rounds a step: num_reg_steps of the reference code
INNER_ITERATIONS = 5  # auto-correlation updates a round, before its KL update: num_ac_rolls there
SMALLEST_LEVEL = 8  # cells a side; the reference code's pyramid is 64, 32, 16, 8
VARIANCE_EPSILON = 1e-7  # keeps the logarithm of the variance finite


@dataclass(frozen=True)
class Inverted:
    """The noise that the trajectories of an edit start from, and what its inversion leaves.

    inverted_BCHW: the noise, which the latents became or which was drawn. predicted_BCHW and
    regularised_BCHW: the noise predicted in the last step, before and after its regularisation;
    None where the noise was drawn. maps: by timestep the cross-attention probabilities (B, heads,
    pixels, T) of each layer, for as many of the last steps as were to keep them. All float32, but
    maps in the teacher's precision.
    """

    inverted_BCHW: Tensor
    predicted_BCHW: Tensor | None = None
    regularised_BCHW: Tensor | None = None
    maps: dict[int, list[Tensor]] = field(default_factory=dict)

    def noises(self) -> dict[str, Tensor]:
        """The noises there are by their names in a pair's record: inverted, predicted, regularised."""
        noises = {"inverted": self.inverted_BCHW}
        if self.predicted_BCHW is not None:
            noises["predicted"] = self.predicted_BCHW
        if self.regularised_BCHW is not None:
            noises["regularised"] = self.regularised_BCHW
        return noises


@torch.no_grad()
def invert(
    teacher: NoisePredictor,
    steps: Sequence[Step],
    latent_BCHW: Tensor,
    caption_BTD: Tensor,
    generators: Sequence[torch.Generator],
    config: Inversion,
    map_steps: int = 0,
) -> Inverted:
    """Invert latents B x C x H x W under their captions, without classifier-free guidance.

    steps: upwards, from image to noise. generators: one CPU generator an image, from which its
    shifts are drawn. map_steps: for so many of the last steps the cross-attention maps are kept.
    """
    _, channels, height, _ = latent_BCHW.shape
    shifts_BSOICL = draw_shifts(generators, len(steps), channels, height).to(latent_BCHW.device)
    predicted_BCHW = latent_BCHW
    regularised_BCHW = latent_BCHW
    maps: dict[int, list[Tensor]] = {}
    for index, step in enumerate(told("inversion", steps)):
        steps_left = len(steps) - index  # this one included
        timestep = step.timestep
        if steps_left <= map_steps:
            predicted_BCHW, maps[timestep] = teacher.noise_and_maps(latent_BCHW, timestep, caption_BTD)
        else:
            predicted_BCHW = teacher.noise(latent_BCHW, timestep, caption_BTD)
        # The draws are in the order of the schedule downwards, as a pair's seed has always had them.
        shifts_BOICL = shifts_BSOICL[:, steps_left - 1]
        regularised_BCHW = regularise(predicted_BCHW, shifts_BOICL, config)
        latent_BCHW = ddim_step(latent_BCHW, regularised_BCHW, step.alpha, step.alpha_next)
    return Inverted(latent_BCHW, predicted_BCHW, regularised_BCHW, maps)


def ddim_step(latent_BCHW: Tensor, noise_BCHW: Tensor, alpha_from: float, alpha_to: float) -> Tensor:
    """Move a latent along its predicted noise from one alpha_bar to another, upwards or downwards.

    Song et al. 2021 (DDIM), eq. 12 with eta = 0. B x C x H x W.
    """
    clean_BCHW = (latent_BCHW - (1 - alpha_from) ** 0.5 * noise_BCHW) / alpha_from**0.5  # predicted x_0
    return alpha_to**0.5 * clean_BCHW + (1 - alpha_to) ** 0.5 * noise_BCHW


def steps_upwards(schedule: Sequence[Step]) -> list[Step]:
    """The steps of a schedule backwards, from image to noise.

    A step downwards predicts the noise at the level it leaves. Backwards that level is not reached
    yet: the noise is predicted at the level *below*, which is the next step's timestep. Below the
    lowest step there is none, so it keeps its own.
    """
    upwards = []
    for index in reversed(range(len(schedule))):
        step = schedule[index]
        below = schedule[min(index + 1, len(schedule) - 1)]
        upwards.append(Step(below.timestep, step.alpha_next, step.alpha))
    return upwards


def draw_shifts(generators: Sequence[torch.Generator], steps: int, channels: int, height: int) -> Tensor:
    """Random shifts r ~ U{1 .. side/2 - 1} for each update and pyramid level.

    B x S x O x I x C x L integers, on the CPU.
    """
    shape = (steps, OUTER_ITERATIONS, INNER_ITERATIONS, channels)
    images = []
    for generator in generators:
        levels = []
        for side in _pyramid_sides(height):
            levels.append(torch.randint(1, _shift_limit(side), shape, generator=generator))
        images.append(torch.stack(levels, -1))  # S x O x I x C x L
    return torch.stack(images)


def regularise(noise_BCHW: Tensor, shifts_BOICL: Tensor, config: Inversion) -> Tensor:
    """The predicted noise after gradient steps on both terms (section 3.2), B x C x H x W:

    O times:
      I times: noise <- noise - lambda_ac / I * grad L_ac(noise), with new shifts
      noise <- noise - lambda_kl * grad L_kl(noise)
    """
    circulants = symmetric_circulants(noise_BCHW, shifts_BOICL) if config.lambda_ac else []
    for outer in range(OUTER_ITERATIONS):
        if config.lambda_ac:
            for inner in range(INNER_ITERATIONS):
                now = [level[:, outer, inner] for level in circulants]  # B x C x side x side each
                gradient_BCHW = auto_correlation_gradient(noise_BCHW, now, config.pool_gain)
                noise_BCHW = noise_BCHW - config.lambda_ac / INNER_ITERATIONS * gradient_BCHW
        if config.lambda_kl:
            noise_BCHW = noise_BCHW - config.lambda_kl * kl_gradient(noise_BCHW)
    return noise_BCHW


def auto_correlation_gradient(noise_BCHW: Tensor, circulants: list[Tensor], pool_gain: float) -> Tensor:
    """Gradient of the auto-correlation term with respect to the noise n, B x C x H x W:

      L_ac = sum of m^2 over levels, channels and both axes, with m = mean(n * roll(n, r)) over N cells
      dL_ac/dn = 2 m / N * (roll(n, r) + roll(n, -r)) = 2 m / N * S_r n
      m = mean(n * S_r n) / 2, as n correlates alike with both rolls

    circulants: S_r of each level, finest first, B x C x side x side. A coarser level is the mean of
    2 x 2 cells times pool_gain: each of the four gets a quarter of its gradient, times pool_gain.
    """
    circulant_BCHH, *coarser = circulants
    cells = noise_BCHW[0, 0].numel()
    gradient_BCHW = torch.zeros_like(noise_BCHW)
    for neighbours_BCHW in (circulant_BCHH @ noise_BCHW, noise_BCHW @ circulant_BCHH):  # axis H, axis W
        mean_BC11 = (noise_BCHW * neighbours_BCHW).mean((2, 3), keepdim=True) / 2
        gradient_BCHW = gradient_BCHW + 2 * mean_BC11 / cells * neighbours_BCHW
    if coarser:
        pooled_BCHW = F.avg_pool2d(noise_BCHW, 2) * pool_gain  # H/2 x W/2
        pooled_gradient_BCHW = auto_correlation_gradient(pooled_BCHW, coarser, pool_gain)
        repeated_BCHW = F.interpolate(pooled_gradient_BCHW, scale_factor=2, mode="nearest")  # H x W
        gradient_BCHW = gradient_BCHW + repeated_BCHW * (pool_gain / 4)
    return gradient_BCHW


def symmetric_circulants(noise_BCHW: Tensor, shifts_BxCL: Tensor) -> list[Tensor]:
    """For each level the matrices S_r of the shifts r, with S_r v = roll(v, r) + roll(v, -r).

    B x ... x C x side x side a level, as every image and channel has a shift of its own. A product
    with matrices is one batched call, where rolls would be a gather.
    """
    circulants = []
    for level, side in enumerate(_pyramid_sides(noise_BCHW.shape[2])):
        by_shift = _circulants(side, noise_BCHW.device, noise_BCHW.dtype)
        circulants.append(by_shift[shifts_BxCL[..., level]])
    return circulants


@lru_cache(maxsize=32)
def _circulants(side: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """S_r for every shift r from 0 to below side/2, indexed by r: (shifts) x side x side."""
    identity = torch.eye(side, device=device, dtype=dtype)
    circulants = [identity.roll(r, 0) + identity.roll(-r, 0) for r in range(_shift_limit(side))]
    return torch.stack(circulants)


def _shift_limit(side: int) -> int:
    """What shifts are below: half the side, as longer ones are shorter ones the other way; at least 2."""
    return max(side // 2, 2)


def _pyramid_sides(height: int) -> list[int]:
    """The side of each pyramid level in cells: the latent's, halved until SMALLEST_LEVEL or an odd side."""
    sides = [height]
    while sides[-1] > SMALLEST_LEVEL and sides[-1] % 2 == 0:
        sides.append(sides[-1] // 2)
    return sides


def kl_gradient(noise_BCHW: Tensor) -> Tensor:
    """Gradient of the KL term with respect to the noise n, B x C x H x W:

      L_kl = var + mean^2 - 1 - log(var + eps)
      dL_kl/dn = (1 - 1 / (var + eps)) * 2 (n - mean) / (N - 1) + 2 mean / N

    with the mean and the unbiased variance of an image's N values.
    """
    count = noise_BCHW[0].numel()  # N
    variance, mean = torch.var_mean(noise_BCHW, (1, 2, 3), keepdim=True)  # B x 1 x 1 x 1
    of_variance = 1 - 1 / (variance + VARIANCE_EPSILON)
    return of_variance * 2 * (noise_BCHW - mean) / (count - 1) + 2 * mean / count


def noise_statistics(noise_BCHW: Tensor) -> list[dict[str, float]]:
    """How white each image's noise is: 'mean', 'variance' and 'auto_correlation', to four digits.

    'auto_correlation' is the root mean square of mean(n * roll(n, r)) over channels, both axes and
    all shifts r below half the side. White unit noise of N cells a channel has 0, 1 and about
    1 / sqrt(N).
    """
    noise_BCHW = noise_BCHW.cpu().double()
    correlations = []
    for shift in range(1, _shift_limit(noise_BCHW.shape[2])):
        for axis in (2, 3):
            correlations.append((noise_BCHW * noise_BCHW.roll(shift, axis)).mean((2, 3)))  # B x C
    correlation_B = torch.stack(correlations).square().mean((0, 2)).sqrt()
    variance_B, mean_B = torch.var_mean(noise_BCHW, (1, 2, 3))
    statistics = []
    for row in range(len(noise_BCHW)):
        of_image = {"mean": mean_B[row], "variance": variance_B[row], "auto_correlation": correlation_B[row]}
        statistics.append({name: round(float(value), 4) for name, value in of_image.items()})
    return statistics
