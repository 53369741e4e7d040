"""Edit directions (Parmar et al. 2023, section 3.1): mean embedding of target sentences minus that of source ones, per token position."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from configs.errors import UserError
from configs.loader import HERE, digest
from configs.schema import Direction, Task
from generate.grammar import sentences
from generate.language import written_bank
from generate.shards import whole_file, write_json
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
        raise UserError("direction.source_embedding and direction.target_embedding go together: name both or neither")
    if config.file:
        value, report = read_embedding(config.file, "direction.file", shape), f"direction from {config.file}"
    elif config.source_embedding:
        value = read_embedding(config.target_embedding, "direction.target_embedding", shape)
        value = value - read_embedding(config.source_embedding, "direction.source_embedding", shape)
        report = f"direction {config.source_embedding} -> {config.target_embedding}"
    else:
        value, report = _from_banks(teacher, task, config, cache)
    value = value * config.strength
    for path, strength in config.plus.items():
        value = value + strength * read_embedding(path, "direction.plus", shape)
        report += f" + {strength:g} x {path}"
    largest, token = value[0].norm(dim=-1).max(0)
    report += f", norm {value.norm():.2f}, most at token {int(token)} ({float(largest):.2f})"
    value = value.to(teacher.device)
    return EditDirection(value, digest(value.flatten().tolist()), report)


def _from_banks(teacher: Teacher, task: Task, config: Direction, cache: Path) -> tuple[Tensor, str]:
    """The direction and its report; both are kept in `cache`, the report with the norm at each token, as JSON beside the tensor."""
    banks = task_banks(task, config, cache.parent / "banks")
    path = cache / f"{digest(teacher.text_fingerprint(), banks)}.safetensors"
    about = path.with_suffix(".json")
    if not (path.exists() and about.exists()):
        value = _difference(teacher, *banks)
        even, odd = (_difference(teacher, *(bank[part::2] for bank in banks)).flatten() for part in (0, 1))
        about_it = {
            "source": task.source,
            "target": task.target,
            "sentences": [len(bank) for bank in banks],
            "cosine_between_halves": float(torch.cosine_similarity(even, odd, dim=0)),
            "norm_per_token": value[0].norm(dim=-1).tolist(),
        }
        with whole_file(path) as stream:
            stream.write(save({"direction": value}, {"source": task.source, "target": task.target}))
        write_json(about, about_it)
    found = json.loads(about.read_text())
    report = f"direction '{task.source}' -> '{task.target}': {found['sentences'][0]} + {found['sentences'][1]} sentences"
    report += f", cosine between the halves of the banks {found['cosine_between_halves']:.3f}"
    report += " (make more sentences)" if found["cosine_between_halves"] < FEW_SENTENCES else ""
    return read_embedding(str(path), "direction", None), report


def task_banks(task: Task, config: Direction, folder: Path) -> tuple[list[str], list[str]]:
    """Sentences about the source and the target: of their files, else of the language model (kept in `folder`), else of the grammar."""

    def bank(name: str, key: str, words: str) -> list[str]:
        if not name and config.language_model:
            name = str(written_bank(words, config, folder))
        return read_bank(name, key) if name else sentences(words, config.sentences)

    return bank(task.source_bank, "task.source_bank", task.source), bank(task.target_bank, "task.target_bank", task.target)


def read_bank(name: str, key: str) -> list[str]:
    """The sentences of a bank file, one a line, blank lines and # comments left out."""
    path = Path(name) if Path(name).is_absolute() or Path(name).exists() else HERE / "banks" / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in (HERE / "banks").glob("*.txt")))
        raise UserError(f"{key}={name}: no such sentence bank. In configs/banks there are: {known}")
    lines = [line.strip() for line in path.read_text().splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    if len(kept) < 2:
        raise UserError(f"{path}: {len(kept)} sentences; a direction needs many (the paper takes about 1000 a word)")
    return kept


def _difference(teacher: Teacher, source: list[str], target: list[str]) -> Tensor:
    return (teacher.embed(target).mean(0) - teacher.embed(source).mean(0))[None].cpu()


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
        raise UserError(f"{key}={path} is not a safetensors or .pt file with one tensor: {str(error).splitlines()[0]}") from error
    if not isinstance(content, Tensor):
        raise UserError(f"{key}={path} holds a {type(content).__name__}, not one tensor")
    if shape and tuple(content.shape) != shape:
        raise UserError(f"{key}={path}: shape {tuple(content.shape)}, this teacher's text embedding is {shape}: make it with this teacher")
    return content.float()
