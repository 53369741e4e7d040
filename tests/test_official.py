"""edit.mode=official, through the command line in float32, against the loop of scripts/measure/plain.py."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.loader import load
from configs.runs import pairs_dir
from generate import run
from generate.shards import IMAGES, finished_shards, locate, read_pair
from models.pictures import batch_of
from scripts.measure.plain import PlainPix2PixZero

STEPS = 6
AMOUNT = 2.0
SCALE = 5.0
KL = 20.0
CAPTION = "a photo of a tree in summer"


def reference_edit(folder, image, direction, negative):
    """Latents 1 x 4 x 8 x 8 of the plain loop: 'inverted', 'reconstruction' and 'edit'."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    plain = PlainPix2PixZero(pipeline, STEPS)
    vae = pipeline.vae
    with torch.no_grad():
        latent = vae.encode(batch_of([image])).latent_dist.mode() * vae.config.scaling_factor
    text = plain.embed(CAPTION)
    inverted = plain.invert(latent, text, 0.0, KL)
    texts = torch.cat([plain.embed(negative), text])
    reconstruction, edit = plain.edit(inverted, texts, direction, AMOUNT, SCALE)
    return {"inverted": inverted, "reconstruction": reconstruction, "edit": edit}


@pytest.mark.parametrize("negative", ["caption", "empty"])
def test_the_command_line_equals_the_reference_loop(tiny_teacher_folder, tmp_path, negative):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save(tmp_path / "input.png")
    generator = torch.Generator().manual_seed(1)
    direction = 0.5 * torch.randn(1, 32, 32, generator=generator)
    save_file({"direction": direction}, tmp_path / "direction.safetensors")
    arguments = [
        "task=tree2winter",
        "teacher=diffusers",
        f"teacher.path={tiny_teacher_folder}",
        f"source.images={tmp_path}/input.png",
        f"source.caption={CAPTION}",
        f"direction.file={tmp_path}/direction.safetensors",
        "edit.mode=official",
        f"edit.steps={STEPS}",
        "inversion.lambda_ac=0",
        f"inversion.lambda_kl={KL}",
        f"guidance.amount={AMOUNT}",
        f"guidance.scale={SCALE}",
        f"guidance.negative={negative}",
        "generate.dtype=float32",
        "generate.save_latents=true",
        f"generate.out={tmp_path}/pairs",
    ]
    assert run.main(arguments) == 0
    (shard,) = finished_shards(pairs_dir(load(arguments)))
    pair = read_pair(locate(shard)[0], (*IMAGES, "inverted_latent", "reconstruction_latent", "edit_latent"))
    assert set(pair.images) == {"input", "edit", "reconstruction"}
    assert (pair.images["input"] == image).all()
    expected = reference_edit(tiny_teacher_folder, image, direction, CAPTION if negative == "caption" else "")
    for name, latent in expected.items():
        written = pair.arrays[f"{name}_latent"]
        assert written.dtype == np.float32
        scale = float(latent.abs().max())
        np.testing.assert_allclose(written, latent[0].detach().numpy(), atol=2e-5 * scale, err_msg=name)
    assert np.abs(pair.arrays["edit_latent"] - pair.arrays["reconstruction_latent"]).max() > 0.05
