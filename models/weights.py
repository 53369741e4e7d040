"""Weights: every tensor that a network uses comes from a file, or the network is refused.

The libraries fill what a file lacks with random numbers, and print a warning at most. A pair or a
score that such a network makes looks like any other.
"""

from __future__ import annotations

import json
import os
import textwrap
import time
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from configs.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")  # of files that hold weights
LFS_POINTER = b"version https://git-lfs"  # how the text begins that stands for a file in a Git repository
ZIP = b"PK\x03\x04"  # how a file of torch.save begins
LENGTH_BYTES = 8  # a .safetensors begins with the length of its header
MOST_LETTERS = 300  # of an error whose second line lists all tensors of a network
COUNTER = ".num_batches_tracked"  # of a batch norm's training; old files have none, and no result uses it
TOLD_GB = 0.1  # smaller networks are loaded without a word

Network = TypeVar("Network", bound="nn.Module")


def loaded(part: str, load: Callable[[], Network]) -> Network:
    """What `load` returns; where that is large, with a line of its name, its size and the seconds it took.

    Of several processes the first prints.
    """
    began = time.monotonic()
    network = load()
    tensors = [*network.parameters(), *network.buffers()]
    gigabytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e9
    if gigabytes >= TOLD_GB and os.environ.get("RANK", "0") == "0":
        print(f"loaded {part}: {gigabytes:.2f} GB in {time.monotonic() - began:.1f} s", flush=True)
    return network


def load_tensors(network: nn.Module, tensors: Mapping[str, Tensor], origin: str, exact: bool = False) -> None:
    """Fill a network from tensors by name; tensors that it does not know are left out.

    origin: the key and the file, for the message. exact: leave out none, as a deeper network's file
    has all that a shallower one needs. UserError where a tensor of the network is not among them, or
    is of another shape.
    """
    report = gaps(network, tensors)
    refuse_gaps(report, origin)
    unknown = sorted(report["unexpected_keys"])
    if exact and unknown:
        raise UserError(
            f"{origin} has {len(unknown)} tensors that the network does not know, the first is {unknown[0]}: "
            "it is of another size, or of another kind"
        )
    network.load_state_dict(tensors, strict=False)


def gaps(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """How tensors by name differ from a network's own, on any device: what refuse_gaps takes."""
    own = network.state_dict()
    return {
        "missing_keys": [name for name in own if name not in tensors and not name.endswith(COUNTER)],
        "unexpected_keys": [name for name in tensors if name not in own],
        "mismatched_keys": [
            name for name in own if name in tensors and tensors[name].shape != own[name].shape
        ],
    }


def from_transformers(
    network_class: Any, processor_class: Any, key: str, name: str, advice: str, dtype: str = "float32"
) -> tuple[Any, Any]:
    """A network of transformers, whole, and its processor, from a folder or a name on the hub.

    key: of the configuration, which has `name`. advice: what the key takes, for the messages. dtype: of
    the weights, whatever the file's is, as a CPU has no fast float16; or 'auto', the file's.
    UserError where they are not there, do not load, or lack a tensor.
    """
    import transformers

    from models.hub import local_model

    origin = f"{key}={name}"
    folder = local_model(name, key, advice)
    if not (folder / "config.json").is_file():
        raise UserError(f"{origin}: {folder} has no config.json: {advice}")
    refuse_broken_files(folder, origin)
    verbosity = transformers.utils.logging.get_verbosity()
    transformers.utils.logging.set_verbosity_error()  # of what it fills with random numbers: refused below
    transformers.utils.logging.disable_progress_bar()

    def load() -> Any:
        network, report = network_class.from_pretrained(
            folder,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
        )
        refuse_gaps(report, origin, advice)
        return network

    try:
        network = loaded(key, load)
        processor = processor_class.from_pretrained(folder, local_files_only=True)
        _refuse_missing_vocabulary(folder, processor, origin, advice)
        return network, processor
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"{origin} does not load ({first_line(error)}): {advice}") from error
    finally:
        transformers.utils.logging.set_verbosity(verbosity)


def _refuse_missing_vocabulary(folder: Path, processor: Any, origin: str, advice: str) -> None:
    """UserError for a tokenizer without its words: transformers makes one of a few entries then."""
    tokenizer = getattr(processor, "tokenizer", processor)
    names = dict(getattr(tokenizer, "vocab_files_names", {}))
    whole = names.pop("tokenizer_file", "tokenizer.json")
    missing = sorted(name for name in names.values() if not (folder / name).is_file())
    if missing and not (folder / whole).is_file():
        raise UserError(f"{origin}: {folder} has neither {whole} nor {missing[0]}, the words: {advice}")


def first_line(error: BaseException) -> str:
    """An error in one line: the first of its own, and the next where that only announces it, as torch's of
    a state dict does; its kind where it says nothing.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if lines[0].endswith(":") and len(lines) > 1:
        lines[0] += f" {lines[1].strip()}"
    return textwrap.shorten(lines[0], MOST_LETTERS, placeholder=" ...")  # between two words


def refuse_gaps(report: Mapping[str, Any], origin: str, advice: str = "") -> None:
    """UserError where a network has tensors that did not come from its file.

    report: 'missing_keys', 'unexpected_keys' and 'mismatched_keys', as diffusers and transformers
    give them with output_loading_info=True. origin: the key and the file or folder, and the part of
    it. advice: what to do, in the place of the general one.
    """
    missing = sorted(report["missing_keys"])
    unexpected = sorted(report["unexpected_keys"])
    # A mismatch is a name, or a tuple that begins with it.
    mismatched = sorted(key if isinstance(key, str) else key[0] for key in report["mismatched_keys"])
    if not missing and not mismatched:
        return
    if missing:
        fault = f"lacks {len(missing)} of the network's tensors, the first is {missing[0]}"
    else:
        fault = f"has {len(mismatched)} tensors of another shape, the first is {mismatched[0]}"
    reason = likely_reason(missing, unexpected, mismatched)
    raise UserError(f"{origin} {fault} ({reason}): {advice or 'fetch the whole model again'}")


def likely_reason(missing: Collection[str], unexpected: Collection[str], mismatched: Collection[str]) -> str:
    """Why a file does not fit a network, in words, from the names of the tensors."""
    if mismatched:
        return "the file, or the configuration beside it, is of a model of another size"
    tops = {name.partition(".")[0] for name in missing}
    if len(tops) == 1 and not any(name.startswith(tuple(tops)) for name in unexpected):
        (top,) = tops
        return f"all of them are of '{top}': the file was saved without it, or is of another version"
    if unexpected:
        return f"its own names differ, as {min(unexpected)}: another kind of model, or renamed tensors"
    return "it was cut short, or only a part of it was saved"


def refuse_broken_files(path: Path, key: str) -> None:
    """UserError for the first file of weights, in a folder or at a path, that is no whole file.

    key: of the configuration, with its value, for the message. That is a Git LFS pointer, a file
    that was cut short, and a shard that the index names and is not there.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in filter(Path.is_file, files):
        fault = ""
        if file.name.endswith(".index.json"):
            fault = _missing_shard(file)
        elif file.suffix in SUFFIXES:
            fault = _file_fault(file)
        if fault:
            raise UserError(f"{key}: {file} {fault}")


def _missing_shard(index: Path) -> str:
    """What is wrong with the files that an index names; '' where all are there."""
    try:
        shards = set(json.loads(index.read_text())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"is no index of shards ({error}): fetch it again"
    absent = sorted(name for name in shards if not (index.parent / name).is_file())
    return f"names {absent[0]}, which is not there: fetch it" if absent else ""


def _file_fault(file: Path) -> str:
    """What is wrong with a file of weights as a file; '' where nothing is."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        beginning = stream.read(len(LFS_POINTER))
    if beginning.startswith(LFS_POINTER):
        return "is a Git LFS pointer, not the weights: run `git lfs pull` there, or fetch the file itself"
    if file.suffix == ".safetensors":
        whole = _safetensors_size(file)
        if whole is None:
            return "is no .safetensors file: fetch it again"
        if size < whole:
            return f"was cut short: {size} of {whole} bytes are there; fetch it again"
    elif size == 0 or (beginning.startswith(ZIP) and not zipfile.is_zipfile(file)):
        return f"was cut short ({size} bytes are there): fetch it again"
    return ""


def _safetensors_size(file: Path) -> int | None:
    """How many bytes the header says that the file has; None where it has no header."""
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(LENGTH_BYTES), "little")
        if size < LENGTH_BYTES or length > size:
            return None
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return LENGTH_BYTES + length + max(ends, default=0)
