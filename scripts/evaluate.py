"""Measure edits by the paper's metrics and, of rendered scenes, against the true edit.

  zero2gan evaluate table1 RUN, or task=tree2winter    the paper's Table 1: pix2pix-zero, others
  zero2gan evaluate table2 RUN                         its Table 2: the configurations A to E
  zero2gan evaluate figure9 task=tree2winter           its Appendix C: an unconditional model
  zero2gan evaluate RUN                                a sweep of any keys of an edit:
      'evaluate.sweep={edit.method: [pix2pix-zero, B], guidance.amount: [1, 3]}'

Edits held-out scenes, or the photographs of source.images, and prints a Markdown table, a row a
method, means with 95 % bootstrap intervals over the images. The run's exported generator and the
shipped one get a row where they are there (distilled). Table (CSV, JSON) and a picture grid go to
<run>/evaluate/<table>/<first seed>; edits that are there are not made again. docs/metrics.md says
what each column is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry, is_word
from configs.files import find_file, write_json
from configs.methods import METHODS
from configs.runs import run_dir
from configs.schema import Config, Task
from generate.run import generate, input_source
from generate.shards import read_pairs
from generate.sources import photo_key
from models.devices import pick_device
from models.translator import Translator
from scripts.measure.sweep import combinations, edit_name, with_used_values, with_values
from scripts.measure.tables import Column, averaged, print_columns, without_interval, write_csv, write_grid
from scripts.measure.timing import generator_seconds
from scripts.measure.truth import INPUT, TRUTH, held_out_scenes, trained_on, true_edit

SECTIONS = (
    "task",
    "teacher",
    "source",
    "direction",
    "inversion",
    "edit",
    "guidance",
    "generate",
    "scorer",
    "segmenter",
    "evaluate",
)
COLUMNS = {
    "accuracy": Column("CLIP-Acc", 3),
    "structure": Column("Structure-Dist", 4),
    "background": Column("BG-LPIPS", 3),
    "psnr_true": Column("PSNR to truth, dB", 2),
    "lpips_true": Column("LPIPS to truth", 3),
    "iou_true": Column("mask IoU with truth", 3),
    "mask_found": Column("mask found", 3),
    "difference": Column("LPIPS to truth minus the first pix2pix-zero's", 3),
    "psnr_teacher": Column("PSNR to teacher's edit, dB", 2),
    "lpips_teacher": Column("LPIPS to teacher's edit", 3),
    "fid": Column("FID to teacher's edits", 3),
    "kid": Column("KID to teacher's edits", 4),
    "sharpness_true": Column("sharpness / truth's", 3),
    "fid_true": Column("FID to truth", 2),
    "kid_true": Column("KID to truth", 4),
    "sharpness_teacher": Column("sharpness / teacher's", 3),
    "seconds": Column("seconds an image", 4),
    "lpips_input": Column("LPIPS to input", 3),
    "psnr_reconstruction": Column("reconstruction PSNR, dB", 2),
    "variance": Column("inverted noise: variance", 3),
    "auto_correlation": Column("auto-correlation", 4),
    "difference_plain": Column("LPIPS to truth minus DDIM inversion's", 3),
    "clipped": Column("values cut off", 4),
    "sharpness_input": Column("sharpness / input's", 3),
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
TRUE_SETS = ("sharpness_true", "fid_true", "kid_true")  # of all edits beside all true ones
DISTILLED = ("psnr_teacher", "lpips_teacher", "fid", "kid", "sharpness_teacher", "seconds")
SWEEP = (
    "accuracy",
    "psnr_true",
    "lpips_true",
    "difference",
    "mask_found",
    "structure",
    "lpips_input",
    "psnr_reconstruction",
    "variance",
    "auto_correlation",
)
FIGURE9 = (
    "accuracy",
    "psnr_true",
    "lpips_true",
    "difference_plain",
    "lpips_input",
    "psnr_reconstruction",
)
ARTEFACTS = (
    "clipped",
    "sharpness_true",
    "sharpness_input",
    "fid_true",
    "kid_true",
    "variance",
    "auto_correlation",
)
TABLES = {  # the columns that are printed, in one Markdown table or in several
    "table1": (PAPER, TRUE_SETS, DISTILLED),
    "table2": (PAPER, TRUE_SETS, DISTILLED),
    "sweep": (SWEEP, TRUE_SETS),
    "figure9": (FIGURE9, ARTEFACTS),
}
PAPER_ROWS = {  # of the two tables: row -> edit.method
    "table1": {
        "B: DDIM + swap": "B",
        "prompt-to-prompt + swap": "prompt-to-prompt",
        "pix2pix-zero (E: D + guidance)": "pix2pix-zero",
    },
    "table2": {
        "A: random noise + swap": "A",
        "B: DDIM + swap": "B",
        "C: B + regularisation": "C",
        "D: C + sentence direction": "D",
        "pix2pix-zero (E: D + guidance)": "pix2pix-zero",
    },
}
SDEDIT_STRENGTHS = (0.5, 0.6, 0.7, 0.8)  # table1 has a row for each: none is chosen for it
NOISE = ("variance", "auto_correlation")  # of the inverted noise, as a pair's record has them
DISTILLED_ROWS = ("distilled", "distilled, shipped")
# Scenes below it may have trained the shipped generator (models/miniature/README.md).
HELD_OUT_SEED = 2_000_000


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    table = "sweep"
    if is_word(arguments):
        table = arguments.pop(0)
    if table not in TABLES:
        print(f"error: no table '{table}'. There are: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    work = partial(evaluate_and_print, table=table)
    return entry(__doc__, SECTIONS, work, partial(plan, table=table), arguments)


def evaluate_and_print(config: Config, table: str) -> None:
    """Measure, write and print one of TABLES."""
    result = evaluate_figure9(config) if table == "figure9" else evaluate(config, table)
    print_tables(result, table)


def plan(config: Config, table: str) -> dict[str, Any]:
    """What --dry-run prints."""
    if table == "figure9":
        from scripts.measure.figure9 import rows as inversions

        return {
            "writes to": folder(config, table),
            "images": config.evaluate.scenes,
            "rows": ", ".join(inversions(config)),
        }
    rows = variants(config, table)
    return {
        "writes to": folder(config, table),
        "images": len(input_source(next(iter(rows.values())), retrieve=False).names),
        "rows": ", ".join(rows),
    }


def folder(config: Config, table: str = "") -> Path:
    """Where a table lies; without a table, where the edits lie that all tables share.

    <run>/evaluate/<table>/<images> and <run>/evaluate/<images>. <images> is the first seed of the
    scenes, or of photographs their folder's name with a hash of its path.
    """
    images = str(config.evaluate.first_seed)
    if config.source.images:
        images = photo_key(config.source.images)
    return run_dir(config) / "evaluate" / table / images


# ---- the rows ----


def variants(config: Config, table: str) -> dict[str, Config]:
    """The rows whose edits a teacher makes: name -> the configuration that makes them.

    UserError for a sweep of a key that there is not, or of a value that it does not take.
    """
    rows = {}
    if table == "sweep":
        for values in combinations(config.evaluate.sweep):
            variant = with_used_values(config, values)
            name = edit_name(variant, list(values))
            # Combinations that differ in nothing that the method uses have one name: they are one row.
            rows[name] = _of_held_out(variant, name)
    else:
        for label, values in _paper_rows(config, table).items():
            variant = with_values(config, values)
            rows[label] = _of_held_out(variant, edit_name(variant, list(values)))
    return rows


def _paper_rows(config: Config, table: str) -> dict[str, dict[str, Any]]:
    """Name -> values of keys. The paper's methods have neither edit.keep nor guidance.self_attention; a
    last row has what is configured.
    """
    rows: dict[str, dict[str, Any]] = {}
    if table == "table1":
        for strength in SDEDIT_STRENGTHS:
            rows[f"SDEdit {strength:g}"] = {"edit.method": "sdedit", "edit.strength": strength}
    for label, method in PAPER_ROWS[table].items():
        rows[label] = {"edit.method": method}
    for values in rows.values():
        values["edit.keep"] = 0.0
        if METHODS[values["edit.method"]].guided:
            values["guidance.self_attention"] = 0.0
    if config.edit.keep or config.guidance.self_attention:
        rows["pix2pix-zero as configured here"] = {"edit.method": "pix2pix-zero"}
    return rows


def _of_held_out(config: Config, name: str) -> Config:
    """The configuration that makes a row's edits of the held-out images, in a folder of their own."""
    generate_settings = replace(
        config.generate,
        pairs=config.evaluate.scenes,
        save_reconstruction=METHODS[config.edit.method].guided,
        out=str(folder(config) / re.sub(r"[^\w.-]", "-", name)),
    )
    source = config.source if config.source.images else held_out_scenes(config)
    return replace(config, source=source, generate=generate_settings)


# ---- making and measuring the edits ----


@dataclass
class Edits:
    """What each row's method made of the same N images.

    inputs_NHWC, keys and records ('source' of the pairs' records): of the images. images: row ->
    RGB uint8 N x H x W x 3. columns: row -> column -> N values, of what the pairs' records say.
    """

    inputs_NHWC: np.ndarray
    keys: set[str]
    records: list[dict[str, Any]]
    images: dict[str, np.ndarray]
    columns: dict[str, dict[str, np.ndarray]]


def evaluate(config: Config, table: str) -> dict[str, Any]:
    """Make the edits, measure them and write the table; returns table.json's content.

    'images' is their number, 'measured_by' names the networks, and 'rows' is a table of
    scripts/measure/tables.py. table.csv has the same rows, grid.png the pictures. UserError where
    weights are missing, before any edit is made.
    """
    from models.pictures import edit_of, resized
    from scripts.measure.judges import Judges

    rows = variants(config, table)
    judges = Judges(config, pick_device(config.device), masks=table != "sweep" or not config.source.images)
    edits = make_edits(rows, config.evaluate.scenes)
    guided = [name for name, row in rows.items() if row.edit.method == "pix2pix-zero"]
    teacher = guided[0] if guided else ""
    translators = generators(config, edits.keys, edits.inputs_NHWC.shape[1])

    images = dict(edits.images)
    for name, translator in translators.items():
        images[name] = np.stack([edit_of(translator, image_HWC) for image_HWC in edits.inputs_NHWC])
    images[INPUT] = edits.inputs_NHWC
    if config.task.scene_truth and all("scene_seed" in record for record in edits.records):
        side = edits.inputs_NHWC.shape[1]
        images[TRUTH] = np.stack([true_edit(config, record, side) for record in edits.records])

    cells = {}
    columns = judges.columns(images, edits.records, folder(config))
    for name in images:
        values = edits.columns.get(name, {}) | columns[name]
        sharpness = values.pop("sharpness")
        if TRUTH in images:
            values["sharpness_true"] = sharpness / columns[TRUTH]["sharpness"].mean()
        if teacher and name != teacher and "lpips_true" in values:
            values["difference"] = values["lpips_true"] - columns[teacher]["lpips_true"]
        cells[name] = averaged(values, config.seed)
        if TRUTH in images:
            of_sets = judges.set_network.distances(images[name], images[TRUTH])
            cells[name] |= without_interval({f"{key}_true": value for key, value in of_sets.items()})
    for name, translator in translators.items():
        if teacher:  # the last: with edit.keep where it is configured, as the generator's pairs are
            of_images, of_sets = judges.against_teacher(images[name], images[guided[-1]])
            cells[name] |= averaged(of_images, config.seed) | without_interval(of_sets)
        seconds = generator_seconds(translator, resized(edits.inputs_NHWC[0], translator.side))
        cells[name] |= without_interval({"seconds": seconds})

    result = {"images": len(edits.inputs_NHWC), "measured_by": judges.measured_by, "rows": cells}
    _write(folder(config, table), result, images)
    return result


def evaluate_figure9(config: Config) -> dict[str, Any]:
    """Edit with an unconditional model, measure and write the table; returns table.json's content."""
    from scripts.measure.figure9 import evaluate_unconditional

    result, pictures = evaluate_unconditional(config)
    _write(folder(config, "figure9"), result, pictures)
    return result


def make_edits(rows: Mapping[str, Config], scenes: int) -> Edits:
    """The edits of each row, of the first `scenes` images; those that are there are read."""
    from scripts.measure.metrics import psnr

    images = {}
    columns: dict[str, dict[str, np.ndarray]] = {}
    for name, config in rows.items():
        print(f"{name}:", flush=True)
        pairs = list(islice(read_pairs(generate(config)), scenes))
        inputs_NHWC = np.stack([pair.images["input"] for pair in pairs])
        images[name] = np.stack([pair.images["edit"] for pair in pairs])
        columns[name] = {}
        for key in NOISE:
            columns[name][key] = np.array([pair.record["noise"]["inverted"][key] for pair in pairs])
        if all("reconstruction" in pair.images for pair in pairs):
            reconstructions = np.stack([pair.images["reconstruction"] for pair in pairs])
            columns[name]["psnr_reconstruction"] = psnr(reconstructions, inputs_NHWC)
    # The inputs are the same in every row.
    keys = {pair.key for pair in pairs}
    records = [pair.record["source"] for pair in pairs]
    return Edits(inputs_NHWC, keys, records, images, columns)


def generators(config: Config, keys: Set[str], side: int) -> dict[str, Translator]:
    """The run's exported generator and the shipped one, by the names of their rows.

    Each is left out where it is not there, and where it may have seen the images of these keys in
    training. The name of one whose pictures have another side than these says so.
    """
    own, shipped = DISTILLED_ROWS
    files = {own: run_dir(config) / "export" / "generator.onnx"}
    if files[own].is_file() and trained_on(config, keys):
        print(f"{files[own]} learned from some of these images: it gets no row")
        del files[own]
    if config.distill.init and (config.source.images or config.evaluate.first_seed >= HELD_OUT_SEED):
        file = Path(find_file(config.distill.init)).with_suffix(".onnx")
        if is_of_task(file, config.task):
            files[shipped] = file
    translators = {}
    for name, file in files.items():
        if file.is_file():
            translator = Translator(file)
            if translator.side != side:
                name = f"{name} ({translator.side} of {side} pixels)"
            translators[name] = translator
    return translators


def is_of_task(file: Path, task: Task) -> bool:
    """Whether an exported generator.onnx makes this task's edit: another may start from it all the same."""
    import onnx

    if not file.is_file():
        return False
    described = {item.key: item.value for item in onnx.load(file).metadata_props}
    return (described.get("source"), described.get("target")) == (task.source, task.target)


# ---- the tables ----


def print_tables(result: Mapping[str, Any], table: str) -> None:
    """Print the columns of a table as one Markdown table or several, and what measured them."""
    for names in TABLES[table]:
        print_columns(result["rows"], {name: COLUMNS[name] for name in names})
    networks = [f"{title}: {network}" for title, network in result["measured_by"].items()]
    print(f"\n{result['images']} images, means [95 % bootstrap interval]. {'; '.join(networks)}.")


def _write(where: Path, result: Mapping[str, Any], images: Mapping[str, np.ndarray]) -> None:
    """Write table.json, table.csv and grid.png."""
    where.mkdir(parents=True, exist_ok=True)
    write_json(where / "table.json", result)
    write_csv(where / "table.csv", result["rows"], COLUMNS)
    pictures = {"input": images[INPUT], **images}  # the inputs come first, under a shorter name
    del pictures[INPUT]
    write_grid(where / "grid.png", pictures)
    print(f"table and grid: {where}")


if __name__ == "__main__":
    raise SystemExit(main())
