"""Editing methods against other implementations of them."""

from functools import partial

import pytest
import torch

from configs.errors import UserError
from configs.loader import load
from configs.schema import Guidance, Inversion
from configs.schema import Teacher as TeacherConfig
from generate.directions import EditDirection
from generate.editors import Editor, sample_seed
from generate.guidance import Lockstep, Texts, attention_gradient, edit_in_lockstep
from generate.inversion import Solver, ddim_step, invert, noise_statistics, steps_upwards
from models.teacher import Teacher


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
    assert found == {
        "mean": 0.0,
        "variance": pytest.approx(64 / 63, abs=1e-3),
        "auto_correlation": pytest.approx((4 / 6) ** 0.5, abs=1e-3),
    }


def test_multistep_is_diffusers_dpm_solver(tiny_teacher):
    """The same timesteps and noises through DPMSolverMultistepScheduler, second order from the second step to the last."""
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler.from_config(
        tiny_teacher.scheduler.config,
        algorithm_type="dpmsolver++",
        solver_order=2,
        lower_order_final=False,
        final_sigmas_type="sigma_min",
    )
    timesteps = [901, 801, 601, 401, 201, 101]
    scheduler.set_timesteps(timesteps=timesteps)
    alphas = [float(tiny_teacher.scheduler.alphas_cumprod.double()[t]) for t in timesteps]
    torch.manual_seed(0)
    start = torch.randn(2, 4, 8, 8)
    expected, found, solver = start, start, Solver("multistep")
    for index in range(len(timesteps) - 1):
        noise = torch.randn(2, 4, 8, 8)
        expected = scheduler.step(noise, scheduler.timesteps[index], expected).prev_sample
        found = solver.step(found, noise, alphas[index], alphas[index + 1])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def edit(teacher, arguments, image=None, reconstruct=True):
    editor = Editor(
        teacher,
        EditDirection(0.3 * torch.randn(1, 32, 32, generator=torch.Generator().manual_seed(2)), "", ""),
        load(arguments),
    )
    return editor(image, ["a tree in summer", "a green tree"], ["a", "b"], reconstruct)


def test_a_prompt_makes_its_own_input(tiny_teacher, tiny_teacher_folder):
    """The input is what diffusers' text-to-image pipeline makes of the same noise, prompt and scale."""
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    found = edit(tiny_teacher, ["edit.steps=5", "guidance.amount=50", "guidance.scale=3"]).latents
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_teacher_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    expected = pipeline(
        prompt=["a tree in summer", "a green tree"],
        num_inference_steps=5,
        guidance_scale=3.0,
        latents=torch.stack(
            [
                torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(sample_seed(0, key)))
                for key in "ab"
            ]
        ),
        output_type="latent",
    ).images
    torch.testing.assert_close(found["input"], expected, rtol=1e-4, atol=1e-4)
    assert set(found) == {"input", "inverted", "edit"} and (found["edit"] - found["input"]).abs().max() > 0.05


def test_guidance_until(tiny_teacher):
    """Without guidance after `until` the edit lies between the guided and the unguided one."""
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    common = ["edit.steps=6", "guidance.scale=3"]
    whole, none = (
        edit(tiny_teacher, [*common, f"guidance.amount={amount}"], image).latents["edit"]
        for amount in (300, 0)
    )
    half = edit(tiny_teacher, [*common, "guidance.amount=300", "guidance.until=0.5"], image).latents["edit"]
    assert torch.equal(
        edit(tiny_teacher, [*common, "guidance.amount=300", "guidance.until=0"], image).latents["edit"], none
    )
    assert 0 < (half - whole).norm() < (none - whole).norm()


def test_maps_that_are_there_need_no_reference_pass(tiny_teacher):
    """Given the reference pass's own maps by timestep, but for the first step, the edit is the same and the reference stops after it."""
    torch.manual_seed(0)
    schedule, latent = tiny_teacher.schedule(4), torch.randn(2, 4, 8, 8)
    texts = Texts(
        *(tiny_teacher.embed(words) for words in (["a tree"] * 2, ["a pine tree"] * 2, ["a tree"] * 2))
    )
    guidance = Guidance(300.0, 3.0)
    maps, reference = {}, latent
    for timestep, alpha, alpha_next in schedule:
        with torch.no_grad():
            noise, maps[timestep] = tiny_teacher.noise_and_maps(reference, timestep, texts.caption)
        reference = ddim_step(reference, noise, alpha, alpha_next)
    del maps[schedule[0].timestep]
    expected = edit_in_lockstep(tiny_teacher, schedule, latent, texts, guidance, Lockstep())[1]
    calls = []
    original = tiny_teacher.noise_and_maps
    tiny_teacher.noise_and_maps = lambda *inputs: calls.append(inputs[1]) or original(*inputs)
    found = edit_in_lockstep(
        tiny_teacher, schedule, latent, texts, guidance, Lockstep(reference=False, maps=maps)
    )[1]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert calls == [schedule[0].timestep]


def test_the_inversion_keeps_the_maps_that_guidance_asks_for(tiny_teacher):
    schedule = tiny_teacher.schedule(6)
    latent, text = (
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        tiny_teacher.embed(["a tree"]),
    )
    _, maps = invert(
        tiny_teacher, steps_upwards(schedule), latent, text, [torch.Generator()], Inversion(), map_steps=3
    )
    assert list(maps) == [step.timestep for step in schedule[3:0:-1]] and len(maps[schedule[1].timestep]) > 3
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    arguments = ["edit.steps=6", "guidance.maps=inversion", "guidance.until=0.6"]
    assert set(edit(tiny_teacher, arguments, image, reconstruct=False).latents) == {
        "input",
        "inverted",
        "edit",
    }
    for wrong in ("inversion.steps=3", "edit.mode=official"):
        with pytest.raises(UserError, match="guidance.maps=inversion: needs edit.mode=paper"):
            edit(tiny_teacher, [*arguments, wrong])
    with pytest.raises(UserError, match="edit.solver=multistep: edit.mode=official is DDIM's"):
        edit(tiny_teacher, ["edit.mode=official", "edit.solver=multistep"])


@pytest.mark.parametrize(
    "wrong", ["edit.method=e", "edit.mode=e", "edit.solver=e", "guidance.negative=e", "guidance.maps=e"]
)
def test_a_wrong_name_lists_the_right_ones(tiny_teacher, wrong):
    with pytest.raises(UserError, match=f"{wrong}: there are"):
        edit(tiny_teacher, [wrong])


def test_compiled_is_the_same(tiny_teacher_folder, tiny_teacher, monkeypatch):
    """Through torch.compile's capture and its derivative, without the minutes of code generation."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    compiled = Teacher(
        TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"), compiled=True
    )
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected, found = (
        edit(teacher, ["edit.steps=1", "guidance.amount=50"], image).latents
        for teacher in (tiny_teacher, compiled)
    )
    for name, latent in expected.items():
        torch.testing.assert_close(found[name], latent, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near_and_finite(tiny_teacher_folder, tiny_teacher, dtype):
    half = Teacher(TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"), dtype)
    latent, text = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        tiny_teacher.embed(["a tree", "a green tree"]),
    )
    expected, found = (
        attention_gradient(teacher, latent, 500, text, teacher.maps(latent, 500, 0 * text))
        for teacher in (tiny_teacher, half)
    )
    assert found.isfinite().all()
    assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.95


def test_scores_beyond_half_precision_are_upcast(tiny_teacher_folder, tiny_teacher):
    """Stable Diffusion 2.1 says upcast_attention: its scores leave float16's range, before the softmax."""
    half = Teacher(TeacherConfig("tiny", str(tiny_teacher_folder), 32), torch.device("cpu"), "float16")
    for teacher in (half, tiny_teacher):
        for name, module in teacher.unet.named_modules():
            if name.endswith("attn2"):
                module.upcast_attention = True
                module.to_q.weight.mul_(3000)
                module.to_k.weight.mul_(3000)
    latent, text = (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        tiny_teacher.embed(["a tree", "a green tree"]),
    )
    assert all(layer.isfinite().all() for layer in half.maps(latent, 500, text))
