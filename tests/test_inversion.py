"""The inversion against autograd in float64, a known trajectory, and itself one image at a time."""

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
    noise_statistics,
    regularise,
    steps_upwards,
    symmetric_circulants,
)
from models.teacher import Step


def seeded(seed: int) -> torch.Generator:
    """A CPU generator of random numbers."""
    return torch.Generator().manual_seed(seed)


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
    circulants = symmetric_circulants(noise.detach(), shifts)
    gradient = auto_correlation_gradient(noise.detach(), circulants, pool_gain)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-15)


def test_kl_gradient_is_autograds():
    torch.manual_seed(0)
    noise = (0.3 + 1.7 * torch.randn(2, 4, 16, 16, dtype=torch.float64)).requires_grad_()
    variance = noise.var((1, 2, 3))
    mean = noise.mean((1, 2, 3))
    loss = (variance + mean**2 - 1 - torch.log(variance + 1e-7)).sum()
    (expected,) = torch.autograd.grad(loss, noise)
    torch.testing.assert_close(kl_gradient(noise.detach()), expected, rtol=1e-10, atol=1e-15)


def test_regularisation_whitens():
    """Correlated noise of the wrong scale comes nearer to white unit noise: the very purpose of
    both terms.
    """
    torch.manual_seed(0)
    noise = 1.5 * F.avg_pool2d(torch.randn(2, 4, 33, 33), 2, 1)
    shifts_BSOICL = draw_shifts([seeded(0), seeded(1)], 4, channels=4, height=32)
    after = noise
    for step in range(4):  # of OUTER_ITERATIONS rounds each
        after = regularise(after, shifts_BSOICL[:, step], Inversion())
    assert abs(after.var() - 1) < abs(noise.var() - 1)
    correlation = [float((x * x.roll(1, 2)).mean() / x.square().mean()) for x in (noise, after)]
    assert abs(correlation[1]) < abs(correlation[0])


def test_shifts_stay_in_range_and_belong_to_the_image():
    shifts = draw_shifts([seeded(7), seeded(8)], 6, channels=4, height=32)
    assert shifts.shape == (2, 6, 5, 5, 4, 3)
    for level, side in enumerate((32, 16, 8)):
        assert set(shifts[..., level].flatten().tolist()) == set(range(1, side // 2))
    alone = draw_shifts([seeded(8)], 6, channels=4, height=32)
    assert torch.equal(alone[0], shifts[1])


def cosine_schedule(steps: int) -> list[Step]:
    levels = torch.cos(torch.linspace(0.02, 0.49, steps + 1) * torch.pi).square().tolist()
    return list(map(Step, range(steps, 0, -1), levels[:0:-1], levels[-2::-1]))


def test_inversion_and_sampling_are_inverse_for_an_exact_denoiser():
    """All data at one point: the exact noise prediction is linear in x and constant along each
    trajectory, so DDIM makes no error.
    """
    torch.manual_seed(0)
    schedule = cosine_schedule(9)
    point = torch.randn(2, 4, 8, 8)
    white = torch.randn(2, 4, 8, 8)
    alpha_at = {step.timestep: step.alpha for step in schedule}

    def noise(latent, timestep, _):
        alpha = alpha_at[timestep]
        return (latent - alpha**0.5 * point) / (1 - alpha) ** 0.5

    # The first inversion step predicts at the last timestep, so the trajectory starts at its level.
    alpha_low, start = schedule[-1][1:]
    latent = alpha_low**0.5 * point + (1 - alpha_low) ** 0.5 * white
    schedule[-1] = schedule[-1]._replace(alpha_next=alpha_low)
    assert start > alpha_low
    teacher = SimpleNamespace(noise=noise)
    plain = Inversion(lambda_ac=0, lambda_kl=0)
    generators = [seeded(0), seeded(1)]
    inverted = invert(teacher, steps_upwards(schedule), latent, None, generators, plain).inverted_BCHW
    alpha = schedule[0].alpha
    expected = alpha**0.5 * point + (1 - alpha) ** 0.5 * white
    torch.testing.assert_close(inverted, expected, rtol=1e-4, atol=1e-4)
    sampled = inverted
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
        latent = torch.randn(2, 4, 8, 8)
        noise = torch.randn(2, 4, 8, 8)
        expected = library.step(noise, library.timesteps[index], latent, eta=0.0).prev_sample
        moved = ddim_step(latent, noise, schedule[index].alpha, schedule[index].alpha_next)
        torch.testing.assert_close(moved, expected, rtol=1e-5, atol=1e-5)


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
    steps = steps_upwards(tiny_teacher.schedule(4))
    generators = [seeded(row) for row in range(3)]
    together = invert(tiny_teacher, steps, latent, text, generators, Inversion()).inverted_BCHW
    for row in range(3):
        rows = slice(row, row + 1)
        alone = invert(tiny_teacher, steps, latent[rows], text[rows], [seeded(row)], Inversion())
        torch.testing.assert_close(together[rows], alone.inverted_BCHW, rtol=1e-4, atol=1e-4)


def test_noise_statistics_of_known_noise():
    """White noise has none of it; a pattern of period four is fully correlated at shift four, by hand."""
    white = torch.randn(2, 4, 32, 32, generator=seeded(0))
    for statistics in noise_statistics(white):
        assert statistics["mean"] == pytest.approx(0, abs=0.05)
        assert statistics["variance"] == pytest.approx(1, abs=0.05)
        assert statistics["auto_correlation"] == pytest.approx(1 / 32, rel=0.2)
    waves = torch.tensor([1.0, 1.0, -1.0, -1.0]).repeat(2)[None, None, None].expand(1, 1, 8, 8)
    # shifts 1, 2, 3 along the columns: 0, -1, 0; along the rows: 1, 1, 1
    (statistics,) = noise_statistics(waves)
    assert statistics == {
        "mean": 0.0,
        "variance": pytest.approx(64 / 63, abs=1e-3),
        "auto_correlation": pytest.approx((4 / 6) ** 0.5, abs=1e-3),
    }
