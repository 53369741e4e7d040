"""pix2pix-zero as the reference code structures it: the baseline of a benchmark and the truth of a test.

It is written plainly: one image at a time, explicit attention everywhere, two rows in every pass,
the maps of all steps kept in CPU memory, the regulariser through autograd, gradients of the
cross-attention weights computed and thrown away. Nothing here is shared with generate/.

Shapes: C latent channels, H W latent cells, T text tokens, D text width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

OUTER_ITERATIONS = 5  # the reference code's num_reg_steps
INNER_ITERATIONS = 5  # its num_ac_rolls
SMALLEST_LEVEL = 8  # cells a side of the pyramid's last level


class RecordingAttention:
    """Attention written out, with the probabilities of the cross-attention layers kept in order.

    They are (rows x heads) x pixels x tokens.
    """

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(context))
        value = attn.head_to_batch_dim(attn.to_v(context))
        probabilities = attn.get_attention_scores(query, key, None)
        if encoder_hidden_states is not None:
            self.maps.append(probabilities)
        mixed = attn.batch_to_head_dim(torch.bmm(probabilities, value))
        project, dropout = attn.to_out
        return dropout(project(mixed))


class PlainPix2PixZero:
    """The networks of a diffusers StableDiffusionPipeline in the reference code's loops."""

    def __init__(self, pipeline: Any, steps: int) -> None:
        self.pipeline = pipeline
        self.unet = pipeline.unet
        self.attention = RecordingAttention()
        self.unet.set_attn_processor(self.attention)
        self.unet.requires_grad_(False)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_("attn2" in name)
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.scheduler.set_timesteps(steps)
        self.stride = self.scheduler.config.num_train_timesteps // steps

    def embed(self, text: str) -> Tensor:
        """The text's embedding, 1 x T x D."""
        with torch.no_grad():
            embedding, _ = self.pipeline.encode_prompt(text, self.unet.device, 1, False)
        return embedding

    def invert(self, latent: Tensor, text: Tensor, lambda_ac: float, lambda_kl: float) -> Tensor:
        """The regularised inversion of a latent 1 x C x H x W under a text 1 x T x D.

        The inverse schedule leaves out the first and the last timestep.
        """
        alphas = self.scheduler.alphas_cumprod
        for t in self.scheduler.timesteps.flip(0)[1:-1]:
            with torch.no_grad():
                noise = self._predict(latent, t, text)
            noise = regularise_by_autograd(noise.float(), lambda_ac, lambda_kl).to(latent.dtype)
            before = alphas[t - 1]
            after = alphas[t + self.stride - 1]
            scaled_clean = latent - (1 - before).sqrt() * noise
            latent = after.sqrt() * scaled_clean / before.sqrt() + (1 - after).sqrt() * noise
        return latent

    def edit(
        self, inverted: Tensor, texts: Tensor, direction: Tensor, amount: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Latents (reconstruction, edit), each 1 x C x H x W, of inverted noise.

        texts: 2 x T x D, negative and caption. direction: 1 x T x D, added to the caption's row.
        amount: step size of the attention guidance. scale: that of classifier-free guidance.
        """
        # 1. The reconstruction, and its maps of every step.
        reference_maps: dict[int, list[Tensor]] = {}
        latent = inverted
        for t in self.scheduler.timesteps:
            with torch.no_grad():
                noise = self._predict(torch.cat([latent] * 2), t, texts)
            reference_maps[int(t)] = [layer.cpu() for layer in self.attention.maps]
            latent = self._step(noise, t, latent, scale)
        reconstruction = latent

        # 2. The edit: a gradient step on both rows, then a DDIM step.
        latent = inverted
        edited = torch.cat([texts[:1], texts[1:] + direction])
        for t in self.scheduler.timesteps:
            rows = torch.cat([latent] * 2).detach().requires_grad_()
            optimizer = torch.optim.SGD([rows], lr=amount)
            self._predict(rows, t, edited)
            distances = []
            for layer, reference in zip(self.attention.maps, reference_maps[int(t)], strict=True):
                distances.append((layer - reference.to(layer.device)).square().sum((1, 2)).mean(0))
            torch.stack(distances).sum().backward()
            optimizer.step()
            with torch.no_grad():
                noise = self._predict(rows, t, edited)
            latent = self._step(noise, t, rows.detach().chunk(2)[0], scale)
        return reconstruction, latent

    def _predict(self, latent: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """The UNet's prediction; the maps of the call before are forgotten."""
        self.attention.maps.clear()
        return self.unet(latent, t, encoder_hidden_states=text).sample

    def _step(self, noise: Tensor, t: Tensor, latent: Tensor, scale: float) -> Tensor:
        """A DDIM step with classifier-free guidance of two rows' noise."""
        unconditional, conditional = noise.chunk(2)
        guided = unconditional + scale * (conditional - unconditional)
        return self.scheduler.step(guided, t, latent).prev_sample


def regularise_by_autograd(noise: Tensor, lambda_ac: float, lambda_kl: float) -> Tensor:
    """Rounds of auto-correlation steps and one KL step on a noise 1 x C x H x W."""
    for _ in range(OUTER_ITERATIONS):
        if lambda_ac:
            for _ in range(INNER_ITERATIONS):
                variable = noise.detach().clone().requires_grad_()
                (gradient,) = torch.autograd.grad(_auto_correlation(variable), variable)
                noise = noise - lambda_ac / INNER_ITERATIONS * gradient
        if lambda_kl:
            variable = noise.detach().clone().requires_grad_()
            variance = variable.var()
            divergence = variance + variable.mean() ** 2 - 1 - torch.log(variance + 1e-7)
            (gradient,) = torch.autograd.grad(divergence, variable)
            noise = noise - lambda_kl * gradient
    return noise.detach()


def _auto_correlation(noise: Tensor) -> Tensor:
    """The sum over channels, pyramid levels and both axes of mean(n * roll(n, r))^2 at random shifts r."""
    total = noise.new_zeros(())
    for channel in range(noise.shape[1]):
        level = noise[:, channel : channel + 1]
        while True:
            shift = int(torch.randint(1, max(level.shape[2] // 2, 2), ()))
            for axis in (2, 3):
                total = total + (level * level.roll(shift, axis)).mean() ** 2
            if level.shape[2] <= SMALLEST_LEVEL:
                break
            level = F.avg_pool2d(level, 2)
    return total
