"""Train the generator in several ways and compare the edits: loss, augmentation, size, batch, start.

  zero2gan compare losses task=tree2winter      L1, + LPIPS, + the critic, + more of it
  zero2gan compare augment task=tree2winter     on few pairs: all, none, without one kind each
  zero2gan compare batches task=tree2winter     64, 16 or 4 images a step, as many in all
  zero2gan compare sizes task=tree2winter       four ways to a smaller network
  zero2gan compare transfer task=tree2winter    from scratch, or from the shipped generator

Each row is a training of its own by distill/train.py on the run's selected pairs, from scratch at
distill.lr=0.001 where neither the keys given here nor the row say otherwise. Its averaged weights edit
rendered scenes, evaluate.scenes from evaluate.first_seed on, and are compared with the true edits.
Prints a Markdown table, and one of the validation LPIPS on the way; both as JSON, a picture grid, and
each training with its log are in <run>/compare/<table>. An interruption or a training that fails leaves
the tables of those that have ended, and an exit code that is not 0; run the same command again to go on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from configs.cli import entry, is_word
from configs.errors import UserError
from configs.files import ROOT, write_json
from configs.loader import load, to_yaml
from configs.runs import pairs_dir, run_dir, selected_keys
from configs.schema import Config
from distill.runlog import read_metrics
from generate.sources import InputImage, open_source
from scripts.measure.tables import Column, Row, averaged, print_columns, without_interval, write_grid
from scripts.measure.truth import held_out_scenes, trained_on, true_edit

if TYPE_CHECKING:  # PyTorch takes seconds to import, and --help none
    import torch

    from distill.checkpoints import Checkpoint

SECTIONS = ("task", "teacher", "generator", "augment", "distill", "evaluate", "compare")
# A task may go on from trained weights, at their learning rate: the rows begin from nothing.
BASE = ("distill.init=", "distill.lr=0.001")
TABLES: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "configs" / "compare.yaml").read_text())
FEW_PAIRS = 256  # of the table `augment`: with few pairs augmentation counts most
SCRATCH = "from scratch"  # the row whose last validation the others of its table are to reach
NEAR = 0.01  # of LPIPS
COLUMNS = {
    "lpips_true": Column("LPIPS to truth", 3),
    "psnr_true": Column("PSNR to truth, dB", 2),
    "sharpness": Column("sharpness / truth's", 2),
    "fid": Column("FID to truth", 3),
    "kid": Column("KID to truth", 4),
    "lpips_teacher": Column("LPIPS to teacher, held-out pairs", 3),
    "psnr_teacher": Column("PSNR to teacher, dB", 2),
    "images": Column("images shown", 0),
    "images_per_s": Column("images a second", 0),
    "parameters": Column("parameters, millions", 2),
    "reached": Column("share of scratch's images to its last LPIPS", 3),
    "reached_near": Column(f"to {NEAR} above", 3),
}
POLL_S = 0.2

Line = Mapping[str, Any]  # one of a training's metrics.jsonl


@dataclass(frozen=True)
class Training:
    """One row of a table: the keys that it alone sets, all its arguments, and what they resolve to."""

    row: str
    overrides: list[str]
    arguments: list[str]
    config: Config

    @property
    def folder(self) -> Path:
        """Where it trains."""
        return run_dir(self.config) / "train"

    @property
    def output(self) -> Path:
        """What it printed."""
        return Path(self.config.runs_dir) / "log.txt"

    def metrics(self) -> Sequence[Line]:
        """The lines of its metrics.jsonl; none where it was not trained with just these settings."""
        settings = self.folder / "config.yaml"
        if settings.is_file() and settings.read_text() == to_yaml(self.config):
            return read_metrics(self.folder / "metrics.jsonl")
        return []


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    table = arguments.pop(0) if is_word(arguments) else ""
    if table not in TABLES and not {"--help", "-h", "--list"} & {*arguments}:
        print(f"error: no table '{table}'. There are: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    arguments = [*BASE, *arguments]
    work = partial(compare, arguments=arguments, table=table)
    return entry(__doc__, SECTIONS, work, partial(plan, table=table), arguments)


def plan(config: Config, table: str) -> dict[str, Any]:
    """What --dry-run prints: where, and what each row sets."""
    rows = {row: overrides or "as above" for row, overrides in TABLES[table].items()}
    return {"writes to": folder(config, table), **rows}


def folder(config: Config, table: str) -> Path:
    """Where a table, and the trainings of its rows, lie."""
    return run_dir(config) / "compare" / table


def compare(config: Config, arguments: Sequence[str], table: str) -> None:
    """Train the rows of a table, and report on them whatever ends that, Ctrl-C and SIGTERM too.

    arguments: what the configuration was loaded from. UserError where there is no true edit, and at
    the end where trainings failed.
    """
    scenes = open_scenes(config)
    trainings = []
    for row in TABLES[table]:
        training = _training(config, arguments, table, row)
        select_pairs(config, training.config, FEW_PAIRS if table == "augment" else 0)
        trainings.append(training)
    try:
        train_all(trainings, config.compare.jobs)
    finally:
        report(config, table, trainings, scenes)


def open_scenes(config: Config) -> list[InputImage]:
    """The scenes to measure on.

    UserError where they have no true edit, or the pairs were made from some of them.
    """
    if not config.task.scene_truth:
        raise UserError(
            f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against"
        )
    source = held_out_scenes(config)
    scenes = open_source(source, config.task, config.teacher.resolution, config.evaluate.scenes)
    if trained_on(config, {*scenes.names}):
        raise UserError(
            f"evaluate.first_seed={source.first_seed}: the pairs were made from some of these scenes; "
            "name later ones"
        )
    return [scenes.load(index) for index in range(len(scenes.names))]


def _training(config: Config, arguments: Sequence[str], table: str, row: str) -> Training:
    """The training of a row: a run of its own on the pairs of the run."""
    overrides = TABLES[table][row].split()
    runs = folder(config, table) / re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
    places = [f"runs_dir={runs}", f"generate.out={pairs_dir(config).resolve()}"]
    all_arguments = [*arguments, *overrides, *places]
    return Training(row, overrides, all_arguments, load(all_arguments))


def select_pairs(config: Config, variant: Config, few: int) -> None:
    """Give the variant the run's selection: all held-out pairs, and the first `few` of the others.

    few: 0 for all.
    """
    from distill import pairs

    keys = selected_keys(run_dir(config))
    if few:
        training, held_out = pairs.split_pairs(config, variant.distill.validation_share, variant.seed)
        kept = {location.key for location in (*training[:few], *held_out)}
        keys = [key for key in keys if key in kept]
    run_dir(variant).mkdir(parents=True, exist_ok=True)
    write_json(run_dir(variant) / "selection.json", {"kept": keys})


# ---- training the rows ----


def train_all(trainings: Sequence[Training], jobs: int) -> None:
    """Train each row to its end, at most `jobs` at once; stopped, stop them all.

    UserError with the last words of those that failed.
    """
    waiting = list(trainings)
    running: dict[str, tuple[Training, subprocess.Popen[bytes]]] = {}
    failures = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                training = waiting.pop(0)
                running[training.row] = (training, _start(training))
            time.sleep(POLL_S)
            for training, process in list(running.values()):
                if process.poll() is None:
                    continue
                del running[training.row]
                last_line = _last_line(training.output)
                print(f"{training.row}: {last_line}", flush=True)
                if process.returncode:
                    reason = last_line.removeprefix("error: ")
                    failures.append(f"{training.row}: {reason} ({training.output})")
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
    if failures:
        raise UserError("; ".join(failures) + "; run the same command again to go on")


def _start(training: Training) -> subprocess.Popen[bytes]:
    """A process that trains the row, and adds what it prints to its log."""
    print(f"{training.row}: training, see {training.output}", flush=True)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    command = [sys.executable, str(ROOT / "distill" / "train.py"), *training.arguments]
    with open(training.output, "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def _last_line(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()
    return lines[-1] if lines else ""


# ---- what they came to ----


def report(config: Config, table: str, trainings: Sequence[Training], scenes: Sequence[InputImage]) -> None:
    """Print where each row stood on the way, and how the edits of those trained to their end
    compare with the true ones.

    table.json has the tables 'rows', with COLUMNS, and 'validation', with a column for each number
    of images shown; 'images' (how many scenes), 'measured_by', 'sets' (row -> its overrides) and
    'not_ended' (rows). grid.png shows the edits. Where no row has ended there is neither.
    """
    logs = {}
    ended = []
    not_ended = []
    sets = {}
    for training in trainings:
        log = training.metrics()
        if log:
            logs[training.row] = log
        if log and _has_ended(training):
            ended.append(training)
            sets[training.row] = training.overrides
        else:
            not_ended.append(training.row)
    validation = _print_validation(logs)
    if not_ended:
        names = "; ".join(not_ended)
        print(f"\nnot trained to the end: {names}. Run the same command again to go on", flush=True)
    if ended:
        result, pictures = _measure(config, ended, logs, scenes)
        result |= {"validation": validation, "not_ended": not_ended, "sets": sets}
        write_json(folder(config, table) / "table.json", result)
        write_grid(folder(config, table) / "grid.png", pictures)
        print_columns(result["rows"], COLUMNS, missing="-")
        print(
            f"\n{len(scenes)} scenes, means [95 % bootstrap interval]. "
            f"FID, KID: {result['measured_by']['FID, KID']}.\n"
            f"table and grid: {folder(config, table)}"
        )


def _has_ended(training: Training) -> bool:
    """Whether there is a checkpoint of its last step; its folder is named by the images shown."""
    from distill import checkpoints

    saved = checkpoints.saved(training.folder / "checkpoints")
    return any(int(path.name) >= training.config.distill.images for path in saved)


def _print_validation(logs: Mapping[str, Sequence[Line]]) -> dict[str, Row]:
    """Print and return the table of the validations on the way: row -> images shown -> LPIPS."""
    rows: dict[str, Row] = {}
    columns: dict[int, Column] = {}
    for row, log in logs.items():
        values = {}
        for line in validations(log):
            images = line["images"]
            values[str(images)] = line["lpips"]
            columns[images] = Column(f"{images:,}", 3)
        rows[row] = without_interval(values)
    print("\nLPIPS to the teacher's edits of held-out pairs, by images shown:")
    print_columns(rows, {str(images): columns[images] for images in sorted(columns)}, missing="-")
    return rows


def _measure(
    config: Config,
    trainings: Sequence[Training],
    logs: Mapping[str, Sequence[Line]],
    scenes: Sequence[InputImage],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """'images', 'measured_by' and 'rows' of table.json, and the columns of grid.png."""
    from distill import checkpoints
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from scripts.measure import metrics

    inputs = np.stack([scene.image for scene in scenes])
    side = config.teacher.resolution
    truth = np.stack([true_edit(config, scene.source, side) for scene in scenes])
    device = pick_device(config.device)
    perceptual = perceptual_loss(device)
    network = metrics.set_network(config.evaluate.inception, perceptual)
    rows = {}
    pictures = {"input": inputs}
    for training in trainings:
        checkpoint = checkpoints.newest(training.folder / "checkpoints")
        assert checkpoint  # it has ended
        edits = edit(checkpoint, inputs, training.config.distill.batch, device)
        distances = metrics.image_distances(perceptual, edits, truth)
        columns = {f"{name}_true": values for name, values in distances.items()}
        columns["sharpness"] = metrics.levels_sharpness(edits) / metrics.levels_sharpness(truth).mean()
        totals = counts(checkpoint)
        totals |= network.distances(edits, truth)
        totals |= training_columns(logs[training.row], logs.get(SCRATCH, ()))
        rows[training.row] = averaged(columns, config.seed) | without_interval(totals)
        pictures[training.row] = edits
    pictures["true edit"] = truth
    return {"images": len(truth), "measured_by": {"FID, KID": network.name}, "rows": rows}, pictures


def edit(checkpoint: Checkpoint, inputs_NHWC: np.ndarray, batch: int, device: torch.device) -> np.ndarray:
    """The inputs (RGB uint8 N x S x S x 3) as the averaged weights of a checkpoint edit them.

    Where these work at another side the inputs are shrunk to it, and the edits enlarged.
    """
    import torch

    from distill.graphs import Edit, Picture
    from models.pictures import resized

    generator = checkpoint.average()
    picture = Picture(Edit(generator)).to(device)
    own_side = generator.config["resolution"]
    images_NHWC = np.stack([resized(image_HWC, own_side) for image_HWC in inputs_NHWC])
    edits = []
    with torch.no_grad():
        for image_BHWC in torch.from_numpy(images_NHWC).split(batch):
            edits += list(picture(image_BHWC.to(device)).cpu().numpy())
    return np.stack([resized(edit_HWC, inputs_NHWC.shape[1]) for edit_HWC in edits])


def counts(checkpoint: Checkpoint) -> dict[str, float]:
    """'images' shown, and millions of 'parameters'."""
    generator = checkpoint.average()
    parameters = sum(parameter.numel() for parameter in generator.parameters())
    return {"images": checkpoint.state["images"], "parameters": parameters / 1e6}


def training_columns(log: Sequence[Line], scratch: Sequence[Line] = ()) -> dict[str, float]:
    """What the lines of metrics.jsonl say of a training: its last validation and its median speed.

    With the lines of a training from scratch also the share of all its images after which this one's
    validation LPIPS was first at or below its last one ('reached'), or at most NEAR above
    ('reached_near'); left out where it never was.
    """
    last = validations(log)[-1]
    columns = {
        "lpips_teacher": last["lpips"],
        "psnr_teacher": last["psnr"],
        "images_per_s": median(line["images_per_s"] for line in log if line["kind"] == "train"),
    }
    if scratch:
        goal = validations(scratch)[-1]
        limits = {"reached": goal["lpips"], "reached_near": goal["lpips"] + NEAR}
        for column, limit in limits.items():
            reached = [line["images"] for line in validations(log) if line["lpips"] <= limit]
            if reached:
                columns[column] = reached[0] / goal["images"]
    return columns


def validations(log: Sequence[Line]) -> list[Line]:
    """Those of the lines of metrics.jsonl that are validations."""
    return [line for line in log if line["kind"] == "validation"]


if __name__ == "__main__":
    raise SystemExit(main())
