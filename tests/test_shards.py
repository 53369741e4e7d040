"""The pair format: what is written comes back, and anything torn, changed or foul is refused by name."""

import json

import numpy as np
import pytest

from configs.errors import UserError
from configs.files import exclusive
from generate.shards import (
    Pair,
    finished_shards,
    locate,
    manifest_path,
    read_pair,
    read_pairs,
    verify,
    write_shard,
)


def make_pairs(count=3, first=0):
    rng = np.random.default_rng(first)
    pairs = []
    for index in range(count):
        images = {name: rng.integers(0, 256, (12, 12, 3), dtype=np.uint8) for name in ("input", "edit")}
        record = {"caption": f"<b>{index}</b>", "source": {"id": str(index)}}
        noise = rng.standard_normal((4, 2, 3)).astype(np.float32)
        pairs.append(Pair(f"pair-{first + index}", images, record, {"noise": noise}))
    return pairs


def test_round_trip(tmp_path):
    pairs = make_pairs()
    shard = write_shard(tmp_path, 0, pairs, {"left_out": []})
    verify(shard)
    pairs_read = list(read_pairs(tmp_path, ("input", "edit", "noise")))
    assert [pair.key for pair in pairs_read] == [pair.key for pair in pairs]
    for expected, pair in zip(pairs, pairs_read, strict=True):
        assert pair.record == expected.record
        for name in ("input", "edit"):
            assert np.array_equal(pair.images[name], expected.images[name])
        assert np.array_equal(pair.arrays["noise"], expected.arrays["noise"])
    assert "edit" not in read_pair(locate(shard)[0], ("input",)).images


def test_webdataset_reads_it(tmp_path):
    import io

    import webdataset
    from PIL import Image

    pairs = make_pairs()
    shard = write_shard(tmp_path, 0, pairs, {})
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == [pair.key for pair in pairs]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(samples[1]["edit.png"]))), pairs[1].images["edit"])
    assert json.loads(samples[2]["json"]) == pairs[2].record


def test_the_same_pairs_give_the_same_bytes(tmp_path):
    first, second = (write_shard(tmp_path, index, make_pairs(), {}) for index in (0, 1))
    assert first.read_bytes() == second.read_bytes()


def test_nothing_is_left_where_writing_fails(tmp_path):
    def failing():
        yield make_pairs(1)[0]
        raise RuntimeError("the card fell off the bus")

    with pytest.raises(RuntimeError):
        write_shard(tmp_path, 0, failing(), {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("keep", [0.3, 0.6, 0.99])
def test_a_cut_tar_is_refused_by_name(tmp_path, keep):
    shard = write_shard(tmp_path, 7, make_pairs(), {})
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(UserError, match="000007.tar"):
        finished_shards(tmp_path)


def test_a_flipped_bit_is_found(tmp_path):
    shard = write_shard(tmp_path, 0, make_pairs(), {})
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match="differs from its manifest"):
        verify(shard)


def test_a_tar_without_a_manifest_is_not_read(tmp_path):
    write_shard(tmp_path, 0, make_pairs(), {})
    manifest_path(write_shard(tmp_path, 1, make_pairs(first=5), {})).unlink()
    assert [pair.key for pair in read_pairs(tmp_path)] == ["pair-0", "pair-1", "pair-2"]


@pytest.mark.parametrize("key", ["../../evil", "a.b", "Upper", ""])
def test_foul_keys_are_refused(tmp_path, key):
    pair = make_pairs(1)[0]
    pair.key = key
    with pytest.raises(UserError, match="key"):
        write_shard(tmp_path, 0, [pair], {})


def test_a_repeated_key_is_refused(tmp_path):
    with pytest.raises(UserError, match="repeated"):
        write_shard(tmp_path, 0, make_pairs(1) * 2, {})


def test_two_writers_are_refused(tmp_path):
    with (
        exclusive(tmp_path, "rank0"),
        pytest.raises(UserError, match="another process"),
        exclusive(tmp_path, "rank0"),
    ):
        pass
    with exclusive(tmp_path, "rank0"):
        pass


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UserError, match=r"zero2gan generate"):
        finished_shards(tmp_path)
