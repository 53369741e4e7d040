"""What is measured of edits: METRICS, each a column of a table, and distances of whole sets.

To add a metric, add its function to METRICS, and in scripts/evaluate.py its title to COLUMNS and its name to
the table that shows it (PAPER, DISTILLED or SWEEP).

Images are RGB uint8. N images, B of them in a batch; C channels, H W pixels, T tokens, D width of a
feature.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import normalize

from configs.errors import UserError
from configs.files import whole_file
from models.clip_scorer import ClipScorer
from models.perceptual import Perceptual
from models.pictures import batch_of, sharpness, to_signed
from models.weights import first_line, gaps, refuse_broken_files, refuse_gaps

BATCH = 8  # of 512 x 512 images: the features that VGG16 gives of them take 1 GB
STRUCTURE_LAYER = 3  # relu4_3 of LPIPS's five, the stand-in for DINO's keys
INCEPTION = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)


class TargetCheck:
    """The paper's CLIP-Acc (Parmar et al. 2023, section 4): is the target shown, not the source?"""

    def __init__(
        self, scorer: ClipScorer, source: Sequence[str], target: Sequence[str], cache: Path | None = None
    ) -> None:
        """cache: a file that keeps the features of the texts, as thousands of sentences take minutes."""
        self.scorer = scorer
        if cache and cache.exists():
            texts = load_file(cache, device=str(scorer.device))
        else:
            texts = {}
            for name, sentences in {"source": source, "target": target}.items():
                texts[name] = normalize(scorer.text_features(list(sentences)).mean(0), dim=0)
            if cache:
                with whole_file(cache) as stream:
                    stream.write(save({name: text_D.cpu() for name, text_D in texts.items()}))
        self.source_D = texts["source"]
        self.target_D = texts["target"]

    def __call__(self, image_BHWC: np.ndarray) -> np.ndarray:
        """B booleans: whether the cosine to the mean target text is above that to the mean source text."""
        features_BD = self.scorer.image_features(list(image_BHWC))
        nearer_B = features_BD @ self.target_D > features_BD @ self.source_D
        return nearer_B.cpu().numpy()


@dataclass(frozen=True)
class Networks:
    """The networks that METRICS look through.

    perceptual: LPIPS. keys: DINO's last keys of images B x 3 x H x W in [-1, 1], B x T x D; without
    them VGG16's relu4_3 stands in, a place a token, and structure distances compare with each
    other, not with the paper's. target_check: without it no accuracy is measured.
    """

    perceptual: Perceptual
    keys: Callable[[Tensor], Tensor] | None = None
    target_check: TargetCheck | None = None


@dataclass(frozen=True)
class Masks:
    """Where the foreground is, bool N x H x W.

    edits: by the name of the set of edits. inputs, truth: of the inputs and of the true edits.
    """

    edits: Mapping[str, np.ndarray] = field(default_factory=dict)
    inputs: np.ndarray | None = None
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class View:
    """A batch of images and what the networks see in them; computed once, where a metric asks for it.

    image_BHWC: RGB uint8. mask_BHW: bool, where the foreground is; None where nobody looked for it.
    """

    networks: Networks
    image_BHWC: np.ndarray
    mask_BHW: np.ndarray | None

    @cached_property
    def signed_BCHW(self) -> Tensor:
        """The images in [-1, 1], on the networks' device."""
        return batch_of(self.image_BHWC, device_of(self.networks.perceptual))

    @cached_property
    def features(self) -> Sequence[Tensor]:
        """LPIPS's features, B x C x H x W of five layers."""
        return self.networks.perceptual.features(self.signed_BCHW)

    @cached_property
    def tokens_BTD(self) -> Tensor:
        """What the structure distance compares: DINO's keys, or relu4_3 with a token a place."""
        if self.networks.keys:
            return self.networks.keys(self.signed_BCHW)
        return self.features[STRUCTURE_LAYER].flatten(2).transpose(1, 2)


@dataclass(frozen=True)
class Comparison:
    """A batch of edits, the inputs they were made from, and the true edits where there are any."""

    networks: Networks
    edit: View
    input: View
    truth: View | None


# ---- a metric: B values of a comparison, or None where it does not apply ----

Values = Tensor | np.ndarray | None


def accuracy(batch: Comparison) -> Values:
    """CLIP-Acc: 1 where the edit shows the target rather than the source."""
    return batch.networks.target_check(batch.edit.image_BHWC) if batch.networks.target_check else None


def structure(batch: Comparison) -> Values:
    """The structure distance of edit and input."""
    return structure_distance(batch.edit.tokens_BTD, batch.input.tokens_BTD)


def background(batch: Comparison) -> Values:
    """BG-LPIPS of edit and input, where neither shows the foreground."""
    if batch.edit.mask_BHW is None or batch.input.mask_BHW is None:
        return None
    distance_BHW = batch.networks.perceptual.distance_map(batch.edit.features, batch.input.features)
    return background_distance(distance_BHW, ~(batch.edit.mask_BHW | batch.input.mask_BHW))


def lpips_input(batch: Comparison) -> Values:
    """LPIPS of edit and input."""
    return batch.networks.perceptual.distance(batch.edit.features, batch.input.features)


def lpips_true(batch: Comparison) -> Values:
    """LPIPS of edit and true edit."""
    if batch.truth is None:
        return None
    return batch.networks.perceptual.distance(batch.edit.features, batch.truth.features)


def psnr_true(batch: Comparison) -> Values:
    """PSNR of the edit, the true edit being the signal; dB."""
    return psnr(batch.edit.image_BHWC, batch.truth.image_BHWC) if batch.truth else None


def mask_found(batch: Comparison) -> Values:
    """1 where the segmenter sees the foreground in the edit; measured where the true mask is known."""
    if batch.edit.mask_BHW is None or batch.truth is None or batch.truth.mask_BHW is None:
        return None
    return np.any(batch.edit.mask_BHW, axis=(1, 2))


def iou_true(batch: Comparison) -> Values:
    """Overlap of the foreground that the segmenter sees in the edit with the true edit's."""
    if batch.edit.mask_BHW is None or batch.truth is None or batch.truth.mask_BHW is None:
        return None
    return mask_iou(batch.edit.mask_BHW, batch.truth.mask_BHW)


def sharpness_of_edit(batch: Comparison) -> Values:
    """Variance of the Laplacian of the edit; the tables give it as a share of a mean over other pictures."""
    return levels_sharpness(batch.edit.image_BHWC)


METRICS: dict[str, Callable[[Comparison], Values]] = {
    "accuracy": accuracy,
    "structure": structure,
    "background": background,
    "lpips_input": lpips_input,
    "lpips_true": lpips_true,
    "psnr_true": psnr_true,
    "mask_found": mask_found,
    "iou_true": iou_true,
    "sharpness": sharpness_of_edit,
}


@torch.no_grad()
def measure_edits(
    networks: Networks,
    edits: Mapping[str, np.ndarray],
    inputs_NHWC: np.ndarray,
    truth_NHWC: np.ndarray | None = None,
    masks: Masks | None = None,
) -> dict[str, dict[str, np.ndarray]]:
    """For each named set of edits (N x H x W x 3) N values of each of METRICS that applies."""
    masks = masks or Masks()
    parts: dict[str, dict[str, list[np.ndarray]]] = {name: defaultdict(list) for name in edits}
    for part in batches(len(inputs_NHWC)):
        inputs = View(networks, inputs_NHWC[part], _part(masks.inputs, part))
        truth = None
        if truth_NHWC is not None:
            truth = View(networks, truth_NHWC[part], _part(masks.truth, part))
        for name, edit_NHWC in edits.items():
            edit = View(networks, edit_NHWC[part], _part(masks.edits.get(name), part))
            comparison = Comparison(networks, edit, inputs, truth)
            for column, metric in METRICS.items():
                values_B = metric(comparison)
                if values_B is not None:
                    parts[name][column].append(_as_array(values_B))
    return {name: _joined(columns) for name, columns in parts.items()}


# ---- the formulas ----


def psnr(image_NHWC: np.ndarray, reference_NHWC: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio of each pair, dB, N; infinite for equal images."""
    error = ((image_NHWC.astype(np.float64) - reference_NHWC) ** 2).mean((1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255**2 / error)


def levels_sharpness(image_NHWC: np.ndarray) -> np.ndarray:
    """The sharpness (models/pictures.py) of RGB uint8 images, N."""
    values = []
    for image_HWC in image_NHWC:
        levels_1CHW = torch.from_numpy(np.ascontiguousarray(image_HWC)).permute(2, 0, 1)[None].float()
        values.append(float(sharpness(levels_1CHW)))
    return np.array(values)


@torch.no_grad()
def lpips_distance(perceptual: Perceptual, image_NHWC: np.ndarray, reference_NHWC: np.ndarray) -> np.ndarray:
    """LPIPS (Zhang et al. 2018, VGG16) of each pair, N; lower is nearer."""
    device = device_of(perceptual)
    distances = []
    for part in batches(len(image_NHWC)):
        image_BCHW = batch_of(image_NHWC[part], device)
        reference_BCHW = batch_of(reference_NHWC[part], device)
        distances.append(perceptual(image_BCHW, reference_BCHW))
    return torch.cat(distances).cpu().numpy()


def image_distances(
    perceptual: Perceptual, image_NHWC: np.ndarray, reference_NHWC: np.ndarray
) -> dict[str, np.ndarray]:
    """'psnr' (dB) and 'lpips' of each pair, N values each."""
    return {
        "psnr": psnr(image_NHWC, reference_NHWC),
        "lpips": lpips_distance(perceptual, image_NHWC, reference_NHWC),
    }


def structure_distance(first_BTD: Tensor, second_BTD: Tensor) -> Tensor:
    """Mean squared difference of two images' self-similarities, B (Tumanyan et al. 2022).

    S_ij is the cosine of tokens i and j of an image; the distance is the mean of (S_ij - S'_ij)^2.
    """
    first_BTT = _self_similarity(first_BTD)
    second_BTT = _self_similarity(second_BTD)
    return (first_BTT - second_BTT).square().mean((1, 2))


def _self_similarity(tokens_BTD: Tensor) -> Tensor:
    """The cosines of all pairs of an image's tokens, B x T x T."""
    unit_BTD = normalize(tokens_BTD, dim=-1)
    return unit_BTD @ unit_BTD.transpose(1, 2)


def background_distance(distance_BHW: Tensor, background_BHW: np.ndarray) -> Tensor:
    """Mean of a distance map over the background, B; nan where the foreground fills the picture.

    Of LPIPS's map it is BG-LPIPS (Parmar et al. 2023, section 4).
    """
    weight_BHW = torch.from_numpy(background_BHW).to(distance_BHW)
    return (distance_BHW * weight_BHW).sum((1, 2)) / weight_BHW.sum((1, 2))


def mask_iou(first_NHW: np.ndarray, second_NHW: np.ndarray) -> np.ndarray:
    """Intersection over union of each pair of bool masks, N; nan where either is empty."""
    intersection_N = (first_NHW & second_NHW).sum((1, 2))
    union_N = (first_NHW | second_NHW).sum((1, 2))
    both_there_N = first_NHW.any((1, 2)) & second_NHW.any((1, 2))
    return np.where(both_there_N, intersection_N / np.maximum(union_N, 1), np.nan)


# ---- distances of whole sets ----


@dataclass(frozen=True)
class SetNetwork:
    """The network whose features FID and KID compare. network: uint8 B x 3 x H x W -> B x D."""

    name: str
    network: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def features(self, image_NHWC: np.ndarray) -> Tensor:
        """N x D: the features of every image, on the CPU."""
        image_NCHW = torch.from_numpy(np.ascontiguousarray(image_NHWC)).permute(0, 3, 1, 2)
        features = []
        for image_BCHW in image_NCHW.split(BATCH):
            features.append(self.network(image_BCHW).cpu())
        return torch.cat(features)

    def distances(self, image_NHWC: np.ndarray, reference_NHWC: np.ndarray) -> dict[str, float]:
        """The set_distances of two sets of images; {} of a single image, which has no covariance."""
        if len(image_NHWC) < 2:
            return {}
        return set_distances(self.features(image_NHWC), self.features(reference_NHWC))


def set_network(inception: str, perceptual: Perceptual) -> SetNetwork:
    """Inception from that file; where it is empty, the mean of VGG16's relu5_3 in its place."""
    if inception:
        return SetNetwork("Inception", load_inception(inception))
    device = device_of(perceptual)

    def pooled(image_BCHW: Tensor) -> Tensor:
        return perceptual.pooled(to_signed(image_BCHW.to(device)))

    return SetNetwork("VGG16's relu5_3 in place of Inception", pooled)


def set_distances(features_ND: Tensor, reference_ND: Tensor) -> dict[str, float]:
    """'fid' (Heusel et al. 2017) and 'kid' (Binkowski et al. 2018) of two sets of features.

    N is at least 2. KID is the unbiased estimate over all images at once.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import poly_mmd

    identity = torch.nn.Identity()  # in the place of the network: the features are there
    identity.num_features = features_ND.shape[1]  # type: ignore[assignment]
    frechet = FrechetInceptionDistance(feature=identity)
    features_ND = features_ND.cpu().double()
    reference_ND = reference_ND.cpu().double()
    frechet.update(features_ND, real=False)
    frechet.update(reference_ND, real=True)
    return {"fid": float(frechet.compute()), "kid": float(poly_mmd(reference_ND, features_ND))}


def load_inception(weights: str) -> Callable[[Tensor], Tensor]:
    """FID's own Inception, uint8 B x 3 x H x W -> B x 2048.

    UserError where the file is not it, or lacks a tensor.
    """
    origin = f"evaluate.inception={weights}"
    advice = f"it takes {INCEPTION} and pip install torch-fidelity==0.3.0"
    refuse_broken_files(Path(weights), origin)
    try:
        # The package would run code that lies in the file; a file that this line reads holds none.
        torch.load(weights, map_location="cpu", weights_only=True)
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        class Inception(FeatureExtractorInceptionV3):
            """The package loads the file as it builds the network, and says in many lines what is missing."""

            def load_state_dict(self, tensors: Mapping[str, Tensor], *options: bool, **named: bool) -> Any:
                refuse_gaps(gaps(self, tensors), origin, advice)
                return super().load_state_dict(tensors, *options, **named)

        network = Inception("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - torch's unpickler raises a dozen kinds
        raise UserError(f"{origin} ({first_line(error)}): {advice}") from error
    network.eval()  # the package leaves its batch norms in training

    def features(image_BCHW: Tensor) -> Tensor:
        return network(image_BCHW)[0]

    return features


# ---- batches ----


def batches(count: int) -> list[slice]:
    """`count` images as slices of at most BATCH."""
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]


def device_of(network: torch.nn.Module) -> torch.device:
    """Where a network's weights lie."""
    return next(network.parameters()).device


def _part(masks_NHW: np.ndarray | None, part: slice) -> np.ndarray | None:
    """Those of a batch, where there are masks."""
    return None if masks_NHW is None else masks_NHW[part]


def _as_array(values: Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, Tensor) else values


def _joined(columns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Each column's batches in one array."""
    return {column: np.concatenate(parts) for column, parts in columns.items()}
