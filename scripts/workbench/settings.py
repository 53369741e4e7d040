"""What the studio lets one choose, as the arguments of a command line and as a task's yaml file.

The arguments are loaded as any command line's are: the page, the command that it prints and the file that it
writes cannot say different things.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import yaml

from configs.errors import UserError
from configs.files import whole_file
from configs.loader import DEFAULT_CHOICE, available, known_keys, load
from configs.schema import Config, Task

OWN_WORDS = "custom"  # the task that two words make
SLIDERS = {  # field of Settings -> its key
    "strength": "direction.strength",
    "amount": "guidance.amount",
    "scale": "guidance.scale",
    "steps": "edit.steps",
    "keep": "edit.keep",
}
# Sections of which a task file says what differs from the task that two words make.
FILE_SECTIONS = ("direction", "edit", "guidance", "inversion", "distill")


@dataclass(frozen=True)
class Settings:
    """A task by its name, or OWN_WORDS and two words; and the SLIDERS."""

    task: str
    source: str
    target: str
    strength: float
    amount: float
    scale: float
    steps: int
    keep: float

    def __str__(self) -> str:
        return (
            f"strength {self.strength:g} · guidance {self.amount:g} · scale {self.scale:g} · "
            f"{self.steps} steps · keep {self.keep:g}"
        )


class CommandLine:
    """Settings over the arguments that the studio itself was given.

    given: those, without --options. UserError where they are wrong.
    """

    def __init__(self, given: Sequence[str]) -> None:
        self.start = load(given)
        self.start_task = DEFAULT_CHOICE["task"]
        self.given: list[str] = []
        self.task_keys: list[str] = []  # of the task that they name
        self.slider_keys: list[str] = []  # where the sliders start, whatever the task
        for argument in given:
            if argument.startswith("task="):
                self.start_task = argument.partition("=")[2]
            elif sets(argument, "task"):
                self.task_keys.append(argument)
            elif sets(argument, *SLIDERS.values()):
                self.slider_keys.append(argument)
            elif not sets(argument, "studio"):
                self.given.append(argument)

    def tasks(self) -> list[str]:
        """The named tasks; of a teacher whose world is rendered, those that are at home in it."""
        names = [name for name in available("task") if name != OWN_WORDS]
        if self.start.source.scenes:
            names = [name for name in names if load([f"task={name}"]).task.scene_input]
        return sorted({*names, self.start_task} - {OWN_WORDS})

    def defaults(self, task: str) -> Settings:
        """A task's own settings with this teacher, but for the sliders that were given; the words of a task
        that was given, none of OWN_WORDS else.
        """
        config = self.start
        words = [config.task.source, config.task.target]
        if task != self.start_task:
            words = ["", ""]
            config = load([*self._task_arguments(task, "source", "target"), *self.slider_keys])
            if task != OWN_WORDS:
                words = [config.task.source, config.task.target]
        sliders = {field: attrgetter(key)(config) for field, key in SLIDERS.items()}
        return Settings(task, words[0], words[1], **sliders)

    def arguments(self, settings: Settings) -> list[str]:
        """The arguments of a command that edits with these settings; what holds anyway is left out."""
        source, target = settings.source.strip(), settings.target.strip()
        if not (source and target):
            raise UserError("write two words, what the picture shows and what it is to become")
        arguments = self._task_arguments(settings.task, source, target)
        config = load(arguments)
        if config.source.scenes and not (config.task.scene_input or config.source.images):
            arguments.append("task.scene_input={season: any}")  # words that its world does not know
        for field, key in SLIDERS.items():
            value = getattr(settings, field)
            if value != attrgetter(key)(config):
                arguments.append(f"{key}={value:g}")
        return arguments

    def _task_arguments(self, task: str, source: str, target: str) -> list[str]:
        """The given arguments with this task in the place of theirs, whose own keys go with it."""
        arguments = [*self.given, f"task={task}"]
        if task == self.start_task:
            arguments += self.task_keys
        if task == OWN_WORDS:
            arguments = [item for item in arguments if not sets(item, "task.source", "task.target")]
            arguments += [f"task.source={source}", f"task.target={target}"]
        return arguments

    def config(self, settings: Settings) -> Config:
        """The configuration of these settings. UserError for what a key does not take."""
        return load(self.arguments(settings))

    def command(self, settings: Settings, on_scene: bool, name: str) -> str:
        """The command that makes pairs with these settings below <runs_dir>/<name>.

        on_scene: of rendered scenes; else of photographs, whose folder the user is to name.
        """
        arguments = [item for item in self.arguments(settings) if not sets(item, "task.name")]
        arguments.append(f"task.name={task_name(name)}")
        if not on_scene:
            arguments = [item for item in arguments if not sets(item, "task.scene_input")]
            if not self.start.source.images:
                arguments.append("source.images=PHOTOS")
        return shlex.join(["zero2gan", "generate", *arguments])

    def task_file(self, settings: Settings, name: str) -> Path:
        """Write the settings as a task's yaml file, <runs_dir>/tasks/NAME.yaml.

        In the form of configs/task/*.yaml: with the same teacher and preset it is the same edit. Where other
        settings have the name it becomes NAME-2, NAME-3, ...
        """
        text = self.task_text(settings)
        folder = Path(self.start.runs_dir) / "tasks"
        path = folder / f"{task_name(name)}.yaml"
        number = 1
        while path.exists() and path.read_text(encoding="utf-8") != text:
            number += 1
            path = folder / f"{task_name(name)}-{number}.yaml"
        with whole_file(path) as stream:
            stream.write(text.encode())
        return path

    def task_text(self, settings: Settings) -> str:
        """The yaml: the task, the sliders, and what else it sets that two words alone would not."""
        config = self.config(settings)
        choices = [item for item in self.given if sets(item, "preset", "teacher", "generator")]
        words = [f"task.source={config.task.source}", f"task.target={config.task.target}"]
        base = load([*choices, f"task={OWN_WORDS}", *words])
        plain = Task()
        content: dict[str, dict[str, Any]] = {}
        for key in known_keys():
            section, _, field = key.partition(".")
            value = attrgetter(key)(config)
            if section == "task":
                belongs = field != "name" and value != getattr(plain, field)
            else:
                differs = section in FILE_SECTIONS and value != attrgetter(key)(base)
                belongs = differs or key in SLIDERS.values()
            if belongs:
                content.setdefault(section, {})[field] = value
        body = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)
        return f"# Chosen in the studio with teacher={config.teacher.name}.\n{body}"


def slider_range(name: str, value: float) -> tuple[float, float, float]:
    """Lowest, highest and step of a slider that holds a task's own value: all three belong to the teacher."""
    if name == "steps":
        return 2, max(100, int(value)), 1
    if name == "amount":
        return 0, max(3 * value, 0.3), 0.05 if value >= 1 else 0.01
    if name == "scale":
        return 1, max(15.0, value), 0.5
    return (0, max(4.0, 2 * value), 0.1) if name == "strength" else (0, max(2.0, value), 0.1)


def task_name(name: str) -> str:
    """The name as configs/loader.py makes a task's. UserError where nothing is left of it."""
    clean = re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-")
    if not clean:
        raise UserError(f"'{name}' names no task: take letters and digits")
    return clean


def sets(argument: str, *names: str) -> bool:
    """Whether `key=value` sets one of these keys, or one of a section that they name."""
    key = argument.partition("=")[0]
    return any(key == name or key.startswith(f"{name}.") for name in names)
