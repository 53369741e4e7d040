"""Distances between images, and between an edit and the truth. Images are RGB uint8, N x H x W x 3, unless said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from models.clip_scorer import ClipScorer
    from models.perceptual import Perceptual

BATCH = 32


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
            perceptual(signed(image_NHWC[start : start + BATCH]), signed(truth_NHWC[start : start + BATCH]))
            for start in range(0, len(image_NHWC), BATCH)
        ]
    return torch.cat(parts).cpu().numpy()


def structure_distance(perceptual: Perceptual, image_NHWC: np.ndarray, other_NHWC: np.ndarray) -> np.ndarray:
    """Mean squared difference of two images' self-similarities, N: cosines between all places of a feature map.

    The paper takes the keys of DINO ViT-B/8's last layer (Tumanyan et al. 2022). Here VGG16's relu4_3 stands in, whose weights come with
    LPIPS: values compare with each other, not with the paper's.
    """
    import torch

    def similarities(batch_NHWC: np.ndarray) -> torch.Tensor:
        features = perceptual.lpips.net(perceptual.lpips.scaling_layer(signed(batch_NHWC)))[3].flatten(2)
        unit = torch.nn.functional.normalize(features, dim=1)
        return unit.transpose(1, 2) @ unit

    with torch.no_grad():
        parts = [
            (similarities(image_NHWC[start : start + BATCH]) - similarities(other_NHWC[start : start + BATCH])).square().mean((1, 2))
            for start in range(0, len(image_NHWC), BATCH)
        ]
    return torch.cat(parts).cpu().numpy()


def nearer_to_target(scorer: ClipScorer, image_NHWC: np.ndarray, source: Sequence[str], target: Sequence[str]) -> np.ndarray:
    """Whether each image is nearer to the target texts (their mean feature) than to the source texts, N booleans: the paper's CLIP-Acc."""
    import torch

    features = torch.cat([scorer.image_features(list(image_NHWC[start : start + BATCH])) for start in range(0, len(image_NHWC), BATCH)])
    texts = torch.stack([torch.nn.functional.normalize(scorer.text_features(list(words)).mean(0), dim=0) for words in (target, source)])
    similarity = features @ texts.T
    return (similarity[:, 0] > similarity[:, 1]).cpu().numpy()


def signed(image_NHWC: np.ndarray) -> torch.Tensor:
    """uint8 N x H x W x 3 as a float tensor N x 3 x H x W in [-1, 1]."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(image_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
