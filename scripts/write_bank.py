"""Let a language model write sentences about a word, as the paper does with GPT-3 (section 3.1).

  python scripts/write_bank.py "cherry blossom tree" --model FOLDER_OR_HUB_NAME
  python scripts/write_bank.py cat --model NAME --endpoint http://localhost:8000/v1

The first asks a text-generation model of transformers, the second any OpenAI-compatible service
(its key: OPENAI_API_KEY in the environment). Writes a text file, a sentence a line, to read and to
edit. Two such files give an edit direction:

  python generate/run.py task=custom task.source=tree task.target="cherry blossom tree" \\
      task.source_bank=runs/banks/tree.txt task.target_bank=runs/banks/cherry-blossom-tree.txt

A file that is there is left as it is. After an interruption the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import UserError
from configs.files import digest, whole_file

FOLDER = Path("runs") / "banks"  # beside the runs, which git ignores
SENTENCES = 1000  # the paper's
REQUEST = (
    "Provide many captions for images containing {words}. Write one caption a line and nothing else. "
    "Vary the place, the light, the style, the number and what is beside it."
)
MARKER = re.compile(r"^\s*(?:[-*•]|\d+[.):])?\s*")  # a list's bullet or number
FEWEST_WORDS = 3  # of a caption: 'Sure:' is none
MOST_LETTERS = 300  # of a caption: a paragraph is none
IDLE_REPLIES = 5  # so many in a row without a new sentence: the model has no more
TIMEOUT_S = 120.0  # of a service
MAX_TOKENS = 512  # of a local model's reply

Writer = Callable[[str, int], str]  # a request and a seed -> the reply


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns 0, 2 with one line about what to mend, or 130 after Ctrl-C."""
    arguments = _parser().parse_args(argv)
    path = arguments.out or default_path(arguments.words)
    try:
        if arguments.sentences < 2:
            raise UserError("--sentences is 2 or more")
        if path.exists():
            print(f"{path} is there already: delete it to have it written anew")
            return 0
        write_bank(path, arguments.words, arguments.sentences, arguments.model, arguments.endpoint)
        print(f"wrote {path}: read it, mend it, and name it as task.source_bank= or task.target_bank=")
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped: run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("words", metavar="WORDS", help="what the sentences are about: 'oak tree in winter'")
    parser.add_argument(
        "--model", required=True, help="folder or hub name; with --endpoint the service's name for a model"
    )
    parser.add_argument("--endpoint", default="", help="base address of a service: https://HOST/v1")
    parser.add_argument(
        "--sentences", type=int, default=SENTENCES, help=f"how many, 2 or more (default: {SENTENCES})"
    )
    parser.add_argument("--out", type=Path, help=f"the file to write (default: {FOLDER}/WORDS.txt)")
    return parser


def default_path(words: str) -> Path:
    """The file for these words below FOLDER: cherry-blossom-tree.txt."""
    slug = re.sub(r"\W+", "-", words.lower()).strip("-")
    return FOLDER / f"{slug}.txt"


def write_bank(path: Path, words: str, sentences: int, model: str, endpoint: str = "") -> None:
    """Write `sentences` different captions about the words to `path`.

    What was replied so far is kept beside it, in a .part file of these words and this model, and is
    gone on from. UserError where the model does not load or answer, or has no more to say.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{digest(words, model, endpoint)}.part")
    captions = part.read_text().splitlines() if part.exists() else []
    ask = endpoint_writer(model, endpoint) if endpoint else local_writer(model)
    replies = 0
    idle_replies = 0  # in a row, without a new caption
    while len(captions) < sentences:
        reply = ask(REQUEST.format(words=words), len(captions) + replies)  # another seed every time
        replies += 1
        count = len(captions)
        for caption in captions_of(reply, words):
            if caption not in captions and len(captions) < sentences:
                captions.append(caption)
        idle_replies = idle_replies + 1 if len(captions) == count else 0
        if idle_replies == IDLE_REPLIES:
            raise UserError(
                f"{model} has no more captions of {words} than the {len(captions)} in {part}: "
                "lower --sentences"
            )
        part.write_text("\n".join(captions))
    header = f"# {words}, by {model}; edit it, or delete it to have it made anew"
    with whole_file(path) as stream:
        stream.write("\n".join([header, *captions[:sentences], ""]).encode())
    part.unlink()


def captions_of(reply: str, words: str) -> list[str]:
    """The captions of a reply, a line each, without bullets, numbers and quotes.

    Lines that are no captions (too short, too long, 'Here are some:') are left out. The words are
    appended to a caption that lacks them.
    """
    captions = []
    for line in reply.splitlines():
        caption = MARKER.sub("", line).strip(" \"'“”")
        if len(caption.split()) < FEWEST_WORDS or len(caption) > MOST_LETTERS or caption.endswith(":"):
            continue
        if words.lower() not in caption.lower():
            caption = f"{caption.rstrip('.')}, {words}"
        captions.append(caption)
    return captions


def local_writer(model: str) -> Writer:
    """A text-generation model of transformers. UserError where it does not load."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline, set_seed

    from models.weights import from_transformers

    advice = "it takes a text-generation model of transformers"
    classes = (AutoModelForCausalLM, AutoTokenizer)
    network, tokenizer = from_transformers(*classes, "--model", model, advice, dtype="auto")
    generator = pipeline("text-generation", model=network, tokenizer=tokenizer)

    def ask(request: str, seed: int) -> str:
        set_seed(seed)
        chats = generator.tokenizer.chat_template is not None
        # A model that does not chat goes on with a text: here with the first line of a numbered list.
        prompt = [{"role": "user", "content": request}] if chats else f"{request}\n1."
        replies = generator(
            prompt, do_sample=True, top_p=0.95, max_new_tokens=MAX_TOKENS, return_full_text=False
        )
        text = replies[0]["generated_text"]
        return str(text if isinstance(text, str) else text[-1]["content"])

    return ask


def endpoint_writer(model: str, endpoint: str) -> Writer:
    """A model of an OpenAI-compatible service. UserError where the address or a reply is none."""
    if not endpoint.startswith(("http://", "https://")):
        raise UserError(f"--endpoint {endpoint}: it is the base address of a service, https://HOST/v1")
    headers = {"Content-Type": "application/json"}
    if os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {os.environ['OPENAI_API_KEY']}"
    address = f"{endpoint.rstrip('/')}/chat/completions"

    def ask(request: str, seed: int) -> str:
        messages = [{"role": "user", "content": request}]
        body = {"model": model, "messages": messages, "temperature": 1.0, "seed": seed}
        call = urllib.request.Request(address, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(call, timeout=TIMEOUT_S) as reply:
                return str(json.load(reply)["choices"][0]["message"]["content"])
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise UserError(f"--endpoint {endpoint} gave no chat completion of {model}: {error}") from error

    return ask


if __name__ == "__main__":
    raise SystemExit(main())
