"""`zero2gan verify` finds a flipped byte in every kind of file of a run; `doctor` what is missing."""

import pytest

from configs.files import fingerprint, write_json
from scripts import doctor, verify
from tests.helpers import make_selected_pairs


@pytest.fixture
def run(tmp_path):
    """A run's folder with pairs and an exported file; the arguments that name it."""
    folder = tmp_path / "tree2winter" / "miniature"
    make_selected_pairs(folder)
    export = folder / "export"
    export.mkdir()
    (export / "generator.onnx").write_bytes(b"weights")
    write_json(export / "check.json", {"formats": {"generator.onnx": fingerprint(export / "generator.onnx")}})
    return folder, [f"runs_dir={tmp_path}"]


def flip(path, place=-1):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def test_an_undamaged_run_passes(run, capsys):
    assert verify.main(run[1]) == 0
    printed = capsys.readouterr().out
    assert "exported generators: 1 of 1 files" in printed and "pairs: " in printed


@pytest.mark.parametrize(
    ("name", "advice"),
    [("pairs/000000.tar", "zero2gan generate"), ("export/generator.onnx", "zero2gan export")],
)
def test_a_flipped_bit_is_named_with_what_to_do(run, name, advice, capsys):
    flip(run[0] / name)
    assert verify.main(run[1]) == 2
    printed = capsys.readouterr()
    assert name in printed.out and advice in printed.out and "1 files of" in printed.err


def test_damaged_scores_and_hashes_are_named(run, capsys):
    scores = run[0] / "scores"
    scores.mkdir()
    (scores / "000000.parquet").write_bytes(b"PAR1 cut")
    assert verify.main(run[1]) == 2 and "000000.parquet" in capsys.readouterr().out
    (run[0] / "export" / "check.json").write_text("{")
    assert verify.main(run[1]) == 2 and "check.json" in capsys.readouterr().err


def test_nothing_to_check_is_an_error(tmp_path, capsys):
    assert verify.main([f"runs_dir={tmp_path}"]) == 2
    assert "holds nothing to check" in capsys.readouterr().err


def test_doctor_tells_what_is_there_and_what_is_missing(tmp_path, capsys, monkeypatch):
    assert doctor.main([f"runs_dir={tmp_path}"]) == 0
    assert "nothing is missing" in capsys.readouterr().out
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(
        doctor, "requires", lambda name: ["numpy>=999", "no-such-package", "x; extra == 'dev'"]
    )
    assert doctor.main([f"runs_dir={tmp_path}"]) == 2
    printed = capsys.readouterr()
    lines = [line for line in printed.out.splitlines() if line.startswith("MISSING")]
    assert len(lines) == 2 and "numpy>=999" in lines[0] and "no-such-package" in lines[1]
    assert printed.err.count("\n") == 1
