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
from torch import nn

from configs.errors import UserError
from generate.shards import fingerprint, write_json

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class Checkpoint:
    """One that was read and found whole: its folder, the content of state.json, tensors by file and name."""

    path: Path
    state: dict[str, Any]
    tensors: dict[str, dict[str, torch.Tensor]]


def save(folder: Path, images: int, about: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]], keep: int) -> Path:
    """Write <folder>/<images> atomically, then remove all but the newest `keep`; returns its path.

    tensors: one dictionary for each file. Raises UserError, with the earlier checkpoints untouched, where the disk has no room.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):  # of a killed process; the caller holds the run's lock
        shutil.rmtree(torn, ignore_errors=True)
    final = folder / f"{images:09d}"
    temporary = folder / f".{final.name}.{os.getpid()}.tmp"
    needed = sum(tensor.nbytes for part in tensors.values() for tensor in part.values())
    try:
        if shutil.disk_usage(folder).free < needed:
            raise OSError(f"{shutil.disk_usage(folder).free} bytes are free")
        temporary.mkdir()
        state = {**about, "images": images, "files": {}}
        for name, part in tensors.items():
            path = temporary / f"{name}.safetensors"
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in part.items()}, path)
            state["files"][name] = fingerprint(path)
            _sync(path)
        write_json(temporary / "state.json", state)
        shutil.rmtree(final, ignore_errors=True)  # a damaged one of the same name
        os.replace(temporary, final)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{final} could not be written ({error}): it needs {needed} bytes; free some and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in saved(folder)[:-keep]:
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


def adam_tensors(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Adam's state by parameter name."""
    states = ((name, optimizer.state.get(parameter, {})) for name, parameter in trained.items())
    return {f"{name}.{key}": tensor for name, state in states for key, tensor in state.items()}


def restore_adam(trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]) -> None:
    """The reverse of adam_tensors, in each parameter's device and memory format."""
    for name, parameter in trained.items():
        if f"{name}.step" in tensors:
            moments = {key: torch.empty_like(parameter).copy_(tensors[f"{name}.{key}"]) for key in MOMENTS}
            optimizer.state[parameter] = {"step": tensors[f"{name}.step"].to(parameter.device, copy=True), **moments}  # as fused Adam asks


def refuse_changes(checkpoint: Checkpoint, about: dict[str, Any], force: bool) -> None:
    """Raise UserError with the differing keys where the run was made with other settings or data; with `force` only name them."""
    before = checkpoint.state.get("made_with", {})
    now = json.loads(json.dumps(about["made_with"]))
    changes = [f"{key}: {before.get(key)} -> {now.get(key)}" for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if changes and not force:
        raise UserError(
            f"{checkpoint.path} was made with other settings: {'; '.join(changes)}. Set them back, choose another runs_dir=, or force=true"
        )
    if changes:
        print(f"warning: going on from {checkpoint.path} with other settings: {'; '.join(changes)}", file=sys.stderr)


def _read(path: Path) -> Checkpoint:
    from safetensors.torch import load_file

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
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
