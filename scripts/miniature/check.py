"""Measures the miniature's models on held-out scenes, and draws what the teacher makes of some prompts.

models/miniature/README.md shows the figures. B batch, C channels, H W pixels, N scenes, D features.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from configs.schema import Scorer, Segmenter
from models.clip_scorer import ClipScorer
from models.devices import pick_device
from models.miniature.captions import bank, with_articles
from models.miniature.scenes import SEASONS, STYLES, Look, instances, mask, scene
from models.perceptual import perceptual_loss
from models.pictures import batch_of
from models.segmenter import CROP_MARGIN, OUTSIDE, load_sam
from scripts.miniature import data, scorer, segmenter, teacher
from scripts.miniature.loop import log
from scripts.miniature.options import Options

TEST_SEED = 3_000_000  # of the first scene
TEACHER_SCENES = 64
TEACHER_BATCH = 8
SCORER_SCENES = 200
SEGMENTER_SCENES = 60
AUTOMATIC_SCENES = 12  # of those, whose masks the segmenter also proposes by itself: that takes longest
BANK_SENTENCES = 100
GRID_ROWS = 4
GRID_STEPS = 25
GRID_GUIDANCE = 4.0
PROMPTS = (
    "a photo of an oak tree in summer",
    "a photo of a birch tree in summer near a lake",
    "a picture of an oak tree in autumn",
    "a photo of three pine trees in winter",
    "a photo of an oak tree in winter",
    "a pencil sketch of an oak tree in summer",
    "a sketch of two pine trees in winter",
    "a drawing of a birch tree beside a house",
)


def check(options: Options) -> None:
    """Print the figures of the models in `out` as a Markdown table, and draw the grid in `work`/grid.png."""
    from diffusers import StableDiffusionPipeline

    device = pick_device("auto")
    folder = Path(options.out)
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "teacher", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.to(device).set_progress_bar_config(disable=True)
    rows = check_teacher(pipe)
    rows |= check_scorer(folder / "scorer", device)
    rows |= check_segmenter(folder / "segmenter", device)
    print("| measured on held-out scenes | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")
    path = Path(options.work) / "grid.png"
    draw_grid(pipe, path)
    log(f"wrote {path}: columns are {'; '.join(PROMPTS)}")


@torch.no_grad()
def check_teacher(pipe) -> dict[str, float]:
    """Errors of pictures decoded from their latents' modes, and the UNet's at fixed noise and time steps."""
    perceptual = perceptual_loss(pipe.device)
    generator = torch.Generator().manual_seed(5)
    rows = {}
    for style in STYLES:
        look = Look("any", style=style)
        seeds = range(TEST_SEED, TEST_SEED + TEACHER_SCENES)
        pictures_NHWC = data.pictures(seeds, look)
        latent_NCHW = teacher.latents(pipe.vae, pictures_NHWC)
        order_N = torch.randperm(len(seeds), generator=generator)
        time_N = torch.linspace(5, 985, len(seeds)).long()[order_N]
        noise_NCHW = torch.randn(latent_NCHW.shape, generator=generator)
        texts = [data.sentences(seed, look, 1)[0] for seed in seeds]
        token_NT = teacher.encode(pipe.tokenizer, texts)
        decibels = []
        distances = []
        errors = []
        for start in range(0, len(seeds), TEACHER_BATCH):
            part = slice(start, start + TEACHER_BATCH)
            truth_BCHW = batch_of(pictures_NHWC[part], pipe.device)
            latent_BCHW = latent_NCHW[part].to(pipe.device)
            decoded_BCHW = pipe.vae.decode(latent_BCHW).sample.clamp(-1, 1)
            error_B = (decoded_BCHW - truth_BCHW).square().mean((1, 2, 3))
            decibels.append(10 * torch.log10(4 / error_B))  # the range of values is 2
            distances.append(perceptual(decoded_BCHW, truth_BCHW))
            scaled_BCHW = latent_BCHW * pipe.vae.config.scaling_factor
            noise_BCHW = noise_NCHW[part].to(pipe.device)
            time_B = time_N[part].to(pipe.device)
            token_BT = token_NT[part].to(pipe.device)
            errors.append(teacher.noise_errors(pipe, scaled_BCHW, noise_BCHW, time_B, token_BT))
        rows[f"autoencoder, {style}: PSNR in dB"] = float(torch.cat(decibels).mean())
        rows[f"autoencoder, {style}: LPIPS (VGG)"] = float(torch.cat(distances).mean())
        rows[f"UNet, {style}: mean squared error of the noise"] = float(torch.cat(errors).mean())
    return rows


def check_scorer(folder: Path, device: torch.device) -> dict[str, float]:
    """Shares of scenes and of objects that the scorer names rightly, and how far its cosines spread."""
    judge = ClipScorer(Scorer(model=f"local-dir:{folder}"), device, templates=["{}"])
    groups = {
        "season": [Look(season) for season in SEASONS],
        "oak or pine": [Look("any", "oak"), Look("any", "pine")],
        "photo or sketch": [Look("any", style=style) for style in STYLES],
    }
    rows = {}
    for name, looks in groups.items():
        texts = [bank(look, BANK_SENTENCES) for look in looks]
        rows[f"scorer, {name}, by sentence banks"] = share_right(judge, looks, texts)
    sketches = [Look(season, style="sketch") for season in SEASONS]
    words = [[season, f"a tree in {season}"] for season in SEASONS]
    rows["scorer, season of sketches, by short prompts"] = share_right(judge, sketches, words)
    rows[f"scorer, noun of a masked crop among {len(scorer.NOUNS)}"] = share_of_nouns_right(judge)
    winter_1D = mean_features(judge, [["a tree in winter"]])
    edit_ND = scene_features(judge, Look("winter")) - scene_features(judge, Look("summer"))
    rise_N1 = edit_ND @ winter_1D.T
    rows['scorer, cosine with "a tree in winter": rise from summer to the true winter'] = float(
        rise_N1.mean()
    )
    rows["scorer, logit scale (inverse temperature)"] = judge.logit_scale
    return rows


def scene_features(judge: ClipScorer, look: Look) -> torch.Tensor:
    """Unit features N x D of the test scenes in that look."""
    return judge.image_features(list(data.pictures(range(TEST_SEED, TEST_SEED + SCORER_SCENES), look)))


def mean_features(judge: ClipScorer, groups: Sequence[Sequence[str]]) -> torch.Tensor:
    """One unit vector for each group of texts, (number of groups) x D."""
    return normalize(torch.stack([judge.text_features(group).mean(0) for group in groups]), dim=-1)


def share_right(judge: ClipScorer, looks: Sequence[Look], texts: Sequence[Sequence[str]]) -> float:
    """The share of the scenes, in each of the looks, that are closest to that look's own group of texts."""
    text_LD = mean_features(judge, texts)
    right = []
    for index, look in enumerate(looks):
        right.append((scene_features(judge, look) @ text_LD.T).argmax(1) == index)
    return float(torch.cat(right).float().mean())


def share_of_nouns_right(judge: ClipScorer) -> float:
    """The share of the scenes' objects, cut out as the filter does it, that are closest to their own noun."""
    articles = {"sky": "the ", "ground": "the "} | dict.fromkeys(scorer.PLURALS, "")
    prompts = [with_articles(articles.get(noun, "a ") + noun) for noun in scorer.NOUNS]
    look = Look("any")
    crops = []
    truth = []
    for seed in range(TEST_SEED, TEST_SEED + SCORER_SCENES):
        picture = data.pictures(range(seed, seed + 1), look)[0]
        for noun, area in instances(scene(seed), look):
            if area.sum() >= scorer.SMALLEST_OBJECT:
                crops.append(scorer.object_crop(picture, area, CROP_MARGIN, OUTSIDE))
                truth.append(scorer.NOUNS.index(noun))
    named = (judge.image_features(crops) @ judge.text_features(prompts).T).argmax(1).cpu()
    return float((named == torch.tensor(truth)).float().mean())


def check_segmenter(folder: Path, device: torch.device) -> dict[str, float]:
    """Mean IoU with the true masks.

    From one random point inside an object: of that of three masks which the model expects to be
    best. By automatic masks: of the union of those that lie more on trees than elsewhere, with all
    trees.
    """
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor

    sam = load_sam(Segmenter(model=str(folder))).to(device)
    predictor = SamPredictor(sam)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=12, pred_iou_thresh=0.8, stability_score_thresh=0.8
    )
    rng = np.random.default_rng(0)
    ious = defaultdict(list)
    for number in range(SEGMENTER_SCENES):
        seed = TEST_SEED + number
        look = Look("any", style="sketch" if number % 4 == 3 else "photo")
        picture = data.pictures(range(seed, seed + 1), look)[0]
        predictor.set_image(picture)
        for noun, area in instances(scene(seed), look):
            if area.sum() >= segmenter.SMALLEST_OBJECT:
                row, column = rng.choice(np.argwhere(area))
                point = np.array([[column + 0.5, row + 0.5]])
                masks, quality_M, _ = predictor.predict(point, np.array([1]))
                kind = f"tree in a {look.style}" if noun == "tree" else "another object"
                ious[f"{kind}: IoU from one point"].append(iou(masks[quality_M.argmax()], area))
        if number < AUTOMATIC_SCENES:
            trees = mask(scene(seed), look, "tree")
            union = np.zeros_like(trees)
            for proposal in generator.generate(picture):
                proposed = proposal["segmentation"]
                if (proposed & trees).sum() > 0.5 * proposed.sum():
                    union |= proposed
            ious["trees by automatic masks: IoU of their union"].append(iou(union, trees))
    return {f"segmenter, {name}": float(np.mean(values)) for name, values in sorted(ious.items())}


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks."""
    return (first & second).sum() / max(1, (first | second).sum())


def draw_grid(pipe, path: Path) -> None:
    """Write a PNG of what the teacher makes of PROMPTS: a column each, GRID_ROWS samples."""
    from diffusers.utils import make_image_grid

    columns = []
    for column, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(column)
        noise_BCHW = torch.randn(GRID_ROWS, 4, 32, 32, generator=generator).to(pipe.device)
        output = pipe(
            [prompt] * GRID_ROWS,
            num_inference_steps=GRID_STEPS,
            guidance_scale=GRID_GUIDANCE,
            latents=noise_BCHW,
        )
        columns.append(output.images)
    cells = []
    for row in range(GRID_ROWS):
        for images in columns:
            cells.append(images[row])
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(cells, GRID_ROWS, len(PROMPTS)).save(path)
