"""Models by path or by their name on the Hugging Face hub, as folders on this machine.

A name that the hub's cache does not hold is fetched where the hub is reached. Where it is not, one
short probe finds out, and one line says how to fetch the model elsewhere: the libraries' own clients
would try for minutes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from configs.errors import UserError
from configs.files import find_file

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # OWNER/MODEL
CUT = "the connection to the hub fails"  # it took one before
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # of a disk that takes no more
PROBE_S = 3.0  # a hub that is there answers in a fraction of it
CONFIGURATIONS = ("model_index.json", "config.json", "open_clip_config.json")  # a model has one of them
SMALL = (".json", ".txt", ".model")  # configurations and vocabularies
WEIGHTS = (".safetensors", ".bin")  # the first that a folder has is taken
VARIANT = re.compile(r"\.(fp16|bf16|fp32|non_ema|ema_only)[.-]")  # names of a second copy of the weights


def local_model(name: str, key: str, advice: str = "") -> Path:
    """The folder or file of a model that a key names: as a path, or as a name on the hub.

    advice: what the key takes, for a message. UserError where there is no such path, and where a hub
    name is neither in the cache nor can be fetched.
    """
    path = Path(find_file(name)).expanduser()
    if path.exists():
        return path
    if not NAME.fullmatch(name):
        raise UserError(f"{key}={name}: there is no such folder or file{advice and f': {advice}'}")
    return downloaded(name, key)


def downloaded(
    name: str, key: str, wanted: Callable[[Sequence[str]], list[str]] | None = None, to: Path | None = None
) -> Path:
    """The folder of a model of the hub: from the cache, where it is complete or the hub is not reached.

    wanted: of the names of a model's files those that are needed; default: wanted_files. to: a folder
    that takes them in the place of the cache. UserError where neither has it.
    """
    from huggingface_hub import HfApi, snapshot_download

    if not hub_is_reached():
        folder = cached(name)
        if folder is None:
            raise UserError(not_reached(name, key))
        return folder
    try:
        files = (wanted or wanted_files)(HfApi().list_repo_files(name))
        return Path(snapshot_download(name, allow_patterns=files, local_dir=to))
    except Exception as error:  # noqa: BLE001 - the hub's client and its transport raise a dozen kinds
        reason = what_the_hub_says(name, error)
        if reason.startswith(CUT):
            reason += f". Or where there is a network: {by_hand(name, key)}"
        raise UserError(f"{key}={name}: no folder here, and {reason}") from error


def cached(name: str) -> Path | None:
    """The folder of a model in the hub's cache, if it is there; nobody is asked.

    Found by its configuration: snapshot_download takes a folder of the wanted files alone for a
    download that was cut short.
    """
    from huggingface_hub import try_to_load_from_cache

    for configuration in CONFIGURATIONS:
        file = try_to_load_from_cache(name, configuration)
        if isinstance(file, str):
            return Path(file).parent
    return None


def what_the_hub_says(name: str, error: Exception) -> str:
    """Why a model was not downloaded, and what to do, in the half of a line.

    In our own words: the client's speak of its Python arguments.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if isinstance(error, GatedRepoError):
        return f"its licence is not accepted yet: do so at {constants.ENDPOINT}/{name}, then hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "the hub has no model of that name that it would show you (a private one: hf auth login)"
    response = getattr(error, "response", None) if isinstance(error, HfHubHTTPError) else None
    if response is not None:
        reason = str(getattr(response, "reason_phrase", "") or getattr(response, "reason", ""))
        answer = f"{response.status_code} {reason}".strip()
        return f"the hub answers '{answer}': run the same command again later"
    if isinstance(error, OSError) and error.errno in FULL:
        return f"it cannot be written ({error.strerror}): make room in {constants.HF_HUB_CACHE} (HF_HOME=)"
    return f"{CUT}: run the same command again to go on"


def not_reached(name: str, key: str) -> str:
    """The line for a hub name that is not in the cache, on a machine that does not reach the hub."""
    where = f"Where there is a network: {by_hand(name, key)}"
    return f"{key}={name}: no folder here, and the hub is not reached. {where}"


def by_hand(name: str, key: str) -> str:
    """How to bring a model from another machine."""
    folder = name.partition("/")[2]
    return f"hf download {name} --local-dir {folder}; then bring the folder and set {key}={folder}"


def hub_is_reached() -> bool:
    """Whether the hub (HF_ENDPOINT, else huggingface.co) takes a connection."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and is_reached(constants.ENDPOINT)


@lru_cache
def is_reached(url: str) -> bool:
    """Whether the host of an address, or the proxy before it, takes a connection; asked once a process."""
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    address = urlsplit(proxy or url)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname, port), PROBE_S).close()
    except OSError:
        return False
    return True


@contextlib.contextmanager
def cache_alone_where_not_reached() -> Iterator[None]:
    """Let libraries that ask the hub themselves look into its cache alone, where it is not reached.

    They would try for minutes.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = not hub_is_reached()
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def wanted_files(files: Sequence[str]) -> list[str]:
    """Of a model's files on the hub those that are needed: configurations, vocabularies, one copy of the
    weights a folder.

    Of weights in several formats the .safetensors are taken, and a variant (fp16, ...) only where there
    is nothing else. Single files beside a folder layout (model_index.json) are left out, unless no
    folder has weights, as in the first repositories of unconditional models.
    """
    by_folder: dict[str, list[str]] = {}
    for file in files:
        by_folder.setdefault(str(PurePosixPath(file).parent), []).append(file)
    wanted = []
    in_folders = "model_index.json" in files and any("/" in name for name in files if name.endswith(WEIGHTS))
    for folder, names in by_folder.items():
        wanted += [name for name in names if name.endswith(SMALL)]
        if folder == "." and in_folders:
            continue
        wanted += _one_copy(names)
    return sorted(set(wanted))


def _one_copy(names: Sequence[str]) -> list[str]:
    """Of the files of a folder those of one copy of the weights."""
    for is_variant in (False, True):
        for suffix in WEIGHTS:
            copy = [
                name
                for name in names
                if name.endswith(suffix) and bool(VARIANT.search(PurePosixPath(name).name)) == is_variant
            ]
            if copy:
                return copy
    return []
