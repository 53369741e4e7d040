"""Distil the kept pairs into a Co-Mod-GAN generator.

  zero2gan train RUN                                 one GPU, or the CPU; RUN: what generate named
  zero2gan train RUN distill.images=20000            longer
  accelerate launch distill/train.py run=RUN         every GPU there is
  accelerate launch distill/train.py task=tree2winter

Reads <run>/pairs and <run>/selection.json, writes <run>/train. To go on after an interruption, run
the same command again.
"""

# B batch, C channels, H W pixels, P processes, N numbers.

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import digest, exclusive, model_files, write_json
from configs.runs import (
    FREE_FOR_ALL,
    command,
    remember,
    run_dir,
    selected_keys,
    settings_of,
    training_side,
)
from configs.schema import Config, Distill
from distill.runlog import METRICS, RunLog, read_metrics, tracker_names

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

    from distill.losses import DistillationLoss
    from distill.networks import Networks
    from distill.pairs import Batch, PairAugment, PairDataset

SECTIONS = ("task", "teacher", "generator", "augment", "distill")
REMEMBERED = ("distill", "augment", "generator")  # in run.yaml
PRECISIONS = {"float32": "no", "bfloat16": "bf16"}  # distill.dtype, and accelerate's name for it
BETA2 = 0.99  # Adam's, as Co-Mod-GAN and StyleGAN2 have it
CRITIC_BETA1 = 0.5
CRITIC_RATE = 2.0  # its learning rate, over the generator's
SMALLEST_CROP = 16  # pixels: VGG16 halves the sides four times
# What may change when a training goes on: how the pairs were made and selected, as their content
# counts; what things are called; how long the training is, and how it is followed.
FREE = (
    *FREE_FOR_ALL,
    "task",
    "teacher.path",
    "source",
    "generate",
    "edit",
    "guidance",
    "direction",
    "inversion",
    "filter",
    "scorer",
    "segmenter",
    "distill.images",
    "distill.save_every_images",
    "distill.workers",
    "distill.tracker",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return entry(__doc__, SECTIONS, train, plan, argv)


def train(config: Config) -> Path:
    """Train, or go on training, to distill.images; returns the newest checkpoint.

    UserError for missing pairs, settings that do not fit, a changed configuration, a full disk, and
    a loss that is not finite.
    """
    selected_keys(run_dir(config))  # refused now, and not when PyTorch has loaded
    from distill.pairs import batches, open_pairs
    from distill.validation import validate

    settings = config.distill
    folder = run_dir(config) / "train"
    with processes(config, folder) as accelerator:
        pairs, held_out = open_pairs(config)
        training = prepare(config, accelerator, folder, len(pairs) + len(held_out))
        made_with = settings_of(config, FREE) | hashes_of_files(config, pairs)
        step, checkpoint = resume(training, made_with, config.force)
        if accelerator.is_main_process:
            remember(config, REMEMBERED)

        log = RunLog(config, accelerator, folder, images=step * settings.batch)
        if step > 0:
            log.say(f"going on from {checkpoint}")
        else:
            log.say(training.networks.begins)
        device = accelerator.device
        log.say(f"{len(pairs)} pairs, {len(held_out)} held out, to {settings.images} images on {device}")

        steps = range(step, math.ceil(settings.images / settings.batch))
        for batch in batches(pairs, steps, config, accelerator):
            losses = training_step(training, batch)
            images = (batch.step + 1) * settings.batch
            log.add(losses, batch.waited_s)

            save_is_due = is_save_due(settings, images)
            if save_is_due or log.is_due():
                log.write_losses(images)
            if save_is_due:
                if accelerator.is_main_process:
                    average = training.networks.ema.network
                    perceptual = training.criterion.perceptual
                    validation = validate(average, held_out, perceptual, settings.batch, device)
                    log.write_validation(images, validation.metrics, validation.count)
                    validation.save_sheet(folder / "samples" / f"{images:09d}.png")
                checkpoint = save(training, made_with, batch.step + 1)
                log.restart_clock()
        log.say(f"next: {command('export', run_dir(config))}")
        return checkpoint


@dataclass
class Training:
    """What a step uses.

    model: the generator as accelerate wraps it. folder: <run>/train. pair_count: with those held out.
    """

    config: Config
    folder: Path
    pair_count: int
    accelerator: Accelerator
    networks: Networks
    model: nn.Module
    augment: PairAugment
    criterion: DistillationLoss
    optimizer: torch.optim.Optimizer


def training_step(training: Training, batch: Batch) -> dict[str, torch.Tensor]:
    """One step of the distillation (Parmar et al. 2023, section 3.4).

    The losses, averaged over the processes. UserError, before anything is updated, where one is not
    finite.
    """
    settings = training.config.distill
    accelerator = training.accelerator
    optimizer = training.optimizer
    networks = training.networks
    adversary = training.criterion.adversary
    images_seen = (batch.step + 1) * settings.batch

    seed_step(training.config.seed, batch.step, accelerator.process_index)
    input_BCHW, edit_BCHW = training.augment(batch.input_BCHW, batch.edit_BCHW)
    fake_BCHW = training.model(input_BCHW)
    views = training.criterion.look(input_BCHW, fake_BCHW, edit_BCHW)
    losses = training.criterion(fake_BCHW, edit_BCHW, views, batch.step)
    accelerator.backward(losses["loss"])
    if adversary is not None:
        losses["critic"] = adversary.critic_loss(views)
        accelerator.backward(losses["critic"])
        average_gradients(accelerator, adversary.critic)

    stop_unless_finite(training, losses, batch)
    set_learning_rate(optimizer, settings, images_seen)
    optimizer.step()  # of the generator, and of the critic
    optimizer.zero_grad(set_to_none=True)
    networks.ema.update(networks.generator, images_seen)
    return {name: accelerator.reduce(loss.detach(), "mean") for name, loss in losses.items()}


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed a step's draws by what it is, so that it can be done again without any saved state."""
    import torch

    torch.manual_seed(int(digest(seed, step, process), 16) % 2**63)


def average_gradients(accelerator: Accelerator, network: nn.Module) -> None:
    """Average over the processes the gradients of a network that no DistributedDataParallel wraps."""
    if accelerator.num_processes > 1:
        for parameter in network.parameters():
            parameter.grad = accelerator.reduce(parameter.grad, "mean")


def stop_unless_finite(training: Training, losses: dict[str, torch.Tensor], batch: Batch) -> None:
    """UserError on every process where one of them has a loss or a gradient that is not finite.

    The main process writes nonfinite.json, which names the pairs of the step.
    """
    import torch

    accelerator = training.accelerator
    gradients = []
    for parameter in training.networks.trained.values():
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    numbers = [loss.detach() for loss in losses.values()]
    numbers.append(torch.nn.utils.get_total_norm(gradients).float())
    numbers_PN = accelerator.gather(torch.stack(numbers)[None])
    if torch.isfinite(numbers_PN).all():
        return
    path = training.folder / "nonfinite.json"
    if accelerator.is_main_process:
        report = {
            "step": batch.step,
            "images": batch.step * training.config.distill.batch,
            "keys": batch.keys,
            "losses_and_gradient_norm": str(numbers_PN.tolist()),
        }
        write_json(path, report)
    raise UserError(
        f"step {batch.step}: the loss or its gradient is not finite; nothing was updated. "
        f"{path} names the pairs; look at them, or lower distill.lr and go on with force=true"
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: Distill, images_seen: int) -> None:
    """Linear warm-up to settings.lr, of the critic to CRITIC_RATE times it; images_seen: with this step's."""
    lr = settings.lr * min(1.0, images_seen / max(1, settings.warmup_images))
    for group in optimizer.param_groups:
        group["lr"] = lr * group["rate"]


def prepare(config: Config, accelerator: Accelerator, folder: Path, pair_count: int = 0) -> Training:
    """Everything a step uses, as it is before the first one."""
    import torch

    from distill.losses import Adversary, DistillationLoss
    from distill.networks import build_networks
    from distill.pairs import PairAugment
    from models.perceptual import perceptual_loss

    settings = config.distill
    networks = build_networks(config, accelerator.device)
    adversary = None
    if networks.critic is not None:
        average = partial(accelerator.reduce, reduction="mean")
        adversary = Adversary(networks.critic, accelerator.autocast, average)
    perceptual = perceptual_loss(accelerator.device)
    groups = parameter_groups(networks.trained, settings.beta1)
    optimizer = torch.optim.Adam(groups, lr=settings.lr, fused=True)
    if settings.compile:
        if accelerator.device.type == "cuda":
            networks.generator.write_as_sums()
        for network in (networks.generator, perceptual.lpips.net, networks.critic):
            if network is not None:
                network.compile()
    return Training(
        config=config,
        folder=folder,
        pair_count=pair_count,
        accelerator=accelerator,
        networks=networks,
        model=accelerator.prepare_model(networks.generator),
        augment=PairAugment(config.augment, training_side(config)),
        criterion=DistillationLoss(settings, perceptual, adversary),
        optimizer=optimizer,
    )


def parameter_groups(trained: dict[str, nn.Parameter], beta1: float) -> list[dict[str, Any]]:
    """Adam's: the generator's parameters, and the critic's, which learn CRITIC_RATE times as fast."""
    of_generator: list[nn.Parameter] = []
    of_critic: list[nn.Parameter] = []
    for name, parameter in trained.items():
        (of_critic if name.startswith("critic.") else of_generator).append(parameter)
    groups: list[dict[str, Any]] = [{"params": of_generator, "rate": 1.0, "betas": (beta1, BETA2)}]
    if of_critic:
        groups.append({"params": of_critic, "rate": CRITIC_RATE, "betas": (CRITIC_BETA1, BETA2)})
    return groups


def hashes_of_files(config: Config, pairs: PairDataset) -> dict[str, str]:
    """What identifies the files that training reads, beside their names: 'pairs' and 'labels'."""
    from distill.pairs import content

    return {"pairs": content(pairs.locations), "labels": digest(model_files(config.distill.labels))}


def resume(training: Training, made_with: dict[str, Any], force: bool) -> tuple[int, Path]:
    """Load the newest checkpoint, if there is one: the steps done until then, and its path.

    UserError where it was made with other settings or data, unless `force`.
    """
    from distill import checkpoints
    from distill.networks import load_checkpoint

    folder = training.folder / "checkpoints"
    checkpoint = checkpoints.newest(folder)
    if checkpoint is None:
        return 0, folder
    checkpoints.refuse_changes(checkpoint, made_with, training.pair_count, force)
    load_checkpoint(training.networks, training.optimizer, checkpoint)
    return checkpoint.state["step"], checkpoint.path


def is_save_due(settings: Distill, images: int) -> bool:
    """Whether this step reached a multiple of save_every_images, or the end."""
    return images % settings.save_every_images < settings.batch or images >= settings.images


def save(training: Training, made_with: dict[str, Any], steps: int) -> Path:
    """Write a checkpoint after so many steps, all processes waiting for the main one; returns its path."""
    from distill import checkpoints
    from distill.networks import checkpoint_tensors
    from distill.validation import best_of

    networks = training.networks
    images = steps * training.config.distill.batch
    folder = training.folder / "checkpoints"
    if training.accelerator.is_main_process:
        state = {
            "made_with": made_with,
            "generator": networks.generator.config,
            "pairs": training.pair_count,
            "step": steps,
        }
        tensors = checkpoint_tensors(networks, training.optimizer)
        choose_best = partial(best_of, read_metrics(training.folder / METRICS))
        checkpoints.save(folder, images, state, tensors, choose_best)
    training.accelerator.wait_for_everyone()
    return checkpoints.path_of(folder, images)


@contextlib.contextmanager
def processes(config: Config, folder: Path) -> Iterator[Accelerator]:
    """This process among those that train together, on device=, as accelerate sees it.

    The main process holds the lock of `folder`. UserError where another run has it, and for a device
    that is not there.
    """
    import torch
    from accelerate import Accelerator

    from models.devices import pick_device

    settings = config.distill
    device = pick_device(config.device)
    if device.type in ("cuda", "xpu"):
        torch.get_device_module(device).set_device(device)  # where one process trains; of several, its own
    if device.type == "mps" and settings.dtype != "float32":
        raise UserError(f"distill.dtype={settings.dtype}: training on mps is in float32")
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=PRECISIONS[settings.dtype],
        log_with=tracker_names(settings.tracker) or None,
        project_dir=folder,
    )
    check(config, accelerator.num_processes)
    lock = exclusive(folder, "train") if accelerator.is_main_process else contextlib.nullcontext()
    with lock:
        try:
            yield accelerator
        finally:
            accelerator.end_training()  # so that no process is left waiting


def check(config: Config, count: int = 1) -> None:
    """UserError for what `count` processes cannot use but the limits in configs/schema.py allow."""
    batch = config.distill.batch
    if batch % count:
        raise UserError(f"distill.batch={batch} cannot be shared by {count} processes: give a multiple")
    if count > 1 and ":" in config.device:
        raise UserError(f"device={config.device} is one GPU for {count} processes: take device=auto")
    side = training_side(config)
    if side > config.teacher.resolution:
        raise UserError(
            f"distill.resolution={side}: the pairs have {config.teacher.resolution} pixels a side "
            "(teacher.resolution); take that or less"
        )
    crop = config.distill.lpips_crop
    if 0 < crop < SMALLEST_CROP:
        raise UserError(
            f"distill.lpips_crop={crop}: it is 0, or {SMALLEST_CROP} or more: VGG16 halves it four times"
        )


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints: where, how much, how large."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from distill.checkpoints import KEEP
    from models.comodgan import make_generator
    from models.critic import Critic

    check(config)
    side = training_side(config)
    sizes = config.generator
    # on "meta" there are shapes alone, no values
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        generator = make_generator(side, sizes).eval()
        generator(torch.zeros(1, 3, side, side))
        critic = Critic()
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    # float32: weights, Adam's two moments, the average
    checkpoint_bytes = 16 * parameters
    if config.distill.adversarial > 0:
        # weights and Adam's two moments
        checkpoint_bytes += 12 * sum(parameter.numel() for parameter in critic.parameters())
    keys = selected_keys(run_dir(config))
    return {
        "folder": run_dir(config) / "train",
        "pairs selected": len(keys),
        "epochs": round(config.distill.images / len(keys), 1),
        "parameters (millions)": round(parameters / 1e6, 2),
        "arithmetic of one edit (GFLOP)": round(counter.get_total_flops() / 1e9, 2),
        # one more while the newest is written
        "disk for the checkpoints (GB)": round(checkpoint_bytes * (KEEP + 1) / 1e9, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
