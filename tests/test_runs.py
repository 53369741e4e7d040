"""What a folder was made with: every key counts unless it is listed as free."""

import re
from dataclasses import dataclass, field

import pytest

import distill.train
import filter.score_table
import generate.run
from configs.limits import option
from configs.loader import known_keys, load
from configs.runs import changes, settings_of
from configs.schema import Config
from distill.pairs import PairDataset, find_pairs, selected_keys
from tests.helpers import make_selected_pairs


@dataclass
class Invented:
    """A section that nobody has listed."""

    number: int = option(3, "a key that nobody has listed")


@dataclass
class LargerConfig(Config):
    """The configuration of a later version."""

    invented: Invented = field(default_factory=Invented)


def test_every_key_counts_but_free_ones():
    config = load(["task.swap={a.b: c}", "source.retrieve.k=4"])
    assert set(settings_of(config, ())) == set(known_keys())
    settings = settings_of(config, ("filter", "source.retrieve", "task.name", "dev"))
    left_out = set(known_keys()) - set(settings)
    assert {key for key in left_out if not key.startswith("filter.")} == {
        "source.retrieve.k",
        "source.retrieve.aesthetics",
        "task.name",
    }
    assert not any(key.startswith("filter.") for key in settings)
    assert settings["task.swap"]["a.b"] == "c" and settings["device"] == "auto"


def test_a_new_section_counts_until_it_is_listed():
    config = LargerConfig()
    assert settings_of(config, ("filter",))["invented.number"] == 3
    assert "invented.number" not in settings_of(config, ("filter", "invented"))


def test_changes_name_the_key_and_both_values():
    before = {"b": 1, "a": [1], "gone": "x", "same": {}}
    now = {"b": 2.5, "a": [1, 2], "new": None, "same": {}}
    assert changes(before, now) == ["a: [1] -> [1, 2]", "b: 1 -> 2.5", "gone: x -> None"]
    assert changes(now, now) == []


@pytest.mark.parametrize("stage", ["generate", "filter", "distill"])
def test_no_message_shows_a_hash(stage, tmp_path):
    """Of whatever a stage writes down beside the keys, as the messages of what has changed show it."""
    hashed = {}
    config = load(["task=oak2pine", "segmenter.detector=models/miniature/segmenter"])
    if stage == "generate":
        hashed = generate.run.made_with(config)
    elif stage == "filter":
        hashed = filter.score_table.made_with(config) | {"shard": "0" * 64}
    else:
        make_selected_pairs(tmp_path)
        pairs = PairDataset(find_pairs(tmp_path / "pairs", selected_keys(tmp_path)), 16)
        hashed = distill.train.hashes_of_files(config, pairs)
    before = {key: value for key, value in hashed.items() if key not in known_keys() and key != "format"}
    assert before and all(re.fullmatch("[0-9a-f]{16,64}", value) for value in before.values())
    for now in ({key: value[::-1] + "0" for key, value in before.items()}, {}):
        texts = changes(before, now)
        assert len(texts) == len(before) and not re.search("[0-9a-f]{16}|None", "; ".join(texts))


def test_settings_are_what_json_reads_back():
    import json

    settings = settings_of(load(["distill.init=", "task.clip_gain=null"]), ())
    assert changes(json.loads(json.dumps(settings)), settings) == []
