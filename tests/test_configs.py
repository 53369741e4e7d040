"""The command line: every task loads, later layers win, and what is wrong is named beside what is right."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

from configs.cli import entry
from configs.errors import UserError
from configs.files import digest
from configs.loader import available, known_keys, load, to_yaml
from configs.removed import REMOVED
from configs.runs import changes, run_dir, settings_of

ROOT = Path(__file__).resolve().parent.parent
ENTRY_POINTS = (
    "generate/run.py",
    "filter/run.py",
    "distill/train.py",
    "distill/export.py",
    "scripts/evaluate.py",
    "scripts/evaluate_filter.py",
    "scripts/compare.py",
    "scripts/benchmark.py",
    "scripts/demo.py",
    "scripts/report.py",
    "scripts/verify.py",
    "scripts/doctor.py",
    "scripts/studio.py",
)
FIRST_WORD = {  # that some of them want
    "scripts/evaluate.py": ["table1"],
    "scripts/compare.py": ["losses"],
    "scripts/benchmark.py": ["filter"],
}


@pytest.mark.parametrize("task", available("task"))
def test_every_task_is_complete(task):
    from generate.banks import task_banks
    from generate.editors import swap_words

    words = ["task.source=tree", "task.target=cherry blossom tree"] if task == "custom" else []
    config = load([f"task={task}", *words])
    sources, targets = task_banks(config.task, config.direction)
    assert len(sources) == len(targets) >= 100 and len(set(sources)) > 100 and not set(sources) & set(targets)
    assert bool(config.task.overlap) == bool(config.task.source_noun) == bool(config.task.target_noun)
    caption = config.task.caption.format(source=config.task.source)
    assert swap_words(caption, config.task) != caption


@pytest.mark.parametrize(
    "text", ["a cat: asleep", "a cat, a dog", "[a] {b}", "yes", "12", "null", "", 'it\'s "x" # y']
)
def test_text_is_taken_as_it_is(text):
    assert load([f"source.caption={text}"]).source.caption == text


@pytest.mark.parametrize("text", ["page", "page,fp16", "[page,fp16]", " page , fp16", "[]"])
def test_a_list_of_words_needs_no_brackets(text):
    expected = [word.strip() for word in text.strip("[]").split(",") if word.strip()]
    assert load([f"export.formats={text}"]).export.formats == expected


def test_a_threshold_on_the_line_takes_the_place_of_a_tasks_selection():
    words = ["task=custom", "task.source=a", "task.target=b"]
    assert load(words).filter.select == ["keep=0.6", "by=clip_directional"]
    assert load([*words, "task.clip_gain=0.2"]).filter.select == []
    assert load([*words, "task.overlap=0.2", "filter.select=keep=0.5"]).filter.select == ["keep=0.5"]


def test_whoever_reads_the_list_may_stop(tmp_path):
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{sys.executable} generate/run.py --list | head -c 1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("t", "", 0)


def test_work_that_nobody_reads_of_any_more_is_not_done():
    """141, as a shell has it of a process that a closed pipe ended; a list cut short is no failure."""
    code = (
        "import sys; from configs.cli import entry\n"
        "sys.exit(entry('x', (), lambda config: print('x' * 100_000), lambda config: {}, sys.argv[1:]))"
    )
    for arguments, expected in (("", 141), ("--help", 0), ("--dry-run", 0)):
        shell = f'{sys.executable} -c "$CODE" {arguments} | true; exit ${{PIPESTATUS[0]}}'
        own = os.environ | {"CODE": code}
        done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=own, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (expected, ""), arguments


def test_a_custom_task_is_two_words():
    config = load(["task=custom", "task.source=tree", "task.target=Cherry blossom tree"])
    assert str(run_dir(config)) == "runs/tree-to-cherry-blossom-tree/miniature"
    assert load(["task=custom", "task.source=a", "task.target=b", "task.name=mine"]).task.name == "mine"
    with pytest.raises(UserError, match=r"set task.source= and task.target="):
        load(["task=custom", "task.source=tree"])


def test_the_grammar_differs_by_the_words_alone():
    from generate.banks import sentences

    cats, owls = sentences("cat", 1000), sentences("owl", 1000)
    assert len(set(cats)) == 1000 and cats == sentences("cat", 1000)
    assert [cat.replace("cat", "owl").replace("a owl", "an owl") for cat in cats] == owls
    openings = {cat.split(" cat")[0] for cat in cats}
    assert len(openings) > 50  # not one template
    assert all("two dogs" in text and "a two" not in text for text in sentences("two dogs", 50))


def test_a_word_to_swap_may_have_capitals():
    from generate.editors import swap_words

    task = load(["task.swap={Eiffel: Big Ben}"]).task
    assert swap_words("the Eiffel tower, an eiffel tower", task) == "the Big Ben tower, an Big Ben tower"


@pytest.mark.parametrize("teacher", available("teacher"))
def test_every_teacher_loads(teacher):
    own = [] if teacher != "diffusers" else ["teacher.path=models/miniature/teacher"]
    config = load([f"teacher={teacher}", *own])
    assert config.teacher.name == teacher and config.teacher.resolution == {"sd14": 512}.get(teacher, 128)


def test_a_folder_that_says_no_resolution_is_refused():
    with pytest.raises(UserError, match="set teacher.resolution="):
        load(["teacher=diffusers", "teacher.path=x"])
    assert load(["teacher=diffusers", "teacher.path=x", "teacher.resolution=256"]).teacher.resolution == 256


@pytest.mark.parametrize(
    "asked",
    [
        ["edit.method=pipeline"],
        ["edit.pipeline=some/editor"],
        ["teacher=pipeline"],
        ["preset=paper", "edit.pipeline=some/editor"],
    ],
)
def test_an_editor_of_its_own_stands_in_the_place_of_the_teacher(asked):
    config = load(asked)
    assert config.edit.method == "pipeline" and str(run_dir(config)) == "runs/tree2winter/pipeline"
    assert config.teacher.resolution == 512 and not config.teacher.path
    assert config.generate.batch == 0 and load([*asked, "generate.batch=4"]).generate.batch == 4
    assert config.scorer.model == "ViT-L-14"  # that of photographs, not the miniature's
    assert load([*asked, "teacher.resolution=256"]).teacher.resolution == 256


def test_a_world_may_be_named_beside_an_editor_of_its_own():
    config = load(["teacher=miniature", "source.pairs=here"])
    assert config.edit.method == "pairs" and str(run_dir(config)) == "runs/tree2winter/miniature"
    assert config.teacher.resolution == 128 and "miniature" in config.scorer.model
    assert str(run_dir(load(["source.pairs=here"]))) == str(run_dir(load(["teacher=pairs"])))


@pytest.mark.parametrize(
    "wrong",
    [
        ["source.pairs=here", "edit.method=pix2pix-zero"],
        ["source.pairs=here", "edit.pipeline=some/editor"],
        ["edit.pipeline=some/editor", "edit.method=sdedit"],
    ],
)
def test_two_ways_to_the_pairs_are_refused(wrong):
    with pytest.raises(UserError, match="leave out one of them"):
        load(wrong)


def test_later_layers_win():
    assert load([]).generate.pairs == 48
    paper = load(["preset=paper"])
    assert (paper.teacher.name, paper.teacher.resolution) == ("sd14", 512)
    assert (paper.generate.pairs, paper.edit.steps) == (15_000, 100)
    assert load(["generate.pairs=7", "task.clip_gain=null"]).generate.pairs == 7
    assert load(["distill.init="]).distill.init == ""
    fast = load(["preset=fast"])
    assert (fast.teacher.name, fast.edit.steps, fast.guidance.until) == ("miniature", 20, 0.5)
    assert (fast.guidance.every, fast.guidance.scale_until) == (2, 0.3)
    paper_fast = load(["preset=paper,fast"])
    assert (paper_fast.teacher.name, paper_fast.edit.steps, paper_fast.guidance.until) == ("sd14", 100, 0.5)
    assert str(run_dir(load(["runs_dir=/r", "task=tree2fall"]))) == "/r/tree2fall/miniature"


def test_the_small_generator_is_relative_to_the_presets_and_starts_anew():
    for preset, base in (("miniature", 1536), ("paper", 16_384)):
        lite = load(["generator=comodgan_lite", f"preset={preset}"])
        assert lite.generator.separable and lite.generator.width < 0.5 and lite.generator.channel_base == base
        assert lite.distill.init == "" and lite.distill.lr == 0.001
    assert load(["generator=comodgan"]) == load([]) and load([]).distill.init
    assert not load(["preset=paper"]).generator.separable
    assert load(["generator=comodgan_lite", "generator.width=1"]).generator.width == 1


def test_the_written_configuration_says_everything():
    import yaml

    written = yaml.safe_load(to_yaml(load(["inversion.lambda_kl=3"])))
    assert written["inversion"]["lambda_kl"] == 3.0
    for key in known_keys():
        value = written
        for part in key.split("."):
            value = value[part]


def test_the_digest_follows_the_content():
    task = load([]).task
    assert digest(task) == digest(load([]).task) != digest(replace(task, target="x"))


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("task=tree2wintr", "did you mean tree2winter"),
        ("teacher=sd41", "There are:"),
        ("preset=papr", "paper"),
        ("generator=comodgan_light", "did you mean comodgan_lite"),
        ("guidance.amunt=1", "did you mean guidance.amount"),
        ("generate.pairs=many", "generate.pairs"),
        ("source.caption.x=1", "source.caption"),
        ("edit", "neither key=value"),
        ("teacher=diffusers", "teacher=diffusers: set teacher.path="),
        ("task.swap={a: [}", "is no value"),
        ("task.swap=[a]", "'task.swap=[a]': "),
        ("preset=paper,fats", "did you mean fast"),
    ],
)
def test_wrong_arguments_name_the_right_ones(argument, says):
    with pytest.raises(UserError) as error:
        load([argument])
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("edit.steps=0", "edit.steps=0: it is 1 or more"),
        ("edit.method=magic", "it is sdedit, prompt-to-prompt, A, B, C, D, pix2pix-zero, pipeline or pairs"),
        ("augment.crop=0", "augment.crop=0.0: it is above 0, to 1"),
        ("generator.dropout=1", "it is from 0 to below 1"),
        ("guidance.until=1.5", "it is from 0 to 1"),
        ("scorer.gain_unit=0", "it is above 0"),
        ("inversion.pool_gain=-1", "it is above 0"),
        ("segmenter.min_predicted_iou=5", "it is from 0 to 1"),
        ("segmenter.min_stability=-1", "it is from 0 to 1"),
        ("task.overlap=2", "it is from 0 to 1"),
        ("source.retrieve.aesthetics=-1", "it is 0 or more"),
        ("seed=-1", "it is from 0 to"),
        ("seed=99999999999999999999", "it is from 0 to"),
        ("export.formats=[float,int4]", "it is float, fp16, int8, pt2 or page"),
        ("export.formats=float,int4", "it is float, fp16, int8, pt2 or page"),
        ("generate.pairs=-3", "it is 1 or more"),
        ("generate.pairs_per_shard=0", "it is 1 or more"),
        ("guidance.scale=nan", "guidance.scale=nan: it is a finite number"),
        ("direction.strength=-inf", "it is a finite number"),
        ("direction.files={d.pt: nan}", "it is a finite number"),
        ("direction.files={d.pt:1}", "a space follows the colon"),
        ("distill.lr=nan", "it is 0 or more"),
    ],
)
def test_a_value_beyond_its_limits_is_refused_at_once(argument, says):
    with pytest.raises(UserError) as error:
        load([argument])
    assert says in str(error.value)


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_says_what_took_its_place(key):
    with pytest.raises(UserError, match=f"there is no {key}= any more: .") as error:
        load([f"{key}=1"])
    for name in re.findall(r"([a-z]+\.[a-z_]+)=", REMOVED[key]):  # what it sends the user to is there
        assert name in known_keys(), str(error.value)
    for path in re.findall(r"[a-z]+/[a-z_/]+\.(?:py|md)", REMOVED[key]):
        assert (ROOT / path).is_file(), str(error.value)


# Numbers of which every finite value means something.
UNLIMITED = {"task.clip_gain", "guidance.scale", "direction.strength"}


def test_every_number_has_limits():
    unlimited = set()
    for key, item in known_keys().items():
        if item.type in ("int", "float", "float | None") and not str(item.metadata["limits"]):
            unlimited.add(key)
    assert unlimited == UNLIMITED


def test_keys_are_few_and_none_came_back():
    assert len(known_keys()) <= 129
    assert not known_keys().keys() & REMOVED.keys()


def test_help_tells_the_limits(capsys):
    assert entry("doc", ("guidance",), lambda config: None, lambda config: {}, ["--help", "all"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "guidance.until=" in line]
    assert line.endswith("(from 0 to 1)")


def test_every_key_counts_unless_it_is_free():
    before = settings_of(load([]), free=("task.overlap", "filter"))
    assert (
        changes(before, settings_of(load(["filter.batch=3", "task.overlap=0.5"]), ("task.overlap", "filter")))
        == []
    )
    after = settings_of(load(["edit.steps=7", "source.retrieve.k=2"]), ("task.overlap", "filter"))
    assert changes(before, after) == ["edit.steps: 20 -> 7", "source.retrieve.k: 0 -> 2"]
    assert before.keys() == {
        key for key in known_keys() if key != "task.overlap" and not key.startswith("filter.")
    }
    assert changes({"a": 1}, {}) == ["a: 1 -> None"]


def test_errors_end_with_2_and_one_line(capsys):
    assert entry("doc", (), lambda config: None, lambda config: {}, ["nonsense=1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "pairs"),
    [([], 48), (["preset=paper"], 15_000), (["generate.pairs=7"], 7), (["nonsense=1"], 48)],
)
def test_help_shows_the_values_that_hold(capsys, arguments, pairs):
    assert entry("doc", ("generate",), lambda config: None, lambda config: {}, [*arguments, "--help"]) == 0
    assert f"  generate.pairs={pairs} " in capsys.readouterr().out


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_every_entry_point_refuses_a_device_that_is_not_here(path, monkeypatch, capsys, tmp_path):
    """Also one that computes on a CPU whatever the device, and where only the plan is asked for."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    main = import_module(path.removesuffix(".py").replace("/", ".")).main
    first = FIRST_WORD.get(path, [])
    for device, says in {
        "cuda": "PyTorch sees no GPU here",
        "gpu": "it is auto, cpu, cuda or cuda:N",
    }.items():
        for more in ([], ["--dry-run"]):
            assert main([*first, f"runs_dir={tmp_path}", f"device={device}", *more]) == 2
            error = capsys.readouterr().err
            assert says in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ENTRY_POINTS)
def test_every_entry_point_helps_and_lists(path):
    """Without torch or diffusers: they load inside, so help is instant."""
    probe = (
        "import runpy, sys; sys.argv = ['x', sys.argv[1]]\n"
        f"try: runpy.run_path({str(ROOT / path)!r}, run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert not {'torch', 'diffusers', 'open_clip'} & set(sys.modules), 'heavy import'\n"
        "sys.exit(code)"
    )
    for option, expected in (("--help", "task=NAME"), ("--list", "tree2winter")):
        done = subprocess.run(
            [sys.executable, "-c", probe, option],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
