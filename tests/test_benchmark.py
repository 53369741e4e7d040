"""scripts/benchmark.py end to end at a tiny scale; how fast anything is, is no matter for a test."""

import json

import pytest

from scripts import benchmark


def test_generate_prints_and_writes_the_same_table(tiny_run, tmp_path, capsys):
    arguments = ["generate", *tiny_run, "benchmark.pairs=2", "generate.batch=2", f"json={tmp_path}/found.json"]
    assert benchmark.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    printed = capsys.readouterr().out
    assert found["rows"]["plain loop, one at a time"]["ratio"] == 1 and found["ratio"] > 0
    for name, row in found["rows"].items():
        assert f"| {name} | {row['seconds']:.3f} |" in printed
        assert row["seconds"] > 0 and row["memory"] > 0


def test_the_arithmetic_grows_with_the_steps(tiny_teacher):
    """One, two and four steps counted whole."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from configs.loader import load
    from generate.directions import EditDirection
    from generate.editors import Editor

    image = torch.zeros(1, 3, 32, 32)
    editor = Editor(tiny_teacher, EditDirection(torch.zeros(1, 32, 32), "", ""), load(["edit.steps=4"]))
    with FlopCounterMode(display=False) as counter:
        editor(image, [benchmark.CAPTION], ["0"], True)
    assert benchmark._arithmetic(editor, image, 4) == pytest.approx(counter.get_total_flops())
    assert len(editor.schedule.timesteps) == 4


def test_an_unknown_benchmark_or_architecture(tiny_run, capsys):
    assert benchmark.main(["nothing"]) == 2 and "There are: generate" in capsys.readouterr().err
    assert benchmark.main(["generate", *tiny_run, "benchmark.architecture=sd9"]) == 2
    assert "sd14" in capsys.readouterr().err
    assert benchmark.main(["--help"]) == 0
