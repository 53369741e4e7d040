"""The studio without its page: the models, held in memory, and one edit at a time, and all its scores.

What it makes of a picture is what `generate/run.py` makes of it with the same settings, to the pixel.
Shapes: B batch, C channels, H W pixels; pictures are RGB uint8 H x W x 3.
"""

from __future__ import annotations

import hashlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from configs.errors import UserError
from configs.files import find_file
from configs.runs import run_dir
from configs.schema import Config, Source
from filter.score_table import SCORES, flags_of
from filter.scores import PairScorer
from filter.selection import criteria, select
from generate import run as generate_run
from generate.captions import FROM_KEY, FROM_TEMPLATE, choose_caption
from generate.directions import edit_direction
from generate.editors import Editor
from generate.inversion import ddim_step
from generate.pairs import PairMaker
from generate.progress import watching
from generate.shards import Pair
from generate.sources import InputImage, InputSource, open_source
from models.clip_scorer import ClipScorer
from models.devices import pick_device
from models.pictures import batch_of, edit_of, images_of, resized
from models.segmenter import NounSegmenter, open_segmenter
from models.teacher import Teacher
from models.translator import OnnxModel, TranslateError, Translator
from scripts.measure.timing import medians
from scripts.measure.truth import held_out_scenes, true_edit
from scripts.workbench.settings import CommandLine, Settings

EXAMPLES = 8  # of each kind
PREVIEWS = 10  # of an edit: decoding a picture costs about as much as a step
GENERATOR_CALLS = 5  # the middle one counts


@dataclass(frozen=True)
class Moment:
    """How far an edit is: so many steps of its pass 'inversion' or 'edit'.

    picture: what the edit will look like, as of this step; None where none was decoded.
    """

    name: str
    done: int
    total: int
    picture: np.ndarray | None


@dataclass(frozen=True)
class Try:
    """One edit and what is known of it.

    pictures: 'input', 'edit', 'reconstruction', and where there are such 'generator' and 'truth'. scores:
    those of filter/score_table.py; and 'lpips_truth' and 'lpips_generator_truth' of a rendered scene.
    seconds: of the teacher. generator_ms: None without a generator. bounds: what the filter asks for, by
    score. verdict: why the filter would drop the pair, '' where it would keep it, None where that depends
    on other pairs or is not known. notes: what else to say, a line each.
    """

    settings: Settings
    on_scene: bool
    pictures: dict[str, np.ndarray]
    scores: dict[str, float | None]
    seconds: float
    generator_ms: float | None
    bounds: Mapping[str, float]
    verdict: str | None
    notes: Sequence[str]


class Stopped(Exception):
    """The edit was told to stop."""


class Studio:
    """Models of one teacher, and edits with them, one at a time.

    UserError without the teacher's weights.
    """

    def __init__(self, line: CommandLine) -> None:
        self.line = line
        config = generate_run.for_this_device(line.start)
        generate_run.refuse_side(config)
        settings = config.generate
        device = pick_device(config.device)
        self.teacher = Teacher(config.teacher, device, settings.dtype, checker=settings.safety_checker)
        self._examples: dict[str, tuple[InputImage, dict[str, str]]] = {}
        self._shown: dict[str, list[np.ndarray]] = {}  # examples by the look of the scenes among them
        self._clip: ClipScorer | None = None
        self._segmenter: NounSegmenter | None = None
        self._pair_scorer: PairScorer | None = None
        self._one_at_a_time = threading.Lock()
        self._stop = threading.Event()

    # ---- pictures ----

    def examples(self, settings: Settings, photographs: Path | None) -> list[np.ndarray]:
        """Pictures to try: of source.images, or held-out scenes; then those of a folder."""
        config = self.line.config(settings)
        look = dict(config.task.scene_input)
        if repr(look) not in self._shown:
            sources = []
            if config.source.images or config.source.scenes:
                sources.append(config.source if config.source.images else held_out_scenes(config))
            if photographs is not None:
                sources.append(Source(images=str(photographs)))
            pictures = []
            for origin in sources:
                source = open_source(origin, config.task, self.teacher.resolution, EXAMPLES)
                for index in range(min(len(source.names), EXAMPLES)):
                    item = source.load(index)
                    self._examples[_hash(item.image)] = (item, look)
                    pictures.append(item.image)
            self._shown[repr(look)] = pictures
        return self._shown[repr(look)]

    def _input(self, image_HWC: np.ndarray, config: Config, caption: str) -> tuple[InputImage, bool]:
        """The picture with its caption, and whether it is a scene that the task's true edit belongs to."""
        side = self.teacher.resolution
        name = f"picture-{_hash(image_HWC)[:8]}"
        item = InputImage(name, resized(image_HWC, side), "", "", {"id": name})
        look: dict[str, str] = {}
        if _hash(image_HWC) in self._examples:
            item, look = self._examples[_hash(image_HWC)]
        has_own = item.caption_from not in (FROM_KEY, FROM_TEMPLATE)  # which follow the settings
        own = {item.caption_from: item.caption} if has_own else {}
        words = replace(config.source, caption=caption or config.source.caption)
        text, origin = choose_caption(words, config.task, own)
        is_scene = "scene_seed" in item.source and look == config.task.scene_input
        return replace(item, caption=text, caption_from=origin), is_scene

    # ---- edits ----

    def stop(self) -> None:
        """End the edit that is being made, at its next step."""
        self._stop.set()

    def follow(self, image_HWC: np.ndarray, settings: Settings, caption: str = "") -> Iterator[Moment | Try]:
        """An edit as it happens: Moments, and at last the Try. Raises what `edit` raises."""
        told: queue.Queue[Moment | Try | BaseException] = queue.Queue()

        def work() -> None:
            try:
                told.put(self.edit(image_HWC, settings, caption, told.put))
            except BaseException as error:  # noqa: BLE001 - raised again in the thread that listens
                told.put(error)

        threading.Thread(target=work, daemon=True).start()
        while True:
            item = told.get()
            if isinstance(item, BaseException):
                raise item
            yield item
            if isinstance(item, Try):
                return

    def edit(
        self,
        image_HWC: np.ndarray,
        settings: Settings,
        caption: str = "",
        tell: Callable[[Moment], None] = lambda moment: None,
    ) -> Try:
        """Edit a picture, H x W x 3, that is square; waits for an edit that is being made.

        caption: '' for the scene's own, or the task's template. UserError for settings that do not go, an
        edit that is not finite or is flagged by the safety checker; Stopped after `stop`.
        """
        with self._one_at_a_time:
            self._stop.clear()
            config = generate_run.for_this_device(self.line.config(settings))
            item, is_scene = self._input(image_HWC, config, caption)
            cache = Path(config.runs_dir) / "directions"
            editor = Editor(
                self.teacher, edit_direction(self.teacher, config.task, config.direction, cache), config
            )
            began = time.monotonic()
            pair = self._pair(editor, item, tell)
            return self._judged(settings, config, pair, is_scene, time.monotonic() - began)

    def _pair(self, editor: Editor, item: InputImage, tell: Callable[[Moment], None]) -> Pair:
        """The pair that generate/run.py makes of the picture, with its reconstruction."""
        settings = replace(editor.config.generate, batch=1, save_reconstruction=True, save_latents=False)
        maker = PairMaker(editor, settings, None, {})
        source = InputSource([item.key], lambda index: item)
        left_out: list[dict[str, str]] = []
        with watching(_Follower(self.teacher, editor.config.edit.steps, tell, self._stop)):
            pairs = list(maker.pairs(source, range(1), left_out, lambda count: None))
        if not pairs:
            raise UserError(f"the edit is left out: {left_out[0]['why']} {left_out[0]['reason']}")
        return pairs[0]

    def _judged(self, settings: Settings, config: Config, pair: Pair, is_scene: bool, seconds: float) -> Try:
        """The pair with its scores, the generator's edit and the true edit, as far as there are such."""
        pictures = dict(pair.images)
        notes: list[str] = []
        scores: dict[str, float | None] = dict.fromkeys(SCORES)
        generator = fitting_generator(config)
        generator_ms = None
        if generator:
            pictures["generator"] = edit_of(generator, pair.images["input"])
            small = resized(pair.images["input"], generator.side)
            generator_ms = 1000 * medians({"": partial(generator, small)}, GENERATOR_CALLS)[""]
        if is_scene and config.task.scene_truth:
            side = self.teacher.resolution
            pictures["truth"] = true_edit(config, pair.record["source"], side)
        try:
            scorer = self._scorer(config, notes)
            scores |= {name: values[0] for name, values in scorer([pair]).items()}
            for name, picture in {"lpips_truth": "edit", "lpips_generator_truth": "generator"}.items():
                if "truth" in pictures and picture in pictures:
                    scores[name] = _distance(scorer, pictures[picture], pictures["truth"])
        except UserError as error:
            notes.append(f"no scores: {error}")
        bounds, verdict = _verdict(config, scores)
        on_scene = "scene_seed" in pair.record["source"]
        return Try(settings, on_scene, pictures, scores, seconds, generator_ms, bounds, verdict, notes)

    def _scorer(self, config: Config, notes: list[str]) -> PairScorer:
        """The filter's scorer for this task. notes: gets a line where there is no segmenter for a foreground.

        UserError without the weights of CLIP or LPIPS.
        """
        device = self.teacher.device
        self._clip = self._clip or ClipScorer(config.scorer, device)
        task = config.task
        if task.source_noun and self._segmenter is None:
            try:
                self._segmenter = open_segmenter(config.segmenter, self._clip, device)
            except UserError as error:
                notes.append(f"no overlap of the foregrounds: {error}")
                task = replace(task, source_noun="", target_noun="")
        if self._pair_scorer is None:
            without_foreground = replace(config, task=replace(task, source_noun="", target_noun=""))
            self._pair_scorer = PairScorer(without_foreground, device, self._clip)
        self._pair_scorer.task = task
        self._pair_scorer.segmenter = self._segmenter if task.source_noun else None
        return self._pair_scorer


class _Follower:
    """Watches an edit for a Studio: counts its steps, and decodes what the edit will look like."""

    def __init__(
        self, teacher: Teacher, steps: int, tell: Callable[[Moment], None], stop: threading.Event
    ) -> None:
        self.teacher = teacher
        self.every = max(1, steps // PREVIEWS)
        self.tell = tell
        self.stop = stop
        self.clean_BCHW: Tensor | None = None

    def predicted(self, latent_BCHW: Tensor, noise_BCHW: Tensor, alpha: float) -> None:
        """Keeps the clean latent: all noise is taken away at once, alpha_bar becomes 1."""
        self.clean_BCHW = ddim_step(latent_BCHW, noise_BCHW, alpha, 1.0)

    def stepped(self, name: str, done: int, total: int) -> None:
        """Tells, with a picture every few steps of the edit; raises Stopped."""
        if self.stop.is_set():
            raise Stopped
        picture = None
        if self.clean_BCHW is not None and done % self.every == 0:
            picture = images_of(self.teacher.decode(self.clean_BCHW))[0]
        self.tell(Moment(name, done, total, picture))


def fitting_generator(config: Config) -> Translator | None:
    """The exported generator of this edit: filter.generator's, the run's, or the one a training starts from.

    None where there is none of these words.
    """
    named = Path(find_file(config.filter.generator))
    of_run = run_dir(config) / "export" / "generator.onnx"
    shipped = Path(find_file(config.distill.init)).parent / "generator.onnx"
    for path in (named, of_run, shipped):
        if not path.is_file():
            continue
        try:
            generator = Translator(path, torch.get_num_threads())
        except TranslateError:
            continue
        if not isinstance(generator.model, OnnxModel):
            continue
        words = generator.model.session.get_modelmeta().custom_metadata_map
        if (words.get("source"), words.get("target")) == (config.task.source, config.task.target):
            return generator
    return None


def _verdict(config: Config, scores: Mapping[str, float | None]) -> tuple[Mapping[str, float], str | None]:
    """The filter's lower bounds by score, and why it would drop the pair: see Try.verdict."""
    chosen = criteria(config)
    if scores["clip_gain"] is None or chosen.keep is not None:
        return chosen.at_least, None
    row = {**scores, "key": "", "flags": flags_of(scores)}
    _, dropped = select([row], chosen)
    return chosen.at_least, dropped.get("", "")


def _distance(scorer: PairScorer, one_HWC: np.ndarray, other_HWC: np.ndarray) -> float:
    """LPIPS between two pictures, by the filter's network."""
    with torch.inference_mode():
        both_2CHW = batch_of([one_HWC, other_HWC], scorer.device)
        return scorer.perceptual(both_2CHW[:1], both_2CHW[1:]).item()


def _hash(image_HWC: np.ndarray) -> str:
    return hashlib.sha256(repr(image_HWC.shape).encode() + image_HWC.tobytes()).hexdigest()
