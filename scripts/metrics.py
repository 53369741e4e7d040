"""Distances between images, and between an edit and the truth. Images are RGB uint8, N x H x W x 3, unless said otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from models.clip_scorer import ClipScorer
    from models.perceptual import Perceptual

BATCH = 32
STRUCTURE_LAYER = 3  # relu4_3 of LPIPS's five


def psnr(image_NHWC: np.ndarray, truth_NHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, dB, N; infinite for equal images."""
    error = ((image_NHWC.astype(np.float64) - truth_NHWC) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def lpips_distance(perceptual: Perceptual, image_NHWC: np.ndarray, truth_NHWC: np.ndarray) -> np.ndarray:
    """LPIPS (VGG16) of each pair, N; lower is nearer."""
    import torch

    with torch.no_grad():
        parts = [
            perceptual(*(signed(images[start : start + BATCH], perceptual) for images in (image_NHWC, truth_NHWC)))
            for start in range(0, len(image_NHWC), BATCH)
        ]
    return torch.cat(parts).cpu().numpy()


def perceptual_columns(perceptual: Perceptual, edits: Mapping[str, np.ndarray], inputs: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """For each named set of edits: 'lpips_true', 'lpips_input' and 'structure' (to the input), N each; every image is looked at once."""
    import torch

    names, found = list(edits), []
    with torch.no_grad():
        for start in range(0, len(inputs), BATCH):
            part = slice(start, start + BATCH)
            of_input, of_truth = (perceptual.features(signed(images[part], perceptual)) for images in (inputs, truth))
            columns = []
            for name in names:
                of_edit = perceptual.features(signed(edits[name][part], perceptual))
                distances = perceptual.distance(of_edit, of_truth), perceptual.distance(of_edit, of_input)
                columns.append(torch.stack([*distances, structure_distance(of_edit[STRUCTURE_LAYER], of_input[STRUCTURE_LAYER])]))
            found.append(torch.stack(columns).cpu())
    table = torch.cat(found, -1).numpy()
    return {name: dict(zip(("lpips_true", "lpips_input", "structure"), row, strict=True)) for name, row in zip(names, table, strict=True)}


def structure_distance(first_BCHW: torch.Tensor, second_BCHW: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two images' self-similarities, B: cosines between all places of their unit feature maps.

    The paper takes the keys of DINO ViT-B/8's last layer (Tumanyan et al. 2022). Here VGG16's relu4_3 stands in, whose weights come with
    LPIPS: values compare with each other, not with the paper's.
    """

    def similarities(unit_BCHW: torch.Tensor) -> torch.Tensor:
        unit_BCN = unit_BCHW.flatten(2)
        return unit_BCN.transpose(1, 2) @ unit_BCN

    return (similarities(first_BCHW) - similarities(second_BCHW)).square().mean((1, 2))


def nearer_to_target(scorer: ClipScorer, image_NHWC: np.ndarray, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Whether each image is nearer to the target texts (their mean feature) than to the source texts, N booleans: the paper's CLIP-Acc."""
    import torch

    features = torch.cat([scorer.image_features(list(image_NHWC[start : start + BATCH])) for start in range(0, len(image_NHWC), BATCH)])
    texts = torch.stack([torch.nn.functional.normalize(scorer.text_features(list(words)).mean(0), dim=0) for words in (target, source)])
    similarity = features @ texts.T
    return (similarity[:, 0] > similarity[:, 1]).cpu().numpy()


def signed(image_NHWC: np.ndarray, where: torch.nn.Module) -> torch.Tensor:
    """uint8 N x H x W x 3 as a float tensor N x 3 x H x W in [-1, 1], on the module's device."""
    import torch

    image = torch.from_numpy(np.ascontiguousarray(image_NHWC)).to(next(where.parameters()).device)
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1
