"""Banks from a language model: a service of the OpenAI kind on this machine, and a local model of a few thousand random weights."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from configs.errors import UserError
from configs.schema import Direction, Task
from generate.banks import captions_of, task_banks, written_bank


@pytest.fixture
def service():
    """(address, the requests it got); replies three captions a call, two of them new."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append((self.path, self.headers.get("Authorization"), body))
            if body["model"] == "wrong":
                self.send_error(404, "no such model")
                return
            number = 0 if body["model"] == "stuck" else len(requests)
            text = f'Sure:\n1. "A cat on roof {number}."\n- a dog in house {number}\n2) the same cat always'
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", requests
    server.shutdown()
    thread.join()
    server.server_close()


def test_captions_of_a_reply():
    reply = (
        'Here are some:\n\n1. A cat asleep.\n- "a small Cat, outside"\n3) Two dogs\n* a dog on a sofa.\nno\n'
    )
    assert captions_of(reply, "cat") == ["A cat asleep.", "a small Cat, outside", "a dog on a sofa, cat"]


def test_a_bank_is_asked_for_once_and_can_be_edited(service, tmp_path, monkeypatch):
    address, requests = service
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    config = Direction(language_model="writer", endpoint=address, sentences=5)
    path = written_bank("cat", config, tmp_path)
    first, *lines = path.read_text().splitlines()
    assert first.startswith("# cat, by writer") and len(lines) == 5 == len(set(lines))
    assert lines[:3] == ["A cat on roof 1.", "a dog in house 1, cat", "the same cat always"]
    where, key, body = requests[0]
    assert (
        where == "/v1/chat/completions" and key == "Bearer secret" and "cat" in body["messages"][0]["content"]
    )
    assert len({body["seed"] for _, _, body in requests}) == len(requests) == 2
    path.write_text("a cat that I wrote\nanother cat\n")
    assert written_bank("cat", config, tmp_path) == path and len(requests) == 2
    source, _ = task_banks(Task(source="cat", target="dog", target_bank=str(path)), config, tmp_path)
    assert source == ["a cat that I wrote", "another cat"]


def test_an_interruption_keeps_what_was_replied(service, tmp_path):
    address, requests = service
    good = Direction(language_model="writer", endpoint=address, sentences=4)
    path = written_bank("cat", good, tmp_path)
    whole = path.read_text()
    path.with_suffix(".part").write_text("A cat on roof 1.\na dog in house 1, cat\nthe same cat always\n")
    path.unlink()
    asked = len(requests)
    again = written_bank("cat", good, tmp_path).read_text()
    assert len(requests) == asked + 1 and again.splitlines()[:4] == whole.splitlines()[:4]


@pytest.mark.parametrize(
    ("model", "address", "says"),
    [
        ("wrong", None, "direction.endpoint=.* gave no chat completion of wrong: .*404"),
        ("stuck", None, "stuck has no more captions of cat than the 3 in .*: lower direction.sentences"),
        ("writer", "http://127.0.0.1:1/v1", "direction.endpoint=.* gave no chat completion"),
        ("writer", "file:///etc/passwd", "base address of a service"),
        ("/nowhere/at-all", "", "direction.language_model=/nowhere/at-all does not load"),
    ],
)
def test_what_gives_nothing_says_so(service, tmp_path, model, address, says):
    endpoint = service[0] if address is None else address
    with pytest.raises(UserError, match=says):
        written_bank("cat", Direction(language_model=model, endpoint=endpoint, sentences=9), tmp_path)


def test_a_local_model(tmp_path):
    """A GPT-2 of random weights over a vocabulary of whole words: what it says means nothing, but it is captions."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, set_seed

    words = ["<unk>", "<end>", "\n", "a", "cat", "on", "the", "roof", "sofa", "red", "asleep"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>", pad_token="<end>"
    )
    set_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(words),
            n_positions=600,
            n_embd=8,
            n_layer=1,
            n_head=1,
            bos_token_id=1,
            eos_token_id=1,
        )
    )
    model.save_pretrained(tmp_path / "model")
    fast.save_pretrained(tmp_path / "model")
    config = Direction(language_model=str(tmp_path / "model"), sentences=4)
    found = written_bank("cat", config, tmp_path / "banks").read_text()
    assert len(found.splitlines()) == 5 and all("cat" in line for line in found.splitlines())
    assert written_bank("cat", config, tmp_path / "again").read_text() == found  # seeded
