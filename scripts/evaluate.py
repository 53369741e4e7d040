"""Measure edits by the paper's metrics and, where there is one, against the true edit: rendered scenes have one, photographs do not.

  python scripts/evaluate.py table1 task=tree2winter     the paper's Table 1: SDEdit, DDIM + word swap, prompt-to-prompt, pix2pix-zero
  python scripts/evaluate.py table2 task=tree2winter     its Table 2: the configurations A to E
  python scripts/evaluate.py task=tree2winter evaluate.scenes=16 evaluate.methods=[pix2pix-zero,B] evaluate.amounts=[1,3]       a sweep

Edits held-out scenes, or the photographs of source.images, and prints a Markdown table, a row a method, means with 95 % bootstrap intervals
over the images. The run's exported generator and the shipped one get a row where they are there (distilled). Table (CSV, JSON) and a
picture grid go to <run>/evaluate/<table>/<first seed>; edits that are there are not made again. docs/metrics.md says what each column is.
"""

import csv
import statistics
import sys
import textwrap
import timeit
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from configs.cli import entry
from configs.errors import UserError
from configs.files import find_file, write_json
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from generate.run import generate
from generate.shards import is_finished, read_manifest, read_pairs
from generate.sources import photo_key
from models.devices import pick_device
from models.translator import Translator
from scripts.measure.truth import true_edit

SECTIONS = (
    "task",
    "teacher",
    "source",
    "inversion",
    "edit",
    "guidance",
    "generate",
    "scorer",
    "segmenter",
    "evaluate",
)
COLUMNS = {  # title and digits after the point
    "accuracy": ("CLIP-Acc", 3),
    "structure": ("Structure-Dist", 4),
    "background": ("BG-LPIPS", 3),
    "psnr_true": ("PSNR to truth, dB", 2),
    "lpips_true": ("LPIPS to truth", 3),
    "iou_true": ("mask IoU with truth", 3),
    "mask_found": ("mask found", 3),
    "difference": ("LPIPS to truth minus pix2pix-zero's", 3),
    "psnr_teacher": ("PSNR to teacher's edit, dB", 2),
    "lpips_teacher": ("LPIPS to teacher's edit", 3),
    "fid": ("FID to teacher's edits", 3),
    "kid": ("KID to teacher's edits", 4),
    "seconds": ("seconds an image", 4),
    "lpips_input": ("LPIPS to input", 3),
    "psnr_reconstruction": ("reconstruction PSNR, dB", 2),
    "variance": ("inverted noise: variance", 3),
    "auto_correlation": ("auto-correlation", 4),
}
PAPER = (
    "accuracy",
    "structure",
    "background",
    "psnr_true",
    "lpips_true",
    "iou_true",
    "mask_found",
    "difference",
)
DISTILLED = ("psnr_teacher", "lpips_teacher", "fid", "kid", "seconds")
INVERSION = (
    "accuracy",
    "psnr_true",
    "lpips_true",
    "structure",
    "lpips_input",
    "psnr_reconstruction",
    "variance",
    "auto_correlation",
)
TABLES = {
    "table1": (PAPER, DISTILLED),
    "table2": (PAPER, DISTILLED),
    "sweep": (INVERSION,),
}  # what is printed of each
METHODS_OF = {
    "table1": ("B", "prompt-to-prompt", "pix2pix-zero"),
    "table2": ("A", "B", "C", "D", "pix2pix-zero"),
}
LABELS = {  # of the two tables' rows; {:g}: edit.strength
    "sdedit": "SDEdit {:g}",
    "A": "A: random noise + swap",
    "B": "B: DDIM + swap",
    "C": "C: B + regularisation",
    "D": "D: C + sentence direction",
    "prompt-to-prompt": "prompt-to-prompt + swap",
    "pix2pix-zero": "pix2pix-zero (E: D + guidance)",
}
NOISE = ("variance", "auto_correlation")
GRID_ROWS = 12
GRID_SIDE = 192  # px of a picture in the grid, at most
MIN_GRID_SIDE = 96  # px: a name must fit above it
FONT_SIZE, LINE_HEIGHT, CHARACTER_WIDTH = 12, 15, 6.5  # px of the names
TIMED_CALLS = 50
HELD_OUT_SEED = (
    2_000_000  # scenes below it may have trained the shipped generator (models/miniature/README.md)
)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    table = arguments.pop(0) if arguments and arguments[0].isalnum() else "sweep"
    if table not in TABLES:
        print(f"error: no table '{table}'. There are: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    plan = partial(_plan, table=table)
    return entry(
        __doc__, SECTIONS, lambda config: print_tables(evaluate(config, table), table), plan, arguments
    )


def _plan(config: Config, table: str) -> dict[str, Any]:
    return {
        "writes to": folder(config, table),
        "images": config.evaluate.scenes,
        "rows": ", ".join(variants(config, table)),
    }


def folder(config: Config, table: str = "") -> Path:
    """<run>/evaluate/<table>/<first seed>, of photographs <run>/evaluate/<table>/<their folder's name and a hash of its path>; without a
    table that of the edits, which all share.
    """
    images = photo_key(config.source.images) if config.source.images else str(config.evaluate.first_seed)
    return run_dir(config) / "evaluate" / table / images


def variants(config: Config, table: str) -> dict[str, Config]:
    """Each row's method at its setting, as a configuration of its own that says where its edits lie, by the row's name."""
    from generate.editors import METHODS

    swept = config.evaluate
    strengths, scales, amounts = (
        [config.direction.strength],
        [config.guidance.scale],
        [config.guidance.amount],
    )
    edits = [replace(config.edit, method=method) for method in METHODS_OF.get(table, swept.methods)]
    if table == "sweep":
        strengths, scales, amounts = (
            swept.strengths or strengths,
            swept.scales or scales,
            swept.amounts or amounts,
        )
    if table == "table1":
        edits = [
            replace(config.edit, method="sdedit", strength=part) for part in swept.sdedit_strengths
        ] + edits
    source = (
        config.source
        if config.source.images
        else replace(config.source, prompts="", first_seed=swept.first_seed)
    )
    rows = {}
    for edit, strength, scale, amount in product(edits, strengths, scales, amounts):
        parts = METHODS.get(edit.method, METHODS["B"])  # the editor refuses an unknown one
        name = f"{edit.method} scale {scale:g}"
        name += f" part {edit.strength:g}" if parts.noise == "partial" else ""
        name += f" amount {amount:g}" if parts.guided else ""
        name += f" strength {strength:g}" if parts.text == "direction" else ""
        out = str(folder(config) / name.replace(" ", "-"))
        rows[name if table == "sweep" else LABELS[edit.method].format(edit.strength)] = replace(
            config,
            edit=edit,
            direction=replace(config.direction, strength=strength),
            guidance=replace(config.guidance, amount=amount, scale=scale),
            source=source,
            generate=replace(config.generate, pairs=swept.scenes, save_reconstruction=parts.guided, out=out),
        )
    return rows


def evaluate(config: Config, table: str) -> dict[str, Any]:
    """'images' (their number), 'measured_by', and 'rows': name -> column -> {'mean'; 'low', 'high', 'images' where it is one over images}.

    Also written as table.json, table.csv and grid.png. UserError where weights are missing, before any edit is made.
    """
    from scripts.measure.judges import Judges
    from scripts.measure.metrics import psnr

    wanted = variants(config, table)
    if not wanted:
        raise UserError("evaluate.methods is empty: name the methods to sweep")
    judges = Judges(config, pick_device(config.device), masks=table != "sweep")
    images: dict[str, np.ndarray] = {}
    rows: dict[str, dict[str, np.ndarray]] = {}
    for name, variant in wanted.items():
        print(f"{name}:", flush=True)
        pairs = list(islice(read_pairs(generate(variant)), config.evaluate.scenes))
        inputs, images[name] = (np.stack([pair.images[kind] for pair in pairs]) for kind in ("input", "edit"))
        rows[name] = {
            key: np.array([pair.record["noise"]["inverted"][key] for pair in pairs]) for key in NOISE
        }
        if all("reconstruction" in pair.images for pair in pairs):
            rows[name]["psnr_reconstruction"] = psnr(
                np.stack([pair.images["reconstruction"] for pair in pairs]), inputs
            )
    records, side = (
        [pair.record["source"] for pair in pairs],
        inputs.shape[1],
    )  # of the same images in every row
    translators = generators(config, {pair.key for pair in pairs}, side)
    images |= {
        name: np.stack([translator(image) for image in inputs]) for name, translator in translators.items()
    }
    images["input unchanged"] = inputs
    if config.task.scene_truth and all("scene_seed" in record for record in records):
        images["true edit"] = np.stack([true_edit(config, record, side) for record in records])
    for name, columns in judges.columns(images, records, folder(config)).items():
        rows[name] = rows.get(name, {}) | columns
    teacher = next((name for name, variant in wanted.items() if variant.edit.method == "pix2pix-zero"), None)
    for name, row in rows.items():
        if teacher and name != teacher and "lpips_true" in row:
            row["difference"] = row["lpips_true"] - rows[teacher]["lpips_true"]
    summary = {name: averaged(config, row) for name, row in rows.items()}
    for name, translator in translators.items():
        if teacher:
            of_images, of_sets = judges.against_teacher(images[name], images[teacher])
            summary[name] |= averaged(config, of_images) | {
                column: {"mean": value} for column, value in of_sets.items()
            }
        summary[name]["seconds"] = {"mean": generator_seconds(translator, inputs[0])}
    found = {"images": len(inputs), "measured_by": judges.measured_by, "rows": summary}
    _write(folder(config, table), found, {"input": images.pop("input unchanged"), **images})
    return found


def averaged(config: Config, row: Mapping[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean and interval of each column over its finite values; a column without any is left out."""
    from scripts.measure.metrics import interval

    cells = {}
    for column, values in row.items():
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = interval(finite, config.evaluate.bootstrap, config.seed)
            cells[column] = {"mean": float(finite.mean()), "low": low, "high": high, "images": finite.size}
    return cells


def generators(config: Config, keys: Set[str], side: int) -> dict[str, Translator]:
    """The run's exported generator and the shipped one by name, as far as they are there, fit, and never saw the images of these keys."""
    files = {"distilled": run_dir(config) / "export" / "generator.onnx"}
    if files["distilled"].is_file() and trained_on(config, keys):
        print(f"{files['distilled']} learned from some of these images: it gets no row")
        del files["distilled"]
    if config.distill.init and (config.source.images or config.evaluate.first_seed >= HELD_OUT_SEED):
        files["distilled, shipped"] = Path(find_file(config.distill.init)).with_suffix(".onnx")
    translators = {name: Translator(onnx) for name, onnx in files.items() if onnx.is_file()}
    return {name: translator for name, translator in translators.items() if translator.side == side}


def generator_seconds(translator: Translator, image: np.ndarray) -> float:
    """Median seconds of one edit by the exported generator, one image at a time."""
    return statistics.median(timeit.repeat(lambda: translator(image), number=1, repeat=TIMED_CALLS))


def trained_on(config: Config, keys: Set[str]) -> bool:
    """Whether any of the images is an input of the run's pairs, which its generator was made from."""
    shards = filter(is_finished, pairs_dir(config).glob("[0-9]*.tar"))
    return any(not keys.isdisjoint(read_manifest(shard)["keys"]) for shard in shards)


def print_tables(found: Mapping[str, Any], table: str) -> None:
    """Print the table's columns as Markdown, those of the generators as a table of their own, and what measured them."""
    for columns in TABLES[table]:
        print_columns(found["rows"], {column: COLUMNS[column] for column in columns})
    about = "; ".join(f"{title}: {what}" for title, what in found["measured_by"].items())
    print(f"\n{found['images']} images, means [95 % bootstrap interval]. {about}.")


def print_columns(
    rows: Mapping[str, Mapping[str, Any]], columns: Mapping[str, tuple[str, int]], missing: str = ""
) -> None:
    """Print those of the columns (title, digits) that any row has, and the rows that have any of them, as a Markdown table."""
    shown = {
        column: about for column, about in columns.items() if any(column in row for row in rows.values())
    }
    if shown:
        print(
            "\n| | " + " | ".join(title for title, _ in shown.values()) + " |\n|" + "---|" * (len(shown) + 1)
        )
    for name, row in rows.items():
        if any(column in row for column in shown):
            cells = (_cell(row.get(column), digits) or missing for column, (_, digits) in shown.items())
            print(f"| {name} | " + " | ".join(cells) + " |")


def _cell(value: Mapping[str, float] | None, digits: int) -> str:
    if value is None:
        return ""
    around = f" [{value['low']:.{digits}f}, {value['high']:.{digits}f}]" if "low" in value else ""
    return f"{value['mean']:.{digits}f}{around}"


def _write(where: Path, found: Mapping[str, Any], pictures: Mapping[str, np.ndarray]) -> None:
    where.mkdir(parents=True, exist_ok=True)
    write_json(where / "table.json", found)
    measured = [column for column in COLUMNS if any(column in row for row in found["rows"].values())]
    with open(where / "table.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(
            ["method", *(f"{column}{part}" for column in measured for part in ("", "_low", "_high"))]
        )
        for name, row in found["rows"].items():
            cells = [
                row.get(column, {}).get(part, "") for column in measured for part in ("mean", "low", "high")
            ]
            writer.writerow([name, *cells])
    picture_grid(pictures).save(where / "grid.png")
    print(f"table and grid: {where}")


def picture_grid(pictures: Mapping[str, np.ndarray]) -> Image.Image:
    """As the paper's figures: a row a scene, a column a method with its name above."""
    count = min(GRID_ROWS, *(len(stack) for stack in pictures.values()))
    side = min(GRID_SIDE, max(MIN_GRID_SIDE, *(stack.shape[1] for stack in pictures.values())))
    titles = [textwrap.fill(name, int(side / CHARACTER_WIDTH)) for name in pictures]
    top = LINE_HEIGHT * max(title.count("\n") + 1 for title in titles) + LINE_HEIGHT // 2
    grid = Image.new("RGB", (side * len(titles), top + side * count), "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(FONT_SIZE)
    for column, (title, stack) in enumerate(zip(titles, pictures.values(), strict=True)):
        draw.multiline_text(
            (column * side + side // 2, top // 2), title, "black", font, anchor="mm", align="center"
        )
        for row, image in enumerate(stack[:count]):
            grid.paste(
                Image.fromarray(image).resize((side, side), Image.Resampling.LANCZOS),
                (column * side, top + row * side),
            )
    return grid


if __name__ == "__main__":
    raise SystemExit(main())
