"""Sentences about a word, for edit directions (Parmar et al. 2023, section 3.1).

They come from a text file, which a person or a language model wrote (scripts/write_bank.py), or
from a grammar that knows any word.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path

import yaml

from configs.errors import UserError
from configs.loader import HERE
from configs.schema import Direction, Task

BANKS = HERE / "banks"
DETERMINERS = ("a ", "an ", "the ", "one ", "two ", "three ", "some ", "many ")


def task_banks(task: Task, config: Direction) -> tuple[list[str], list[str]]:
    """The sentences about the task's source, and those about its target."""
    source = _bank("task.source_bank", task.source_bank, task.source, config.sentences)
    target = _bank("task.target_bank", task.target_bank, task.target, config.sentences)
    return source, target


def _bank(key: str, file: str, words: str, count: int) -> list[str]:
    """The sentences of the file; where the key names none, `count` of the grammar's."""
    return read_bank(file, key) if file else sentences(words, count)


def read_bank(name: str, key: str) -> list[str]:
    """The sentences of a bank file. UserError as read_sentences raises it, and for fewer than two."""
    bank = read_sentences(name, key)
    if len(bank) < 2:
        raise UserError(
            f"{key}={name}: {len(bank)} sentences; a direction needs many (the paper takes about 1000 a word)"
        )
    return bank


def read_sentences(name: str, key: str) -> list[str]:
    """The lines of a text file, without blank lines and # comments.

    name: a path, or a file in configs/banks. key: that named it, for the UserError where there is no
    such file or it is no text.
    """
    path = Path(name) if Path(name).exists() else BANKS / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in BANKS.glob("*.txt")))
        raise UserError(f"{key}={name}: no such text file. In configs/banks there are: {known}")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={name}: it is no text in UTF-8 ({error}): save it as such") from error
    return [line for line in lines if line and not line.startswith("#")]


def sentences(words: str, count: int) -> list[str]:
    """`count` different sentences about the words, 'cat' or 'two dogs', or as many as the grammar has.

    configs/banks/grammar.yaml gives what stands around the words. The choice is the same for all
    words, so that two banks differ by their words alone.
    """
    grammar = yaml.safe_load((BANKS / "grammar.yaml").read_text())
    slots = list(product(grammar["openings"], grammar["qualities"], grammar["places"], grammar["lights"]))
    chosen = random.Random(0).sample(slots, min(count, len(slots)))
    return [_sentence(words, *slot) for slot in chosen]


def _sentence(words: str, opening: str, quality: str, place: str, light: str) -> str:
    """'a photo of' + 'a small cat' + 'on a sofa' + 'at night'; all but the words may be empty."""
    if not words.startswith(DETERMINERS):  # 'two small dogs' would have to be parsed
        words = f"{quality} {words}".strip()
        article = "an" if words[0].lower() in "aeiou" else "a"
        words = f"{article} {words}"
    return " ".join(part for part in (opening, words, place, light) if part)
