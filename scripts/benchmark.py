"""Time our code beside a plain form of the same, in one run on one machine, at equal settings.

  python scripts/benchmark.py generate                                     the miniature, on this machine
  python scripts/benchmark.py generate benchmark.architecture=sd14 edit.steps=100 generate.dtype=float16 json=FILE     on a GPU
  python scripts/benchmark.py infer [benchmark.architecture=sd14]          one edit: the teacher, the generator, each exported file
  python scripts/benchmark.py filter [benchmark.architecture=vit_h]        scoring: the miniature, or SAM ViT-H and CLIP ViT-L-14
  python scripts/benchmark.py train                                        distill/train.py's step, at the miniature's size
  python scripts/benchmark.py train preset=paper benchmark.side=256 distill.batch=64 distill.dtype=bfloat16 \
      distill.compile=true distill.workers=8 json=FILE                     on a GPU

Prints a Markdown table: seconds and memory a pair, pairs an hour, share of the machine's own matrix product rate, and the ratio to the
plain loop (scripts/measure/plain.py); of infer, the ratio to the teacher and to the generator in eager float32. json=FILE
writes the same with the headline as `ratio`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

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
    "generator",
    "augment",
    "distill",
    "benchmark",
)
BENCHMARKS = {  # where each is, and the architecture that it builds with random weights, if any
    "generate": ("benchmark_edit", "sd14"),
    "filter": ("benchmark_filter", "vit_h"),
    "train": ("benchmark_train", ""),
    "infer": ("benchmark_edit", "sd14"),
}
COLUMNS = {  # title, unit and format
    "seconds": ("seconds a pair", 1, ".4g"),
    "images_per_s": ("images a second", 1, ".1f"),
    "data_wait_share": ("waiting for data", 1, ".0%"),
    "hour": ("pairs an hour", 1, ".0f"),
    "memory": ("peak memory, GB", 1e9, ".2f"),
    "operations": ("TFLOP a pair", 1e12, ".2f"),
    "rate": ("of the matrix product rate", 1, ".0%"),
    "ratio": ("ratio", 1, ".2f"),
    "to_eager": ("to eager float32", 1, ".2f"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if name not in BENCHMARKS and not name.startswith("-"):
        print(f"error: no benchmark '{name}'. There are: {', '.join(BENCHMARKS)}", file=sys.stderr)
        return 2
    arguments = rest if name in BENCHMARKS else [name, *rest]
    return entry(
        __doc__,
        SECTIONS,
        lambda config: benchmark(config, name),
        lambda config: {"benchmark": name},
        arguments,
    )


def benchmark(config: Config, name: str) -> None:
    """Print the table; write it as JSON where json= says. UserError for an architecture that there is not, and for nothing to time."""
    for key in ("pairs", "plain_pairs", "calls", "images_at_once", "steps"):
        least = 0 if (name, key) == ("infer", "pairs") else 1
        if getattr(config.benchmark, key) < least:
            raise UserError(f"benchmark.{key}={getattr(config.benchmark, key)}: {name} takes {least} or more")
    module, known = BENCHMARKS[name]
    if config.benchmark.architecture not in ("", known):
        raise UserError(
            f"benchmark.architecture={config.benchmark.architecture}: {name} takes '{known}', or none for what is configured"
        )

    import torch

    from configs.files import write_json

    settings, device, rows, headline = getattr(import_module(f"scripts.{module}"), f"benchmark_{name}")(
        config
    )
    hardware = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads"
    )
    first = next(iter(rows.values()))["seconds"]
    for row in rows.values():
        row["ratio"] = first / row["seconds"]
    print(f"{name}: {settings}; {hardware}\n")
    shown = {row: columns | {"hour": 3600 / columns["seconds"]} for row, columns in rows.items()}
    columns = {key: column for key, column in COLUMNS.items() if any(key in row for row in shown.values())}
    print(
        "| | "
        + " | ".join(title for title, _, _ in columns.values())
        + " |\n"
        + "|---" * (len(columns) + 1)
        + "|"
    )
    for title, row in shown.items():
        cells = (
            f"{row[key] / unit:{form}}" if key in row else "" for key, (_, unit, form) in columns.items()
        )
        print(f"| {title} | " + " | ".join(cells) + " |")
    if config.json:
        found = {
            "benchmark": name,
            "device": hardware,
            "settings": settings,
            "ratio": rows[headline]["ratio"],
            "rows": rows,
        }
        write_json(Path(config.json), found)


if __name__ == "__main__":
    raise SystemExit(main())
