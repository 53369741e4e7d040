"""A sweep: configurations that differ in the values of a few keys, and what their edits are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.errors import UserError
from configs.loader import known_keys, nearest
from configs.methods import METHODS, Method
from configs.schema import Config

SECTIONS = ("edit", "direction", "guidance", "inversion")  # their keys decide what an edit looks like
# The keys that the name of an edit always has or, where its method does not use them, never.
NAMED = ("edit.method", "edit.strength", "direction.strength", "guidance.amount", "guidance.scale")


def combinations(sweep: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of the values of the keys, the last key changing fastest.

    UserError for a key without values.
    """
    combined: list[dict[str, Any]] = [{}]
    for key, values in sweep.items():
        if not values:
            raise UserError(f"evaluate.sweep: {key} has no values: name those to sweep")
        longer = []
        for combination in combined:
            for value in values:
                longer.append({**combination, key: value})
        combined = longer
    return combined


def with_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with these values of its keys.

    UserError for an unknown key, or a value that its key does not take.
    """
    for key, value in values.items():
        config = _with_value(config, key, value)
    return config


def with_used_values(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with those of the values that its editing method uses.

    Its edits are the same whatever the others are, so that they lie in one folder, made with one
    configuration. UserError as with_values raises it.
    """
    method = METHODS[with_values(config, values).edit.method]
    used = {key: value for key, value in values.items() if uses(method, key)}
    return with_values(config, used)


def uses(method: Method, key: str) -> bool:
    """Whether a key of NAMED, or any other key, changes what the method makes."""
    if key == "edit.strength":
        return method.noise == "partial"
    if key == "direction.strength":
        return method.text == "direction"
    if key in ("guidance.amount", "guidance.self_attention"):
        return method.guided
    return True


def _with_value(config: Config, key: str, value: Any) -> Config:
    keys = known_keys()
    section, _, name = key.partition(".")
    if key not in keys or section not in SECTIONS:
        swept = [known for known in keys if known.partition(".")[0] in SECTIONS]
        raise UserError(
            f"evaluate.sweep: no key '{key}'{nearest(key, swept)} It takes those of {', '.join(SECTIONS)}"
        )
    typed = OmegaConf.structured(getattr(config, section))
    try:
        OmegaConf.update(typed, name, value)  # checks the type; a float key makes 1.0 of a 1
    except OmegaConfBaseException as error:
        raise UserError(f"evaluate.sweep: {key}={value}: {str(error).splitlines()[0]}") from error
    settings: Any = OmegaConf.to_object(typed)
    limits = keys[key].metadata["limits"]
    if not limits.allow(getattr(settings, name)):
        raise UserError(f"evaluate.sweep: {key}={value}: it is {limits}")
    return replace(config, **{section: settings})


def edit_name(config: Config, swept: Sequence[str]) -> str:
    """What the edits of a configuration are called: method, its settings, any other key of `swept`."""
    method = METHODS[config.edit.method]
    parts = [config.edit.method, f"scale {config.guidance.scale:g}"]
    if uses(method, "edit.strength"):
        parts.append(f"part {config.edit.strength:g}")
    if uses(method, "guidance.amount"):
        parts.append(f"amount {config.guidance.amount:g}")
    if uses(method, "direction.strength"):
        parts.append(f"strength {config.direction.strength:g}")
    for key in swept:
        if key not in NAMED:
            value = attrgetter(key)(config)
            parts.append(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}")
    return " ".join(parts)
