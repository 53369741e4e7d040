"""The teacher: a Stable Diffusion folder in diffusers' layout, as the few calls that an edit needs.

Shapes: B batch, C channels, H W pixels or latent cells, T text tokens, D text width.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from configs.errors import UserError
from configs.schema import Teacher as TeacherConfig
from models.attention import AllMapsRecorded, Attention, AttentionControl
from models.pictures import images_of
from models.pipeline import DTYPES, load_parts

BLOCK_FORMS = 32  # of one compiled block: its sizes in the UNet, batches, with a derivative or without
TEXTS_AT_ONCE = 256  # of the text encoder, so that a bank of thousands of sentences fits into memory
FINGERPRINT_WEIGHTS = 64  # the first of each tensor, which differ in another text encoder


class Step(NamedTuple):
    """A step of a schedule: where the noise is predicted, and alpha_bar before the step and after it."""

    timestep: int
    alpha: float
    alpha_next: float


class NoisePredictor(Protocol):
    """What an inversion needs of a diffusion model; a Teacher and an Unconditional have it."""

    def noise(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> Tensor:
        """The predicted noise (epsilon) at a timestep, B x C x H x W."""

    def noise_and_maps(
        self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The same, and the cross-attention probabilities of each layer."""


class Teacher:
    """Frozen VAE, text encoder and UNet of a Stable Diffusion model.

    The networks run in `dtype`, one of DTYPES; latents, noise and text embeddings are float32
    outside. parts: a models.pipeline.Parts or a StableDiffusionPipeline, in the place of what lies at
    config.path. compiled: run the UNet through torch.compile. checker: load its safety checker too.
    UserError where a part does not load, and where its VAE has no images of config.resolution.
    """

    def __init__(
        self,
        config: TeacherConfig,
        device: torch.device,
        dtype: str = "float32",
        parts: Any = None,
        compiled: bool = False,
        checker: bool = False,
    ) -> None:
        parts = parts or load_parts(config, dtype, checker)
        self.device = device
        self.dtype = DTYPES[dtype]
        self.resolution = config.resolution
        self.tokenizer = parts.tokenizer
        self.vae = _frozen(parts.vae, device)
        self.text_encoder = _frozen(parts.text_encoder, device)
        self.unet = _frozen(parts.unet, device).to(memory_format=torch.channels_last)
        self.feature_extractor = parts.feature_extractor
        self.safety_checker = parts.safety_checker and _frozen(parts.safety_checker, device)

        refuse_resolution(config.resolution, self._vae_factor)

        self.scheduler = parts.scheduler
        self.predicts_v = self.scheduler.config.get("prediction_type") == "v_prediction"
        self._alphas = self.scheduler.alphas_cumprod.float().to(device)
        # On the device: a timestep that is copied there in each step would make the GPU wait.
        self._timesteps = torch.arange(len(self._alphas), device=device)

        cross_layers = sum(name.endswith(".attn2.processor") for name in self.unet.attn_processors)
        self._attention = Attention(cross_layers)
        self.unet.set_attn_processor(self._attention)
        if compiled:
            compile_blocks(self.unet)

    def schedule(self, steps: int) -> list[Step]:
        """DDIM's steps from noise to image; see ddim_schedule."""
        return ddim_schedule(self.scheduler, steps)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C x H x W of the latent of an image of the teacher's resolution."""
        side = self.resolution // self._vae_factor
        return self.unet.config.in_channels, side, side

    @property
    def _vae_factor(self) -> int:
        """Pixels a side of a latent cell."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1]: the mode of the posterior (deterministic), scaled to unit
        variance.
        """
        latent_BCHW = self.vae.encode(image_BCHW.to(self.device, self.dtype)).latent_dist.mode()
        return latent_BCHW.float() * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images in [-1, 1] of latents."""
        unscaled_BCHW = (latent_BCHW / self.vae.config.scaling_factor).to(self.dtype)
        return self.vae.decode(unscaled_BCHW).sample.float().clamp(-1, 1)

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Tensor:
        """Text embeddings B x T x D: the last hidden state after the final layer norm.

        T is the tokenizer's full length: shorter texts are padded, longer ones cut.
        """
        tokens = self.tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
        embeddings = []
        for token_BT in tokens.input_ids.to(self.device).split(TEXTS_AT_ONCE):
            embeddings.append(self.text_encoder(token_BT).last_hidden_state.float())
        return torch.cat(embeddings)

    @property
    def most_tokens(self) -> int:
        """How many tokens of a text are read, those of its beginning and its end among them."""
        return self.tokenizer.model_max_length

    def read_of(self, text: str) -> str | None:
        """What is read of a text that is longer than most_tokens; None where all of it is."""
        tokens = self.tokenizer(text, verbose=False).input_ids
        if len(tokens) <= self.most_tokens:
            return None
        cut = self.tokenizer(text, truncation=True).input_ids
        return self.tokenizer.decode(cut, skip_special_tokens=True)

    def text_fingerprint(self) -> str:
        """16 hex digits that change with the text encoder's weights or the tokenizer's vocabulary."""
        weights = []
        for name, weight in sorted(self.text_encoder.state_dict().items()):
            first = weight.flatten()[:FINGERPRINT_WEIGHTS].float().tolist()
            weights.append([name, list(weight.shape), first])
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        return hashlib.sha256(repr((weights, vocabulary)).encode()).hexdigest()[:16]

    def noise(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> Tensor:
        """The predicted noise (epsilon) at a timestep, B x C x H x W; a v-prediction is converted.
        Differentiable in the latent.
        """
        predicted_BCHW = self._run_unet(*self._inputs(latent_BCHW, timestep, text_BTD))
        return self._epsilon(predicted_BCHW, latent_BCHW, timestep)

    def noise_and_maps(
        self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """The predicted noise, and the cross-attention probabilities (B, heads, pixels, T) of each
        attn2 layer, in order.
        """
        maps: list[Tensor] = []
        predicted_BCHW = self._run_unet(*self._inputs(latent_BCHW, timestep, text_BTD), maps)
        return self._epsilon(predicted_BCHW, latent_BCHW, timestep), maps

    def maps(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> list[Tensor]:
        """The cross-attention probabilities alone, differentiable in the latent; nothing behind the
        last of them is run.
        """
        maps: list[Tensor] = []
        with contextlib.suppress(AllMapsRecorded):
            self._run_unet(*self._inputs(latent_BCHW, timestep, text_BTD), maps, leave=True)
        return maps

    @contextlib.contextmanager
    def controlled(self, control: AttentionControl) -> Iterator[None]:
        """Let `control` change the attention probabilities of what runs inside the `with`."""
        self._attention.control = control
        try:
            yield
        finally:
            self._attention.control = None

    @torch.no_grad()
    def flagged(self, image_BCHW: Tensor) -> list[bool]:
        """Which images in [-1, 1] the teacher's safety checker objects to; none where it has none."""
        if self.safety_checker is None:
            return [False] * len(image_BCHW)
        extracted = self.feature_extractor(list(images_of(image_BCHW)), return_tensors="pt")
        pixels_BCHW = extracted.pixel_values.to(self.device, self.dtype)
        to_blacken = torch.zeros(len(image_BCHW), 1)  # it blackens the images it is given: not ours
        _, flags = self.safety_checker(images=to_blacken, clip_input=pixels_BCHW)
        return [bool(flag) for flag in flags]

    def _inputs(self, latent_BCHW: Tensor, timestep: int, text_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the UNet takes, in its precision."""
        sample_BCHW = latent_BCHW.to(self.dtype, memory_format=torch.channels_last)
        return sample_BCHW, self._timesteps[timestep], text_BTD.to(self.dtype)

    def _epsilon(self, predicted_BCHW: Tensor, latent_BCHW: Tensor, timestep: int) -> Tensor:
        """The noise epsilon that the UNet predicts, itself or by v (Salimans and Ho 2022, appendix D)."""
        if not self.predicts_v:
            return predicted_BCHW.float()
        alpha = self._alphas[timestep]  # epsilon = sqrt(alpha_bar) v + sqrt(1 - alpha_bar) x_t
        return alpha.sqrt() * predicted_BCHW.float() + (1 - alpha).sqrt() * latent_BCHW

    def _run_unet(
        self,
        sample_BCHW: Tensor,
        timestep: Tensor,
        text_BTD: Tensor,
        maps: list[Tensor] | None = None,
        leave: bool = False,
    ) -> Tensor:
        """The UNet's prediction; its maps are appended to `maps`, and with `leave` the last of them
        raises AllMapsRecorded.
        """
        self._attention.maps = maps
        self._attention.leave = leave
        try:
            (predicted_BCHW,) = self.unet(
                sample_BCHW, timestep, encoder_hidden_states=text_BTD, return_dict=False
            )
        finally:
            self._attention.maps = None
        return predicted_BCHW


def compile_blocks(unet: Any) -> None:
    """Compile the parts of a UNet between its attentions, each where it is called first.

    They are the ResNet blocks and the feed-forward networks, whose norms, activations and sums are kernels
    of their own otherwise. The whole UNet as one graph takes minutes for each of its five uses (an inversion,
    a reference, guidance with its derivative, one or two texts), and its maps could not leave it early.
    """
    from diffusers.models.attention import FeedForward
    from diffusers.models.resnet import ResnetBlock2D

    torch._dynamo.config.cache_size_limit = BLOCK_FORMS  # the name that PyTorch 2.6 has too
    compiled: dict[str, Callable[..., Tensor]] = {}
    for block in unet.modules():
        if isinstance(block, ResnetBlock2D | FeedForward):
            structure = repr(block)
            if structure not in compiled:
                compiled[structure] = torch.compile(_copy(type(block).forward), dynamic=False)
            block.forward = MethodType(compiled[structure], block)


def _copy(function: FunctionType) -> FunctionType:
    """The function with a code object of its own: the compiler looks through all that it has compiled of one
    code object in each call.
    """
    return FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )


def ddim_schedule(trained: Any, steps: int) -> list[Step]:
    """DDIM's steps from noise to image, with the betas, spacing and offset of a diffusers scheduler.

    UserError for more steps than the model was trained with.
    """
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(trained.config)
    known = scheduler.config.num_train_timesteps
    most = known - scheduler.config.steps_offset  # the offset must not move the first past the last
    if not 1 <= steps <= most:
        raise UserError(f"edit.steps={steps}: from 1 to {most}")
    scheduler.set_timesteps(steps)
    stride = known // steps
    alphas = scheduler.alphas_cumprod.tolist()
    final_alpha = float(scheduler.final_alpha_cumprod)
    schedule = []
    for timestep in scheduler.timesteps.tolist():
        alpha_next = alphas[timestep - stride] if timestep >= stride else final_alpha
        schedule.append(Step(timestep, alphas[timestep], alpha_next))
    return schedule


def refuse_resolution(side: int, factor: int) -> None:
    """UserError for images that are no whole number of latent cells, of `factor` pixels each.

    The VAE would leave out their last pixels, and edits be smaller than inputs.
    """
    if side % factor:
        below = side - side % factor
        raise UserError(
            f"teacher.resolution={side}: this teacher's images have a multiple of {factor} pixels a side: "
            f"take {below or factor} or {below + factor}"
        )


def _frozen(network: Any, device: torch.device) -> Any:
    """The network on the device, in evaluation mode and without gradients of its weights."""
    return network.to(device).eval().requires_grad_(False)
