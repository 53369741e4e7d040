"""The teacher: a Stable Diffusion folder in diffusers' layout, as the few calls that an edit needs.

Shapes: B batch, C channels, H W pixels or latent cells, T text tokens, D text width.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import UserError
from configs.loader import find_file
from configs.schema import Teacher as TeacherConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FINGERPRINT_WEIGHTS = 64


@dataclass(frozen=True)
class Schedule:
    """DDIM's way from noise to image: the N timesteps, descending, with alpha_bar before and after each step."""

    timesteps: list[int]
    alpha: list[float]
    alpha_next: list[float]

    def last(self, steps: int) -> Schedule:
        """The last `steps` steps alone: from a noisy image, not from noise."""
        return Schedule(self.timesteps[-steps:], self.alpha[-steps:], self.alpha_next[-steps:])


class Teacher:
    """Frozen VAE, text encoder and UNet.

    Latents, noise and text embeddings are float32 outside; the networks run in `dtype`. Raises UserError where the folder does not load
    or the prediction type is neither epsilon nor v_prediction.
    """

    def __init__(self, config: TeacherConfig, device: torch.device, dtype: str = "float32", pipeline: Any = None) -> None:
        """pipeline: a loaded StableDiffusionPipeline instead of the one at config.path."""
        if dtype not in DTYPES:
            raise UserError(f"generate.dtype={dtype}: there are {', '.join(DTYPES)}")
        pipeline = pipeline or load_pipeline(config.path, dtype)
        self.device, self.dtype, self.resolution = device, DTYPES[dtype], config.resolution
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self.vae, self.text_encoder, self.unet = (
            module.to(device).eval().requires_grad_(False) for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet)
        )
        self.unet.to(memory_format=torch.channels_last)
        self._v_prediction = {"epsilon": False, "v_prediction": True}.get(self.scheduler.config.prediction_type)
        if self._v_prediction is None:
            raise UserError(f"{config.path}: prediction_type {self.scheduler.config.prediction_type}; epsilon and v_prediction are known")
        self._maps = _CrossAttentionMaps()
        self.unet.set_attn_processor(
            {name: self._maps if ".attn2." in name else processor for name, processor in self.unet.attn_processors.items()}
        )

    def schedule(self, steps: int) -> Schedule:
        """DDIM with `steps` steps by the teacher's own scheduler configuration (betas, spacing, offset, final alpha)."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        if not 1 <= steps <= scheduler.config.num_train_timesteps:
            raise UserError(f"edit.steps={steps}: from 1 to {scheduler.config.num_train_timesteps}")
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps.tolist()
        stride = scheduler.config.num_train_timesteps // steps
        alphas = scheduler.alphas_cumprod.double()
        final = float(scheduler.final_alpha_cumprod)
        return Schedule(
            timesteps,
            [float(alphas[t]) for t in timesteps],
            [float(alphas[t - stride]) if t >= stride else final for t in timesteps],
        )

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1]: the posterior's mode (deterministic), scaled to unit variance."""
        posterior = self.vae.encode(image_BCHW.to(self.device, self.dtype)).latent_dist
        return posterior.mode().float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] of latents."""
        image = self.vae.decode((latent_BCHW / self.vae.config.scaling_factor).to(self.dtype)).sample
        return image.float().clamp(-1, 1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], batch: int = 256) -> Tensor:
        """Text embeddings B x T x D: the last hidden state after the final layer norm, padded to the tokenizer's full length."""
        parts = []
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(
                list(texts[start : start + batch]),
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            ).input_ids
            parts.append(self.text_encoder(tokens.to(self.device)).last_hidden_state.float())
        return torch.cat(parts)

    def text_fingerprint(self) -> str:
        """16 hex digits that change with the text encoder's weights or the tokenizer's vocabulary."""
        state = self.text_encoder.state_dict()
        weights = [[name, list(w.shape), w.flatten()[:FINGERPRINT_WEIGHTS].float().tolist()] for name, w in sorted(state.items())]
        return hashlib.sha256(repr((weights, sorted(self.tokenizer.get_vocab().items()))).encode()).hexdigest()[:16]

    def noise(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> Tensor:
        """The predicted noise (epsilon) at a timestep; a v-prediction is converted. Differentiable in the latent."""
        sample = latent_BCHW.to(self.dtype, memory_format=torch.channels_last)
        predicted = self.unet(sample, timestep, encoder_hidden_states=text_BTD.to(self.dtype), return_dict=False)[0].float()
        if self._v_prediction:
            alpha = self.scheduler.alphas_cumprod[timestep].to(latent_BCHW)
            predicted = alpha.sqrt() * predicted + (1 - alpha).sqrt() * latent_BCHW
        return predicted

    def maps(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> list[Tensor]:
        """The cross-attention probabilities alone (as recorded_maps), differentiable in the latent: what lies behind the last of them is
        neither run nor, later, gone back through.
        """
        self._maps.last = sum(isinstance(processor, _CrossAttentionMaps) for processor in self.unet.attn_processors.values())
        with self.recorded_maps() as maps, contextlib.suppress(_AllMaps):
            self.noise(latent_BCHW, timestep, text_BTD)
        return maps

    @contextlib.contextmanager
    def recorded_maps(self) -> Iterator[list[Tensor]]:
        """Collect the cross-attention probabilities (B, heads, pixels, T) of each attn2 layer that runs inside, in order."""
        maps: list[Tensor] = []
        self._maps.recorded = maps
        try:
            yield maps
        finally:
            self._maps.recorded, self._maps.last = None, 0


def load_pipeline(path: str, dtype: str = "float32") -> Any:
    """The StableDiffusionPipeline of a folder or hub name, without its safety checker. UserError where there is none."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

    disable_progress_bar()
    disable_transformers_progress_bar()
    try:
        return StableDiffusionPipeline.from_pretrained(find_file(path), dtype=DTYPES[dtype], safety_checker=None)
    except (OSError, ValueError) as error:
        raise UserError(f"teacher.path={path} does not load as a Stable Diffusion folder: {str(error)[:300]}") from error


class _AllMaps(Exception):
    """Every map is there."""


class _CrossAttentionMaps:
    """Attention processor of the attn2 layers: explicit probabilities while they are recorded, else the fused kernel."""

    def __init__(self) -> None:
        self.recorded: list[Tensor] | None = None
        self.last = 0  # leave the network after so many maps; 0: run it to its end

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        batch, pixels = hidden_states.shape[:2]
        query, key, value = (
            x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states))
        )
        if self.recorded is None:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        else:
            probabilities = (query @ key.transpose(-1, -2) * attn.scale).softmax(-1)
            self.recorded.append(probabilities)
            if len(self.recorded) == self.last:
                raise _AllMaps
            mixed = probabilities @ value
        mixed = mixed.transpose(1, 2).reshape(batch, pixels, -1)
        return attn.to_out[1](attn.to_out[0](mixed))
