"""Run folders, and the one scheme that says what a folder was made with."""

import json
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

from configs.files import model_files
from configs.loader import known_keys
from configs.schema import Config, Scorer


def run_dir(config: Config) -> Path:
    """<runs_dir>/<task>/<teacher>."""
    return Path(config.runs_dir) / config.task.name / config.teacher.name


def pairs_dir(config: Config) -> Path:
    """The folder of the pair shards: generate.out, else <run>/pairs."""
    return Path(config.generate.out) if config.generate.out else run_dir(config) / "pairs"


def settings_of(config: Config, free: Collection[str]) -> dict[str, Any]:
    """Every key of the configuration with its value, as JSON has it, but those that `free` names.

    free: keys ('task.overlap') and whole sections ('filter') that do not change what the stage makes. A stage
    writes the others beside what it made. A new key of the schema counts until somebody lists it as free.
    """
    settings = {}
    for key in known_keys():
        if not any(key == name or key.startswith(f"{name}.") for name in free):
            settings[key] = json.loads(json.dumps(attrgetter(key)(config)))
    return settings


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two such settings, as texts 'key: before -> now', sorted by key.

    A key that only one of them has is None in the other.
    """
    texts = []
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            texts.append(f"{key}: {before.get(key)} -> {now.get(key)}")
    return texts


def scorer_files(scorer: Scorer) -> dict[str, str]:
    """model_files of the CLIP model that judges."""
    return model_files(scorer.model.removeprefix("local-dir:")) | model_files(scorer.pretrained)
