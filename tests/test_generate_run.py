"""generate/run.py through its command line, on a teacher that takes a second."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from configs.errors import UserError
from configs.loader import known_keys, load
from configs.runs import changes, pairs_dir, settings_of
from generate import pairs, run
from generate.directions import edit_direction
from generate.editors import swap_words
from generate.shards import read_pairs


def folder(arguments):
    return pairs_dir(load(arguments))


def contents(path: Path):
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".tar", ".json")}


def test_interrupted_and_resumed_equals_uninterrupted(tiny_run, capsys):
    assert run.main(tiny_run) == 0
    pairs = folder(tiny_run)
    whole = contents(pairs)
    assert sorted(whole) == [
        "000000.json",
        "000000.tar",
        "000001.json",
        "000001.tar",
        "000002.json",
        "000002.tar",
        "made_with.json",
    ]
    (pairs / "000001.json").unlink()  # killed between the tar and its manifest
    (pairs / "000002.tar").unlink()
    (pairs / ".000002.tar.77.tmp").write_bytes(b"torn")
    assert run.main(tiny_run) == 0
    assert not list(pairs.glob(".*.tmp"))
    assert "1 of 3 shards already" in capsys.readouterr().out
    assert contents(pairs) == whole


def test_records_say_how_to_make_the_pair_again(tiny_run):
    assert run.main([*tiny_run, "generate.save_latents=true"]) == 0
    pairs = list(read_pairs(folder(tiny_run), ("input", "edit", "reconstruction", "inverted_latent")))
    assert [pair.key for pair in pairs] == [f"scene-{1_000_000 + index}" for index in range(5)]
    for pair in pairs:
        assert (
            set(pair.images) == {"input", "edit", "reconstruction"}
            and pair.arrays["inverted_latent"].dtype == np.float32
        )
        assert set(pair.record) >= {
            "source",
            "caption",
            "caption_from",
            "seed",
            "direction",
            "configuration",
            "noise",
            "versions",
        }


@pytest.mark.parametrize("method", ["pix2pix-zero", "prompt-to-prompt", "sdedit", "A", "B", "C", "D"])
def test_a_pair_does_not_depend_on_the_batch(tiny_run, method):
    edits = []
    for batch in (1, 3):
        arguments = [
            *tiny_run,
            f"edit.method={method}",
            f"generate.batch={batch}",
            f"runs_dir={tiny_run[6][9:]}/{batch}",
            "generate.pairs=3",
        ]
        arguments.append("generate.pairs_per_shard=3")
        assert run.main(arguments) == 0
        edits.append(np.stack([pair.images["edit"] for pair in read_pairs(folder(arguments))]).astype(int))
    assert np.abs(edits[0] - edits[1]).max() <= 1  # an eighth bit may round either way


def test_more_pairs_add_to_what_is_there(tiny_run):
    assert run.main(tiny_run) == 0
    before = [pair.images["edit"].astype(int) for pair in read_pairs(folder(tiny_run))]
    assert run.main([*tiny_run, "generate.pairs=6"]) == 0
    after = [pair.images["edit"] for pair in read_pairs(folder(tiny_run))]
    assert len(after) == 6
    # The last shard was not full and is made again, in a larger batch: an eighth bit may round either way.
    assert max(np.abs(was - now).max() for was, now in zip(before, after, strict=False)) <= 1


def test_another_configuration_is_refused_with_the_difference(tiny_run, capsys):
    assert run.main(tiny_run) == 0
    assert run.main([*tiny_run, "guidance.scale=3"]) == 2
    message = capsys.readouterr().err
    assert "guidance.scale: 5.0 -> 3.0" in message
    assert "force=true" in message


def test_a_mistake_that_made_nothing_does_not_claim_the_folder(tiny_run, capsys):
    for wrong in ("edit.method=p2p", "guidance.until=2"):
        assert run.main([*tiny_run, wrong]) == 2
        assert wrong.split("=")[0] in capsys.readouterr().err
    assert run.main(tiny_run) == 0


def test_photographs_and_unreadable_ones(tiny_run, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(4):
        Image.new("RGB", (50, 40), (index * 60, 90, 30)).save(photos / f"{index}.jpg")
    (photos / "broken.png").write_text("no")
    arguments = [*tiny_run, f"source.images={photos}"]
    assert run.main(arguments) == 2  # one in five is more than source.max_unreadable_share
    assert "broken.png" in capsys.readouterr().err
    assert len(list(read_pairs(folder(arguments)))) == 4  # and yet all the others are there
    assert run.main([*arguments, "source.max_unreadable_share=0.5", "force=true"]) == 0
    assert "1 of 5 images could not be read" in capsys.readouterr().out


def test_files_that_are_no_text_and_folders_that_are_none_are_named(tiny_run, tmp_path, capsys):
    latin = tmp_path / "latin.txt"
    latin.write_bytes("un arbre en été\nun autre été\n".encode("latin-1"))
    for argument in (f"task.source_bank={latin}", f"source.prompts={latin}", f"runs_dir={latin}"):
        assert run.main([*tiny_run, argument]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1 and str(latin) in message


def test_a_damaged_record_of_the_settings_is_named(tiny_run, tmp_path, capsys):
    assert run.main([*tiny_run, "generate.pairs=2"]) == 0
    (record,) = tmp_path.rglob("made_with.json")
    record.write_text("{")
    assert run.main([*tiny_run, "generate.pairs=2"]) == 2
    assert f"{record} is damaged" in capsys.readouterr().err


def test_dry_run_writes_nothing(tiny_run, tmp_path, capsys):
    assert run.main([*tiny_run, "--dry-run", "--config"]) == 0
    printed = capsys.readouterr().out
    assert "shards: 3" in printed and "steps: 3" in printed
    assert not (tmp_path / "runs").exists()


def test_dry_run_refuses_what_the_run_would_refuse(tiny_run, capsys):
    assert run.main([*tiny_run, "generate.pairs=2"]) == 0
    assert run.main([*tiny_run, "generate.pairs=4", "edit.steps=4", "--dry-run"]) == 2
    assert "edit.steps: 3 -> 4" in capsys.readouterr().err
    assert run.main([*tiny_run, "generate.pairs=4", "--dry-run"]) == 0


def test_prompts_are_asked_for_in_their_own_words(tiny_run, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# nothing\n\n")
    arguments = [*tiny_run, f"source.prompts={prompts}", "generate.pairs=1"]
    assert run.main(arguments) == 2
    assert "no prompt in it" in capsys.readouterr().err
    prompts.write_text("a photo of a tree\n")
    assert run.main(arguments) == 0


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("edit.method=magic", "pix2pix-zero"),
        ("edit.steps=0", "edit.steps"),
        ("generate.dtype=int8", "float16"),
        ("teacher.path=/nowhere", "teacher.path=/nowhere"),
        ("task.source_bank=nothing.txt", "tree_summer.txt"),
        ("direction.file=/nowhere.safetensors", "direction.file"),
        ("guidance.negative=maybe", "auto, caption or empty"),
    ],
)
def test_wrong_input_gives_one_line(tiny_run, capsys, argument, message):
    assert run.main([*tiny_run, argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and "Traceback" not in error


def test_the_direction_is_the_difference_of_the_mean_embeddings(tiny_teacher, tiny_run, tmp_path):
    """By hand with transformers' own classes; and the cached file gives the same."""
    config = load([*tiny_run, "direction.strength=1"])
    first = edit_direction(tiny_teacher, config.task, config.direction, tmp_path)
    sentences = {
        "source": ["a photo of a tree in summer", "a green tree", "two trees in summer"],
        "target": ["a photo of a tree in winter", "a snowy tree", "two trees in winter"],
    }
    means = {}
    for name, texts in sentences.items():
        tokens = tiny_teacher.tokenizer(texts, padding="max_length", return_tensors="pt", truncation=True)
        with torch.no_grad():
            means[name] = tiny_teacher.text_encoder(input_ids=tokens.input_ids).last_hidden_state.mean(
                0, keepdim=True
            )
    torch.testing.assert_close(first.value_1TD, means["target"] - means["source"])
    assert "3 + 3 sentences" in first.report
    again = edit_direction(tiny_teacher, config.task, config.direction, tmp_path)
    assert torch.equal(first.value_1TD, again.value_1TD) and first.hash == again.hash
    (cached,) = tmp_path.glob("*.safetensors")
    config.direction.file, config.direction.strength = str(cached), 2.0
    assert torch.equal(
        edit_direction(tiny_teacher, config.task, config.direction, tmp_path).value_1TD, 2 * first.value_1TD
    )


def test_word_swap():
    task = load([]).task
    assert swap_words("a Summer tree in a green meadow", task) == "a winter tree in a snowy meadow"
    assert swap_words("a midsummer dream", task) == "a midsummer dream, tree in winter"


def test_two_processes_make_the_same_shards(tiny_run, tmp_path):
    """torchrun with two CPU processes against one process in this one."""
    assert run.main([*tiny_run, f"runs_dir={tmp_path}/one"]) == 0
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(run.__file__)), *tiny_run, f"runs_dir={tmp_path}/two"]
    root = Path(run.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = (contents(folder([*tiny_run, f"runs_dir={tmp_path}/{name}"])) for name in ("one", "two"))
    assert one == two
    assert done.stdout.count("pairs: 5 wanted") == 1  # the second process knew that it was not the first
    assert len(json.loads(one["000000.json"])["keys"]) == 2


def test_nobody_writes_before_all_have_seen_what_is_missing(tiny_run, monkeypatch):
    """Else a shard that one process finished early would shift the shares, and another would be nobody's."""
    events = []
    state = run.process_group()
    monkeypatch.setattr(run, "process_group", lambda: state)

    def watch(place, name):
        function = getattr(place, name)

        def watched(*arguments):
            events.append(name)
            return function(*arguments)

        monkeypatch.setattr(place, name, watched)

    watch(state, "wait_for_everyone")
    watch(run, "missing_shards")
    watch(pairs, "write_shards")
    assert run.main(tiny_run) == 0
    assert "wait_for_everyone" in events[events.index("missing_shards") : events.index("write_shards")]


def test_a_teacher_trained_anew_or_another_bank_is_another_configuration(
    tiny_run, tiny_teacher_folder, tmp_path
):
    """The same paths with other content: pairs of both must not end in one folder."""
    arguments = [*tiny_run, "generate.pairs=1"]
    assert run.main(arguments) == 0 and run.main(arguments) == 0
    copy = tmp_path / "teacher"
    shutil.copytree(tiny_teacher_folder, copy)
    before = run.made_with(load([*arguments, f"teacher.path={copy}"]))
    weights = next(copy.rglob("unet/*.safetensors"))
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    after = run.made_with(load([*arguments, f"teacher.path={copy}"]))
    assert {key for key in after if after[key] != before[key]} == {"teacher.files"}

    bank = tmp_path / "bank.txt"
    banks = []
    for sentence in ("a tree in snow", "a tree in deep snow"):
        bank.write_text(f"a white tree\n{sentence}\n")
        banks.append(run.made_with(load([*arguments, f"task.target_bank={bank}"])))
    assert {key for key in banks[0] if banks[0][key] != banks[1][key]} == {"direction.made_of"}


def test_ready_directions_in_every_form(tiny_teacher, tiny_run, tmp_path):
    """One difference, or the weighted sum of published .pt embeddings; code in a .pt is refused."""
    config = load([*tiny_run, "direction.strength=1"])
    cat, dog = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.save(cat.half(), tmp_path / "cat.pt")
    torch.save(dog, tmp_path / "dog.pt")
    save_file({"any": dog - cat}, tmp_path / "both.safetensors")

    def direction(**settings):
        wanted = replace(config.direction, **settings)
        return edit_direction(tiny_teacher, config.task, wanted, tmp_path).value_1TD

    published = direction(files={str(tmp_path / "dog.pt"): 1.0, str(tmp_path / "cat.pt"): -1.0})
    assert torch.equal(published, dog - cat.half().float())
    both = {str(tmp_path / "both.safetensors"): 1.0, str(tmp_path / "dog.pt"): -0.25}
    torch.testing.assert_close(direction(files=both, strength=2.0), 2 * (dog - cat) - 0.5 * dog)
    one = str(tmp_path / "both.safetensors")
    assert torch.equal(direction(file=one, strength=2.0), direction(files={one: 1.0}, strength=2.0))

    torch.save(torch.nn.Linear(1, 1), tmp_path / "code.pt")
    code = str(tmp_path / "code.pt")
    for settings in ({"file": code}, {"files": {code: 1.0}}):
        with pytest.raises(UserError, match=rf"{next(iter(settings))}=.*code.pt is not"):
            direction(**settings)
    with pytest.raises(UserError, match="direction.file and direction.files are two directions"):
        direction(file=one, files=both)


def test_names_with_dots_are_weighted_on_the_command_line(tiny_run):
    """As the files of the reference code are called."""
    argument = "direction.files={dog.pt: 1, ./published files/cat.pt: -1.5}"
    assert load([*tiny_run, argument]).direction.files == {"dog.pt": 1.0, "./published files/cat.pt": -1.5}
    for wrong in ("direction.files={dog.pt: much}", "direction.files=dog.pt"):
        with pytest.raises(UserError, match="direction.files"):
            load([*tiny_run, wrong])


def test_pairs_by_published_files_and_their_content_counts(tiny_run, tmp_path, capsys):
    for number, name in enumerate(("cat", "dog")):
        generator = torch.Generator().manual_seed(number)
        torch.save(torch.randn(1, 32, 32, generator=generator), tmp_path / f"{name}.pt")
    files = f"direction.files={{{tmp_path}/dog.pt: 1, {tmp_path}/cat.pt: -1}}"
    assert run.main([*tiny_run, "generate.pairs=1", files]) == 0
    assert f"direction 1 x {tmp_path}/dog.pt + -1 x {tmp_path}/cat.pt, norm" in capsys.readouterr().out
    before = run.made_with(load([*tiny_run, files]))
    torch.save(torch.zeros(1, 32, 32), tmp_path / "cat.pt")
    after = run.made_with(load([*tiny_run, files]))
    assert changes(before, after)[0].startswith("direction.made_of: ") and len(changes(before, after)) == 1


@pytest.mark.parametrize(
    ("argument", "counts"),
    [
        ("direction.strength=3", True),
        ("edit.steps=9", True),
        ("guidance.until=0.7", True),
        ("inversion.lambda_ac=1", True),
        ("source.first_seed=5", True),
        ("source.retrieve.k=5", True),
        ("task.scene_input={season: winter}", True),
        ("seed=1", True),
        ("generate.dtype=bfloat16", True),
        ("generate.pairs_per_shard=3", True),
        ("generate.pairs=9", False),
        ("generate.batch=9", False),
        ("filter.batch=9", False),
        ("task.overlap=0.5", False),
        ("source.max_unreadable_share=0.5", False),
        ("distill.images=9", False),
        ("device=cpu", False),
    ],
)
def test_what_changes_a_pair_counts(tiny_run, argument, counts):
    key = argument.split("=")[0]
    before = run.made_with(load(tiny_run))
    after = run.made_with(load([*tiny_run, argument]))
    changed = {name for name in after if after[name] != before.get(name)} - {"source.models"}
    assert changed == ({key} if counts else set())


def test_every_key_counts_or_is_free_on_purpose():
    """Whole sections that make pairs count; a key of theirs is free only where the list names it."""
    keys = known_keys()
    settings = settings_of(load([]), run.FREE)
    making = {"task", "teacher", "source", "direction", "inversion", "edit", "guidance", "generate", "seed"}
    assert {key.split(".")[0] for key in settings} == making
    for name in run.FREE:  # none that is no more
        assert any(key == name or key.startswith(f"{name}.") for key in keys), name
    assert {key for key in settings if key.startswith("generate.")} == {
        "generate.dtype",
        "generate.pairs_per_shard",
    }


def test_a_new_word_needs_no_file(tiny_run, tmp_path, capsys):
    """task=custom on one picture: the grammar's sentences, the task's own folder."""
    Image.new("RGB", (40, 32), (10, 120, 30)).save(tmp_path / "tree.png")
    arguments = [argument for argument in tiny_run if not argument.startswith("task")]
    arguments += [
        "task=custom",
        "task.source=tree",
        "task.target=cherry blossom tree",
        f"source.images={tmp_path}/tree.png",
    ]
    arguments += ["direction.sentences=200"]
    assert run.main(arguments) == 0
    (pair,) = read_pairs(tmp_path / "runs" / "tree-to-cherry-blossom-tree" / "miniature" / "pairs")
    assert pair.record["caption"] == "a photo of a tree"
    assert "200 + 200 sentences" in capsys.readouterr().out
