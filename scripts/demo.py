"""The whole way, for real, on the embedded miniature world: what `make demo` runs. Any task that renders scenes, any key.

  python scripts/demo.py [task=tree2winter] [demo.scenes=8] [demo.photos=FOLDER]

Makes pairs, filters them, trains a generator, exports it, lets it and the teacher edit held-out scenes and a few real photographs, and
writes <run>/report.html. Each stage takes up what is there: a second run only exports again and writes the report anew.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from configs.cli import entry
from configs.files import write_json
from configs.runs import run_dir
from configs.schema import Config, Source
from distill.export import export
from distill.train import train
from filter.run import print_summary, score_and_select
from generate import run as generate_run
from generate.shards import Pair, read_pairs
from generate.sources import open_source
from models.translator import Translator
from scripts.evaluate import generator_seconds
from scripts.measure.truth import true_edit
from scripts.report import write_report

SECTIONS = ("task", "teacher", "generate", "distill", "demo")
# Of the pictures that scikit-image installs with itself, those that are photographs.
PHOTOGRAPHS = ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "grass.png")
COMPARED = {
    "input to the truth": ("input", "truth"),
    "teacher's edit to the truth": ("edit", "truth"),
    "generator to the truth": ("generator", "truth"),
    "generator to the teacher's edit": ("generator", "edit"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, lambda config: print(f"\nreport: {demo(config)}"), plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What the demo would make."""
    _held_out(config)
    aside = {
        "training images": config.distill.images,
        "held-out scenes": config.demo.scenes,
        "report": run_dir(config) / "report.html",
    }
    return generate_run.plan(config) | aside


def demo(config: Config) -> Path:
    """Every stage in turn; returns the path of the report."""
    held_out, timings = _held_out(config), dict[str, float]()

    def stage(name: str, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        print(f"\n--- {name}", flush=True)
        began = time.monotonic()
        result = work(*arguments, **named)
        timings[name] = time.monotonic() - began
        return result

    stage("1 generate: pix2pix-zero makes pairs", generate_run.generate, config)
    print_summary(stage("2 filter: CLIP gain and mask overlap", score_and_select, config))
    if config.distill.init:
        print(
            f"\nthe generator starts from shipped weights ({config.distill.init}); distill.init= starts from nothing"
        )
    stage("3 distill: the generator learns the pairs", train, config)
    exported = stage("4 export: safetensors and ONNX, checked", export, config)
    translator = Translator(exported)
    shown = config.demo.photos or str(_sample_photographs(Path(config.runs_dir) / "photographs"))
    photos = replace(config.source, images=shown, prompts="")
    scenes = stage("5 held-out scenes", edit_held_out, config, "held-out", held_out)
    photographs = stage("6 photographs", edit_held_out, config, "photographs", photos)
    rows = [_row(config, translator, pair) for pair in (*scenes, *photographs)]
    teacher_s = float((run_dir(config) / "held-out" / "seconds.txt").read_text())
    generator_s = generator_seconds(translator, scenes[0].images["input"])
    times = f"teacher {teacher_s:.2f} s an image, generator {generator_s * 1000:.1f} ms"
    print(f"\n{times}: {teacher_s / generator_s:.0f} times faster on this machine")
    return write_report(config, rows, distances(rows), timings, teacher_s, generator_s)


def _held_out(config: Config) -> Source:
    """The scenes that no stage sees. UserError, now and not after the training, where the task renders none."""
    source = replace(config.source, images="", prompts="", first_seed=config.evaluate.first_seed)
    open_source(source, config.task, config.teacher.resolution, 1)
    return source


def edit_held_out(config: Config, name: str, source: Source) -> list[Pair]:
    """The teacher's edits of demo.scenes images of another source, in <run>/<name>; the seconds an image took are kept beside them."""
    folder, count = run_dir(config) / name, config.demo.scenes
    settings = replace(
        config.generate, pairs=count, pairs_per_shard=count, save_reconstruction=True, out=str(folder)
    )
    began = time.monotonic()
    generate_run.generate(replace(config, source=source, generate=settings))
    pairs = list(read_pairs(folder))
    if not (folder / "seconds.txt").exists():
        write_json(folder / "seconds.txt", (time.monotonic() - began) / len(pairs))
    return pairs


def distances(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """What is COMPARED, its mean PSNR (dB) and its mean LPIPS, over the rows that have a true edit."""
    from models.perceptual import perceptual_loss
    from scripts.measure.metrics import lpips_distance, psnr

    with_truth = [row["images"] for row in rows if "truth" in row["images"]]
    if not with_truth:
        return []
    perceptual, found = perceptual_loss("cpu"), []
    for what, names in COMPARED.items():
        stacks = [np.stack([images[name] for images in with_truth]) for name in names]
        found.append((what, float(psnr(*stacks).mean()), float(lpips_distance(perceptual, *stacks).mean())))
    return found


def _sample_photographs(folder: Path) -> Path:
    """A folder of jpg made of the photographs that scikit-image carries."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        original, copy = Path(data.__file__).parent / name, folder / f"{Path(name).stem}.jpg"
        if original.exists() and not copy.exists():
            Image.open(original).convert("RGB").save(copy, quality=95)
    return folder


def _row(config: Config, translator: Translator, pair: Pair) -> dict[str, Any]:
    """One row of the report: teacher and generator side by side, and the true edit where the image is a rendered scene."""
    source, images = pair.record["source"], {**pair.images, "generator": translator(pair.images["input"])}
    if "scene_seed" not in source:
        return {"title": source["id"], "images": images}
    if config.task.scene_truth:
        images["truth"] = true_edit(config, source, images["input"].shape[0])
    return {"title": pair.record["caption"], "images": images}


if __name__ == "__main__":
    raise SystemExit(main())
