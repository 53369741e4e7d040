"""The log of a training run: metrics.jsonl, which the trackers are told too, and lines of progress.

metrics.jsonl has one JSON object a line: 'images' (seen so far), 'kind' ('train', 'validation'),
and numbers.
"""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import UserError
from configs.files import whole_file
from configs.loader import to_yaml
from configs.schema import Config

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

METRICS = "metrics.jsonl"  # in <run>/train
LOG_EVERY_S = 10.0  # seconds from one line of progress to the next
RATE_HALF_LIFE_S = 60.0  # of the moving average from which the time left follows
TITLES = {"l1": "L1", "lpips": "LPIPS", "psnr": "PSNR"}  # of losses and metrics in a line of progress


class RunLog:
    """Collects the losses of steps, writes their means. All processes call, the main one writes."""

    def __init__(self, config: Config, accelerator: Accelerator, folder: Path, images: int) -> None:
        """Write config.yaml, and drop lines of metrics.jsonl that come again.

        folder: <run>/train. images: seen so far.
        """
        self.accelerator = accelerator
        self.path = folder / METRICS
        self.batch = config.distill.batch
        self.last_image = config.distill.images
        accelerator.init_trackers(config.task.name)
        if accelerator.is_main_process:
            (folder / "config.yaml").write_text(to_yaml(config))
            keep_lines_until(self.path, images)
        self.rate = 0.0  # images a second, a moving average
        self.restart_clock()

    def restart_clock(self) -> None:
        """Forget the losses collected so far; the time until now counts for no step."""
        self.steps = 0
        self.sums: dict[str, torch.Tensor] = {}
        self.waited_s = 0.0
        self.started = time.perf_counter()

    def add(self, losses: dict[str, torch.Tensor], waited_s: float) -> None:
        """Collect the losses of a step. waited_s: seconds that its data took to come."""
        self.steps += 1
        self.waited_s += waited_s
        for name, loss in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + loss

    def is_due(self) -> bool:
        """Whether the last line was written LOG_EVERY_S ago."""
        return time.perf_counter() - self.started >= LOG_EVERY_S

    def write_losses(self, images: int) -> None:
        """Write and print the mean losses since the last call, and how fast it went.

        'data_wait_share' is the share of the time in which this process waited for data.
        """
        seconds = time.perf_counter() - self.started
        means = {name: float(total) / self.steps for name, total in self.sums.items()}
        images_per_s = self.steps * self.batch / seconds
        data_wait_share = self.waited_s / seconds
        speed = {"images_per_s": images_per_s, "data_wait_share": data_wait_share}
        self.write("train", images, means | speed)
        kept = 0.5 ** (seconds / RATE_HALF_LIFE_S) if self.rate else 0.0
        self.rate = kept * self.rate + (1 - kept) * images_per_s
        left = timedelta(seconds=round(max(0, self.last_image - images) / self.rate))
        parts = {name: mean for name, mean in means.items() if name != "loss"}
        self.say(
            f"{images}/{self.last_image} images, {images_per_s:.1f}/s, {left} left, "
            f"loss {means['loss']:.4f} ({in_words(parts)}), waited for data {data_wait_share:.0%}"
        )
        self.restart_clock()

    def write_validation(self, images: int, metrics: dict[str, float], count: int) -> None:
        """Write and print the means over `count` held-out pairs."""
        self.write("validation", images, metrics)
        self.say(f"{images} images: held-out {in_words(metrics)} over {count} pairs")

    def write(self, kind: str, images: int, numbers: dict[str, float]) -> None:
        """Append a line to metrics.jsonl, and tell the trackers."""
        values = {f"{kind}/{name}": number for name, number in numbers.items()}
        self.accelerator.log(values, step=images)
        if self.accelerator.is_main_process:
            with open(self.path, "a") as stream:
                stream.write(json.dumps({"images": images, "kind": kind, **numbers}) + "\n")

    def say(self, text: str) -> None:
        """Print a line of progress."""
        self.accelerator.print(f"train: {text}", flush=True)


def in_words(numbers: dict[str, float]) -> str:
    """'L1 0.1672, PSNR 19.66 dB': the names with capitals where TITLES has them."""
    words = []
    for name, number in numbers.items():
        figure = f"{number:.2f} dB" if name == "psnr" else f"{number:.4f}"
        words.append(f"{TITLES.get(name, name)} {figure}")
    return ", ".join(words)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; none where there is no file.

    A last line that is cut off is left out: training goes on, or was killed. UserError for any
    other that is no JSON.
    """
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON ({error}): delete that line") from error
    return entries


def keep_lines_until(path: Path, images: int) -> None:
    """Drop the lines of metrics.jsonl of more images than these; the file is there afterwards."""
    kept = []
    for entry in read_metrics(path):
        if entry["images"] <= images:
            kept.append(json.dumps(entry) + "\n")
    with whole_file(path) as stream:
        stream.write("".join(kept).encode())


def tracker_names(name: str) -> list[str]:
    """What accelerate logs with for distill.tracker; UserError where that is not installed."""
    from accelerate.tracking import get_available_trackers

    installed = [tracker.value for tracker in get_available_trackers()]
    if not name:
        return []
    if name == "auto":
        return ["tensorboard"] if "tensorboard" in installed else []
    if name not in installed:
        available = ", ".join(installed) or "none"
        raise UserError(
            f"distill.tracker={name}: accelerate finds {available} installed; "
            "leave it empty or pip install it"
        )
    return [name]
