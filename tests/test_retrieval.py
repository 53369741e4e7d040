"""Retrieval by the miniature's scorer, inputs that the teacher makes itself, and sources that are none."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.loader import load
from configs.runs import pairs_dir
from generate import run
from generate.run import input_source
from generate.shards import read_pairs
from models.clip_scorer import ClipScorer
from models.miniature.scenes import Look, render, scene


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Three scenes in summer and three in winter, two with an aesthetics score; and what is no image."""
    folder = tmp_path_factory.mktemp("many")
    for seed in range(3):
        for season in ("summer", "winter"):
            render(scene(seed), Look(season)).save(folder / f"{season}{seed}.png")
    (folder / "summer0.json").write_text(json.dumps({"aesthetic": 4.0}))
    (folder / "summer1.json").write_text(json.dumps({"aesthetic": 9.5}))
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_nearest_to_the_source_words_are_kept(many, tmp_path, capsys):
    arguments = [
        "task=tree2winter",
        f"source.images={many}",
        "source.retrieve.k=3",
        "generate.pairs=99",
        f"runs_dir={tmp_path}",
    ]
    config = load(arguments)
    source = input_source(config)
    assert "1 of 7 images could not be read" in capsys.readouterr().out
    scorer = ClipScorer(config.scorer)
    text = scorer.text_features(["tree in summer"])[0]
    images = {path.name: np.asarray(Image.open(path)) for path in sorted(many.glob("*[0-9].png"))}
    cosines = {name: float(scorer.image_features([image])[0] @ text) for name, image in images.items()}
    best = sorted(cosines, key=lambda name: -cosines[name])
    assert list(source.names) == best[:3]
    assert source.load(0).source["similarity"] == pytest.approx(cosines[best[0]], abs=1e-3)
    (listing,) = (tmp_path / "retrieval").rglob("nearest-*.json")
    assert [row["id"] for row in json.loads(listing.read_text())["nearest"]] == best[:3]


def test_an_aesthetics_score_is_asked_for_where_there_is_one(many, tmp_path):
    arguments = [
        "task=tree2winter",
        f"source.images={many}",
        "source.retrieve.k=9",
        "source.retrieve.aesthetics=9",
        f"runs_dir={tmp_path}",
    ]
    names = set(input_source(load(arguments)).names)
    assert names == {"summer1.png", "summer2.png", "winter0.png", "winter1.png", "winter2.png"}


def test_images_are_looked_at_once(many, tmp_path, monkeypatch):
    arguments = ["task=tree2winter", f"source.images={many}", "source.retrieve.k=2", f"runs_dir={tmp_path}"]
    names = input_source(load(arguments)).names
    monkeypatch.setattr(ClipScorer, "image_features", lambda *_: pytest.fail("looked again"))
    assert input_source(load(arguments)).names == names and len(names) == 2


def test_prompts_alone(tiny_run, tmp_path):
    """Every prompt in turn, always another picture, no inversion; the same command makes the same pairs."""
    (tmp_path / "prompts.txt").write_text("a tree in summer\na green hill\n")
    runs = []
    for place in ("one", "two"):
        arguments = [
            *tiny_run,
            f"source.prompts={tmp_path}/prompts.txt",
            "edit.steps=2",
            f"runs_dir={tmp_path}/{place}",
        ]
        assert run.main(arguments) == 0
        runs.append(list(read_pairs(pairs_dir(load(arguments)))))
    captions = [pair.record["caption"] for pair in runs[0]]
    assert captions == [*["a tree in summer", "a green hill"] * 2, "a tree in summer"]
    assert len({pair.images["input"].tobytes() for pair in runs[0]}) == 5
    for pair, again in zip(*runs, strict=True):
        assert (pair.images["edit"] == again.images["edit"]).all()
        assert set(pair.record["noise"]) == {"inverted"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source.retrieve.k=2"], "name the images to choose from"),
        (["source.prompts=none.txt"], "source.prompts=none.txt: no such text file"),
        (["source.prompts=oak.txt", "source.images=."], "two sources"),
        (
            ["source.captioner=/nowhere/blip"],
            "source.captioner=/nowhere/blip: there is no such folder or file",
        ),
    ],
)
def test_wrong_sources(tiny_run, capsys, arguments, message):
    assert run.main([*tiny_run, *arguments]) == 2
    assert message in capsys.readouterr().err
