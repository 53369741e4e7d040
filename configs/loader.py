"""Configuration from the command line: dotted overrides over yaml fragments over the schema.

Later layers win: the schema's defaults, the preset, the teacher, the task, the teacher's own values for that
task, the generator, the command line. With run=FOLDER what that run remembers takes the place of all but the
first and the last.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from configs.errors import UserError
from configs.files import find_file
from configs.methods import METHODS, needs_teacher
from configs.removed import REMOVED
from configs.schema import Config, Task, Teacher

HERE = Path(__file__).resolve().parent
CHOICES = ("generator", "preset", "teacher", "task")
DEFAULT_CHOICE = {"preset": "miniature", "task": "tree2winter", "generator": "comodgan"}
THRESHOLDS = ("task.clip_gain", "task.overlap")
RUN_FILE = "run.yaml"  # in a run's folder: its configuration, which configs/runs.py writes
# Side of the pictures, pixels, where nothing says it: of a method that edits without a Stable Diffusion
OTHER_SIDE = 512
ALL_PAIRS = 1_000_000  # of those that exist: a preset's number is for pairs that are to be made
IMPLIES = {"source.pairs": "pairs", "edit.pipeline": "pipeline"}  # key -> the edit.method that it is for


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
        elif "help" in item.metadata:  # else the loader fills it in
            keys[prefix + item.name] = item
    return keys


@dataclass(frozen=True)
class Layer:
    """Some keys with their values, and where they come from, for the messages."""

    origin: str
    values: Any


def load(argv: Sequence[str]) -> Config:
    """The resolved configuration of `name=choice` and `section.key=value` arguments.

    run=FOLDER, or the bare folder, is a run that remembers everything else; with runs_dir= it is the
    model of a new run there. Raises UserError for an unknown choice or key, naming the nearest right
    ones, and for a value that its key does not take.
    """
    overrides: dict[str, str] = {}
    chosen: dict[str, str] = {}
    for argument in argv:
        key, equals, value = argument.partition("=")
        if not equals and Path(argument).is_dir():
            chosen["run"] = argument
        elif not equals:
            raise UserError(
                f"'{argument}' is neither key=value (see --help for the keys) nor the folder of a run"
            )
        elif key in CHOICES or key == "run":
            chosen[key] = value
        else:
            overrides[key] = value

    if not overrides.keys().isdisjoint(THRESHOLDS):  # in the place of a task's own selection
        overrides = {"filter.select": "[]"} | overrides
    run = chosen.pop("run", "")
    given = [Layer(f"'{key}={value}'", _override(key, value)) for key, value in overrides.items()]
    layers = _layers_of_run(run, chosen) if run else _layers_of_choices(chosen, given)
    config = _merged([*layers, *given])
    _complete(config, chosen)
    if run and "runs_dir" not in overrides:
        config.run = run
        config.runs_dir = _runs_dir(Path(run), config)
    _check_limits(config)
    return config


def _layers_of_choices(chosen: dict[str, str], given: Sequence[Layer]) -> list[Layer]:
    """The yaml fragments of the choices; `chosen` gets those that were not made.

    given: the command line's, which may ask for a method without a teacher.
    """
    presets = _presets(chosen.get("preset", DEFAULT_CHOICE["preset"]))
    names = dict(DEFAULT_CHOICE)
    for preset in presets.values():
        names |= preset.pop("choose", {})
    other = _other_method([_fragment("task", (names | chosen)["task"]), *given])
    if other:  # it stands in the place of a teacher
        names["teacher"] = other
    chosen.update(names | chosen)
    layers = [Layer(f"configs/preset/{name}.yaml", preset) for name, preset in presets.items()]
    layers += _teacher_and_task(chosen["teacher"], chosen["task"])
    layers.append(_fragment("generator", chosen["generator"]))
    if other:
        layers.append(_layer_of(other))
    return layers


def _runs_dir(run: Path, config: Config) -> str:
    """Where a run's caches lie: beside its task's folder, or in it where it was moved away from there."""
    in_place = run.parts[-2:] == (config.task.name, config.teacher.name)
    return str(run.parent.parent if in_place else run)


def _layers_of_run(folder: str, chosen: Mapping[str, str]) -> list[Layer]:
    """What a run remembers. UserError where it remembers nothing, and for a choice that it has made."""
    path = Path(folder) / RUN_FILE
    for kind in ("task", "teacher", "preset"):
        if kind in chosen:
            raise UserError(
                f"{kind}={chosen[kind]} with run={folder}: the run remembers its own; leave {kind}= out, "
                "or run= for another run"
            )
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError as error:
        raise UserError(
            f"run={folder} has no {RUN_FILE}: name the folder that `zero2gan generate` made, "
            "<runs_dir>/<task>/<teacher>"
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): name its keys (task=, teacher=) instead"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no configuration: name its keys (task=, teacher=) instead")
    layers = [Layer(str(path), values)]
    if "generator" in chosen:
        layers.append(_fragment("generator", chosen["generator"]))
    return layers


def _presets(names: str) -> dict[str, dict[str, Any]]:
    """The presets of 'paper' or 'paper,fast' by name, below them the default one where none sets a scale."""
    presets = {name: _fragment("preset", name).values for name in names.split(",")}
    if any("choose" in preset for preset in presets.values()):
        return presets
    default = DEFAULT_CHOICE["preset"]
    return {default: _fragment("preset", default).values} | presets


def _other_method(layers: Sequence[Layer]) -> str:
    """The method without a Stable Diffusion that the last of the layers asks for; '' where none does.

    UserError for a key of IMPLIES beside another method than its own.
    """
    method = _last_value(layers, "edit.method")
    for key, implied in IMPLIES.items():
        value = _last_value(layers, key)
        if value and method not in ("", implied):
            raise UserError(
                f"{key}={value} is for edit.method={implied}, not {method}: leave out one of them"
            )
        if value:
            method = implied
    return "" if needs_teacher(method) else method


def _layer_of(method: str) -> Layer:
    """The values that belong to a method without a Stable Diffusion: a preset's are for its own teacher."""
    generate = {"batch": 0}
    if method == "pairs":
        generate["pairs"] = ALL_PAIRS
    return Layer(f"edit.method={method}", {"edit": {"method": method}, "generate": generate})


def _last_value(layers: Sequence[Layer], key: str) -> str:
    """The value that the last of the layers to have it gives a key; '' where none does."""
    section, _, name = key.partition(".")
    value = ""
    for layer in layers:
        values = layer.values.get(section)
        if isinstance(values, Mapping):
            value = values.get(name, value)
    return str(value)


def _teacher_and_task(teacher: str, task: str) -> list[Layer]:
    """The teacher's values, the task's, and those that the teacher has for this task."""
    other = teacher in METHODS and not needs_teacher(teacher)
    general = _layer_of(teacher) if other else _fragment("teacher", teacher)
    per_task = general.values.pop("tasks", {})
    return [
        general,
        _fragment("task", task),
        Layer(f"{general.origin}, tasks.{task}", per_task.get(task, {})),
    ]


def _fragment(kind: str, name: str) -> Layer:
    """The yaml file of a choice: of its name, or for a path (./mine.yaml) that file. UserError where
    there is none.
    """
    if name.endswith((".yaml", ".yml")):
        return _own_file(kind, name)
    names = available(kind)
    if name not in names:
        raise UserError(f"no {kind} '{name}'{nearest(name, names)} There are: {', '.join(names)}")
    values = yaml.safe_load((HERE / kind / f"{name}.yaml").read_text())
    return Layer(f"configs/{kind}/{name}.yaml", values or {})


def _own_file(kind: str, path: str) -> Layer:
    """A user's own yaml file in the place of one in configs/."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{kind}={path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{kind}={path} holds no keys: configs/{kind}/ has examples")
    return Layer(path, values)


def _override(key: str, value: str) -> DictConfig:
    """One argument of the command line as a layer's values."""
    known = known_keys()
    if key in REMOVED:
        raise UserError(f"there is no {key}= any more: {REMOVED[key]}")
    if not any(key == name or key.startswith(f"{name}.") for name in known):
        raise UserError(f"no key '{key}'{nearest(key, list(known))} See --help for the keys")
    values = OmegaConf.create({})
    try:
        kind = known[key].type if key in known else ""
        if kind == "str":  # as it is: yaml would take 'a cat: asleep' apart
            OmegaConf.update(values, key, value)
        elif kind == "list[str]" and not value.startswith("["):  # a,b
            OmegaConf.update(values, key, [item.strip() for item in value.split(",") if item.strip()])
        else:
            values.merge_with_dotlist([f"{key}={value}"])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"'{key}={value}' is no value: {str(error).splitlines()[0]}") from error
    return values


def _merged(layers: Sequence[Layer]) -> Config:
    """The schema's defaults with the layers over them, in order. UserError for an unknown key or type."""
    config = OmegaConf.structured(Config)
    for layer in layers:
        try:
            config = OmegaConf.merge(config, layer.values)
        except TypeError as error:  # of a list where a dictionary belongs
            raise UserError(f"{layer.origin}: {str(error).splitlines()[0]}") from error
        except ConfigKeyError as error:
            key = str(error.full_key)
            raise UserError(f"{layer.origin}: no key '{key}'{nearest(key, list(known_keys()))}") from error
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0]
            hint = (
                ". In a dictionary a space follows the colon: {name: 1}" if ":" in str(error.full_key) else ""
            )
            raise UserError(f"{layer.origin}: {reason} (key '{error.full_key}'){hint}") from error
    return OmegaConf.to_object(config)  # type: ignore[return-value]


def _complete(config: Config, names: Mapping[str, str]) -> None:
    """Fill in what follows from the choices: the names of task and teacher, the teacher's resolution.

    A run that remembers them is asked for nothing. UserError where the teacher has no path, the task no
    words, or the resolution is nowhere.
    """
    task = names.get("task", config.task.name)
    teacher = names.get("teacher", config.teacher.name)
    by_teacher = needs_teacher(config.edit.method)
    if by_teacher and not config.teacher.path:
        meaning = known_keys()["teacher.path"].metadata["help"]
        raise UserError(f"teacher={teacher}: set teacher.path=, a {meaning}")
    if not (config.task.source and config.task.target):
        raise UserError(
            f"task={task}: set task.source= and task.target=, what the input shows and what the edit shows"
        )
    if not config.task.name:
        of_words = f"{config.task.source}-to-{config.task.target}"
        config.task.name = of_words if task == "custom" else Path(task).stem
    config.task.name = re.sub(r"[^a-z0-9_-]+", "-", config.task.name.lower()).strip("-")
    config.teacher.name = Path(teacher).stem
    if config.source.scenes and not config.task.scene_input:
        _find_scenes(config.task)
    if not config.teacher.resolution:
        config.teacher.resolution = _own_resolution(config.teacher) if by_teacher else OTHER_SIDE


def _find_scenes(task: Task) -> None:
    """Let the words of a task find the scenes that a rendered world has for them, if it has."""
    from models.miniature.words import looks_of

    looks = looks_of(task.source, task.target)
    if looks:
        task.scene_input, task.scene_truth = looks


def _own_resolution(config: Teacher) -> int:
    """The side in pixels that a teacher's UNet was made for: its latents' times the VAE's factor.

    UserError, which says what to do, where the files do not tell.
    """
    key = f"teacher.path={config.path}"
    path = Path(find_file(config.path)).expanduser()
    if path.is_file():
        if not config.config:
            raise UserError(
                f"{key} is a single file: set teacher.config= to a diffusers folder of the same family, for "
                "its configurations and tokenizer, or convert the file to such a folder (docs/generate.md)"
            )
        key = f"teacher.config={config.config}"
        path = Path(find_file(config.config)).expanduser()
    if not path.is_dir():
        raise UserError(
            f"{key}: no such folder. If it is a hub name, set teacher.resolution= (512 for Stable Diffusion "
            "1.x and 2.1-base, 768 for 2.1)"
        )
    try:
        unet = json.loads((path / "unet" / "config.json").read_text())
        vae = json.loads((path / "vae" / "config.json").read_text())
        side = int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1)
        vae_side = int(vae.get("sample_size", side))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{key} is no diffusers folder that says its resolution ({error}): name the folder that holds "
            "unet/ and vae/, or set teacher.resolution="
        ) from error
    if 2 * side <= vae_side:  # the first Stable Diffusion folders say 32 latents for 64
        raise UserError(
            f"{key}: its UNet says {side} pixels and its VAE {vae_side}: set teacher.resolution= to that it "
            f"was trained at, {vae_side} most likely"
        )
    return side


def _check_limits(config: Config) -> None:
    """UserError for the first value that its key does not take."""
    for key, item in known_keys().items():
        value = attrgetter(key)(config)
        limits = item.metadata["limits"]
        if not limits.allow(value):
            raise UserError(f"{key}={value}: it is {str(limits) or 'a finite number'}")


def to_yaml(config: Config) -> str:
    """The whole configuration as yaml text."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))
