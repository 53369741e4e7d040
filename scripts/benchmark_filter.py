"""The part of scripts/benchmark.py that times stage 2: our batches beside the plain use of the same libraries, one picture at a time.

Both score the same pairs in memory with the same networks: CLIP, segment-anything's masks with CLIP's look at each, LPIPS, sharpness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from configs.errors import UserError
from configs.schema import Config

if TYPE_CHECKING:
    from generate.shards import Pair
    from models.clip_scorer import ClipScorer
    from models.perceptual import Perceptual
    from models.segmenter import Segmenter

SIDE = 512  # of the pictures at the real size
MASKS_WANTED = 100  # a picture, at the real size: about what the real weights propose for a photograph
NOUN = "tree"  # of a task that names none, so that the segmenter is timed too


def benchmark_filter(config: Config) -> dict[str, Any]:
    """Stage 2: the plain loop against batch_scorer."""
    import torch

    from filter.run import batch_scorer
    from models.clip_scorer import ClipScorer
    from models.devices import pick_device
    from models.perceptual import perceptual_loss
    from models.segmenter import Segmenter
    from scripts.timing import measure

    real = config.benchmark.architecture == "vit_h"
    if config.benchmark.architecture not in ("", "vit_h"):
        raise UserError(f"benchmark.architecture={config.benchmark.architecture}: there are vit_h, and none for the configured models")
    if not config.task.source_noun:
        config = replace(config, task=replace(config.task, source_noun=NOUN, target_noun=NOUN))
    device, count = pick_device(config.filter.device), max(config.benchmark.pairs, config.benchmark.plain_pairs)
    pairs = _pairs(count, SIDE if real else config.teacher.resolution)
    if real:
        config, scorer, segmenter = _real_size(config, pairs[0].images["input"], device)
    else:
        scorer = ClipScorer(config.scorer, device)
        segmenter = Segmenter(config.segmenter, scorer, device)
    plain = PlainScorer(config, scorer, segmenter, perceptual_loss(device))
    ours = batch_scorer(config, device, scorer, segmenter)
    batch = config.filter.batch

    def run_plain() -> None:
        for pair in pairs[: config.benchmark.plain_pairs]:
            plain(pair.images["input"], pair.images["edit"])

    def run_ours() -> None:
        for start in range(0, config.benchmark.pairs, batch):
            ours(pairs[start : min(start + batch, config.benchmark.pairs)])

    rows = {
        "plain, one picture at a time": measure(run_plain, config.benchmark.plain_pairs, device),
        f"ours, batches of {min(batch, config.benchmark.pairs)}": measure(run_ours, config.benchmark.pairs, device),
    }
    baseline, *_ = [row["seconds"] for row in rows.values()]
    for row in rows.values():
        row["ratio"] = baseline / row["seconds"]
    masks = np.mean(
        [len(found) for found, _ in segmenter.propose([pair.images["input"] for pair in pairs[: config.benchmark.plain_pairs]])]
    )
    models = "SAM ViT-H, CLIP ViT-L-14, random weights" if real else f"{config.segmenter.model}, {config.scorer.model}"
    size = " x ".join(map(str, pairs[0].images["input"].shape[:2]))
    points = f"{config.segmenter.points_per_side} x {config.segmenter.points_per_side} points, {masks:.0f} masks a picture"
    return {
        "benchmark": "filter",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "settings": f"{models}, {size}, {points}, {config.filter.dtype if device.type == 'cuda' else 'float32'}",
        "ratio": rows[list(rows)[-1]]["ratio"],
        "rows": rows,
    }


class PlainScorer:
    """One pair's raw scores as the libraries' own examples compute them. In float32."""

    def __init__(self, config: Config, scorer: ClipScorer, segmenter: Segmenter, perceptual: Perceptual) -> None:
        from open_clip import image_transform
        from segment_anything import SamAutomaticMaskGenerator

        self.config, self.scorer, self.lpips = config, scorer, perceptual.lpips
        settings = config.segmenter
        self.generator = SamAutomaticMaskGenerator(
            segmenter.sam,
            settings.points_per_side,
            pred_iou_thresh=settings.min_predicted_iou,
            stability_score_thresh=settings.min_stability,
        )
        shape = scorer.model.visual.preprocess_cfg
        names = ("mean", "std", "interpolation", "resize_mode")
        self.preprocess = image_transform(scorer.size_HW, is_train=False, **{name: shape[name] for name in names})
        texts = config.task.source, config.task.target
        self.texts_ND = scorer.text_features(texts)
        nouns = config.task.source_noun, config.task.target_noun
        self.nouns_ND = [scorer.text_features([noun, *(other for other in settings.other_nouns if other != noun)]) for noun in nouns]

    def __call__(self, image: np.ndarray, edit: np.ndarray) -> dict[str, Any]:
        """clip_gain, overlap_iou, lpips_input_edit, sharpness_input and sharpness_edit."""
        import torch

        before, after = (self._features(picture) @ self.texts_ND.T for picture in (image, edit))
        first, second = (self._mask(picture, nouns_ND) for picture, nouns_ND in zip((image, edit), self.nouns_ND, strict=True))
        union = np.count_nonzero(first | second)
        tensors = [torch.from_numpy(picture / 127.5 - 1).float().permute(2, 0, 1)[None].to(self.scorer.device) for picture in (image, edit)]
        with torch.no_grad():
            distance = float(self.lpips(*tensors))
        return {
            "clip_gain": float(after[0, 1] - before[0, 1]),
            "overlap_iou": np.count_nonzero(first & second) / union if first.any() and second.any() else None,
            "lpips_input_edit": distance,
            "sharpness_input": _sharpness(image),
            "sharpness_edit": _sharpness(edit),
        }

    def _features(self, image: np.ndarray) -> Any:
        import torch
        from PIL import Image

        with torch.no_grad():
            features = self.scorer.model.encode_image(self.preprocess(Image.fromarray(image))[None].to(self.scorer.device))
        return features / features.norm(dim=-1, keepdim=True)

    def _mask(self, image: np.ndarray, nouns_ND: Any) -> np.ndarray:
        settings, chosen = self.config.segmenter, np.zeros(image.shape[:2], dtype=bool)
        for found in self.generator.generate(image):
            if found["area"] >= max(1, settings.min_area * chosen.size):
                crop = _crop(image, found["segmentation"], settings.crop_margin, settings.outside)
                logits = self.scorer.logit_scale * self._features(crop) @ nouns_ND.T
                if logits.softmax(-1)[0, 0] >= settings.min_noun_probability:
                    chosen |= found["segmentation"]
        return chosen


def _crop(image: np.ndarray, mask: np.ndarray, margin: float, outside: float) -> np.ndarray:
    """The square around a mask in the picture faded to grey, in numpy."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    side = max(1, round(max(rows[-1] + 1 - rows[0], columns[-1] + 1 - columns[0]) * (1 + 2 * margin)))
    faded = np.where(mask[..., None], image, outside * image + (1 - outside) * 128)
    padded = np.pad(faded, ((side, side), (side, side), (0, 0)), constant_values=128)
    top, left = (rows[0] + rows[-1] + 1 - side) // 2 + side, (columns[0] + columns[-1] + 1 - side) // 2 + side
    return padded[top : top + side, left : left + side].round().astype(np.uint8)


def _sharpness(image: np.ndarray) -> float:
    grey = image @ np.array([0.299, 0.587, 0.114])
    edges = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(edges.var())


def _pairs(count: int, side: int) -> Sequence[Pair]:
    """Rendered scenes in summer and winter, side x side."""
    from PIL import Image

    from generate.shards import Pair
    from models.miniature.scenes import Look, render, scene

    def picture(seed: int, season: str) -> np.ndarray:
        return np.asarray(render(scene(seed), Look(season=season)).resize((side, side), Image.Resampling.BICUBIC))

    return [Pair(str(seed), {"input": picture(seed, "summer"), "edit": picture(seed, "winter")}, {}) for seed in range(count)]


def _real_size(config: Config, image: np.ndarray, device: Any) -> tuple[Config, ClipScorer, Segmenter]:
    """SAM ViT-H and CLIP ViT-L-14 with random weights, and limits that let about MASKS_WANTED masks of the image through."""
    import open_clip
    import torch
    from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

    from models.clip_scorer import ClipScorer
    from models.segmenter import Segmenter

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-L-14", pretrained=None, device=device, force_quick_gelu=True).eval().requires_grad_(False)
    scorer = ClipScorer(config.scorer, device, (clip, open_clip.get_tokenizer("ViT-L-14")))
    sam = sam_model_registry["vit_h"](checkpoint=None).to(device).eval().requires_grad_(False)
    every = SamAutomaticMaskGenerator(sam, config.segmenter.points_per_side, pred_iou_thresh=-1e9, stability_score_thresh=-1.0)
    ious = sorted((found["predicted_iou"] for found in every.generate(image)), reverse=True)
    settings = replace(config.segmenter, min_predicted_iou=ious[min(MASKS_WANTED, len(ious)) - 1] - 1e-6, min_stability=-1.0)
    return replace(config, segmenter=settings), scorer, Segmenter(settings, scorer, device, sam)
