"""Configuration from the command line: dotted overrides over yaml fragments over the schema.

Order, later wins: configs/schema.py < preset < teacher < task < the teacher's own values for that task < generator < the command line.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from configs.errors import UserError
from configs.files import find_file
from configs.schema import REMOVED, Config

HERE = Path(__file__).resolve().parent
CHOICES = ("generator", "preset", "teacher", "task")
DEFAULT_CHOICE = {"preset": "miniature", "task": "tree2winter", "generator": "comodgan"}


def available(kind: str) -> list[str]:
    """Names of the yaml files there are for one of CHOICES, sorted."""
    return sorted(path.stem for path in (HERE / kind).glob("*.yaml"))


def nearest(word: str, known: Sequence[str]) -> str:
    """What ends the sentence of an error message: '; did you mean ...?', or '.' where nothing is near."""
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "."


def known_keys(schema: type = Config, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the schema with its dataclass field, in order."""
    keys: dict[str, Any] = {}
    for item in fields(schema):
        default = item.default_factory() if callable(item.default_factory) else None
        if is_dataclass(default):
            keys.update(known_keys(type(default), f"{prefix}{item.name}."))
        else:
            keys[prefix + item.name] = item
    return keys


def load(argv: Sequence[str]) -> Config:
    """The resolved configuration of `name=choice` and `section.key=value` arguments.

    Raises UserError for an unknown choice or key (naming the nearest right ones) and for a value of the wrong type.
    """
    for argument in argv:
        if "=" not in argument:
            raise UserError(f"'{argument}' is not key=value: see --help for the keys")
    given = [argument.split("=", 1) for argument in argv]
    chosen = {key: value for key, value in given if key in CHOICES}
    names = DEFAULT_CHOICE | chosen
    presets = {name: _fragment("preset", name) for name in names["preset"].split(",")}
    if not any(
        "choose" in preset for preset in presets.values()
    ):  # one that sets no scale goes on top of the default's
        presets = {DEFAULT_CHOICE["preset"]: _fragment("preset", DEFAULT_CHOICE["preset"])} | presets
    for preset in presets.values():
        names |= preset.pop("choose", {})
    names |= chosen
    teacher = _fragment("teacher", names["teacher"])
    per_task = teacher.pop("tasks", {})
    config = _merged(
        *((f"configs/preset/{name}.yaml", preset) for name, preset in presets.items()),
        (f"configs/teacher/{names['teacher']}.yaml", teacher),
        (f"configs/task/{names['task']}.yaml", _fragment("task", names["task"])),
        (f"configs/teacher/{names['teacher']}.yaml, tasks.{names['task']}", per_task.get(names["task"], {})),
        (f"configs/generator/{names['generator']}.yaml", _fragment("generator", names["generator"])),
        *((f"'{key}={value}'", _override(key, value)) for key, value in given if key not in CHOICES),
    )
    if not config.teacher.path:
        raise UserError(
            f"teacher={names['teacher']}: set teacher.path=, a {known_keys()['teacher.path'].metadata['help']}"
        )
    if not (config.task.source and config.task.target):
        raise UserError(
            f"task={names['task']}: set task.source= and task.target=, what the input shows and what the edit shows"
        )
    task_name = (
        f"{config.task.source}-to-{config.task.target}" if names["task"] == "custom" else names["task"]
    )
    config.task.name = re.sub(r"[^a-z0-9_-]+", "-", (config.task.name or task_name).lower()).strip("-")
    config.teacher.name = names["teacher"]
    config.teacher.resolution = config.teacher.resolution or _own_resolution(config.teacher.path)
    _check_limits(config)
    return config


def _check_limits(config: Config) -> None:
    """UserError for the first value that its key does not take."""
    for key, item in known_keys().items():
        value = attrgetter(key)(config)
        limits = item.metadata["limits"]
        if not limits.allow(value):
            raise UserError(f"{key}={value}: it is {limits}")


def _own_resolution(path: str) -> int:
    """The side in pixels that a diffusers folder's UNet was made for: its latents' side times the autoencoder's factor."""
    folder = Path(find_file(path))
    try:
        unet, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae"))
        return int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"teacher.path={path} is no folder that says its resolution ({error}): set teacher.resolution="
        ) from error


def _fragment(kind: str, name: str) -> dict[str, Any]:
    names = available(kind)
    if name not in names:
        raise UserError(f"no {kind} '{name}'{nearest(name, names)} There are: {', '.join(names)}")
    return yaml.safe_load((HERE / kind / f"{name}.yaml").read_text()) or {}


def _override(key: str, value: str) -> DictConfig:
    known, part = known_keys(), OmegaConf.create({})
    if key in REMOVED and key not in known:
        raise UserError(f"{key}= is no more: {REMOVED[key]}")
    if not any(key == k or key.startswith(k + ".") for k in known):
        raise UserError(f"no key '{key}'{nearest(key, list(known))} See --help for the keys")
    try:
        if key in known and known[key].type == "str":  # as it is: yaml would take 'a cat: asleep' apart
            OmegaConf.update(part, key, value)
        else:
            part.merge_with_dotlist([f"{key}={value}"])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"'{key}={value}' is no value: {str(error).splitlines()[0]}") from error
    return part


def _merged(*layers: tuple[str, Any]) -> Config:
    config = OmegaConf.structured(Config)
    for origin, layer in layers:
        try:
            config = OmegaConf.merge(config, layer)
        except ConfigKeyError as error:
            key = str(error.full_key)
            raise UserError(f"{origin}: no key '{key}'{nearest(key, list(known_keys()))}") from error
        except OmegaConfBaseException as error:
            raise UserError(f"{origin}: {str(error).splitlines()[0]} (key '{error.full_key}')") from error
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def to_yaml(config: Config) -> str:
    """The whole configuration as yaml text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
