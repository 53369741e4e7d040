"""The whole way, as a user goes it, on published layouts of teachers and judges with random weights.

Each case makes pairs twice: of the layout, and of the same weights in diffusers' own. They must be the
same pairs. Then filter, training, export, translate and evaluate run on them.
"""

import json
import math
import shutil

import numpy as np
import onnxruntime
import open_clip
import pytest
import torch
from open_clip.factory import add_model_config
from PIL import Image
from safetensors.torch import load_file

import distill.export
import distill.train
import distill.translate
import filter.run
import generate.run
from configs.loader import load
from filter.score_table import SCORES, read_scores
from generate.shards import read_pairs
from scripts import evaluate, rehearse
from scripts.published import judges
from scripts.published.stable_diffusion import write_stable_diffusion
from tests import layouts
from tests.helpers import TINY_CLIP, make_scorer_folder, mean, printed_tables, tiny_sam
from tests.test_captions import tiny_blip

WIDTH = 0.1
SIDE = rehearse.REDUCED_SIDE
COMMANDS = {
    "generate": generate.run.main,
    "filter": filter.run.main,
    "train": distill.train.main,
    "export": distill.export.main,
    "translate": distill.translate.main,
    "evaluate": evaluate.main,
}


# ---- the layouts ----


def as_it_is(folder):
    return {"teacher.path": folder}


def sharded(folder):
    layouts.to_shards(folder)
    return as_it_is(folder)


def pickled(folder):
    layouts.to_old_attention(folder)
    layouts.to_bin(folder)
    return as_it_is(folder)


def single_file(folder):
    file = folder.parent / "single.safetensors"
    layouts.write_single_file(folder, file)
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return {"teacher.path": file, "teacher.config": folder}


# ---- the judges ----


def published_judges(folder, monkeypatch):
    """OpenAI's archive of a CLIP, a checkpoint of segment-anything, a BLIP."""
    wide = TINY_CLIP["vision_cfg"] | {"width": 64}  # OpenAI's format implies heads of 64
    texts = TINY_CLIP["text_cfg"] | {"context_length": 77, "width": 64, "heads": 1}
    del wide["head_width"]
    (folder / "names").mkdir()
    described = TINY_CLIP | {"vision_cfg": wide, "text_cfg": texts}
    (folder / "names" / "ViT-chain.json").write_text(json.dumps(described))
    add_model_config(folder / "names")
    model = open_clip.create_model("ViT-chain", force_quick_gelu=True)
    archive = judges.write_clip_archive(folder / "archive" / "ViT-chain.pt", model)
    monkeypatch.setattr("models.segmenter.sam_model_registry", {"vit_b": tiny_sam})
    torch.save(tiny_sam().state_dict(), folder / "sam_vit_b.pth")
    tiny_blip(folder / "blip")
    return {
        "scorer.model": "ViT-chain",
        "scorer.pretrained": archive,
        "segmenter.model": "vit_b",
        "segmenter.checkpoint": folder / "sam_vit_b.pth",
        "segmenter.points_per_side": 2,
        "source.captioner": folder / "blip",
        "evaluate.dino": "",
    }


def judges_by_name(folder, monkeypatch):
    """A folder of open_clip's, Grounding DINO and SAM 2."""
    return {
        "scorer.model": f"local-dir:{make_scorer_folder(folder / 'clip')}",
        "scorer.pretrained": "",
        "segmenter.detector": judges.write_grounding_dino(folder / "detector", small=True),
        "segmenter.model": judges.write_sam2(folder / "sam2", small=True),
        "evaluate.dino": "",
    }


def miniature_s(folder, monkeypatch):
    return rehearse.SMALL_JUDGES


CASES = {
    "sd14": (as_it_is, published_judges),
    "sd15": (pickled, judges_by_name),
    "sd21-base": (sharded, miniature_s),
    "sd21": (single_file, miniature_s),
}


def arguments(folder, keys):
    """Command -> its arguments, as the rehearsal has them."""
    texts = {key: str(value) for key, value in keys.items()}
    lines = {}
    for stage, words in rehearse.stages(folder, texts, SIDE, WIDTH).items():
        lines[stage] = words[2:]  # without Python and the script
    lines["export"].append("export.formats=[float]")
    return lines


def pairs_of(run):
    return {pair.key: pair for pair in read_pairs(run / "pairs")}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_way(name, tmp_path, monkeypatch, capsys):
    change, write_judges = CASES[name]
    original = write_stable_diffusion(tmp_path / "original", name, WIDTH)
    keys = change(shutil.copytree(original, tmp_path / "teacher" / name))
    keys |= write_judges(tmp_path, monkeypatch)
    rehearse.write_photos(tmp_path, SIDE)
    rehearse.write_photos(tmp_path / "plain", SIDE)

    plain = keys | as_it_is(original) | {"teacher.config": ""}
    assert generate.run.main(arguments(tmp_path / "plain", plain)["generate"]) == 0
    printed = {}
    for stage, words in arguments(tmp_path, keys).items():
        capsys.readouterr()
        assert COMMANDS[stage](words) == 0, stage
        printed[stage] = capsys.readouterr().out

    run = tmp_path / "runs" / "cat2dog" / "diffusers"
    pairs = pairs_of(run)
    expected = pairs_of(tmp_path / "plain" / "runs" / "cat2dog" / "diffusers")
    assert len(pairs) == rehearse.PHOTOS and pairs.keys() == expected.keys()
    for key, pair in pairs.items():
        for picture, image_HWC in pair.images.items():
            difference = np.abs(image_HWC.astype(int) - expected[key].images[picture])
            assert difference.max() <= 1, (key, picture)  # tensors that lie elsewhere round otherwise
        assert pair.record["caption"] == expected[key].record["caption"] != ""

    rows = read_scores(load(arguments(tmp_path, keys)["filter"]))
    assert [row["key"] for row in rows] == sorted(pairs)
    assert all(math.isfinite(row[score]) for row in rows for score in SCORES if row[score] is not None)
    assert all(row["area_input"] is not None for row in rows)

    weights = load_file(run / "export" / "generator.safetensors")
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    session = onnxruntime.InferenceSession(run / "export" / "generator.onnx")
    assert session.get_inputs()[0].shape[1:] == [SIDE, SIDE, 3]
    edited = [np.asarray(Image.open(file)) for file in sorted((tmp_path / "edited").glob("*.png"))]
    assert [image.shape for image in edited] == [(SIDE, SIDE, 3)] * rehearse.PHOTOS

    (table,) = printed_tables(printed["evaluate"])
    assert set(table) == {"pix2pix-zero scale 5 amount 0.1 strength 1", "distilled", "input unchanged"}
    for row in table.values():
        assert 0 <= mean(row["CLIP-Acc"]) <= 1 and mean(row["LPIPS to input"]) >= 0
