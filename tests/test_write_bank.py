"""Sentences of a language model: a service of the OpenAI kind on this machine, and random weights."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from configs.schema import Direction, Task
from generate.banks import task_banks
from scripts import write_bank
from tests import layouts

ROOT = Path(write_bank.__file__).parent.parent


class Service:
    """Replies three captions a request, two of them new; `lasts` requests, then it is overloaded."""

    def __init__(self):
        self.requests = []  # path, Authorization, body
        self.lasts = 1000

    def reply_to(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append((handler.path, handler.headers.get("Authorization"), body))
        if body["model"] == "wrong" or len(self.requests) > self.lasts:
            handler.send_error(404 if body["model"] == "wrong" else 503)
            return
        number = 0 if body["model"] == "stuck" else len(self.requests)
        text = f'Sure:\n1. "A cat on roof {number}."\n- a dog in house {number}\n2) the same cat always'
        reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(reply)))
        handler.end_headers()
        handler.wfile.write(reply)


@pytest.fixture
def service():
    """A Service, with its `address`."""
    made = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            made.reply_to(self)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    made.address = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield made
    server.shutdown()
    thread.join()
    server.server_close()


def arguments(path, sentences, model="writer", endpoint=""):
    command = ["cat", "--model", model, "--sentences", str(sentences), "--out", str(path)]
    return [*command, "--endpoint", endpoint] if endpoint else command


def test_captions_of_a_reply():
    reply = (
        'Here are some:\n\n1. A cat asleep.\n- "a small Cat, outside"\n3) Two dogs\n* a dog on a sofa.\nno\n'
    )
    captions = write_bank.captions_of(reply, "cat")
    assert captions == ["A cat asleep.", "a small Cat, outside", "a dog on a sofa, cat"]


def test_a_bank_is_written_once_and_can_be_edited(service, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    path = tmp_path / "banks" / "cat.txt"
    command = arguments(path, 5, endpoint=service.address)
    assert write_bank.main(command) == 0
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# cat, by writer") and len(lines) == 5 == len(set(lines))
    assert lines[:3] == ["A cat on roof 1.", "a dog in house 1, cat", "the same cat always"]
    place, key, body = service.requests[0]
    assert place == "/v1/chat/completions" and key == "Bearer secret"
    assert "cat" in body["messages"][0]["content"]
    seeds = {body["seed"] for _, _, body in service.requests}
    assert len(seeds) == len(service.requests) == 2
    assert list(path.parent.iterdir()) == [path]

    path.write_text("a cat that I wrote\nanother cat\n")
    assert write_bank.main(command) == 0 and len(service.requests) == 2
    assert "is there already" in capsys.readouterr().out
    task = Task(source="cat", target="dog", source_bank=str(path))
    assert task_banks(task, Direction(sentences=7))[0] == ["a cat that I wrote", "another cat"]


def test_an_interruption_keeps_what_was_replied(service, tmp_path, capsys):
    command = arguments(tmp_path / "whole.txt", 4, endpoint=service.address)
    assert write_bank.main(command) == 0 and len(service.requests) == 2
    service.requests.clear()
    service.lasts = 1
    path = tmp_path / "cat.txt"
    command = arguments(path, 4, endpoint=service.address)
    assert write_bank.main(command) == 2 and "503" in capsys.readouterr().err
    assert not path.exists()
    service.requests = service.requests[:1]
    service.lasts = 2
    assert write_bank.main(command) == 0 and len(service.requests) == 2
    assert path.read_text() == (tmp_path / "whole.txt").read_text()


def test_what_another_model_or_word_was_asked_is_not_gone_on_from(service, tmp_path):
    path = tmp_path / "cat.txt"
    service.lasts = 1
    assert write_bank.main(arguments(path, 4, endpoint=service.address)) == 2
    service.requests.clear()
    service.lasts = 1000
    assert write_bank.main(arguments(path, 4, "other", service.address)) == 0
    assert len(service.requests) == 2


@pytest.mark.parametrize(
    ("model", "endpoint", "message"),
    [
        ("wrong", "SERVICE", "gave no chat completion of wrong: HTTP Error 404"),
        ("stuck", "SERVICE", "stuck has no more captions of cat than the 3 in "),
        ("writer", "http://127.0.0.1:1/v1", "--endpoint http://127.0.0.1:1/v1 gave no chat completion"),
        ("writer", "file:///etc/passwd", "base address of a service"),
        ("/nowhere/at-all", "", "--model=/nowhere/at-all: there is no such folder"),
    ],
)
def test_what_gives_nothing_says_so(service, tmp_path, capsys, model, endpoint, message):
    endpoint = service.address if endpoint == "SERVICE" else endpoint
    assert write_bank.main(arguments(tmp_path / "cat.txt", 9, model, endpoint)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert ("lower --sentences" in error) == (model == "stuck")


def test_too_few_sentences_are_refused(tmp_path, capsys):
    assert write_bank.main(arguments(tmp_path / "cat.txt", 1)) == 2
    assert "--sentences is 2 or more" in capsys.readouterr().err


def test_a_local_model(tmp_path, capsys):
    """A GPT-2 of random weights over a vocabulary of whole words: captions that mean nothing."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    words = ["<unk>", "<end>", "\n", "a", "cat", "on", "the", "roof", "sofa", "red", "asleep"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    set_seed(0)
    sizes = {"vocab_size": len(words), "n_positions": 600, "n_embd": 8, "n_layer": 1, "n_head": 1}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=1))
    model.save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    texts = []
    for name in ("one", "two"):
        path = tmp_path / f"{name}.txt"
        assert write_bank.main(arguments(path, 4, str(tmp_path / "model"))) == 0
        texts.append(path.read_text())
    lines = texts[0].splitlines()
    assert len(lines) == 5 and all("cat" in line for line in lines)
    assert texts[0] == texts[1]  # seeded
    layouts.rename(tmp_path / "model" / "model.safetensors", "ln_f", "last")
    assert write_bank.main(arguments(tmp_path / "three.txt", 4, str(tmp_path / "model"))) == 2
    assert "lacks 2 of the network's tensors, the first is transformer.ln_f.bias" in capsys.readouterr().err


def test_the_file_is_named_after_the_words():
    assert write_bank.default_path("Cherry blossom tree!") == Path("runs/banks/cherry-blossom-tree.txt")


def test_help_loads_nothing_heavy():
    probe = (
        "import sys\nfrom scripts import write_bank\ntry: write_bank.main(['--help'])\n"
        "except SystemExit: pass\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--endpoint" in done.stdout
