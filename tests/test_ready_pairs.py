"""source.pairs: before/after pairs that exist become shards as they are; what is wrong with one is named."""

import io
import tarfile

import numpy as np
import pytest
import webdataset
from PIL import Image

from configs.errors import UserError
from configs.loader import load
from configs.runs import pairs_dir
from configs.schema import Source, Task
from distill import train
from filter import run as filter_run
from generate import run
from generate.shards import finished_shards, read_manifest, read_pairs
from generate.sources import Unreadable, open_source, read_square
from tests.helpers import make_scorer_folder, tiny_training

TASK = Task(name="t", source="tree", caption="a photo of a {source}")


def picture(seed, wide=40, high=32):
    """Blocks of random colours."""
    levels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(levels).resize((wide, high), Image.Resampling.NEAREST)


def make_folder(folder, count=4, names=("input", "edit")):
    """NAME.png with NAME.webp, the edit its input's negative."""
    for name in names:
        (folder / name / "deep").mkdir(parents=True)
    for number in range(count):
        name = f"deep/{number}" if number % 2 else str(number)
        before = picture(number)
        before.save(folder / names[0] / f"{name}.png")
        negative = Image.fromarray(255 - np.asarray(before))
        negative.save(folder / names[1] / f"{name}.webp", lossless=True)
    return folder


def make_tar(path, members=("input.png", "edit.png"), count=3, **more):
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(count):
            sample = {"__key__": f"{number:03d}", **more}
            for offset, member in enumerate(members):
                stream = io.BytesIO()
                picture(number + 100 * offset).save(stream, "PNG")
                sample[member] = stream.getvalue()
            writer.write(sample)


def opened(folder, **more):
    return open_source(Source(pairs=str(folder), **more), TASK, 16, 100)


def arguments_of(folder, tmp_path, *more):
    return [
        f"source.pairs={folder}",
        "teacher.resolution=16",
        "generate.pairs_per_shard=2",
        f"runs_dir={tmp_path}/runs",
        *more,
    ]


def test_a_folder_becomes_shards(tmp_path, capsys, monkeypatch):
    """Each picture as read_square reads it, without a teacher, a direction or an editor."""
    for name in ("Teacher", "edit_direction"):
        monkeypatch.setattr(f"generate.pairs.{name}", None)
    folder = make_folder(tmp_path / "mine")
    (folder / "input" / "0.txt").write_text("a tree by a lake")
    arguments = arguments_of(folder, tmp_path)
    assert run.main(arguments) == 0
    assert f"pairs of {folder}, as they are" in capsys.readouterr().out
    pairs = list(read_pairs(tmp_path / "runs" / "tree2winter" / "pairs" / "pairs"))
    assert [pair.record["source"]["id"] for pair in pairs] == ["0", "2", "deep/1", "deep/3"]
    assert [pair.record["caption"] for pair in pairs[:2]] == [
        "a tree by a lake",
        "a photo of a tree in summer",
    ]
    for pair in pairs:
        name = pair.record["source"]["id"]
        assert np.array_equal(pair.images["input"], read_square(folder / "input" / f"{name}.png", 16))
        assert np.array_equal(pair.images["edit"], read_square(folder / "edit" / f"{name}.webp", 16))
        assert pair.record["method"] == "pairs" and "direction" not in pair.record


def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, capsys):
    folder = make_folder(tmp_path / "mine")
    arguments = arguments_of(folder, tmp_path)
    assert run.main(arguments) == 0
    shards = pairs_dir(load(arguments))
    whole = {file.name: file.read_bytes() for file in shards.glob("0*")}
    (shards / "000001.json").unlink()
    assert run.main(arguments) == 0 and "1 of 2 shards already" in capsys.readouterr().out
    assert {file.name: file.read_bytes() for file in shards.glob("0*")} == whole
    assert run.main([*arguments, "source.pair_names=[edit,input]"]) == 2
    assert "source.pair_names: ['input', 'edit'] -> ['edit', 'input']" in capsys.readouterr().err


def test_all_of_them_are_taken_unless_a_number_is_given(tmp_path, capsys):
    """The default preset's 48 are for pairs that are to be made."""
    folder = make_folder(tmp_path / "mine", 50)
    assert run.main([*arguments_of(folder, tmp_path), "teacher.resolution=64", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "\npairs: 50\n" in printed
    assert "pictures of 32 pixels are enlarged to 64: teacher.resolution= sets the side" in printed
    assert load([f"source.pairs={folder}", "generate.pairs=7"]).generate.pairs == 7
    assert load(["preset=paper", f"source.pairs={folder}"]).generate.pairs > 15_000


def test_other_names(tmp_path):
    folder = make_folder(tmp_path / "mine", names=("before", "after"))
    source = opened(folder, pair_names=["before", "after"])
    item = source.load(0)
    assert np.array_equal(item.image, read_square(folder / "before" / "0.png", 16))
    with pytest.raises(UserError, match="it has no folder input, as pairs input/NAME.png"):
        opened(folder)
    for wrong in (["before"], ["before", "before"]):
        with pytest.raises(UserError, match=r"source.pair_names=.*two names"):
            opened(folder, pair_names=wrong)


@pytest.mark.parametrize(
    ("members", "names"),
    [
        (("input.png", "edit.png"), ["input", "edit"]),
        (("before.jpg", "after.png"), ["before", "after"]),
        (("png", "edited.png"), ["png", "edited.png"]),
    ],
)
def test_webdataset_tars(tmp_path, members, names):
    make_tar(tmp_path / "0.tar", members, json={"caption": "a tree"})
    make_tar(tmp_path / "1.tar", members, txt="two trees")
    for place in (tmp_path, f"{tmp_path}/*.tar", f"{tmp_path}/{{0..1}}.tar"):
        source = opened(place, pair_names=names)
        items = [source.load(index) for index in range(len(source.names))]
        assert [item.source["id"] for item in items[2:4]] == ["0.tar/002", "1.tar/000"]
        assert [item.caption for item in items[2:4]] == ["a tree", "two trees"]
        for number, item in enumerate(items):
            for image, seed in ((item.image, number % 3), (item.edit, number % 3 + 100)):
                stream = io.BytesIO()
                picture(seed).save(stream, "PNG")
                stream.seek(0)
                assert np.array_equal(image, read_square(stream, 16))


def test_our_own_shards_are_pairs_too(tmp_path):
    folder = make_folder(tmp_path / "mine")
    assert run.main(arguments_of(folder, tmp_path, f"generate.out={tmp_path}/first")) == 0
    again = [f"source.pairs={tmp_path}/first", f"generate.out={tmp_path}/second"]
    assert run.main([*arguments_of(folder, tmp_path), *again]) == 0
    first, second = (list(read_pairs(tmp_path / name)) for name in ("first", "second"))
    assert len(second) == 4
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.images["edit"], other.images["edit"])
        assert one.record["caption"] == other.record["caption"]


def test_what_is_wrong_with_a_pair_is_named(tmp_path):
    folder = make_folder(tmp_path / "mine", 8)
    (folder / "edit" / "0.webp").unlink()
    (folder / "input" / "2.png").unlink()
    (folder / "edit" / "4.webp").write_text("no picture")
    picture(6, 32, 40).save(folder / "edit" / "6.webp")
    content = (folder / "edit" / "deep" / "1.webp").read_bytes()
    (folder / "edit" / "deep" / "1.webp").write_bytes(content[: len(content) // 2])
    source = opened(folder, max_unreadable_share=0.5)
    reasons = {}
    for index, name in enumerate(source.names):
        try:
            source.load(index)
        except Unreadable as error:
            reasons[name] = str(error)
    assert reasons.pop("deep/1").startswith("its edit: ")
    assert reasons == {
        "0": "it has no edit",
        "2": "it has no input",
        "4": "its edit is no PNG, JPEG or WebP image",
        "6": "40 x 32 pixels before and 32 x 40 after: give both one size",
    }


def test_a_picture_on_its_side_has_the_size_that_it_is_seen_in(tmp_path):
    folder = make_folder(tmp_path / "mine", 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(0, 32, 40).save(folder / "input" / "0.png", exif=exif)
    assert opened(folder).load(0).image.shape == (16, 16, 3)


def test_a_few_bad_pairs_are_left_out_and_many_are_an_error(tmp_path, capsys):
    folder = make_folder(tmp_path / "mine", 4)
    picture(0, 32, 40).save(folder / "edit" / "0.webp")
    arguments = arguments_of(folder, tmp_path)
    assert run.main(arguments) == 2  # one in four; yet the others are there
    assert "0 (40 x 32 pixels before and 32 x 40 after: give both one size)" in capsys.readouterr().err
    assert run.main([*arguments, "source.max_unreadable_share=0.5"]) == 0
    shards = finished_shards(pairs_dir(load(arguments)))
    assert [len(read_manifest(shard)["keys"]) for shard in shards] == [1, 2]

    (folder / "edit" / "2.webp").unlink()  # without a partner: known before anything is written
    other = arguments_of(folder, tmp_path, f"generate.out={tmp_path}/other")
    for more in ([], ["--dry-run"]):
        assert run.main([*other, *more]) == 2
        assert "1 of 4 have no partner: 2 (no edit)" in capsys.readouterr().err
    assert not list((tmp_path / "other").glob("*.tar"))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("source.pairs=/nowhere", "source.pairs=/nowhere is no folder and cannot be read as webdataset tars"),
        ("source.pairs={tmp}/empty.tar", "no pictures input and edit in it"),
        ("source.pairs=pipe:cat x.tar", "a pipe: runs a command and is refused"),
        ("source.images=.", "source.images and source.pairs are two sources: name one"),
        ("source.prompts=x.txt", "source.images=FOLDER"),
        ("source.pairs=", "edit.method=pairs: name the folder or the tars"),
    ],
)
def test_wrong_input_gives_one_line(tmp_path, capsys, argument, message):
    folder = make_folder(tmp_path / "mine")
    tarfile.open(tmp_path / "empty.tar", "w").close()
    argument = argument.replace("{tmp}", str(tmp_path))
    assert run.main(["teacher=pairs", *arguments_of(folder, tmp_path), argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1


def test_two_pictures_of_one_name_are_refused(tmp_path):
    folder = make_folder(tmp_path / "mine")
    picture(9).save(folder / "edit" / "0.jpg")
    with pytest.raises(UserError, match="are two of one name: keep one"):
        opened(folder)


def test_a_folder_of_pairs_becomes_a_generator_with_three_commands(tmp_path, monkeypatch):
    """generate, filter and train, the later two with teacher=pairs."""
    folder = make_folder(tmp_path / "mine", 12)
    scorer = make_scorer_folder(tmp_path / "scorer")
    common = ["task=custom", "task.source=day", "task.target=night", f"runs_dir={tmp_path}/runs"]
    common += ["teacher.resolution=16"]
    assert run.main([*common, f"source.pairs={folder}"]) == 0
    judged = [f"scorer.model=local-dir:{scorer}", "scorer.pretrained=", "filter.select=[keep=1,by=clip_gain]"]
    assert filter_run.main([*common, "teacher=pairs", *judged]) == 0
    run_folder = tmp_path / "runs" / "day-to-night" / "pairs"
    short = [*tiny_training(run_folder)[2:], "distill.images=8", "distill.save_every_images=8"]
    assert train.main([*common, "teacher=pairs", *short]) == 0
    assert list((run_folder / "train").rglob("*.safetensors"))
