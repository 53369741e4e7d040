"""Every stage in turn through the demo, at a scale that takes half a minute: files of one stage are
what the next one reads.
"""

import numpy as np
from PIL import Image

from scripts import demo
from tests.helpers import TINY_TRAINING

TINY_WAY = [
    *TINY_TRAINING,
    "distill.images=8",
    "distill.save_every_images=4",
    "distill.validation_share=0.4",
    "export.formats=[]",
]


def test_the_whole_way_and_again(tiny_run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.effect_noise((70, 50), 60).convert("RGB").save(photos / "noise.jpg")
    arguments = [*tiny_run, *TINY_WAY, "task.clip_gain=-2", "demo.scenes=2", f"demo.photos={photos}"]
    assert demo.main([*arguments, "--dry-run"]) == 0 and not (tmp_path / "runs").exists()
    assert demo.main(arguments) == 0
    printed = capsys.readouterr().out
    run = tmp_path / "runs" / "tree2winter" / "miniature"
    page = (run / "report.html").read_text()
    assert "times faster on this machine" in printed and str(run / "report.html") in printed
    assert (
        page.count("data:image/png;base64,") >= 2 * 5 + 4
    )  # held-out rows with five pictures, one photograph without a truth
    for part in ("noise.jpg", "generator to the truth", "CLIP gain"):
        assert part in page

    shards = {path: path.stat().st_mtime_ns for path in run.rglob("*.tar")}
    assert len(shards) == 5  # three of pairs, one of held-out scenes, one of photographs
    assert demo.main(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*.tar")} == shards
    assert "3 of 3 shards already" in capsys.readouterr().out


def test_the_exported_generator_edits_a_folder(tiny_run, tmp_path):
    """distill/translate.py on what the stages before it left."""
    from distill import export, train, translate
    from filter import run as filter_run
    from generate import run as generate_run

    arguments = [*tiny_run, *TINY_WAY, "task.clip_gain=-2"]
    for stage in (generate_run, filter_run, train, export):
        assert stage.main(arguments) == 0
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (90, 40), (30, 120, 60)).save(pictures / "green.webp")
    run = tmp_path / "runs" / "tree2winter" / "miniature"
    assert translate.main([str(run), str(pictures), str(tmp_path / "edited")]) == 0
    assert np.asarray(Image.open(tmp_path / "edited" / "green.png")).shape == (32, 72, 3)
