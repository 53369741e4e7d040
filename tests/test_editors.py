"""Editing methods against other implementations of them."""

from functools import partial

import pytest
import torch

from configs.errors import UserError
from configs.loader import load
from configs.methods import METHODS, needs_teacher
from configs.schema import Guidance, Inversion
from configs.schema import Teacher as TeacherConfig
from generate.directions import EditDirection
from generate.editors import Editor, PictureEditor, picture_editor, sample_seed
from generate.guidance import Texts, attention_gradient, edit_in_lockstep, edit_step
from generate.inversion import ddim_step, invert, steps_upwards
from models.teacher import Teacher

CAPTIONS = ["a tree in summer", "a green tree"]
KEYS = ["a", "b"]


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_images():
    """Two images in [-1, 1]."""
    return torch.rand(2, 3, 32, 32, generator=seeded(0)) * 2 - 1


def edit(teacher, arguments, image=None, reconstruct=True):
    """Edit the images, or what the captions make, along a random direction."""
    direction = EditDirection(0.3 * torch.randn(1, 32, 32, generator=seeded(2)), "", "")
    return Editor(teacher, direction, load(arguments))(image, CAPTIONS, KEYS, reconstruct)


def test_every_method_without_a_teacher_has_its_class():
    others = [name for name in METHODS if not needs_teacher(name)]
    assert {"pipeline", "pairs"} <= set(others)
    for name in others:
        assert issubclass(picture_editor(name), PictureEditor)


def test_a_method_without_a_teacher_is_refused_where_one_is_needed(tiny_teacher):
    with pytest.raises(UserError, match="edit.method=pipeline edits without a Stable Diffusion"):
        edit(tiny_teacher, ["edit.method=pipeline"])


def test_sdedit_is_diffusers_image_to_image(tiny_teacher, tiny_teacher_folder):
    """The same latent, noise, texts, strength and scale through StableDiffusionImg2ImgPipeline."""
    from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

    arguments = ["edit.method=sdedit", "edit.strength=0.6", "edit.steps=10", "guidance.scale=3"]
    ours = edit(tiny_teacher, arguments, random_images(), reconstruct=False).latents["edit"]

    pipeline = StableDiffusionImg2ImgPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        prompt_embeds=tiny_teacher.embed(["a tree in winter", "a snowy tree"]),
        negative_prompt_embeds=tiny_teacher.embed(CAPTIONS),
        image=tiny_teacher.encode(random_images()),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=[seeded(sample_seed(0, key)) for key in KEYS],
        output_type="latent",
    ).images
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_makes_its_own_input(tiny_teacher, tiny_teacher_folder):
    """The input is what diffusers' text-to-image pipeline makes of the same noise, prompt and scale."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    ours = edit(tiny_teacher, ["edit.steps=5", "guidance.amount=50", "guidance.scale=3"]).latents
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        prompt=CAPTIONS,
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=torch.stack([torch.randn(4, 8, 8, generator=seeded(sample_seed(0, key))) for key in KEYS]),
        output_type="latent",
    ).images
    torch.testing.assert_close(ours["input"], expected, rtol=1e-4, atol=1e-4)
    assert set(ours) == {"input", "inverted", "edit"}
    assert (ours["edit"] - ours["input"]).abs().max() > 0.05


def test_guidance_until(tiny_teacher):
    """Without guidance after `until` the edit lies between the guided and the unguided one."""

    def edited(*arguments):
        common = ["edit.steps=6", "guidance.scale=3"]
        return edit(tiny_teacher, [*common, *arguments], random_images()).latents["edit"]

    guided = edited("guidance.amount=300")
    unguided = edited("guidance.amount=0")
    half = edited("guidance.amount=300", "guidance.until=0.5")
    assert torch.equal(edited("guidance.amount=300", "guidance.until=0"), unguided)
    assert 0 < (half - guided).norm() < (unguided - guided).norm()


def test_classifier_free_guidance_until(tiny_teacher):
    """After `scale_until` the edit follows its own text, as at scale 1, and asks for one row an image."""

    def edited(*arguments):
        common = ["edit.steps=6", "guidance.amount=0"]
        return edit(tiny_teacher, [*common, *arguments], random_images()).latents["edit"]

    guided = edited("guidance.scale=3")
    unguided = edited("guidance.scale=1")
    torch.testing.assert_close(edited("guidance.scale=3", "guidance.scale_until=0"), unguided)
    half = edited("guidance.scale=3", "guidance.scale_until=0.5")
    assert 0 < (half - guided).norm() < (unguided - guided).norm()

    rows = []
    noise = tiny_teacher.noise

    def spy(latent, timestep, text):
        rows.append(len(latent) // len(random_images()))
        return noise(latent, timestep, text)

    tiny_teacher.noise = spy
    edited("guidance.scale=3", "guidance.scale_until=0.5", "edit.method=D")
    del tiny_teacher.noise
    assert rows[-6:].count(2) == 0 and rows.count(2) == 3


def test_every_second_step_guides_twice_as_far(tiny_teacher):
    """By hand, step by step; and the maps are the same whether the reference goes to its end or not."""
    torch.manual_seed(0)
    schedule = tiny_teacher.schedule(5)
    noise = torch.randn(2, 4, 8, 8)
    caption = tiny_teacher.embed(["a tree"] * 2)
    texts = Texts(caption, tiny_teacher.embed(["a pine tree"] * 2), caption)
    guidance = Guidance(30.0, 3.0, every=2, until=0.8)
    reference, expected = noise, noise
    for index, step in enumerate(schedule):
        maps = []
        with torch.no_grad():
            predicted, maps = tiny_teacher.noise_and_maps(reference, step.timestep, caption)
        if index in (0, 2):
            gradient = attention_gradient(tiny_teacher, expected, step.timestep, texts.edited, maps)
            expected = expected - 60.0 * gradient
        reference = ddim_step(reference, predicted, step.alpha, step.alpha_next)
        with torch.no_grad():
            expected = edit_step(tiny_teacher, expected, step, texts, 3.0)
    for follow in (True, False):
        _, edited = edit_in_lockstep(tiny_teacher, schedule, noise, texts, guidance, follow_reference=follow)
        torch.testing.assert_close(edited, expected, rtol=1e-4, atol=1e-4)


def test_maps_that_are_there_need_no_reference_pass(tiny_teacher):
    """Given the reference pass's own maps but the first step's, the edit is the same.

    The reference stops after the first step.
    """
    torch.manual_seed(0)
    schedule = tiny_teacher.schedule(4)
    latent = torch.randn(2, 4, 8, 8)
    caption = tiny_teacher.embed(["a tree"] * 2)
    texts = Texts(caption, tiny_teacher.embed(["a pine tree"] * 2), caption)
    guidance = Guidance(300.0, 3.0)
    maps = {}
    reference = latent
    for timestep, alpha, alpha_next in schedule:
        with torch.no_grad():
            noise, maps[timestep] = tiny_teacher.noise_and_maps(reference, timestep, caption)
        reference = ddim_step(reference, noise, alpha, alpha_next)
    del maps[schedule[0].timestep]
    _, expected = edit_in_lockstep(tiny_teacher, schedule, latent, texts, guidance)

    recorded = []
    noise_and_maps = tiny_teacher.noise_and_maps

    def spy(latent, timestep, text):
        recorded.append(timestep)
        return noise_and_maps(latent, timestep, text)

    tiny_teacher.noise_and_maps = spy
    _, edited = edit_in_lockstep(
        tiny_teacher, schedule, latent, texts, guidance, follow_reference=False, ready_maps=maps
    )
    torch.testing.assert_close(edited, expected, rtol=1e-3, atol=1e-3)
    assert recorded == [schedule[0].timestep]


def test_the_inversion_keeps_the_maps_that_guidance_asks_for(tiny_teacher):
    schedule = tiny_teacher.schedule(6)
    upwards = steps_upwards(schedule)
    latent = torch.randn(1, 4, 8, 8, generator=seeded(0))
    text = tiny_teacher.embed(["a tree"])
    maps = invert(tiny_teacher, upwards, latent, text, [seeded(0)], Inversion(), map_steps=3).maps
    assert list(maps) == [step.timestep for step in schedule[3:0:-1]]
    assert len(maps[schedule[1].timestep]) > 3

    arguments = ["edit.steps=6", "guidance.maps=inversion", "guidance.until=0.6"]
    edited = edit(tiny_teacher, arguments, random_images(), reconstruct=False)
    assert set(edited.latents) == {"input", "inverted", "edit"}
    assert set(edited.noises) == {"inverted", "predicted", "regularised"}
    for key in ("guidance.maps=inversion", "guidance.every=2", "guidance.scale_until=0.5"):
        with pytest.raises(UserError, match=r"guidance.maps=inversion, .* need edit.mode=paper"):
            edit(tiny_teacher, ["edit.steps=6", key, "edit.mode=official"])


@pytest.mark.parametrize("wrong", ["edit.method=e", "edit.mode=e", "guidance.negative=e", "guidance.maps=e"])
def test_a_wrong_name_lists_the_right_ones(tiny_teacher, wrong):
    with pytest.raises(UserError, match=f"{wrong}: it is .* or "):
        edit(tiny_teacher, [wrong])


def test_compiled_is_the_same(tiny_teacher_folder, tiny_teacher, monkeypatch):
    """Through torch.compile's capture and its derivative, without the minutes of code generation."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    config = TeacherConfig("tiny", str(tiny_teacher_folder), 32)
    compiled = Teacher(config, torch.device("cpu"), compiled=True)
    arguments = ["edit.steps=1", "guidance.amount=50"]
    expected = edit(tiny_teacher, arguments, random_images()).latents
    latents = edit(compiled, arguments, random_images()).latents
    assert graphs
    for name, latent in expected.items():
        torch.testing.assert_close(latents[name], latent, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_finite(tiny_teacher_folder, tiny_teacher, dtype):
    half = Teacher(TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"), dtype)
    latent = torch.randn(2, 4, 8, 8, generator=seeded(0))
    text = tiny_teacher.embed(CAPTIONS)

    def gradient(teacher):
        return attention_gradient(teacher, latent, 500, text, teacher.maps(latent, 500, 0 * text))

    expected = gradient(tiny_teacher)
    ours = gradient(half)
    assert ours.isfinite().all()
    assert torch.cosine_similarity(ours.flatten(), expected.flatten(), dim=0) > 0.95


def test_scores_beyond_half_precision_are_upcast(tiny_teacher_folder, tiny_teacher):
    """Stable Diffusion 2.1 says upcast_attention: before the softmax, scores leave float16's range."""
    half = Teacher(TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"), "float16")
    for name, module in half.unet.named_modules():
        if name.endswith("attn2"):
            module.upcast_attention = True
            module.to_q.weight.mul_(3000)
            module.to_k.weight.mul_(3000)
    latent = torch.randn(2, 4, 8, 8, generator=seeded(0))
    for layer in half.maps(latent, 500, tiny_teacher.embed(CAPTIONS)):
        assert layer.isfinite().all()
