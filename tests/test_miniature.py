"""The miniature world: its pictures and masks against each other, its captions against its looks, its models against
its scenes.
"""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from models.miniature import captions, scenes
from models.miniature.scenes import SEASONS, Look, instances, mask, render, scene

FOLDER = Path(scenes.__file__).parent
TEST_SEED = 3_000_000


def pixels(number, look):
    return np.asarray(render(scene(number), look)).astype(int)


def test_the_same_seed_gives_the_same_pixels_and_another_seed_others():
    look = Look("autumn", style="sketch")
    assert (pixels(5, look) == pixels(5, look)).all()
    assert (pixels(5, look) != pixels(6, look)).any()
    assert render(scene(5), look).size == (128, 128) and render(scene(5), look).mode == "RGB"


def test_an_unknown_look_names_the_known_ones():
    with pytest.raises(ValueError, match="summer, autumn, winter, any"):
        Look("spring")


@pytest.mark.parametrize("look", [Look(season) for season in SEASONS] + [Look(style="sketch")], ids=str)
def test_the_masks_of_a_scene_cover_each_pixel_once(look):
    for seed in range(5):
        areas = np.stack([area for _, area in instances(scene(seed), look)])
        assert areas.dtype == bool and (areas.sum(0) == 1).all()


def test_a_tree_mask_is_where_the_picture_changes_when_the_tree_is_felled():
    """The independent truth is the difference of two renders; it also holds the shadow and what lies around it."""
    checked = 0
    for seed in range(TEST_SEED, TEST_SEED + 40):
        standing = scene(seed)
        if len(standing.trees) != 1 or standing.house:  # a house stands beside the first tree
            continue
        felled = dataclasses.replace(standing, trees=())
        change = np.abs(pixels(seed, Look()) - np.asarray(render(felled, Look())).astype(int)).max(-1) > 12
        area = mask(standing, Look(), "tree")
        above = np.arange(128) < standing.trees[0].y / 2 - 8  # no shadow up there
        assert (area & change)[above].sum() / area[
            above
        ].sum() > 0.93  # a leaf may have the colour of what it hides
        assert (change & ~area)[above].sum() / area[above].sum() < 0.1  # a pixel shows four canvas pixels
        checked += 1
    assert checked >= 5


def test_a_change_of_species_leaves_everything_else_in_place():
    for seed in range(TEST_SEED, TEST_SEED + 8):
        oak, pine = Look(species="oak"), Look(species="pine")
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
        summer, autumn = (
            [area for noun, area in instances(scene(seed), Look(season)) if noun != "sky"]
            for season in SEASONS[:2]
        )
        assert len(summer) == len(autumn)
        assert max((first ^ second).mean() for first, second in zip(summer, autumn, strict=True)) < 0.02


@pytest.mark.parametrize("season", SEASONS)
def test_a_caption_tells_its_season_unless_asked_not_to(season):
    words = {
        "summer": {"summer", "summertime", "green", "lush", "leafy", "grassy", "sunny", "fresh", "evergreen"},
        "autumn": {"autumn", "fall", "colorful", "golden", "orange", "red", "yellow", "brown", "dark"},
        "winter": {"winter", "snow", "snowy", "frosty", "white", "bare", "without"},
    }
    told = [
        set(captions.caption(scene(seed), Look(season), variant).split())
        for seed in range(150)
        for variant in (0, 1)
    ]
    assert (
        np.mean([bool(caption & words[season]) for caption in told]) > 0.97
    )  # mixed trees in autumn may go without
    kept = [captions.caption(scene(seed), Look(season), 0, name_season=False) for seed in range(60)]
    assert not any(
        word in caption.split() for caption in kept for word in (season, "snowy", "golden", "green")
    )


def test_captions_name_species_and_style_and_keep_to_one_plan():
    sketches = captions.bank(Look("any", style="sketch"), 60)
    assert all(text.startswith(("a sketch of", "a pencil sketch of", "a drawing of")) for text in sketches)
    oaks, pines = captions.bank(Look(species="oak"), 60), captions.bank(Look(species="pine"), 60)
    assert all("oak tree" in text for text in oaks) and all("pine tree" in text for text in pines)
    assert len({captions.caption(scene(3), Look(), variant) for variant in range(20)}) > 8
    assert captions.caption(scene(3), Look(), 4) == captions.caption(scene(3), Look(), 4)


def test_any_season_is_drawn_from_the_scene():
    drawn = [scene(seed).season for seed in range(60)]
    assert set(drawn) == set(SEASONS)
    assert (pixels(7, Look("any")) == pixels(7, Look(drawn[7]))).all()


def test_a_sketch_has_no_colour_and_more_ink_in_summer_than_in_winter():
    summer, winter = (pixels(TEST_SEED, Look(season, style="sketch")) for season in ("summer", "winter"))
    assert np.ptp(summer, axis=-1).max() < 20
    assert summer.mean() < winter.mean() - 5


def test_the_teacher_draws_from_a_prompt():
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        FOLDER / "teacher", torch_dtype=torch.float32, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    longest = max(captions.bank(Look("any", style="sketch"), 300), key=len)
    assert len(pipe.tokenizer(longest).input_ids) <= pipe.tokenizer.model_max_length == 32
    generator = torch.Generator().manual_seed(0)
    image = pipe(
        "a photo of an oak tree in winter", num_inference_steps=8, guidance_scale=4.0, generator=generator
    ).images[0]
    assert image.size == (128, 128)
    assert np.asarray(image)[100:].mean() > 160  # snow


def test_the_autoencoder_keeps_photos_and_sketches():
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(FOLDER / "teacher" / "vae", torch_dtype=torch.float32).eval()
    for look, least_db in ((Look("any"), 26.5), (Look("any", style="sketch"), 24.5)):
        truth = torch.from_numpy(np.stack([pixels(seed, look) for seed in range(TEST_SEED, TEST_SEED + 6)]))
        truth = truth.permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            decoded = vae.decode(vae.encode(truth).latent_dist.mode()).sample.clamp(-1, 1)
        assert (10 * torch.log10(4 / (decoded - truth).square().mean((1, 2, 3)))).mean() > least_db


def test_the_scorer_tells_seasons_species_and_styles():
    import open_clip

    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{FOLDER / 'scorer'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{FOLDER / 'scorer'}")
    model.eval()

    @torch.no_grad()
    def accuracy(looks, texts):
        text_ND = model.encode_text(tokenizer(texts), normalize=True)
        right = []
        for index, look in enumerate(looks):
            batch = torch.stack(
                [preprocess(render(scene(seed), look)) for seed in range(TEST_SEED, TEST_SEED + 12)]
            )
            right.append((model.encode_image(batch, normalize=True) @ text_ND.T).argmax(1) == index)
        return torch.cat(right).float().mean()

    assert (
        accuracy([Look(season) for season in SEASONS], [f"a tree in {season}" for season in SEASONS]) > 0.95
    )
    assert accuracy([Look(species="oak"), Look(species="pine")], ["an oak tree", "a pine tree"]) > 0.85
    assert accuracy([Look(), Look(style="sketch")], ["a photo of a tree", "a pencil sketch of a tree"]) > 0.95


def test_the_segmenter_finds_a_tree_from_a_point():
    from safetensors.torch import load_file
    from segment_anything import SamPredictor

    from models.segmenter import build_sam

    sam = build_sam(json.loads((FOLDER / "segmenter" / "config.json").read_text()))
    sam.load_state_dict(load_file(FOLDER / "segmenter" / "model.safetensors"))
    predictor, rng, found = SamPredictor(sam), random.Random(0), []
    for seed in range(TEST_SEED, TEST_SEED + 8):
        predictor.set_image(np.asarray(render(scene(seed), Look())))
        for noun, area in instances(scene(seed), Look()):
            if noun == "tree":
                row, column = rng.choice(np.argwhere(area).tolist())
                masks, quality, _ = predictor.predict(np.array([[column + 0.5, row + 0.5]]), np.array([1]))
                best = masks[quality.argmax()]
                found.append((best & area).sum() / (best | area).sum())
    assert np.mean(found) > 0.75


def test_the_banks_on_disk_are_the_banks_of_the_scenes():
    folder = FOLDER.parents[1] / "configs" / "banks"
    for name, look in (
        ("tree_winter", Look("winter")),
        ("pine", Look("any", "pine")),
        ("sketch", Look("any", style="sketch")),
    ):
        assert (folder / f"{name}.txt").read_text().splitlines() == captions.bank(look, 200)


def test_the_models_are_small_enough_to_ship():
    total = sum(
        path.stat().st_size
        for path in FOLDER.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    )
    assert total <= 49e6


def test_training_resumes_as_if_it_had_not_stopped(tmp_path):
    from scripts.miniature.loop import fit
    from scripts.miniature.options import Options

    def trained(folder, *steps):
        for budget in steps:
            torch.manual_seed(0)
            layer = torch.nn.Linear(4, 1)
            options = Options(work=str(folder), steps=12, minutes=0, lr=1e-2, warmup=3)

            def loss(step, layer=layer, budget=budget):
                if step >= budget:
                    raise KeyboardInterrupt
                return layer(torch.randn(8, 4)).square().mean()

            try:
                fit("layer", layer, loss, dataclasses.replace(options, save_minutes=1e-9))
            except KeyboardInterrupt:
                continue
        return layer.weight.detach().clone()

    assert torch.equal(trained(tmp_path / "whole", 12), trained(tmp_path / "parts", 5, 9, 12))


def test_a_stage_takes_the_options_it_knows_and_names_them_for_any_other():
    from scripts.miniature.options import Options, parse

    told = parse(Options(batch=8, lr=0.1), ["lr=1e-2", "compile=1", "minutes=3", "out=some/where"])
    assert (told.batch, told.lr, told.compile, told.minutes, told.out) == (8, 0.01, True, 3.0, "some/where")
    for wrong in ("learning_rate=1", "batch=many", "batch"):
        with pytest.raises(SystemExit, match="one of out, work"):
            parse(Options(), [wrong])


def test_training_pictures_are_kept_on_disk(tmp_path):
    from scripts.miniature.data import training_look, training_pictures
    from scripts.miniature.options import Options

    options = Options(work=str(tmp_path), images=3, first_seed=7, workers=1)
    made = training_pictures(options)
    wanted = [pixels(seed, training_look(seed, options.sketch_share)) for seed in range(7, 10)]
    assert made.dtype == np.uint8 and (made == np.stack(wanted)).all()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert (training_pictures(options) == made).all() and {
        path: path.stat().st_mtime_ns for path in tmp_path.iterdir()
    } == kept
    assert len(kept) == 1 and [path.suffix for path in kept] == [".npy"]


def test_training_stops_at_a_loss_that_is_not_finite_before_the_update(tmp_path):
    from scripts.miniature.loop import fit
    from scripts.miniature.options import Options

    layer = torch.nn.Linear(4, 1)
    before = layer.weight.detach().clone()
    with pytest.raises(RuntimeError, match="non-finite"):
        fit(
            "layer",
            layer,
            lambda step: layer(torch.ones(1, 4)).sum() * float("nan"),
            Options(work=str(tmp_path), steps=3),
        )
    assert torch.equal(layer.weight, before)


def test_training_from_scratch_starts_from_the_same_tokenizer_and_weights_each_time(tmp_path):
    """A resumed stage makes its tokenizer again: other ids would belong to other words than the checkpoint's."""
    from diffusers import UNet2DConditionModel
    from transformers import PreTrainedTokenizerFast

    from scripts.miniature.loop import untrained
    from scripts.miniature.scorer import make_tokenizer

    texts = captions.bank(Look("any"), 100)
    sizes = [make_tokenizer(texts, tmp_path / name) for name in ("first", "second", "third")]
    files = [(tmp_path / name / "tokenizer.json").read_text() for name in ("first", "second", "third")]
    assert files[0] == files[1] == files[2]
    ids = PreTrainedTokenizerFast.from_pretrained(tmp_path / "first")("an oak tree in zürich").input_ids
    assert (ids[0], ids[-1]) == (sizes[0] - 2, sizes[0] - 1)  # open_clip pools at the highest id
    first, second = (untrained(UNet2DConditionModel, "teacher/unet", "").state_dict() for _ in range(2))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
