"""scripts/benchmark.py end to end at a tiny scale; how fast anything is, is no matter for a test."""

import json

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


def test_the_fast_preset_has_no_official_row(tiny_run, tmp_path, capsys):
    arguments = ["generate", *tiny_run, "preset=fast", "benchmark.pairs=2", f"json={tmp_path}/found.json"]
    assert benchmark.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(name.split(",")[0] for name in found["rows"]) == ["ours", "plain loop"] and "official" not in capsys.readouterr().out


def test_an_unknown_benchmark_or_architecture(tiny_run, capsys):
    assert benchmark.main(["nothing"]) == 2 and "There are: generate" in capsys.readouterr().err
    assert benchmark.main(["generate", *tiny_run, "benchmark.architecture=sd9"]) == 2
    assert "sd14" in capsys.readouterr().err
    assert benchmark.main(["--help"]) == 0
