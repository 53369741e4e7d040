"""The miniature world: pictures against masks, captions against looks, models against scenes."""

import contextlib
import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from models.miniature import captions
from models.miniature.scenes import SEASONS, Look, Scene, instances, mask, render, scene
from models.pictures import batch_of
from scripts.miniature.data import training_look, training_pictures
from scripts.miniature.loop import fit, untrained
from scripts.miniature.options import Options, parse
from scripts.miniature.scorer import make_tokenizer
from tests.helpers import ROOT

FOLDER = ROOT / "models" / "miniature"
TEST_SEED = 3_000_000
PHOTO = Look("any")
SKETCH = Look("any", style="sketch")


def levels(view: Scene, look: Look) -> np.ndarray:
    """The rendered picture, H x W x 3, as integers that can be subtracted."""
    return np.asarray(render(view, look)).astype(int)


def pixels(seed: int, look: Look) -> np.ndarray:
    return levels(scene(seed), look)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return (first & second).sum() / (first | second).sum()


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    look = Look("autumn", style="sketch")
    assert (pixels(5, look) == pixels(5, look)).all()
    assert (pixels(5, look) != pixels(6, look)).any()
    picture = render(scene(5), look)
    assert picture.size == (128, 128)
    assert picture.mode == "RGB"


def test_an_unknown_look_names_the_known_ones():
    with pytest.raises(ValueError, match="summer, autumn, winter, any"):
        Look("spring")


@pytest.mark.parametrize("look", [Look(season) for season in SEASONS] + [Look(style="sketch")], ids=str)
def test_the_masks_of_a_scene_cover_each_pixel_once(look):
    for seed in range(5):
        areas = np.stack([area for _, area in instances(scene(seed), look)])
        assert areas.dtype == bool
        assert (areas.sum(0) == 1).all()


def test_a_tree_mask_is_where_the_picture_changes_when_the_tree_is_felled():
    """The independent truth is the difference of two renders; it also holds the tree's shadow and foot."""
    checked = 0
    for seed in range(TEST_SEED, TEST_SEED + 40):
        standing = scene(seed)
        if len(standing.trees) != 1 or standing.house:  # a house stands beside the first tree
            continue
        felled = dataclasses.replace(standing, trees=())
        change = np.abs(levels(standing, Look()) - levels(felled, Look())).max(-1) > 12
        area = mask(standing, Look(), "tree")
        above = np.arange(128) < standing.trees[0].y / 2 - 8  # no shadow up there
        size = area[above].sum()
        assert (area & change)[above].sum() / size > 0.93  # a leaf may have the colour of what it hides
        assert (change & ~area)[above].sum() / size < 0.1  # a pixel shows four canvas pixels
        checked += 1
    assert checked >= 5


def test_a_change_of_species_leaves_everything_else_in_place():
    oak = Look(species="oak")
    pine = Look(species="pine")
    for seed in range(TEST_SEED, TEST_SEED + 8):
        trees = mask(scene(seed), oak, "tree") | mask(scene(seed), pine, "tree")
        change = np.abs(pixels(seed, oak) - pixels(seed, pine)).max(-1) > 0
        above = np.arange(128) < min(tree.y for tree in scene(seed).trees) / 2 - 8  # above every shadow
        # a pixel shows four canvas pixels, so a tree's rim may be in the mask of what is behind it
        assert (change & ~trees)[above].mean() < 0.1 * trees[above].mean()
        far = np.asarray(Image.fromarray(trees.astype(np.uint8)).filter(ImageFilter.MaxFilter(9))) == 0
        assert not (change & far)[above].any()
        assert change[trees].mean() > 0.5


def test_a_change_of_season_keeps_the_things_where_they_are():
    for seed in range(TEST_SEED, TEST_SEED + 6):
        summer = instances(scene(seed), Look("summer"))
        autumn = instances(scene(seed), Look("autumn"))
        for (summer_noun, summer_area), (autumn_noun, autumn_area) in zip(summer, autumn, strict=True):
            assert summer_noun == autumn_noun
            assert summer_noun == "sky" or (summer_area ^ autumn_area).mean() < 0.02


@pytest.mark.parametrize("season", SEASONS)
def test_a_caption_tells_its_season_unless_asked_not_to(season):
    words = {
        "summer": {"summer", "summertime", "green", "lush", "leafy", "grassy", "sunny", "fresh", "evergreen"},
        "autumn": {"autumn", "fall", "colorful", "golden", "orange", "red", "yellow", "brown", "dark"},
        "winter": {"winter", "snow", "snowy", "frosty", "white", "bare", "without"},
    }
    telling = []
    for seed in range(150):
        for variant in (0, 1):
            told = captions.caption(scene(seed), Look(season), variant).split()
            telling.append(not words[season].isdisjoint(told))
    assert np.mean(telling) > 0.97  # mixed trees in autumn may go without
    for seed in range(60):
        kept = captions.caption(scene(seed), Look(season), 0, name_season=False).split()
        assert {season, "snowy", "golden", "green"}.isdisjoint(kept)


def test_captions_name_species_and_style_and_keep_to_one_plan():
    sketches = captions.bank(SKETCH, 60)
    assert all(text.startswith(("a sketch of", "a pencil sketch of", "a drawing of")) for text in sketches)
    assert all("oak tree" in text for text in captions.bank(Look(species="oak"), 60))
    assert all("pine tree" in text for text in captions.bank(Look(species="pine"), 60))
    assert len({captions.caption(scene(3), Look(), variant) for variant in range(20)}) > 8
    assert captions.caption(scene(3), Look(), 4) == captions.caption(scene(3), Look(), 4)


def test_any_season_is_drawn_from_the_scene():
    drawn = [scene(seed).season for seed in range(60)]
    assert set(drawn) == set(SEASONS)
    assert (pixels(7, PHOTO) == pixels(7, Look(drawn[7]))).all()


def test_a_sketch_has_no_colour_and_more_ink_in_summer_than_in_winter():
    summer = pixels(TEST_SEED, Look("summer", style="sketch"))
    winter = pixels(TEST_SEED, Look("winter", style="sketch"))
    assert np.ptp(summer, axis=-1).max() < 20
    assert summer.mean() < winter.mean() - 5


def test_the_teacher_draws_from_a_prompt():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        FOLDER / "teacher", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    longest = max(captions.bank(SKETCH, 300), key=len)
    assert len(pipe.tokenizer(longest).input_ids) <= pipe.tokenizer.model_max_length == 32
    prompt = "a photo of an oak tree in winter"
    generator = torch.Generator().manual_seed(0)
    image = pipe(prompt, num_inference_steps=8, guidance_scale=4.0, generator=generator).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image)[100:].mean() > 160  # snow


@pytest.mark.parametrize("look, least_db", [(PHOTO, 26.5), (SKETCH, 24.5)], ids=str)
def test_the_autoencoder_keeps_photos_and_sketches(look, least_db):
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(FOLDER / "teacher" / "vae", torch_dtype=torch.float32).eval()
    pictures = [np.asarray(render(scene(seed), look)) for seed in range(TEST_SEED, TEST_SEED + 6)]
    truth_BCHW = batch_of(pictures)
    with torch.no_grad():
        decoded_BCHW = vae.decode(vae.encode(truth_BCHW).latent_dist.mode()).sample.clamp(-1, 1)
    error_B = (decoded_BCHW - truth_BCHW).square().mean((1, 2, 3))
    assert (10 * torch.log10(4 / error_B)).mean() > least_db


def test_the_scorer_tells_seasons_species_and_styles():
    import open_clip

    folder = f"local-dir:{FOLDER / 'scorer'}"
    model, _, preprocess = open_clip.create_model_and_transforms(folder)
    tokenizer = open_clip.get_tokenizer(folder)
    model.eval()

    @torch.no_grad()
    def accuracy(looks, texts):
        text_ND = model.encode_text(tokenizer(texts), normalize=True)
        right = []
        for index, look in enumerate(looks):
            pictures = [render(scene(seed), look) for seed in range(TEST_SEED, TEST_SEED + 12)]
            image_BCHW = torch.stack([preprocess(picture) for picture in pictures])
            image_BD = model.encode_image(image_BCHW, normalize=True)
            right.append((image_BD @ text_ND.T).argmax(1) == index)
        return torch.cat(right).float().mean()

    seasons = [Look(season) for season in SEASONS]
    assert accuracy(seasons, [f"a tree in {season}" for season in SEASONS]) > 0.95
    assert accuracy([Look(species="oak"), Look(species="pine")], ["an oak tree", "a pine tree"]) > 0.85
    assert accuracy([Look(), Look(style="sketch")], ["a photo of a tree", "a pencil sketch of a tree"]) > 0.95


def test_the_segmenter_finds_a_tree_from_a_point():
    from safetensors.torch import load_file
    from segment_anything import SamPredictor

    from models.segmenter import build_sam

    sam = build_sam(json.loads((FOLDER / "segmenter" / "config.json").read_text()))
    sam.load_state_dict(load_file(FOLDER / "segmenter" / "model.safetensors"))
    predictor = SamPredictor(sam)
    rng = random.Random(0)
    ious = []
    for seed in range(TEST_SEED, TEST_SEED + 8):
        predictor.set_image(np.asarray(render(scene(seed), Look())))
        for noun, area in instances(scene(seed), Look()):
            if noun == "tree":
                row, column = rng.choice(np.argwhere(area).tolist())
                masks, quality, _ = predictor.predict(np.array([[column + 0.5, row + 0.5]]), np.array([1]))
                ious.append(iou(masks[quality.argmax()], area))
    assert np.mean(ious) > 0.75


@pytest.mark.parametrize(
    "name, look", [("tree_winter", Look("winter")), ("pine", Look("any", "pine")), ("sketch", SKETCH)]
)
def test_the_banks_on_disk_are_the_banks_of_the_scenes(name, look):
    path = ROOT / "configs" / "banks" / f"{name}.txt"
    assert path.read_text().splitlines() == captions.bank(look, 200)


def test_the_models_are_small_enough_to_ship():
    total = 0
    for path in FOLDER.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            total += path.stat().st_size
    assert total <= 48 * 2**20


def train_layer(folder: Path, *stops: int) -> torch.Tensor:
    """The weight of a small layer after 12 steps of training, interrupted at each of the steps `stops`."""
    for stop in (*stops, 12):
        torch.manual_seed(0)
        layer = torch.nn.Linear(4, 1)

        def loss_of_step(step, layer=layer, stop=stop):
            if step >= stop:
                raise KeyboardInterrupt
            return layer(torch.randn(8, 4)).square().mean()

        options = Options(work=str(folder), steps=12, minutes=0, lr=1e-2, warmup=3, save_minutes=1e-9)
        with contextlib.suppress(KeyboardInterrupt):
            fit("layer", layer, loss_of_step, options)
    return layer.weight.detach().clone()


def test_training_resumes_as_if_it_had_not_stopped(tmp_path):
    assert torch.equal(train_layer(tmp_path / "whole"), train_layer(tmp_path / "parts", 5, 9))


def test_a_stage_takes_the_options_it_knows_and_names_them_for_any_other():
    told = parse(Options(batch=8, lr=0.1), ["lr=1e-2", "compile=1", "minutes=3", "out=some/where"])
    assert told == Options(batch=8, lr=0.01, compile=True, minutes=3.0, out="some/where")
    for wrong in ("learning_rate=1", "batch=many", "batch"):
        with pytest.raises(SystemExit, match="one of out, work"):
            parse(Options(), [wrong])


def test_training_pictures_are_kept_on_disk(tmp_path):
    options = Options(work=str(tmp_path), images=3, first_seed=7, workers=1)
    made = training_pictures(options)
    expected = [pixels(seed, training_look(seed, options.sketch_share)) for seed in range(7, 10)]
    assert made.dtype == np.uint8
    assert (made == np.stack(expected)).all()
    (path,) = tmp_path.iterdir()
    written_at = path.stat().st_mtime_ns
    assert (training_pictures(options) == made).all()
    assert [*tmp_path.iterdir()] == [path]
    assert path.suffix == ".npy"
    assert path.stat().st_mtime_ns == written_at


def test_training_stops_at_a_loss_that_is_not_finite_before_the_update(tmp_path):
    layer = torch.nn.Linear(4, 1)
    before = layer.weight.detach().clone()

    def loss_of_step(step):
        return layer(torch.ones(1, 4)).sum() * float("nan")

    with pytest.raises(RuntimeError, match="non-finite"):
        fit("layer", layer, loss_of_step, Options(work=str(tmp_path), steps=3))
    assert torch.equal(layer.weight, before)


def test_training_from_scratch_starts_from_the_same_tokenizer_and_weights_each_time(tmp_path):
    """A resumed stage makes its tokenizer again: its ids must mean the same as the checkpoint's."""
    from diffusers import UNet2DConditionModel
    from transformers import PreTrainedTokenizerFast

    texts = captions.bank(PHOTO, 100)
    folders = [tmp_path / name for name in ("first", "second", "third")]
    sizes = [make_tokenizer(texts, folder) for folder in folders]
    files = {(folder / "tokenizer.json").read_text() for folder in folders}
    assert len(files) == 1
    ids = PreTrainedTokenizerFast.from_pretrained(folders[0])("an oak tree in zürich").input_ids
    assert (ids[0], ids[-1]) == (sizes[0] - 2, sizes[0] - 1)  # open_clip pools at the highest id
    first = untrained(UNet2DConditionModel, "teacher/unet", "").state_dict()
    second = untrained(UNet2DConditionModel, "teacher/unet", "").state_dict()
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
