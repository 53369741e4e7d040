"""edit.mode=official against the reference code's loop, written out in scripts/measure/plain.py. In float32, from the command line's pairs."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.loader import load
from configs.runs import pairs_dir
from generate import run
from generate.shards import IMAGES, finished_shards, locate, read_pair
from scripts.measure.plain import PlainPix2PixZero

STEPS, AMOUNT, SCALE, KL = 6, 2.0, 5.0, 20.0
CAPTION = "a photo of a tree in summer"


def reference_edit(folder, image, direction, negative):
    """(inverted, reconstruction, edit) latents, 1 x 4 x 8 x 8."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    plain = PlainPix2PixZero(pipeline, STEPS)
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latent = pipeline.vae.encode(pixels).latent_dist.mode() * pipeline.vae.config.scaling_factor
    text = plain.embed(CAPTION)
    inverted = plain.invert(latent, text, 0.0, KL)
    return inverted, *plain.edit(inverted, torch.cat([plain.embed(negative), text]), direction, AMOUNT, SCALE)


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
    assert set(pair.images) == {"input", "edit", "reconstruction"} and (pair.images["input"] == image).all()
    expected = reference_edit(tiny_teacher_folder, image, direction, CAPTION if negative == "caption" else "")
    for name, latent in zip(("inverted", "reconstruction", "edit"), expected, strict=True):
        found = pair.arrays[f"{name}_latent"]
        assert found.dtype == np.float32
        scale = float(latent.abs().max())
        np.testing.assert_allclose(found, latent[0].detach().numpy(), atol=2e-5 * scale, err_msg=name)
    assert np.abs(pair.arrays["edit_latent"] - pair.arrays["reconstruction_latent"]).max() > 0.05
