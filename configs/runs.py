"""Run folders, and the one scheme that says what a folder was made with.

Every key of the configuration counts unless a stage lists it as free.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from configs.files import model_files
from configs.loader import known_keys
from configs.schema import Config, Scorer

# What changes nothing that any stage makes: where it is made, and the commands that only use it.
FREE_FOR_ALL = (
    "runs_dir",
    "device",
    "json",
    "force",
    "export",
    "evaluate",
    "compare",
    "benchmark",
    "demo",
    "studio",
)


def run_dir(config: Config) -> Path:
    """<runs_dir>/<task>/<teacher>."""
    return Path(config.runs_dir) / config.task.name / config.teacher.name


def pairs_dir(config: Config) -> Path:
    """The folder of the pair shards: generate.out, else <run>/pairs."""
    return Path(config.generate.out) if config.generate.out else run_dir(config) / "pairs"


def training_side(config: Config) -> int:
    """Side of the images that the generator trains on, pixels: distill.resolution, else the largest
    power of two that is not above the teacher's.
    """
    return config.distill.resolution or 1 << (config.teacher.resolution.bit_length() - 1)


def settings_of(config: Config, free: Collection[str]) -> dict[str, Any]:
    """Dotted key -> value, as JSON has it, of every key that is not free.

    free: keys ('task.overlap') and whole sections ('filter'). A stage writes the settings beside what
    it made, with hashes of the files that they name (model_files, scorer_files). A key that is new in
    the schema counts until a stage lists it as free.
    """
    settings = {}
    for key in known_keys(type(config)):
        if not any(key == name or key.startswith(f"{name}.") for name in free):
            settings[key] = json.loads(json.dumps(attrgetter(key)(config)))
    return settings


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two settings: a sorted list of 'key: before -> now', None for a missing key."""
    texts = []
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            texts.append(f"{key}: {before.get(key)} -> {now.get(key)}")
    return texts


def scorer_files(scorer: Scorer) -> dict[str, str]:
    """Relative name -> hash of every file of the CLIP model that judges, {} for one of a hub."""
    return model_files(scorer.model.removeprefix("local-dir:")) | model_files(scorer.pretrained)
