"""Checkpoints of a training run: complete or not there, and nothing in them can be executed.

    <run>/train/checkpoints/000012800/     named by the images seen
        generator.safetensors, ema.safetensors, adam.safetensors
        critic.safetensors    with an adversary
        state.json    counters, settings, bytes and SHA-256 of the other files; written last

A checkpoint is written under a temporary name and then renamed. Older ones are removed only
afterwards, all but the newest KEEP and the best (distill/validation.py).
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from configs.errors import UserError
from configs.files import fingerprint, write_json
from configs.runs import changes
from models.comodgan import CoModGenerator

KEEP = 2  # the newest, and the one before it, should the newest turn out to be damaged
DAMAGE = (OSError, ValueError, KeyError, TypeError)  # what reading a damaged one raises

Tensors = dict[str, torch.Tensor]  # by name, as in one .safetensors file


@dataclass
class Checkpoint:
    """A checkpoint that was read and found undamaged.

    path: its folder. state: the content of state.json. tensors: by file (without .safetensors), on
    the CPU.
    """

    path: Path
    state: dict[str, Any]
    tensors: dict[str, Tensors]

    def average(self) -> CoModGenerator:
        """The generator with the averaged weights, frozen, in evaluation mode."""
        generator = CoModGenerator(**self.state["generator"]).eval().requires_grad_(False)
        generator.load_state_dict(self.tensors["ema"])
        return generator


def save(
    folder: Path,
    images: int,
    state: Mapping[str, Any],
    tensors: Mapping[str, Tensors],
    choose_best: Callable[[Collection[int]], int | None] = lambda _: None,
) -> Path:
    """Write <folder>/<images> and return its path. Of all until then the newest KEEP stay, and the best.

    state: JSON values for state.json. tensors: by file. choose_best: of numbers of images the one whose
    checkpoint is best. The caller holds the run's lock.
    UserError, with the earlier checkpoints untouched, where the disk has no room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for torn in folder.glob(".*.tmp"):  # left by a process that was killed
        shutil.rmtree(torn, ignore_errors=True)
    path = path_of(folder, images)
    temporary = folder / f".{path.name}.tmp"
    needed = _bytes(tensors)
    try:
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f"{free} bytes are free")
        temporary.mkdir()
        files = _write_tensors(temporary, tensors)
        write_json(temporary / "state.json", {**state, "images": images, "files": files})
        shutil.rmtree(path, ignore_errors=True)  # a damaged checkpoint of the same name
        os.replace(temporary, path)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path} could not be written ({error}): it needs {needed} bytes; "
            "free some and run the same command again"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_others(path, choose_best)
    return path


def path_of(folder: Path, images: int) -> Path:
    """Where the checkpoint after so many images is, or would be."""
    return folder / f"{images:09d}"


def saved(folder: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("[0-9]*/state.json"))


def images_of(path: Path) -> int:
    """After how many images this checkpoint was written."""
    return int(path.name)


def newest(folder: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint; None where there is no checkpoint at all.

    A damaged one is named on stderr, and the one before it is read. UserError where all of them are
    damaged.
    """
    paths = saved(folder)
    for path in reversed(paths):
        try:
            return read_checkpoint(path)
        except DAMAGE as error:
            print(f"warning: {path} is damaged ({error}); trying the one before it", file=sys.stderr)
    if paths:
        raise UserError(f"{folder}: every checkpoint is damaged; delete the folder to start anew")
    return None


def read_or_refuse(path: Path) -> Checkpoint:
    """The checkpoint in this folder; UserError if it is damaged."""
    try:
        return read_checkpoint(path)
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged ({error}): delete it, or take export.checkpoint=newest"
        ) from error


def read_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint in this folder; one of DAMAGE if it is damaged."""
    state = json.loads((path / "state.json").read_text())
    tensors = {}
    for name, expected in state["files"].items():
        file = path / f"{name}.safetensors"
        if fingerprint(file) != expected:
            raise ValueError(f"{file.name} is not what state.json says")
        tensors[name] = load_file(file)
    return Checkpoint(path, state, tensors)


def refuse_changes(
    checkpoint: Checkpoint, made_with: Mapping[str, Any], pair_count: int, force: bool
) -> None:
    """UserError with the keys that differ, where settings or data do; with `force` a warning.

    made_with: the settings of the run that goes on (configs/runs.py) and what identifies its data;
    JSON values. pair_count: how many pairs are selected now.
    """
    words = {"pairs": _counts(checkpoint.state.get("pairs"), pair_count)}
    differences = "; ".join(changes(checkpoint.state["made_with"], made_with, words))
    if not differences:
        return
    if not force:
        raise UserError(
            f"{checkpoint.path} was made with other settings: {differences}. "
            f"Set them back, delete {checkpoint.path.parent} to train anew, "
            "choose another runs_dir=, or go on with force=true"
        )
    warning = f"warning: going on from {checkpoint.path} with other settings: {differences}"
    print(warning, file=sys.stderr)


def _counts(then: int | None, now: int) -> str:
    """What is said of another selection. then: pairs of the checkpoint; None: an earlier version's."""
    if then == now:
        return f"as many as then, {now}, but other ones or other pictures in them"
    return f"{'others' if then is None else then} then, {now} now"


def _bytes(tensors: Mapping[str, Tensors]) -> int:
    total = 0
    for by_name in tensors.values():
        for tensor in by_name.values():
            total += tensor.nbytes
    return total


def _write_tensors(folder: Path, tensors: Mapping[str, Tensors]) -> dict[str, dict[str, Any]]:
    """Write a .safetensors file for each entry, through to the disk; returns their fingerprints."""
    fingerprints = {}
    for name, by_name in tensors.items():
        path = folder / f"{name}.safetensors"
        on_cpu = {key: tensor.detach().cpu().contiguous() for key, tensor in by_name.items()}
        save_file(on_cpu, path)
        fingerprints[name] = fingerprint(path)
        _sync(path)
    return fingerprints


def _remove_others(newest_path: Path, choose_best: Callable[[Collection[int]], int | None]) -> None:
    """Remove all checkpoints but the best and the newest KEEP up to this one.

    Those of a higher number are damaged, or from before training went on from an earlier one.
    """
    paths = saved(newest_path.parent)
    until = paths[: paths.index(newest_path) + 1]
    best = choose_best([images_of(path) for path in until])
    for path in paths:
        if path not in until[-KEEP:] and images_of(path) != best:
            shutil.rmtree(path)


def _sync(path: Path) -> None:
    """Have the system write a file, or a folder's list of names, to the disk now."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
