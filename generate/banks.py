"""Sentences about a word, for edit directions (Parmar et al. 2023, section 3.1): of a text file; of a grammar that knows any word; or, as
the paper asks GPT-3, of a language model, a local one of transformers or any OpenAI-compatible endpoint.
"""

import json
import os
import random
import re
import urllib.request
from collections.abc import Callable
from itertools import product
from pathlib import Path

import yaml

from configs.errors import UserError
from configs.files import digest, find_file
from configs.loader import HERE
from configs.schema import Direction, Task

BANKS = HERE / "banks"
DETERMINERS = ("a ", "an ", "the ", "one ", "two ", "three ", "some ", "many ")
REQUEST = (
    "Provide many captions for images containing {words}. Write one caption a line and nothing else. "
    "Vary the place, the light, the style, the number and what is beside it."
)
MARKER = re.compile(r"^\s*(?:[-*•]|\d+[.):])?\s*")  # a list's bullet or number
FEWEST_WORDS, MOST_LETTERS = 3, 300
IDLE_REPLIES = 5  # so many in a row without a new sentence: it has no more
TIMEOUT_S = 120.0


def task_banks(task: Task, config: Direction, folder: Path) -> tuple[list[str], list[str]]:
    """Sentences about the source and the target: of their files, else of the language model (kept in `folder`), else of the grammar."""

    def bank(name: str, key: str, words: str) -> list[str]:
        if not name and config.language_model:
            name = str(written_bank(words, config, folder))
        return read_bank(name, key) if name else sentences(words, config.sentences)

    return bank(task.source_bank, "task.source_bank", task.source), bank(
        task.target_bank, "task.target_bank", task.target
    )


def read_bank(name: str, key: str) -> list[str]:
    """The sentences of a bank file (a path, or in configs/banks), one a line, blank lines and # comments left out."""
    path = Path(name) if Path(name).exists() else BANKS / name
    if not path.is_file():
        known = ", ".join(sorted(file.name for file in BANKS.glob("*.txt")))
        raise UserError(f"{key}={name}: no such sentence bank. In configs/banks there are: {known}")
    lines = [line.strip() for line in path.read_text().splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    if len(kept) < 2:
        raise UserError(
            f"{path}: {len(kept)} sentences; a direction needs many (the paper takes about 1000 a word)"
        )
    return kept


def sentences(words: str, count: int) -> list[str]:
    """`count` different sentences about the words ('cat', 'cherry blossom tree', 'two dogs') by configs/banks/grammar.yaml."""
    grammar = yaml.safe_load((BANKS / "grammar.yaml").read_text())
    slots = list(product(*(grammar[name] for name in ("openings", "qualities", "places", "lights"))))
    return [_sentence(words, *slot) for slot in random.Random(0).sample(slots, min(count, len(slots)))]


def _sentence(words: str, opening: str, quality: str, place: str, light: str) -> str:
    if not words.startswith(DETERMINERS):  # 'two small dogs' would have to be parsed
        words = f"{quality} {words}".strip()
        words = ("an " if words[0].lower() in "aeiou" else "a ") + words
    return " ".join(part for part in (opening, words, place, light) if part)


def written_bank(words: str, config: Direction, folder: Path) -> Path:
    """The text file of `config.sentences` sentences about the words, to read and edit; made if it is not there (an interruption keeps
    what was replied). UserError where the model does not load or answer, or has no more to say.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
    path = folder / f"{slug}-{digest(words, config.language_model, config.endpoint, config.sentences)}.txt"
    if path.exists():
        return path
    part = path.with_suffix(".part")
    folder.mkdir(parents=True, exist_ok=True)
    found = part.read_text().splitlines() if part.exists() else []
    ask, replies, idle = _endpoint(config) if config.endpoint else _local(config), 0, 0
    while len(found) < config.sentences:
        captions = captions_of(ask(REQUEST.format(words=words), len(found) + replies), words)
        new = [line for line in dict.fromkeys(captions) if line not in found][: config.sentences - len(found)]
        replies, idle = replies + 1, 0 if new else idle + 1
        if idle == IDLE_REPLIES:
            known = f"the {len(found)} in {part}"
            raise UserError(
                f"{config.language_model} has no more captions of {words} than {known}: lower direction.sentences"
            )
        found += new
        part.write_text("".join(f"{line}\n" for line in found))
    part.write_text(
        f"# {words}, by {config.language_model}; edit it, or delete it to have it made anew\n"
        + part.read_text()
    )
    return part.replace(path)


def captions_of(reply: str, words: str) -> list[str]:
    """The captions of a reply, a line each, without bullets, numbers and quotes; the words are appended to one that lacks them."""
    lines = (MARKER.sub("", line).strip(" \"'“”") for line in reply.splitlines())
    kept = [
        line
        for line in lines
        if len(line.split()) >= FEWEST_WORDS and len(line) <= MOST_LETTERS and not line.endswith(":")
    ]
    return [line if words.lower() in line.lower() else f"{line.rstrip('.')}, {words}" for line in kept]


def _local(config: Direction) -> Callable[[str, int], str]:
    from transformers import pipeline, set_seed

    try:
        generator = pipeline("text-generation", model=find_file(config.language_model))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(
            f"direction.language_model={config.language_model} does not load as a text-generation model: {reason}"
        ) from error

    def ask(request: str, seed: int) -> str:
        set_seed(seed)
        chat = generator.tokenizer.chat_template is not None
        prompt = [{"role": "user", "content": request}] if chat else f"{request}\n1."
        (reply,) = generator(prompt, do_sample=True, top_p=0.95, max_new_tokens=512, return_full_text=False)
        text = reply["generated_text"]
        return str(text if isinstance(text, str) else text[-1]["content"])

    return ask


def _endpoint(config: Direction) -> Callable[[str, int], str]:
    if not config.endpoint.startswith(("http://", "https://")):
        raise UserError(
            f"direction.endpoint={config.endpoint}: it is the base address of a service, https://HOST/v1"
        )
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"

    def ask(request: str, seed: int) -> str:
        body = {
            "model": config.language_model,
            "messages": [{"role": "user", "content": request}],
            "temperature": 1.0,
            "seed": seed,
        }
        call = urllib.request.Request(
            f"{config.endpoint.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(call, timeout=TIMEOUT_S) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"direction.endpoint={config.endpoint} gave no chat completion of {config.language_model}: {error}"
            ) from error

    return ask
