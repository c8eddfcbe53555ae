"""The server process: a socket, a token where others can connect, and an end that waits for nobody.

The socket is bound first, so that a port that is taken is one line and nothing else has begun.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import socket
from pathlib import Path

import uvicorn

from guardlearn.dag import ArtifactDAG
from guardlearn.errors import UsageError
from guardlearn.types import OnProgress
from guardlearn.ui.access import TOKEN, Access, served_names
from guardlearn.ui.addresses import with_query
from guardlearn.ui.app import application
from guardlearn.ui.opened import Opened

__all__ = ["Bound", "bind", "open_for_pages", "serve"]

_BACKLOG = 128
_GRACE_SECONDS = 1
"""How long answers that are under way may take when the server ends."""


@dataclasses.dataclass(frozen=True, slots=True)
class Bound:
    """A socket that listens, and who may ask."""

    socket: socket.socket
    access: Access
    address: str
    """What a person opens, without the token."""

    @property
    def url(self) -> str:
        """What a person opens; holds the token where one is asked for."""
        return with_query(self.address, **{TOKEN: self.access.token})


def bind(host: str, port: int) -> Bound:
    """Return a listening socket.

    Args:
        host: name or address to listen on; an empty one is refused, since it would mean every address.
        port: 0 takes a free one.

    Raises:
        UsageError: the host is not this machine's, or the port is taken or may not be used.
    """
    try:
        if not host.strip():
            raise OSError("an empty name")
        family, kind, protocol, _, place = socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"--host {host!r} names no address ({error}); give 127.0.0.1, or one of this machine"
        ) from error
    listening = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(place)
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another --port (0 takes a free one) or --host"
        ) from error
    address, bound_port, *_ = listening.getsockname()
    access = served_names(host, address)
    if access.addresses:  # others can connect
        access = dataclasses.replace(access, token=secrets.token_urlsafe(32))
    return Bound(listening, access, f"http://{_shown_host(address)}:{bound_port}/")


def open_for_pages(
    target: str,
    *,
    actor: str,
    read_only: bool = False,
    model: str | None = None,
    evidence: tuple[Path, ...] = (),
    on_progress: OnProgress | None = None,
) -> Opened:
    """Open ℛ for pages; close its `dag` afterwards.

    Args:
        target: path or URL, as `ArtifactDAG.load` takes it.
        actor: who marks, unless they say otherwise.
        read_only: refuse marks.
        model: see `Opened`.
        evidence: see `Opened`.
        on_progress: as `ArtifactDAG.load` takes it.

    Raises:
        RepositoryError: nothing there that can be opened.
    """
    dag = ArtifactDAG.load(target, read_only=read_only, on_progress=on_progress)
    why = ""
    if read_only:
        why = f"{dag.target} is open for reading only (--read-only), so nothing can be marked here."
    elif dag.read_only:
        why = (
            f"{target} is read by way of a side file, so nothing can be marked here; import it into a repository first."
        )
    elif "://" not in target and not os.access(target, os.W_OK):
        why = f"{target} cannot be written by this user, so nothing can be marked here."
    return Opened(
        dag=dag, read_only=why, model=model, evidence=evidence, form_token=secrets.token_urlsafe(32), actor=actor
    )


def serve(opened: Opened, bound: Bound) -> None:
    """Answer requests until Ctrl-C or SIGTERM; returns when the repository is closed."""
    config = uvicorn.Config(
        application(opened, bound.access),
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
        ws="none",
        timeout_graceful_shutdown=_GRACE_SECONDS,
        h11_max_incomplete_event_size=65_536,
    )
    server = uvicorn.Server(config)
    try:
        server.run(sockets=[bound.socket])
    except KeyboardInterrupt:  # uvicorn passes it on once the server has ended
        pass
    finally:
        bound.socket.close()


def _shown_host(address: str) -> str:
    """Return a host for the printed address; one that means every address is shown as this machine's name."""
    if address in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{address}]" if ":" in address else address
