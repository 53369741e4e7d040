"""Editing methods against other implementations of them."""

import pytest
import torch

from configs.loader import load
from generate.directions import EditDirection
from generate.editors import Editor, sample_seed
from generate.inversion import noise_statistics


def test_sdedit_is_diffusers_image_to_image(tiny_teacher, tiny_teacher_folder):
    """The same latent, noise, texts, strength and scale through StableDiffusionImg2ImgPipeline."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    config = load(["edit.method=sdedit", "edit.strength=0.6", "edit.steps=10", "guidance.scale=3"])
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    captions, keys = ["a tree in summer", "a green tree"], ["a", "b"]
    editor = Editor(tiny_teacher, EditDirection(torch.zeros(1, 32, 32), "", ""), config)
    found = editor(image, captions, keys, False).latents["edit"]

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        prompt_embeds=tiny_teacher.embed(["a tree in winter", "a snowy tree"]),
        negative_prompt_embeds=tiny_teacher.embed(captions),
        image=tiny_teacher.encode(image),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(sample_seed(config.seed, key)) for key in keys],
        output_type="latent",
    ).images
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_noise_statistics_of_known_noise():
    """White noise has none of it; a pattern that repeats after four columns is fully correlated at shift four, by hand."""
    white = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    for found in noise_statistics(white):
        assert found["mean"] == pytest.approx(0, abs=0.05) and found["variance"] == pytest.approx(1, abs=0.05)
        assert found["auto_correlation"] == pytest.approx(1 / 32, rel=0.2)
    waves = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2)[None, None, None].expand(1, 1, 8, 8)
    # shifts 1, 2, 3 along the columns: 0, -1, 0; along the rows: 1, 1, 1
    (found,) = noise_statistics(waves)
    assert found == {"mean": 0.0, "variance": pytest.approx(64 / 63, abs=1e-3), "auto_correlation": pytest.approx((4 / 6) ** 0.5, abs=1e-3)}
