"""What every entry point shares: --help, --list, --dry-run, errors of one line, exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

from configs.errors import UserError
from configs.loader import CHOICES, available, known_keys, load, to_yaml
from configs.schema import Config
from models.threads import wait_passively

OPTIONS = """options:
  RUN or run=FOLDER                    a run that was begun: it remembers every key it was given
  task=NAME teacher=NAME preset=NAME   which edit, which Stable Diffusion, which scale (--list shows them);
                                       preset=paper,fast takes both, the later one on top; task=./mine.yaml
  generator=NAME                       comodgan, or comodgan_lite for CPUs, phones and browsers
  section.key=value                    a key below
  --dry-run                            print the plan, make nothing; with --config the whole configuration,
                                       with --time also how long it takes (a few steps are timed)
  --list                               the tasks, teachers, presets and generators there are
  --help, --help all                   this text with the keys that people change first, or with all;
                                       with other arguments, the values they give the keys

keys:"""
FLAGS = ("--dry-run", "--config", "--time")
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
    work: does what the command is for. plan: gives what --dry-run prints; a value that takes long to
    find out is a function, which --time calls.
    Exit codes: 0 done; 2 a UserError, printed as one line; 130 Ctrl-C; 141 nobody reads what it prints
    any more, and its work was cut short; 143 SIGTERM.
    Any other exception is a bug and shows its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _entry(doc, sections, work, plan, arguments)
        sys.stdout.flush()  # so that a pipe that was closed is noticed here
        return code
    except BrokenPipeError:  # whoever reads, as `| head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0 if any(word in arguments for word in ("--help", "-h", "--list", "--dry-run")) else 141


def _entry(
    doc: str,
    sections: Sequence[str],
    work: Callable[[Config], object],
    plan: Callable[[Config], dict[str, Any]],
    arguments: Sequence[str],
) -> int:
    if "--help" in arguments or "-h" in arguments:
        _print_help(doc, sections, arguments)
        return 0
    if "--list" in arguments:
        for kind in reversed(CHOICES):
            print(f"{kind}: {', '.join(available(kind))}")
        return 0
    signal.signal(signal.SIGTERM, _exit_on_sigterm)
    wait_passively()
    try:
        config = load([argument for argument in arguments if argument not in FLAGS])
        _refuse_absent_device(config.device)
        if "--dry-run" in arguments:
            _print_plan(plan(config), timed="--time" in arguments)
            if "--config" in arguments:
                print("\n" + to_yaml(config))
        else:
            work(config)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 130


def is_word(arguments: Sequence[str]) -> bool:
    """Whether the first argument is a word of its own: no key, no option, and no run's folder."""
    return bool(arguments) and arguments[0].isalnum() and not Path(arguments[0]).is_dir()


def _refuse_absent_device(name: str) -> None:
    """UserError for a device that is not here, also where a command has no use for it or only plans."""
    if name not in ("auto", "cpu"):  # always there, and told apart without loading torch
        from models.devices import pick_device

        pick_device(name)


def _print_help(doc: str, sections: Sequence[str], arguments: Sequence[str]) -> None:
    """The docstring, the options and the keys: those that are changed first, or after `all` every one."""
    print(doc.strip() + "\n\n" + OPTIONS)
    config = _given_or_default(arguments)
    hidden = 0
    for key, item in known_keys().items():
        if "." in key and key.split(".")[0] not in sections:
            continue
        if "all" not in arguments and not item.metadata["first"]:
            hidden += 1
            continue
        limits = str(item.metadata["limits"])
        setting = f"{key}={attrgetter(key)(config)}"
        print(f"  {setting:{KEY_WIDTH}} {item.metadata['help']}" + (f" ({limits})" if limits else ""))
    if hidden:
        print(f"  and {hidden} more: --help all")


def _print_plan(plan: dict[str, Any], timed: bool) -> None:
    for key, value in plan.items():
        if not callable(value):
            print(f"{key}: {value}")
        elif timed:
            print(f"{key}: {value()}")


def _exit_on_sigterm(*_: Any) -> None:
    """Unwinds like Ctrl-C, so that temporary files go."""
    sys.exit(143)


def _given_or_default(arguments: Sequence[str]) -> Config:
    """The configuration that --help shows: of the other arguments, or the default where they are none."""
    try:
        keys = [argument for argument in arguments if not argument.startswith("-") and argument != "all"]
        return load(keys)
    except UserError:
        return load([])
