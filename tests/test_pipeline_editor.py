"""edit.method=pipeline: what diffusers' own pipelines make becomes pairs, and what they cannot do is said."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from configs.loader import load
from configs.runs import pairs_dir
from generate import run
from generate.editors import sample_seed
from generate.shards import finished_shards, read_manifest, read_pairs
from tests.test_pairs import safe_teacher

ARGUMENTS = {  # of a call with few steps
    "StableDiffusionInstructPix2PixPipeline": {"num_inference_steps": 3, "image_guidance_scale": 1.5},
    "StableDiffusionXLImg2ImgPipeline": {"num_inference_steps": 4, "strength": 0.75},
    "StableDiffusionImg2ImgPipeline": {"num_inference_steps": 4, "strength": 0.75, "guidance_scale": 3.0},
}
ANY = "StableDiffusionImg2ImgPipeline"


@pytest.fixture(scope="session")
def pipeline_folders(tiny_teacher_folder, tmp_path_factory):
    """Class name -> a folder of that pipeline with random weights."""
    import diffusers
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    parts = StableDiffusionPipeline.from_pretrained(tiny_teacher_folder).components
    torch.manual_seed(0)
    wide = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 8})
    folders = {}
    no_checker = {"requires_safety_checker": False}
    own = {
        "StableDiffusionInstructPix2PixPipeline": {**parts, **no_checker, "unet": wide},
        "StableDiffusionImg2ImgPipeline": {**parts, **no_checker},
        "StableDiffusionXLImg2ImgPipeline": {**xl_parts(parts), "add_watermarker": False},
    }
    for name in ARGUMENTS:
        folders[name] = tmp_path_factory.mktemp("pipelines") / name
        getattr(diffusers, name)(**own[name]).save_pretrained(folders[name])
    return folders


def xl_parts(parts):
    """The same tokenizer and VAE with what SDXL has else: two text encoders, a UNet that takes the size."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(1)
    text_config = parts["text_encoder"].config
    text_config.projection_dim = 32
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=2,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        norm_num_groups=8,
    )
    return {
        "vae": parts["vae"],
        "text_encoder": parts["text_encoder"],
        "text_encoder_2": CLIPTextModelWithProjection(text_config),
        "tokenizer": parts["tokenizer"],
        "tokenizer_2": parts["tokenizer"],
        "unet": unet,
        "scheduler": parts["scheduler"],
    }


@pytest.fixture
def photos(tmp_path):
    """Three photographs of 32 pixels a side."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        levels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), np.uint8)
        Image.fromarray(levels).save(folder / f"{number}.png")
    return folder


def arguments_of(folder, photos, tmp_path, settings, *more):
    """The command line that edits the photographs with a pipeline."""
    return [
        f"edit.pipeline={folder}",
        f"edit.arguments={json.dumps(settings)}",
        f"source.images={photos}",
        "teacher.resolution=32",
        "generate.pairs_per_shard=2",
        f"runs_dir={tmp_path}/runs",
        *more,
    ]


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("batch", [1, 2])
def test_pairs_are_what_a_direct_call_makes(pipeline_folders, photos, tmp_path, capsys, name, batch):
    """One picture a call, the seed of its key; ours in batches too, which an eighth bit may show."""
    import diffusers

    more = ["edit.instruction=make it winter", f"generate.batch={batch}", "seed=7"]
    arguments = arguments_of(pipeline_folders[name], photos, tmp_path, ARGUMENTS[name], *more)
    assert run.main(["edit.method=pipeline", *arguments]) == 0
    assert f"({name}) with 'make it winter'" in capsys.readouterr().out
    pairs = list(read_pairs(tmp_path / "runs" / "tree2winter" / "pipeline" / "pairs"))
    assert [pair.record["source"]["id"] for pair in pairs] == ["0.png", "1.png", "2.png"]

    pipeline = getattr(diffusers, name).from_pretrained(pipeline_folders[name], safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    for pair in pairs:
        photo = Image.open(photos / pair.record["source"]["id"])
        assert np.array_equal(pair.images["input"], np.asarray(photo))
        expected = pipeline(
            prompt="make it winter",
            image=photo,
            generator=torch.Generator().manual_seed(sample_seed(7, pair.key)),
            **ARGUMENTS[name],
        ).images[0]
        difference = np.abs(pair.images["edit"].astype(int) - np.asarray(expected))
        assert difference.max() <= 1 and difference.mean() < (0.001 if batch == 1 else 0.01)
        assert pair.record["instruction"] == "make it winter" and pair.record["method"] == "pipeline"
        assert pair.record["arguments"] == ARGUMENTS[name] and "direction" not in pair.record


def test_a_text_to_image_folder_edits_by_its_family_s_image_to_image(tiny_teacher_folder, photos, tmp_path):
    """As AutoPipelineForImage2Image has it, without an instruction with the swapped caption."""
    from diffusers import AutoPipelineForImage2Image

    (photos / "0.txt").write_text("a tree in summer")
    arguments = arguments_of(tiny_teacher_folder, photos, tmp_path, ARGUMENTS[ANY], "generate.pairs=1")
    assert run.main(arguments) == 0
    (pair,) = read_pairs(pairs_dir(load(arguments)))
    pipeline = AutoPipelineForImage2Image.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        prompt="a tree in winter",
        image=Image.open(photos / "0.png"),
        generator=torch.Generator().manual_seed(sample_seed(0, pair.key)),
        **ARGUMENTS[ANY],
    ).images[0]
    assert np.abs(pair.images["edit"].astype(int) - np.asarray(expected)).max() <= 1
    assert pair.record["caption"] == "a tree in summer"


def test_neither_a_teacher_nor_a_direction_is_loaded(pipeline_folders, photos, tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise AssertionError("it was loaded")

    for name in ("Teacher", "edit_direction"):
        monkeypatch.setattr(f"generate.pairs.{name}", refuse)
    assert run.main(arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY])) == 0


def test_interrupted_and_resumed_equals_uninterrupted(pipeline_folders, photos, tmp_path, capsys):
    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY])
    assert run.main(arguments) == 0
    folder = pairs_dir(load(arguments))
    whole = {file.name: file.read_bytes() for file in folder.glob("0*")}
    (folder / "000000.json").unlink()
    assert run.main(arguments) == 0 and "1 of 2 shards already" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in folder.glob("0*")} == whole
    assert run.main([*arguments, "edit.instruction=other"]) == 2
    assert "edit.instruction:  -> other" in capsys.readouterr().err


def test_a_pipeline_that_takes_one_picture_a_call(pipeline_folders, photos, tmp_path, monkeypatch):
    """To some a list of pictures is one edit of several: an unknown pipeline never gets one."""
    from diffusers import StableDiffusionImg2ImgPipeline

    from generate import pipeline_editor

    images = []
    call = StableDiffusionImg2ImgPipeline.__call__

    def watched(
        self, prompt=None, image=None, num_inference_steps=50, strength=0.8, guidance_scale=7, **named
    ):
        images.append(image)
        named |= {"num_inference_steps": num_inference_steps, "strength": strength}
        return call(self, prompt=prompt, image=image, guidance_scale=guidance_scale, **named)

    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY], "generate.batch=2")
    assert run.main([*arguments, f"generate.out={tmp_path}/batched"]) == 0
    monkeypatch.setattr(StableDiffusionImg2ImgPipeline, "__call__", watched)
    monkeypatch.setattr(pipeline_editor, "BATCHED", ())
    assert run.main([*arguments, f"generate.out={tmp_path}/single"]) == 0
    assert len(images) == 3 and all(isinstance(image, Image.Image) for image in images)
    batched, single = (list(read_pairs(tmp_path / name)) for name in ("batched", "single"))
    for one, other in zip(batched, single, strict=True):
        assert np.abs(one.images["edit"].astype(int) - other.images["edit"]).max() <= 1


def test_a_batch_that_the_memory_does_not_hold_is_halved(pipeline_folders, photos, tmp_path, monkeypatch):
    from generate.pipeline_editor import PipelineEditor

    sizes = []
    called = PipelineEditor._called

    def small_memory(self, images, texts, generators):
        sizes.append(len(images))
        if len(images) > 1:
            torch.rand(1, generator=generators[0])  # what a call may have drawn before it fails
            raise torch.OutOfMemoryError
        return called(self, images, texts, generators)

    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY])
    assert run.main([*arguments, f"generate.out={tmp_path}/large", "generate.batch=1"]) == 0
    monkeypatch.setattr(PipelineEditor, "_called", small_memory)
    assert run.main([*arguments, f"generate.out={tmp_path}/small", "generate.batch=2"]) == 0
    assert sizes == [2, 1, 1, 1]
    tars = [
        [tar.read_bytes() for tar in sorted((tmp_path / name).glob("*.tar"))] for name in ("large", "small")
    ]
    assert tars[0] == tars[1]


def test_an_edit_of_another_size_is_resized(pipeline_folders, photos, tmp_path):
    """35 is no multiple of the VAE's 4: the pipeline gives 32 pixels."""
    settings = ["teacher.resolution=35", "generate.pairs=1"]
    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY], *settings)
    assert run.main(arguments) == 0
    (pair,) = read_pairs(pairs_dir(load(arguments)))
    assert pair.images["input"].shape == pair.images["edit"].shape == (35, 35, 3)


@pytest.mark.parametrize(
    ("threshold", "checked", "kept"), [(-2.0, "true", 0), (2.0, "true", 3), (-2.0, "false", 3)]
)
def test_what_the_pipeline_s_safety_checker_flags_is_left_out(
    tiny_teacher_folder, photos, tmp_path, capsys, threshold, checked, kept
):
    safe_teacher(tiny_teacher_folder, threshold).save_pretrained(tmp_path / "safe")
    more = [f"generate.safety_checker={checked}", "generate.batch=2"]
    arguments = arguments_of(tmp_path / "safe", photos, tmp_path, ARGUMENTS[ANY], *more)
    assert run.main(arguments) == 0
    printed = capsys.readouterr().out
    assert ("3 of 3 edits were flagged by the safety checker and were left out" in printed) == (kept == 0)
    folder = pairs_dir(load(arguments))
    pairs = list(read_pairs(folder))
    assert len(pairs) == kept and all(pair.images["edit"].any() for pair in pairs)
    left_out = [item for shard in finished_shards(folder) for item in read_manifest(shard)["left_out"]]
    assert [item["why"] for item in left_out] == ["flagged"] * (3 - kept)


def test_weights_that_a_part_lacks_are_refused(pipeline_folders, photos, tmp_path, capsys):
    """diffusers would fill them with random numbers."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "gap"
    shutil.copytree(pipeline_folders[ANY], folder)
    (file,) = (folder / "unet").glob("*.safetensors")
    tensors = load_file(file)
    del tensors["conv_in.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert run.main(arguments_of(folder, photos, tmp_path, ARGUMENTS[ANY])) == 2
    error = capsys.readouterr().err
    assert f"edit.pipeline={folder}: unet lacks 1 of the network's tensors" in error


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("edit.pipeline=", "edit.pipeline= is empty"),
        ("edit.pipeline=/nowhere/at/all", "edit.pipeline=/nowhere/at/all: there is no such folder"),
        ("edit.pipeline=models/miniature", "edit.pipeline=models/miniature is no pipeline"),
        ("edit.arguments={strenth: 0.5}", "takes no 'strenth'; did you mean strength?"),
        ("edit.arguments={prompt: winter}", "prompt is not free"),
        ("edit.arguments={strength: 7}", "edit.arguments= and pictures of 32 pixels a side: The value of"),
        ("edit.arguments={num_inference_steps: many}", "makes no edit of these edit.arguments="),
        ("source.images=/nowhere", "source.images=/nowhere: no such folder"),
    ],
)
def test_wrong_input_gives_one_line(pipeline_folders, photos, tmp_path, capsys, argument, message):
    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, ARGUMENTS[ANY])
    assert run.main(["edit.method=pipeline", *arguments, argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_early_mistakes_make_no_folder(pipeline_folders, photos, tmp_path, capsys):
    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, {"steps": 3})
    for more in ([], ["--dry-run"]):
        assert run.main([*arguments, *more]) == 2
        assert "StableDiffusionImg2ImgPipeline takes no 'steps'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_prompts_make_no_pictures(pipeline_folders, photos, tmp_path, capsys):
    arguments = arguments_of(pipeline_folders[ANY], photos, tmp_path, {})
    arguments[2] = f"source.prompts={photos}/0.txt"
    assert run.main(arguments) == 2
    assert "name pictures with source.images=FOLDER" in capsys.readouterr().err


def test_a_pipeline_without_a_picture_is_refused(pipeline_folders, photos, tmp_path, capsys):
    """A DDPM knows no text; an inpainting pipeline wants a mask; a class may be of tomorrow."""
    for name, says in {
        "DDPMPipeline": "a DDPMPipeline makes no picture of a picture and a text alone",
        "StableDiffusionInpaintPipeline": "a StableDiffusionInpaintPipeline makes no picture of",
        "TomorrowPipeline": "has no pipeline TomorrowPipeline",
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
        assert run.main(arguments_of(folder, photos, tmp_path, {})) == 2
        error = capsys.readouterr().err
        assert says in error and error.count("\n") == 1


def test_a_hub_name_is_refused_at_once_where_the_hub_is_not_reached(photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("models.hub.hub_is_reached", lambda: False)
    monkeypatch.setattr("models.hub.cached", lambda name: None)
    assert run.main(arguments_of("some/editor", photos, tmp_path, {})) == 2
    error = capsys.readouterr().err
    assert "edit.pipeline=some/editor: no folder here, and the hub is not reached" in error
    assert not (tmp_path / "runs").exists()


def test_rendered_scenes_of_the_miniature_world(pipeline_folders, tmp_path):
    """teacher=miniature beside it: its scenes and their captions, its side, its scorer, its folder."""
    arguments = arguments_of(pipeline_folders[ANY], "", tmp_path, ARGUMENTS[ANY], "generate.pairs=1")
    assert run.main(["teacher=miniature", *arguments]) == 0
    (pair,) = read_pairs(tmp_path / "runs" / "tree2winter" / "miniature" / "pairs")
    assert pair.record["caption_from"] == "scene" and pair.key == "scene-1000000"


def test_dry_run_loads_no_weights(pipeline_folders, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("generate.pipeline_editor.load_pipeline", None)
    assert run.main([*arguments_of(pipeline_folders[ANY], photos, tmp_path, {}), "--dry-run", "--time"]) == 0
    printed = capsys.readouterr().out
    assert "pairs: 3" in printed and "unknown: the first batch tells" in printed
