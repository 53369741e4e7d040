"""The inversion against autograd in float64, a denoiser whose trajectory is known, and itself one image at a time."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from configs.errors import UserError
from configs.schema import Inversion
from generate.inversion import (
    auto_correlation_gradient,
    ddim_step,
    draw_shifts,
    invert,
    kl_gradient,
    regularise,
    steps_upwards,
    symmetric_circulants,
)
from models.teacher import Step


def auto_correlation_loss(noise_BCHW, shifts_BCL, pool_gain):
    """L_ac as the paper writes it: rolls, means and squares, one channel and level at a time."""
    total = noise_BCHW.new_zeros(())
    for image, shifts_CL in zip(noise_BCHW, shifts_BCL, strict=True):
        for channel, shifts_L in zip(image, shifts_CL, strict=True):
            level = channel
            for index, shift in enumerate(shifts_L.tolist()):
                if index:
                    level = F.avg_pool2d(level[None, None], 2)[0, 0] * pool_gain
                for axis in (0, 1):
                    total = total + (level * level.roll(shift, axis)).mean() ** 2
    return total


@pytest.mark.parametrize("pool_gain", [1.0, 2.0])
def test_auto_correlation_gradient_is_autograds(pool_gain):
    torch.manual_seed(0)
    noise = torch.randn(3, 4, 32, 32, dtype=torch.float64, requires_grad=True)
    shifts = torch.stack([torch.randint(1, side // 2, (3, 4)) for side in (32, 16, 8)], -1)
    (expected,) = torch.autograd.grad(auto_correlation_loss(noise, shifts, pool_gain), noise)
    found = auto_correlation_gradient(noise.detach(), symmetric_circulants(noise.detach(), shifts), pool_gain)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-15)


def test_kl_gradient_is_autograds():
    torch.manual_seed(0)
    noise = (0.3 + 1.7 * torch.randn(2, 4, 16, 16, dtype=torch.float64)).requires_grad_()
    variance, mean = noise.var((1, 2, 3)), noise.mean((1, 2, 3))
    loss = (variance + mean**2 - 1 - torch.log(variance + 1e-7)).sum()
    (expected,) = torch.autograd.grad(loss, noise)
    torch.testing.assert_close(kl_gradient(noise.detach()), expected, rtol=1e-10, atol=1e-15)


def test_regularisation_whitens():
    """Correlated noise of the wrong scale comes nearer to white unit noise: the very purpose of both terms."""
    config = Inversion(outer_iterations=20)
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    torch.manual_seed(0)
    noise = 1.5 * F.avg_pool2d(torch.randn(2, 4, 33, 33), 2, 1)
    shifts = draw_shifts(generators, (4, 32), 1, config)[:, 0]
    after = regularise(noise, shifts, config)
    assert abs(after.var() - 1) < abs(noise.var() - 1)
    correlation = [float((x * x.roll(1, 2)).mean() / x.square().mean()) for x in (noise, after)]
    assert abs(correlation[1]) < abs(correlation[0])


def test_shifts_stay_in_range_and_belong_to_the_image():
    config = Inversion()
    shifts = draw_shifts([torch.Generator().manual_seed(seed) for seed in (7, 8)], (4, 32), 6, config)
    assert shifts.shape == (2, 6, 5, 5, 4, 3)
    for level, side in enumerate((32, 16, 8)):
        assert set(shifts[..., level].flatten().tolist()) == set(range(1, side // 2))
    alone = draw_shifts([torch.Generator().manual_seed(8)], (4, 32), 6, config)
    assert torch.equal(alone[0], shifts[1])


def cosine_schedule(steps: int) -> list[Step]:
    levels = torch.cos(torch.linspace(0.02, 0.49, steps + 1) * torch.pi).square().tolist()
    return list(map(Step, range(steps, 0, -1), levels[:0:-1], levels[-2::-1]))


def test_inversion_and_sampling_are_inverse_for_an_exact_denoiser():
    """All data at one point: the exact noise prediction is linear in x and constant along each trajectory, so DDIM makes no error."""
    torch.manual_seed(0)
    schedule = cosine_schedule(9)
    point, white = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    alpha_at = {step.timestep: step.alpha for step in schedule}

    def noise(latent, timestep, _):
        alpha = alpha_at[timestep]
        return (latent - alpha**0.5 * point) / (1 - alpha) ** 0.5

    # The first inversion step evaluates the lowest level at the last timestep, so the trajectory starts there.
    alpha_low, start = schedule[-1][1:]
    latent = alpha_low**0.5 * point + (1 - alpha_low) ** 0.5 * white
    schedule[-1] = schedule[-1]._replace(alpha_next=alpha_low)
    assert start > alpha_low
    teacher = SimpleNamespace(noise=noise)
    generators = [torch.Generator(), torch.Generator()]
    noises, _ = invert(
        teacher, steps_upwards(schedule), latent, None, generators, Inversion(lambda_ac=0, lambda_kl=0)
    )
    alpha = schedule[0].alpha
    torch.testing.assert_close(
        noises["inverted"], alpha**0.5 * point + (1 - alpha) ** 0.5 * white, rtol=1e-4, atol=1e-4
    )
    sampled = noises["inverted"]
    for timestep, alpha, alpha_next in schedule:
        sampled = ddim_step(sampled, noise(sampled, timestep, None), alpha, alpha_next)
    torch.testing.assert_close(sampled, latent, rtol=1e-4, atol=1e-4)


def test_ddim_step_is_diffusers(tiny_teacher):
    """One step and the schedule's alphas against DDIMScheduler.step."""
    from diffusers import DDIMScheduler

    library = DDIMScheduler.from_config(tiny_teacher.scheduler.config)
    library.set_timesteps(7)
    schedule = tiny_teacher.schedule(7)
    assert [step.timestep for step in schedule] == library.timesteps.tolist()
    torch.manual_seed(0)
    for index in (0, 3, 6):
        latent, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        expected = library.step(noise, library.timesteps[index], latent, eta=0.0).prev_sample
        found = ddim_step(latent, noise, *schedule[index][1:])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_steps_beyond_the_training_schedule_are_refused(tiny_teacher):
    """Of 1,000 trained timesteps an offset of 1 leaves 999."""
    assert tiny_teacher.schedule(999)[0].timestep == 999
    for steps in (0, 1000):
        with pytest.raises(UserError, match="edit.steps=.*from 1 to 999"):
            tiny_teacher.schedule(steps)


def test_a_batch_is_its_images_one_by_one(tiny_teacher):
    torch.manual_seed(0)
    latent = torch.randn(3, 4, 8, 8)
    text = tiny_teacher.embed(["a tree", "two trees in summer", "a pine tree"])
    schedule = tiny_teacher.schedule(4)
    generators = lambda rows: [torch.Generator().manual_seed(row) for row in rows]  # noqa: E731
    together = invert(tiny_teacher, steps_upwards(schedule), latent, text, generators(range(3)), Inversion())[
        0
    ]
    for row in range(3):
        one = latent[row : row + 1], text[row : row + 1], generators([row])
        alone = invert(tiny_teacher, steps_upwards(schedule), *one, Inversion())[0]
        torch.testing.assert_close(
            together["inverted"][row : row + 1], alone["inverted"], rtol=1e-4, atol=1e-4
        )
