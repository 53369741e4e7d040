"""Distances between images, and between an edit and the truth. Images are RGB uint8, N x H x W x 3, unless said otherwise."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn.functional import normalize

from configs.errors import UserError
from models.clip_scorer import ClipScorer
from models.perceptual import Perceptual

BATCH = 8  # of 512 x 512 images: the features that VGG16 gives of them take 1 GB
INCEPTION = "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
STRUCTURE_LAYER = 3  # relu4_3 of LPIPS's five, the stand-in for DINO's keys


def psnr(image_NHWC: np.ndarray, truth_NHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, dB, N; infinite for equal images."""
    error = ((image_NHWC.astype(np.float64) - truth_NHWC) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


@torch.no_grad()
def lpips_distance(perceptual: Perceptual, image_NHWC: np.ndarray, truth_NHWC: np.ndarray) -> np.ndarray:
    """LPIPS (VGG16) of each pair, N; lower is nearer."""
    parts = _parts(len(image_NHWC))
    distances = [
        perceptual(*(signed(images[part], perceptual) for images in (image_NHWC, truth_NHWC)))
        for part in parts
    ]
    return torch.cat(distances).cpu().numpy()


@torch.no_grad()
def perceptual_columns(
    perceptual: Perceptual,
    edits: Mapping[str, np.ndarray],
    inputs: np.ndarray,
    truth: np.ndarray | None = None,
    background: Mapping[str, np.ndarray] | None = None,
    keys: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """For each named set of edits N values each of 'lpips_input', 'structure' (to the input), with truth 'lpips_true', with background
    'background' (see background_distance). Every image is looked at once.

    background: bool N x H x W by name, where neither input nor edit shows the foreground. keys: DINO's, images B x 3 x H x W in [-1, 1] ->
    B x T x D; without it VGG16's relu4_3 stands in, a place a token, and values compare with each other, not with the paper's.
    """
    found: dict[str, dict[str, list[torch.Tensor]]] = {name: defaultdict(list) for name in edits}

    def looked_at(images: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
        image_BCHW = signed(images, perceptual)
        features = perceptual.features(image_BCHW)
        return features, keys(image_BCHW) if keys else features[STRUCTURE_LAYER].flatten(2).transpose(1, 2)

    for part in _parts(len(inputs)):
        of_input, input_tokens = looked_at(inputs[part])
        of_truth = perceptual.features(signed(truth[part], perceptual)) if truth is not None else None
        for name, images in edits.items():
            columns, (of_edit, edit_tokens) = found[name], looked_at(images[part])
            columns["lpips_input"].append(perceptual.distance(of_edit, of_input))
            columns["structure"].append(structure_distance(edit_tokens, input_tokens))
            if of_truth:
                columns["lpips_true"].append(perceptual.distance(of_edit, of_truth))
            if background:
                columns["background"].append(
                    background_distance(perceptual.distance_map(of_edit, of_input), background[name][part])
                )
    return {
        name: {column: torch.cat(parts).cpu().numpy() for column, parts in columns.items()}
        for name, columns in found.items()
    }


def structure_distance(first_BTD: torch.Tensor, second_BTD: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of two images' self-similarities, B: the cosines of all pairs of their T tokens (Tumanyan et al. 2022)."""
    first, second = (
        normalize(tokens, dim=-1) @ normalize(tokens, dim=-1).transpose(1, 2)
        for tokens in (first_BTD, second_BTD)
    )
    return (first - second).square().mean((1, 2))


def background_distance(distance_BHW: torch.Tensor, background_BHW: np.ndarray) -> torch.Tensor:
    """Mean of a distance map over the background, B: the paper's BG-LPIPS; nan where the foreground fills the picture."""
    weight_BHW = torch.from_numpy(background_BHW).to(distance_BHW)
    return (distance_BHW * weight_BHW).sum((1, 2)) / weight_BHW.sum((1, 2))


def mask_iou(first_NHW: np.ndarray, second_NHW: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of bool masks, N; nan where either is empty: nothing found, no score, as in the filter."""
    both, either = (first_NHW & second_NHW).sum((1, 2)), (first_NHW | second_NHW).sum((1, 2))
    return np.where(first_NHW.any((1, 2)) & second_NHW.any((1, 2)), both / np.maximum(either, 1), np.nan)


def interval(values_N: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """95 % bootstrap interval of the mean: its 2.5th and 97.5th percentile over resamples of the N values, equal for equal N and seed."""
    drawn = np.random.default_rng(seed).integers(len(values_N), size=(resamples, len(values_N)))
    low, high = np.percentile(np.asarray(values_N, np.float64)[drawn].mean(1), (2.5, 97.5))
    return float(low), float(high)


def set_distances(features_ND: torch.Tensor, reference_ND: torch.Tensor) -> dict[str, float]:
    """'fid' (Heusel et al. 2017) and 'kid' (Binkowski et al. 2018, unbiased, all images at once) of two sets of features, N at least 2."""
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import poly_mmd

    ready = torch.nn.Identity()  # in the place of the network: the features are there
    ready.num_features = features_ND.shape[1]  # type: ignore[assignment]
    frechet = FrechetInceptionDistance(feature=ready)
    first, second = features_ND.double().cpu(), reference_ND.double().cpu()
    frechet.update(first, real=False)
    frechet.update(second, real=True)
    return {"fid": float(frechet.compute()), "kid": float(poly_mmd(second, first))}


@torch.no_grad()
def set_features(image_NHWC: np.ndarray, network: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """N x D: the network's features (uint8 B x 3 x H x W -> B x D) of every image."""
    image_NCHW = torch.from_numpy(np.ascontiguousarray(image_NHWC)).permute(0, 3, 1, 2)
    return torch.cat([network(batch).cpu() for batch in image_NCHW.split(BATCH)])


def set_network(inception: str, perceptual: Perceptual) -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """What set_features takes, and its name: Inception from that file; where it is empty, VGG16's relu5_3 in its place."""
    if inception:
        return load_inception(inception), "Inception"
    device = next(perceptual.parameters()).device
    return lambda image_BCHW: perceptual.pooled(
        image_BCHW.to(device).float() / 127.5 - 1
    ), "VGG16's relu5_3 in place of Inception"


def load_inception(weights: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """FID's own Inception, for set_features: uint8 B x 3 x H x W -> B x 2048. UserError where the file is not it."""
    try:
        torch.load(
            weights, map_location="cpu", weights_only=True
        )  # the package would run code that lies in the file: not after this
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path=weights
        )
    except Exception as error:  # noqa: BLE001 - torch's unpickler raises a dozen kinds
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:120]
        raise UserError(
            f"evaluate.inception={weights} ({reason}): it takes {INCEPTION} and pip install torch-fidelity==0.3.0"
        ) from error
    return lambda image_BCHW: network(image_BCHW)[0]


def nearer_to_target(
    scorer: ClipScorer, image_NHWC: np.ndarray, source: Sequence[str], target: Sequence[str]
) -> np.ndarray:
    """Whether each image is nearer to the target texts (their mean feature) than to the source texts, N booleans: the paper's CLIP-Acc."""
    features = torch.cat([scorer.image_features(list(image_NHWC[part])) for part in _parts(len(image_NHWC))])
    to_source, to_target = (
        features @ normalize(scorer.text_features(list(texts)).mean(0), dim=0) for texts in (source, target)
    )
    return (to_target > to_source).cpu().numpy()


def signed(image_NHWC: np.ndarray, where: torch.nn.Module) -> torch.Tensor:
    """uint8 N x H x W x 3 as a float tensor N x 3 x H x W in [-1, 1], on the module's device."""
    image = torch.from_numpy(np.ascontiguousarray(image_NHWC)).to(next(where.parameters()).device)
    return image.permute(0, 3, 1, 2).float() / 127.5 - 1


def _parts(count: int) -> list[slice]:
    """`count` images as batches."""
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]
