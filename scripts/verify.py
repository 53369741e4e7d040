"""Check every file of a run against the hash that was written beside it: after a copy, a full disk,
a doubt.

  zero2gan verify RUN

Reads pairs, scores, checkpoints and exported files, and prints a line each: exit code 2 where one is
damaged, with what to do about it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.cli import entry
from configs.errors import UserError
from configs.files import fingerprint
from configs.runs import command, pairs_dir, run_dir
from configs.schema import Config

SECTIONS = ("task", "teacher", "generate")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    return entry(__doc__, SECTIONS, verify, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    return {f"files of {name}": len(check.paths) for name, check in checks(config).items()}


@dataclass(frozen=True)
class Checks:
    """Files of one kind. check: reads one in full, and raises where it is damaged. advice: mends that."""

    paths: Sequence[Path]
    check: Callable[[Path], object]
    advice: str


def verify(config: Config) -> None:
    """Read everything. UserError where something is damaged, after all has been read, or is not there."""
    damaged = 0
    kinds = checks(config)
    if not any(kind.paths for kind in kinds.values()):
        raise UserError(f"{run_dir(config)} holds nothing to check: name a run's folder")
    for name, kind in kinds.items():
        faults = []
        for path in kind.paths:
            try:
                kind.check(path)
            except (UserError, OSError, ValueError, KeyError) as error:
                faults.append(f"{path}: {error}")
        print(f"{name}: {len(kind.paths) - len(faults)} of {len(kind.paths)} files as they were written")
        for fault in faults:
            print(f"  {fault}")
        if faults:
            print(f"  {kind.advice}")
        damaged += len(faults)
    if damaged:
        raise UserError(f"{damaged} files of {run_dir(config)} are damaged; the lines above say what to do")


def checks(config: Config) -> dict[str, Checks]:
    """What a run holds, by kind."""
    from distill import checkpoints
    from filter.score_table import read_score_file
    from generate.shards import verify as verify_shard

    run = run_dir(config)
    export = run / "export"
    written = _hashes(export / "check.json")

    def check_exported(path: Path) -> None:
        if fingerprint(path)["sha256"] != written[path.name]:
            raise ValueError("it is not what check.json says")

    return {
        "pairs": Checks(
            sorted(pairs_dir(config).glob("[0-9]*.tar")),
            verify_shard,
            f"delete the damaged shards with their .json, then {command('generate', run)}",
        ),
        "scores": Checks(
            sorted((run / "scores").glob("*.parquet")),
            read_score_file,
            f"delete the damaged files, then {command('filter', run)}",
        ),
        "checkpoints": Checks(
            checkpoints.saved(run / "train" / "checkpoints"),
            checkpoints.read_checkpoint,
            f"delete the damaged folders; {command('train', run)} goes on from the one before",
        ),
        "exported generators": Checks(
            [export / name for name in written], check_exported, command("export", run)
        ),
    }


def _hashes(path: Path) -> dict[str, str]:
    """Of an export's check.json: name of the file -> its SHA-256. UserError where it is damaged."""
    if not path.is_file():
        return {}
    try:
        files = json.loads(path.read_text())["formats"]
        return {name: file["sha256"] for name, file in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged, or of an earlier version ({error!r}): export again") from error


if __name__ == "__main__":
    raise SystemExit(main())
