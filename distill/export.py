"""Export a checkpoint's averaged weights: a generator that needs nothing of this repository.

  zero2gan export RUN                                  RUN: the folder that generate named
  zero2gan export RUN 'export.formats=[page]'          a web page of it
  zero2gan export RUN export.push=OWNER/MODEL          to the hub, where a token is set (hf auth login)

Writes <run>/export: generator.safetensors (for PyTorch), generator.onnx (uint8 pictures in and
out), what export.formats adds (float, fp16, int8, pt2, page), translator.py (runs them without a
clone), README.md (a model card), config.json and check.json. Each file is compared with PyTorch on
held-out pictures before it is kept.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.files import ROOT, exclusive, fingerprint, write_json
from configs.runs import command, remember, run_dir
from configs.schema import Config
from distill.browser import write_page
from distill.card import push, write_card
from generate.shards import PairLocation, read_pair

if TYPE_CHECKING:
    from distill.formats import FileFormat
    from models.comodgan import CoModGenerator

SECTIONS = ("task", "teacher", "distill", "export")
FORMAT = 1  # of the metadata
CHECKED_PICTURES = 16
CALIBRATION_PICTURES = 32  # of the training pairs; the ranges of 8-bit arithmetic have settled by then
VISIBLE_DB = 40.0  # a loss below this PSNR can be seen side by side
TRANSLATOR = ROOT / "models" / "translator.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return entry(__doc__, SECTIONS, export, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    from distill.checkpoints import saved

    train_dir = run_dir(config) / "train"
    paths = saved(train_dir / "checkpoints")
    best = best_path(train_dir) if config.export.checkpoint == "best" else None
    if best is not None:
        paths.append(best)
    return {
        "checkpoint": paths[-1] if paths else f"none yet: {command('train', run_dir(config))}",
        "folder": run_dir(config) / "export",
    }


def export(config: Config) -> Path:
    """Write <run>/export and return it.

    UserError without a checkpoint, and where a file differs from PyTorch by more than its kind may:
    then nothing there is replaced. 8-bit arithmetic may: its loss is measured and told.
    """
    from distill.formats import write_formats

    folder = run_dir(config) / "export"
    with exclusive(folder, "export"), temporary_folder(folder) as temporary:
        trained = load(config)
        files = write_formats(
            temporary, trained.generator, trained.metadata, config.export.formats, trained.calibration_BHWC
        )
        checks = check_files(temporary, files, trained)
        refuse_differences(checks, folder)
        if "page" in config.export.formats:
            write_page(temporary, trained.held_out_BHWC)
        shutil.copyfile(TRANSLATOR, temporary / TRANSLATOR.name)
        write_card(temporary, run_dir(config) / "train", trained.metadata, checks)
        keep(temporary, folder, [file.name for file in files])
        write_json(folder / "config.json", trained.metadata)
        results = {name: asdict(check) for name, check in checks.items()}
        write_json(folder / "check.json", {"pictures": len(trained.held_out_BHWC), "formats": results})
    remember(config, ("export",))
    if config.export.push:
        print(f"pushed to {push(folder, config.export.push)}")
    print(f"next: {command('translate', run_dir(config), 'PICTURES', 'EDITED')}")
    return folder


@contextlib.contextmanager
def temporary_folder(folder: Path) -> Iterator[Path]:
    """A new folder in this one, removed at the end; those that killed processes left go first."""
    with tempfile.TemporaryDirectory(prefix=".making.", dir=folder) as name:
        for path in folder.glob(".making.*"):
            if path != Path(name):
                shutil.rmtree(path)
        yield Path(name)


# ---- load ----


@dataclass
class Trained:
    """What export starts from: a generator with its metadata, and uint8 inputs B x H x W x 3.

    The files are compared on inputs that were held out from training; 8-bit ranges are those of
    some training inputs.
    """

    generator: CoModGenerator
    metadata: dict[str, Any]
    held_out_BHWC: np.ndarray
    calibration_BHWC: np.ndarray


def load(config: Config) -> Trained:
    """The averaged weights of export.checkpoint, and inputs of the pairs.

    UserError without a checkpoint, and for one of sampled latents, as earlier versions had them.
    """
    import torch

    from distill import checkpoints, pairs

    train_dir = run_dir(config) / "train"
    best = best_path(train_dir) if config.export.checkpoint == "best" else None
    if best is None:
        checkpoint = checkpoints.newest(train_dir / "checkpoints")
    else:
        checkpoint = checkpoints.read_or_refuse(best)
    if checkpoint is None:
        raise UserError(f"{train_dir} has no checkpoint: train first, {command('train', run_dir(config))}")
    made_with = checkpoint.state["made_with"]
    if made_with.get("distill.latent", "fixed") != "fixed":
        raise UserError(
            f"{checkpoint.path} is of sampled latents, and the latent is always zeros now: train anew"
        )
    generator = checkpoint.average()
    training, held_out = pairs.split_pairs(config, made_with["distill.validation_share"], made_with["seed"])
    metadata = {
        "format": FORMAT,
        "config": generator.config,
        "resolution": generator.config["resolution"],
        "task": config.task.name,
        "source": config.task.source,
        "target": config.task.target,
        "teacher": config.teacher.name,
        "images_seen": checkpoint.state["images"],
        "init": made_with.get("distill.init", ""),
        "pairs": checkpoint.state.get("pairs"),  # None of a checkpoint of an earlier version
        "pairs_hash": made_with["pairs"],
        "git_revision": git_revision(),
        "torch": torch.__version__,
    }
    return Trained(
        generator=generator,
        metadata=metadata,
        held_out_BHWC=_inputs(held_out[:CHECKED_PICTURES], generator.config["resolution"]),
        calibration_BHWC=_inputs(training[:CALIBRATION_PICTURES], generator.config["resolution"]),
    )


def best_path(train_dir: Path) -> Path | None:
    """The best checkpoint of a training, as validation.best_of has it; None where there is none."""
    from distill import checkpoints
    from distill.runlog import METRICS, read_metrics
    from distill.validation import best_of

    folder = train_dir / "checkpoints"
    candidates = [checkpoints.images_of(path) for path in checkpoints.saved(folder)]
    best = best_of(read_metrics(train_dir / METRICS), candidates)
    return None if best is None else checkpoints.path_of(folder, best)


def _inputs(locations: Sequence[PairLocation], side: int) -> np.ndarray:
    """The inputs of these pairs as the generator takes them, uint8 B x side x side x 3."""
    from models.pictures import resized

    images = [read_pair(location, ("input",)).images["input"] for location in locations]
    return np.stack([resized(image_HWC, side) for image_HWC in images])


def git_revision() -> str:
    """The commit this code is at, with '+' where files differ from it; 'unknown' outside a clone."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=40", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# ---- check ----


@dataclass
class FileCheck:
    """How far the edits by a file are from those by the weights in PyTorch, over all values of
    uint8.
    """

    max_levels: int  # of 255
    mean_levels: float
    psnr_db: float
    allowed_levels: int
    bytes: int  # size of the file
    sha256: str


def check_files(folder: Path, files: Sequence[FileFormat], trained: Trained) -> dict[str, FileCheck]:
    """Compare each file with PyTorch on the held-out inputs, with a line for each as it is done.

    The results are by the files' names, sorted.
    """
    from distill.formats import edit_in_pytorch

    expected_BHWC = edit_in_pytorch(trained.generator, trained.held_out_BHWC).astype(int)
    checks = {}
    for file in sorted(files, key=attrgetter("name")):
        path = folder / file.name
        error_BHWC = file.edit(path, trained.held_out_BHWC).astype(int) - expected_BHWC
        rms = max(np.sqrt(np.square(error_BHWC).mean()), 1e-3)  # at most 108 dB where all are equal
        checks[file.name] = FileCheck(
            max_levels=int(np.abs(error_BHWC).max()),
            mean_levels=float(np.abs(error_BHWC).mean()),
            psnr_db=float(20 * np.log10(255 / rms)),
            allowed_levels=file.allowed_levels(),
            **fingerprint(path),
        )
        print_check(file.name, checks[file.name])
    return checks


def print_check(name: str, check: FileCheck) -> None:
    """One line for a file: its size and its difference from PyTorch."""
    size = f"{check.bytes / 1e6:.1f} MB"
    loss = f"at most {check.max_levels} of 255 levels from PyTorch, {check.mean_levels:.2g} on average"
    visible = "; visible side by side" if check.psnr_db < VISIBLE_DB else ""
    print(f"export: {name} {size}, {loss}{visible}", flush=True)


def refuse_differences(checks: dict[str, FileCheck], folder: Path) -> None:
    """UserError for the first file that differs from PyTorch by more than its kind may."""
    for name, check in checks.items():
        if check.max_levels > check.allowed_levels:
            raise UserError(
                f"{name} differs from PyTorch by more than {check.allowed_levels} levels; "
                f"{folder} is as it was"
            )


# ---- keep ----


def keep(temporary: Path, folder: Path, names: Sequence[str]) -> None:
    """Move everything from the temporary folder into the other.

    names: of the generator's files. Others of an export before, which are of older weights, go.
    """
    for path in list(temporary.iterdir()):
        path.chmod(0o644)  # safetensors gives its files to their owner alone
        path.replace(folder / path.name)
    for path in folder.glob("generator*"):
        if path.name not in names:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
