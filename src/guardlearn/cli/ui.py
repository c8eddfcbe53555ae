"""`guardlearn ui`: ℛ in a browser."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from guardlearn.cli import console
from guardlearn.cli.actor import actor
from guardlearn.errors import missing_library

_PORT = 8765
_CLOSE_SECONDS = 3.0
"""A query that a thread still runs may keep the repository's file so long; then the process ends without it."""


def command(
    db: Annotated[str, typer.Argument(help="The repository; only a mark writes to it.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond this machine a token is asked for.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = _PORT,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the address in a browser here.")] = False,
    read_only: Annotated[bool, typer.Option("--read-only", help="Refuse marks.")] = False,
    model: Annotated[
        str | None, typer.Option(help="Model whose tokenizer shows training rows as tokens: demo, a folder, a name.")
    ] = None,
    evidence: Annotated[
        list[Path] | None, typer.Option(help="Folder with evaluations to show; may be given again.")
    ] = None,
    as_json: console.Json = False,
) -> None:
    """Browse attempts, chains and what they become before anyone trains on them; mark chains; Ctrl-C ends it.

    Listens on this machine only, unless --host says otherwise. Nothing is fetched from elsewhere.
    """
    try:
        from guardlearn.ui.serving import bind, open_for_pages, serve
    except ModuleNotFoundError as error:
        raise missing_library(error.name or "starlette", "ui", "the browser") from error
    tokenizer = _folder(model)
    with console.late_progress("open") as on_progress:
        opened = open_for_pages(
            db,
            actor=actor(),
            read_only=read_only,
            model=tokenizer,
            evidence=tuple(evidence or ()),
            on_progress=on_progress,
        )
    try:
        bound = bind(host, port)
        signal.signal(signal.SIGTERM, lambda number, frame: None)  # the server ends by itself, and passes it on
        _say(bound.url, opened.dag.target, bool(bound.access.token), opened.read_only, as_json)
        if open_browser:
            import webbrowser

            webbrowser.open(bound.url)
        serve(opened, bound)
    finally:
        closing = threading.Thread(target=opened.dag.close, daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)
    console.say("guardlearn ui: ended")
    _leave()


def _folder(model: str | None) -> str | None:
    """Return a model's folder: no request of a page may fetch one."""
    if model is None:
        return None
    from guardlearn.models import resolve_model

    with console.late_progress("model") as on_progress:
        return str(resolve_model(model, on_progress))


def _say(url: str, target: str, asks: bool, read_only: str, as_json: bool) -> None:
    if as_json:
        console.emit({"url": url, "repository": target, "token": asks, "read_only": bool(read_only)})
    console.say(f"{target}: {url} (Ctrl-C ends)")
    if asks:
        console.say("others can connect: whoever has this address with its token may read, and mark")
    if read_only:
        console.say(read_only)


def _leave() -> None:
    """End now where a thread still reads: nobody waits for its answer."""
    if any(thread.name.startswith("AnyIO") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
