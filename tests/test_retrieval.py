"""Retrieval and captions, by the miniature's scorer and a BLIP of random weights, through the command line."""

import json

import numpy as np
import pytest
import torch
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
    """Three scenes in summer and three in winter, every other one with an aesthetics score; and something that is no image."""
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
    found = input_source(config)
    assert "1 of 7 images could not be read" in capsys.readouterr().out
    scorer = ClipScorer(config.scorer)
    text = scorer.text_features(["tree in summer"])[0]
    images = {path.name: np.asarray(Image.open(path)) for path in sorted(many.glob("*[0-9].png"))}
    cosines = {name: float(scorer.image_features([image])[0] @ text) for name, image in images.items()}
    best = sorted(cosines, key=lambda name: -cosines[name])
    assert list(found.names) == best[:3]
    assert found.load(0).source["similarity"] == pytest.approx(cosines[best[0]], abs=1e-3)
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
    found = input_source(load(arguments))
    names = set(found.names)
    assert names == {"summer1.png", "summer2.png", "winter0.png", "winter1.png", "winter2.png"}


def test_images_are_looked_at_once(many, tmp_path, monkeypatch):
    arguments = ["task=tree2winter", f"source.images={many}", "source.retrieve.k=2", f"runs_dir={tmp_path}"]
    names = input_source(load(arguments)).names
    monkeypatch.setattr(ClipScorer, "image_features", lambda *_: pytest.fail("looked again"))
    found = input_source(load(arguments))
    assert found.names == names and len(names) == 2


def test_blip_captions_what_has_none(tiny_run, many, tmp_path):
    """The record holds what the model itself generates for the picture, and says so; a caption of its own stays."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "tree", "house", "snow", "hill"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {
        "vocab_size": len(words),
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    config = BlipConfig(
        text_config={**sizes, **special, "encoder_hidden_size": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    model = BlipForConditionalGeneration(config).eval()
    processor = BlipProcessor(
        BlipImageProcessor(size={"height": 32, "width": 32}), BertTokenizerFast(str(tmp_path / "vocab.txt"))
    )
    model.save_pretrained(tmp_path / "blip")
    processor.save_pretrained(tmp_path / "blip")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("summer0", "winter1"):
        (photos / f"{name}.png").write_bytes((many / f"{name}.png").read_bytes())
    (photos / "winter1.txt").write_text("a hill in snow")
    arguments = [*tiny_run, f"source.images={photos}", f"source.captioner={tmp_path}/blip"]
    assert run.main(arguments) == 0
    first, second = read_pairs(pairs_dir(load(arguments)))
    pixels = processor(images=Image.fromarray(first.images["input"]), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = processor.decode(
            model.generate(pixel_values=pixels, max_new_tokens=40)[0], skip_special_tokens=True
        )
    assert (first.record["caption"], first.record["caption_from"]) == (
        expected,
        "source.captioner",
    ) and expected.strip()
    assert (second.record["caption"], second.record["caption_from"]) == ("a hill in snow", "winter1.txt")


def test_prompts_alone(tiny_run, tmp_path):
    """Every prompt in turn, each time another picture, no inversion; the same again from the same command elsewhere."""
    (tmp_path / "prompts.txt").write_text("a tree in summer\na green hill\n")
    found = []
    for place in ("one", "two"):
        arguments = [
            *tiny_run,
            f"source.prompts={tmp_path}/prompts.txt",
            "edit.steps=2",
            f"runs_dir={tmp_path}/{place}",
        ]
        assert run.main(arguments) == 0
        found.append(list(read_pairs(pairs_dir(load(arguments)))))
    assert [pair.record["caption"] for pair in found[0]] == ["a tree in summer", "a green hill"] * 2 + [
        "a tree in summer"
    ]
    assert len({pair.images["input"].tobytes() for pair in found[0]}) == 5
    for one, two in zip(*found, strict=True):
        assert (one.images["edit"] == two.images["edit"]).all() and set(one.record["noise"]) == {"inverted"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["source.retrieve.k=2"], "name the images to choose from"),
        (["source.prompts=none.txt"], "source.prompts=none.txt: no such sentence bank"),
        (["source.prompts=oak.txt", "source.images=."], "two sources"),
        (["source.captioner=/nowhere/blip"], "source.captioner=/nowhere/blip does not load as a BLIP model"),
    ],
)
def test_wrong_sources(tiny_run, capsys, arguments, says):
    assert run.main([*tiny_run, *arguments]) == 2
    assert says in capsys.readouterr().err
