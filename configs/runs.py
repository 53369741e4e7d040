"""Run folders, what a run remembers, and the one scheme that says what a folder was made with.

Every key of the configuration counts unless a stage lists it as free.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Collection, Mapping
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from omegaconf import OmegaConf

from configs.errors import UserError
from configs.files import model_files, whole_file
from configs.loader import RUN_FILE, known_keys, to_yaml
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

# What a run does not remember: where it lies, where it is computed, and what is said each time.
NOT_REMEMBERED = ("run", "runs_dir", "device", "json", "force")

# What is said of a setting that is a hash: two rows of hex digits would say nothing.
OF_HASHES = {
    "pairs": "other ones, or other pictures in them",
    "labels": "the file of distill.labels= has another content",
    "teacher.files": "the files of teacher.path= or teacher.config= have another content",
    "direction.made_of": "its sentences, or the files of direction.*, are others",
    "source.models": "the captioner, or the CLIP that chooses the inputs, is another",
    "scorer.files": "the files of scorer.model= or scorer.pretrained= have another content",
    "lpips_generator.files": "the file of filter.generator= has another content",
    "segmenter.model.files": "the files of segmenter.model= have another content",
    "segmenter.checkpoint.files": "the file of segmenter.checkpoint= has another content",
    "segmenter.detector.files": "the files of segmenter.detector= have another content",
    "shard": "the pairs have another content",
}


def run_dir(config: Config) -> Path:
    """The folder of run=, else <runs_dir>/<task>/<teacher>."""
    if config.run:
        return Path(config.run)
    return Path(config.runs_dir) / config.task.name / config.teacher.name


def remember(config: Config, keys: Collection[str]) -> None:
    """Write <run>/run.yaml, which run= reads: all of a new run, of a known one what the stage decides.

    keys: of the stage, keys ('task.overlap') and whole sections ('filter'). So a stage that was given
    fewer keys than the one before it forgets nothing.
    """
    path = run_dir(config) / RUN_FILE
    values: dict[str, Any] = yaml.safe_load(to_yaml(config))
    for key in NOT_REMEMBERED:
        del values[key]
    if config.generate.out:
        values["generate"]["out"] = str(pairs_dir(config).resolve())
    now = OmegaConf.create(values)
    remembered = OmegaConf.create(values | _remembered(path))
    for key in keys:
        OmegaConf.update(remembered, key, OmegaConf.select(now, key), merge=False)
    title = f"# What this run is made with. To go on: {command('filter', run_dir(config))}\n"
    with whole_file(path) as stream:
        stream.write((title + OmegaConf.to_yaml(remembered)).encode())


def _remembered(path: Path) -> dict[str, Any]:
    """What a run.yaml holds by section; nothing where it is not there, or damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError, yaml.YAMLError):
        content = yaml.safe_load(path.read_text())
        if isinstance(content, dict):
            return content
    return {}


def command(stage: str, run: Path, *arguments: str) -> str:
    """The command line of a stage of this run, as a page or a message prints it."""
    return shlex.join(["zero2gan", stage, str(run), *arguments])


def pairs_dir(config: Config) -> Path:
    """The folder of the pair shards: generate.out, else <run>/pairs."""
    return Path(config.generate.out) if config.generate.out else run_dir(config) / "pairs"


def selected_keys(run: Path) -> list[str]:
    """The keys of the pairs that the filter kept, from <run>/selection.json.

    UserError where the file is missing or cannot be read, and where it keeps none.
    """
    path = run / "selection.json"
    try:
        keys = json.loads(path.read_text())["kept"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is missing or cannot be read ({error}): select pairs first, {command('filter', run)}"
        ) from error
    if not keys:
        raise UserError(
            f"{path} keeps no pair: ask for less, for example "
            + command("filter", run, "--select", "keep=0.5", "by=clip_gain")
        )
    return keys


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


def changes(
    before: Mapping[str, Any], now: Mapping[str, Any], words: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """What differs between two settings: a sorted list of 'key: before -> now', None for a missing key.

    words: what is said of a key in the place of its values, where more is known than OF_HASHES says.
    """
    said = OF_HASHES | dict(words)
    texts = []
    for key in sorted({*before, *now}):
        if before.get(key) != now.get(key):
            texts.append(f"{key}: {said.get(key, f'{before.get(key)} -> {now.get(key)}')}")
    return texts


def scorer_files(scorer: Scorer) -> dict[str, str]:
    """Relative name -> hash of every file of the CLIP model that judges, {} for one of a hub."""
    return model_files(scorer.model.removeprefix("local-dir:")) | model_files(scorer.pretrained)
