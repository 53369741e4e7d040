"""Export the newest checkpoint's averaged weights: a generator that needs nothing of this repository.

  python distill/export.py task=tree2winter

Writes <run>/export: generator.safetensors (for PyTorch), generator.onnx (uint8 pictures in and out), config.json, check.json, and what
export.formats adds: float, fp16, int8, pt2, page. Each file is compared with PyTorch on held-out pictures before it is kept.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.files import exclusive, write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill.browser import write_page
from generate.shards import PairLocation, finished_shards, read_manifest, read_pair
from models.translator import Translator

SECTIONS = ("task", "teacher", "distill", "export")
CHECKED_PICTURES = 16
CALIBRATION_PICTURES = 32  # of the training pairs; the ranges of 8-bit arithmetic have settled by then
MAX_LEVELS = 2  # of 255; rounding alone makes 1 where two runtimes sum in another order
MAX_LEVELS_FP16 = 8  # ten bits of mantissa; an overflow would be a hundred
VISIBLE_DB = 40.0  # a loss below this PSNR can be seen side by side


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return entry(__doc__, SECTIONS, export, plan, argv)


def export(config: Config) -> Path:
    """Write <run>/export and return it.

    UserError without a checkpoint, for an unknown format, and where a file differs from PyTorch by more than its kind may (8-bit
    arithmetic may: its loss is measured and told): then nothing there is replaced.
    """
    from distill.formats import FORMATS, write

    folder, formats = run_dir(config) / "export", config.export.formats
    if unknown := set(formats) - set(FORMATS):
        raise UserError(f"export.formats: no '{min(unknown)}'. There are: {', '.join(FORMATS)}")
    with exclusive(folder, "export"), tempfile.TemporaryDirectory(prefix=".making.", dir=folder) as name:
        temporary = Path(name)
        for torn in set(folder.glob(".making.*")) - {temporary}:  # of a killed process
            shutil.rmtree(torn)
        generator, about, held_out, calibration = _load(config)
        write(temporary, generator, about, formats, calibration)
        check = _check(temporary, generator, about, held_out)
        for file, found in check["formats"].items():
            loss = f"at most {found['max_levels']} of 255 levels from PyTorch, {found['mean_levels']:.2g} on average"
            seen = "; visible side by side" if found["psnr_db"] < VISIBLE_DB else ""
            print(f"export: {file} {found['bytes'] / 1e6:.1f} MB, {loss}{seen}")
            if found["max_levels"] > found["allowed_levels"]:
                raise UserError(
                    f"{file} differs from PyTorch by more than {found['allowed_levels']} levels; {folder} is as it was"
                )
        if "page" in formats:
            write_page(temporary, config.export, held_out[0])
        for path in list(temporary.iterdir()):
            path.chmod(0o644)  # safetensors gives its files to their owner alone
            path.replace(folder / path.name)
        for path in folder.glob("generator*"):
            if path.name not in check["formats"]:
                path.unlink()  # a format that is not asked for any more would be of older weights
        write_json(folder / "config.json", about)
        write_json(folder / "check.json", check)
    return folder


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    from distill.checkpoints import saved

    found = saved(run_dir(config) / "train" / "checkpoints")
    return {
        "checkpoint": found[-1] if found else "none yet: run distill/train.py",
        "folder": run_dir(config) / "export",
    }


def _load(config: Config) -> tuple[Any, dict[str, Any], np.ndarray, np.ndarray]:
    """The generator, what its files say of themselves, held-out inputs and some of training (uint8 B x H x W x 3)."""
    import torch

    from distill import checkpoints, pairs

    checkpoint = checkpoints.newest(run_dir(config) / "train" / "checkpoints")
    if checkpoint is None:
        raise UserError(
            f"{run_dir(config) / 'train'} has no checkpoint: run distill/train.py with the same task= and teacher= first"
        )
    generator, made_with = checkpoint.average(), checkpoint.state["made_with"]
    training, held_out = pairs.split_pairs(config, made_with["distill.validation_share"], made_with["seed"])
    about = {
        "format": 1,
        "config": generator.config,
        "resolution": generator.config["resolution"],
        "z": checkpoints.fixed_latent(made_with),
        "task": config.task.name,
        "source": config.task.source,
        "target": config.task.target,
        "teacher": config.teacher.name,
        "images_seen": checkpoint.state["images"],
        "pairs": len(training) + len(held_out),
        "pairs_sha256": [read_manifest(shard)["sha256"] for shard in finished_shards(pairs_dir(config))],
        "git_revision": _git_revision(),
        "torch": torch.__version__,
    }

    def inputs(locations: list[PairLocation]) -> np.ndarray:
        return np.stack([read_pair(location, ("input",)).images["input"] for location in locations])

    return generator, about, inputs(held_out[:CHECKED_PICTURES]), inputs(training[:CALIBRATION_PICTURES])


def _check(folder: Path, generator: Any, about: dict[str, Any], images_BHWC: np.ndarray) -> dict[str, Any]:
    """Differences in 8-bit levels between each file and the checkpoint's weights in PyTorch, on these pictures."""
    import torch

    from distill.formats import Edit, Picture, read

    def in_pytorch(module: Any) -> np.ndarray:
        with torch.no_grad():
            return Picture(Edit(module, about["z"]))(torch.from_numpy(images_BHWC)).numpy()

    expected, formats = in_pytorch(generator).astype(int), {}
    for path in sorted(folder.iterdir()):
        edits = in_pytorch(read(path)[0]) if path.suffix == ".safetensors" else _edit(path, images_BHWC)
        ten_bits = "fp16" in path.name or (
            path.suffix == ".pt2" and torch.cuda.is_available()
        )  # TF32, a GPU's way with float32
        difference = edits.astype(int) - expected
        formats[path.name] = {
            "max_levels": int(np.abs(difference).max()),
            "mean_levels": float(np.abs(difference).mean()),
            "psnr_db": float(20 * np.log10(255 / max(np.sqrt(np.square(difference).mean()), 1e-3))),
            "allowed_levels": 255 if "int8" in path.name else MAX_LEVELS_FP16 if ten_bits else MAX_LEVELS,
            "bytes": path.stat().st_size,
        }
    return {"pictures": len(images_BHWC), "formats": formats}


def _edit(path: Path, images_BHWC: np.ndarray) -> np.ndarray:
    """The edits by this file of the pictures."""
    if path.name != "generator-float.onnx":
        return Translator(path)(images_BHWC)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    unit_BCHW = (images_BHWC.transpose(0, 3, 1, 2) / 127.5 - 1.0).astype(np.float32)
    edit_BCHW = session.run(None, {"image": unit_BCHW})[0]
    return np.clip(np.round((edit_BCHW + 1.0) * 127.5), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _git_revision() -> str:
    """The commit this code is at, '+' appended where files differ from it; 'unknown' outside a clone."""
    command = [
        "git",
        "-C",
        str(Path(__file__).resolve().parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+",
        "--exclude=*",
    ]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
