"""Measure edits against the true edit: rendered scenes have one, photographs do not.

  python scripts/evaluate.py task=tree2winter
  python scripts/evaluate.py task=tree2winter evaluate.first_seed=2000000 evaluate.scenes=16 evaluate.amounts=[1,3] evaluate.strengths=[1,2]

Edits held-out scenes by every method (the first line) or every setting (the second, a sweep), and prints one row each: share nearer to
the target text, PSNR and LPIPS to the true edit, structure distance and LPIPS to the input, PSNR of the reconstruction. The exported
generator and the shipped one get a row where they are there. Table, JSON and a picture grid go to <run>/evaluate/<first seed>; edits that
are there are not made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry
from configs.errors import UserError
from configs.loader import find_file, pairs_dir, run_dir
from configs.schema import Config
from generate.run import generate
from generate.shards import read_pairs, write_json

SECTIONS = ("task", "teacher", "source", "inversion", "edit", "guidance", "generate", "scorer", "evaluate")
COLUMNS = {
    "accuracy": "nearer to target",
    "psnr_true": "PSNR to truth, dB",
    "lpips_true": "LPIPS to truth",
    "structure": "structure distance to input",
    "lpips_input": "LPIPS to input",
    "psnr_reconstruction": "reconstruction PSNR, dB",
    "variance": "inverted noise: variance",
    "auto_correlation": "auto-correlation",
}
SMALL = ("structure", "auto_correlation")  # printed with four digits
GRID_ROWS = 12
HELD_OUT_SEED = 2_000_000  # scenes below it may have trained the shipped generator (models/miniature/README.md)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, lambda config: print_table(evaluate(config)), plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """The rows that would be measured."""
    return {"writes to": folder(config), "scenes": config.evaluate.scenes, "rows": ", ".join(variants(config))}


def folder(config: Config) -> Path:
    """<run>/evaluate/<first seed>."""
    return run_dir(config) / "evaluate" / str(config.evaluate.first_seed)


def variants(config: Config) -> dict[str, Config]:
    """Each method at each setting asked for, as a configuration of its own, by a name that tells them apart."""
    from generate.editors import METHODS

    found = {}
    swept = config.evaluate
    amounts, scales = swept.amounts or [config.guidance.amount], swept.scales or [config.guidance.scale]
    for method, strength, scale, amount in product(swept.methods, swept.strengths or [config.direction.strength], scales, amounts):
        parts = METHODS.get(method)
        name = f"{method} scale {scale:g}"
        name += f" amount {amount:g}" if parts and parts.guided else ""
        name += f" strength {strength:g}" if parts and parts.text == "direction" else ""
        variant = replace(
            config,
            edit=replace(config.edit, method=method),
            direction=replace(config.direction, strength=strength),
            guidance=replace(config.guidance, amount=amount, scale=scale),
            source=replace(config.source, images="", first_seed=config.evaluate.first_seed),
        )
        sections = ("edit", "direction", "guidance", "source")
        same_edits = all(getattr(variant, section) == getattr(config, section) for section in sections)
        out = pairs_dir(config) if same_edits else folder(config) / name.replace(" ", "-")
        kept = same_edits or bool(parts and parts.guided)
        found[name] = replace(
            variant, generate=replace(config.generate, pairs=config.evaluate.scenes, save_reconstruction=kept, out=str(out))
        )
    return found


def evaluate(config: Config) -> dict[str, dict[str, float]]:
    """Rows by name, each a mean over the scenes by column; also written as table.json and grid.png.

    Raises UserError where the task has no true edit (no scene_truth).
    """
    from generate.directions import task_banks
    from models.clip_scorer import ClipScorer
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from scripts.metrics import nearer_to_target, perceptual_columns, psnr

    if not config.task.scene_truth:
        raise UserError(f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against")
    edits = {}
    for name, variant in variants(config).items():
        print(f"{name}:", flush=True)
        edits[name] = list(islice(read_pairs(generate(variant)), config.evaluate.scenes))
    inputs, truth = held_out_scenes(config)
    images = {name: np.stack([pair.images["edit"] for pair in found]) for name, found in edits.items()}
    images |= _by_generators(config, inputs)
    device = pick_device(config.generate.device)
    perceptual, scorer = perceptual_loss(device), ClipScorer(config.scorer, device)
    banks = task_banks(config.task, config.direction, Path(config.runs_dir) / "banks")
    images |= {"input unchanged": inputs, "true edit": truth}
    columns = perceptual_columns(perceptual, images, inputs, truth)
    rows = {}
    for name, edit in images.items():
        rows[name] = {
            "accuracy": float(nearer_to_target(scorer, edit, *banks).mean()),
            "psnr_true": float(psnr(edit, truth).mean()),
            **{column: float(values.mean()) for column, values in columns[name].items()},
        }
    reconstruction = inputs
    for name, found in edits.items():
        rows[name] |= {
            key: float(np.mean([pair.record["noise"]["inverted"][key] for pair in found])) for key in ("variance", "auto_correlation")
        }
        if "reconstruction" in found[0].images:
            reconstruction = np.stack([pair.images["reconstruction"] for pair in found])
            rows[name]["psnr_reconstruction"] = float(psnr(reconstruction, inputs).mean())
    write_json(folder(config) / "table.json", {"scenes": len(inputs), "rows": rows})
    _write_grid(folder(config) / "grid.png", [inputs, reconstruction, *(images[name] for name in images if name != "input unchanged")])
    return rows


def held_out_scenes(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and true edits of the evaluation's scenes, each RGB uint8 N x H x W x 3 at the teacher's resolution."""
    from generate.sources import open_source

    wanted = replace(config.source, images="", first_seed=config.evaluate.first_seed)
    source = open_source(wanted, config.task, config.teacher.resolution, config.evaluate.scenes)
    loaded = [source.load(index) for index in range(len(source))]
    return np.stack([item.image for item in loaded]), np.stack([true_edit(config, item.about, item.image.shape[0]) for item in loaded])


def true_edit(config: Config, about: Mapping[str, Any], side: int) -> np.ndarray:
    """The true edit of a rendered scene (`about`: its record's source), RGB uint8 side x side x 3."""
    from PIL import Image

    from models.miniature.scenes import Look, render, scene

    picture = render(scene(about["scene_seed"]), Look(**config.task.scene_truth))
    return np.asarray(picture.resize((side, side), Image.Resampling.LANCZOS))


def _by_generators(config: Config, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """The inputs edited by the run's exported generator and by the shipped one, as far as they are there, fit, and never saw them."""
    from distill.translate import Translator

    models, found = {}, {}
    if not _trained_on(config):
        models["generator"] = run_dir(config) / "export" / "generator.onnx"
    if config.distill.init and config.evaluate.first_seed >= HELD_OUT_SEED:
        models["shipped generator"] = Path(find_file(config.distill.init)).with_suffix(".onnx")
    for name, onnx in models.items():
        translator = Translator(onnx) if onnx.is_file() else None
        if translator and translator.side == inputs.shape[1]:
            found[name] = np.stack([translator(image) for image in inputs])
    return found


def _trained_on(config: Config) -> bool:
    """Whether the scenes are among those that the run's pairs, and so its generator, were made from."""
    first, training = config.evaluate.first_seed, config.source.first_seed
    return not config.source.images and first < training + config.generate.pairs and training < first + config.evaluate.scenes


def print_table(rows: dict[str, dict[str, float]]) -> None:
    """Print the rows as a Markdown table, and how much nearer to the truth each is than DDIM inversion + word swap (B)."""
    print("| | " + " | ".join(COLUMNS.values()) + " |\n|" + "---|" * (len(COLUMNS) + 1))
    for name, row in rows.items():
        cells = [f"{row[key]:.{4 if key in SMALL else 3}f}" if key in row else "" for key in COLUMNS]
        print(f"| {name} | " + " | ".join(cells) + " |")
    swap = next((row for name, row in rows.items() if name.startswith("B ")), None)
    for name, row in rows.items():
        if swap and name.startswith(("pix2pix-zero", "generator", "shipped")):
            nearer = 1 - row["lpips_true"] / swap["lpips_true"]
            print(f"{name} against word swap: {row['psnr_true'] - swap['psnr_true']:+.2f} dB, {nearer:.0%} LPIPS nearer to the truth")


def _write_grid(path: Path, columns: list[np.ndarray]) -> None:
    from PIL import Image

    rows = [np.concatenate([column[index] for column in columns], 1) for index in range(min(GRID_ROWS, len(columns[0])))]
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    raise SystemExit(main())
