"""pix2pix-zero as the reference code structures it, written plainly: the baseline of scripts/benchmark.py and the truth of a test.

One image at a time, explicit attention everywhere, two rows in every pass, the maps of all steps kept in CPU memory, the regulariser
through autograd, gradients of the cross-attention weights computed and thrown away. Nothing here is shared with generate/.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor


class RecordingAttention:
    """Attention written out; keeps the probabilities (rows x heads) x pixels x tokens of the cross-attention layers, in order."""

    def __init__(self) -> None:
        self.maps: list[Tensor] = []

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, **_: Any
    ) -> Tensor:
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            attn.head_to_batch_dim(part)
            for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        probabilities = attn.get_attention_scores(query, key, None)
        if encoder_hidden_states is not None:
            self.maps.append(probabilities)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probabilities, value))))


class PlainPix2PixZero:
    """A diffusers StableDiffusionPipeline's modules in the reference code's loops. Guidance and step counts are arguments."""

    def __init__(self, pipeline: Any, steps: int) -> None:
        self.pipeline, self.unet, self.attention = pipeline, pipeline.unet, RecordingAttention()
        self.unet.set_attn_processor(self.attention)
        self.unet.requires_grad_(False)
        for name, weight in self.unet.named_parameters():
            weight.requires_grad_("attn2" in name)
        self.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
        self.scheduler.set_timesteps(steps)
        self.stride = self.scheduler.config.num_train_timesteps // steps

    def embed(self, text: str) -> Tensor:
        """1 x T x D."""
        with torch.no_grad():
            return self.pipeline.encode_prompt(text, self.unet.device, 1, False)[0]

    def invert(self, latent: Tensor, text: Tensor, lambda_ac: float, lambda_kl: float) -> Tensor:
        """The regularised inversion of a latent 1 x C x H x W, by the inverse schedule that leaves out the first and the last timestep."""
        alphas = self.scheduler.alphas_cumprod
        for t in self.scheduler.timesteps.flip(0)[1:-1]:
            with torch.no_grad():
                noise = self._predict(latent, t, text)
            noise = regularise_by_autograd(noise.float(), lambda_ac, lambda_kl).to(latent.dtype)
            before, after = alphas[t - 1], alphas[t + self.stride - 1]
            latent = (
                after.sqrt() * (latent - (1 - before).sqrt() * noise) / before.sqrt()
                + (1 - after).sqrt() * noise
            )
        return latent

    def edit(
        self, inverted: Tensor, texts: Tensor, direction: Tensor, amount: float, scale: float
    ) -> tuple[Tensor, Tensor]:
        """(reconstruction, edit) latents. texts: 2 x T x D, negative and caption; direction: 1 x T x D, added to the caption's row."""
        references: dict[int, list[Tensor]] = {}
        latent = inverted
        for t in self.scheduler.timesteps:
            with torch.no_grad():
                noise = self._predict(torch.cat([latent] * 2), t, texts)
            references[int(t)] = [layer.cpu() for layer in self.attention.maps]
            latent = self._step(noise, t, latent, scale)
        reconstruction, latent = latent, inverted
        edited = torch.cat([texts[:1], texts[1:] + direction])
        for t in self.scheduler.timesteps:
            rows = torch.cat([latent] * 2).detach().requires_grad_()
            optimizer = torch.optim.SGD([rows], lr=amount)
            self._predict(rows, t, edited)
            distances = [
                (a - b.to(a.device)).square().sum((1, 2)).mean(0)
                for a, b in zip(self.attention.maps, references[int(t)], strict=True)
            ]
            torch.stack(distances).sum().backward()
            optimizer.step()
            with torch.no_grad():
                noise = self._predict(rows, t, edited)
            latent = self._step(noise, t, rows.detach().chunk(2)[0], scale)
        return reconstruction, latent

    def _predict(self, latent: Tensor, t: Tensor, text: Tensor) -> Tensor:
        self.attention.maps.clear()
        return self.unet(latent, t, encoder_hidden_states=text).sample

    def _step(self, noise: Tensor, t: Tensor, latent: Tensor, scale: float) -> Tensor:
        unconditional, conditional = noise.chunk(2)
        return self.scheduler.step(
            unconditional + scale * (conditional - unconditional), t, latent
        ).prev_sample


def regularise_by_autograd(noise: Tensor, lambda_ac: float, lambda_kl: float) -> Tensor:
    """Five rounds of five auto-correlation steps and one KL step on a noise 1 x C x H x W."""
    for _ in range(5):
        for _ in range(5 if lambda_ac else 0):
            variable = noise.detach().clone().requires_grad_()
            noise = noise - lambda_ac / 5 * torch.autograd.grad(_auto_correlation(variable), variable)[0]
        if lambda_kl:
            variable = noise.detach().clone().requires_grad_()
            variance = variable.var()
            divergence = variance + variable.mean() ** 2 - 1 - torch.log(variance + 1e-7)
            noise = noise - lambda_kl * torch.autograd.grad(divergence, variable)[0]
    return noise.detach()


def _auto_correlation(noise: Tensor) -> Tensor:
    total = noise.new_zeros(())
    for channel in range(noise.shape[1]):
        level = noise[:, channel : channel + 1]
        while True:
            shift = int(torch.randint(1, max(level.shape[2] // 2, 2), ()))
            total = (
                total
                + (level * level.roll(shift, 2)).mean() ** 2
                + (level * level.roll(shift, 3)).mean() ** 2
            )
            if level.shape[2] <= 8:
                break
            level = F.avg_pool2d(level, 2)
    return total
