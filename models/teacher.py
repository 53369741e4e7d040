"""The teacher: a Stable Diffusion folder in diffusers' layout, as the few calls that an edit needs.

Shapes: B batch, C channels, H W pixels or latent cells, T text tokens, D text width.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.errors import UserError
from configs.files import find_file
from configs.schema import Teacher as TeacherConfig
from models.pictures import images_of

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FINGERPRINT_WEIGHTS = 64  # of each tensor
TEXTS_TOGETHER = 256
# Asked whether a layer is cross-attention and how many pixels it has: None (it runs on the fused kernel), or a function from its
# probabilities (rows, heads, pixels, keys) to those to use instead.
AttentionControl = Callable[[bool, int], Callable[[Tensor], Tensor] | None]


class Step(NamedTuple):
    """A step between noise and image: the timestep to evaluate, alpha_bar before and after it."""

    timestep: int
    alpha: float
    alpha_next: float


class Teacher:
    """Frozen VAE, text encoder and UNet.

    Latents, noise, text embeddings and attention maps' gradients are float32 outside; the networks run in `dtype`. Raises UserError where
    the folder does not load or the prediction type is neither epsilon nor v_prediction. pipeline: a loaded StableDiffusionPipeline in the
    place of the one at config.path. compiled: run the UNet through torch.compile.
    """

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device,
        dtype: str = "float32",
        pipeline: Any = None,
        compiled: bool = False,
    ) -> None:
        self.device, self.dtype, self.resolution = device, precision(dtype), config.resolution
        pipeline = pipeline or load_pipeline(config.path, dtype)
        self.tokenizer, self.scheduler = pipeline.tokenizer, pipeline.scheduler
        self.vae, self.text_encoder, self.unet = (
            module.to(device).eval().requires_grad_(False)
            for module in (pipeline.vae, pipeline.text_encoder, pipeline.unet)
        )
        self.unet.to(memory_format=torch.channels_last)
        self._feature_extractor = pipeline.feature_extractor
        self._safety_checker = pipeline.safety_checker and pipeline.safety_checker.to(
            device
        ).eval().requires_grad_(False)
        self._v_prediction = {"epsilon": False, "v_prediction": True}.get(
            self.scheduler.config.prediction_type
        )
        if self._v_prediction is None:
            raise UserError(
                f"{config.path}: prediction_type {self.scheduler.config.prediction_type}; epsilon and v_prediction are known"
            )
        self._alphas = self.scheduler.alphas_cumprod.float().to(device)
        self._timesteps = torch.arange(
            len(self._alphas), device=device
        )  # a number from the CPU each step would make the GPU wait
        self._attention = Attention(
            sum(name.endswith(".attn2.processor") for name in self.unet.attn_processors)
        )
        self.unet.set_attn_processor(self._attention)
        self._run: Callable[..., tuple[Tensor, list[Tensor]]] = self._network
        self._run_for_maps: Callable[..., list[Tensor]] = self._network_until_maps
        if compiled:  # the compiler drops by itself what the maps do not need
            self._run = torch.compile(self._network, dynamic=False)
            self._run_for_maps = torch.compile(self._maps_of_network, dynamic=False)

    def schedule(self, steps: int) -> list[Step]:
        """DDIM from noise to image in `steps` steps, by the teacher's own scheduler configuration (betas, spacing, offset, final alpha)."""
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        known, offset = scheduler.config.num_train_timesteps, scheduler.config.steps_offset
        if (
            not 1 <= steps <= known - offset
        ):  # the offset would move the first of more beyond the last that is known
            raise UserError(f"edit.steps={steps}: from 1 to {known - offset}")
        scheduler.set_timesteps(steps)
        stride = known // steps
        alphas, final = scheduler.alphas_cumprod.tolist(), float(scheduler.final_alpha_cumprod)
        return [
            Step(t, alphas[t], alphas[t - stride] if t >= stride else final)
            for t in scheduler.timesteps.tolist()
        ]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C x H x W of an image of the teacher's resolution."""
        side = self.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.unet.config.in_channels, side, side

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1]: the posterior's mode (deterministic), scaled to unit variance."""
        latent_BCHW = self.vae.encode(image_BCHW.to(self.device, self.dtype)).latent_dist.mode()
        return latent_BCHW.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] of latents."""
        return (
            self.vae.decode((latent_BCHW / self.vae.config.scaling_factor).to(self.dtype))
            .sample.float()
            .clamp(-1, 1)
        )

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings B x T x D: the last hidden state after the final layer norm, padded to the tokenizer's full length."""
        token_BT = self.tokenizer(
            list(texts), padding="max_length", truncation=True, return_tensors="pt"
        ).input_ids
        parts = token_BT.to(self.device).split(TEXTS_TOGETHER)
        return torch.cat([self.text_encoder(part).last_hidden_state.float() for part in parts])

    def text_fingerprint(self) -> str:
        """16 hex digits that change with the text encoder's weights or the tokenizer's vocabulary."""
        state = self.text_encoder.state_dict()
        weights = [
            [name, list(w.shape), w.flatten()[:FINGERPRINT_WEIGHTS].float().tolist()]
            for name, w in sorted(state.items())
        ]
        return hashlib.sha256(
            repr((weights, sorted(self.tokenizer.get_vocab().items()))).encode()
        ).hexdigest()[:16]

    def noise(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> Tensor:
        """The predicted noise (epsilon) at a timestep; a v-prediction is converted. Differentiable in the latent."""
        return self._epsilon(
            self._run(*self._inputs(latent_BCHW, timestep, text_BTD))[0], latent_BCHW, timestep
        )

    def noise_and_maps(
        self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The predicted noise, and the cross-attention probabilities (B, heads, pixels, T) of each attn2 layer, in order."""
        predicted, maps = self._run(*self._inputs(latent_BCHW, timestep, text_BTD), record=True)
        return self._epsilon(predicted, latent_BCHW, timestep), maps

    def maps(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> list[Tensor]:
        """The cross-attention probabilities alone, differentiable in the latent; nothing behind the last of them is run."""
        return self._run_for_maps(*self._inputs(latent_BCHW, timestep, text_BTD))

    @contextlib.contextmanager
    def controlled(self, control: AttentionControl) -> Iterator[None]:
        """Let `control` change attention probabilities in what runs inside."""
        self._attention.control = control
        try:
            yield
        finally:
            self._attention.control = None

    @torch.no_grad()
    def flagged(self, image_BCHW: Tensor) -> list[bool]:
        """Which images in [-1, 1] the teacher's safety checker objects to; none where it has none."""
        if self._safety_checker is None:
            return [False] * len(image_BCHW)
        extracted = self._feature_extractor(list(images_of(image_BCHW)), return_tensors="pt")
        pixels, blackened = (
            extracted.pixel_values.to(self.device, self.dtype),
            torch.zeros(len(image_BCHW), 1),
        )  # not our images
        return [bool(flag) for flag in self._safety_checker(images=blackened, clip_input=pixels)[1]]

    def _inputs(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sample = latent_BCHW.to(self.dtype, memory_format=torch.channels_last)
        return sample, self._timesteps[timestep], text_BTD.to(self.dtype)

    def _epsilon(self, predicted: Tensor, latent_BCHW: Tensor, timestep: int) -> Tensor:
        if not self._v_prediction:
            return predicted.float()
        alpha = self._alphas[timestep]
        return alpha.sqrt() * predicted.float() + (1 - alpha).sqrt() * latent_BCHW

    def _network(
        self, sample: Tensor, timestep: Tensor, text: Tensor, record: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        maps: list[Tensor] = []
        self._attention.maps, self._attention.leave = (maps if record else None), False
        predicted = self.unet(sample, timestep, encoder_hidden_states=text, return_dict=False)[0]
        self._attention.maps = None
        return predicted, maps

    def _maps_of_network(self, sample: Tensor, timestep: Tensor, text: Tensor) -> list[Tensor]:
        return self._network(sample, timestep, text, record=True)[1]

    def _network_until_maps(self, sample: Tensor, timestep: Tensor, text: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        self._attention.maps, self._attention.leave = maps, True
        with contextlib.suppress(_AllMaps):
            self.unet(sample, timestep, encoder_hidden_states=text, return_dict=False)
        self._attention.maps = None
        return maps


def precision(name: str) -> torch.dtype:
    """PyTorch's type of this name. UserError where the networks do not run in it."""
    if name not in DTYPES:
        raise UserError(f"generate.dtype={name}: there are {', '.join(DTYPES)}")
    return DTYPES[name]


def load_pipeline(path: str, dtype: str = "float32") -> Any:
    """The StableDiffusionPipeline of a folder or hub name, with its safety checker if it has one. UserError where there is none."""
    from diffusers import StableDiffusionPipeline
    from diffusers.utils.logging import disable_progress_bar
    from transformers.utils.logging import disable_progress_bar as disable_transformers_progress_bar

    torch_dtype = precision(dtype)
    disable_progress_bar()
    disable_transformers_progress_bar()
    try:
        return StableDiffusionPipeline.from_pretrained(find_file(path), dtype=torch_dtype)
    except (OSError, ValueError) as error:
        raise UserError(
            f"teacher.path={path} does not load as a Stable Diffusion folder: {str(error)[:300]}"
        ) from error


class _AllMaps(Exception):
    """Every map is there."""


class Attention:
    """Attention processor of all layers: explicit probabilities where they are recorded or controlled, else the fused kernel."""

    def __init__(self, cross_layers: int) -> None:
        self.cross_layers = cross_layers
        self.maps: list[Tensor] | None = None  # where to record those of the cross-attention layers
        self.leave = False  # the network, once all are recorded
        self.control: AttentionControl | None = None

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> Tensor:
        is_cross = encoder_hidden_states is not None
        context = encoder_hidden_states if is_cross else hidden_states
        batch, pixels = hidden_states.shape[:2]
        query, key, value = (
            x.view(batch, -1, attn.heads, x.shape[-1] // attn.heads).transpose(1, 2)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        maps = self.maps if is_cross else None
        change = self.control(is_cross, pixels) if self.control else None
        if maps is None and change is None:
            mixed = F.scaled_dot_product_attention(query, key, value, scale=attn.scale)
        else:
            if attn.upcast_attention:  # Stable Diffusion 2.1: the scores leave float16's range
                query, key = query.float(), key.float()
            probabilities = ((query * attn.scale) @ key.transpose(-1, -2)).softmax(-1).to(value.dtype)
            if maps is not None:
                maps.append(probabilities)
                if self.leave and len(maps) == self.cross_layers:
                    raise _AllMaps
            if change is not None:
                probabilities = change(probabilities)
            mixed = probabilities @ value
        return attn.to_out[1](attn.to_out[0](mixed.transpose(1, 2).reshape(batch, pixels, -1)))
