"""The page of the studio: its layout. handlers.py says what happens on a click."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from scripts.workbench.engine import Studio
from scripts.workbench.handlers import PLACES, Handlers, status_html
from scripts.workbench.settings import OWN_WORDS, SLIDERS, CommandLine, slider_range

PICTURE_HEIGHT = 290  # of the edit and what stands beside it
OWN_WORDS_LABEL = "two words of my own"
HELP = {  # of the sliders: label, what it does
    "strength": (
        "Direction strength",
        "Nothing happens? Raise this first, to 1.5 or 2 times. Artefacts? Lower it.",
    ),
    "amount": ("Guidance amount", "Holds the layout. The scene changes shape? Raise. Still too weak? Lower."),
    "scale": (
        "Classifier-free scale",
        "How far each step leads away from the input's words. Colours burn? Lower.",
    ),
    "steps": ("Steps", "Few are a quick look; take the task's own number before judging."),
    "keep": ("Keep what is unchanged", "Takes back the input where little changed. 0: off, for styles."),
}
CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto; }
#headline h1 { font-size: 30px; letter-spacing: -0.02em; margin: 6px 0 0; }
#headline p { margin: 2px 0 0; opacity: .75; }
/* Labels stand above their pictures, not on them. */
label[data-testid="block-label"] { position: static !important; width: 100%; background: none !important;
  border: none !important; box-shadow: none !important; padding: 6px 10px 4px; }
label[data-testid="block-label"] > span { display: none; }
.gradio-container img { object-fit: contain !important; }
.shown { padding-bottom: 8px !important; }
.shown .image-container { height: calc(100% - 34px); }
.gradio-container .grid-wrap { min-height: 0 !important; height: auto !important; max-height: 430px;
  padding: 4px 8px 8px; }
.gradio-container .gallery-container { height: auto; }
.gradio-container .grid-container { gap: 6px; padding: 0; align-items: start;
  grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important;
  grid-template-rows: none !important; grid-auto-rows: auto !important; }
.gradio-container .thumbnail-item { display: block; width: 100% !important; height: auto !important;
  aspect-ratio: auto !important; }
.gradio-container .thumbnail-item img { width: 100%; height: auto; aspect-ratio: 1; }
.gradio-container .caption-label { position: static !important; display: block; max-width: none !important;
  white-space: pre-line !important; font-size: 11px; line-height: 1.4; padding: 5px 7px; text-align: left;
  border: none; background: none; overflow: visible; }
.status { border-radius: 10px; padding: 11px 14px; background: var(--block-background-fill);
  border: 1px solid var(--border-color-primary); }
.status.bad { background: #fdecea; color: #8c1d13; border-color: #f3b8b1; }
.status .bar { height: 6px; border-radius: 3px; background: var(--border-color-primary); margin-top: 8px; }
.status .bar i { display: block; height: 6px; border-radius: 3px; background: var(--color-accent); }
#scores table { border-collapse: collapse; width: 100%; font-size: 14px; border: none; margin: 8px 0 0; }
#scores tr { border: none; }
#scores td { padding: 5px 14px 5px 0; border: none; border-top: 1px solid var(--border-color-primary);
  vertical-align: top; }
#scores td:nth-child(1) { white-space: nowrap; }
#scores td:nth-child(2) { text-align: right; font-variant-numeric: tabular-nums; font-weight: 600;
  white-space: nowrap; }
#scores td:nth-child(3) { opacity: .75; width: 100%; }
.chip { display: inline-block; border-radius: 99px; padding: 2px 12px; font-weight: 600; font-size: 14px;
  background: #e8e8ec; color: #333; }
.chip.good { background: #dcf3e3; color: #14612e; }
.chip.bad { background: #fde8d7; color: #8a3d06; }
.advice { margin: 8px 0; }
"""


def theme() -> gr.Theme:
    """The look of the page, with fonts that are here."""
    soft = gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"],
        font_mono=["ui-monospace", "DejaVu Sans Mono", "monospace"],
    )
    plain = {}
    for name in ("block_title", "block_label"):
        plain[f"{name}_background_fill"] = "transparent"
        plain[f"{name}_text_color"] = "*neutral_700"
        plain[f"{name}_text_color_dark"] = "*neutral_200"
        plain[f"{name}_background_fill_dark"] = "transparent"
    return soft.set(**plain, block_title_padding="0")


@dataclass(frozen=True)
class Controls:
    """What one sets."""

    picture: gr.Image
    examples: gr.Gallery
    task: gr.Dropdown
    source: gr.Textbox
    target: gr.Textbox
    caption: gr.Textbox
    sliders: dict[str, gr.Slider]
    edit: gr.Button
    stop: gr.Button
    reset: gr.Button

    def settings(self) -> list[Any]:
        """The components of Settings, in its order."""
        return [self.task, self.source, self.target, *self.sliders.values()]


@dataclass(frozen=True)
class Results:
    """What one sees."""

    status: gr.HTML
    pictures: dict[str, gr.Image]
    scores: gr.HTML
    history: gr.Gallery
    name: gr.Textbox
    use: gr.Button
    used: gr.HTML
    command: gr.Textbox


def open_page(line: CommandLine, studio: Studio, photographs: Path | None) -> gr.Blocks:
    """The page. photographs: a folder of more examples; None without."""
    with gr.Blocks(title="zero2gan studio", analytics_enabled=False) as page:
        gr.Markdown(
            "# zero2gan studio\nFind an edit's settings on one picture, before they make thousands of pairs.",
            elem_id="headline",
        )
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=340):
                controls = lay_out_controls(line)
            with gr.Column(scale=7, min_width=480):
                results = lay_out_results()
        states = [gr.State([]), gr.State(None), gr.State([])]
        Handlers(line, studio, photographs, controls, results, *states).connect(page)
    return page


def lay_out_controls(line: CommandLine) -> Controls:
    """The left column: picture, edit, sliders."""
    start = line.defaults(line.start_task)
    own = start.task == OWN_WORDS
    picture = gr.Image(
        label="1  Picture: drop one, or pick one below",
        format="png",
        sources=["upload", "clipboard"],
        height=262,
        elem_id="picture",
        buttons=[],
    )
    # Gradio would decode any file here, of any size: generate/sources.py reads it, and says what is wrong.
    setattr(picture, "preprocess", uploaded_path)  # noqa: B010 - a subclass makes Gradio write a .pyi beside us
    examples = gr.Gallery(
        label="Examples",
        columns=6,
        format="png",
        allow_preview=False,
        show_label=False,
        interactive=False,
        elem_id="examples",
        buttons=[],
    )
    task = gr.Dropdown(
        [*line.tasks(), (OWN_WORDS_LABEL, OWN_WORDS)], value=start.task, label="2  Edit", elem_id="task"
    )
    with gr.Row():
        source = gr.Textbox(start.source, label="from", interactive=own, max_length=200, elem_id="source")
        target = gr.Textbox(start.target, label="to", interactive=own, max_length=200, elem_id="target")
    with gr.Accordion("Caption of the picture", open=False):
        caption = gr.Textbox(
            "", show_label=False, max_length=400, info="Empty: the scene's own, or the task's template."
        )
    with gr.Row():
        edit = gr.Button("Edit", variant="primary", elem_id="edit", scale=3)
        stop = gr.Button("Stop", elem_id="stop", scale=1, min_width=80)
    sliders = {}
    for name in SLIDERS:
        label, text = HELP[name]
        low, high, step = slider_range(name, getattr(start, name))
        sliders[name] = gr.Slider(
            low, high, getattr(start, name), step=step, label=label, info=text, elem_id=name, buttons=[]
        )
    reset = gr.Button("Back to the task's own settings", size="sm", elem_id="reset")
    return Controls(picture, examples, task, source, target, caption, sliders, edit, stop, reset)


def uploaded_path(payload: Any) -> str | None:
    """The path of an uploaded file, which lies in the studio's own folder; None without a picture."""
    return payload.path if payload else None


def lay_out_results() -> Results:
    """The right column: pictures, scores, tries, and what to do with them."""
    status = gr.HTML(status_html("Pick a picture and press Edit."), elem_id="status")
    pictures = {}
    for names in (("edit", "reconstruction"), ("generator", "truth")):
        with gr.Row():
            for name in names:
                pictures[name] = gr.Image(
                    label=PLACES[name],
                    format="png",
                    interactive=False,
                    height=PICTURE_HEIGHT,
                    elem_classes="shown",
                    visible=name in ("edit", "reconstruction"),
                    elem_id=f"shown-{name}",
                    buttons=["download", "fullscreen"],
                )
    scores = gr.HTML(elem_id="scores")
    history = gr.Gallery(
        label="Tries: click one to have its settings back",
        columns=5,
        fit_columns=False,
        format="png",
        allow_preview=False,
        interactive=False,
        visible=False,
        elem_id="history",
        buttons=[],
    )
    with gr.Column(variant="panel"):
        name = gr.Textbox(
            "my-edit", label="3  Keep these settings as the task", max_length=60, elem_id="name"
        )
        use = gr.Button("Use these settings", elem_id="use")
        used = gr.HTML(elem_id="used")
        command = gr.Textbox(
            label="The command that makes the pairs",
            interactive=False,
            lines=2,
            visible=False,
            buttons=["copy"],
            elem_id="command",
        )
    return Results(status, pictures, scores, history, name, use, used, command)
