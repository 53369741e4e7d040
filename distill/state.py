"""Everything a training run holds, and the steps that the loop in distill/train.py names.

B batch, C channels, H W pixels, D width of the latent.
"""

from __future__ import annotations

import copy
import json
import time
from collections import defaultdict
from collections.abc import Generator as Batches
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from torchvision.utils import save_image

from configs.errors import UserError
from configs.files import digest, find_file, model_files, whole_file, write_json
from configs.loader import to_yaml
from configs.schema import Config, Generator
from distill import adapters, checkpoints, pairs
from distill.formats import Edit, read_file
from distill.runlog import read_metrics
from distill.losses import Adversary, distillation_loss
from models.comodgan import CoModGenerator, make_generator
from models.discriminator import Discriminator
from models.perceptual import perceptual_loss

LOG_EVERY_S = 10.0  # a line of progress
GRID_ROWS = 8
EMA_RAMP = 0.05  # the half-life is at most this share of the images seen, so that the start is soon forgotten (Karras et al. 2020)
# these change no weight
FREE_KEYS = (
    "images",
    "save_every_images",
    "keep_checkpoints",
    "max_validation_pairs",
    "workers",
    "cache_gb",
    "tracker",
)


class TrainingState:
    """The networks, the data, the optimizer and the counters of one process; `step` counts updates from 0."""

    def __init__(self, config: Config, accelerator: Any, folder: Path) -> None:
        self.config, self.accelerator, self.folder = config.distill, accelerator, folder
        self.seed, self.device = config.seed, accelerator.device
        if self.config.batch % accelerator.num_processes:
            raise UserError(
                f"distill.batch={self.config.batch} cannot be shared by {accelerator.num_processes} processes: give a multiple"
            )
        resolution = config.teacher.resolution
        training, held_out = pairs.split_pairs(config, self.config.validation_share, self.seed)
        self.training = pairs.PairDataset(
            training, resolution, self.config.cache_gb, find_file(self.config.labels)
        )
        self.held_out = pairs.PairDataset(held_out[: self.config.max_validation_pairs], resolution)
        self.made_with = {
            "teacher.resolution": resolution,
            "seed": self.seed,
            "pairs": pairs.content(training),
            "labels": digest(model_files(self.config.labels)),
            **{f"generator.{key}": value for key, value in asdict(config.generator).items()},
            **{f"augment.{key}": value for key, value in asdict(config.augment).items()},
            **{
                f"distill.{key}": value
                for key, value in asdict(config.distill).items()
                if key not in FREE_KEYS
            },
        }

        torch.manual_seed(self.seed)
        self.generator = (
            make_generator(resolution, config.generator)
            .to(self.device)
            .to(memory_format=torch.channels_last)
        )
        if self.config.init:
            load_exported(self.generator, Path(find_file(self.config.init)))
        if self.config.latent == "fixed":  # no noise is drawn, so its strengths get no gradient
            for layer in (*self.generator.ups, *self.generator.layers):
                layer.noise_strength.requires_grad_(False)
        self.ema = copy.deepcopy(self.generator).eval().requires_grad_(False)
        if self.config.adapter_rank:
            adapters.adapt(self.generator, self.config.adapter_rank)
        self.trained = {
            name: parameter
            for name, parameter in self.generator.named_parameters()
            if parameter.requires_grad
        }
        self.share = sum(parameter.numel() for parameter in self.trained.values()) / sum(
            value.numel() for value in self.ema.parameters()
        )
        self.networks: dict[str, torch.nn.Module] = {
            "generator": self.generator,
            "ema": self.ema,
        }  # what a checkpoint holds the weights of
        self.adversary: Adversary | None = None
        if self.config.adversarial > 0:
            discriminator = Discriminator(
                resolution, config.generator.channel_base, config.generator.channel_max
            ).to(self.device)
            self.networks["discriminator"] = discriminator.to(memory_format=torch.channels_last)
            self.adversary = Adversary(discriminator, self.config, accelerator.autocast)
            self.trained |= {
                f"discriminator.{name}": parameter for name, parameter in discriminator.named_parameters()
            }
        betas = (self.config.beta1, self.config.beta2)
        self.optimizer = torch.optim.Adam(self.trained.values(), lr=self.config.lr, betas=betas, fused=True)
        self.augment = pairs.PairAugment(config.augment, resolution)
        self.perceptual = perceptual_loss(self.device)
        self.loss = partial(distillation_loss, self.config, self.perceptual, self.adversary)
        self.step, self.last_step, self.path = 0, -(-self.config.images // self.config.batch), Path()
        self._resume(config.force)
        if self.config.compile:
            if self.device.type == "cuda":
                self.generator.write_as_sums()
            for module in (
                self.generator,
                self.perceptual,
                *([self.adversary.discriminator] if self.adversary else []),
            ):
                module.compile()
        self.model = accelerator.prepare_model(self.generator)
        self._start_log(config)

    # ---- the steps of the loop ----

    def batches(self) -> Batches[tuple[torch.Tensor, torch.Tensor], None, None]:
        """This process's part of each step still to do: input and edit, B x 3 x H x W in [-1, 1]."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        order = (self._positions(step)[rank::processes] for step in range(self.step, self.last_step))
        on_gpu = self.device.type == "cuda"
        loader: Any = DataLoader(
            self.training, batch_sampler=order, num_workers=self.config.workers, pin_memory=on_gpu
        )
        asked = time.perf_counter()
        try:
            for images in loader:
                input_BCHW, edit_BCHW = (
                    pairs.to_unit(image.to(self.device, non_blocking=True)) for image in images
                )
                self.waited_s += time.perf_counter() - asked
                yield input_BCHW, edit_BCHW
                asked = time.perf_counter()
        except UserError as error:  # of a decoding process: it comes with its traceback as text, of which the user gets the last line
            raise UserError(
                str(error).strip().splitlines()[-1].removeprefix("configs.errors.UserError: ")
            ) from error

    def seed_step(self) -> None:
        """Seed every draw of this step by what it is, so that a step can be done again without any saved state."""
        torch.manual_seed(int(digest(self.seed, self.step, self.accelerator.process_index), 16) % 2**63)

    def latent(self, batch: int) -> torch.Tensor | None:
        """Standard normal B x D, or None where distill.latent is 'fixed'."""
        return (
            None
            if self.config.latent == "fixed"
            else torch.randn(batch, self.generator.config["z_dim"], device=self.device)
        )

    def teach_adversary(
        self, input_BCHW: torch.Tensor, edit_BCHW: torch.Tensor, fake_BCHW: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The discriminator's loss, and its gradients, averaged over the processes; nothing where there is none."""
        if self.adversary is None:
            return {}
        loss = self.adversary.loss(input_BCHW, edit_BCHW, fake_BCHW, self.step)
        self.accelerator.backward(loss)
        if (
            self.accelerator.num_processes > 1
        ):  # R1 differentiates twice, which DistributedDataParallel does not expect
            for parameter in self.adversary.discriminator.parameters():
                parameter.grad = self.accelerator.reduce(parameter.grad, "mean")
        return {"discriminator": loss}

    def averaged_if_finite(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses, averaged over the processes.

        UserError on every process, before the update, where one has a loss or gradient that is not finite.
        """
        gradients = [parameter.grad for parameter in self.trained.values() if parameter.grad is not None]
        numbers = torch.stack(
            [*(value.detach() for value in losses.values()), torch.nn.utils.get_total_norm(gradients).float()]
        )
        worst = self.accelerator.gather(numbers[None])
        if torch.isfinite(worst).all():
            return dict(zip(losses, worst.mean(0), strict=False))  # all but the norm
        path = self.folder / "nonfinite.json"
        if self.accelerator.is_main_process:
            keys = [self.training.locations[place].key for place in self._positions(self.step)]
            write_json(
                path,
                {
                    "step": self.step,
                    "images": self.images,
                    "keys": keys,
                    "losses_and_gradient_norm": str(worst.tolist()),
                },
            )
        raise UserError(
            f"step {self.step}: the loss or its gradient is not finite; nothing was updated. {path} names the pairs; "
            "look at those pairs, or lower distill.lr and go on with force=true"
        )

    def update(self) -> None:
        """One Adam step with warm-up, then the moving average of the weights."""
        seen = (self.step + 1) * self.config.batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * min(1.0, seen / max(1, self.config.warmup_images))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        half_life = max(1e-8, min(self.config.ema_half_life_images, EMA_RAMP * seen))
        keep = 0.5 ** (self.config.batch / half_life)
        with torch.no_grad():
            names, averages = zip(*self.ema.named_parameters(), strict=True)
            torch._foreach_lerp_(list(averages), adapters.merged(self.generator, names), 1 - keep)

    def log(self, losses: dict[str, torch.Tensor]) -> None:
        """Keep the losses; every LOG_EVERY_S, and before a checkpoint, print one line of their means and append it to metrics.jsonl."""
        self._losses.append(losses)
        elapsed_s = time.perf_counter() - self._since
        if elapsed_s < LOG_EVERY_S and not self.due():
            return
        count = len(self._losses)
        rate = count * self.config.batch / elapsed_s
        line = {name: float(sum(each[name] for each in self._losses)) / count for name in losses}
        line |= {"images_per_s": rate, "data_wait_share": self.waited_s / elapsed_s}
        self._write("train", line)
        left_s = max(0, self.config.images - self.images) / rate
        self._say(
            f"{self.images}/{self.config.images} images, {rate:.1f}/s, {timedelta(seconds=round(left_s))} left, loss {line['loss']:.4f} "
            f"(L1 {line['l1']:.4f}, LPIPS {line['lpips']:.4f}), waited for data {line['data_wait_share']:.0%}"
        )
        self._reset_clock()

    def due(self) -> bool:
        """Whether a checkpoint is to be written now: each save_every_images, and at the end."""
        every, batch = self.config.save_every_images, self.config.batch
        return self.images // every > (self.images - batch) // every or self.step >= self.last_step

    @torch.no_grad()
    def validate(self) -> None:
        """Means over held-out pairs of the averaged weights' L1 (in [-1, 1]), PSNR (dB) and LPIPS to the teacher's edit, and a picture of
        some: input, teacher, generator; the main process does.
        """
        if not self.accelerator.is_main_process:
            return
        edit = Edit(self.ema).to(self.device)
        sums: dict[str, float] = defaultdict(float)
        for images in DataLoader(self.held_out, self.config.batch):
            input_BCHW, edit_BCHW = (pairs.to_unit(image.to(self.device)) for image in images)
            fake_BCHW = edit(input_BCHW).float().clamp(-1, 1)
            if not sums:
                sheet = torch.stack([input_BCHW, edit_BCHW, fake_BCHW], 1)[:GRID_ROWS].flatten(0, 1)
            error_BCHW = fake_BCHW - edit_BCHW
            sums["l1"] += error_BCHW.abs().mean((1, 2, 3)).sum().item()
            sums["psnr"] -= (
                (10 * torch.log10((error_BCHW / 2).square().mean((1, 2, 3)).clamp_min(1e-10))).sum().item()
            )
            sums["lpips"] += self.perceptual(fake_BCHW, edit_BCHW).sum().item()
        found = {name: value / len(self.held_out) for name, value in sums.items()}
        self._write("validation", found)
        path = self.folder / "samples" / f"{self.images:09d}.png"
        path.parent.mkdir(exist_ok=True)
        save_image(sheet, path, nrow=3, padding=0, normalize=True, value_range=(-1, 1))
        self._say(
            f"{self.images} images: held-out L1 {found['l1']:.4f}, PSNR {found['psnr']:.2f} dB, LPIPS {found['lpips']:.4f} "
            f"over {len(self.held_out)} pairs"
        )

    def save(self) -> None:
        """Write a checkpoint; the other processes wait for it."""
        self.path = self.folder / "checkpoints" / f"{self.images:09d}"
        if self.accelerator.is_main_process:
            tensors = {name: network.state_dict() for name, network in self.networks.items()}
            tensors["adam"] = checkpoints.adam_tensors(self.trained, self.optimizer)
            about = {"made_with": self.made_with, "generator": self.generator.config, "step": self.step}
            checkpoints.save(self.path.parent, self.images, about, tensors, self.config.keep_checkpoints)
        self.accelerator.wait_for_everyone()
        self._reset_clock()

    @property
    def images(self) -> int:
        """Images shown so far, over all processes."""
        return self.step * self.config.batch

    # ---- behind them ----

    def _positions(self, step: int) -> list[int]:
        return pairs.step_positions(step, self.config.batch, len(self.training), self.seed)

    def _resume(self, force: bool) -> None:
        found = checkpoints.newest(self.folder / "checkpoints")
        if found is None:
            return
        checkpoints.refuse_changes(found, self.made_with, force)
        try:
            for name, network in self.networks.items():
                network.load_state_dict(found.tensors[name])
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"{found.path} holds other networks: choose another runs_dir=, or delete {found.path.parent}"
            ) from error
        checkpoints.restore_adam(self.trained, self.optimizer, found.tensors["adam"])
        self.step, self.path = found.state["step"], found.path
        self._say(f"going on from {found.path}")

    def _start_log(self, config: Config) -> None:
        self._reset_clock()
        self.accelerator.init_trackers(config.task.name)
        if not self.accelerator.is_main_process:
            return
        (self.folder / "config.yaml").write_text(to_yaml(config))
        metrics = self.folder / "metrics.jsonl"
        lines = [
            json.dumps(line) + "\n" for line in read_metrics(metrics) if line["images"] <= self.images
        ]  # later ones come again
        with whole_file(metrics) as stream:
            stream.write("".join(lines).encode())
        self._say(
            f"{len(self.training)} pairs, {len(self.held_out)} held out, to {self.config.images} images on {self.device}, "
            f"training {self.share:.1%} of the weights"
        )

    def _reset_clock(self) -> None:
        self._losses: list[dict[str, torch.Tensor]] = []
        self.waited_s, self._since = 0.0, time.perf_counter()

    def _write(self, kind: str, numbers: dict[str, float]) -> None:
        self.accelerator.log({f"{kind}/{name}": value for name, value in numbers.items()}, step=self.images)
        if self.accelerator.is_main_process:
            with open(self.folder / "metrics.jsonl", "a") as stream:
                stream.write(json.dumps({"images": self.images, "kind": kind, **numbers}) + "\n")

    def _say(self, text: str) -> None:
        self.accelerator.print(f"train: {text}", flush=True)


def load_exported(generator: CoModGenerator, path: Path) -> None:
    """Fill the generator from an exported generator.safetensors. UserError where it is none or was made with another configuration."""
    about, tensors = read_file(path)
    config = about.get("config", {})
    if {**asdict(Generator()), **config, "dropout": 0} != {
        **generator.config,
        "dropout": 0,
    }:  # which no weight depends on
        raise UserError(
            f"{path} was made with {config}, this run's generator is {generator.config}: "
            "set generator.* to match, or distill.init= to start anew"
        )
    generator.load_state_dict(tensors)
