"""A hub on this machine: the few answers of the Hugging Face hub that a download asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}
UNKNOWN = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}


@dataclass
class Hub:
    """models: name -> file -> content; gated: names whose files are refused; served: files that were sent."""

    models: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    cut: set[str] = field(default_factory=set)  # files whose connection breaks half-way
    served: list[str] = field(default_factory=list)
    private: dict[str, bool] = field(default_factory=dict)  # repositories that were created
    url: str = ""


PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy")


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at hub.url, until the block ends."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:  # noqa: N802 - http.server's name
            answer(self, hub)

        def do_GET(self) -> None:  # noqa: N802
            answer(self, hub)

        def do_POST(self) -> None:  # noqa: N802
            take(self, hub)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def answer(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    """One answer: the description of a model, its tree of files, or a file."""
    path = unquote(urlsplit(request.path).path).strip("/")
    is_api = path.startswith("api/models/")
    parts = path.removeprefix("api/models/").split("/")
    name = "/".join(parts[:2])
    files = hub.models.get(name)
    if files is None:
        send(request, 404, b"", UNKNOWN)
    elif is_api and parts[2:3] == ["tree"]:
        send_json(request, [entry(file, content) for file, content in files.items()])
    elif is_api:
        siblings = []
        for file, content in files.items():
            described = entry(file, content)
            siblings.append({"rfilename": file, "size": described["size"], "lfs": described.get("lfs")})
        card = {"license": "openrail"}
        send_json(request, {"id": name, "sha": REVISION, "siblings": siblings, "cardData": card})
    elif name in hub.gated:
        send(request, 403, b"", GATED)
    else:
        send_file(request, hub, "/".join(parts[4:]), files)  # NAME/resolve/REVISION/FILE


def take(request: BaseHTTPRequestHandler, hub: Hub) -> None:
    """A new repository, the question how files are to be sent, or a commit of them."""
    body = read_body(request)
    path = unquote(urlsplit(request.path).path).strip("/")
    if path == "api/repos/create":
        asked = json.loads(body)
        name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
        if name in hub.gated:
            send(request, 403, b"{}", {"X-Error-Message": "You are not allowed to"})
            return
        hub.models.setdefault(name, {})
        hub.private[name] = asked.get("private", False) or asked.get("visibility") == "private"
        send_json(request, {"url": f"{hub.url}/{name}", "id": name})
    elif path == "api/validate-yaml":
        send_json(request, {"errors": [], "warnings": []})
    elif "/preupload/" in path:
        files = json.loads(body)["files"]
        described = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
        send_json(request, {"files": described})
    elif "/commit/" in path:
        name = "/".join(path.split("/")[2:4])
        for line in body.decode().splitlines():
            operation = json.loads(line)
            if operation["key"] == "file":
                content = base64.b64decode(operation["value"]["content"])
                hub.models[name][operation["value"]["path"]] = content
        address = f"{hub.url}/{name}/commit/{REVISION}"
        send_json(request, {"success": True, "commitOid": REVISION, "commitUrl": address})
    else:
        send(request, 404, b"", UNKNOWN)


def read_body(request: BaseHTTPRequestHandler) -> bytes:
    """What was sent, at once or in chunks."""
    if request.headers.get("Transfer-Encoding") != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length", 0)))
    body = b""
    while size := int(request.rfile.readline(), 16):
        body += request.rfile.read(size)
        request.rfile.readline()
    request.rfile.readline()
    return body


def entry(file: str, content: bytes) -> dict[str, object]:
    """A file as the hub's listing has it; weights are 'large'."""
    described: dict[str, object] = {
        "type": "file",
        "path": file,
        "size": len(content),
        "oid": git_hash(content),
    }
    if not file.endswith((".json", ".txt")):
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"oid": digest, "sha256": digest, "size": len(content), "pointerSize": 1}
    return described


def git_hash(content: bytes) -> str:
    """What git calls a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def send_file(request: BaseHTTPRequestHandler, hub: Hub, file: str, files: dict[str, bytes]) -> None:
    """A file with the headers that the hub's client caches by; half of one that is cut."""
    if file not in files:
        send(request, 404, b"", {"X-Error-Code": "EntryNotFound"})
        return
    content = files[file]
    described = entry(file, content)
    lfs = described.get("lfs")
    tag = lfs["oid"] if isinstance(lfs, dict) else described["oid"]
    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": REVISION}
    start = 0
    asked = request.headers.get("Range", "")
    if asked.startswith("bytes="):
        start = int(asked.removeprefix("bytes=").split("-")[0])
    if request.command == "GET":
        hub.served.append(file)
    send(request, 206 if start else 200, content[start:], headers, is_cut=file in hub.cut)


def send_json(request: BaseHTTPRequestHandler, content: object) -> None:
    """JSON, with status 200."""
    send(request, 200, json.dumps(content).encode(), {"Content-Type": "application/json"})


def send(
    request: BaseHTTPRequestHandler,
    status: int,
    content: bytes,
    headers: dict[str, str],
    is_cut: bool = False,
) -> None:
    """One answer; of one that is cut half the bytes that its length promises."""
    request.send_response(status)
    for name, value in headers.items():
        request.send_header(name, value)
    request.send_header("Content-Length", str(len(content)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(content[: len(content) // 2] if is_cut else content)
