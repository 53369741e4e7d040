"""Measures the miniature's models on held-out scenes, and draws what the teacher makes of some prompts."""

import functools
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from configs.schema import Scorer, Segmenter
from models.clip_scorer import ClipScorer
from models.devices import pick_device
from models.miniature.captions import bank, with_articles
from models.miniature.scenes import SEASONS, STYLES, Look, instances, mask, scene
from models.perceptual import perceptual_loss
from models.segmenter import load_sam
from scripts.miniature import data, scorer, segmenter, teacher
from scripts.miniature.loop import Options, log

TEST_SEED = 3_000_000
TEACHER_SCENES, SCORER_SCENES, SEGMENTER_SCENES, AUTOMATIC_SCENES = 64, 200, 60, 12
BANK_SENTENCES = 100
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
DEFINITE = dict.fromkeys(("sky", "ground"), "the ") | dict.fromkeys(scorer.PLURALS, "")
NOUN_PROMPTS = tuple(with_articles(DEFINITE.get(noun, "a ") + noun) for noun in scorer.NOUNS)
CROP_MARGIN, CROP_OUTSIDE = 0.1, 0.3  # as the filter crops by default
GRID_ROWS, GRID_STEPS, GRID_GUIDANCE = 4, 25, 4.0


@torch.no_grad()
def check_teacher(pipe) -> dict[str, float]:
    """Mean PSNR in dB and LPIPS of reconstructed photos and sketches (by the latents' mode); the UNet's mean squared error of the noise."""
    perceptual, generator, rows = (
        perceptual_loss(pipe.device),
        torch.Generator().manual_seed(5),
        dict[str, float](),
    )
    seeds, scale = range(TEST_SEED, TEST_SEED + TEACHER_SCENES), pipe.vae.config.scaling_factor
    for style in STYLES:
        look, found = Look("any", style=style), []
        pictures = data.pictures(seeds, look)
        latents = teacher.latents(pipe.vae, pictures)
        times = torch.linspace(5, 985, len(seeds)).long()[torch.randperm(len(seeds), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        tokens = teacher.encode(pipe.tokenizer, [data.sentences(seed, look, 1)[0] for seed in seeds])
        for parts in zip(
            *(part.split(8) for part in (data.to_tensor(pictures), latents, noise, times, tokens)),
            strict=True,
        ):
            truth, latent, *others = (part.to(pipe.device) for part in parts)
            decoded = pipe.vae.decode(latent).sample.clamp(-1, 1)
            decibels = 10 * torch.log10(4 / (decoded - truth).square().mean((1, 2, 3)))
            found.append(
                torch.stack(
                    [
                        decibels,
                        perceptual(decoded, truth),
                        teacher.noise_errors(pipe, latent * scale, *others),
                    ]
                )
            )
        names = (
            f"VAE, {style}: PSNR in dB",
            f"VAE, {style}: LPIPS (VGG)",
            f"UNet, {style}: mean squared error of the noise",
        )
        rows |= dict(zip(names, torch.cat(found, 1).mean(1).tolist(), strict=True))
    return rows


def check_scorer(folder: Path, device: torch.device) -> dict[str, float]:
    """Shares of test scenes whose season, species or style the scorer names rightly."""
    judge = ClipScorer(Scorer(model=f"local-dir:{folder}"), device, templates=["{}"])
    seeds = range(TEST_SEED, TEST_SEED + SCORER_SCENES)

    @functools.cache
    def features(look):
        return judge.image_features(list(data.pictures(seeds, look)))

    def texts(groups):
        """One unit vector for each group of sentences."""
        return torch.nn.functional.normalize(
            torch.stack([judge.text_features(group).mean(0) for group in groups]), dim=-1
        )

    seasons, species = [Look(season) for season in SEASONS], [Look("any", name) for name in ("oak", "pine")]
    sketches, styles = (
        [Look(season, style="sketch") for season in SEASONS],
        [Look("any", style=style) for style in STYLES],
    )
    words = [[season, f"a tree in {season}"] for season in SEASONS]
    rows = {}
    for name, looks, groups in (  # looks, and what each is to be named by; None: its own sentence bank
        ("season by banks", seasons, None),
        ("season by short prompts", seasons, words),
        ("season of sketches by short prompts", sketches, words),
        ("oak or pine by banks", species, None),
        ("oak or pine by short prompts", species, [["an oak tree"], ["a pine tree"]]),
        ("photo or sketch by banks", styles, None),
        ("photo or sketch by short prompts", styles, [["a photo"], ["a pencil sketch"]]),
    ):
        text_ND = texts(groups or [bank(look, BANK_SENTENCES) for look in looks])
        right = [(features(look) @ text_ND.T).argmax(1) == index for index, look in enumerate(looks)]
        rows[f"scorer, {name}"] = float(torch.cat(right).float().mean())

    crops, truth = [], []
    for seed, picture in zip(seeds, data.pictures(seeds, Look("any")), strict=True):
        for noun, area in instances(scene(seed), Look("any")):
            if area.sum() >= scorer.SMALLEST_OBJECT:
                crops.append(scorer.object_crop(picture, area, CROP_MARGIN, CROP_OUTSIDE))
                truth.append(scorer.NOUNS.index(noun))
    named = (judge.image_features(crops) @ judge.text_features(NOUN_PROMPTS).T).argmax(1).cpu()
    rows[f"scorer, noun of a masked crop among {len(NOUN_PROMPTS)}"] = float(
        (named == torch.tensor(truth)).float().mean()
    )
    rise = (features(Look("winter")) - features(Look("summer"))) @ texts([["a tree in winter"]])[0]
    rows["scorer, summer against winter: mean margin of cosines"] = float(rise.mean())
    return rows | {"scorer, logit scale": judge.logit_scale}


def check_segmenter(folder: Path, device: torch.device) -> dict[str, float]:
    """Mean IoU from one point inside the object: the mask that the model itself expects to be best, of its three."""
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor

    sam = load_sam(Segmenter(model=str(folder))).to(device)
    predictor, rng, found = SamPredictor(sam), np.random.default_rng(0), defaultdict(list)
    generator = SamAutomaticMaskGenerator(
        sam, points_per_side=12, pred_iou_thresh=0.8, stability_score_thresh=0.8
    )

    def score(name, first, second):
        found[f"segmenter, {name}"].append((first & second).sum() / max(1, (first | second).sum()))

    for number in range(SEGMENTER_SCENES):
        seed, look = TEST_SEED + number, Look("any", style="sketch" if number % 4 == 3 else "photo")
        (picture,) = data.pictures(range(seed, seed + 1), look)
        predictor.set_image(picture)
        for noun, area in instances(scene(seed), look):
            if area.sum() >= segmenter.SMALLEST_OBJECT:
                row, column = rng.choice(np.argwhere(area))
                masks, quality_M, _ = predictor.predict(np.array([[column + 0.5, row + 0.5]]), np.array([1]))
                kind = f"{noun}, {look.style}" if noun == "tree" else "another object"
                score(f"{kind}: IoU from one point", masks[quality_M.argmax()], area)
        if number < AUTOMATIC_SCENES:
            trees = mask(scene(seed), look, "tree")
            proposed = [proposal["segmentation"] for proposal in generator.generate(picture)]
            on_trees = [area for area in proposed if (area & trees).sum() > 0.5 * area.sum()]
            score(
                "trees by automatic masks: IoU of their union",
                np.logical_or.reduce([np.zeros_like(trees), *on_trees]),
                trees,
            )
    return {name: float(np.mean(values)) for name, values in sorted(found.items())}


def draw_grid(pipe, path: Path) -> None:
    """Write a PNG of what the teacher makes of PROMPTS, a column each."""
    from diffusers.utils import make_image_grid

    columns = []
    for column, prompt in enumerate(PROMPTS):
        noise = torch.randn(GRID_ROWS, 4, 32, 32, generator=torch.Generator().manual_seed(column)).to(
            pipe.device
        )
        columns.append(
            pipe(
                [prompt] * GRID_ROWS,
                num_inference_steps=GRID_STEPS,
                guidance_scale=GRID_GUIDANCE,
                latents=noise,
            ).images
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image_grid(
        [image for row in zip(*columns, strict=True) for image in row], GRID_ROWS, len(PROMPTS)
    ).save(path)


def check(options: Options) -> None:
    """Print every figure as a Markdown table and write the grid to `work`/grid.png."""
    from diffusers import StableDiffusionPipeline

    device, folder, path = pick_device("auto"), Path(options.out), Path(options.work) / "grid.png"
    pipe = StableDiffusionPipeline.from_pretrained(
        folder / "teacher", torch_dtype=torch.float32, safety_checker=None
    ).to(device)
    pipe.set_progress_bar_config(disable=True)
    rows = (
        check_teacher(pipe)
        | check_scorer(folder / "scorer", device)
        | check_segmenter(folder / "segmenter", device)
    )
    print("| measured on held-out scenes | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value:.3f} |")
    draw_grid(pipe, path)
    log(f"wrote {path}: columns are {'; '.join(PROMPTS)}")
