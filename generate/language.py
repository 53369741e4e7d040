"""Sentence banks from a language model (Parmar et al. 2023, section 3.1 asks GPT-3): a local one of transformers, or any OpenAI-compatible
endpoint. A bank is a text file that one can read and edit; what is there is not asked for again.
"""

import json
import os
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path

from configs.errors import UserError
from configs.loader import digest, find_file
from configs.schema import Direction

REQUEST = (
    "Provide many captions for images containing {words}. Write one caption a line and nothing else. "
    "Vary the place, the light, the style, the number and what is beside it."
)
MARKER = re.compile(r"^\s*(?:[-*•]|\d+[.):])?\s*")  # a list's bullet or number
FEWEST_WORDS, MOST_LETTERS = 3, 300
IDLE_REPLIES = 5  # so many in a row without a new sentence: it has no more
TIMEOUT_S = 120.0


def written_bank(words: str, config: Direction, folder: Path) -> Path:
    """The file of `config.sentences` sentences about the words, made if it is not there (an interruption keeps what was replied). UserError
    where the model does not load or answer, or has no more to say.
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
            raise UserError(f"{config.language_model} has no more captions of {words} than {known}: lower direction.sentences")
        found += new
        part.write_text("".join(f"{line}\n" for line in found))
    part.write_text(f"# {words}, by {config.language_model}; edit it, or delete it to have it made anew\n" + part.read_text())
    part.replace(path)
    return path


def captions_of(reply: str, words: str) -> list[str]:
    """The captions of a reply, a line each, without bullets, numbers and quotes; the words are appended to one that lacks them."""
    lines = (MARKER.sub("", line).strip(" \"'“”") for line in reply.splitlines())
    kept = [line for line in lines if len(line.split()) >= FEWEST_WORDS and len(line) <= MOST_LETTERS and not line.endswith(":")]
    return [line if words.lower() in line.lower() else f"{line.rstrip('.')}, {words}" for line in kept]


def _local(config: Direction) -> Callable[[str, int], str]:
    from transformers import pipeline, set_seed

    try:
        generator = pipeline("text-generation", model=find_file(config.language_model))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise UserError(f"direction.language_model={config.language_model} does not load as a text-generation model: {reason}") from error

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
        raise UserError(f"direction.endpoint={config.endpoint}: it is the base address of a service, https://HOST/v1")

    def ask(request: str, seed: int) -> str:
        body = {"model": config.language_model, "messages": [{"role": "user", "content": request}], "temperature": 1.0, "seed": seed}
        headers = {"Content-Type": "application/json"}
        if os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
        call = urllib.request.Request(f"{config.endpoint.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(call, timeout=TIMEOUT_S) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"direction.endpoint={config.endpoint} gave no chat completion of {config.language_model}: {error}") from error

    return ask
