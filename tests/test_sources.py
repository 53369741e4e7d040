"""Photographs in every shape come out upright, square and RGB; what cannot be read is named."""

import io

import numpy as np
import pytest
from PIL import Image

from configs.errors import UserError
from configs.loader import load
from configs.schema import Source, Task
from generate.shards import KEY
from generate.sources import Unreadable, open_source, photo_key, read_square
from models.miniature.captions import caption
from models.miniature.plants import SPECIES
from models.miniature.scenes import SEASONS, Look, render, scene
from models.miniature.words import fields, looks_of
from models.translator import open_picture
from tests.helpers import colour_profile, p3_as_srgb

TASK = Task(name="t", source="tree", caption="a photo of a {source}", scene_input={"season": "summer"})
RED = (255, 0, 0)
BLUE = (0, 0, 255)


def save(image, path, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def test_the_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (40, 40), RED)
    image.paste(BLUE, (0, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright = read_square(save(image, tmp_path / "a.png", exif=exif), 8)
    assert tuple(upright[0, 0]) == RED and tuple(upright[-1, 0]) == BLUE


def test_the_centre_square_is_taken(tmp_path):
    image = Image.new("RGB", (100, 20), RED)
    image.paste(BLUE, (40, 0, 60, 20))
    square = read_square(save(image, tmp_path / "a.png"), 10).astype(int)
    assert np.abs(square - BLUE).max() < 20  # the filter reaches a little beyond the crop


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("L", (9, 9), 77), "png", (77, 77, 77)),
        (Image.new("LA", (9, 9), (0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (9, 9), (10, 20, 30, 255)), "webp", (10, 20, 30)),
        (Image.fromarray(np.full((9, 9), 128 * 257, np.uint16)), "png", (128, 128, 128)),
        (Image.new("CMYK", (9, 9), (0, 0, 0, 255)), "jpg", (0, 0, 0)),
        (Image.new("P", (1, 1), 0), "png", (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, image, suffix, expected):
    options = {"lossless": True} if suffix == "webp" else {}
    square = read_square(save(image, tmp_path / f"a.{suffix}", **options), 16)
    assert square.shape == (16, 16, 3) and square.dtype == np.uint8
    assert np.abs(square.astype(int) - expected).max() <= 2


def test_an_embedded_colour_profile_is_followed(tmp_path):
    path = save(Image.new("RGB", (40, 40), (120, 200, 60)), tmp_path / "a.jpg", icc_profile=colour_profile())
    expected = p3_as_srgb(np.array([120, 200, 60]))
    assert np.abs(expected - (120, 200, 60)).max() > 20
    assert np.abs(read_square(path, 8) - expected).max() <= 3  # JPEG of quality 75
    assert np.abs(np.asarray(open_picture(path, 8)) - expected).max() <= 3


def test_what_is_not_an_image_is_unreadable(tmp_path):
    (tmp_path / "a.png").write_text("not an image")
    with pytest.raises(Unreadable):
        read_square(tmp_path / "a.png", 8)
    content = save(Image.effect_noise((64, 64), 90), tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(Unreadable):
        read_square(tmp_path / "b.png", 8)


@pytest.mark.parametrize("limit", [30_000, 10_000])  # Pillow warns of one, refuses twice as much
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch, limit):
    save(Image.new("RGB", (200, 200)), tmp_path / "c.png")
    assert read_square(tmp_path / "c.png", 8).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(Unreadable, match="40000 pixels"):
        read_square(tmp_path / "c.png", 8)


def test_a_folder_is_searched_in_a_fixed_order_with_its_captions(tmp_path):
    for name in ("b.jpg", "sub/A b.png", "a.webp", "notes.md"):
        if name != "notes.md":
            save(Image.new("RGB", (8, 8)), tmp_path / name)
    (tmp_path / "b.txt").write_text(" two trees by a lake \n")
    source = open_source(Source(images=str(tmp_path)), TASK, 8, 10)
    assert list(source.names) == ["a.webp", "b.jpg", "sub/A b.png"]
    images = [source.load(index) for index in range(3)]
    assert [(image.caption, image.caption_from) for image in images] == [
        ("a photo of a tree", "task.caption"),
        ("two trees by a lake", "b.txt"),
        ("a photo of a tree", "task.caption"),
    ]
    assert all(KEY.fullmatch(image.key) for image in images)
    assert open_source(Source(images=str(tmp_path), caption="x"), TASK, 8, 10).load(1).caption == "x"


def test_keys_are_unique_and_clean():
    names = ["a.png", "sub/a.png", "a.jpg", "Ä€ß.png", "../../evil.png", "x" * 300 + ".png"]
    keys = [photo_key(name) for name in names]
    assert len(set(keys)) == len(keys) and all(KEY.fullmatch(key) for key in keys)


def test_empty_and_missing_sources_say_so(tmp_path):
    with pytest.raises(UserError, match=r"source\.images"):
        open_source(Source(images=str(tmp_path / "nowhere")), TASK, 8, 10)
    with pytest.raises(UserError, match=r"no \.jpeg"):
        open_source(Source(images=str(tmp_path)), TASK, 8, 10)
    for source, task in (
        (Source(scenes=True), Task(name="cat2dog")),
        (Source(), TASK),
    ):  # the task's words, the teacher's world
        with pytest.raises(UserError, match=r"source\.images=FOLDER.*source\.prompts=FILE"):
            open_source(source, task, 8, 10)


def test_the_demo_refuses_at_once_what_renders_no_held_out_scenes(tmp_path, capsys):
    from scripts import demo

    for more in (["source.images=."], ["--dry-run"]):
        assert demo.main(["task=cat2dog", f"runs_dir={tmp_path}/runs", *more]) == 2
        assert (
            "no scenes are rendered for task=cat2dog" in capsys.readouterr().err
            and not (tmp_path / "runs").exists()
        )


def test_scenes_are_the_same_every_time():
    first, second = (open_source(Source(scenes=True, first_seed=5), TASK, 128, 3).load(2) for _ in range(2))
    assert (
        first.key == "scene-7"
        and first.caption == second.caption
        and np.array_equal(first.image, second.image)
    )


def tars(folder, shards=2):
    """Tars as img2dataset writes them; colour says which sample it is."""
    import webdataset

    for shard in range(shards):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for index in range(3):
                stream = io.BytesIO()
                Image.new("RGB", (20, 20), (shard * 100, index * 100, 0)).save(stream, "PNG")
                sample = {
                    "__key__": f"{shard:05d}{index:04d}",
                    "png": stream.getvalue(),
                    "json": {"caption": f"from json {index}"},
                }
                writer.write(sample | ({"txt": f"from txt {index}"} if index else {}))


@pytest.mark.parametrize("pattern", ["*.tar", "0000{0..1}.tar"])
def test_tars_of_img2dataset(tmp_path, pattern):
    tars(tmp_path)
    source = open_source(Source(images=f"{tmp_path}/{pattern}"), TASK, 16, 100)
    loaded = [source.load(index) for index in range(len(source.names))]
    colours = [(0, 0, 0), (0, 100, 0), (0, 200, 0), (100, 0, 0), (100, 100, 0), (100, 200, 0)]
    assert [tuple(item.image[8, 8]) for item in loaded] == colours
    assert [item.caption for item in loaded[:2]] == ["from json 0", "from txt 1"]
    assert [item.caption_from for item in loaded[:2]] == ["json", "txt"]
    assert len({item.key for item in loaded}) == 6 and all(KEY.fullmatch(item.key) for item in loaded)
    assert loaded[4].source == {"id": "00001.tar/000010001"}
    assert len(open_source(Source(images=f"{tmp_path}/{pattern}"), TASK, 16, 4).names) == 4


def test_what_is_wrong_with_a_member_is_said_alike_every_time(tmp_path):
    """It goes into the shard's manifest, which is the same after an interruption."""
    import webdataset

    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "broken", "png": b"no image"})
    source = open_source(Source(images=f"{tmp_path}/a.tar"), TASK, 16, 100)
    with pytest.raises(Unreadable, match="^no PNG, JPEG or WebP image$"):
        source.load(0)


def test_a_tar_behind_an_address(tmp_path, monkeypatch):
    import fsspec

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    tars(tmp_path, 1)
    with fsspec.open("memory://bucket/00000.tar", "wb") as stream:
        stream.write((tmp_path / "00000.tar").read_bytes())
    source = open_source(Source(images="memory://bucket/00000.tar"), TASK, 16, 100)
    assert source.load(2).caption == "from txt 2" and source.names[2] == "00000.tar/000000002"


@pytest.mark.parametrize(
    "images", ["pipe:rm x.tar", "nowhere.tar", "broken.tar", "empty.tar", "file:///nowhere/x.tar"]
)
def test_a_tar_that_is_none_is_refused(tmp_path, monkeypatch, images):
    import tarfile

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    tarfile.open(tmp_path / "empty.tar", "w").close()
    with pytest.raises(UserError, match=r"source.images="):
        open_source(Source(images=images), TASK, 16, 100)


def test_a_list_of_images(tmp_path):
    for name in ("b", "a"):
        save(Image.new("RGB", (20, 20), RED), tmp_path / "deep" / f"{name}.png")
    (tmp_path / "list.txt").write_text("deep/b.png\n\ndeep/a.png\n")
    source = open_source(Source(images=str(tmp_path / "list.txt")), TASK, 16, 100)
    assert list(source.names) == ["deep/b.png", "deep/a.png"]
    assert tuple(source.load(0).image[0, 0]) == RED


@pytest.mark.parametrize(
    ("source", "target", "looks"),
    [
        (
            "pine tree",
            "oak tree",
            ({"season": "summer", "species": "pine"}, {"season": "summer", "species": "oak"}),
        ),
        ("trees in autumn", "Snowy trees", ({"season": "autumn"}, {"season": "winter"})),
        (
            "photo",
            "pencil sketch",
            ({"season": "summer", "style": "photo"}, {"season": "summer", "style": "sketch"}),
        ),
        ("tree", "golden birch", ({"season": "summer"}, {"season": "autumn", "species": "birch"})),
    ],
)
def test_two_words_that_the_world_knows_find_their_scenes(source, target, looks):
    config = load(["task=custom", f"task.source={source}", f"task.target={target}"])
    assert (config.task.scene_input, config.task.scene_truth) == looks
    images = [
        open_source(config.source, config.task, 128, 1).load(0).image,
        np.asarray(render(scene(config.source.first_seed), Look(**looks[0]))),
    ]
    assert np.array_equal(*images)


def test_words_that_it_does_not_know_say_what_it_holds():
    config = load(["task=custom", "task.source=tree", "task.target=cherry blossom tree"])
    with pytest.raises(UserError, match="Its own world holds summer, autumn and winter; oaks") as error:
        open_source(config.source, config.task, 128, 1)
    assert "source.images=FOLDER" in str(error.value)


@pytest.mark.parametrize(
    "argument",
    [
        "task.scene_input={season: spring}",
        "task.scene_input={seson: winter}",
        "task.scene_truth={style: oil}",
    ],
)
def test_a_look_that_there_is_not_names_those_that_there_are(argument):
    config = load([argument])
    with pytest.raises(UserError, match=r"summer, autumn, winter or any.*oak, birch, pine.*photo, sketch"):
        open_source(config.source, config.task, 128, 1)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("photo of a cat", "sketch of a cat"),
        ("oak tree", "golden retriever"),
        ("green apple", "golden apple"),
        ("horse", "horse in snow"),
        ("tree in summer", "tree in spring"),
        ("sommer", "winter"),
        ("\u00e9t\u00e9", "winter"),
        ("tree", "tree"),
    ],
)
def test_what_the_world_cannot_show_is_no_change_in_it(source, target):
    """Though one of the words is known: the scenes would show trees, and the truth would be none."""
    assert looks_of(source, target) is None


def test_every_caption_of_the_world_is_understood():
    for seed in range(60):
        for season in SEASONS:
            for species in SPECIES:
                look = Look(season=season, species=species)
                text = caption(scene(seed), look)
                found = fields(text)
                if {"brown", "orange", "red", "yellow", "white"} & set(text.split()):
                    assert found is None, text  # it may be a house's
                    continue
                assert found is not None and found["species"] == species, text
                if "needles" not in text:  # green ones stay so in autumn
                    assert found.get("season", season) == season, text
