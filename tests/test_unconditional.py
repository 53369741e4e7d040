"""The unconditional model against diffusers' own pipeline, the directional loss in float64, the table."""

import shutil

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.schema import Inversion
from generate.inversion import invert, steps_upwards
from models.hub import wanted_files
from models.miniature.scenes import Look, render, scene
from models.pictures import batch_of
from models.unconditional import Unconditional
from scripts import evaluate
from scripts.measure.diffusion_clip import directional_loss, inverted_partly, sample
from scripts.measure.figure9 import clipped_share
from tests.helpers import printed_tables

KEY = "evaluate.unconditional"
CPU = torch.device("cpu")


def save_pixel_model(folder, channels=3):
    """A DDPMPipeline of random weights with pictures of 32 x 32."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "model"
    save_pixel_model(folder)
    return folder


def test_sampling_is_diffusers_pipeline(folder):
    from diffusers import DDIMPipeline, DDIMScheduler

    model = Unconditional(str(folder), KEY, CPU)
    noise = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    scheduler = DDIMScheduler.from_config(model.scheduler.config)
    pipeline = DDIMPipeline(model.unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (4, 5)]
    expected = pipeline(2, generators, num_inference_steps=7, output_type="np").images
    drawn = [torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) for seed in (4, 5)]
    made = sample(model, torch.cat(drawn), model.schedule(7))
    unit = (made / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert unit == pytest.approx(expected, abs=1e-5)
    assert sample(model, noise, model.schedule(2)).shape == noise.shape


def test_without_regularisation_a_held_out_scene_comes_back():
    """The shipped model's, by the ODE there and back."""
    model = Unconditional("models/miniature/unconditional", KEY, CPU)
    view = render(scene(3_000_000), Look("summer")).resize((64, 64))
    picture = batch_of([np.asarray(view)])
    schedule = model.schedule(30)
    generators = [torch.Generator().manual_seed(0)]
    plain = Inversion(lambda_ac=0.0, lambda_kl=0.0)
    inverted = invert(model, steps_upwards(schedule), picture, model.no_text(1), generators, plain)
    back = sample(model, inverted.inverted_BCHW, schedule)
    assert float((back - picture).square().mean()) < 0.04  # 20 dB
    assert inverted_partly(model, picture).shape == picture.shape


def test_a_folder_may_have_its_files_at_the_top(folder, tmp_path):
    """As google's first repositories have them; the same model."""
    flat = tmp_path / "flat"
    shutil.copytree(folder / "unet", flat)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", flat)
    shutil.copy(folder / "model_index.json", flat)
    noise = torch.randn(1, 3, 32, 32)
    first = Unconditional(str(folder), KEY, CPU).noise(noise, 500)
    assert torch.equal(Unconditional(str(flat), KEY, CPU).noise(noise, 500), first)
    names = [path.name for path in flat.iterdir()]
    assert "diffusion_pytorch_model.safetensors" in wanted_files([*names, "README.md"])


def test_other_folders_are_refused(tiny_teacher_folder, tmp_path):
    with pytest.raises(UserError, match="UNet2DConditionModel: it takes the folder"):
        Unconditional(str(tiny_teacher_folder), KEY, CPU)
    with pytest.raises(UserError, match="there is no such folder or file"):
        Unconditional(str(tmp_path / "none"), KEY, CPU)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is not there or cannot be read"):
        Unconditional(str(tmp_path / "empty"), KEY, CPU)
    save_pixel_model(tmp_path / "latents", channels=4)
    with pytest.raises(UserError, match="takes 4 channels"):
        Unconditional(str(tmp_path / "latents"), KEY, CPU)


def test_the_directional_loss_in_float64():
    rng = np.random.default_rng(0)
    image, reference, text = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), rng.normal(size=5)
    expected = []
    for row in image - reference:
        expected.append(1 - row @ text / np.sqrt((row @ row) * (text @ text)))
    loss = directional_loss(torch.tensor(image), torch.tensor(reference), torch.tensor(text))
    assert loss.numpy() == pytest.approx(np.array(expected))


def test_clipped_values_are_counted():
    picture = torch.zeros(1, 3, 2, 2)
    picture[0, 0] = torch.tensor([[1.0, 1.5], [-1.5, -1.0]])
    assert clipped_share(picture).tolist() == pytest.approx([2 / 12])


def test_figure9_end_to_end(folder, tiny_run, tmp_path, capsys, monkeypatch):
    """The copy is fine-tuned once, and changes what is made of the same noise."""
    from scripts.measure import diffusion_clip, figure9

    monkeypatch.setattr(figure9, "PICTURES", 2)
    monkeypatch.setattr(diffusion_clip, "ROUNDS", 1)
    arguments = ["figure9", *tiny_run, "evaluate.scenes=2", f"{KEY}={folder}"]
    assert evaluate.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "fine-tuning: round 1 of 1" in printed
    first, artefacts = printed_tables(printed)
    assert set(first) == {"input unchanged", "true edit", figure9.PLAIN, figure9.REGULARISED}
    assert first[figure9.REGULARISED]["LPIPS to truth minus DDIM inversion's"]
    assert artefacts[figure9.PLAIN]["inverted noise: variance"]
    where = tmp_path / "runs/tree2winter/miniature/evaluate/figure9/3000000"
    assert {path.name for path in where.iterdir()} == {"table.json", "table.csv", "grid.png"}
    assert evaluate.main(arguments) == 0
    again = capsys.readouterr().out
    assert "fine-tuning" not in again
    assert printed_tables(again) == [first, artefacts]
    assert evaluate.main([*arguments, "--dry-run"]) == 0
