"""What the pages say can be done: links lead somewhere, and every command is one that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from configs.loader import load
from configs.runs import remember, run_dir
from filter.run import split_select
from scripts.zero2gan import STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path for path in ROOT.rglob("*.md") if not {".venv", "runs"} & set(path.relative_to(ROOT).parts)
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HISTORY = {"journal.md", "CHANGELOG.md"}  # tell of keys and files that there were
# Commands of these take arguments of their own, which their own tests are about.
OWN_ARGUMENTS = {"translate", "fetch", "scripts/fetch.py", "distill/translate.py", "scripts/rehearse.py"}
OWN_ARGUMENTS |= {"scripts/write_bank.py", "scripts/train_miniature.py"}
READERS_OWN = {"task=./mine.yaml", "edit.method=snow", "teacher=snow"}
WORD = {"table1", "table2", "figure9", "losses", "augment", "batches", "sizes", "transfer"}
WORD |= {"generate", "infer", "filter", "train"}  # benchmark's


def anchor(title: str) -> str:
    """What a page's heading is linked by."""
    return re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in LINK.findall(page.read_text()):
        if target.startswith(("http", "mailto:", "{{")):
            continue
        file, _, place = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{page.name} links to {target}"
        if place:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            assert place in map(anchor, headings), f"{page.name} links to {target}"


def commands(page: Path) -> list[str]:
    """The command lines of a page's blocks: continued lines joined, comments and prompts left out."""
    text = page.read_text().replace("\\\n", " ")
    lines = []
    for line in text.splitlines():
        if re.match(r"^ {4,}(zero2gan|python|accelerate launch|torchrun) ", line):
            lines += line.strip().partition("   #")[0].partition("  # ")[0].split(" && ")
    return [line for line in lines if "$" not in line]  # a shell's variables


def parsed(line: str) -> tuple[str, list[str]]:
    """The stage or script of a command line, and its arguments."""
    words = shlex.split(line.partition("   ")[0] if "   " in line else line)
    if words[0] == "zero2gan":
        return words[1], words[2:]
    scripts = [place for place, word in enumerate(words) if word.endswith(".py")]
    if not scripts:
        return "", []
    return words[scripts[0]], words[scripts[0] + 1 :]


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in HISTORY], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_command_names_keys_that_there_are(page, tmp_path):
    known = load([f"runs_dir={tmp_path}"])
    remember(known, ())
    run = str(run_dir(known))
    for line in commands(page):
        stage, arguments = parsed(line)
        if not stage:
            continue
        assert stage in STAGES or (ROOT / stage).is_file(), line
        if stage in OWN_ARGUMENTS:
            continue
        if arguments and arguments[0] in WORD:
            arguments = arguments[1:]
        keys = []
        for argument in split_select(arguments)[0]:
            if argument.startswith("--"):
                continue
            if argument in ("run=RUN", "RUN") or argument.startswith(("runs/", "run=runs/", "RUN/")):
                keys.append(run)
            elif argument in READERS_OWN:
                continue
            else:
                keys.append(argument.replace("teacher.path=FOLDER", "teacher.path=models/miniature/teacher"))
        load(keys)
