"""The whole way, for real, on the embedded miniature world: what `make demo` runs. Any task that
renders scenes, any key.

  zero2gan demo [task=tree2winter] [demo.scenes=8] [demo.photos=FOLDER]

Makes pairs, filters them, trains a generator, exports it, lets it and the teacher edit held-out
scenes and a few real photographs, and writes <run>/report.html. Each stage takes up what is there:
a second run only exports again and writes the report anew.
"""

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
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
from scripts.measure.timing import generator_seconds
from scripts.measure.truth import held_out_scenes, true_edit
from scripts.report import write_report

SECTIONS = ("task", "teacher", "generate", "distill", "demo")
# Of the pictures that scikit-image installs with itself, those that are photographs.
PHOTOGRAPHS = (
    "coffee.png",
    "astronaut.png",
    "chelsea.png",
    "rocket.jpg",
    "motorcycle_left.png",
    "grass.png",
)
JPEG_QUALITY = 95
COMPARISONS = {  # of the report: what it is called -> the image, and what it is compared with
    "input to the truth": ("input", "truth"),
    "teacher's edit to the truth": ("edit", "truth"),
    "generator to the truth": ("generator", "truth"),
    "generator to the teacher's edit": ("generator", "edit"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, demo, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What the demo would make."""
    check_scenes(config)
    return generate_run.plan(config) | {
        "training images": config.distill.images,
        "held-out scenes": config.demo.scenes,
        "report": run_dir(config) / "report.html",
    }


def demo(config: Config) -> None:
    """Run every stage in turn, write the report and print where it is."""
    from models.pictures import resized

    check_scenes(config)
    timings: dict[str, float] = {}
    with stage("1 generate: pix2pix-zero makes pairs", timings):
        generate_run.generate(config, remembered=True)
    with stage("2 filter: CLIP gain and mask overlap", timings):
        outcome = score_and_select(config)
    print_summary(outcome)
    with stage("3 distill: the generator learns the pairs", timings):
        train(config)
    with stage("4 export: safetensors and ONNX, checked", timings):
        exported = export(config)
    translator = Translator(exported)
    with stage("5 held-out scenes", timings):
        scenes = edit_held_out(config, "held-out", held_out_scenes(config))
    folder = config.demo.photos or str(sample_photographs(Path(config.runs_dir) / "photographs"))
    with stage("6 photographs", timings):
        given = config.source
        photographs = Source(images=folder, caption=given.caption, captioner=given.captioner)
        photos = edit_held_out(config, "photographs", photographs)

    rows = [report_row(config, translator, pair) for pair in (*scenes, *photos)]
    teacher_s = json.loads((run_dir(config) / "held-out" / "seconds.txt").read_text())
    generator_s = generator_seconds(translator, resized(scenes[0].images["input"], translator.side))
    print(
        f"\nteacher {teacher_s:.2f} s an image, generator {generator_s * 1000:.1f} ms: "
        f"{teacher_s / generator_s:.0f} times faster on this machine"
    )
    report = write_report(config, rows, distances(rows), timings, teacher_s, generator_s)
    print(f"\nreport: {report}")


@contextlib.contextmanager
def stage(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Print the name of a stage, and add the seconds that it takes to `timings`."""
    print(f"\n--- {name}", flush=True)
    began = time.monotonic()
    yield
    timings[name] = time.monotonic() - began


def check_scenes(config: Config) -> None:
    """UserError where the task renders no scenes to hold out: now, and not after the training."""
    open_source(held_out_scenes(config), config.task, config.teacher.resolution, 1)


def edit_held_out(config: Config, name: str, source: Source) -> list[Pair]:
    """The teacher's edits of demo.scenes images of another source, in <run>/<name>.

    seconds.txt there says how long an image took, when they were made.
    """
    folder = run_dir(config) / name
    count = config.demo.scenes
    settings = replace(
        config.generate, pairs=count, pairs_per_shard=count, save_reconstruction=True, out=str(folder)
    )
    began = time.monotonic()
    generate_run.generate(replace(config, source=source, generate=settings))
    pairs = list(read_pairs(folder))
    if not (folder / "seconds.txt").exists():
        write_json(folder / "seconds.txt", (time.monotonic() - began) / len(pairs))
    return pairs


def sample_photographs(folder: Path) -> Path:
    """The folder, with the photographs that scikit-image carries as JPEG files."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    for name in PHOTOGRAPHS:
        original = Path(data.__file__).parent / name
        copy = folder / f"{Path(name).stem}.jpg"
        if original.exists() and not copy.exists():
            Image.open(original).convert("RGB").save(copy, quality=JPEG_QUALITY)
    return folder


def report_row(config: Config, translator: Translator, pair: Pair) -> dict[str, Any]:
    """'title' and 'images' (name -> RGB uint8) of a pair: teacher, generator and, of a scene, the truth."""
    from models.pictures import edit_of

    source = pair.record["source"]
    images = {**pair.images, "generator": edit_of(translator, pair.images["input"])}
    if "scene_seed" not in source:
        return {"title": source["id"], "images": images}
    if config.task.scene_truth:
        images["truth"] = true_edit(config, source, images["input"].shape[0])
    return {"title": pair.record["caption"], "images": images}


def distances(rows: Sequence[dict[str, Any]]) -> list[tuple[str, float, float]]:
    """Mean PSNR (dB) and mean LPIPS of each of COMPARISONS, over the rows with a true edit."""
    from models.perceptual import perceptual_loss
    from scripts.measure.metrics import image_distances

    with_truth = [row["images"] for row in rows if "truth" in row["images"]]
    if not with_truth:
        return []
    perceptual = perceptual_loss("cpu")
    means = []
    for title, (name, reference) in COMPARISONS.items():
        images_NHWC = np.stack([images[name] for images in with_truth])
        references_NHWC = np.stack([images[reference] for images in with_truth])
        values = image_distances(perceptual, images_NHWC, references_NHWC)
        means.append((title, float(values["psnr"].mean()), float(values["lpips"].mean())))
    return means


if __name__ == "__main__":
    raise SystemExit(main())
