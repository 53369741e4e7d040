"""docs/editors.md keeps its word: one file and one entry, as printed there, are an editing method."""

import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from configs.cli import entry
from configs.errors import UserError
from configs.loader import load
from generate.editors import Edited, PictureEditor
from generate.shards import read_pairs
from tests.helpers import ROOT

PAGE = (ROOT / "docs" / "editors.md").read_text()
COPIED = ("configs", "generate")  # what the two blocks change
LINKED = ("models", "filter")


@pytest.fixture
def clone(tmp_path):
    """A clone of the project with the page's file and entry, and nothing else."""
    file, entry_line = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (name,) = re.findall(r"`(generate/\w+\.py)`:\n", PAGE)
    folder = tmp_path / "clone"
    for part in COPIED:
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in LINKED:
        (folder / part).symlink_to(ROOT / part)
    (folder / name).write_text(file)
    table = folder / "configs" / "methods.py"
    table.write_text(table.read_text().replace("METHODS = {\n", f"METHODS = {{\n{entry_line}"))
    return folder


def test_one_file_and_one_entry_are_a_method(clone, tmp_path):
    """The page's command on two photographs: the edit is the snow that its text promises."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number, level in enumerate((10, 200)):
        Image.new("RGB", (40, 40), (level, level, level)).save(photos / f"{number}.png")
    (command,) = re.findall(r"^    python (generate/run.py .*edit.method=snow.*)$", PAGE, re.MULTILINE)
    arguments = command.replace("PHOTOS", str(photos)).split()
    runs = tmp_path / "runs"
    settings = ["teacher.resolution=32", f"runs_dir={runs}", "device=cpu"]
    done = subprocess.run(
        [sys.executable, *arguments, *settings],
        cwd=clone,
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": str(clone), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "edited by snow" in done.stdout
    dark, bright = read_pairs(runs / "tree2winter" / "snow" / "pairs")
    assert dark.record["method"] == "snow"
    assert dark.images["edit"].mean() > dark.images["input"].mean()
    white = (bright.images["edit"] == 255).all(-1).mean()
    assert 0.005 < white < 0.05  # flakes; the rest is nearly white
    assert np.median(bright.images["edit"]) == round(200 + 55 * (200 / 255) ** 0.5)


def test_help_and_errors_know_it(clone):
    """In a process of its own: the table is read once."""
    probe = "from configs.loader import load; load(['edit.method=magic'])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=clone, capture_output=True, text=True)
    assert "it is snow, sdedit" in done.stderr


class Own(PictureEditor):
    """Gives what it is told to."""

    made: Edited

    def edit(self, image_BCHW, captions, generators):
        """The prepared result."""
        return self.made


def test_an_edit_of_another_shape_is_refused():
    own = Own(load(["edit.method=pipeline"]), torch.device("cpu"))
    own.made = Edited({"edit": torch.zeros(1, 3, 8, 9)})
    with pytest.raises(UserError, match="an edit has the shape of its input"):
        own(torch.zeros(1, 3, 8, 8), ["a tree"], ["key"], False)


def test_what_an_edit_leaves_alone_is_kept_for_any_editor():
    """edit.keep, by the input's own pixels."""
    image = torch.rand(1, 3, 32, 32) - 0.5
    edited = image + 0.01
    edited[:, :, :16] = 1.0
    own = Own(load(["edit.method=pipeline", "edit.keep=0.8"]), torch.device("cpu"))
    own.made = Edited({"edit": edited})
    kept = own(image, ["a tree"], ["key"], False).pictures["edit"]
    assert torch.equal(kept[:, :, 20:], image[:, :, 20:])
    assert torch.equal(kept[:, :, :12], edited[:, :, :12])


COMMANDS = re.findall(r"^    python (\S+\.py)([^\\\n]*(?:\\\n.*)?)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("path", "rest"), COMMANDS)
def test_every_command_of_the_page_is_understood(path, rest, capsys):
    """Its keys exist and take their values; a method of one's own is not in the table here."""
    words = shlex.split(rest.replace("\\\n", " ").replace("=snow", "=pipeline"))
    assert words and (ROOT / path).is_file()
    assert entry("doc", (), lambda config: None, lambda config: {}, words) == 0, capsys.readouterr().err
