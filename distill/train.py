"""Distil the kept pairs into a Co-Mod-GAN generator.

  accelerate launch distill/train.py task=tree2winter      every GPU there is
  python distill/train.py task=tree2winter                 one GPU, or the CPU

Reads <run>/pairs and <run>/selection.json, writes <run>/train. Run the same command again to go on after an interruption.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import exclusive
from configs.runs import run_dir
from configs.schema import Config

if TYPE_CHECKING:
    import torch

    from distill.state import TrainingState

SECTIONS = ("task", "teacher", "generator", "augment", "distill")
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # distill.dtype and accelerate's name for it
FROM_ONE = ("images", "batch", "save_every_images", "keep_checkpoints", "max_validation_pairs", "r1_every")
FROM_NOTHING = ("lr", "workers", "warmup_images", "l1", "lpips", "adversarial", "r1")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {  # what training can use
    "distill.dtype": (PRECISIONS.__contains__, " or ".join(PRECISIONS)),
    "distill.latent": (("fixed", "sampled").__contains__, "fixed or sampled"),
    **{f"distill.{key}": (lambda value: value >= 1, "1 or more") for key in FROM_ONE},
    **{f"distill.{key}": (lambda value: value >= 0, "0 or more") for key in FROM_NOTHING},
    **{
        f"augment.{key}": (lambda value: value >= 0, "0 or more")
        for key in ("brightness", "contrast", "saturation", "noise")
    },
    **{
        key: (lambda value: 0 <= value < 1, "from 0 to below 1")
        for key in ("distill.beta1", "distill.beta2", "generator.dropout")
    },
    "distill.lpips_crop": (
        lambda value: value == 0 or value >= 16,
        "0, or 16 or more: VGG16 halves it four times",
    ),
    "augment.crop": (lambda value: 0 < value <= 1, "above 0, to 1"),
    "augment.flip": (lambda value: 0 <= value <= 1, "from 0 to 1"),
    "augment.hue": (lambda value: 0 <= value <= 0.5, "from 0 to 0.5"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return entry(__doc__, SECTIONS, train, plan, argv)


def train(config: Config) -> Path:
    """Train, or go on training, to distill.images; returns the newest checkpoint.

    Raises UserError for missing pairs, settings that do not fit, a changed configuration, a full disk, a loss that is not finite.
    """
    from accelerate import Accelerator

    from models.devices import pick_device

    _check(config)
    folder, precision = run_dir(config) / "train", PRECISIONS[config.distill.dtype]
    trackers, on_cpu = _trackers(config.distill.tracker), pick_device(config.device).type == "cpu"
    accelerator = Accelerator(
        cpu=on_cpu, mixed_precision=precision, log_with=trackers or None, project_dir=folder
    )
    with exclusive(folder, "train") if accelerator.is_main_process else contextlib.nullcontext():
        from distill.state import TrainingState

        state = TrainingState(config, accelerator, folder)
        try:
            for input_BCHW, edit_BCHW in state.batches():
                state.log(train_step(state, input_BCHW, edit_BCHW))
                if state.due():
                    state.validate()
                    state.save()
            return state.path
        finally:
            accelerator.end_training()  # so that no process is left waiting


def train_step(
    state: TrainingState, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The distillation of Parmar et al. (2023), section 3.4; the losses, averaged over all processes."""
    state.seed_step()
    input_BCHW, edit_BCHW = state.augment(input_BCHW, edit_BCHW)
    fake_BCHW = state.model(input_BCHW, state.latent(len(input_BCHW)))
    losses = state.loss(input_BCHW, fake_BCHW, edit_BCHW)
    state.accelerator.backward(losses["loss"])
    losses |= state.teach_adversary(input_BCHW, edit_BCHW, fake_BCHW)
    losses = state.averaged_if_finite(losses)
    state.update()
    return losses


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints: where, how much, how large."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distill.pairs import selected_keys
    from models.comodgan import make_generator
    from models.discriminator import Discriminator

    _check(config)
    side, sizes = config.teacher.resolution, config.generator
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator = make_generator(side, sizes).eval()
        generator(torch.zeros(1, 3, side, side))
        adversary = (
            Discriminator(side, sizes.channel_base, sizes.channel_max)
            if config.distill.adversarial > 0
            else torch.nn.Identity()
        )
    parameters, judge = (
        sum(parameter.numel() for parameter in network.parameters()) for network in (generator, adversary)
    )
    in_one_checkpoint = (
        16 * parameters + 12 * judge
    )  # weights and Adam's two moments, float32; of the generator the average too
    keys = selected_keys(run_dir(config))
    return {
        "folder": run_dir(config) / "train",
        "pairs selected": len(keys),
        "epochs": round(config.distill.images / len(keys), 1),
        "parameters (millions)": round(parameters / 1e6, 2),
        "arithmetic of one edit (GFLOP)": round(counter.get_total_flops() / 1e9, 2),
        "disk for the checkpoints (GB)": round(
            in_one_checkpoint * (config.distill.keep_checkpoints + 1) / 1e9, 2
        ),
    }


def _check(config: Config) -> None:
    """UserError for a value that training cannot use."""
    for key, (fits, said) in LIMITS.items():
        if not fits(value := attrgetter(key)(config)):
            raise UserError(f"{key}={value}: it is {said}")
    if (rank := config.distill.adapter_rank) and (rank < 0 or not config.distill.init):
        raise UserError(
            f"distill.adapter_rank={rank}: it is 0, or more with a trained generator as distill.init="
        )


def _trackers(name: str) -> list[str]:
    """What accelerate is to log with. UserError where it finds no such tracker installed."""
    from accelerate.tracking import get_available_trackers

    installed = [tracker.value for tracker in get_available_trackers()]
    if name == "auto":
        return [tracker for tracker in installed if tracker == "tensorboard"]
    if name and name not in installed:
        found = ", ".join(installed) or "none"
        raise UserError(
            f"distill.tracker={name}: accelerate finds {found} installed; leave it empty or pip install it"
        )
    return [name] if name else []


if __name__ == "__main__":
    sys.exit(main())
