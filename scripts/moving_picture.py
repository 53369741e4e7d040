"""The moving picture of the README: held-out scenes, edited by teacher and generator, beside the truth.

  python scripts/moving_picture.py task=tree2winter preset=fast evaluate.scenes=6 --to docs/images/edits.gif

The generator is the run's own where it is exported, else the shipped one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from configs.cli import entry
from configs.errors import UserError
from configs.schema import Config
from scripts.evaluate import generators, make_edits, variants
from scripts.measure.truth import true_edit

SECTIONS = ("task", "teacher", "edit", "guidance", "evaluate")
SIDE = 192  # pixels of a panel
TITLE = 20  # pixels above it
MILLISECONDS = 1500  # a frame
COLOURS = 128


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    target = Path("edits.gif")
    if "--to" in arguments:
        place = arguments.index("--to")
        target = Path("".join(arguments[place + 1 : place + 2]))
        del arguments[place : place + 2]
    return entry(
        __doc__, SECTIONS, partial(draw, target=target), lambda config: {"writes": target}, arguments
    )


def draw(config: Config, target: Path) -> None:
    """Make the edits and write the picture. UserError for a task without a true edit or a generator."""
    if not config.task.scene_truth or config.source.images:
        raise UserError(f"task={config.task.name} has no true edit to show: name a task of rendered scenes")
    one_row = replace(config, evaluate=replace(config.evaluate, sweep={"edit.method": ["pix2pix-zero"]}))
    edits = make_edits(variants(one_row, "sweep"), config.evaluate.scenes)
    side = edits.inputs_NHWC.shape[1]
    translators = list(generators(config, edits.keys, side).values())
    if not translators:
        raise UserError("no generator: export one, or set distill.init=")
    (teacher_NHWC,) = edits.images.values()
    frames = []
    for place, record in enumerate(edits.records):
        panels = {
            "input": edits.inputs_NHWC[place],
            "diffusion teacher": teacher_NHWC[place],
            "generator": np.asarray(translators[0](Image.fromarray(edits.inputs_NHWC[place]))),
            "true edit": true_edit(config, record, side),
        }
        frames.append(frame(panels))
    first, *others = [image.quantize(COLOURS) for image in frames]
    first.save(target, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=True)
    print(f"{target}: {len(frames)} scenes, {target.stat().st_size / 1e3:.0f} kB")


def frame(panels: Mapping[str, Any]) -> Image.Image:
    """The panels side by side, each under its title."""
    image = Image.new("RGB", (SIDE * len(panels), SIDE + TITLE), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=14)
    for place, (title, picture_HWC) in enumerate(panels.items()):
        panel = Image.fromarray(picture_HWC).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.paste(panel, (place * SIDE, TITLE))
        pen.text(((place + 0.5) * SIDE, 2), title, "black", font, anchor="ma")
    return image


if __name__ == "__main__":
    raise SystemExit(main())
