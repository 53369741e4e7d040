"""Train the generator in several ways and compare the edits: which loss, which augmentation, which size, from which weights.

  python scripts/compare.py losses task=tree2winter       L1 alone, + LPIPS, + an adversary at two weights, another beta 1
  python scripts/compare.py augment task=tree2winter      on compare.few_pairs pairs: all of augment.*, none, without one kind each
  python scripts/compare.py batches task=tree2winter      64, 16 or 4 images a step, as many in all
  python scripts/compare.py latent task=tree2winter       one edit an input with and without dropout, or a sampled latent
  python scripts/compare.py sizes task=tree2winter        four ways to a smaller network
  python scripts/compare.py transfer task=tree2winter     from scratch, from the weights of compare.init, by adapters of rank 4 and 16

Each row is a training of its own by distill/train.py on the run's selected pairs, from scratch at distill.lr=0.001 distill.beta1=0.0 where
neither the keys given here nor the row say otherwise. Its averaged weights edit rendered scenes, evaluate.scenes from evaluate.first_seed
on, and are compared with the true edits. Prints a Markdown table, and one of the validation LPIPS on the way; both as JSON, a picture grid,
and each training with its log are in <run>/compare/<table>. An interruption or a training that fails leaves the tables of those that have
ended, and an exit code that is not 0; run the same command again to go on.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from configs.cli import entry
from configs.errors import UserError
from configs.files import write_json
from configs.loader import load, to_yaml
from configs.runs import pairs_dir, run_dir
from configs.schema import Config
from distill.runlog import read_metrics
from generate.sources import InputImage, open_source
from scripts.evaluate import averaged, picture_grid, print_columns, trained_on
from scripts.measure.truth import true_edit

ROOT = Path(__file__).resolve().parents[1]
SECTIONS = ("task", "teacher", "generator", "augment", "distill", "evaluate", "compare")
BASE = (
    "distill.init=",
    "distill.lr=0.001",
    "distill.beta1=0.0",
)  # a task may go on from trained weights, at their learning rate
TABLES: dict[str, dict[str, str]] = yaml.safe_load(
    (ROOT / "configs" / "compare.yaml").read_text()
)  # table -> row -> what it alone sets
SCRATCH = "from scratch"  # the row whose last validation the others of its table are to reach
NEAR = 0.01  # of LPIPS
COLUMNS = {  # title and digits after the point
    "lpips_true": ("LPIPS to truth", 3),
    "psnr_true": ("PSNR to truth, dB", 2),
    "sharpness": ("sharpness / truth's", 2),
    "fid": ("FID to truth", 3),
    "kid": ("KID to truth", 4),
    "lpips_teacher": ("LPIPS to teacher, held-out pairs", 3),
    "psnr_teacher": ("PSNR to teacher, dB", 2),
    "images": ("images shown", 0),
    "images_per_s": ("images a second", 0),
    "parameters": ("parameters, millions", 2),
    "trained": ("share trained", 3),
    "reached": ("share of scratch's images to its last LPIPS", 3),
    "reached_near": (f"to {NEAR} above", 3),
}
POLL_S = 0.2


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    table = arguments.pop(0) if arguments and arguments[0].isalnum() else ""
    if table not in TABLES and not {"--help", "-h", "--list"} & {*arguments}:
        print(f"error: no table '{table}'. There are: {', '.join(TABLES)}", file=sys.stderr)
        return 2
    asked = [*BASE, *arguments]
    return entry(
        __doc__,
        SECTIONS,
        lambda config: compare(config, asked, table),
        lambda config: plan(config, table),
        asked,
    )


def plan(config: Config, table: str) -> dict[str, Any]:
    """What --dry-run prints: where, and what each row sets."""
    rows = {row: " ".join(_sets(config, table, row)) or "as above" for row in TABLES[table]}
    return {"writes to": run_dir(config) / "compare" / table, **rows}


def _sets(config: Config, table: str, row: str) -> list[str]:
    return [override.format(init=config.compare.init) for override in TABLES[table][row].split()]


def compare(config: Config, asked: Sequence[str], table: str) -> None:
    """Train the rows of a table, and report on them whatever ends that: an error, Ctrl-C or SIGTERM too.

    asked: what the configuration was loaded from. UserError where there is no true edit, and at the end where trainings failed.
    """
    if not config.task.scene_truth:
        raise UserError(
            f"task={config.task.name} has no task.scene_truth: there is no true edit to measure against"
        )
    source = replace(config.source, images="", prompts="", first_seed=config.evaluate.first_seed)
    scenes = open_source(source, config.task, config.teacher.resolution, config.evaluate.scenes)
    if trained_on(config, {*scenes.names}):
        raise UserError(
            f"evaluate.first_seed={source.first_seed}: the pairs were made from some of these scenes; name later ones"
        )
    arguments, configs = {}, {}
    for row in TABLES[table]:
        runs = run_dir(config) / "compare" / table / re.sub(r"[^a-z0-9]+", "-", row.lower()).strip("-")
        places = [f"runs_dir={runs}", f"generate.out={pairs_dir(config).resolve()}"]
        arguments[row] = [*asked, *_sets(config, table, row), *places]
        configs[row] = load(arguments[row])
        _select(config, configs[row], config.compare.few_pairs if table == "augment" else 0)
    try:
        train_all(
            arguments,
            {row: Path(one.runs_dir) / "log.txt" for row, one in configs.items()},
            config.compare.jobs,
        )
    finally:
        report(config, table, configs, [scenes.load(place) for place in range(len(scenes.names))])


def _select(config: Config, variant: Config, few: int) -> None:
    """Give the variant the run's selection: of the pairs to train on the first `few` (0: all), and all that are held out."""
    from distill import pairs

    keys = pairs.selected_keys(run_dir(config))
    if few:
        training, held_out = pairs.split_pairs(config, variant.distill.validation_share, variant.seed)
        kept = {location.key for location in (*training[:few], *held_out)}
        keys = [key for key in keys if key in kept]
    run_dir(variant).mkdir(parents=True, exist_ok=True)
    write_json(run_dir(variant) / "selection.json", {"kept": keys})


def train_all(arguments: Mapping[str, Sequence[str]], logs: Mapping[str, Path], jobs: int) -> None:
    """Train each row to its end, at most `jobs` at once; stopped, stop them all. UserError with the last words of those that failed."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    waiting, running, failed = list(arguments), dict[str, "subprocess.Popen[bytes]"](), []
    try:
        while waiting or running:
            while waiting and len(running) < max(1, jobs):
                row = waiting.pop(0)
                print(f"{row}: training, see {logs[row]}", flush=True)
                command = [sys.executable, str(ROOT / "distill" / "train.py"), *arguments[row]]
                with open(logs[row], "ab") as log:
                    running[row] = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            time.sleep(POLL_S)
            for row in [row for row, process in running.items() if process.poll() is not None]:
                *_, last = "", *logs[row].read_text(errors="replace").splitlines()
                print(f"{row}: {last}", flush=True)
                if running.pop(row).returncode:
                    failed.append(f"{row}: {last.removeprefix('error: ')} ({logs[row]})")
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            process.wait()
    if failed:
        raise UserError("; ".join(failed) + "; run the same command again to go on")


def report(config: Config, table: str, configs: Mapping[str, Config], scenes: Sequence[InputImage]) -> None:
    """Print where each row stood on the way, and how the edits of those trained to their end compare with the true ones.

    table.json says the same: 'images' (how many scenes), 'measured_by', 'sets' (row -> its overrides), 'not_ended' (rows), and row ->
    column -> {'mean'; 'low', 'high' where it is one over images}: 'rows' with COLUMNS, 'validation' with a column for each number of images
    shown. grid.png shows the edits. Without any row that has ended there is neither.
    """
    from distill import checkpoints

    logs = {row: log for row, one in configs.items() if (log := _log(one))}
    validation = {
        row: {str(line["images"]): {"mean": line["lpips"]} for line in checks(log)}
        for row, log in logs.items()
    }
    shown = sorted({images for row in validation.values() for images in row}, key=int)
    print("\nLPIPS to the teacher's edits of held-out pairs, by images shown:")
    print_columns(validation, {images: (f"{int(images):,}", 3) for images in shown}, missing="-")
    saved = {row: checkpoints.saved(run_dir(configs[row]) / "train" / "checkpoints") for row in logs}
    ended = [row for row in logs if any(int(path.name) >= configs[row].distill.images for path in saved[row])]
    not_ended = [row for row in configs if row not in ended]
    if not_ended:
        print(
            f"\nnot trained to the end: {'; '.join(not_ended)}. Run the same command again to go on",
            flush=True,
        )
    if ended:
        folder, sets = run_dir(config) / "compare" / table, {row: _sets(config, table, row) for row in ended}
        found, pictures = _measure(config, {row: configs[row] for row in ended}, logs, scenes)
        write_json(
            folder / "table.json", {**found, "validation": validation, "not_ended": not_ended, "sets": sets}
        )
        picture_grid(pictures).save(folder / "grid.png")
        print_columns(found["rows"], COLUMNS, missing="-")
        about = f"{len(scenes)} scenes, means [95 % bootstrap interval]. FID, KID: {found['measured_by']['FID, KID']}."
        print(f"\n{about}\ntable and grid: {folder}")


def _log(variant: Config) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl where the variant was trained with just these settings, else none."""
    folder = run_dir(variant) / "train"
    with suppress(FileNotFoundError):
        if (folder / "config.yaml").read_text() == to_yaml(variant):
            return read_metrics(folder / "metrics.jsonl")
    return []


def _measure(
    config: Config,
    configs: Mapping[str, Config],
    logs: Mapping[str, Sequence[Mapping[str, Any]]],
    scenes: Sequence[InputImage],
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """'images', 'measured_by' and 'rows' of table.json, and the columns of grid.png."""
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from scripts.measure import metrics

    truth = np.stack([true_edit(config, one.source, config.teacher.resolution) for one in scenes])
    device = pick_device(config.device)
    perceptual = perceptual_loss(device)
    network, name = metrics.set_network(config.evaluate.inception, perceptual)
    features, pictures, rows = (
        metrics.set_features(truth, network),
        {"input": np.stack([one.image for one in scenes])},
        {},
    )
    for row, one in configs.items():
        edits, whole = edit(one, pictures["input"], device)
        columns = {
            "lpips_true": metrics.lpips_distance(perceptual, edits, truth),
            "psnr_true": metrics.psnr(edits, truth),
        }
        whole |= (
            metrics.set_distances(metrics.set_features(edits, network), features) if len(edits) > 1 else {}
        )
        whole |= {"sharpness": _sharpness(edits) / _sharpness(truth)}
        whole |= of_training(logs[row], logs[SCRATCH] if SCRATCH in configs else None)
        rows[row] = averaged(config, columns) | {column: {"mean": value} for column, value in whole.items()}
        pictures[row] = edits
    return {"images": len(truth), "measured_by": {"FID, KID": name}, "rows": rows}, {
        **pictures,
        "true edit": truth,
    }


def edit(config: Config, inputs: np.ndarray, device: Any) -> tuple[np.ndarray, dict[str, float]]:
    """The inputs (uint8 N x H x W x 3) as the training's averaged weights edit them, and what its checkpoint says of their number."""
    import torch

    from distill import checkpoints
    from distill.formats import Edit, Picture

    found = checkpoints.newest(run_dir(config) / "train" / "checkpoints")
    assert found  # it has ended
    generator = found.average()
    picture = Picture(Edit(generator, checkpoints.fixed_latent(found.state["made_with"]))).to(device)
    with torch.no_grad():
        edits = [
            picture(batch_BHWC.to(device)).cpu()
            for batch_BHWC in torch.from_numpy(inputs).split(config.distill.batch)
        ]
    adam = found.tensors["adam"].items()  # with adapters, theirs
    trained = sum(
        value.numel()
        for key, value in adam
        if key.endswith(".exp_avg") and not key.startswith("discriminator.")
    )
    count = sum(parameter.numel() for parameter in generator.parameters())
    return torch.cat(edits).numpy(), {
        "images": found.state["images"],
        "parameters": count / 1e6,
        "trained": trained / count,
    }


def of_training(
    log: Sequence[Mapping[str, Any]], scratch: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, float]:
    """From the lines of metrics.jsonl: the last validation, the median speed, and with those of a training from scratch the share of all
    its images after which this one's validation LPIPS was first at or below its last one ('reached'), or at most NEAR above
    ('reached_near'); left out where it never was.
    """
    speed = median(line["images_per_s"] for line in log if line["kind"] == "train")
    found = {
        "lpips_teacher": checks(log)[-1]["lpips"],
        "psnr_teacher": checks(log)[-1]["psnr"],
        "images_per_s": speed,
    }
    if scratch:
        goal = checks(scratch)[-1]
        for column, limit in (("reached", goal["lpips"]), ("reached_near", goal["lpips"] + NEAR)):
            there = [line["images"] for line in checks(log) if line["lpips"] <= limit]
            found |= {column: there[0] / goal["images"]} if there else {}
    return found


def checks(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the lines of metrics.jsonl that are validations."""
    return [line for line in log if line["kind"] == "validation"]


def _sharpness(images: np.ndarray) -> float:
    """Mean over the images of the variance of their Laplacian."""
    import torch

    from filter.scores import sharpness

    return float(
        np.mean([sharpness(torch.from_numpy(image).permute(2, 0, 1)[None].float()) for image in images])
    )


if __name__ == "__main__":
    raise SystemExit(main())
