"""The studio: its settings as a command and a task file, its edits against generate/run.py, and its page."""

import io
import json
import shlex
import shutil
import socket
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from configs.errors import UserError
from configs.loader import load
from configs.schema import Direction, Guidance, Inversion
from filter import run as filter_run
from filter.score_table import read_scores
from generate import run as generate_run
from generate.directions import EditDirection
from generate.editors import Editor
from generate.pairs import make_editor
from generate.progress import watching
from generate.shards import read_pairs
from generate.sources import open_source
from models.devices import pick_device
from models.miniature.scenes import Look, render, scene
from models.perceptual import perceptual_loss
from models.pictures import batch_of, images_of
from models.teacher import Teacher
from models.translator import Translator
from scripts import studio
from scripts.measure.metrics import image_distances
from scripts.measure.truth import held_out_scenes
from scripts.workbench.engine import Moment, Stopped, Studio
from scripts.workbench.settings import OWN_WORDS, CommandLine
from tests.conftest import MINIATURE
from tests.helpers import BROWSER

STEPS = 2
FIRST_SCENE = 3_000_000  # of the held-out ones


# ---- settings ----


def test_a_command_says_what_differs_and_loads_as_it_was_set():
    line = CommandLine(["runs_dir=/r", "task=tree2fall", "direction.strength=3", "studio.port=0"])
    start = line.defaults("tree2fall")
    assert (start.source, start.target, start.strength) == ("tree in summer", "tree in autumn", 3)
    chosen = replace(start, amount=0.35, steps=7)
    command = shlex.split(line.command(chosen, True, "My task!"))
    assert command[:2] == ["zero2gan", "generate"]
    assert sorted(command[2:]) == sorted(
        [
            "runs_dir=/r",
            "task=tree2fall",
            "task.name=my-task",
            "direction.strength=3",
            "guidance.amount=0.35",
            "edit.steps=7",
        ]
    )
    config = load(command[2:])
    assert (config.direction.strength, config.guidance.amount, config.edit.steps) == (3, 0.35, 7)
    assert config.edit.keep == load(["task=tree2fall"]).edit.keep and config.runs_dir == "/r"
    assert "source.images=PHOTOS" in line.command(chosen, False, "x")
    assert line.defaults("oak2pine").strength == 3 and line.defaults(OWN_WORDS).strength == 3
    assert line.defaults("oak2pine").amount == load(["task=oak2pine"]).guidance.amount


@pytest.mark.parametrize("word", ["a cat: asleep", '{it\'s} "x" # $HOME `ls`', "x=y, [z]"])
def test_two_words_survive_the_shell_and_yaml(word, tmp_path):
    line = CommandLine([f"runs_dir={tmp_path}", "task=oak2pine", "task.overlap=0.5"])
    own = replace(line.defaults(OWN_WORDS), source=word, target=f"{word} two")
    config = load(shlex.split(line.command(own, True, "x"))[2:])
    assert (config.task.source, config.task.target) == (word, f"{word} two")
    assert config.task.overlap is None  # of the task that was given
    content = yaml.safe_load(line.task_file(own, "x").read_text())
    assert content["task"]["source"] == word and content["task"]["target"] == f"{word} two"


def test_a_task_file_is_the_same_edit(tmp_path, monkeypatch):
    """The file among the tasks, with the same choices: everything that decides a pair is equal."""
    shutil.copytree(generate_run.find_file("configs"), tmp_path / "configs")
    monkeypatch.setattr("configs.loader.HERE", tmp_path / "configs")
    line = CommandLine([f"runs_dir={tmp_path}", "inversion.lambda_kl=3", "preset=fast"])
    for task in ("tree2winter", "oak2pine", OWN_WORDS):
        settings = replace(line.defaults(task), strength=1.3, scale=4.5, steps=9, keep=0.2)
        if task == OWN_WORDS:
            settings = replace(settings, source="tree in winter", target="tree in summer")
        path = line.task_file(settings, "mine")
        shutil.copy(path, tmp_path / "configs" / "task" / "mine.yaml")
        mine = load(["preset=fast", "task=mine"])
        wanted = line.config(settings)
        assert replace(mine.task, name="") == replace(wanted.task, name="")
        for section in ("direction", "guidance", "edit", "inversion", "distill"):
            assert getattr(mine, section) == getattr(wanted, section), section
    names = sorted(path.name for path in (tmp_path / "tasks").iterdir())
    assert names == ["mine-2.yaml", "mine-3.yaml", "mine.yaml"]  # nothing was overwritten


def test_settings_that_do_not_go_are_told(tmp_path):
    line = CommandLine([f"runs_dir={tmp_path}"])
    settings = line.defaults("tree2winter")
    with pytest.raises(UserError, match="edit.steps=0: it is 1 or more"):
        line.config(replace(settings, steps=0))
    with pytest.raises(UserError, match="write two words"):
        line.config(replace(settings, task=OWN_WORDS, target=" "))
    with pytest.raises(UserError, match="'../..' names no task"):
        line.task_file(settings, "../..")
    assert not list(tmp_path.iterdir())
    assert set(line.tasks()) == {"tree2winter", "tree2fall", "oak2pine", "photo2sketch"}
    assert "cat2dog" in CommandLine(["preset=paper"]).tasks()


# ---- progress ----


@pytest.mark.parametrize(
    ("method", "mode"),
    [("pix2pix-zero", "paper"), ("pix2pix-zero", "official"), ("prompt-to-prompt", "paper")],
)
def test_who_watches_sees_every_step_and_changes_nothing(tiny_teacher_folder, method, mode):
    """The last prediction, taken on by DDIM's own equation, is the latent that the edit ends with."""
    config = load(["teacher=diffusers", f"teacher.path={tiny_teacher_folder}", "edit.steps=4"])
    config.edit.method = method
    config.edit.mode = mode
    config.guidance = Guidance()
    config.inversion = Inversion()
    config.direction = Direction()
    teacher = Teacher(config.teacher, pick_device("cpu"))
    direction = EditDirection(0.1 * torch.ones_like(teacher.embed(["a tree"])), "", "")
    editor = Editor(teacher, direction, config)
    image_BCHW = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1

    class Watch:
        steps: list = []
        last: tuple = ()

        def stepped(self, name, done, total):
            self.steps.append((name, done, total))

        def predicted(self, latent_BCHW, noise_BCHW, alpha):
            self.last = latent_BCHW.double(), noise_BCHW.double(), alpha

    watch = Watch()
    watch.steps = []
    with watching(watch):
        edited = editor(image_BCHW, ["a tree"], ["k"], True)
    alone = editor(image_BCHW, ["a tree"], ["k"], True)
    assert torch.equal(edited.pictures["edit"], alone.pictures["edit"])
    inverted = len(editor.inversion_steps)
    expected = [("inversion", n, inverted) for n in range(1, inverted + 1)]
    assert watch.steps == expected + [("edit", n, 4) for n in range(1, 5)]
    latent, noise, alpha = watch.last
    alpha_next = editor.schedule[-1].alpha_next
    clean = (latent - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    final = alpha_next**0.5 * clean + (1 - alpha_next) ** 0.5 * noise
    assert torch.allclose(final.float(), edited.latents["edit"], atol=1e-4)


# ---- edits ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The runs_dir of all edits here, with its directions."""
    return tmp_path_factory.mktemp("studio")


@pytest.fixture(scope="module")
def line(folder):
    return CommandLine([f"runs_dir={folder}"])


@pytest.fixture(scope="module")
def engine(line):
    return Studio(line)


@pytest.fixture(scope="module")
def quick(line):
    return replace(line.defaults("tree2winter"), steps=STEPS, strength=1.5)


def test_an_edit_is_the_pair_that_the_printed_command_makes_and_the_filter_scores(
    engine, line, quick, folder
):
    picture = engine.examples(quick, None)[0]
    told = list(engine.follow(picture, quick))
    made = told.pop()
    command = shlex.split(line.command(quick, True, "mine"))
    arguments = [*command[2:], f"source.first_seed={FIRST_SCENE}", "generate.pairs=1", "device=cpu"]
    assert generate_run.main(arguments) == 0
    (pair,) = read_pairs(folder / "mine" / "miniature" / "pairs")
    for name, image in pair.images.items():
        assert np.array_equal(made.pictures[name], image), name

    assert filter_run.main(arguments) == 0
    (row,) = read_scores(load(arguments))
    for name in ("clip_gain", "clip_directional", "lpips_input_edit", "sharpness_ratio"):
        assert made.scores[name] == pytest.approx(row[name], abs=1e-6), name
    selection = json.loads((folder / "mine" / "miniature" / "selection.json").read_text())
    assert made.bounds == {"clip_gain": pytest.approx(0.593)}
    assert selection["dropped"].get(pair.key, "") == made.verdict

    assert [moment.name for moment in told] == ["inversion"] * STEPS + ["edit"] * STEPS
    previews = [moment.picture for moment in told if moment.picture is not None]
    assert len(previews) == STEPS and previews[0].shape == picture.shape
    assert not np.array_equal(previews[0], previews[1])


def test_a_scene_has_a_true_edit_and_the_shipped_generator_fits(engine, quick):
    made = engine.edit(engine.examples(quick, None)[1], quick)
    truth = np.asarray(render(scene(FIRST_SCENE + 1), Look(season="winter")))
    assert np.array_equal(made.pictures["truth"], truth)
    shipped = Translator(MINIATURE / "generator" / "generator.onnx")
    assert np.array_equal(made.pictures["generator"], shipped(made.pictures["input"]))
    for name, score in {"edit": "lpips_truth", "generator": "lpips_generator_truth"}.items():
        distances = image_distances(perceptual_loss(), made.pictures[name][None], truth[None])
        assert made.scores[score] == pytest.approx(float(distances["lpips"][0]), abs=1e-4)
    assert made.generator_ms > 0 and made.seconds > 0 and made.on_scene and not made.notes


def test_a_photograph_has_no_truth_and_a_style_no_generator(engine, line):
    sketch = replace(line.defaults("photo2sketch"), steps=STEPS)
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    made = engine.edit(photo, sketch, "a photo of noise")
    assert set(made.pictures) == {"input", "edit", "reconstruction"} and not made.on_scene
    assert made.generator_ms is None and "lpips_truth" not in made.scores
    assert made.pictures["input"].shape == (128, 128, 3)


def test_an_edit_stops_and_the_next_one_goes_on(engine, quick):
    picture = engine.examples(quick, None)[0]
    seen = []

    def tell(moment):
        seen.append(moment)
        engine.stop()

    with pytest.raises(Stopped):
        engine.edit(picture, quick, tell=tell)
    assert len(seen) == 1
    with pytest.raises(UserError, match="edit.steps=-1"):
        list(engine.follow(picture, replace(quick, steps=-1)))
    assert isinstance(next(engine.follow(picture, quick)), Moment)
    with engine._one_at_a_time:  # that edit has ended
        pass


# ---- the page ----


@pytest.fixture(scope="module")
def page(folder):
    """The page in a headless Chromium. page.requests_made: the addresses of all its requests."""
    pytest.importorskip("gradio", reason="Gradio is not installed: pip install -e .[studio]")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if BROWSER is None:
        pytest.skip("no chromium or google-chrome on this machine")
    studio.import_gradio()
    arguments = [f"runs_dir={folder}", f"edit.steps={STEPS}", "direction.sentences=40"]
    with (
        studio.own_folder() as own,
        studio.serving(arguments, own, 0) as address,
        playwright.sync_playwright() as driver,
    ):
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1250})
        page.set_default_timeout(60_000)
        page.requests_made = []
        page.on("request", lambda request: page.requests_made.append(request.url))
        page.goto(address)
        page.wait_for_selector("#examples img")
        yield page
        browser.close()


def shown(page, selector):
    """The picture that an image of the page shows, RGB uint8."""
    answer = page.request.get(page.get_attribute(f"{selector} img", "src"))
    return np.asarray(Image.open(io.BytesIO(answer.body())).convert("RGB"))


def test_a_click_edits_as_the_editor_does(page, folder, tmp_path):
    page.locator("#examples button.thumbnail-item").nth(0).click()
    page.wait_for_selector("#picture img")
    page.click("#edit")
    page.wait_for_selector("#scores table")
    page.wait_for_selector("#history img")

    config = load([f"runs_dir={folder}", f"edit.steps={STEPS}"])
    editor = make_editor(config)
    item = open_source(held_out_scenes(config), config.task, 128, 1).load(0)
    assert np.array_equal(shown(page, "#picture"), item.image)
    edited = editor(batch_of([item.image]), [item.caption], [item.key], True)
    for name in ("edit", "reconstruction"):
        expected = images_of(edited.pictures[name])[0]
        assert np.array_equal(shown(page, f"#shown-{name}"), expected), name
    page.wait_for_selector("#shown-generator img")
    page.wait_for_selector("#shown-truth img")
    assert " ms" in page.inner_text("#shown-generator label")
    assert "CLIP gain" in page.inner_text("#scores") and f"{STEPS} steps" in page.inner_text("#status")

    page.click("#use")
    page.locator("#command textarea").wait_for()
    command = page.input_value("#command textarea")
    assert shlex.split(command)[2:] == [
        f"runs_dir={folder}",
        "direction.sentences=40",
        "task=tree2winter",
        f"edit.steps={STEPS}",
        "task.name=my-edit",
    ]
    written = yaml.safe_load((folder / "tasks" / "my-edit.yaml").read_text())
    assert written["edit"]["steps"] == STEPS and written["task"]["target"] == "tree in winter"
    page.screenshot(path=tmp_path / "studio.png", full_page=True)
    assert np.asarray(Image.open(tmp_path / "studio.png")).std() > 20


def test_own_words_and_tries_that_come_back(page):
    page.click("#task input")
    page.get_by_role("option", name="two words of my own").click()
    page.locator("#source textarea:enabled, #source input:enabled").first.fill("tree in winter")
    page.locator("#target textarea, #target input").first.fill("tree in <b>summer</b>")
    page.click("#headline")
    number = page.locator("#strength input[type=number]")
    number.fill("0.5")
    number.press("Tab")
    page.click("#edit")
    page.locator("#status", has_text="tree in <b>summer</b>: strength 0.5").wait_for()
    page.locator("#history img").nth(1).wait_for()
    assert page.locator("#shown-truth img").count() == 0

    page.locator("#history button.thumbnail-item").nth(1).click()
    page.locator("#status", has_text="tree in summer \u2192 tree in winter").wait_for()
    page.wait_for_selector("#shown-truth img")
    assert float(number.input_value()) == 2.0


def test_errors_are_lines_and_nothing_else_is_served(page, tmp_path, folder):
    address = page.url
    (tmp_path / "text.png").write_text("no picture")
    page.click("#picture button[aria-label='Remove Image']")
    page.click("#edit")
    page.locator("#status .bad", has_text="Pick a picture first").wait_for()
    page.set_input_files("#picture input[type=file]", str(tmp_path / "text.png"))
    page.wait_for_selector("#picture img")
    page.click("#edit")
    page.locator("#status .bad", has_text="no PNG, JPEG or WebP image").wait_for()
    bomb = np.zeros((9500, 9500), bool)  # 90 million pixels in a few kilobytes
    Image.fromarray(bomb).save(tmp_path / "bomb.png")
    page.click("#picture button[aria-label='Remove Image']")
    page.set_input_files("#picture input[type=file]", str(tmp_path / "bomb.png"))
    page.wait_for_selector("#picture img")
    page.click("#edit")
    page.locator("#status .bad", has_text="exceeds limit").wait_for()

    for path in (MINIATURE / "README.md", folder / "tasks" / "my-edit.yaml", "/etc/passwd"):
        answer = page.request.get(f"{address}gradio_api/file={path}")
        assert answer.status == 403, path
        assert "default-src 'self'" in answer.headers["content-security-policy"]
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(21 * 1024**2)}
    assert page.request.post(f"{address}gradio_api/upload", multipart={"files": large}).status == 413
    assert all(url.startswith((address, "data:", "blob:")) for url in page.requests_made)
    assert len(page.requests_made) > 20


def test_a_taken_port_and_an_absent_gradio_are_told(monkeypatch, capsys):
    with socket.create_server((studio.HOST, 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"studio.port={port} cannot be had"):
            studio.free_port(port)
    assert studio.free_port(0) > 0
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert studio.main([]) == 2
    assert "pip install -e '.[studio]'" in capsys.readouterr().err
