"""Options, the training loop and its checkpoints, shared by all stages.

A step's data and noise follow from its number, so a checkpoint needs no random state and a resumed run is the run that was stopped.
"""

import math
import os
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from configs.files import ROOT

# the models' folders: their configurations are where the architectures are written
SHIPPED = ROOT / "models" / "miniature"


@dataclass
class Options:
    """What a stage may be told on the command line as key=value. Budgets: the first of `steps` and `minutes` ends it; 0 = no limit."""

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
    compile: bool = False  # worth its minute or two at the start on a GPU
    workers: int = 0  # processes that render; 0: one a core
    save_minutes: float = 3.0  # between checkpoints
    log_steps: int = 50


def parse(defaults: Options, assignments: list[str]) -> Options:
    """`defaults` with key=value assignments; SystemExit that lists the known keys for an unknown one or a value of the wrong type."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_object(OmegaConf.merge(defaults, OmegaConf.from_dotlist(assignments)))  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise SystemExit(
            f"{str(error).splitlines()[0]}: expected key=value with one of {', '.join(vars(defaults))}"
        ) from error


def autocast(device: torch.device):
    """bfloat16 on a GPU, float32 on a CPU."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def untrained(kind, part: str, init: str):
    """A diffusers model of the class, of the architecture shipped in `part`; with the weights in the folder `init` if it is named, else
    always the same random ones.
    """
    torch.manual_seed(2)
    return kind.from_pretrained(init).float() if init else kind.from_config(kind.load_config(SHIPPED / part))


def write_whole(path: Path, write) -> None:
    """Call `write(temporary path)`, then rename: the file is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    write(temporary)
    os.replace(temporary, path)


def write_weights(module: torch.nn.Module, path: Path) -> None:
    """The module's state as fp16 safetensors."""
    write_whole(
        path,
        partial(
            save_file, {name: value.contiguous().cpu() for name, value in module.half().state_dict().items()}
        ),
    )


def fit(name: str, module: torch.nn.Module, loss_of_step, options: Options) -> None:
    """Train the module, and leave the moving average of its weights in it.

    `loss_of_step(step)` returns a scalar; torch is reseeded before each call. RuntimeError on a non-finite gradient, before the update.
    """
    if not options.steps and not options.minutes:
        raise SystemExit("neither steps nor minutes: training would never end; give steps=N or minutes=N")
    torch.backends.cuda.matmul.allow_tf32 = True
    weights = list[torch.Tensor](module.parameters())
    plain = [weight for weight in weights if weight.ndim <= 1]  # biases and norms do not decay
    groups: list[dict] = [
        {"params": [weight for weight in weights if weight.ndim > 1]},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.99), weight_decay=options.weight_decay)
    average = [weight.detach().clone() for weight in weights]
    step, seconds, losses, checkpoint = 0, 0.0, list[float](), Path(options.work) / f"{name}.pt"
    if checkpoint.exists():
        found = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(found["module"])
        optimiser.load_state_dict(found["optimiser"])
        step, seconds = found["step"], found["seconds"]
        average = [kept.to(weight.device) for kept, weight in zip(found["average"], weights, strict=True)]
        log(f"{name}: resumed at step {step}, {seconds / 60:.1f} min")

    def save():
        state = {
            "module": module.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
            "step": step,
            "seconds": seconds,
        }
        write_whole(checkpoint, partial(torch.save, state))

    saved, started = time.monotonic(), time.monotonic() - seconds
    while (
        progress := max(step / (options.steps or math.inf), seconds / (60 * options.minutes or math.inf))
    ) < 1:
        torch.manual_seed(step)
        loss = loss_of_step(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0, error_if_nonfinite=True)
        for group in optimiser.param_groups:
            warm = min(1, (step + 1) / max(1, options.warmup))
            group["lr"] = options.lr * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        optimiser.step()
        decay = min(options.ema, (1 + step) / (10 + step))  # a short memory while little has been seen
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1 - decay)
        step, seconds = step + 1, time.monotonic() - started
        losses.append(float(loss.detach()))
        if step % options.log_steps == 0:
            log(f"{name}: step {step}, loss {sum(losses) / len(losses):.4f}, {seconds / 60:.1f} min")
            losses.clear()
        if time.monotonic() - saved > 60 * options.save_minutes:
            save()
            saved = time.monotonic()
    save()
    with torch.no_grad():
        torch._foreach_copy_(weights, average)


def log(message: str) -> None:
    """Print with the time of day."""
    print(time.strftime("%H:%M:%S"), message, flush=True)
