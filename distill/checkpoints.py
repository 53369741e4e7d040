"""Checkpoints of a training run: complete or not there, and nothing in them can be executed.

    <run>/train/checkpoints/000012800/     named by the images seen
        generator.safetensors  ema.safetensors  adam.safetensors, with an adversary discriminator.safetensors
        state.json             counters, what was trained on what, bytes and SHA-256 of the others; written last

A checkpoint is written under a temporary name and renamed; older ones go only afterwards.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from configs.errors import UserError
from configs.files import fingerprint, write_json
from models.comodgan import CoModGenerator


@dataclass
class Checkpoint:
    """One that was read and found whole: its folder, the content of state.json, tensors by file and name."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]

    def average(self) -> CoModGenerator:
        """The generator of the averaged weights, for use."""
        generator = CoModGenerator(**self.state["generator"]).eval().requires_grad_(False)
        generator.load_state_dict(self.tensors["ema"])
        return generator


def fixed_latent(made_with: dict[str, Any]) -> list[float] | None:
    """The one latent that validation and export use where training samples them, drawn from the run's seed; None (zeros) where not.

    made_with: of state.json.
    """
    if made_with["distill.latent"] == "fixed":
        return None
    return torch.randn(
        1, made_with["generator.z_dim"], generator=torch.Generator().manual_seed(made_with["seed"])
    )[0].tolist()


def save(
    folder: Path, images: int, about: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]], keep: int
) -> Path:
    """Write <folder>/<images> atomically, then remove all but it and those before it, `keep` altogether; returns its path.

    tensors: one dictionary for each file. Raises UserError, with the earlier checkpoints untouched, where the disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):  # of a killed process; the caller holds the run's lock
        shutil.rmtree(torn, ignore_errors=True)
    final = folder / f"{images:09d}"
    temporary = folder / f".{final.name}.tmp"
    needed, free = (
        sum(tensor.nbytes for part in tensors.values() for tensor in part.values()),
        shutil.disk_usage(folder).free,
    )
    try:
        if free < needed:
            raise OSError(f"{free} bytes are free")
        temporary.mkdir()
        files = {}
        for name, part in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in part.items()}, path)
            files[name] = fingerprint(path)
            _sync(path)
        write_json(temporary / "state.json", {**about, "images": images, "files": files})
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same name
        os.replace(temporary, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{final} could not be written ({error}): it needs {needed} bytes; free some and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    paths = saved(folder)
    place = paths.index(final) + 1
    for old in (
        paths[: max(0, place - keep)] + paths[place:]
    ):  # of a higher number are only damaged ones, and those gone back before
        shutil.rmtree(old)
    return final


def saved(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("[0-9]*/state.json"))


def newest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that is whole, on the CPU; None where there is none.

    A damaged one is named on stderr and the one before it is taken. UserError where all of them are damaged.
    """
    paths = saved(folder)
    for path in reversed(paths):
        try:
            return _read(path)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"warning: {path} is damaged ({error}); trying the one before it", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: every checkpoint is damaged; delete the folder to start anew")
    return None


def adam_tensors(
    trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Adam's state by parameter name."""
    return {
        f"{name}.{key}": tensor
        for name, parameter in trained.items()
        for key, tensor in optimizer.state[parameter].items()
    }


def restore_adam(
    trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """The reverse of adam_tensors, in each parameter's device and memory format."""
    for name, parameter in trained.items():
        if f"{name}.step" in tensors:
            moments = {
                key: torch.empty_like(parameter).copy_(tensors[f"{name}.{key}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            optimizer.state[parameter] = {
                "step": tensors[f"{name}.step"].to(parameter.device, copy=True),
                **moments,
            }  # as fused Adam asks


def refuse_changes(checkpoint: Checkpoint, made_with: dict[str, Any], force: bool) -> None:
    """Raise UserError with the differing keys where the run was made with other settings or data; with `force` only name them."""
    before, now = checkpoint.state["made_with"], json.loads(json.dumps(made_with))
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    changes = "; ".join(f"{key}: {before.get(key)} -> {now.get(key)}" for key in keys)
    if changes and not force:
        raise UserError(
            f"{checkpoint.path} was made with other settings: {changes}. Set them back, delete {checkpoint.path.parent} to train anew, "
            "choose another runs_dir=, or go on with force=true"
        )
    if changes:
        print(f"warning: going on from {checkpoint.path} with other settings: {changes}", file=sys.stderr)


def _read(path: Path) -> Checkpoint:
    state = json.loads((path / "state.json").read_text())
    tensors = {}
    for name, expected in state["files"].items():
        file = path / f"{name}.safetensors"
        if fingerprint(file) != expected:
            raise ValueError(f"{file.name} is not what state.json says")
        tensors[name] = load_file(file)
    return Checkpoint(path, state, tensors)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
