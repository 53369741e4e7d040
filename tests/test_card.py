"""The model card says what the export's files say, and the folder reaches a hub as it is."""

import json

import pytest
from huggingface_hub import ModelCard, constants

from configs.errors import UserError
from distill.card import push, write_card
from distill.export import FileCheck
from models import hub
from tests import hub_server

METADATA = {
    "task": "tree2winter",
    "source": "tree in summer",
    "target": "tree in winter",
    "teacher": "miniature",
    "resolution": 128,
    "images_seen": 40,
    "pairs": 12,
    "init": "",
    "git_revision": "0123456789abcdef",
    "torch": "2.14.1",
}
CHECKS = {"generator.onnx": FileCheck(1, 0.01, 60.0, 2, 2_230_777, "00")}


@pytest.fixture
def export(tmp_path):
    """An export folder with a card, of a training that validated once."""
    train = tmp_path / "train"
    train.mkdir()
    lines = [{"images": 40, "kind": "validation", "l1": 0.1, "lpips": 0.25, "psnr": 19.5, "sharpness": 0.2}]
    (train / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = tmp_path / "export"
    folder.mkdir()
    write_card(folder, train, METADATA, CHECKS)
    (folder / "generator.onnx").write_bytes(b"weights" * 100)
    (folder / ".export.lock").touch()
    return folder


@pytest.fixture
def server(monkeypatch):
    for proxy in hub_server.PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_for_the_stand_in")
    with hub_server.serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.url)
        yield server


def test_the_card_is_one_of_the_hub_and_says_what_is_known(export):
    card = ModelCard.load(export / "README.md")
    assert card.data.to_dict()["pipeline_tag"] == "image-to-image" and card.data.library_name == "onnxruntime"
    for text in ("128 x 128", "| teacher | miniature |", "| pairs | 12,", "LPIPS 0.25", "PSNR, dB 19.5"):
        assert text in card.text
    assert "| `generator.onnx` | 2.2 | 1 | 0.01 |" in card.text and "samples.jpg" not in card.text


def test_the_folder_reaches_the_hub_as_it_is(export, server):
    assert push(export, "someone/winter") == f"{server.url}/someone/winter"
    files = {path.name: path.read_bytes() for path in export.iterdir() if not path.name.startswith(".")}
    assert server.models["someone/winter"] == files and server.private["someone/winter"] is True


def test_a_hub_that_refuses_or_is_not_there_is_one_line(export, server, monkeypatch):
    with pytest.raises(UserError, match="OWNER/MODEL"):
        push(export, "winter")
    server.gated.add("someone/winter")
    with pytest.raises(UserError, match=f"{export} is complete"):
        push(export, "someone/winter")
    monkeypatch.setattr(hub, "is_reached", lambda url: False)
    with pytest.raises(UserError, match="hf upload someone/winter"):
        push(export, "someone/winter")
