"""distill/adapters.py: small changes of a trained generator, exported as if there had never been any."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.loader import load
from distill.adapters import adapt, merged
from distill.train import train
from models.comodgan import CoModGenerator
from tests.helpers import TINY, make_selected_pairs, tiny_training


def networks(rank: int, moved: bool) -> tuple[CoModGenerator, CoModGenerator]:
    """A network and the same with adapters, whose weights are then `moved` by chance."""
    torch.manual_seed(0)
    plain, adapted = CoModGenerator(16, **TINY).eval(), CoModGenerator(16, **TINY).eval()
    adapted.load_state_dict(plain.state_dict())
    adapt(adapted, rank)
    if moved:
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return plain, adapted


def test_at_first_nothing_has_changed():
    plain, adapted = networks(2, moved=False)
    image_BCHW = torch.rand(2, 3, 16, 16)
    assert torch.equal(adapted(image_BCHW), plain(image_BCHW))


def test_merged_is_unmerged_to_rounding_and_of_low_rank():
    plain, adapted = networks(2, moved=True)
    image_BCHW = torch.rand(2, 3, 16, 16)
    before, names = plain(image_BCHW), [name for name, _ in plain.named_parameters()]
    assert not torch.allclose(adapted(image_BCHW), before, atol=1e-2)
    ranks = set()
    with torch.no_grad():
        for parameter, name, value in zip(plain.parameters(), names, merged(adapted, names), strict=True):
            if parameter.ndim == 4 and min(parameter.flatten(1).shape) > 3:
                ranks.add(torch.linalg.matrix_rank((value - parameter).flatten(1).double(), rtol=1e-4).item())
            assert not name.startswith("mapping") or torch.equal(parameter, value)
            parameter.copy_(value)
    assert ranks == {2}
    torch.testing.assert_close(plain(image_BCHW), adapted(image_BCHW), rtol=1e-5, atol=1e-5)


def test_at_full_size_a_small_share_trains():
    with torch.device("meta"):
        generator = CoModGenerator(256)
        whole = sum(parameter.numel() for parameter in generator.parameters())
        adapt(generator, 4)
    trained = sum(parameter.numel() for parameter in generator.parameters() if parameter.requires_grad)
    assert 0.002 < trained / whole < 0.01  # E2GAN trains 1 %


@pytest.fixture
def init(tmp_path):
    torch.manual_seed(1)
    sizes = {
        "channel_base": 64,
        "channel_max": 8,
        "z_dim": 8,
        "w_dim": 8,
        "code_dim": 16,
        "mapping_layers": 2,
    }
    old = CoModGenerator(16, **sizes)
    config = {
        key: value for key, value in old.config.items() if key not in ("separable", "width")
    }  # a file from before those were there
    save_file(old.state_dict(), tmp_path / "old.safetensors", {"config": json.dumps(config)})
    return tmp_path / "old.safetensors"


def test_training_moves_the_adapters_alone_and_resumes_bit_for_bit(init, tmp_path, capsys):
    results = []
    for name, lengths in (("whole", [16]), ("halves", [8, 16])):
        run = tmp_path / name / "tree2winter" / "miniature"
        make_selected_pairs(run)
        for images in lengths:
            options = [
                f"distill.images={images}",
                "distill.lpips=0",
                f"distill.init={init}",
                "distill.adapter_rank=2",
            ]
            path = train(load(tiny_training(run, *options)))
        results.append(
            {part: load_file(path / f"{part}.safetensors") for part in ("generator", "ema", "adam")}
        )
    assert "% of the weights" in capsys.readouterr().out
    for part, tensors in results[0].items():
        assert [
            name for name, value in tensors.items() if not torch.equal(value, results[1][part][name])
        ] == []
    old, now, average = load_file(init), results[0]["generator"], results[0]["ema"]
    assert average.keys() == old.keys()  # what export reads is a plain network
    skip = "encoder.skips.1.weight"
    torch.testing.assert_close(
        now[f"{skip}.parametrizations.raw.original"], old[f"{skip}.raw"], rtol=0, atol=0
    )
    assert not torch.equal(average[f"{skip}.raw"], old[f"{skip}.raw"])
    assert torch.equal(average["mapping.0.weight.raw"], old["mapping.0.weight.raw"])


def test_the_average_is_of_merged_weights(init, tmp_path):
    """One step: 2^-20 of the first weights is left in the average."""
    run = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(run)
    path = train(
        load(
            tiny_training(
                run, "distill.images=4", "distill.lpips=0", f"distill.init={init}", "distill.adapter_rank=2"
            )
        )
    )
    now, average = load_file(path / "generator.safetensors"), load_file(path / "ema.safetensors")
    change = "encoder.skips.1.weight.parametrizations.raw"
    expected = now[f"{change}.original"] + (now[f"{change}.0.up"] @ now[f"{change}.0.down"]).view_as(
        now[f"{change}.original"]
    )
    torch.testing.assert_close(average["encoder.skips.1.weight.raw"], expected, rtol=1e-5, atol=1e-5)
