"""Weights from files: what is missing, of another shape, or no whole file, is one line that says so."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from configs.errors import UserError
from models.weights import first_line, load_tensors, loaded, refuse_broken_files, refuse_gaps


def network() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(2, 3), "decoder": nn.Linear(3, 2)})


def test_what_is_whole_is_loaded_and_what_is_more_is_left_out():
    torch.manual_seed(0)
    original = network()
    copy = network()
    load_tensors(copy, original.state_dict() | {"head.weight": torch.zeros(1)}, "key=FILE")
    for name, tensor in copy.state_dict().items():
        assert torch.equal(tensor, original.state_dict()[name])


def test_a_deeper_network_s_file_is_not_cut_down_to_a_shallower_one():
    tensors = network().state_dict() | {"deeper.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"key=FILE has 1 tensors .* the first is deeper.weight"):
        load_tensors(network(), tensors, "key=FILE", exact=True)


def test_a_gap_names_the_origin_the_first_tensor_and_the_likely_reason():
    tensors = network().state_dict()
    with pytest.raises(UserError, match=r"key=FILE lacks 2 .* decoder.bias \(all of them are of 'decoder'"):
        load_tensors(network(), {name: tensors[name] for name in tensors if "encoder" in name}, "key=FILE")
    renamed = {name.replace("decoder", "head"): tensor for name, tensor in tensors.items()}
    renamed.pop("encoder.bias")
    with pytest.raises(UserError, match=r"lacks 3 .* decoder.bias \(its own names differ, as head.bias"):
        load_tensors(network(), renamed, "key=FILE")
    with pytest.raises(UserError, match=r"lacks 2 .* decoder.bias \(it was cut short"):
        load_tensors(network(), {name: tensors[name] for name in tensors if "weight" in name}, "key=FILE")
    with pytest.raises(UserError, match=r"another shape, the first is encoder.weight \(.* another size"):
        load_tensors(network(), tensors | {"encoder.weight": torch.zeros(3, 5)}, "key=FILE")


def test_an_error_that_announces_its_reason_is_given_with_it():
    with pytest.raises(RuntimeError) as caught:
        network().load_state_dict({})
    line = first_line(caught.value)
    assert "\n" not in line and "encoder.weight" in line and len(line) <= 300
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(KeyError()) == "KeyError"
    long = first_line(ValueError("tensors:\n" + "unet.weight " * 100))
    assert 280 < len(long) <= 300 and long.endswith(" unet.weight ...")  # cut between two words


def test_the_reports_of_both_libraries_are_understood():
    whole = {"missing_keys": set(), "unexpected_keys": {"position_ids"}, "mismatched_keys": set()}
    refuse_gaps(whole, "key=FILE")
    mismatch = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [("a.weight", (1,), (2,))]}
    with pytest.raises(UserError, match=r"a.weight .*: take another$"):
        refuse_gaps(mismatch, "key=FILE", "take another")


def test_files_that_are_not_whole(tmp_path):
    whole = tmp_path / "a" / "model.safetensors"
    whole.parent.mkdir()
    save_file({"x": torch.zeros(100), "y": torch.zeros(0)}, whole)
    torch.save({"x": torch.zeros(100)}, tmp_path / "a" / "model.bin")
    torch.save({"x": torch.zeros(100)}, tmp_path / "a" / "old.pt", _use_new_zipfile_serialization=False)
    refuse_broken_files(tmp_path, "key=FOLDER")

    def refused(name: str, content: bytes, reason: str) -> None:
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"key=FOLDER: {path} {reason}"):
            refuse_broken_files(tmp_path, "key=FOLDER")
        with pytest.raises(UserError, match=reason):
            refuse_broken_files(path, "key=FILE")
        path.unlink()

    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 492265168\n"
    refused("b.safetensors", pointer, "is a Git LFS pointer")
    refused("b.bin", pointer, "is a Git LFS pointer")
    size = whole.stat().st_size
    refused("b.safetensors", whole.read_bytes()[:-8], f"was cut short: {size - 8} of {size} bytes")
    refused("b.safetensors", whole.read_bytes()[:30], "is no .safetensors file")
    refused("b.safetensors", b"", "is no .safetensors file")
    refused("b.bin", (tmp_path / "a" / "model.bin").read_bytes()[:-100], "was cut short")
    refused("b.pth", b"", "was cut short")
    index = json.dumps({"weight_map": {"x": "model-00001-of-00002.safetensors"}}).encode()
    refused("model.safetensors.index.json", index, "names model-00001-of-00002.safetensors, which is not")
    refused("model.safetensors.index.json", b"{", "is no index of shards")


def test_a_large_network_is_announced(capsys):
    with torch.device("meta"):
        large = nn.Linear(5000, 5000)
    assert loaded("the judge", lambda: large) is large
    assert capsys.readouterr().out.startswith("loaded the judge: 0.10 GB in ")
    loaded("a small one", network)
    assert capsys.readouterr().out == ""
