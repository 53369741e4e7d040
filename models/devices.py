"""The one place that turns a device name of the configuration into a torch device."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from configs.errors import UserError

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The torch device called 'auto' (a GPU where there is one), 'cpu', 'cuda' or 'cuda:N'.

    With `accelerate launch`, 'auto' and 'cuda' are the process's own GPU (LOCAL_RANK). UserError for another name or
    a GPU that is not there.
    """
    import os

    import torch

    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"device '{name}': it is auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if count == 0 or not torch.cuda.is_available():
        raise UserError(f"device '{name}': PyTorch sees no GPU here; use auto or cpu, or install a CUDA build of PyTorch")
    index = int(name.partition(":")[2] or os.environ.get("LOCAL_RANK", 0))
    if index >= count:
        raise UserError(f"device '{name}': GPU {index} is not there; PyTorch sees {count} (cuda:0 to cuda:{count - 1})")
    return torch.device("cuda", index)
