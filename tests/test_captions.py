"""Which caption an input gets, and a BLIP of random weights through the command line."""

import numpy as np
import pytest
import torch
from PIL import Image

from configs.loader import load
from configs.runs import pairs_dir
from configs.schema import Source, Task
from generate import run
from generate.captions import caption_the_rest, choose_caption
from generate.shards import read_pairs
from generate.sources import InputImage

TASK = Task(source="tree", caption="a photo of a {source}")


@pytest.mark.parametrize(
    ("key", "own", "expected"),
    [
        ("mine", {"a.txt": "its own"}, ("mine", "source.caption")),
        ("", {"txt": "the text", "json": "the JSON"}, ("the text", "txt")),
        ("", {"txt": "", "json": "the JSON"}, ("the JSON", "json")),
        ("", {"txt": "", "json": ""}, ("a photo of a tree", "task.caption")),
        ("", {}, ("a photo of a tree", "task.caption")),
    ],
)
def test_the_nearest_caption_is_taken(key, own, expected):
    assert choose_caption(Source(caption=key), TASK, own) == expected


def test_the_captioner_sees_what_has_no_caption_alone():
    """And where it has nothing to say the template stays."""

    def captioner(images):
        return ["" if image.max() == 0 else f"level {image.max()}" for image in images]

    origins = ("task.caption", "a.txt", "task.caption")
    inputs = []
    for level, origin in enumerate(origins):
        image = np.full((2, 2, 3), level, np.uint8)
        inputs.append(InputImage(f"image-{level}", image, "a tree", origin, {"id": str(level)}))
    captioned = caption_the_rest(inputs, captioner)
    assert [item.caption for item in captioned] == ["a tree", "a tree", "level 2"]
    assert [item.caption_from for item in captioned] == ["task.caption", "a.txt", "source.captioner"]
    assert caption_the_rest(inputs, None) == inputs


def tiny_blip(folder):
    """The processor and the model of a BLIP of random weights that knows ten words, saved in the folder."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    torch.manual_seed(0)
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "tree", "house", "snow", "hill"]
    (folder / "vocab.txt").write_text("\n".join(words))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"bos_token_id": 2, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    config = BlipConfig(
        text_config={**sizes, **special, "vocab_size": len(words), "encoder_hidden_size": 16},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
    )
    model = BlipForConditionalGeneration(config).eval()
    image_processor = BlipImageProcessor(size={"height": 32, "width": 32})
    processor = BlipProcessor(image_processor, BertTokenizerFast(str(folder / "vocab.txt")))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return processor, model


def test_blip_captions_what_has_none(tiny_run, tmp_path):
    """The record holds what the model itself generates for the picture; an image's own caption stays."""
    processor, model = tiny_blip(tmp_path / "blip")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name, colour in (("bare", (20, 140, 60)), ("captioned", (230, 230, 250))):
        noise = Image.effect_noise((40, 40), 60).convert("RGB")
        Image.blend(noise, Image.new("RGB", (40, 40), colour), 0.5).save(photos / f"{name}.png")
    (photos / "captioned.txt").write_text("a hill in snow")
    arguments = [*tiny_run, f"source.images={photos}", f"source.captioner={tmp_path}/blip"]
    assert run.main(arguments) == 0
    bare, captioned = read_pairs(pairs_dir(load(arguments)))
    pixels = processor(images=Image.fromarray(bare.images["input"]), return_tensors="pt").pixel_values
    with torch.no_grad():
        tokens = model.generate(pixel_values=pixels, max_new_tokens=40)
    expected = processor.decode(tokens[0], skip_special_tokens=True)
    assert expected.strip()
    assert (bare.record["caption"], bare.record["caption_from"]) == (expected, "source.captioner")
    assert captioned.record["caption"] == "a hill in snow"
    assert captioned.record["caption_from"] == "captioned.txt"
