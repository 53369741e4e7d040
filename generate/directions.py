"""Edit directions (Parmar et al. 2023, section 3.1): what is added to a caption's text embedding.

The mean embedding of the target's sentences minus that of the source's, for every token position.

N sentences, T tokens, D channels of the text encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from configs.errors import UserError
from configs.files import digest, whole_file, write_json
from configs.schema import Direction, Task
from generate.banks import task_banks
from models.teacher import Teacher

FEW_SENTENCES = 0.9  # cosine between the halves of the banks below which the direction is still noise


@dataclass(frozen=True)
class EditDirection:
    """A direction for one teacher's text encoder, with its strength applied."""

    value_1TD: Tensor  # float32
    hash: str  # of the values
    report: str  # a line to print


def edit_direction(teacher: Teacher, task: Task, config: Direction, cache: Path) -> EditDirection:
    """The task's direction for this teacher: of ready files, else of the sentences about its words.

    What the sentences give is kept in the folder `cache`. UserError for a missing or empty bank, for
    a file whose tensor does not fit the teacher's text encoder, and where both direction.file and
    direction.files are set.
    """
    if config.file and config.files:
        raise UserError(
            "direction.file and direction.files are two directions: "
            "name all files with their weights in direction.files"
        )
    if config.file:
        value_1TD = _weighted_sum(teacher, {config.file: 1.0}, "direction.file")
        report = f"direction from {config.file}"
    elif config.files:
        value_1TD = _weighted_sum(teacher, config.files, "direction.files")
        terms = [f"{weight:g} x {path}" for path, weight in config.files.items()]
        report = f"direction {' + '.join(terms)}"
    else:
        value_1TD, report = _from_banks(teacher, task, config, cache)
    value_1TD = value_1TD * config.strength
    largest, token = value_1TD[0].norm(dim=-1).max(0)
    report += f", norm {value_1TD.norm():.2f}, most at token {int(token)} ({float(largest):.2f})"
    return EditDirection(value_1TD.to(teacher.device), digest(value_1TD.flatten().tolist()), report)


def _weighted_sum(teacher: Teacher, files: Mapping[str, float], key: str) -> Tensor:
    """The sum over the files of weight x tensor, 1 x T x D float32 on the CPU."""
    shape = (1, *teacher.embed([""]).shape[1:])
    total_1TD = torch.zeros(shape)
    for path, weight in files.items():
        total_1TD = total_1TD + weight * read_embedding(path, key, shape)
    return total_1TD


def _from_banks(teacher: Teacher, task: Task, config: Direction, cache: Path) -> tuple[Tensor, str]:
    """The direction of the task's sentences, 1 x T x D float32 on the CPU, and its report.

    Both are kept in `cache`: the tensor as safetensors, and JSON beside it with what is reported.
    """
    banks = task_banks(task, config)
    path = cache / f"{digest(teacher.text_fingerprint(), banks)}.safetensors"
    quality_path = path.with_suffix(".json")
    if not (path.exists() and quality_path.exists()):
        source_NTD = teacher.embed(banks[0])
        target_NTD = teacher.embed(banks[1])
        value_1TD = _mean_difference(source_NTD, target_NTD)[None].cpu()
        words = {"source": task.source, "target": task.target}
        with whole_file(path) as stream:
            stream.write(save({"direction": value_1TD}, words))
        quality = {
            "sentences": [len(source_NTD), len(target_NTD)],
            "cosine_between_halves": _cosine_between_halves(source_NTD, target_NTD),
            "norm_per_token": value_1TD[0].norm(dim=-1).tolist(),
            "cut": sum(teacher.read_of(sentence) is not None for bank in banks for sentence in bank),
        }
        write_json(quality_path, words | quality)
    quality = json.loads(quality_path.read_text())
    sources, targets = quality["sentences"]
    cosine = quality["cosine_between_halves"]
    report = (
        f"direction '{task.source}' -> '{task.target}': {sources} + {targets} sentences, "
        f"cosine between the halves of the banks {cosine:.3f}"
    )
    if cosine < FEW_SENTENCES:
        report += " (make more sentences)"
    if quality.get("cut"):  # not in a file that an earlier version wrote
        report += f", {quality['cut']} of them cut at {teacher.most_tokens} tokens"
    return read_embedding(str(path), "direction", None), report


def _mean_difference(source_NTD: Tensor, target_NTD: Tensor) -> Tensor:
    """The direction of these embeddings, T x D."""
    return target_NTD.mean(0) - source_NTD.mean(0)


def _cosine_between_halves(source_NTD: Tensor, target_NTD: Tensor) -> float:
    """Cosine of the directions of every other sentence: 1 where more sentences would change nothing."""
    even_TD = _mean_difference(source_NTD[0::2], target_NTD[0::2])
    odd_TD = _mean_difference(source_NTD[1::2], target_NTD[1::2])
    return float(torch.cosine_similarity(even_TD.flatten(), odd_TD.flatten(), dim=0))


def read_embedding(path: str, key: str, shape: tuple[int, ...] | None) -> Tensor:
    """The one tensor of a .safetensors or .pt file (as the reference code's), float32 on the CPU.

    key: that named the file. shape: that the tensor must have, None for any. UserError for a file
    that is not such, carries code, or holds another shape.
    """
    try:
        if Path(path).suffix == ".pt":
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            (content,) = load_file(path).values()
    except Exception as error:  # noqa: BLE001 - torch's unpickler and safetensors raise a dozen kinds
        raise UserError(
            f"{key}={path} is not a safetensors or .pt file with one tensor: {str(error).splitlines()[0]}"
        ) from error
    if not isinstance(content, Tensor):
        raise UserError(f"{key}={path} holds a {type(content).__name__}, not one tensor")
    if shape and tuple(content.shape) != shape:
        raise UserError(
            f"{key}={path}: shape {tuple(content.shape)}, this teacher's text embedding is {shape}: "
            "make it with this teacher"
        )
    return content.float()
