"""distill/runlog.py: the time left follows a moving average, so that one slow moment does not make hours."""

import re

import pytest
import torch

from configs.loader import load
from distill import runlog


class Printer:
    """What RunLog uses of an Accelerator, in one process; keeps what it is told to print."""

    is_main_process = True

    def __init__(self):
        self.lines = []

    def init_trackers(self, name):
        pass

    def log(self, values, step):
        pass

    def print(self, text, flush):
        self.lines.append(text)


def test_the_time_left_is_smoothed(tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(runlog.time, "perf_counter", lambda: clock[0])
    printer = Printer()
    log = runlog.RunLog(load(["distill.images=1000", "distill.batch=10"]), printer, tmp_path, images=0)

    def left_after(seconds, images):
        clock[0] += seconds
        log.add({"loss": torch.tensor(1.0)}, waited_s=0.0)
        log.write_losses(images)
        hours, minutes, rest = map(int, re.search(r"(\d+):(\d+):(\d+) left", printer.lines[-1]).groups())
        return 3600 * hours + 60 * minutes + rest

    assert left_after(10, 10) == 990  # 1 a second
    # One window of a tenth of the speed, a minute and 40 seconds: 2^-(100/60) = .315 of the old rate stays.
    assert left_after(100, 20) == pytest.approx(980 / (0.315 * 1 + 0.685 * 0.1), abs=2)
