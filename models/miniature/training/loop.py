"""Options, the training loop and its checkpoints, shared by all stages.

A step's data and noise follow from its number, so a checkpoint needs no random state and a resumed run is the run
that was stopped.
"""

import json
import math
import os
import tempfile
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


@dataclass(frozen=True)
class Options:
    """What a stage may be told on the command line as key=value. Budgets: the first of `steps` and `minutes` ends it;
    0 = no limit.
    """

    out: str = "models/miniature"  # the finished weights go here
    work: str = "runs/miniature"  # caches and checkpoints
    init: str = ""  # a folder of existing weights to continue from; empty: from scratch
    images: int = 60_000  # scenes rendered for training
    first_seed: int = 0  # of the training scenes
    sketch_share: float = 0.3  # of the training pictures
    batch: int = 64
    steps: int = 0
    minutes: float = 4.0  # of training, without rendering
    lr: float = 5e-4
    warmup: int = 200  # steps
    ema: float = 0.999  # decay of the averaged weights that are kept
    weight_decay: float = 0.01
    perceptual: float = 1.0  # weight of LPIPS in the autoencoder's loss
    compile: bool = False  # worth its minute or two at the start on a GPU
    threads: int = 0  # of torch on a CPU; 0: all
    workers: int = 0  # processes that render; 0: one a core
    save_minutes: float = 3.0  # between checkpoints
    log_steps: int = 50


def parse(defaults: Options, assignments: list[str]) -> Options:
    """`defaults` with key=value assignments; raises SystemExit that lists the known keys for an unknown one."""
    kinds = {field.name: type(getattr(defaults, field.name)) for field in fields(defaults)}
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, sign, text = assignment.partition("=")
        if key not in kinds or not sign:
            raise SystemExit(f"{assignment!r}: expected key=value with one of {', '.join(kinds)}")
        kind = kinds[key]
        values[key] = text.lower() in ("1", "true", "yes") if kind is bool else kind(text)
    return replace(defaults, **values)


def device_of(options: Options) -> torch.device:
    """The GPU if there is one, else the CPU with the threads asked for."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        return torch.device("cuda")
    if options.threads:
        torch.set_num_threads(options.threads)
    return torch.device("cpu")


def autocast(device: torch.device):
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def write_atomically(path: Path, write) -> None:
    """Call `write(temporary path)`, then rename: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    write(temporary)
    temporary.chmod(0o644)  # safetensors writes for its owner alone
    os.replace(temporary, path)


def save_half(module, folder: Path) -> None:
    """Write a diffusers or transformers model as fp16 safetensors with its config, each file whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        module.half().save_pretrained(temporary)
        for path in Path(temporary).iterdir():
            os.replace(path, folder / path.name)
            (folder / path.name).chmod(0o644)


class _State:
    """Trained parameters, their moving average, Adam's moments, step and seconds; one safetensors file."""

    def __init__(self, module, options):
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.buffers = dict(module.named_buffers())  # running statistics of batch normalisation
        decayed = [weight for weight in self.weights.values() if weight.ndim > 1]
        others = [weight for weight in self.weights.values() if weight.ndim <= 1]
        self.optimiser = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": options.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=options.lr,
            betas=(0.9, 0.99),
        )
        self.step, self.seconds = 0, 0.0

    def save(self, path):
        tensors = {}
        for name, weight in self.weights.items():
            moments = self.optimiser.state.get(weight, {})
            tensors[f"weight.{name}"], tensors[f"average.{name}"] = weight.detach(), self.average[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in moments:
                    tensors[f"{moment}.{name}"] = moments[moment]
        tensors |= {f"buffer.{name}": buffer for name, buffer in self.buffers.items()}
        metadata = {"state": json.dumps({"step": self.step, "seconds": self.seconds})}
        tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))

    @torch.no_grad()
    def load(self, path):
        with safe_open(path, "pt") as file:
            state, keys = json.loads(file.metadata()["state"]), set(file.keys())
            for name, weight in self.weights.items():
                weight.copy_(file.get_tensor(f"weight.{name}"))
                self.average[name].copy_(file.get_tensor(f"average.{name}"))
                if f"exp_avg.{name}" in keys:
                    self.optimiser.state[weight] = {
                        "step": torch.tensor(float(state["step"])),
                        "exp_avg": file.get_tensor(f"exp_avg.{name}").to(weight),
                        "exp_avg_sq": file.get_tensor(f"exp_avg_sq.{name}").to(weight),
                    }
            for name, buffer in self.buffers.items():
                buffer.copy_(file.get_tensor(f"buffer.{name}"))
        self.step, self.seconds = state["step"], state["seconds"]


def _progress(state, options):
    shares = [state.step / options.steps] if options.steps else []
    shares += [state.seconds / (60 * options.minutes)] if options.minutes else []
    if not shares:
        raise SystemExit("neither steps nor minutes: training would never end; give steps=N or minutes=N")
    return max(shares)


def fit(name: str, module: torch.nn.Module, loss_of_step, options: Options, report=None) -> None:
    """Train the module's parameters that require a gradient, and leave their moving average in them.

    `loss_of_step(step)` returns a scalar; torch is reseeded before each call. `report()` is called with the averaged
    weights in place after every checkpoint and returns a line to log. Raises RuntimeError on a non-finite gradient,
    before the update.
    """
    state, checkpoint = _State(module, options), Path(options.work) / f"{name}.safetensors"
    if checkpoint.exists():
        state.load(checkpoint)
        log(f"{name}: resumed at step {state.step}, {state.seconds / 60:.1f} min")
    losses, saved, started = [], time.monotonic(), time.monotonic() - state.seconds
    while (progress := _progress(state, options)) < 1:
        rate = options.lr * min(1, (state.step + 1) / max(1, options.warmup))
        for group in state.optimiser.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        torch.manual_seed(state.step)
        loss = loss_of_step(state.step)
        state.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(state.weights.values()), 1.0, error_if_nonfinite=True)
        state.optimiser.step()
        decay = min(options.ema, (1 + state.step) / (10 + state.step))  # a short memory while little has been seen
        with torch.no_grad():
            torch._foreach_lerp_(list(state.average.values()), list(state.weights.values()), 1 - decay)
        state.step += 1
        state.seconds = time.monotonic() - started
        losses.append(float(loss.detach()))
        if state.step % options.log_steps == 0:
            log(f"{name}: step {state.step}, loss {sum(losses) / len(losses):.4f}, {state.seconds / 60:.1f} min")
            losses = []
        if time.monotonic() - saved > 60 * options.save_minutes:
            state.save(checkpoint)
            if report:
                _with_average(state, lambda: log(f"{name}: step {state.step}, {report()}"))
            saved = time.monotonic()
            started = saved - state.seconds  # a report is not training
    state.save(checkpoint)
    with torch.no_grad():
        for key, weight in state.weights.items():
            weight.copy_(state.average[key])


@torch.no_grad()
def _with_average(state, action):
    kept = {name: weight.clone() for name, weight in state.weights.items()}
    for name, weight in state.weights.items():
        weight.copy_(state.average[name])
    action()
    for name, weight in state.weights.items():
        weight.copy_(kept[name])


def log(message: str) -> None:
    """Print with the time of day."""
    print(time.strftime("%H:%M:%S"), message, flush=True)
