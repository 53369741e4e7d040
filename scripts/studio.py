"""The studio: edit one picture in a browser, and see which settings an edit wants before it makes pairs.

  zero2gan studio [task=tree2winter] [studio.port=7860]
  zero2gan studio preset=paper source.images=PHOTOS

Two words or a task, and a few sliders; the teacher's edit appears as it is made, with the scores that the
filter would give it, beside the generator's and the true edit where there are such. Tries stay to compare.
"Use these settings" writes a task file and prints the command that makes the pairs.

The page is at http://127.0.0.1:<studio.port>, on this machine alone. Needs `pip install -e '.[studio]'`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.cli import entry
from configs.errors import UserError
from configs.runs import run_dir
from configs.schema import Config

if TYPE_CHECKING:
    import gradio

SECTIONS = ("task", "teacher", "source", "direction", "edit", "guidance", "studio")
HOST = "127.0.0.1"  # nobody else on the network reaches the page
MAX_UPLOAD = "20mb"  # of a picture; generate/sources.py refuses more than 89 million pixels before it decodes
SESSIONS = 8  # open pages whose tries are kept in memory
# The page asks nobody but this server for anything.
POLICY = "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; frame-ancestors 'none'"
ENVIRONMENT = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work(config: Config) -> None:
        serve_forever(config, [argument for argument in arguments if not argument.startswith("-")])

    return entry(__doc__, SECTIONS, work, plan, argv)


def plan(config: Config) -> dict[str, Any]:
    """What --dry-run prints."""
    return {
        "page": f"http://{HOST}:{config.studio.port or '<a free port>'}",
        "starts with": f"{config.task.source} -> {config.task.target}",
        "a generator of the run": run_dir(config) / "export",
        "task files": Path(config.runs_dir) / "tasks",
    }


def serve_forever(config: Config, given: Sequence[str]) -> None:
    """Load the models, serve the page and wait for Ctrl-C, which is its proper end."""
    import_gradio()
    with own_folder() as folder, serving(given, folder, config.studio.port) as address:
        print(f"studio: {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


def import_gradio() -> Any:
    """The library of the page. UserError where it is not installed."""
    os.environ.update(ENVIRONMENT)  # it reads them when it is imported
    try:
        import gradio
    except ImportError as error:
        raise UserError(f"the studio's page needs Gradio: pip install -e '.[studio]' ({error})") from error
    return gradio


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for uploads and shown pictures, the only one that is served; it goes at the end."""
    name = "GRADIO_TEMP_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="zero2gan-studio-") as folder:
        os.environ[name] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@contextlib.contextmanager
def serving(given: Sequence[str], folder: Path, port: int) -> Iterator[str]:
    """Serve the page of these arguments inside the block; gives its address.

    folder: of own_folder. UserError for a port that is taken, and what CommandLine and Studio raise.
    """
    port = free_port(port)
    from scripts.workbench.engine import Studio
    from scripts.workbench.page import CSS, open_page, theme
    from scripts.workbench.settings import CommandLine

    line = CommandLine(given)
    page = open_page(line, Studio(line), sample_photographs(folder))
    launch(page, port, theme=theme(), css=CSS)
    try:
        yield f"http://{HOST}:{port}"
    finally:
        page.close(verbose=False)


def launch(page: gradio.Blocks, port: int, **look: Any) -> None:
    """Serve the page on loopback: one edit at a time, no share link, no telemetry, no file but its own."""
    from starlette.middleware import Middleware

    # Gradio asks its own address whether it answers; that must not go through a proxy.
    hosts = [host for host in os.environ.get("NO_PROXY", "").split(",") if host]
    os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, HOST, "localhost"]))
    page.queue(default_concurrency_limit=1, max_size=16)
    page.launch(
        server_name=HOST,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        show_error=True,
        max_file_size=MAX_UPLOAD,
        allowed_paths=[],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        state_session_capacity=SESSIONS,
        enable_monitoring=False,
        app_kwargs={"middleware": [Middleware(WithPolicy)]},
        **look,
    )


class WithPolicy:
    """Adds the content security policy to every answer of a server (ASGI)."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                header = (b"content-security-policy", POLICY.encode())
                message = {**message, "headers": [*message["headers"], header]}
            await send(message)

        await self.app(scope, receive, send_with_policy)


def free_port(port: int) -> int:
    """The port itself, or any free one for 0. UserError where another process has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"studio.port={port} cannot be had ({error.strerror}): take another, or 0 for any free one"
            ) from error
        return int(probe.getsockname()[1])


def sample_photographs(folder: Path) -> Path | None:
    """A folder below this one with the photographs that scikit-image installs; None without it."""
    from scripts.demo import sample_photographs

    try:
        return sample_photographs(folder / "photographs")
    except ImportError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
