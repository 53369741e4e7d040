"""Measures the miniature's models on held-out scenes, and draws what the teacher makes of some prompts."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from models.miniature.captions import bank
from models.miniature.scenes import SEASONS, Look, instances, mask, render, scene
from models.miniature.training.autoencoder import psnr, reconstruct
from models.miniature.training.data import TEST_SEED, to_tensor
from models.miniature.training.loop import Options, device_of, log
from models.miniature.training.prompts import NOUNS, indefinite
from models.miniature.training.scorer import SMALLEST_OBJECT
from models.segmenter import masked_crop

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
NOUN_PROMPTS = tuple(f"the {noun}" if noun in ("sky", "ground") else indefinite(noun) for noun in NOUNS)
CROP_MARGIN, CROP_OUTSIDE = 0.1, 0.3  # as the filter crops by default
GRID_ROWS, GRID_STEPS, GRID_GUIDANCE = 4, 25, 4.0


def _pictures(looks, count):
    """uint8 (len(looks), count, 128, 128, 3) of the test scenes."""
    seeds = range(TEST_SEED, TEST_SEED + count)
    return np.stack([np.stack([np.asarray(render(scene(seed), look)) for seed in seeds]) for look in looks])


def check_vae(folder: Path, device: torch.device, count: int = 64) -> list[tuple[str, float]]:
    """Mean PSNR in dB and LPIPS of reconstructed photos and sketches."""
    from diffusers import AutoencoderKL

    from models.perceptual import perceptual_loss

    vae = AutoencoderKL.from_pretrained(folder / "teacher" / "vae").float().to(device).eval()
    perceptual, rows = perceptual_loss(device), []
    for style in ("photo", "sketch"):
        truth = to_tensor(_pictures([Look("any", style=style)], count)[0], device)
        with torch.no_grad():
            decoded = reconstruct(vae, truth)
            distance = torch.cat([perceptual(*pair) for pair in zip(decoded.split(8), truth.split(8), strict=True)])
        rows.append((f"VAE, {style}: PSNR in dB", float(psnr(decoded, truth).mean())))
        rows.append((f"VAE, {style}: LPIPS (VGG)", float(distance.mean())))
    return rows


class _Judge:
    """The scorer, as open_clip loads it."""

    def __init__(self, folder, device):
        import open_clip

        name = f"local-dir:{folder}"
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(name, device=device)
        self.model.eval()
        self.tokenizer, self.device = open_clip.get_tokenizer(name), device

    @torch.no_grad()
    def texts(self, groups):
        """One unit vector for each group of sentences."""
        means = []
        for group in groups:
            means.append(F.normalize(self.model.encode_text(self.tokenizer(group).to(self.device)), dim=-1).mean(0))
        return F.normalize(torch.stack(means), dim=-1)

    @torch.no_grad()
    def choose(self, pictures, groups):
        """Index of the group that each uint8 picture is closest to."""
        batch = torch.stack([self.preprocess(Image.fromarray(picture)) for picture in pictures]).to(self.device)
        return (F.normalize(self.model.encode_image(batch), dim=-1) @ self.texts(groups).T).argmax(1).cpu().numpy()


def _accuracy(judge, looks, groups, count):
    chosen = [judge.choose(pictures, groups) for pictures in _pictures(looks, count)]
    return float(np.mean([(guess == index).mean() for index, guess in enumerate(chosen)]))


def check_scorer(folder: Path, device: torch.device, count: int = 200) -> list[tuple[str, float]]:
    """Shares of test scenes whose season, species or style the scorer names rightly."""
    judge = _Judge(folder / "scorer", device)
    seasons, species = [Look(season) for season in SEASONS], [Look("any", name) for name in ("oak", "pine")]
    styles = [Look("any"), Look("any", style="sketch")]
    sketches = [Look(season, style="sketch") for season in SEASONS]
    banks = {look: bank(look, BANK_SENTENCES) for look in (*seasons, *species, *styles)}
    words = [[season, f"a tree in {season}"] for season in SEASONS]
    rows = [
        ("scorer, season by banks", _accuracy(judge, seasons, [banks[look] for look in seasons], count)),
        ("scorer, season by short prompts", _accuracy(judge, seasons, words, count)),
        ("scorer, season of sketches by short prompts", _accuracy(judge, sketches, words, count)),
        ("scorer, oak or pine by banks", _accuracy(judge, species, [banks[look] for look in species], count)),
        ("scorer, oak or pine by short prompts", _accuracy(judge, species, [["an oak tree"], ["a pine tree"]], count)),
        ("scorer, photo or sketch by banks", _accuracy(judge, styles, [banks[look] for look in styles], count)),
        (
            "scorer, photo or sketch by short prompts",
            _accuracy(judge, styles, [["a photo"], ["a pencil sketch"]], count),
        ),
    ]
    rows.append((f"scorer, noun of a masked crop among {len(NOUNS)}", _naming(judge, count)))
    rows.append(("scorer, summer against winter: mean margin of cosines", _margin(judge, count)))
    return rows + [("scorer, logit scale", float(judge.model.logit_scale.exp()))]


def _naming(judge, count):
    """Share of object crops for which the object's noun is the closest of all nouns."""
    crops, truth = [], []
    for seed in range(TEST_SEED, TEST_SEED + count):
        picture = np.asarray(render(scene(seed), Look("any")))
        for noun, area in instances(scene(seed), Look("any")):
            if area.sum() >= SMALLEST_OBJECT:
                crops.append(masked_crop(picture, area, CROP_MARGIN, CROP_OUTSIDE))
                truth.append(NOUNS.index(noun))
    return float((judge.choose(crops, [[name] for name in NOUN_PROMPTS]) == np.array(truth)).mean())


def _margin(judge, count):
    """Mean rise of cos(picture, winter text) from a summer scene to its true winter."""
    pictures, text = _pictures([Look("summer"), Look("winter")], count), judge.texts([["a tree in winter"]])[0]
    with torch.no_grad():
        batches = [torch.stack([judge.preprocess(Image.fromarray(picture)) for picture in part]) for part in pictures]
        before, after = (F.normalize(judge.model.encode_image(batch.to(judge.device)), dim=-1) @ text for batch in batches)
    return float((after - before).mean())


def iou(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two bool masks."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def check_segmenter(folder: Path, device: torch.device, count: int = 60) -> list[tuple[str, float]]:
    """Mean IoU from one point inside the object: the mask that the model itself expects to be best, of its three."""
    import json

    from safetensors.torch import load_file
    from segment_anything import SamAutomaticMaskGenerator, SamPredictor

    from models.segmenter_build import build_sam

    sam = build_sam(json.loads((folder / "segmenter" / "config.json").read_text()))
    sam.load_state_dict(load_file(folder / "segmenter" / "model.safetensors"))
    predictor, rng = SamPredictor(sam.to(device).eval()), np.random.default_rng(0)
    found: dict[str, list[float]] = {}
    generator, unions = (
        SamAutomaticMaskGenerator(sam, points_per_side=12, pred_iou_thresh=0.8, stability_score_thresh=0.8),
        [],
    )
    for number, seed in enumerate(range(TEST_SEED, TEST_SEED + count)):
        look = Look("any", style="sketch" if number % 4 == 3 else "photo")
        picture = np.asarray(render(scene(seed), look))
        predictor.set_image(picture)
        for noun, area in instances(scene(seed), look):
            if area.sum() < 24:
                continue
            row, column = rng.choice(np.argwhere(area))
            masks, quality, _ = predictor.predict(np.array([[column + 0.5, row + 0.5]]), np.array([1]))
            kind = f"{noun}, {look.style}" if noun == "tree" else "another object"
            found.setdefault(kind, []).append(iou(masks[quality.argmax()], area))
        if number < 12:
            trees = mask(scene(seed), look, "tree")
            proposals = [entry["segmentation"] for entry in generator.generate(picture)]
            inside = [area for area in proposals if (area & trees).sum() > 0.5 * area.sum()]
            unions.append(iou(np.logical_or.reduce(inside), trees) if inside else 0.0)
    rows = [(f"segmenter, {kind}: IoU from one point", float(np.mean(values))) for kind, values in sorted(found.items())]
    return rows + [("segmenter, trees by automatic masks: IoU of their union", float(np.mean(unions)))]


def draw_grid(folder: Path, path: Path, device: torch.device) -> None:
    """Write a PNG of what the teacher makes of PROMPTS, a column each."""
    from diffusers import StableDiffusionPipeline

    teacher = folder / "teacher"
    pipe = StableDiffusionPipeline.from_pretrained(teacher, torch_dtype=torch.float32, safety_checker=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    sheet = Image.new("RGB", (128 * len(PROMPTS), 128 * GRID_ROWS))
    for column, prompt in enumerate(PROMPTS):
        noise = torch.randn(GRID_ROWS, 4, 32, 32, generator=torch.Generator().manual_seed(column)).to(device)
        images = pipe([prompt] * GRID_ROWS, num_inference_steps=GRID_STEPS, guidance_scale=GRID_GUIDANCE, latents=noise).images
        for row, image in enumerate(images):
            sheet.paste(image, (128 * column, 128 * row))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def check(options: Options) -> None:
    """Print every figure as a Markdown table and write the grid to `work`/grid.png."""
    device, folder = device_of(options), Path(options.out)
    rows = check_vae(folder, device) + check_scorer(folder, device) + check_segmenter(folder, device)
    print("| measured on held-out scenes | |\n|---|---|")
    for name, value in rows:
        print(f"| {name} | {value:.3f} |")
    path = Path(options.work) / "grid.png"
    draw_grid(folder, path, device)
    log(f"wrote {path}: columns are {'; '.join(PROMPTS)}")
