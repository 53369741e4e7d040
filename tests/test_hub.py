"""Names on the hub: one line where it is not reached, its cache where it is not, one copy of the weights."""

import pytest
from huggingface_hub import constants

from configs.errors import UserError
from models import hub
from models.hub import local_model, wanted_files

NAME = "CompVis/stable-diffusion-v1-4"


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "is_reached", lambda url: False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_without_a_network_one_line_says_how_to_fetch(no_network):
    with pytest.raises(UserError) as caught:
        local_model(NAME, "teacher.path")
    message = str(caught.value)
    assert "\n" not in message and f"hf download {NAME} --local-dir stable-diffusion-v1-4" in message
    assert message.endswith("set teacher.path=stable-diffusion-v1-4")


@pytest.mark.parametrize("name", ["/no/where", "nowhere", "./a/b", "a/b/c"])
def test_what_is_no_hub_name_is_a_missing_folder(name):
    with pytest.raises(UserError, match=f"key={name}: there is no such folder or file: it is X"):
        local_model(name, "key", "it is X")


def test_a_folder_is_itself(tmp_path, monkeypatch):
    assert local_model(str(tmp_path), "key") == tmp_path
    monkeypatch.chdir("/")
    assert local_model("models/miniature/teacher", "key").is_dir()  # seen from the project's root


def test_a_host_that_is_not_there_is_found_out_at_once(monkeypatch):
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    assert not hub.is_reached("http://127.0.0.1:9")
    assert not hub.is_reached("https://nowhere.invalid")


def test_libraries_see_the_cache_alone_where_the_hub_is_not_reached(no_network):
    assert not constants.HF_HUB_OFFLINE
    with hub.cache_alone_where_not_reached():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_one_copy_of_the_weights_is_wanted():
    listing = [
        ".gitattributes",
        "README.md",
        "model_index.json",
        "sd-v1-4.ckpt",
        "scheduler/scheduler_config.json",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.non_ema.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/model.fp16.safetensors",
    ]
    assert wanted_files(listing) == [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/model.fp16.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.bin",
    ]
    blip = ["config.json", "model.safetensors", "pytorch_model.bin", "tf_model.h5", "vocab.txt"]
    assert wanted_files(blip) == ["config.json", "model.safetensors", "vocab.txt"]
