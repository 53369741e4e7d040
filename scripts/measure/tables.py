"""Tables of what was measured: means with intervals, as Markdown and CSV, and the pictures.

A table is rows by name, a row is cells by column, and a cell is what JSON has of it: {'mean': 0.4},
with an interval {'mean': 0.4, 'low': 0.3, 'high': 0.5, 'images': 96}.
"""

import csv
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from configs.files import whole_file

Cell = Mapping[str, float]
Row = Mapping[str, Cell]

RESAMPLES = 1000  # for each interval, as usual for percentiles this far out
INTERVAL = (2.5, 97.5)  # percentiles: 95 %
CSV_PARTS = {"": "mean", "_low": "low", "_high": "high"}  # end of a column's name -> part of the cell
GRID_ROWS = 12
GRID_SIDE = 192  # pixels of a picture in the grid, at most
MIN_GRID_SIDE = 96  # pixels: a name must fit above it
FONT_SIZE, LINE_HEIGHT, CHARACTER_WIDTH = 12, 15, 6.5  # pixels of the names


@dataclass(frozen=True)
class Column:
    """How a column is printed: its title, and how many digits stand after the point."""

    title: str
    digits: int


def interval(values_N: np.ndarray, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of N values (Efron 1979).

    Its ends are percentiles of the means of resamples. Equal seeds draw the same places out of equally
    many values, so that rows compare.
    """
    places = np.random.default_rng(seed).integers(len(values_N), size=(RESAMPLES, len(values_N)))
    means = np.asarray(values_N, np.float64)[places].mean(1)
    low, high = np.percentile(means, INTERVAL)
    return float(low), float(high)


def averaged(columns: Mapping[str, np.ndarray], seed: int) -> dict[str, Cell]:
    """The cell of each column over its finite values, with its interval; none of a column without any."""
    cells: dict[str, Cell] = {}
    for name, values in columns.items():
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = interval(finite, seed)
            mean = float(finite.mean())
            cells[name] = {"mean": mean, "low": low, "high": high, "images": finite.size}
    return cells


def without_interval(values: Mapping[str, float]) -> dict[str, Cell]:
    """The cells of values that are not means over images."""
    return {name: {"mean": value} for name, value in values.items()}


def markdown(titles: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A Markdown table: the titles of the columns, and the texts of each row beside its name."""
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for name, texts in rows.items():
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines)


def print_columns(rows: Mapping[str, Row], columns: Mapping[str, Column], missing: str = "") -> None:
    """Print as Markdown those columns that any row has, and the rows that have any of them.

    missing: what stands for a cell that is not there.
    """
    shown = _filled(rows, columns)
    if not shown:
        return
    texts: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row.keys() & shown.keys():
            texts[name] = []
            for key, column in shown.items():
                texts[name].append(cell_text(row.get(key), column.digits) or missing)
    titles = [column.title for column in shown.values()]
    print(f"\n{markdown(titles, texts)}")


def cell_text(cell: Cell | None, digits: int) -> str:
    """'0.400 [0.300, 0.500]', without an interval '0.400'; empty where there is no cell."""
    if cell is None:
        return ""
    text = f"{cell['mean']:.{digits}f}"
    if "low" in cell:
        text += f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    return text


def write_csv(path: Path, rows: Mapping[str, Row], columns: Mapping[str, Column]) -> None:
    """Write those columns that any row has.

    Each is COLUMN, COLUMN_low and COLUMN_high; empty where there is no cell.
    """
    written = _filled(rows, columns)
    header = ["method"]
    for column in written:
        header += [f"{column}{end}" for end in CSV_PARTS]
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        for name, row in rows.items():
            line: list[str | float] = [name]
            for column in written:
                cell = row.get(column, {})
                line += [cell.get(part, "") for part in CSV_PARTS.values()]
            writer.writerow(line)


def write_grid(path: Path, pictures: Mapping[str, np.ndarray]) -> None:
    """Write picture_grid as a PNG."""
    with whole_file(path) as stream:
        picture_grid(pictures).save(stream, "PNG")


def picture_grid(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """The figure of the paper: a row a scene, a column a method with its name above.

    pictures: RGB uint8 N x H x W x 3 by name; at most GRID_ROWS of each are shown.
    """
    rows = min(GRID_ROWS, min(len(stack) for stack in pictures.values()))
    largest = max(stack.shape[1] for stack in pictures.values())
    side = min(GRID_SIDE, max(MIN_GRID_SIDE, largest))
    names = []
    lines = 1
    for name in pictures:
        wrapped = textwrap.wrap(name, int(side / CHARACTER_WIDTH))
        names.append("\n".join(wrapped))
        lines = max(lines, len(wrapped))
    top = LINE_HEIGHT * lines + LINE_HEIGHT // 2
    grid = Image.new("RGB", (side * len(names), top + side * rows), "white")
    draw = ImageDraw.Draw(grid)
    font = ImageFont.load_default(FONT_SIZE)
    for column, stack in enumerate(pictures.values()):
        left = column * side
        middle = (left + side // 2, top // 2)
        draw.multiline_text(middle, names[column], "black", font, anchor="mm", align="center")
        for row in range(rows):
            picture = Image.fromarray(stack[row]).resize((side, side), Image.Resampling.LANCZOS)
            grid.paste(picture, (left, top + row * side))
    return grid


def _filled(rows: Mapping[str, Row], columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns that any row has."""
    filled = {}
    for name, column in columns.items():
        if any(name in row for row in rows.values()):
            filled[name] = column
    return filled
