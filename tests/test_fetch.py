"""Weights from a hub: what is downloaded, what is kept of it, and one line for all that can go wrong."""

import contextlib
import errno
import hashlib
import json
import socket
import threading
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from configs.errors import UserError
from configs.loader import load
from configs.schema import Scorer
from models import clip_scorer, hub, published
from models.hub import local_model
from scripts import fetch
from tests import hub_server

TEACHER = "someone/small-diffusion"
CLIP = "timm/vit_large_patch14_clip_224.openai"  # open_clip's repository for the default scorer
FILES = {
    "model_index.json": b"{}",
    "small.ckpt": b"a single file beside the folders",
    "unet/config.json": b'{"a": 1}',
    "unet/diffusion_pytorch_model.bin": b"pickled",
    "unet/diffusion_pytorch_model.safetensors": b"unet" * 1000,
}
WANTED = ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"]
RUN = ["preset=paper", "task=cat2dog", f"teacher.path={TEACHER}", "segmenter.model=vit_b", "evaluate.dino="]


@pytest.fixture
def served(monkeypatch, tmp_path):
    """A hub with one teacher and one CLIP, an empty cache and an empty home folder."""
    for proxy in hub_server.PROXIES:
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with hub_server.serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        server.models[TEACHER] = dict(FILES)
        server.models[CLIP] = {"open_clip_config.json": b"{}", "open_clip_model.safetensors": b"clip" * 100}
        server.models["segment/anything"] = {"sam.pth": b"sam" * 100}
        sam = published.PublishedFile(
            f"{server.url}/segment/anything/resolve/main/sam.pth",
            300,
            hashlib.sha256(b"sam" * 100).hexdigest(),
            "Apache-2.0",
        )
        monkeypatch.setitem(published.SAM_FILES, "vit_b", sam)
        yield server


@pytest.fixture
def cut_off(monkeypatch):
    """Call it to lose the network."""
    return lambda: monkeypatch.setattr(hub, "is_reached", lambda url: False)


def files_below(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


# ---- a hub name as a stage takes it ----


def test_a_name_brings_one_copy_of_the_weights_which_serves_without_a_network(served, cut_off):
    folder = local_model(TEACHER, "teacher.path")
    assert files_below(folder) == WANTED
    assert (folder / WANTED[-1]).read_bytes() == FILES[WANTED[-1]]
    cut_off()
    assert local_model(TEACHER, "teacher.path") == folder


def test_a_name_that_the_hub_does_not_know(served):
    with pytest.raises(UserError, match="teacher.path=no/model: .* the hub has no model of that name"):
        local_model("no/model", "teacher.path")


def test_a_licence_that_is_not_accepted_is_named_with_its_page(served):
    served.gated.add(TEACHER)
    with pytest.raises(UserError) as caught:
        local_model(TEACHER, "teacher.path")
    assert f"do so at {served.url}/{TEACHER}, then hf auth login" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_connection_that_breaks_is_one_line_and_the_next_try_ends_the_download(served, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits between its tries
    served.cut.add(WANTED[-1])
    with pytest.raises(UserError) as caught:
        local_model(TEACHER, "teacher.path")
    assert str(caught.value) == (
        f"teacher.path={TEACHER}: no folder here, and the connection to the hub fails: run the same command "
        f"again to go on. Or where there is a network: hf download {TEACHER} --local-dir small-diffusion; "
        "then bring the folder and set teacher.path=small-diffusion"
    )
    served.cut.clear()
    assert files_below(local_model(TEACHER, "teacher.path")) == WANTED


@pytest.mark.parametrize("answers", [b"", b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"])
def test_a_hub_that_takes_a_connection_and_no_more_is_told_in_our_own_words(served, monkeypatch, answers):
    """The client's words advise its Python arguments, which no command here has."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer_all, args=(server, answers), daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError) as caught:
            local_model(TEACHER, "teacher.path")
    said = "the hub answers '503 Service Unavailable'" if answers else hub.CUT
    message = str(caught.value)
    assert f"teacher.path={TEACHER}: no folder here, and {said}: run the same command again" in message
    assert "\n" not in message


def answer_all(server: socket.socket, answer: bytes) -> None:
    """Answer each connection so, until the server is closed."""
    with contextlib.suppress(OSError):
        while True:
            connection, _ = server.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(answer)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (LocalEntryNotFoundError("To enable downloads online, pass 'local_files_only=False'."), hub.CUT),
        (OSError(errno.ENOSPC, "No space left on device"), "it cannot be written (No space left on device)"),
        (RuntimeError(), hub.CUT),
    ],
)
def test_no_python_argument_is_advised(error, says):
    message = hub.what_the_hub_says(TEACHER, error)
    assert message.startswith(says) and "local_files_only" not in message


# ---- the command ----


def test_what_is_needed_is_named_fetched_once_and_kept_with_its_hashes(served, cut_off, capsys, tmp_path):
    assert fetch.main(RUN) == 0
    printed = capsys.readouterr().out
    assert f"teacher: {TEACHER}, 0.00 GB, openrail, not here" in printed
    assert "segmenter: sam.pth, 0.00 GB, Apache-2.0, not here" in printed
    record = json.loads((tmp_path / "home" / ".cache" / "zero2gan" / "fetched.json").read_text())
    assert sorted(record) == sorted(["sam.pth", TEACHER, CLIP])
    assert record[TEACHER]["revision"] == hub_server.REVISION and sorted(record[TEACHER]["files"]) == WANTED
    unet = record[TEACHER]["files"][WANTED[-1]]
    assert unet == {"bytes": 4000, "sha256": hashlib.sha256(FILES[WANTED[-1]]).hexdigest()}

    sent = len(served.served)
    assert fetch.main(RUN) == 0
    assert len(served.served) == sent
    capsys.readouterr()
    cut_off()
    assert fetch.main([*RUN, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all(line.endswith("0.00 GB") for line in lines)
    assert fetch.main(RUN) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "the hub is not reached" in error and "--to FOLDER" in error


def test_stages_find_what_was_fetched_without_a_key(served, cut_off, tmp_path):
    assert fetch.main(RUN) == 0
    cut_off()
    assert local_model(TEACHER, "teacher.path").is_dir()
    assert clip_scorer.find_checkpoint(Scorer()).file.read_bytes() == b"clip" * 100
    config = load(RUN)
    assert published.sam_checkpoint(config.segmenter).read_bytes() == b"sam" * 100


def test_a_plan_fetches_nothing(served, capsys, tmp_path):
    assert fetch.main([*RUN, "--dry-run"]) == 0
    assert f"teacher: {TEACHER}" in capsys.readouterr().out
    assert not served.served and not (tmp_path / "home").exists()


def test_a_folder_to_carry_elsewhere_and_the_keys_that_take_it(served, capsys, tmp_path):
    folder = tmp_path / "weights"
    assert fetch.main([*RUN, "--to", str(folder)]) == 0
    keys = capsys.readouterr().out.split("on the other machine:\n")[1].split()
    assert keys == [
        f"teacher.path={folder}/small-diffusion",
        f"scorer.model=local-dir:{folder}/vit_large_patch14_clip_224.openai",
        "scorer.pretrained=",
        f"segmenter.checkpoint={folder}/sam.pth",
    ]
    assert [file for file in files_below(folder / "small-diffusion") if not file.startswith(".")] == WANTED
    assert fetch.main([*RUN, f"--to={folder}", "--list"]) == 0
    assert capsys.readouterr().out.count("0.00 GB") == 3


def test_what_is_not_as_published_is_refused(served, capsys):
    assert fetch.main(RUN) == 0
    file = local_model(TEACHER, "teacher.path") / WANTED[-1]
    file.resolve().write_bytes(b"xnet" * 1000)
    assert fetch.main(RUN) == 2
    assert f"{file} is not what was published" in capsys.readouterr().err


def test_a_file_with_another_hash_is_not_kept(served, capsys, tmp_path):
    served.models["segment/anything"]["sam.pth"] = b"mas" * 100
    assert fetch.main(RUN) == 2
    error = capsys.readouterr().err.splitlines()[-1]  # below the client's bars
    assert error.startswith(f"error: {served.url}/segment/") and "run the same command again" in error
    assert not list((tmp_path / "home" / ".cache" / "zero2gan").glob("*.pth"))


def test_a_disk_that_is_too_small_is_said_before_the_download(served, capsys, monkeypatch):
    monkeypatch.setattr(fetch, "FREE_GB", 1e9)
    assert fetch.main(RUN) == 2
    assert "GB are to be fetched, and the disk" in capsys.readouterr().err and not served.served


def test_the_miniature_needs_nothing(capsys):
    assert fetch.main([]) == 0
    assert "nothing to fetch" in capsys.readouterr().out


def test_a_path_that_is_not_there_is_no_name(capsys):
    assert fetch.main(["preset=paper", "teacher.path=/no/where", "--list", "--dry-run"]) == 2
    assert "teacher.path=/no/where: there is no such folder" in capsys.readouterr().err


def test_weights_that_open_clip_does_not_know(capsys):
    assert fetch.main(["preset=paper", "scorer.pretrained=nowhere"]) == 2
    assert "the hub has no such weights that open_clip knows of" in capsys.readouterr().err
