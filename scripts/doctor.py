"""What this machine has, and what a task would miss here: packages, devices, memory, disk, weights.

  zero2gan doctor                       for the default task and teacher
  zero2gan doctor preset=paper          for the paper's
  zero2gan doctor RUN                   for a run

Loads no weight and asks no network. Exit code 2 where something that the task needs is missing, with
the command that brings it.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import ROOT
from configs.schema import Config

SECTIONS = ("task", "teacher", "scorer", "segmenter")
GB = 1e9


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, examine, lambda config: {"looks at": ROOT}, argv)


def examine(config: Config) -> None:
    """Print what is there; UserError where something is missing."""
    missing = packages() + weights(config)
    for name, value in machine(config).items():
        print(f"{name}: {value}")
    for line in missing:
        print(f"MISSING {line}")
    if missing:
        raise UserError(f"{len(missing)} things are missing; the lines above say how each is had")
    print("nothing is missing")


def machine(config: Config) -> dict[str, Any]:
    """Versions, devices, memory and disk, in words."""
    import torch

    from models.devices import free_memory, pick_device

    runs = Path(config.runs_dir).resolve()
    while not runs.exists():
        runs = runs.parent
    device = pick_device(config.device)
    return {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "device": f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device,
        "CPU cores": os.cpu_count(),
        "free memory": f"{free_memory() / GB:.1f} GB",
        f"free disk for {config.runs_dir}": f"{shutil.disk_usage(runs).free / GB:.1f} GB",
    }


def packages() -> list[str]:
    """A line for each package that is not installed, or not in the version that setup.py asks for."""
    from packaging.requirements import Requirement

    lines = []
    for text in requires("zero2gan") or []:
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            lines.append(f"package {wanted}: pip install -e .")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            lines.append(f"package {wanted}, here is {found}: pip install -e .")
    return lines


def weights(config: Config) -> list[str]:
    """A line for each model of the task that is not on this machine."""
    from scripts.fetch import models_of

    lines = []
    for model in models_of(config):
        if model.place(None) is None:
            lines.append(f"weights {model.name}: zero2gan fetch with the same keys")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
