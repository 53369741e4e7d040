"""The networks that judge, from the files they are published in: the library's own result from the same
weights, or one line that says what is wrong.
"""

import json

import open_clip
import pytest
import torch
import transformers
from open_clip.factory import add_model_config
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry

from configs.errors import UserError
from configs.schema import Scorer, Segmenter
from generate.captions import blip_captioner
from models import clip_scorer
from models.clip_scorer import ClipScorer
from models.segmenter import load_sam
from models.weights import from_transformers
from scripts.published.judges import openai_tensors, write_clip_archive
from tests import layouts
from tests.helpers import tiny_sam
from tests.test_captions import tiny_blip

CLIP = {  # of the width of a head that OpenAI's format implies: 64
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
NAME = "ViT-tiny"
TEXTS = ["a cat", "a dog on a roof"]


@pytest.fixture(scope="module")
def openai(tmp_path_factory):
    """A model with QuickGELU, in OpenAI's format, and open_clip's name for one of its sizes."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / f"{NAME}.json").write_text(json.dumps(CLIP))
    add_model_config(folder)
    torch.manual_seed(0)
    model = open_clip.create_model(NAME, force_quick_gelu=True)
    write_clip_archive(folder / "archive" / f"{NAME}.pt", model)
    torch.save(dict(openai_tensors(model)), folder / "tensors.pt")
    return folder


def features(model, size=32):
    torch.manual_seed(1)
    with torch.no_grad():
        image_BD = model.encode_image(torch.randn(2, 3, size, size))
        text_BD = model.encode_text(open_clip.tokenize(TEXTS))
    return torch.cat([image_BD, text_BD])


@pytest.fixture(scope="module")
def expected(openai):
    """By open_clip's own path of OpenAI's files."""
    return features(open_clip.load_openai_model(str(openai / "archive" / f"{NAME}.pt"), "fp32", "cpu"))


@pytest.mark.parametrize("file", [f"archive/{NAME}.pt", "tensors.pt"])
def test_openai_s_files_are_run_with_their_own_activation(openai, expected, file):
    model = ClipScorer(Scorer(NAME, str(openai / file))).model
    assert torch.allclose(features(model), expected, atol=1e-5)
    plain = open_clip.create_model(NAME)
    open_clip.load_checkpoint(plain, str(openai / "tensors.pt"), strict=False)
    assert not torch.allclose(features(plain), expected, atol=1e-3)  # with the wrong one


@pytest.mark.parametrize("by_folder", [True, False])
def test_the_hub_s_file_takes_the_activation_from_its_configuration(openai, expected, tmp_path, by_folder):
    tensors = torch.load(openai / "tensors.pt")
    file = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensors[name].float() for name in tensors.keys() - clip_scorer.OPENAI_ENTRIES}, file)
    config = {"model_cfg": CLIP | {"quick_gelu": True}, "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    settings = Scorer(f"local-dir:{tmp_path}", "") if by_folder else Scorer(NAME, str(file))
    scorer = ClipScorer(settings)
    assert torch.allclose(features(scorer.model), expected, atol=1e-5)
    assert tuple(scorer.mean) == (0.5, 0.5, 0.5)


def test_a_lone_file_that_does_not_tell_its_activation_is_refused(openai, tmp_path, monkeypatch):
    tensors = torch.load(openai / "tensors.pt")
    file = tmp_path / "clip.safetensors"
    save_file({name: tensors[name].float() for name in tensors.keys() - clip_scorer.OPENAI_ENTRIES}, file)
    with pytest.raises(UserError, match=r"set scorer.model=ViT-L-14-quickgelu .*open_clip_config.json"):
        ClipScorer(Scorer("ViT-L-14", str(file)))
    ClipScorer(Scorer(NAME, str(file)))  # of which there is one activation only


def test_the_hub_s_folder_has_the_picture_s_half_beside_the_whole(openai, expected, tmp_path):
    """timm's repositories of OpenAI's weights do, and `hf download` brings both."""
    tensors = {name: tensor.float() for name, tensor in torch.load(openai / "tensors.pt").items()}
    whole = {name: tensors[name] for name in tensors.keys() - clip_scorer.OPENAI_ENTRIES}
    save_file(whole, tmp_path / "open_clip_model.safetensors")
    half = {name.removeprefix("visual."): whole[name] for name in whole if name.startswith("visual.")}
    save_file(half, tmp_path / "model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP | {"quick_gelu": True}}))
    assert torch.allclose(
        features(ClipScorer(Scorer(f"local-dir:{tmp_path}", "")).model), expected, atol=1e-5
    )


def test_a_configuration_beside_a_file_contradicts_no_name(openai, tmp_path):
    tensors = torch.load(openai / "tensors.pt")
    file = tmp_path / "open_clip_model.safetensors"
    save_file({name: tensors[name].float() for name in tensors.keys() - clip_scorer.OPENAI_ENTRIES}, file)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": CLIP}))
    with pytest.raises(UserError, match=r"has QuickGELU, .* says GELU: set scorer.model=ViT-B-32$"):
        ClipScorer(Scorer("ViT-B-32-quickgelu", str(file)))
    with pytest.raises(UserError, match="scorer.model=ViT-B-32 .*(lacks|another shape)"):  # it is no ViT-B-32
        ClipScorer(Scorer("ViT-B-32", str(file)))


def test_how_pictures_were_normalised_is_not_guessed(openai, tmp_path, monkeypatch):
    """A lone file of an architecture whose tags agree on it has theirs: a SigLIP is normalised by .5."""
    tensors = torch.load(openai / "tensors.pt")
    file = tmp_path / "clip.safetensors"
    save_file({name: tensors[name].float() for name in tensors.keys() - clip_scorer.OPENAI_ENTRIES}, file)
    found = clip_scorer.find_checkpoint(Scorer("ViT-B-16-SigLIP", str(file)))
    assert found.preprocessing["mean"] == (0.5, 0.5, 0.5) and not found.quick_gelu
    monkeypatch.setattr(clip_scorer, "_fetched", lambda settings, tag: file)
    laion = clip_scorer.find_checkpoint(Scorer("ViT-L-14", "laion2b_s32b_b82k"))
    assert laion.preprocessing["mean"] == (0.5, 0.5, 0.5) and not laion.quick_gelu


def test_embeddings_of_places_are_not_fitted_to_another_size(openai, tmp_path):
    tensors = torch.load(openai / "tensors.pt")
    grid_ND = tensors["visual.positional_embedding"]
    tensors["visual.positional_embedding"] = torch.cat([grid_ND, grid_ND[1:], grid_ND[1:], grid_ND[1:]])
    torch.save(tensors, tmp_path / "larger.pt")
    with pytest.raises(UserError, match="another shape, the first is visual.positional_embedding"):
        ClipScorer(Scorer(NAME, str(tmp_path / "larger.pt")))


class Running(torch.nn.Module):
    """An archive of it runs __setstate__ when it is read."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self) -> int:
        return 0

    @torch.jit.export
    def __getstate__(self) -> tuple[str, bool]:
        return self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[str, bool]) -> None:
        self.path = state[0]
        self.training = state[1]
        torch.save(torch.zeros(1), self.path)


def test_an_archive_runs_no_code(tmp_path):
    """TorchScript can write files."""
    file = tmp_path / "archive.pt"
    torch.jit.script(Running(str(tmp_path / "written"))).save(str(file))
    with pytest.raises(UserError, match="would run code on loading"):
        ClipScorer(Scorer(NAME, str(file)))
    assert not (tmp_path / "written").exists()
    torch.jit.load(file)  # so it does
    assert (tmp_path / "written").exists()


def test_a_clip_that_is_not_whole(openai, tmp_path):
    tensors = {name: tensor.float() for name, tensor in torch.load(openai / "tensors.pt").items()}
    file = tmp_path / "clip.safetensors"

    def refused(content, message):
        save_file(content, file)
        with pytest.raises(UserError, match=message) as caught:
            ClipScorer(Scorer(NAME, str(file)))
        assert "\n" not in str(caught.value) and f"scorer.pretrained={file}" in str(caught.value)

    whole = {name: tensor for name, tensor in tensors.items() if name not in clip_scorer.OPENAI_ENTRIES}
    refused({name: whole[name] for name in whole if "ln_post" not in name}, "lacks 2 .* visual.ln_post.bias")
    refused(whole | {"visual.proj": torch.zeros(64, 16)}, "another shape, the first is visual.proj")
    save_file(whole, file)
    layouts.cut(file)
    with pytest.raises(UserError, match="was cut short"):
        ClipScorer(Scorer(NAME, str(file)))
    layouts.to_pointer(file)
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        ClipScorer(Scorer(NAME, str(file)))


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])
def test_sam_s_published_names(name):
    """Those of the registered sizes are those of the network that a test can afford, but for the depth."""
    with torch.device("meta"):
        published = sam_model_registry[name](checkpoint=None).state_dict().keys()

    def kinds(names):
        return {"".join(letter for letter in name if not letter.isdigit()) for name in names}

    assert kinds(tiny_sam().state_dict()) <= kinds(published)


def test_a_sam_that_is_not_whole_or_another(tmp_path, monkeypatch):
    monkeypatch.setattr("models.segmenter.sam_model_registry", {"vit_b": tiny_sam})
    file = tmp_path / "sam_vit_b.pth"
    settings = Segmenter("vit_b", str(file))
    tensors = tiny_sam().state_dict()
    torch.save({name: tensors[name] for name in tensors if "neck" not in name}, file)
    with pytest.raises(UserError, match=r"segmenter.checkpoint=.* lacks \d+ .* image_encoder.neck"):
        load_sam(settings)
    torch.save(tensors | {"image_encoder.pos_embed": torch.zeros(1, 2, 2, 8)}, file)
    with pytest.raises(UserError, match="another shape, the first is image_encoder.pos_embed"):
        load_sam(settings)
    layouts.cut(file)
    with pytest.raises(UserError, match="was cut short"):
        load_sam(settings)
    layouts.to_pointer(file)
    with pytest.raises(UserError, match="is a Git LFS pointer"):
        load_sam(settings)
    (tmp_path / "config.json").write_text('{"model_type": "sam2"}')
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"is transformers' sam2: a SAM 2 needs segmenter.detector="):
        load_sam(Segmenter(str(tmp_path)))


def test_a_blip_for_retrieval_writes_no_captions(tmp_path):
    """Its folder has no text decoder, which transformers would fill with random numbers."""
    tiny_blip(tmp_path / "blip")
    file = tmp_path / "blip" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensors[name] for name in tensors if "text_decoder" not in name}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"source.captioner=.* first is text_decoder.* of 'text_decoder'"):
        blip_captioner(str(tmp_path / "blip"), torch.device("cpu"))
    layouts.cut(file)
    with pytest.raises(UserError, match="was cut short"):
        blip_captioner(str(tmp_path / "blip"), torch.device("cpu"))
    (tmp_path / "blip" / "config.json").unlink()
    file.unlink()
    with pytest.raises(UserError, match=r"source.captioner=.*blip has no config.json"):
        blip_captioner(str(tmp_path / "blip"), torch.device("cpu"))


def test_a_blip_without_its_words_is_refused(tmp_path):
    tiny_blip(tmp_path / "blip")
    blip_captioner(str(tmp_path / "blip"), torch.device("cpu"))
    for name in ("vocab.txt", "tokenizer.json"):
        (tmp_path / "blip" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"source.captioner=.* has neither tokenizer.json nor vocab.txt"):
        blip_captioner(str(tmp_path / "blip"), torch.device("cpu"))


def test_a_blip_in_float16_is_computed_in_float32(tmp_path):
    tiny_blip(tmp_path / "blip")
    file = tmp_path / "blip" / "model.safetensors"
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    config = tmp_path / "blip" / "config.json"
    layouts.change_json(config, dtype="float16", torch_dtype="float16")
    processors = (transformers.BlipForConditionalGeneration, transformers.BlipProcessor)
    blip, _ = from_transformers(*processors, "source.captioner", str(tmp_path / "blip"), "X")
    assert {tensor.dtype for tensor in blip.parameters()} == {torch.float32}
