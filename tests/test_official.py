"""edit.mode=official against the reference code's loop, written out: batch 1, two rows, diffusers' own scheduler, explicit attention,
autograd everywhere. In float32, from the command line's pairs.
"""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.loader import load, pairs_dir
from generate import run
from generate.shards import IMAGES, finished_shards, locate, read_pair

STEPS, AMOUNT, SCALE, KL = 6, 2.0, 5.0, 20.0
CAPTION = "a photo of a tree in summer"


class Recording:
    """diffusers' plain attention, written out, that keeps the probabilities (rows x heads) x pixels x tokens of the cross-attentions."""

    def __init__(self):
        self.maps = []

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (attn.head_to_batch_dim(part) for part in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context)))
        probabilities = attn.get_attention_scores(query, key, None)
        if encoder_hidden_states is not None:
            self.maps.append(probabilities)
        return attn.to_out[1](attn.to_out[0](attn.batch_to_head_dim(torch.bmm(probabilities, value))))


def reference_edit(folder, image, direction, negative):
    """(inverted, reconstruction, edit) latents, 1 x 4 x 8 x 8."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    recording = Recording()
    pipe.unet.set_attn_processor(recording)
    pipe.unet.requires_grad_(False)
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(STEPS)

    def embed(text):
        tokens = pipe.tokenizer(
            text, padding="max_length", max_length=pipe.tokenizer.model_max_length, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return pipe.text_encoder(tokens.input_ids)[0]

    def predict(x, t, text):
        recording.maps.clear()
        return pipe.unet(x, t, encoder_hidden_states=text).sample, list(recording.maps)

    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        latent = pipe.vae.encode(pixels).latent_dist.mode() * pipe.vae.config.scaling_factor
    text, alphas, stride = embed(CAPTION), scheduler.alphas_cumprod, 1000 // STEPS
    for t in scheduler.timesteps.flip(0)[1:-1]:
        with torch.no_grad():
            noise, _ = predict(latent, t, text)
        for _ in range(5):
            variable = noise.clone().requires_grad_()
            variance = variable.var()
            (variance + variable.mean() ** 2 - 1 - torch.log(variance + 1e-7)).backward()
            noise = noise - KL * variable.grad
        before, after = alphas[t - 1], alphas[t + stride - 1]
        latent = after.sqrt() * (latent - (1 - before).sqrt() * noise) / before.sqrt() + (1 - after).sqrt() * noise
    inverted = latent

    texts, references = torch.cat([embed(negative), text]), {}
    for t in scheduler.timesteps:
        with torch.no_grad():
            noise, references[int(t)] = predict(torch.cat([latent] * 2), t, texts)
        unconditional, conditional = noise.chunk(2)
        latent = scheduler.step(unconditional + SCALE * (conditional - unconditional), t, latent).prev_sample
    reconstruction, latent, edited = latent, inverted, torch.cat([texts[:1], texts[1:] + direction])
    for t in scheduler.timesteps:
        rows = torch.cat([latent] * 2).requires_grad_()
        optimizer = torch.optim.SGD([rows], lr=AMOUNT)
        _, maps = predict(rows, t, edited)
        sum(((a - b) ** 2).sum((1, 2)).mean(0) for a, b in zip(maps, references[int(t)], strict=True)).backward()
        optimizer.step()
        with torch.no_grad():
            noise, _ = predict(rows, t, edited)
        unconditional, conditional = noise.chunk(2)
        guided = unconditional + SCALE * (conditional - unconditional)
        latent = scheduler.step(guided, t, rows.detach().chunk(2)[0]).prev_sample
    return inverted, reconstruction, latent


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
