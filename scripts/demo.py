"""The whole way, for real, on the embedded miniature world: what `make demo` runs. Any task, any key.

  python scripts/demo.py [task=tree2winter] [demo.scenes=8] [demo.photos=FOLDER]

Makes pairs, filters them, trains a generator, exports it, lets it and the teacher edit held-out scenes and a few real photographs, and
writes <run>/report.html. Each stage takes up what is there: a second run only writes the report anew.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from configs.cli import entry
from configs.loader import run_dir
from configs.schema import Config
from generate.shards import Pair, read_pairs, write_json

SECTIONS = ("task", "teacher", "generate", "distill", "demo")
# Of the pictures that scikit-image installs with itself, those that are photographs.
PHOTOGRAPHS = ("coffee.png", "astronaut.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "grass.png")
TIMED_CALLS = 50


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, lambda config: print(f"\nreport: {demo(config)}"), plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What the demo would make."""
    from generate import run as generate_run

    aside = {"training images": config.distill.images, "held-out scenes": config.demo.scenes, "report": run_dir(config) / "report.html"}
    return generate_run.plan(config) | aside


def demo(config: Config) -> Path:
    """Every stage in turn; returns the path of the report."""
    from distill.export import export
    from distill.train import train
    from distill.translate import Translator
    from filter.run import print_summary, score_and_select
    from generate.run import generate
    from scripts.report import write_report

    timings: dict[str, float] = {}

    def stage(name: str, work: Any, *arguments: Any) -> Any:
        print(f"\n--- {name}", flush=True)
        began = time.monotonic()
        result = work(*arguments)
        timings[name] = time.monotonic() - began
        return result

    stage("1 generate: pix2pix-zero makes pairs", generate, config)
    print_summary(stage("2 filter: CLIP gain and mask overlap", score_and_select, config))
    if config.distill.init:
        print(f"\nthe generator starts from shipped weights ({config.distill.init}); distill.init= starts from nothing")
    stage("3 distill: the generator learns the pairs", train, config)
    exported = stage("4 export: safetensors and ONNX, checked", export, config)
    translator = Translator(exported)
    scenes = stage("5 held-out scenes", edit_held_out, _scenes(config))
    photographs = stage("6 photographs", edit_held_out, _photographs(config))
    rows = [*_rows(config, translator, scenes, truth=True), *_rows(config, translator, photographs, truth=False)]
    extra: dict[str, Any] = {
        "rows": rows,
        "teacher_seconds": _teacher_seconds(_scenes(config)),
        "generator_seconds": generator_seconds(translator, scenes[0].images["input"]),
        "distances": distances(rows),
        "timings": timings,
    }
    print(
        f"\nteacher {extra['teacher_seconds']:.2f} s an image, generator {extra['generator_seconds'] * 1000:.1f} ms: "
        f"{extra['teacher_seconds'] / extra['generator_seconds']:.0f} times faster on this machine"
    )
    return write_report(config, extra)


def edit_held_out(config: Config) -> list[Pair]:
    """The teacher's edits of images it makes no training pairs of; the seconds an image took are kept beside them."""
    from generate.run import generate

    folder = Path(config.generate.out)
    began = time.monotonic()
    generate(config)
    pairs = list(read_pairs(folder))
    if not (folder / "seconds.txt").exists():
        write_json(folder / "seconds.txt", (time.monotonic() - began) / len(pairs))
    return pairs


def generator_seconds(translator: Any, image: np.ndarray) -> float:
    """Median seconds of one edit by the exported generator, one image at a time."""
    seconds = []
    for _ in range(TIMED_CALLS):
        began = time.perf_counter()
        translator(image)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def distances(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """PSNR and LPIPS to the true edit, of the teacher's edit and the generator's, over the rows that have one."""
    from models.perceptual import perceptual_loss
    from scripts.metrics import lpips_distance, psnr

    with_truth = [row["images"] for row in rows if "truth" in row["images"]]
    if not with_truth:
        return {}
    perceptual = perceptual_loss("cpu")
    stacks = {name: np.stack([images[name] for images in with_truth]) for name in ("input", "edit", "generator", "truth")}

    def to(name: str, other: str) -> dict[str, float]:
        first, second = stacks[name], stacks[other]
        return {"PSNR, dB": float(psnr(first, second).mean()), "LPIPS": float(lpips_distance(perceptual, first, second).mean())}

    return {
        "input to the truth": to("input", "truth"),
        "teacher's edit to the truth": to("edit", "truth"),
        "generator to the truth": to("generator", "truth"),
        "generator to the teacher's edit": to("generator", "edit"),
    }


def _scenes(config: Config) -> Config:
    count = config.demo.scenes
    source = replace(config.source, images="", first_seed=config.evaluate.first_seed)
    return _aside(config, source, "held-out", count)


def _photographs(config: Config) -> Config:
    folder = Path(config.demo.photos) if config.demo.photos else _sample_photographs(Path(config.runs_dir) / "photographs")
    return _aside(config, replace(config.source, images=str(folder)), "photographs", config.demo.scenes)


def _aside(config: Config, source: Any, name: str, count: int) -> Config:
    generate = replace(config.generate, pairs=count, pairs_per_shard=count, save_reconstruction=True, out=str(run_dir(config) / name))
    return replace(config, source=source, generate=generate)


def _sample_photographs(folder: Path) -> Path:
    """A folder of jpg made of the photographs that scikit-image carries."""
    from PIL import Image
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        original, copy = Path(data.__file__).parent / name, folder / f"{Path(name).stem}.jpg"
        if original.exists() and not copy.exists():
            Image.open(original).convert("RGB").save(copy, quality=95)
    return folder


def _teacher_seconds(config: Config) -> float:
    return float((Path(config.generate.out) / "seconds.txt").read_text())


def _rows(config: Config, translator: Any, pairs: Sequence[Pair], truth: bool) -> list[dict[str, Any]]:
    from scripts.evaluate import true_edit

    rows = []
    for pair in pairs:
        images = {**pair.images, "generator": translator(pair.images["input"])}
        if truth and config.task.scene_truth:
            images["truth"] = true_edit(config, pair.record["source"], pair.images["input"].shape[0])
        rows.append({"title": pair.record["caption"] if truth else pair.record["source"]["id"], "images": images})
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
