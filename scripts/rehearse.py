"""Run every stage at a published model's size, on random weights: what it takes, before a download.

  python scripts/rehearse.py sd14                512 x 512, CLIP ViT-L-14, SAM ViT-H, BLIP, DINO
  python scripts/rehearse.py sd14 --width 0.1    a tenth of the width, 64 x 64: minutes

Writes weights in the published layouts below --out, then runs generate, filter, train, export,
translate and evaluate as a user does, with two steps an edit, each a process of its own. Prints a table
of seconds and peak memory. What the pictures look like means nothing. Run again, it takes the weights
and the pairs that are there; delete --out when done.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from configs.files import ROOT, write_json

STEPS = 2  # of an edit: memory does not depend on it, and time can be extended
PHOTOS = 2  # one to train on, one held out
SENTENCES = 32  # a word, of the direction and of CLIP-Acc
TRAINED_IMAGES = 4
FULL_SIDE = 512
REDUCED_SIDE = 64  # of a teacher of reduced width: four levels of its UNet end at 1 x 1
REDUCED_GENERATOR = ("generator.channel_base=512", "generator.channel_max=16")
SMALL_JUDGES = {
    "scorer.model": "local-dir:models/miniature/scorer",
    "scorer.pretrained": "",
    "segmenter.model": "models/miniature/segmenter",
    "segmenter.points_per_side": "4",
    "evaluate.dino": "",
}
LOG_END = 2000  # characters of a failed stage's output that are shown


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, or 2 where a stage failed."""
    from scripts.published.stable_diffusion import MODELS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(MODELS))
    parser.add_argument(
        "--width", type=float, default=1.0, help="factor on the widths; 1: the published ones"
    )
    parser.add_argument("--out", type=Path, help="default: rehearsal/NAME")
    arguments = parser.parse_args(argv)
    folder = (arguments.out or Path("rehearsal") / arguments.name).resolve()
    return rehearse(arguments.name, arguments.width, folder)


def rehearse(name: str, width: float, folder: Path) -> int:
    """Write the weights, run the stages, print and write the table (rehearsal.json); the exit code."""
    keys = write_models(folder / "weights", name, width)
    side = FULL_SIDE if width == 1 else REDUCED_SIDE
    write_photos(folder, side)
    usages = {}
    for stage, command in stages(folder, keys, side, width).items():
        print(f"{stage}: {' '.join(command)}", flush=True)
        usage = run(command, folder / f"{stage}.log")
        if usage.code != 0:
            print((folder / f"{stage}.log").read_text()[-LOG_END:])
            print(f"error: {stage} failed; its whole output is {folder / stage}.log", file=sys.stderr)
            return 2
        usages[stage] = usage
    print_table(usages)
    print(
        f"weights: {gigabytes(folder / 'weights'):.2f} GB, runs: {gigabytes(folder / 'runs'):.2f} GB of disk"
    )
    write_json(folder / "rehearsal.json", {stage: vars(usage) for stage, usage in usages.items()})
    return 0


# ---- what the stages need ----


def write_models(folder: Path, name: str, width: float) -> dict[str, str]:
    """Write the weights that are not there yet; the keys of the configuration that take them.

    At a reduced width the judges are the miniature's, whose networks are small.
    """
    from scripts.published import judges
    from scripts.published.stable_diffusion import write_stable_diffusion

    writers: dict[str, Callable[[Path], Path]] = {
        "teacher": partial(write_stable_diffusion, name=name, width=width)
    }
    keys = {"teacher.path": str(folder / "teacher")}
    if width == 1:
        writers["ViT-L-14.pt"] = partial(judges.write_clip, name="ViT-L-14")
        writers["sam_vit_h.pth"] = partial(judges.write_sam, name="vit_h")
        writers["dino.pth"] = judges.write_dino
        writers["blip"] = judges.write_blip
        keys["scorer.pretrained"] = str(folder / "ViT-L-14.pt")
        keys["segmenter.checkpoint"] = str(folder / "sam_vit_h.pth")
        keys["evaluate.dino"] = str(folder / "dino.pth")
        keys["source.captioner"] = str(folder / "blip")
    else:
        keys |= SMALL_JUDGES
    for file, write in writers.items():
        done = folder / f".{file}.done"  # what an interruption left is written again
        if not done.exists():
            print(f"writing {folder / file}", flush=True)
            write(folder / file)
            done.touch()
    return keys


def write_photos(folder: Path, side: int) -> None:
    """Photographs to edit, and others that no training saw: rendered scenes, enlarged."""
    from models.miniature.scenes import Look, render, scene

    for number, name in enumerate(("photos", "held_out")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for seed in range(number * PHOTOS, (number + 1) * PHOTOS):
            render(scene(seed), Look()).resize((side, side)).save(folder / name / f"{seed}.png")


# ---- the stages ----


def stages(folder: Path, keys: dict[str, str], side: int, width: float) -> dict[str, list[str]]:
    """Name -> the command that a user gives, at the paper's scale but for what makes it long."""
    run_folder = folder / "runs" / "cat2dog" / "diffusers"
    common = [
        "task=cat2dog",
        "preset=paper",
        "teacher=diffusers",
        f"teacher.resolution={side}",
        f"runs_dir={folder / 'runs'}",
        f"source.images={folder / 'photos'}",
        f"edit.steps={STEPS}",
        f"direction.sentences={SENTENCES}",
        f"generate.pairs={PHOTOS}",
        "generate.batch=1",
        "filter.select=[keep=1,by=clip_gain]",
        "filter.reject=[]",  # noise that is blank is kept too
        f"distill.images={TRAINED_IMAGES}",
        f"distill.save_every_images={TRAINED_IMAGES}",
        "distill.batch=1",
        "distill.workers=0",
        "distill.validation_share=0.01",
        "export.formats=[float,fp16,int8,pt2]",
        "evaluate.scenes=2",
        "evaluate.sweep={edit.method: [pix2pix-zero]}",
    ]
    common += [f"{key}={value}" for key, value in keys.items()]
    if width != 1:
        common += REDUCED_GENERATOR
    translate = [str(run_folder), str(folder / "photos"), str(folder / "edited"), "--overwrite"]
    return {
        "generate": command("generate/run.py", common),
        "filter": command("filter/run.py", common),
        "train": command("distill/train.py", common),
        "export": command("distill/export.py", common),
        "translate": command("distill/translate.py", translate),
        "evaluate": command("scripts/evaluate.py", [*common, f"source.images={folder / 'held_out'}"]),
    }


def command(script: str, arguments: Sequence[str]) -> list[str]:
    """The command line of one of the project's scripts."""
    return [sys.executable, str(ROOT / script), *arguments]


@dataclass
class Usage:
    """What a process took."""

    code: int  # exit code
    seconds: float
    peak_gb: float  # largest resident memory


def run(command: Sequence[str], log: Path) -> Usage:
    """Run a command to its end, its output in a file."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with open(log, "w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    process.returncode = code  # it has been waited for
    kilobytes = usage.ru_maxrss
    return Usage(code, time.monotonic() - began, kilobytes * 1024 / 1e9)


# ---- the table ----


def print_table(usages: dict[str, Usage]) -> None:
    """One Markdown row a stage."""
    print("\n| stage | seconds | peak memory, GB |\n|---|---|---|")
    for stage, usage in usages.items():
        print(f"| {stage} | {usage.seconds:.0f} | {usage.peak_gb:.2f} |")


def gigabytes(folder: Path) -> float:
    """The size of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


if __name__ == "__main__":
    sys.exit(main())
