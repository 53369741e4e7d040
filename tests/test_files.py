"""configs/files.py: a failed command leaves no folder behind, and takes nothing away that was there."""

import pytest

from configs.errors import UserError
from configs.files import exclusive


def test_a_block_that_fails_leaves_no_new_folder(tmp_path):
    with pytest.raises(UserError, match="no pairs"), exclusive(tmp_path / "a" / "b", "train"):
        raise UserError("no pairs")
    assert not list(tmp_path.iterdir())


def test_what_it_wrote_stays_and_so_does_what_was_there(tmp_path):
    with pytest.raises(KeyboardInterrupt), exclusive(tmp_path / "a" / "b", "train"):
        (tmp_path / "a" / "kept").touch()
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["kept"]
    with pytest.raises(UserError, match="again"), exclusive(tmp_path / "a", "train"):
        raise UserError("again")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"kept", ".train.lock"}


def test_a_second_writer_is_refused_and_the_first_keeps_its_lock(tmp_path):
    folder = tmp_path / "run"
    with exclusive(folder, "train"):
        with pytest.raises(UserError, match="another process writes here"), exclusive(folder, "train"):
            pass
        with pytest.raises(UserError, match="another process"), exclusive(folder, "train"):
            pass
