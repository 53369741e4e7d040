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


def test_the_fast_preset_has_no_official_row(tiny_run, tmp_path, capsys):
    arguments = ["generate", *tiny_run, "preset=fast", "benchmark.pairs=2", f"json={tmp_path}/found.json"]
    assert benchmark.main(arguments) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert sorted(name.split(",")[0] for name in found["rows"]) == ["ours", "plain loop"] and "official" not in capsys.readouterr().out


def test_train_writes_what_each_loop_took(tmp_path):
    sizes = ["channel_base=64", "channel_max=8", "z_dim=8", "w_dim=8", "code_dim=16", "mapping_layers=2"]
    settings = [
        "benchmark.side=16",
        "benchmark.steps=1",
        "distill.batch=4",
        "distill.lpips_crop=0",
        *(f"generator.{size}" for size in sizes),
    ]
    assert benchmark.main(["train", *settings, f"json={tmp_path}/found.json"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    plain, ours = (found["rows"][name] for name in sorted(found["rows"], reverse=True))
    assert found["ratio"] == ours["ratio"] == pytest.approx(plain["seconds"] / ours["seconds"])
    assert ours["images_per_s"] == pytest.approx(1 / ours["seconds"]) and 0 <= ours["data_wait_share"] <= 1
    assert found["settings"].startswith("16 x 16, batches of 4")


def test_an_unknown_benchmark_or_architecture(tiny_run, capsys):
    assert benchmark.main(["nothing"]) == 2 and "There are: generate" in capsys.readouterr().err
    assert benchmark.main(["generate", *tiny_run, "benchmark.architecture=sd9"]) == 2
    assert "sd14" in capsys.readouterr().err
    assert benchmark.main(["--help"]) == 0
