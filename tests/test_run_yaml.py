"""A run remembers its keys: later stages of `zero2gan` need its folder alone, and forget nothing."""

import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import yaml

from configs.errors import UserError
from configs.loader import RUN_FILE, load
from configs.runs import command, remember, run_dir, selected_keys
from scripts import zero2gan

EVERYTHING = ("task", "teacher", "generate", "filter", "distill")


@pytest.fixture
def run(tmp_path):
    """A run's folder that remembers some keys."""
    config = load(["task=tree2fall", f"runs_dir={tmp_path}", "generate.pairs=7", "distill.images=99"])
    remember(config, EVERYTHING)
    return run_dir(config)


def test_a_run_gives_back_the_whole_configuration(run, tmp_path):
    asked = load(["task=tree2fall", f"runs_dir={tmp_path}", "generate.pairs=7", "distill.images=99"])
    for argument in (f"run={run}", str(run)):
        config = load([argument])
        assert run_dir(config) == run and config.runs_dir == str(tmp_path)
        config.run = ""
        assert config == asked


def test_the_command_line_overrides_what_a_run_remembers(run):
    config = load([str(run), "distill.images=5", "generator=comodgan_lite"])
    assert (config.distill.images, config.generate.pairs, config.generator.width < 1) == (5, 7, True)


def test_a_stage_writes_down_its_own_keys_alone(run, tmp_path):
    """So a stage that was given fewer keys than the one before forgets nothing."""
    config = load(["task=tree2fall", f"runs_dir={tmp_path}", "filter.batch=3", "distill.images=8"])
    remember(config, ("filter", "task.clip_gain"))
    again = load([str(run)])
    assert (again.filter.batch, again.generate.pairs, again.distill.images) == (3, 7, 99)
    remember(load([str(run), "filter.select=[]", "direction.files={}"]), EVERYTHING)
    assert load([str(run)]).filter.select == []


def test_a_list_and_a_dictionary_take_the_place_of_those_before(run):
    remember(load([str(run), "filter.select=[keep=0.6,by=clip_gain]", "task.swap={a: b}"]), EVERYTHING)
    assert load([str(run)]).filter.select == ["keep=0.6", "by=clip_gain"]
    remember(load([str(run), "filter.select=[keep=0.5]"]), EVERYTHING)
    assert load([str(run)]).filter.select == ["keep=0.5"]


@pytest.mark.parametrize("content", [b"", b"- 1", b"a: [", b"\xff\xfe", b"12"])
def test_a_damaged_memory_is_written_anew(run, tmp_path, content):
    config = load(["task=tree2fall", f"runs_dir={tmp_path}", "filter.batch=3"])
    (run / RUN_FILE).write_bytes(content)
    remember(config, ("filter",))
    assert load([str(run)]).filter.batch == 3 and load([str(run)]).task == config.task


def test_a_run_that_was_moved_is_where_it_is_now(run, tmp_path):
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    config = load([f"run={moved}"])
    assert run_dir(config) == moved and config.runs_dir == str(moved)
    assert run_dir(load([f"run={moved}", f"runs_dir={tmp_path}/new"])) == tmp_path / "new/tree2fall/miniature"


@pytest.mark.parametrize(
    ("content", "argument", "says"),
    [
        (None, "", "has no run.yaml"),
        ("a: [", "", "cannot be read"),
        ("- 1", "", "is no configuration"),
        ("generat: {pairs: 1}", "", "did you mean generate"),
        ("", "task=oak2pine", "the run remembers its own"),
    ],
)
def test_what_is_no_run_is_refused_with_what_to_do(tmp_path, content, argument, says):
    if content is not None:
        (tmp_path / RUN_FILE).write_text(content)
    with pytest.raises(UserError, match=says):
        load([str(tmp_path), *filter(None, [argument])])


def test_a_task_of_ones_own_is_a_file(tmp_path):
    file = tmp_path / "Blossom.yaml"
    file.write_text(yaml.safe_dump({"task": {"source": "tree", "target": "cherry blossom tree"}}))
    config = load([f"task={file}", f"runs_dir={tmp_path}"])
    assert (config.task.target, str(run_dir(config))) == (
        "cherry blossom tree",
        f"{tmp_path}/blossom/miniature",
    )
    file.write_text("nothing")
    with pytest.raises(UserError, match="holds no keys"):
        load([f"task={file}"])
    with pytest.raises(UserError, match="cannot be read"):
        load(["task=./none.yaml"])


def test_a_printed_command_can_be_typed(tmp_path):
    run = tmp_path / "with a space"
    (run / "x").mkdir(parents=True)
    text = command("filter", run, "--select", "keep=0.5")
    done = subprocess.run(
        ["bash", "-c", text.replace("zero2gan", "printf '%s\\n'", 1)], capture_output=True, text=True
    )
    assert done.stdout.splitlines() == ["filter", str(run), "--select", "keep=0.5"]
    with pytest.raises(UserError, match="zero2gan filter"):
        selected_keys(run)


@pytest.mark.parametrize("stage", zero2gan.STAGES)
def test_every_stage_helps(stage, capsys):
    argparse_ends = pytest.raises(SystemExit) if stage == "translate" else nullcontext()
    with argparse_ends:
        assert zero2gan.main([stage, "--help"]) == 0
    assert f"zero2gan {stage}" in capsys.readouterr().out


def test_the_command_alone_lists_its_stages_and_names_the_near_one(capsys):
    assert zero2gan.main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in zero2gan.STAGES)
    assert zero2gan.main(["fliter"]) == 2
    assert "did you mean filter?" in capsys.readouterr().err


def test_the_command_is_installed():
    script = Path(sys.executable).with_name("zero2gan")
    done = subprocess.run([script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "stages:" in done.stdout


def test_help_shows_what_is_changed_first_and_all_of_it_on_request(capsys):
    for stage in ("generate", "filter", "train", "export", "evaluate"):
        zero2gan.main([stage, "--help"])
        first = capsys.readouterr().out.partition("\nkeys:")[2].strip().splitlines()
        zero2gan.main([stage, "--help", "all"])
        every = capsys.readouterr().out.partition("\nkeys:")[2].strip().splitlines()
        assert len(first) <= 16 and first[-1].endswith(f"{len(every) - len(first) + 1} more: --help all")


def test_dry_run_prints_the_plan_and_the_configuration_on_request(tmp_path, capsys):
    assert zero2gan.main(["generate", f"runs_dir={tmp_path}", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "pairs: 48" in plan and "time for the rest" not in plan and "inversion:" not in plan
    assert zero2gan.main(["generate", f"runs_dir={tmp_path}", "--dry-run", "--config"]) == 0
    text = capsys.readouterr().out.partition("\n\n")[2]
    assert yaml.safe_load(text)["generate"]["pairs"] == 48
    assert not list(tmp_path.iterdir())
