"""What happens on a click: the engine's pictures, scores and errors as values of the page's components.

A handler's result is {component: value}; the components that it does not name stay as they are.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np

from configs.errors import UserError
from generate.sources import Unreadable, read_square
from scripts.workbench.engine import Moment, Stopped, Studio, Try
from scripts.workbench.settings import OWN_WORDS, SLIDERS, CommandLine, Settings, slider_range

if TYPE_CHECKING:
    from scripts.workbench.page import Controls, Results

PLACES = {  # of the pictures: name -> label
    "edit": "The teacher's edit",
    "reconstruction": "Its reconstruction of the input",
    "generator": "A distilled generator's edit",
    "truth": "The true edit (rendered)",
}
MOST_TRIES = 24  # that the page keeps to compare
INVERSION_SHARE = 0.2  # of an edit's time: a step of it asks the network once, a step of the edit four times
WEAK = (
    "<b>Too far from the target's words.</b> If the picture hardly changed, raise <i>direction strength</i> "
    "first, to 1.5 or 2 times; then lower <i>guidance amount</i> and <i>keep</i>, which hold what is there; "
    "then raise the <i>classifier-free scale</i>. If it changed much but wrongly (LPIPS to the input is "
    "high), raise <i>guidance amount</i>, lower <i>direction strength</i>, or take more <i>steps</i>."
)
FEW_STEPS = 10  # below so many an edit is a sketch of itself


@dataclass(frozen=True)
class Handlers:
    """The page's functions."""

    line: CommandLine
    studio: Studio
    photographs: Path | None
    controls: Controls
    results: Results
    tries: gr.State  # list[Try], the newest first
    current: gr.State  # Try | None: the one that is shown
    shown: gr.State  # list of the examples' pictures

    def connect(self, page: gr.Blocks) -> None:
        """Say which function answers which event."""
        see, do = self.results, self.controls
        examples = {"inputs": do.settings(), "outputs": [do.examples, self.shown, see.status]}
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        page.load(self.examples, **examples, **quiet)
        changed = [do.source, do.target, *do.sliders.values()]
        do.task.change(self.task_chosen, do.task, changed, **quiet).then(self.examples, **examples, **quiet)
        do.reset.click(self.task_chosen, do.task, changed, **quiet)
        for word in (do.source, do.target):
            word.blur(self.examples, **examples, **quiet)
        do.examples.select(self.example_chosen, self.shown, do.picture, **quiet)
        do.edit.click(
            self.edit,
            [do.picture, do.caption, self.tries, *do.settings()],
            [see.status, *see.pictures.values(), see.scores, see.history, self.tries, self.current],
            **quiet,
        )
        do.stop.click(self.stop, None, None, queue=False, **quiet)
        see.history.select(
            self.try_chosen,
            self.tries,
            [*do.settings(), see.status, *see.pictures.values(), see.scores, self.current],
            **quiet,
        )
        see.use.click(self.use, [see.name, self.current, *do.settings()], [see.used, see.command], **quiet)

    # ---- what one sets ----

    def examples(self, *values: Any) -> dict[Any, Any]:
        """The examples of the task that is chosen."""
        settings = Settings(*values)
        words = replace(settings, source=settings.source or "picture", target=settings.target or "edit")
        try:
            pictures = self.studio.examples(words, self.photographs)
        except UserError as error:
            return {self.results.status: status_html(str(error), bad=True)}
        return {self.controls.examples: pictures, self.shown: pictures}

    def example_chosen(self, shown: Sequence[np.ndarray], event: gr.SelectData) -> np.ndarray:
        """The example as the picture to edit."""
        return shown[event.index]

    def task_chosen(self, task: str) -> dict[Any, Any]:
        """A task's words and own settings; two words of one's own keep those that are there."""
        defaults = self.line.defaults(task)
        own = task == OWN_WORDS
        changes: dict[Any, Any] = {}
        for component, word in (
            (self.controls.source, defaults.source),
            (self.controls.target, defaults.target),
        ):
            changes[component] = gr.update(interactive=own, **({"value": word} if word else {}))
        for name, slider in self.controls.sliders.items():
            value = getattr(defaults, name)
            low, high, step = slider_range(name, value)
            changes[slider] = gr.update(minimum=low, maximum=high, step=step, value=value)
        return changes

    # ---- an edit ----

    def edit(
        self, path: str | None, caption: str, tries: Sequence[Try], *values: Any
    ) -> Iterator[dict[Any, Any]]:
        """Edit the picture: its progress, then all that is known of it; an error is a line."""
        see = self.results
        if not path:
            yield {see.status: status_html("Pick a picture first: drop one, or click an example.", bad=True)}
            return
        yield {
            **dict.fromkeys(see.pictures.values()),  # None: what was shown before is not of this edit
            see.scores: "",
            see.status: status_html("The edit direction of these words …", 0.0),
        }
        try:
            image_HWC = read_square(Path(path), self.studio.teacher.resolution)
            for item in self.studio.follow(image_HWC, Settings(*values), caption):
                if isinstance(item, Moment):
                    yield self._moment(item)
                else:
                    yield self._done(item, [item, *tries][:MOST_TRIES])
        except (UserError, Unreadable) as error:
            yield {see.status: status_html(str(error), bad=True)}
        except Stopped:
            yield {see.status: status_html("Stopped.")}
        except Exception as error:  # noqa: BLE001 - the page goes on; the terminal has the traceback
            traceback.print_exc()
            text = f"That should not happen: {type(error).__name__}: {error}. The terminal says more."
            yield {see.status: status_html(text, bad=True)}

    def stop(self) -> None:
        """End the edit that is being made."""
        self.studio.stop()

    def _moment(self, moment: Moment) -> dict[Any, Any]:
        share = moment.done / moment.total
        if moment.name == "inversion":
            text = "The picture becomes noise"
            done = INVERSION_SHARE * share
        else:
            text = "The noise becomes the edit"
            done = INVERSION_SHARE + (1 - INVERSION_SHARE) * share
        line = status_html(f"{text}: step {moment.done} of {moment.total}", done)
        changes: dict[Any, Any] = {self.results.status: line}
        if moment.picture is not None:
            changes[self.results.pictures["edit"]] = moment.picture
        return changes

    def _done(self, made: Try, tries: list[Try]) -> dict[Any, Any]:
        rows = [(item.pictures["edit"], try_label(item)) for item in tries]
        history = gr.update(value=rows, visible=True, selected_index=None)
        return {**self._shown(made), self.results.history: history, self.tries: tries}

    def _shown(self, made: Try) -> dict[Any, Any]:
        """All that the page tells of a try."""
        see = self.results
        changes: dict[Any, Any] = {
            see.status: status_html(f"{made.settings.source} → {made.settings.target}: {made.settings}"),
            see.scores: scores_html(made),
            self.current: made,
        }
        for name, component in see.pictures.items():
            label = PLACES[name]
            if name == "generator" and made.generator_ms is not None:
                label += f": {made.generator_ms:.1f} ms"
            value = made.pictures.get(name)
            changes[component] = gr.update(value=value, label=label, visible=value is not None)
        return changes

    # ---- tries ----

    def try_chosen(self, tries: Sequence[Try], event: gr.SelectData) -> dict[Any, Any]:
        """A try from before, with its settings in their places."""
        made = tries[event.index]
        do = self.controls
        changes: dict[Any, Any] = {do.task: made.settings.task, do.source: made.settings.source}
        changes[do.target] = made.settings.target
        for name in SLIDERS:
            changes[do.sliders[name]] = getattr(made.settings, name)
        return {**changes, **self._shown(made)}

    def use(self, name: str, current: Try | None, *values: Any) -> dict[Any, Any]:
        """Write the settings of the shown try, or before any those of the sliders, as a task file."""
        see = self.results
        settings = current.settings if current else Settings(*values)
        on_scene = current.on_scene if current else self.line.start.source.scenes
        try:
            path = self.line.task_file(settings, name)
            command = self.line.command(settings, on_scene, path.stem)
        except UserError as error:
            return {see.used: status_html(str(error), bad=True), see.command: gr.update(visible=False)}
        text = f"{settings} are kept in {path}"
        return {see.used: status_html(text), see.command: gr.update(value=command, visible=True)}


# ---- words ----


def status_html(text: str, done: float | None = None, bad: bool = False) -> str:
    """A line, red where it is bad; with a bar that is filled to the share `done`."""
    bar = "" if done is None else f'<div class="bar"><i style="width:{100 * done:.0f}%"></i></div>'
    return f'<div class="status{" bad" if bad else ""}">{escape(text)}{bar}</div>'


def try_label(made: Try) -> str:
    """A try in a few words, for the gallery: what was set, and on a line of its own what came of it."""
    gain = made.scores["clip_gain"]
    scores = "" if gain is None else f"\ngain {gain:.2f}, LPIPS {made.scores['lpips_input_edit']:.2f}"
    return f"{made.settings}{scores}"


def scores_html(made: Try) -> str:
    """The verdict, the advice and a table of the scores that matter."""
    rows = "".join(
        f"<tr><td>{name}</td><td>{value}</td><td>{meaning}</td></tr>" for name, value, meaning in _rows(made)
    )
    notes = "".join(f'<p class="advice">{text}</p>' for text in _advice(made))
    return f'{_chip(made)}{notes}<table class="scores">{rows}</table>'


def _chip(made: Try) -> str:
    if made.verdict is None:
        return '<span class="chip">the filter decides by comparing pairs</span>' if made.bounds else ""
    if made.verdict == "":
        return '<span class="chip good">the filter would keep this pair</span>'
    reason = escape(made.verdict.replace("clip_gain", "CLIP gain").replace("overlap_iou", "overlap"))
    return f'<span class="chip bad">the filter would drop it: {reason}</span>'


def _advice(made: Try) -> list[str]:
    lines = []
    gain = made.scores["clip_gain"]
    if gain is not None and gain < made.bounds.get("clip_gain", 0.0):
        lines.append(WEAK)
    if made.settings.steps < FEW_STEPS:
        lines.append("So few steps are a quick look: judge with the task's own number.")
    return lines + [escape(note) for note in made.notes]


def _rows(made: Try) -> list[tuple[str, str, str]]:
    """Name, value and meaning of each score that there is."""
    scores = made.scores
    table = []
    bound = made.bounds.get("clip_gain")
    wanted = "" if bound is None else f"; the filter wants {bound:.2f} or more"
    meanings = {
        "clip_gain": ("CLIP gain", f"how much nearer to the target's words than the input is{wanted}"),
        "lpips_input_edit": ("LPIPS to the input", "how much changed; 0: nothing"),
        "overlap_iou": ("Overlap", "of the foregrounds of input and edit; 1: it stayed in its place"),
        "lpips_truth": ("LPIPS to the true edit", "lower is nearer"),
        "lpips_generator_truth": ("… of the generator's edit", "lower is nearer"),
    }
    for key, (name, meaning) in meanings.items():
        value = scores.get(key)
        if value is not None:
            table.append((name, f"{value:.3f}", meaning))
    speed = ""
    if made.generator_ms:
        factor = 1000 * made.seconds / made.generator_ms
        speed = f"the generator takes {made.generator_ms:.1f} ms: {factor:,.0f} times faster"
    table.append(("Time of the teacher", f"{made.seconds:.1f} s", speed))
    return table
