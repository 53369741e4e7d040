"""The exported page: what it is made of, and in a real browser that it edits as Python does."""

import functools
import http.server
import re
import shlex
import shutil
import threading

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from distill import browser
from models.translator import Translator, open_picture
from tests.helpers import colour_profile, export_tiny, opened_page

SIDE = 32
PIXELS = "name => Array.from(document.getElementById(name).getContext('2d').getImageData(0, 0, 32, 32).data)"


def blocks(seed, width):
    """A picture of random squares of eight pixels."""
    colours = np.random.default_rng(seed).integers(0, 256, (SIDE // 8, width // 8, 3), dtype=np.uint8)
    return colours.repeat(8, 0).repeat(8, 1)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A folder like <run>/export, with the page; its generator has random weights."""
    try:
        browser.npm_package()
    except UserError as error:
        pytest.skip(f"onnxruntime-web is not to be had: {error}")
    folder = tmp_path_factory.mktemp("export")
    export_tiny(folder, side=SIDE, source="a <b>cat", target="a dog")
    browser.write_page(folder, np.stack([blocks(seed, SIDE) for seed in (0, 10, 11, 12)]))
    return folder


@pytest.fixture(scope="module")
def page(export):
    """The page in a headless Chromium, served as `python -m http.server` does."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(export))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with opened_page("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream") as page:
        page.goto(f"http://127.0.0.1:{server.server_port}/")
        page.wait_for_selector("body[data-ready]", timeout=60_000)
        yield page
    server.shutdown()


def pixels(page, canvas):
    return np.array(page.evaluate(PIXELS, canvas)).reshape(SIDE, SIDE, 4)[..., :3]


def test_the_page_edits_as_python_does(page, export, tmp_path):
    translator = Translator(export)
    expected = translator(np.asarray(Image.open(export / "example-1.png"))).astype(int)
    assert np.abs(pixels(page, "after") - expected).max() <= 2
    assert page.inner_text("#title") == "a <b>cat \u2192 a dog"

    wide = blocks(1, 3 * SIDE)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    page.evaluate("document.getElementById('time').textContent = ''")
    page.set_input_files("#file", str(tmp_path / "wide.png"))
    page.locator("#time", has_text=" ms").wait_for()
    centre = wide[:, SIDE : 2 * SIDE]
    assert np.array_equal(pixels(page, "before"), centre)
    edit = pixels(page, "after")
    assert np.abs(edit - translator(centre).astype(int)).max() <= 2 and np.abs(edit - expected).max() > 20

    button = page.locator("#examples button").nth(2)  # of three: the fourth picture is left out
    page.evaluate("document.getElementById('time').textContent = ''")
    button.click()
    page.locator("#time", has_text=" ms in the generator").wait_for()
    page.locator("#examples [aria-pressed=true] [alt='example 3']").wait_for()
    assert (
        np.array_equal(pixels(page, "before"), blocks(11, SIDE))
        and page.locator("#examples img").count() == 3
    )
    assert page.inner_text("#status").startswith("WebAssembly, 32")

    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "text.png"))
    page.locator("#status", has_text="no picture").wait_for()
    address = page.url
    assert (
        all(url.startswith((address, "data:", "blob:")) for url in page.requests_made)
        and len(page.requests_made) >= 5
    )


def test_a_display_p3_picture_has_the_colours_that_python_reads(page, tmp_path):
    Image.fromarray(blocks(2, SIDE)).save(tmp_path / "p3.png", icc_profile=colour_profile())
    page.evaluate("document.getElementById('time').textContent = ''")
    page.set_input_files("#file", str(tmp_path / "p3.png"))
    page.locator("#time", has_text=" ms").wait_for()
    python = np.asarray(open_picture(tmp_path / "p3.png", SIDE)).astype(int)
    assert np.abs(pixels(page, "before") - python).max() <= 2
    assert np.abs(python - blocks(2, SIDE)).max() > 50


def test_both_pictures_are_shown_smooth_in_the_screens_pixels(page):
    """White left, black right: the enlarged edge is no step."""
    page.evaluate("""() => {
        const context = document.getElementById("after").getContext("2d");
        context.fillStyle = "white";
        context.fillRect(0, 0, 32, 32);
        context.fillStyle = "black";
        context.fillRect(16, 0, 16, 32);
    }""")
    page.set_viewport_size({"width": 500, "height": 800})  # drawn anew
    for _ in range(100):  # the page's policy forbids what wait_for_function does
        if page.evaluate("document.getElementById('after-shown').width") < 460:
            break
        page.wait_for_timeout(50)
    row = np.array(
        page.evaluate("""() => {
        const canvas = document.getElementById("after-shown");
        return Array.from(canvas.getContext("2d").getImageData(0, canvas.height / 2, canvas.width, 1).data);
    }""")
    ).reshape(-1, 4)[:, 0]
    assert len(row) > 300 and row[len(row) // 4] == 255 and row[3 * len(row) // 4] == 0
    between = (row > 20) & (row < 235)
    assert between.sum() >= 5  # of the 13 pixels from the middle of one to that of the next
    page.set_viewport_size({"width": 1280, "height": 720})


def test_what_is_loaded_is_told_while_it_comes(page):
    told = page.context.new_page()
    told.context.new_cdp_session(told).send(
        "Network.emulateNetworkConditions",
        {"offline": False, "latency": 0, "downloadThroughput": 8e6, "uploadThroughput": 8e6},
    )
    told.goto(page.url, wait_until="commit")
    told.wait_for_selector("#progress:not([hidden])")
    text = told.inner_text("#status")
    received, total = re.fullmatch(r"Loading the generator: ([\d.]+) of ([\d.]+) MB", text).groups()
    assert 0 < float(received) <= float(total)
    assert float(total) == pytest.approx(14.3, abs=0.3)  # onnxruntime-web's binary, and a tiny generator
    told.close()


def test_the_page_as_a_file_says_how_to_serve_it(page, export):
    for folder in (export, export.parent / "it's an export"):
        if folder != export:
            folder.mkdir()
            shutil.copy(export / "index.html", folder)
        file = page.context.new_page()
        file.goto((folder / "index.html").as_uri())
        file.wait_for_timeout(500)  # a module's error would come later
        command = file.inner_text("#status code")
        assert shlex.split(command) == ["python", "-m", "http.server", "-d", str(folder)]
        assert "http://localhost:8000" in file.inner_text("#status")
        file.close()


def test_the_slider_uncovers_the_edit_and_the_camera_runs(page, tmp_path):
    shots = {}
    for cut in (0, 100):
        move = f"slider => {{ slider.value = {cut}; slider.dispatchEvent(new Event('input')) }}"
        page.evaluate(move, page.query_selector("#slider"))
        page.locator("#stage").screenshot(path=tmp_path / f"{cut}.png")
        shot = Image.open(tmp_path / f"{cut}.png").convert("RGB")
        shots[cut] = np.asarray(shot.resize((SIDE, SIDE), Image.Resampling.BOX)).astype(int)
    inner = slice(SIDE // 4, -SIDE // 4)  # no labels there
    for cut, shown, other in ((0, "after", "before"), (100, "before", "after")):
        near = np.abs(shots[cut] - pixels(page, shown))[inner, inner].mean()
        far = np.abs(shots[cut] - pixels(page, other))[inner, inner].mean()
        assert near < 0.5 * far
    still = pixels(page, "before")
    page.click("#camera")
    page.locator("#camera", has_text="Stop").wait_for()
    for _ in range(100):
        if not np.array_equal(pixels(page, "before"), still):
            break
        page.wait_for_timeout(100)
    else:
        pytest.fail("no frame of the camera in ten seconds")
    page.click("#camera")
    assert page.inner_text("#camera") == "Camera"


def test_another_package_or_none_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = tmp_path / "cache" / "zero2gan" / f"onnxruntime-web-{browser.VERSION}.tgz"
    monkeypatch.setattr(browser, "ADDRESS", f"file://{tmp_path}/nowhere.tgz")
    with pytest.raises(UserError, match=r"nowhere.tgz cannot be read .*put what `npm pack .* gets there"):
        browser.npm_package()

    (tmp_path / "other.tgz").write_bytes(b"not it")
    monkeypatch.setattr(browser, "ADDRESS", f"file://{tmp_path}/other.tgz")
    with pytest.raises(UserError, match="other.tgz is not onnxruntime-web"):
        browser.npm_package()
    assert not (tmp_path / "cache").exists()
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"not it either")
    with pytest.raises(UserError, match=f"{cached} is not onnxruntime-web .* gets there as {cached}"):
        browser.npm_package()

    cached.unlink()
    monkeypatch.setattr(browser, "INTEGRITY", browser.integrity(b"not it"))
    assert browser.npm_package() == b"not it" == cached.read_bytes()
    monkeypatch.setattr(browser, "ADDRESS", f"file://{tmp_path}/nowhere.tgz")
    assert browser.npm_package() == b"not it"
