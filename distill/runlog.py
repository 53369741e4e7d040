"""metrics.jsonl, the log of a training run, as it is read."""

import json
from pathlib import Path
from typing import Any

from configs.errors import UserError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, but for a last one that is cut off (training goes on, or was killed); none where there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            if number < len(lines):
                raise UserError(f"{path}, line {number} is not JSON ({error}): delete that line") from error
    return entries
