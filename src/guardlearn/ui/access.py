"""Who may ask: hosts that are served, a token beyond this machine, the headers of every answer.

A web page elsewhere can make a browser send requests here. It cannot read the answers, unless its own name is made to
resolve to this address (DNS rebinding), so only names that are ours are answered; it can send a form, so what writes
needs a token that only our pages hold, and an Origin that is ours. Beyond this machine everybody can connect: there, a
token is asked for, once in the address that was printed, from then on in a cookie that scripts cannot read.
"""

from __future__ import annotations

import dataclasses
import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["TOKEN", "Access", "Guarded", "served_names"]

TOKEN = "token"
"""The query's field that holds the token in the address that is printed."""

_READS = ("GET", "HEAD")

_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer a browser says "Origin: null" of our own forms
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "HX-Request",
}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """What a server asks of a request."""

    names: frozenset[str]
    """Hosts it answers to, in lower case, without a port: who forwards a port has another one."""
    addresses: bool = False
    """Whether it answers to any IP address too; nobody can make one resolve to something else."""
    token: str = ""
    """What must be known; "" where only this machine can connect."""

    def serves(self, host: str) -> bool:
        """Whether `host`, as in a request's Host header, is one of ours."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return name in self.names or (self.addresses and _is_address(name))

    def knows(self, token: str) -> bool:
        """Whether `token` is the one; takes as long whatever it is."""
        return hmac.compare_digest(token.encode("utf-8", "surrogatepass"), self.token.encode())


def served_names(host: str, address: str) -> Access:
    """Return what a server bound to `address` answers to, without a token.

    Args:
        host: as it was given.
        address: IP address of the socket.
    """
    bound = ipaddress.ip_address(address.partition("%")[0])
    names = {"localhost", "127.0.0.1", "::1", host.lower().strip("[]"), str(bound)}
    if not bound.is_loopback:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return Access(names=frozenset(names), addresses=not bound.is_loopback)


class Guarded:
    """An application that only those hear from who may."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = self._refused(scope) or self._entered(scope) or self._app
        await answer(scope, receive, send_guarded)

    def _refused(self, scope: Scope) -> Response | None:
        """Return the answer to a request that another site may have made up."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not self._access.serves(host):
            return _plain(f"nothing is served as {host!r}; open the address that `guardlearn ui` printed", 421)
        if scope["method"] in _READS:
            return None
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "same-origin")
        if origin is None and site == "same-origin":
            return None  # no browser; the form token is asked for in any case
        if site != "same-origin" or urlsplit(origin or "").netloc != host:
            return _plain(f"a form from {origin!r} is not taken; fill in the one on this server's page", 403)
        return None

    def _entered(self, scope: Scope) -> Response | None:
        """Return None for whoever knows the token, else what lets them in or keeps them out."""
        if not self._access.token:
            return None
        cookie = f"guardlearn_{TOKEN}_{scope['server'][1]}"  # a cookie is sent to every port of a host
        asked = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in asked if name == TOKEN]
        if given and self._access.knows(given[-1]):
            rest = urlencode([(name, value) for name, value in asked if name != TOKEN])
            path = "/" + scope.get("raw_path", b"/").decode("latin-1").lstrip("/")  # //host would be another server
            answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303)
            answer.set_cookie(cookie, self._access.token, httponly=True, samesite="strict")
            return answer
        if self._access.knows(_cookies(Headers(scope=scope).get("cookie", "")).get(cookie, "")):
            return None
        return _plain("this browser has no access; open the address with ?token=… that `guardlearn ui` printed", 403)


def _cookies(header: str) -> dict[str, str]:
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return True


def _plain(line: str, status_code: int) -> Response:
    return PlainTextResponse(f"{line}\n", status_code, {"Connection": "close"})
