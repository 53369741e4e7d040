"""Stable Diffusion in the layouts people meet, at a tenth of its width: what diffusers' own pipeline
computes from the same weights, or one line that says what is wrong.
"""

import json
import re
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from PIL import Image

from configs.errors import UserError
from configs.loader import load
from configs.schema import Teacher as TeacherConfig
from generate import run
from models import pipeline
from models.teacher import Teacher
from scripts.published.stable_diffusion import MODELS, write_stable_diffusion
from tests import layouts
from tests.layouts import change_json, weights_of

SIDE = 64  # pixels: four levels of the UNet end at 1 x 1
TEXT = "a photo of a cat on a roof"
WIDTH = 0.1


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Name of a model -> its folder, made once."""
    root = tmp_path_factory.mktemp("published")
    made = {}

    def folder_of(name):
        if name not in made:
            made[name] = write_stable_diffusion(root / name, name, WIDTH)
        return made[name]

    yield folder_of
    shutil.rmtree(root)


@pytest.fixture
def sd14(published, tmp_path):
    """A copy of Stable Diffusion 1.4 that a test may spoil."""
    return shutil.copytree(published("sd14"), tmp_path / "sd14")


def teacher_of(folder, checker=False, **settings):
    config = TeacherConfig("test", str(folder), SIDE, **settings)
    return Teacher(config, torch.device("cpu"), checker=checker)


def sees(teacher) -> dict[str, torch.Tensor]:
    """What each network of a teacher says of one picture and one text."""
    torch.manual_seed(0)
    image_BCHW = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        text_BTD = teacher.embed([TEXT])
        latent_BCHW = teacher.encode(image_BCHW)
        return {
            "text": text_BTD,
            "latent": latent_BCHW,
            "noise": teacher.noise(latent_BCHW, 501, text_BTD),
            "picture": teacher.decode(latent_BCHW),
        }


def diffusers_sees(folder) -> dict[str, torch.Tensor]:
    """The same by diffusers' own pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    torch.manual_seed(0)
    image_BCHW = torch.rand(1, 3, SIDE, SIDE) * 2 - 1
    with torch.no_grad():
        text_BTD, _ = pipeline.encode_prompt(TEXT, "cpu", 1, False)
        scale = pipeline.vae.config.scaling_factor
        latent_BCHW = pipeline.vae.encode(image_BCHW).latent_dist.mode() * scale
        predicted_BCHW = pipeline.unet(latent_BCHW, 501, text_BTD).sample
        if pipeline.scheduler.config.prediction_type == "v_prediction":
            alpha = pipeline.scheduler.alphas_cumprod[501]
            predicted_BCHW = alpha.sqrt() * predicted_BCHW + (1 - alpha).sqrt() * latent_BCHW
        picture_BCHW = pipeline.vae.decode(latent_BCHW / scale).sample.clamp(-1, 1)
    return {"text": text_BTD, "latent": latent_BCHW, "noise": predicted_BCHW, "picture": picture_BCHW}


def assert_close(ours, theirs, tolerance=2e-5):
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=tolerance), name


@pytest.mark.parametrize("name", MODELS)
def test_each_model_computes_what_diffusers_does(published, name):
    folder = published(name)
    teacher = teacher_of(folder, checker=True)
    assert_close(sees(teacher), diffusers_sees(folder))
    assert (teacher.safety_checker is not None) == MODELS[name].has_checker
    assert teacher.flagged(torch.zeros(1, 3, SIDE, SIDE)) == [False]
    assert load(["teacher=diffusers", f"teacher.path={folder}"]).teacher.resolution == MODELS[name].side

    scheduler = StableDiffusionPipeline.from_pretrained(folder).scheduler
    ddim = DDIMScheduler.from_config(scheduler.config)
    ddim.set_timesteps(10)
    assert [step.timestep for step in teacher.schedule(10)] == ddim.timesteps.tolist()


@pytest.mark.parametrize("change", ["to_bin", "to_shards", "to_old_attention"])
def test_each_layout_gives_the_same_networks(sd14, published, change):
    getattr(layouts, change)(sd14)
    assert_close(sees(teacher_of(sd14)), sees(teacher_of(published("sd14"))), 2e-6)


def test_files_of_float16_alone(sd14, published):
    layouts.to_variant(sd14)
    assert_close(sees(teacher_of(sd14)), sees(teacher_of(published("sd14"))), 0.02)


def test_a_copy_that_is_not_used_may_be_a_pointer(sd14):
    layouts.to_pointer(sd14 / "unet" / "diffusion_pytorch_model.bin")
    layouts.to_pointer(sd14 / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    teacher_of(sd14)


@pytest.mark.parametrize(
    ("name", "suffix"), [("sd14", ".safetensors"), ("sd14", ".ckpt"), ("sd21", ".safetensors")]
)
def test_a_single_file_of_the_original_layout(published, tmp_path, name, suffix):
    folder = published(name)
    file = tmp_path / "single.safetensors"
    layouts.write_single_file(folder, file)
    if suffix == ".ckpt":
        tensors = layouts.load_file(file)
        file = file.with_suffix(".ckpt")
        torch.save({"state_dict": tensors}, file)
    assert_close(sees(teacher_of(file, config=str(folder))), sees(teacher_of(folder)))
    keys = ["teacher=diffusers", f"teacher.path={file}", f"teacher.config={folder}"]
    assert load(keys).teacher.resolution == MODELS[name].side


def test_a_single_file_that_lacks_a_tensor_or_brings_no_configuration(published, tmp_path):
    folder = published("sd14")
    file = tmp_path / "sd-v1-4.safetensors"
    layouts.write_single_file(folder, file)
    with pytest.raises(UserError, match=r"is a single file: set teacher.config="):
        load(["teacher=diffusers", f"teacher.path={file}"])
    with pytest.raises(UserError, match=r"is a single file: set teacher.config="):
        teacher_of(file)
    with pytest.raises(UserError, match=r"is a folder, which has its own configurations: leave it out"):
        teacher_of(folder, config=str(folder))
    layouts.rename(file, "middle_block.0.in_layers.2", "middle_block.0.other")
    with pytest.raises(
        UserError, match=r": unet, by diffusers' names, lacks 2 .* mid_block.resnets.0.conv1.bias"
    ):
        teacher_of(file, config=str(folder))
    layouts.rename(file, "middle_block.0.other", "middle_block.0.in_layers.2")
    layouts.rename(file, "layers.0.mlp.fc1", "layers.0.mlp.first")
    with pytest.raises(
        UserError, match=r": text_encoder, .* lacks 2 .* (text_model.)?encoder.layers.0.mlp.fc1.bias"
    ):
        teacher_of(file, config=str(folder))
    layouts.rename(file, "layers.0.mlp.first", "layers.0.mlp.fc1")
    layouts.rename(file, "decoder.conv_in", "decoder.first")
    with pytest.raises(UserError, match=r": vae, .* lacks 2 .* decoder.conv_in.bias"):
        teacher_of(file, config=str(folder))
    layouts.cut(file)
    with pytest.raises(UserError, match="was cut short"):
        teacher_of(file, config=str(folder))


def spoil_text(folder):
    layouts.rename(weights_of(folder, "text_encoder"), "layers.0.mlp", "layers.0.feed")


def spoil_vae(folder):
    layouts.rename(weights_of(folder, "vae"), "encoder.conv_in", "encoder.first")


def spoil_unet(folder):
    layouts.rename(weights_of(folder, "unet"), "conv_out", "last")


def spoil_checker(folder):
    layouts.rename(weights_of(folder, "safety_checker"), "concept_embeds", "concepts")


def resize_text(folder):
    change_json(folder / "text_encoder" / "config.json", intermediate_size=96)


def point(folder):
    layouts.to_pointer(weights_of(folder, "vae"))


def cut_unet(folder):
    layouts.cut(weights_of(folder, "unet"))


def lose_a_shard(folder):
    layouts.to_shards(folder)
    (folder / "unet" / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()


def lose_weights(folder):
    weights_of(folder, "vae").unlink()


def lose_the_text_encoder(folder):
    shutil.rmtree(folder / "text_encoder")


def lose_the_checker(folder):
    shutil.rmtree(folder / "safety_checker")


def lose_the_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def lose_the_words(folder):
    (folder / "tokenizer" / "vocab.json").unlink()


def no_scheduler(folder):
    change_json(folder / "scheduler" / "scheduler_config.json", _class_name="Unheard")


def predicts_samples(folder):
    change_json(folder / "scheduler" / "scheduler_config.json", prediction_type="sample")


def second_text_encoder(folder):
    (folder / "text_encoder_2").mkdir()


def not_json(folder):
    (folder / "scheduler" / "scheduler_config.json").write_text("{")


REFUSED = {
    spoil_text: r"text_encoder lacks 4 .*layers.0.mlp.fc1.bias \(its own names differ, as .*feed",
    spoil_vae: r"vae lacks 2 .* encoder.conv_in.bias \(its own names differ, as encoder.first.bias",
    spoil_unet: r"unet lacks 2 .* conv_out.bias",
    spoil_checker: r"safety_checker lacks .* concept_embeds.*generate.safety_checker=false",
    resize_text: r"text_encoder has 3 tensors of another shape, .*another size",
    point: r"vae: .*diffusion_pytorch_model.safetensors is a Git LFS pointer",
    cut_unet: r"unet: .*diffusion_pytorch_model.safetensors was cut short: \d+ of \d+ bytes",
    lose_a_shard: r"names diffusion_pytorch_model-00002-of-00002.safetensors, which is not there",
    lose_weights: r"vae has no file of weights in .*vae: fetch it",
    lose_the_text_encoder: r"has no text_encoder/config.json: it is no whole Stable Diffusion folder",
    lose_the_checker: r"no safety_checker/config.json: fetch it, or .*generate.safety_checker=false",
    lose_the_tokenizer: r"tokenizer does not load",
    lose_the_words: r"tokenizer does not load: .* has neither vocab.json and merges.txt nor tokenizer.json",
    no_scheduler: r"diffusers has no scheduler 'Unheard'",
    predicts_samples: r"prediction_type sample; epsilon and v_prediction are known",
    second_text_encoder: r"is a model of another family",
    not_json: r"scheduler_config.json is not there or cannot be read",
}


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_what_is_not_whole_is_refused_in_one_line(sd14, spoil):
    spoil(sd14)
    with pytest.raises(UserError) as caught:
        teacher_of(sd14, checker=True)
    message = str(caught.value)
    assert "\n" not in message and f"teacher.path={sd14}" in message
    assert re.search(REFUSED[spoil], message), message


@pytest.mark.parametrize("spoil", [spoil_checker, lose_the_checker])
def test_a_checker_that_is_switched_off_is_not_looked_at(sd14, spoil):
    spoil(sd14)
    assert teacher_of(sd14, checker=False).safety_checker is None


@pytest.mark.parametrize(("channels", "name"), [(8, "InstructPix2Pix"), (9, "inpainting")])
def test_a_unet_that_takes_a_picture_too(sd14, channels, name):
    file = weights_of(sd14, "unet")
    tensors = layouts.load_file(file)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].repeat(1, 3, 1, 1)[:, :channels].contiguous()
    layouts.save_file(tensors, file, {"format": "pt"})
    change_json(sd14 / "unet" / "config.json", in_channels=channels)
    with pytest.raises(UserError, match=f"takes {channels} channels, as one for {name} does"):
        teacher_of(sd14)


def test_weights_that_no_memory_holds_are_not_tried(sd14, monkeypatch):
    monkeypatch.setattr(pipeline, "free_memory", lambda: 1_000_000)
    with pytest.raises(UserError, match=r"its weights are 0.1 GB, and 0.0 GB of memory are free"):
        teacher_of(sd14)


def test_a_tokenizer_without_a_length_and_a_folder_without_an_index(sd14, published):
    change_json(sd14 / "tokenizer" / "tokenizer_config.json", model_max_length=None)
    (sd14 / "model_index.json").unlink()
    assert_close(sees(teacher_of(sd14)), sees(teacher_of(published("sd14"))), 0)


def test_the_resolution_is_the_folder_s_or_asked_for(sd14, tmp_path):
    keys = ["teacher=diffusers", f"teacher.path={sd14}"]
    change_json(sd14 / "unet" / "config.json", sample_size=32)
    with pytest.raises(UserError, match="its UNet says 256 pixels and its VAE 512: set teacher.resolution="):
        load(keys)
    assert load([*keys, "teacher.resolution=512"]).teacher.resolution == 512
    with pytest.raises(UserError, match=r"teacher.path=.*nowhere: no such folder"):
        load(["teacher=diffusers", f"teacher.path={tmp_path}/nowhere"])
    with pytest.raises(UserError, match=r"is no diffusers folder that says its resolution"):
        load(["teacher=diffusers", f"teacher.path={tmp_path}"])
    with pytest.raises(UserError, match=r"teacher.resolution=100: .* a multiple of 8 .*: take 96 or 104"):
        Teacher(TeacherConfig("test", str(sd14), 100), torch.device("cpu"))


def arguments(folder, tmp_path, *more):
    photos = tmp_path / "photos"
    photos.mkdir(exist_ok=True)
    for number in range(2):
        Image.effect_noise((SIDE, SIDE), 60 + number).convert("RGB").save(photos / f"{number}.png")
    return [
        "task=cat2dog",
        "preset=paper",
        "teacher=diffusers",
        f"teacher.path={folder}",
        f"teacher.resolution={SIDE}",
        f"source.images={photos}",
        f"runs_dir={tmp_path / 'runs'}",
        "edit.steps=2",
        "direction.sentences=4",
        "generate.dtype=float32",
        *more,
    ]


def test_pairs_by_the_command_and_none_of_a_folder_that_is_not_whole(sd14, tmp_path, capsys):
    spoil_text(sd14)
    assert run.main(arguments(sd14, tmp_path)) == 2
    assert "text_encoder lacks 4 of the network's tensors" in capsys.readouterr().err
    pairs = tmp_path / "runs" / "cat2dog" / "diffusers" / "pairs"
    assert not list(pairs.glob("*.tar"))
    layouts.rename(weights_of(sd14, "text_encoder"), "layers.0.feed", "layers.0.mlp")
    layouts.to_shards(sd14)
    assert run.main(arguments(sd14, tmp_path)) == 0
    assert len(json.loads((pairs / "000000.json").read_text())["keys"]) == 2
