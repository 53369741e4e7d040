"""Time our code beside a plain form of the same, in one run on one machine, at equal settings.

  zero2gan benchmark generate    editing: the miniature, on this machine
  zero2gan benchmark infer       one edit: the teacher, the generator, each exported file
  zero2gan benchmark filter      scoring: the miniature's networks
  zero2gan benchmark train       distill/train.py's step, at the miniature's size

The same at the real sizes, on a GPU:

  zero2gan benchmark generate benchmark.architecture=sd14 edit.steps=100 generate.dtype=float16
  zero2gan benchmark infer benchmark.architecture=sd14
  zero2gan benchmark filter benchmark.architecture=vit_h       SAM ViT-H and CLIP ViT-L-14
  zero2gan benchmark train preset=paper benchmark.side=256 distill.batch=64 \
      distill.dtype=bfloat16 distill.compile=true distill.workers=8

Prints a Markdown table: seconds and memory a pair, pairs an hour, share of the machine's own matrix
product rate, and the ratio to the plain loop (scripts/measure/plain*.py); of infer, the ratio to
the teacher and to the generator in eager float32. json=FILE writes the same, and the headline's
ratio as `ratio`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.schema import Config

SECTIONS = (
    "task",
    "teacher",
    "inversion",
    "edit",
    "guidance",
    "generate",
    "scorer",
    "segmenter",
    "filter",
    "generator",
    "augment",
    "distill",
    "benchmark",
)
ARCHITECTURES = {  # of each benchmark: the networks that it can build with random weights
    "generate": ("", "sd14"),
    "infer": ("", "sd14"),
    "filter": ("", "vit_h"),
    "train": ("",),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    name = "" if arguments[0].startswith("-") else arguments.pop(0)
    if name and name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        print(f"error: no benchmark '{name}'. There are: {known}", file=sys.stderr)
        return 2
    work = partial(benchmark, name=name)
    return entry(__doc__, SECTIONS, work, partial(plan, name=name), arguments)


def plan(config: Config, name: str) -> dict[str, Any]:
    """What --dry-run prints."""
    return {"benchmark": name}


def benchmark(config: Config, name: str) -> None:
    """Print the table; write it as JSON where json= says.

    UserError for an architecture that there is not, and for nothing to time.
    """
    architecture = config.benchmark.architecture
    if architecture not in ARCHITECTURES[name]:
        raise UserError(
            f"benchmark.architecture={architecture}: {name} takes '{ARCHITECTURES[name][-1]}', "
            "or none for what is configured"
        )
    if name in ("generate", "filter") and config.benchmark.pairs < 1:
        raise UserError(f"benchmark.pairs={config.benchmark.pairs}: {name} takes 1 or more")

    from scripts.measure.benchmark import report

    case = import_module(f"scripts.measure.case_{name}")
    report(name, case.run(config), config.json)


if __name__ == "__main__":
    raise SystemExit(main())
