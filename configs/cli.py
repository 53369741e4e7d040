"""What every entry point shares: --help, --list, --dry-run, errors of one line, exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

from configs.errors import UserError
from configs.loader import CHOICES, available, known_keys, load, to_yaml
from configs.schema import Config

OPTIONS = """options:
  task=NAME teacher=NAME preset=NAME   which edit, which Stable Diffusion, which scale (--list shows them)
                                       preset=paper,fast takes both, the later one on top
  generator=NAME                       comodgan, or comodgan_lite for CPUs, phones and browsers
  section.key=value                    any key below
  --dry-run                            print the resolved configuration and the plan, make nothing
                                       (a few of the teacher's steps are timed for it)
  --list                               the tasks, teachers, presets and generators there are
  --help                               this text; with other arguments, the values they give the keys

keys:"""
KEY_WIDTH = 44  # characters


def entry(
    doc: str,
    sections: Sequence[str],
    work: Callable[[Config], object],
    plan: Callable[[Config], dict[str, Any]],
    argv: Sequence[str] | None = None,
) -> int:
    """Run one entry point; returns its exit code.

    doc: the module's docstring, printed by --help before the keys of `sections`.
    work: does what the command is for. plan: gives what --dry-run prints under the configuration.
    Exit codes: 0 done; 2 a UserError, printed as one line; 130 Ctrl-C; 143 SIGTERM.
    Any other exception is a bug and shows its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" in arguments or "-h" in arguments:
        _print_help(doc, sections, arguments)
        return 0
    if "--list" in arguments:
        for kind in reversed(CHOICES):
            print(f"{kind}: {', '.join(available(kind))}")
        return 0
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    try:
        config = load([argument for argument in arguments if argument != "--dry-run"])
        _refuse_absent_device(config.device)
        if "--dry-run" in arguments:
            _print_plan(config, plan(config))
        else:
            work(config)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 130


def _refuse_absent_device(name: str) -> None:
    """UserError for a device that is not here, also where a command has no use for it or only plans."""
    if name not in ("auto", "cpu"):  # always there, and told apart without loading torch
        from models.devices import pick_device

        pick_device(name)


def _print_help(doc: str, sections: Sequence[str], arguments: Sequence[str]) -> None:
    print(doc.strip() + "\n\n" + OPTIONS)
    config = _given_or_default(arguments)
    for key, item in known_keys().items():
        if "." in key and key.split(".")[0] not in sections:
            continue
        limits = str(item.metadata["limits"])
        setting = f"{key}={attrgetter(key)(config)}"
        print(f"  {setting:{KEY_WIDTH}} {item.metadata['help']}" + (f" ({limits})" if limits else ""))


def _print_plan(config: Config, plan: dict[str, Any]) -> None:
    print(to_yaml(config))
    for key, value in plan.items():
        print(f"{key}: {value}")


def _exit_on_sigterm(*_: Any) -> None:
    """Unwinds like Ctrl-C, so that temporary files go."""
    sys.exit(143)


def _given_or_default(arguments: Sequence[str]) -> Config:
    """The configuration that --help shows: of the other arguments, or the default where they are none."""
    try:
        return load([argument for argument in arguments if not argument.startswith("-")])
    except UserError:
        return load([])
