"""The harness of scripts/benchmark.py: what every case gives, and the one table that is made of it.

A case is scripts/measure/case_NAME.py with run(config) -> Result. It times our code and its
baseline in one process.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from configs.files import write_json
from scripts.measure.tables import markdown


@dataclass(frozen=True)
class Result:
    """What a case measured.

    settings: what was timed, in words. rows: by name, values of COLUMNS, 'seconds' always; ratios
    are to the first row. headline: the row whose ratio is the result.
    """

    settings: str
    device: torch.device
    rows: dict[str, dict[str, float]]
    headline: str


@dataclass(frozen=True)
class Column:
    """How a column is printed: title, the unit that values are divided by, and their format."""

    title: str
    unit: float
    format: str


COLUMNS = {
    "seconds": Column("seconds a pair", 1, ".4g"),
    "images_per_s": Column("images a second", 1, ".1f"),
    "data_wait_share": Column("waiting for data", 1, ".0%"),
    "hour": Column("pairs an hour", 1, ".0f"),
    "memory": Column("peak memory, GB", 1e9, ".2f"),
    "operations": Column("TFLOP a pair", 1e12, ".2f"),
    "rate": Column("of the matrix product rate", 1, ".0%"),
    "ratio": Column("ratio", 1, ".2f"),
    "to_eager": Column("to eager float32", 1, ".2f"),
}


def report(name: str, result: Result, path: str) -> None:
    """Print a case's result as a Markdown table with its ratios; with a path write it as JSON."""
    rows = with_ratios(result.rows)
    hardware = hardware_name(result.device)
    print(f"{name}: {result.settings}; {hardware}\n")
    print(table(rows))
    if path:
        content = {
            "benchmark": name,
            "device": hardware,
            "settings": result.settings,
            "ratio": rows[result.headline]["ratio"],
            "rows": rows,
        }
        write_json(Path(path), content)


def with_ratios(rows: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """The rows, each with 'ratio': how many times faster it is than the first."""
    first_seconds = next(iter(rows.values()))["seconds"]
    return {name: row | {"ratio": first_seconds / row["seconds"]} for name, row in rows.items()}


def table(rows: dict[str, dict[str, float]]) -> str:
    """The rows as Markdown, with those of COLUMNS that any of them has, and pairs an hour."""
    filled = {name: row | {"hour": 3600 / row["seconds"]} for name, row in rows.items()}
    columns = {}
    for key, column in COLUMNS.items():
        if any(key in row for row in filled.values()):
            columns[key] = column
    texts = {}
    for name, row in filled.items():
        texts[name] = [_text(row.get(key), column) for key, column in columns.items()]
    return markdown([column.title for column in columns.values()], texts)


def hardware_name(device: torch.device) -> str:
    """The GPU's name, or how many threads of the CPU are used."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"CPU, {torch.get_num_threads()} threads"


def _text(value: float | None, column: Column) -> str:
    return "" if value is None else format(value / column.unit, column.format)
