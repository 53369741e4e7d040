"""Edit directions (Parmar et al. 2023, section 3.1): mean embedding of target sentences minus that of source ones, per token position."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from configs.errors import UserError
from configs.loader import HERE, digest
from configs.schema import Direction, Task
from models.teacher import Teacher


@dataclass(frozen=True)
class EditDirection:
    """The direction, 1 x T x D float32 (strength applied), a hash of its values, and how well the sentences agree on it."""

    value_1TD: Tensor
    hash: str
    report: str


def edit_direction(teacher: Teacher, task: Task, config: Direction, cache: Path) -> EditDirection:
    """The task's direction for this teacher: from direction.file, else from the sentence banks and cached as safetensors in `cache`.

    Raises UserError for a missing or empty bank, and for a file whose tensor does not fit the teacher's text encoder.
    """
    if config.file:
        value, report = _read(Path(config.file)), f"direction from {config.file}"
    else:
        banks = [read_bank(name, key) for name, key in ((task.source_bank, "source_bank"), (task.target_bank, "target_bank"))]
        path = cache / f"{digest(teacher.text_fingerprint(), banks)}.safetensors"
        if not path.exists():
            _save(path, _difference(teacher, *banks), {"source": task.source, "target": task.target})
        value = _read(path)
        even, odd = (_difference(teacher, *(bank[part::2] for bank in banks)).flatten() for part in (0, 1))
        agreement = torch.cosine_similarity(even, odd, dim=0)
        report = f"direction '{task.source}' -> '{task.target}': {len(banks[0])} + {len(banks[1])} sentences, norm {value.norm():.2f}"
        report += f", cosine between its halves {agreement:.3f}"
    expected = (1, *teacher.embed([""]).shape[1:])
    if value.shape != expected:
        raise UserError(
            f"direction of shape {tuple(value.shape)}, but this teacher's text embedding is {expected}: make it with this teacher"
        )
    value = value.to(teacher.device) * config.strength
    return EditDirection(value, digest(value.flatten().tolist()), report)


def read_bank(name: str, key: str) -> list[str]:
    """The sentences of a bank file, one a line, blank lines and # comments left out."""
    path = Path(name) if Path(name).is_absolute() or Path(name).exists() else HERE / "banks" / name
    if not name or not path.is_file():
        known = ", ".join(sorted(file.name for file in (HERE / "banks").glob("*.txt")))
        raise UserError(f"task.{key}={name}: no such sentence bank. In configs/banks there are: {known}")
    lines = [line.strip() for line in path.read_text().splitlines()]
    sentences = [line for line in lines if line and not line.startswith("#")]
    if len(sentences) < 2:
        raise UserError(f"{path}: {len(sentences)} sentences; a direction needs many (the paper takes about 1000 a word)")
    return sentences


def _difference(teacher: Teacher, source: list[str], target: list[str]) -> Tensor:
    return (teacher.embed(target).mean(0) - teacher.embed(source).mean(0))[None].cpu()


def _save(path: Path, value: Tensor, metadata: dict[str, str]) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"direction": value.contiguous()}, temporary, metadata)
    temporary.replace(path)


def _read(path: Path) -> Tensor:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        (value,) = load_file(path).values()
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"direction.file={path} is not a safetensors file with one tensor: {error}") from error
    return value.float()
