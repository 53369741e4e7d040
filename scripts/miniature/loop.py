"""The training loop of all stages, and its checkpoints.

A step's data and noise follow from its number, so a checkpoint needs no random state and a resumed
run is the run that was stopped.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from configs.files import ROOT, whole_file
from scripts.miniature.options import Options

SHIPPED = (
    ROOT / "models" / "miniature"
)  # its models' configuration files are where the architectures are written
ADAM_BETAS = (0.9, 0.99)
MAX_GRADIENT_NORM = 1.0
LossOfStep = Callable[[int], torch.Tensor]  # a step's number -> a scalar to minimise
LAST_LR_SHARE = 0.02  # of the learning rate that is left at the end


class Training:
    """A module with its optimiser and the moving average of its weights: what a checkpoint holds.

    `step` counts the updates made, `seconds` the time that they took.
    """

    def __init__(self, module: torch.nn.Module, options: Options) -> None:
        self.module = module
        self.options = options
        self.weights: list[torch.Tensor] = list(module.parameters())
        self.average = [weight.detach().clone() for weight in self.weights]
        matrices = [weight for weight in self.weights if weight.ndim > 1]
        biases_and_norms = [weight for weight in self.weights if weight.ndim <= 1]
        groups: list[dict[str, Any]] = [
            {"params": matrices},
            {"params": biases_and_norms, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(
            groups, lr=options.lr, betas=ADAM_BETAS, weight_decay=options.weight_decay
        )
        self.step = 0
        self.seconds = 0.0

    def progress(self) -> float:
        """The share of the budget that is used up: of `steps` or of `minutes`, whichever is further on."""
        of_steps = self.step / (self.options.steps or math.inf)
        of_time = self.seconds / (60 * self.options.minutes or math.inf)
        return max(of_steps, of_time)

    def update(self, loss: torch.Tensor) -> None:
        """One step of the optimiser. RuntimeError on a non-finite gradient, before the weights change."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights, MAX_GRADIENT_NORM, error_if_nonfinite=True)
        for group in self.optimiser.param_groups:
            group["lr"] = self._learning_rate()
        self.optimiser.step()
        # A short memory while little has been seen: the decay rises to options.ema.
        decay = min(self.options.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.step += 1

    def _learning_rate(self) -> float:
        """Linear warm-up, and half a cosine over the whole budget down to LAST_LR_SHARE."""
        warm = min(1, (self.step + 1) / max(1, self.options.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress()))
        return self.options.lr * warm * (LAST_LR_SHARE + (1 - LAST_LR_SHARE) * cosine)

    def save(self, path: Path) -> None:
        """Write everything that a resumed training needs."""
        state = {
            "module": self.module.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        with whole_file(path) as stream:
            torch.save(state, stream)

    def load(self, path: Path) -> None:
        """Go on from where `save` was called."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.optimiser.load_state_dict(state["optimiser"])
        for weight, saved in zip(self.average, state["average"], strict=True):
            weight.copy_(saved)
        self.step = state["step"]
        self.seconds = state["seconds"]


def fit(name: str, module: torch.nn.Module, loss_of_step: LossOfStep, options: Options) -> None:
    """Train the module, and leave the moving average of its weights in it.

    `loss_of_step(step)` returns a scalar; torch is reseeded with the step's number before each
    call. The training goes on from `options.work`/`name`.pt where that is there. RuntimeError on a
    non-finite gradient, before the update.
    """
    if not options.steps and not options.minutes:
        raise SystemExit("neither steps nor minutes: training would never end; give steps=N or minutes=N")
    torch.backends.cuda.matmul.allow_tf32 = True
    training = Training(module, options)
    checkpoint = Path(options.work) / f"{name}.pt"
    if checkpoint.exists():
        training.load(checkpoint)
        log(f"{name}: resumed at step {training.step}, {training.seconds / 60:.1f} min")

    losses: list[float] = []
    started = time.monotonic() - training.seconds
    saved = time.monotonic()
    while training.progress() < 1:
        torch.manual_seed(training.step)
        loss = loss_of_step(training.step)
        training.update(loss)
        training.seconds = time.monotonic() - started

        losses.append(float(loss.detach()))
        if training.step % options.log_steps == 0:
            mean_loss = sum(losses) / len(losses)
            log(f"{name}: step {training.step}, loss {mean_loss:.4f}, {training.seconds / 60:.1f} min")
            losses.clear()
        if time.monotonic() - saved > 60 * options.save_minutes:
            training.save(checkpoint)
            saved = time.monotonic()

    training.save(checkpoint)
    with torch.no_grad():
        torch._foreach_copy_(training.weights, training.average)


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def untrained(kind, part: str, init: str):
    """A diffusers model of the class `kind`, of the architecture that models/miniature/`part` has.

    It has the weights in the folder `init` where that is named, else always the same random ones.
    """
    torch.manual_seed(2)
    if init:
        return kind.from_pretrained(init).float()
    return kind.from_config(kind.load_config(SHIPPED / part))


def write_weights(module: torch.nn.Module, path: Path) -> None:
    """The module's state as fp16 safetensors."""
    state = {name: value.contiguous().cpu() for name, value in module.half().state_dict().items()}
    with whole_file(path) as stream:
        stream.write(safetensors.torch.save(state))


def log(message: str) -> None:
    """Print with the time of day."""
    print(time.strftime("%H:%M:%S"), message, flush=True)
