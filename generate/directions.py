"""Edit directions (Parmar et al. 2023, section 3.1): mean embedding of target sentences minus that of source ones, per token position."""

import json
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
    """The direction, 1 x T x D float32 (strength applied), a hash of its values, and how well the sentences agree on it."""

    value_1TD: Tensor
    hash: str
    report: str


def edit_direction(teacher: Teacher, task: Task, config: Direction, cache: Path) -> EditDirection:
    """The task's direction for this teacher: ready from files, else from the sentence banks and cached as safetensors in `cache`.

    Raises UserError for a missing or empty bank, and for a file whose tensor does not fit the teacher's text encoder.
    """
    shape = (1, *teacher.embed([""]).shape[1:])
    if bool(config.source_embedding) != bool(config.target_embedding):
        raise UserError(
            "direction.source_embedding and direction.target_embedding go together: name both or neither"
        )
    if config.file:
        value, report = read_embedding(config.file, "direction.file", shape), f"direction from {config.file}"
    elif config.source_embedding:
        target = read_embedding(config.target_embedding, "direction.target_embedding", shape)
        value = target - read_embedding(config.source_embedding, "direction.source_embedding", shape)
        report = f"direction {config.source_embedding} -> {config.target_embedding}"
    else:
        value, report = _from_banks(teacher, task, config, cache)
    value = value * config.strength
    for path, strength in config.plus.items():
        value = value + strength * read_embedding(path, "direction.plus", shape)
        report += f" + {strength:g} x {path}"
    largest, token = value[0].norm(dim=-1).max(0)
    report += f", norm {value.norm():.2f}, most at token {int(token)} ({float(largest):.2f})"
    return EditDirection(value.to(teacher.device), digest(value.flatten().tolist()), report)


def _from_banks(teacher: Teacher, task: Task, config: Direction, cache: Path) -> tuple[Tensor, str]:
    """The direction and its report; both are kept in `cache`, the report with the norm at each token, as JSON beside the tensor."""
    banks = task_banks(task, config, cache.parent / "banks")
    path = cache / f"{digest(teacher.text_fingerprint(), banks)}.safetensors"
    about = path.with_suffix(".json")
    words = {"source": task.source, "target": task.target}
    if not (path.exists() and about.exists()):
        source_NTD, target_NTD = (teacher.embed(bank) for bank in banks)
        value = (target_NTD.mean(0) - source_NTD.mean(0))[None].cpu()
        even, odd = ((target_NTD[half::2].mean(0) - source_NTD[half::2].mean(0)).flatten() for half in (0, 1))
        with whole_file(path) as stream:
            stream.write(save({"direction": value}, words))
        quality = {
            "sentences": [len(bank) for bank in banks],
            "cosine_between_halves": float(torch.cosine_similarity(even, odd, dim=0)),
            "norm_per_token": value[0].norm(dim=-1).tolist(),
        }
        write_json(about, words | quality)
    found = json.loads(about.read_text())
    (sources, targets), cosine = found["sentences"], found["cosine_between_halves"]
    report = f"direction '{task.source}' -> '{task.target}': {sources} + {targets} sentences"
    report += f", cosine between the halves of the banks {cosine:.3f}" + (
        " (make more sentences)" if cosine < FEW_SENTENCES else ""
    )
    return read_embedding(str(path), "direction", None), report


def read_embedding(path: str, key: str, shape: tuple[int, ...] | None) -> Tensor:
    """The one tensor of a .safetensors file, or of a .pt file as the reference code publishes them; float32 on the CPU.

    UserError for a file that is not such, carries code, or holds another shape than the one asked for.
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
            f"{key}={path}: shape {tuple(content.shape)}, this teacher's text embedding is {shape}: make it with this teacher"
        )
    return content.float()
