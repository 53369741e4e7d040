"""filter/run.py from pairs to selection.json: resuming, rescoring, wrong inputs; with a tiny
random scorer.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import filter.run as stage
import models.segmenter
from configs.errors import UserError
from configs.files import exclusive
from configs.loader import load
from configs.schema import Config
from filter.score_table import SCORES, is_current, read_scores, write_scores
from filter.selection import Criteria, select
from generate.shards import Pair, manifest_path, read_pairs, write_shard
from models.clip_scorer import ClipScorer
from tests.helpers import laplacian_variance, make_pairs, make_scorer_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    scorer = make_scorer_folder(tmp_path / "scorer")
    make_pairs(tmp_path / "runs/tree2winter/miniature/pairs")
    return [
        f"runs_dir={tmp_path / 'runs'}",
        f"scorer.model=local-dir:{scorer}",
        "device=cpu",
        "filter.batch=2",
        "task.clip_gain=0.0",
    ]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "runs/tree2winter/miniature"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that are scored from now on."""
    names: list[str] = []
    original = stage.read_ahead

    def read_ahead(shards: Iterable[Path], pool: Executor) -> Iterator[tuple[Path, Iterator[Pair]]]:
        for shard, pairs in original(shards, pool):
            names.append(shard.stem)
            yield shard, pairs

    monkeypatch.setattr(stage, "read_ahead", read_ahead)
    return names


def test_end_to_end(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.main(arguments) == 0
    config = load(arguments)
    rows = read_scores(config)
    assert [row["key"] for row in rows] == [f"s0_{n}" for n in range(5)] + [f"s1_{n}" for n in range(3)]
    scorer = ClipScorer(config.scorer)
    for row, pair in zip(rows, read_pairs(run / "pairs"), strict=True):
        # One at a time gives what batches of two gave.
        features = scorer.image_features([pair.images["input"], pair.images["edit"]])
        cosines = features @ scorer.text_features([config.task.source, config.task.target]).T
        assert row["sim_edit_source"] == pytest.approx(float(cosines[1, 0]), abs=1e-5)
        assert row["clip_gain"] == pytest.approx(float(cosines[1, 1] - cosines[0, 1]), abs=1e-5)
        assert row["overlap_iou"] is None and row["area_input"] is None  # the task names no foreground
        assert row["flags"] == []
        assert row["sharpness_input"] == pytest.approx(laplacian_variance(pair.images["input"]))
    selection = json.loads((run / "selection.json").read_text())
    assert (selection["kept"], selection["dropped"]) == select(rows, Criteria({"clip_gain": 0.0}))
    assert selection["total"] == 8 and selection["yield"] == len(selection["kept"]) / 8
    assert selection["thresholds"] == {"clip_gain": 0, "overlap": None}
    printed = capsys.readouterr().out
    assert f"kept {len(selection['kept'])} of 8 pairs" in printed
    assert "clip_directional" in printed and "overlap_iou" not in printed


def test_a_score_file_says_what_made_it(arguments: list[str], run: Path) -> None:
    assert stage.main(arguments) == 0
    metadata = json.loads(pyarrow.parquet.read_schema(run / "scores/000000.parquet").metadata[b"zero2gan"])
    made_with = metadata["made_with"]
    assert (made_with["task.source"], made_with["task.target"]) == ("tree in summer", "tree in winter")
    assert made_with["task.source_noun"] == ""
    assert not any(key.startswith("segmenter") for key in made_with)
    manifest = json.loads(manifest_path(run / "pairs/000000.tar").read_text())
    assert made_with["shard"] == manifest["sha256"]
    assert metadata["versions"]["torch"] == importlib.metadata.version("torch")
    assert "segment-anything" in metadata["versions"]


def test_only_what_changed_is_scored_again(
    arguments: list[str], run: Path, scored: list[str], tmp_path: Path
) -> None:
    def again(*more: str) -> list[str]:
        scored.clear()
        assert stage.main([*arguments, *more]) == 0
        return list(scored)

    assert again() == ["000000", "000001"]
    assert again() == []
    assert again("task.clip_gain=0.5", "scorer.gain_unit=2", "filter.batch=7") == []
    assert again("seed=3", "edit.steps=7", "distill.images=5", "segmenter.min_stability=0.3") == []
    (run / "scores/000001.parquet").unlink()
    assert again() == ["000001"]
    (run / "scores/000000.parquet").write_bytes((run / "scores/000000.parquet").read_bytes()[:-20])  # torn
    assert again() == ["000000"]
    images = {"input": np.zeros((16, 16, 3), np.uint8), "edit": np.ones((16, 16, 3), np.uint8)}
    write_shard(run / "pairs", 1, [Pair("other", images, {})], {})
    assert again() == ["000001"]
    assert again() == []
    assert again("task.target=tree in fall") == ["000000", "000001"]
    assert again() == ["000000", "000001"]  # back again
    assert again("filter.dtype=float32") == ["000000", "000001"]
    assert again() == ["000000", "000001"]
    make_scorer_folder(tmp_path / "scorer", seed=1)  # trained anew under its old name
    assert again() == ["000000", "000001"]


def test_select_alone_loads_no_network(arguments: list[str], run: Path) -> None:
    assert stage.main(arguments) == 0
    code = (
        "import sys, filter.run; assert filter.run.main(sys.argv[1:]) == 0; "
        "networks = {'torch', 'open_clip', 'segment_anything', 'transformers', 'lpips'}; "
        "assert not networks & set(sys.modules), 'a network library was loaded'"
    )

    def selected(*items: str) -> tuple[dict, str]:
        command = [sys.executable, "-c", code, *items]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads((run / "selection.json").read_text()), done.stdout

    selection, printed = selected(*arguments, "task.clip_gain=9")
    assert selection["yield"] == 0 and "that is few" in printed
    advised = printed.split("the change in picture and text: ")[1].splitlines()[0]
    assert advised == f"zero2gan filter {run} --select keep=0.6 by=clip_directional"
    selection, printed = selected(*shlex.split(advised)[2:])  # as it is printed
    assert selection["yield"] == pytest.approx(0.6, abs=0.1) and "that is few" not in printed
    shutil.rmtree(run.parent.parent.parent / "scorer")  # scores may be copied to a machine that has no models
    items = ["--select", "keep=0.5", "by=image_image"]
    more = ["clip_gain=-2", "--select", "lpips_input_edit=0:"]
    selection, printed = selected(*items, *arguments, *more)
    assert selection["yield"] == 0.5 and selection["keep"]["by"] == "image_image"
    assert "scores of 2 shards were made with other models" in printed
    best = sorted(read_scores(load(arguments)), key=lambda row: -row["image_image"])[:4]
    assert sorted(selection["kept"]) == sorted(row["key"] for row in best)
    assert selection["thresholds"] == {"clip_gain": -2.0, "overlap": None, "lpips_input_edit": 0.0}


def test_a_veto_drops_single_pairs_and_is_written_down(
    arguments: list[str], run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.main(arguments) == 0
    (tmp_path / "veto.txt").write_text("s0_1\ngone\n")
    assert stage.main([*arguments, "--select", "clip_gain=-2", f"veto={tmp_path}/veto.txt"]) == 0
    selection = json.loads((run / "selection.json").read_text())
    assert selection["veto"] == ["s0_1"] and len(selection["kept"]) == 7
    assert "veto.txt names 1 keys that no pair has (gone)" in capsys.readouterr().out
    (tmp_path / "veto.txt").write_text("gone\n")
    assert stage.main([*arguments, "--select", f"veto={tmp_path}/veto.txt"]) == 2
    assert "names no pair of this run" in capsys.readouterr().err
    assert json.loads((run / "selection.json").read_text()) == selection


def test_select_needs_scores_of_these_pairs(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.main([*arguments, "--select", "keep=0.5"]) == 2
    printed = capsys.readouterr()
    assert "000000.parquet is missing or unreadable: zero2gan filter" in printed.err
    assert "note:" not in printed.out
    assert stage.main(arguments) == 0 and stage.main([*arguments, "--select"]) == 0
    file = run / "scores/000000.parquet"
    table = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(table.drop_columns(["flags", "sharpness_ratio"]), file)
    capsys.readouterr()
    assert stage.main([*arguments, "--select"]) == 2
    assert "is an older version's, or of other pairs" in capsys.readouterr().err
    pyarrow.parquet.write_table(table, file)
    assert stage.main([*arguments, "--select", "overlp=0.7"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    # A key with a dot is a configuration key.
    assert stage.main([*arguments, "--select", "clip_gain=0.1", "task.clip_gian=3"]) == 2
    assert "no key 'task.clip_gian'" in capsys.readouterr().err
    picture = np.zeros((16, 16, 3), np.uint8)
    write_shard(run / "pairs", 1, [Pair("other", {"input": picture, "edit": picture}, {})], {})
    assert stage.main([*arguments, "--select", "keep=0.5"]) == 2
    assert "or of other pairs than" in capsys.readouterr().err
    assert stage.main(arguments) == 0
    selection = json.loads((run / "selection.json").read_text())
    assert selection["dropped"]["other"] == "flagged blank"
    assert selection["flags"]["blank"] == selection["flags"]["unchanged"] == 1
    assert "1 blank, 1 unchanged" in capsys.readouterr().out


def test_masks_are_asked_for_only_with_nouns(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Halves:
        """Says that the noun fills the upper half of an input, and none of an edit whose first
        pixel is dark.
        """

        def __init__(self, *_: object):
            pass

        def segment(self, images: list[np.ndarray], noun: str) -> list[np.ndarray]:
            upper = np.arange(16)[:, None] < np.full(16, 8)
            return [upper & (noun == "tree" or image[0, 0, 0] > 127) for image in images]

    monkeypatch.setattr(models.segmenter, "Segmenter", Halves)
    nouns = ["task.source_noun=tree", "task.target_noun=snowy tree"]
    outcome = stage.score_and_select(load([*arguments, *nouns, "task.overlap=0.5", "task.clip_gain=null"]))
    overlaps = {row["key"]: row["overlap_iou"] for row in outcome["rows"]}
    assert set(overlaps.values()) == {None, 1.0}
    assert {row["area_input"] for row in outcome["rows"]} == {0.5}
    assert outcome["kept"] == [key for key, iou in overlaps.items() if iou]
    assert set(outcome["dropped"].values()) == {"no foreground"}
    assert outcome["scored"] == 8


def test_two_processes_share_the_shards(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, scored: list[str], run: Path
) -> None:
    class SecondOfTwo(stage.OneProcess):
        process_index = 1
        num_processes = 2

    monkeypatch.setattr(stage, "processes", SecondOfTwo)
    assert stage.score_and_select(load(arguments)) == {}
    assert scored == ["000001"] and not (run / "selection.json").exists()
    monkeypatch.setattr(stage, "processes", stage.OneProcess)
    assert stage.score_and_select(load(arguments))["scored"] == 5
    assert scored == ["000001", "000000"]


def test_score_file_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "scores/000000.parquet"
    complete = {"key": "a", **{name: float(place + 1) for place, name in enumerate(SCORES)}}
    without_number = {"key": "c", **dict.fromkeys(SCORES, np.float64("nan"))}
    made_with = {"format": 1, "task.source": "é", "segmenter.other_nouns": ["x", "y"]}
    write_scores(path, [complete, {"key": "b", "clip_gain": None}, without_number], made_with)
    table = pyarrow.parquet.read_table(path).to_pylist()
    assert table[0].pop("flags") == []
    assert table[0] == complete
    for row, key in zip(table[1:], "bc", strict=True):
        assert row.pop("flags") == [] and set(row.values()) == {key, None}
    assert is_current(path, dict(reversed(made_with.items())))
    for changed in ({"format": 1}, {**made_with, "seed": 0}, {**made_with, "segmenter.other_nouns": ["x"]}):
        assert not is_current(path, changed)
    assert not is_current(path / "x", made_with)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def config_error(config: Config) -> str:
    with pytest.raises(UserError) as error:
        stage.score_and_select(config)
    return str(error.value)


def test_wrong_inputs_are_named(arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no open_clip model" in config_error(load([*arguments, "scorer.model=local-dir:nowhere"]))
    assert "name both or neither" in config_error(load([*arguments, "task.source_noun=tree"]))
    assert "overlap_iou needs masks" in config_error(load([*arguments, "task.overlap=0.5"]))
    with exclusive(run / "scores", "process-0"):
        assert "another process writes here" in config_error(load(arguments))
    shard = run / "pairs/000000.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    assert "000000.tar differs from its manifest" in config_error(load(arguments))
    shutil.rmtree(run / "pairs")
    assert stage.main(arguments) == 2 and "no finished pair shards" in capsys.readouterr().err
    with pytest.raises(UserError, match="no finished pair shards"):
        read_scores(load(arguments))


def test_dry_run_counts_and_writes_nothing(
    arguments: list[str], run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.main([*arguments, "--dry-run"]) == 0
    assert "pairs to score: 8" in capsys.readouterr().out and not (run / "scores").exists()


def test_a_plan_says_that_the_checkpoint_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run = ["task=cat2dog", f"runs_dir={tmp_path}/runs", "segmenter.model=vit_h"]
    make_pairs(tmp_path / "runs" / "cat2dog" / "miniature" / "pairs")
    assert stage.main([*run, "--dry-run"]) == 0
    assert (
        f"segmenter: vit_h, but there is no {tmp_path}/.cache/zero2gan/sam_vit_h_4b8939.pth"
        in capsys.readouterr().out
    )


def test_small_negative_numbers_have_room(tmp_path, capsys):
    rows = [dict.fromkeys(stage.SCORES, -0.00012345)]
    outcome = {"rows": rows, "flags": {}, "kept": [0], "total": 1, "yield": 1.0}
    stage.print_summary(outcome | {"criteria": "", "page": ""})
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("clip_gain"))
    assert line.split()[1:] == ["1", *["-0.0001234"] * 4] or line.split()[1:] == ["1", *["-0.0001235"] * 4]
