"""Cross-attention guidance against diffusers' own attention, finite differences, and the cases that
are known.
"""

import pytest
import torch

from configs.schema import Guidance
from generate.guidance import Texts, attention_distance, attention_gradient, edit_in_lockstep


@pytest.fixture
def setting(tiny_teacher):
    torch.manual_seed(0)
    latent = torch.randn(2, 4, 8, 8)
    caption = tiny_teacher.embed(["a photo of a tree in summer", "two green trees"])
    edited = tiny_teacher.embed(["a photo of a tree in winter", "two snowy trees"])
    return tiny_teacher, latent, caption, edited


def test_the_processor_computes_what_diffusers_does(setting):
    from diffusers.models.attention_processor import AttnProcessor

    teacher, latent, caption, _ = setting
    fused = teacher.noise(latent, 500, caption)
    explicit, maps = teacher.noise_and_maps(latent, 500, caption)
    teacher.unet.set_attn_processor(AttnProcessor())
    expected = teacher.noise(latent, 500, caption)
    torch.testing.assert_close(fused, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(explicit, expected, rtol=1e-4, atol=1e-5)
    layers = [name for name, _ in teacher.unet.named_modules() if name.endswith("attn2")]
    assert len(maps) == len(layers) > 3
    for probabilities in maps:
        assert probabilities.shape[0] == 2 and probabilities.shape[-1] == teacher.tokenizer.model_max_length
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))


def test_v_prediction_is_converted(setting):
    """eps = sqrt(alpha) v + sqrt(1 - alpha) x, so that x0 from either agrees."""
    teacher, latent, caption, _ = setting
    velocity = teacher.noise(latent, 300, caption)
    teacher.predicts_v = True
    epsilon = teacher.noise(latent, 300, caption)
    alpha = teacher.scheduler.alphas_cumprod[300]
    from_epsilon = (latent - (1 - alpha).sqrt() * epsilon) / alpha.sqrt()
    from_velocity = alpha.sqrt() * latent - (1 - alpha).sqrt() * velocity
    torch.testing.assert_close(from_epsilon, from_velocity, rtol=1e-3, atol=1e-3)


def test_the_gradient_is_the_slope(setting):
    teacher, latent, caption, edited = setting
    with torch.no_grad():
        reference = teacher.maps(latent, 500, caption)

    def distance(x):
        with torch.no_grad():
            return float(attention_distance(teacher.maps(x, 500, edited), reference))

    gradient = attention_gradient(teacher, latent, 500, edited, reference)
    direction = gradient / gradient.norm()
    step = 0.5
    slope = (distance(latent + step * direction) - distance(latent - step * direction)) / (2 * step)
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)
    assert all(p.grad is None for p in teacher.unet.parameters())


def test_one_images_gradient_does_not_depend_on_its_neighbours(setting):
    teacher, latent, caption, edited = setting
    with torch.no_grad():
        reference = teacher.maps(latent, 500, caption)
    together = attention_gradient(teacher, latent, 500, edited, reference)
    alone = attention_gradient(teacher, latent[1:], 500, edited[1:], [maps[1:] for maps in reference])
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-7)


def test_no_change_of_text_reconstructs(setting):
    """With the caption itself as the edited text, guidance has nothing to pull and CFG nothing to
    amplify: edit = reference.
    """
    teacher, latent, caption, _ = setting
    texts = Texts(caption, caption, caption)
    reference, edit = edit_in_lockstep(teacher, teacher.schedule(4), latent, texts, Guidance(1.0, 7.5))
    torch.testing.assert_close(edit, reference, rtol=1e-3, atol=1e-3)


def test_lockstep_is_the_two_pass_algorithm(setting):
    """The reference code's order (all reference maps first, then the edit) gives the same edit."""
    teacher, latent, caption, edited = setting
    schedule = teacher.schedule(3)
    amount = 50.0
    scale = 3.0
    stored = []
    x = latent
    for t, a, b in schedule:
        with torch.no_grad():
            noise, maps = teacher.noise_and_maps(x, t, caption)
        stored.append(maps)
        x = b**0.5 * (x - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - b) ** 0.5 * noise
    y = latent
    for (t, a, b), maps in zip(schedule, stored, strict=True):
        variable = y.clone().requires_grad_()
        loss = 0
        for layer, reference in zip(teacher.noise_and_maps(variable, t, edited)[1], maps, strict=True):
            loss = loss + ((layer - reference) ** 2).sum((2, 3)).mean(1).sum()
        y = y - amount * torch.autograd.grad(loss, variable)[0]
        with torch.no_grad():
            negative = teacher.noise(y, t, caption)
            positive = teacher.noise(y, t, edited)
        noise = negative + scale * (positive - negative)
        y = b**0.5 * (y - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - b) ** 0.5 * noise
    texts = Texts(caption, edited, caption)
    reference, edit = edit_in_lockstep(teacher, schedule, latent, texts, Guidance(amount, scale))
    torch.testing.assert_close(reference, x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(edit, y, rtol=1e-3, atol=1e-3)
    reference, unguided = edit_in_lockstep(
        teacher, schedule, latent, texts, Guidance(0.0, scale), follow_reference=False
    )
    assert torch.equal(reference, latent)
    assert not torch.allclose(unguided, y, atol=1e-3)


def test_maps_alone_are_the_maps(setting):
    """The network left early gives the same maps, and runs whole again afterwards."""
    teacher, latent, caption, _ = setting
    noise, expected = teacher.noise_and_maps(latent, 500, caption)
    maps = teacher.maps(latent, 500, caption)
    assert len(maps) == len(expected) and all(torch.equal(a, b) for a, b in zip(maps, expected, strict=True))
    again, maps = teacher.noise_and_maps(latent, 500, caption)
    assert torch.equal(again, noise) and len(maps) == len(expected)
    torch.testing.assert_close(teacher.noise(latent, 500, caption), noise, rtol=1e-4, atol=1e-5)


def test_the_edit_takes_the_references_self_attention(setting):
    """Against diffusers' own attention scores, stored in one pass and put in place in the other."""
    teacher, latent, caption, edited = setting
    scale = 3.0
    schedule = teacher.schedule(2)
    guidance = Guidance(0.0, scale, self_attention=1.0)
    texts = Texts(caption, edited, caption)
    ours = edit_in_lockstep(teacher, schedule, latent, texts, guidance)
    _, without = edit_in_lockstep(teacher, schedule, latent, texts, Guidance(0.0, scale))
    assert not torch.allclose(ours[1], without, atol=1e-3)

    stored = []

    class Plain:
        """Attention by its definition; in self-attention stored, or taken from what was stored."""

        def __init__(self, takes):
            self.takes = takes

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
            query, key, value = (
                attn.head_to_batch_dim(project(states))
                for project, states in (
                    (attn.to_q, hidden_states),
                    (attn.to_k, context),
                    (attn.to_v, context),
                )
            )
            scores = attn.get_attention_scores(query, key)  # (rows x heads) x pixels x keys
            if encoder_hidden_states is None and self.takes:
                reference = stored.pop(0)
                scores = reference.repeat(len(scores) // len(reference), 1, 1)
            elif encoder_hidden_states is None:
                stored.append(scores)
            return attn.to_out[0](attn.batch_to_head_dim(scores @ value))

    def step(x, noise, a, b):
        return b**0.5 * (x - (1 - a) ** 0.5 * noise) / a**0.5 + (1 - b) ** 0.5 * noise

    def noise_of(x, t, text, takes):
        teacher.unet.set_attn_processor(Plain(takes))
        return teacher.unet(x, t, encoder_hidden_states=text).sample

    x = y = latent
    with torch.no_grad():
        for t, a, b in schedule:
            x = step(x, noise_of(x, t, caption, False), a, b)
            kept = list(stored)
            negative = noise_of(y, t, caption, True)
            stored[:] = kept
            positive = noise_of(y, t, edited, True)
            y = step(y, negative + scale * (positive - negative), a, b)
    torch.testing.assert_close(ours[0], x, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours[1], y, rtol=1e-3, atol=1e-3)


def test_self_attention_needs_the_reference_no_longer_than_it_is_taken(setting):
    """Without a reconstruction it stops there, and the edit is the same."""
    teacher, latent, caption, edited = setting
    texts = Texts(caption, edited, caption)
    guidance = Guidance(0.0, 3.0, self_attention=0.5)
    schedule = teacher.schedule(4)
    whole, expected = edit_in_lockstep(teacher, schedule, latent, texts, guidance)
    half, edit = edit_in_lockstep(
        teacher, teacher.schedule(4), latent, texts, guidance, follow_reference=False
    )
    assert torch.equal(edit, expected) and not torch.allclose(half, whole)
    first, _ = edit_in_lockstep(teacher, schedule[:2], latent, texts, guidance)
    torch.testing.assert_close(half, first)
