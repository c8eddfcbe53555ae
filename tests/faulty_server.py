"""A real HTTP server on loopback that speaks the chat completions API and fails by schedule."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

OK = "ok"
STATUSES = ("400", "401", "403", "404", "429", "500", "502", "503")
FAULTS = (
    "429", "500", "502", "503", "half", "half_chunk", "nothing", "silence", "drip", "not_json", "no_choice",
    "error_inside", "html",
)  # fmt: skip
"""Faults that another try may not meet."""


class FaultyServer:
    """Answers `answer(request)`; before that, the n-th try of a prompt meets `fault(n, messages)`.

    Every request is kept in `asked`, with its headers; `most` is how many it ever had under way at once.
    """

    def __init__(
        self,
        answer: Callable[[Mapping[str, Any]], str | Mapping[str, Any]],
        fault: Callable[[int, list[Mapping[str, str]]], str] = lambda number, messages: OK,
        models: tuple[str, ...] = ("base",),
        retry_after: str = "0",
        seconds: float = 0.0,
    ) -> None:
        self.answer, self.fault, self.models = answer, fault, list(models)
        self.retry_after, self.seconds = retry_after, seconds
        self.asked: list[dict[str, Any]] = []
        self.faults: Counter[str] = Counter()
        self.times: list[float] = []
        self.most = 0
        self.stopped = threading.Event()
        self._under_way = 0
        self._tries: Counter[str] = Counter()
        self._lock = threading.Lock()
        self.url = ""
        self.told: dict[str, Any] | None = None  # body of every status, in place of its own

    def begin(self, request: dict[str, Any]) -> str:
        """Note a request; return the fault it meets."""
        key = json.dumps([request.get("model"), request["messages"]])
        with self._lock:
            self._tries[key] += 1
            self.asked.append(request)
            self.times.append(time.monotonic())
            self._under_way += 1
            self.most = max(self.most, self._under_way)
            fault = self.fault(self._tries[key], request["messages"])
            self.faults[fault] += 1
            return fault

    def end(self) -> None:
        with self._lock:
            self._under_way -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.endswith("/models") and self.faulty.models:
            self._json(200, {"object": "list", "data": [{"id": name} for name in self.faulty.models]})
        else:
            self._json(404, {"detail": "Not Found"})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = json.loads(body)
        request["headers"] = {name.lower(): value for name, value in self.headers.items()}
        fault = self.faulty.begin(request)
        try:
            if self.faulty.seconds:
                time.sleep(self.faulty.seconds)
            if fault == OK:
                self._json(200, completion(request, self.faulty.answer(request)))
            elif fault in STATUSES:
                self._status(int(fault), request)
            else:
                getattr(self, f"_{fault}")(request)
        except OSError:  # the client has gone
            self.close_connection = True
        finally:
            self.faulty.end()

    def _json(self, status: int, content: Any, **headers: str) -> None:
        self._send(status, json.dumps(content).encode(), "application/json", **headers)

    def _send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _status(self, status: int, request: Mapping[str, Any]) -> None:
        said = f"injected {status}"
        if status == 401:  # as careless servers do
            said = f"Incorrect API key provided: {request['headers'].get('authorization', '').removeprefix('Bearer ')}"
        headers = {"Retry_After": self.faulty.retry_after} if status in (429, 503) else {}
        self._json(status, self.faulty.told or {"error": {"message": said, "type": "injected"}}, **headers)

    def _cut(self, request: Mapping[str, Any], header: tuple[str, str], body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header(*header)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True

    def _half(self, request: Mapping[str, Any]) -> None:
        body = json.dumps(completion(request, self.faulty.answer(request))).encode()
        self._cut(request, ("Content-Length", str(len(body))), body[: len(body) // 2])

    def _half_chunk(self, request: Mapping[str, Any]) -> None:
        body = json.dumps(completion(request, self.faulty.answer(request))).encode()
        self._cut(request, ("Transfer-Encoding", "chunked"), b"%x\r\n" % len(body) + body[: len(body) // 2])

    def _nothing(self, request: Mapping[str, Any]) -> None:
        self.close_connection = True

    def _silence(self, request: Mapping[str, Any]) -> None:
        self.faulty.stopped.wait(30)
        self.close_connection = True

    def _drip(self, request: Mapping[str, Any]) -> None:
        """Send a byte now and then, for ten seconds: no silence is long."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        for _ in range(200):
            if self.faulty.stopped.wait(0.05):
                break
            self.wfile.write(b" ")
            self.wfile.flush()
        self.close_connection = True

    def _not_json(self, request: Mapping[str, Any]) -> None:
        self._send(200, b'{"choices": [{"message": {"content": "cut', "application/json")

    def _no_choice(self, request: Mapping[str, Any]) -> None:
        self._json(200, completion(request, "") | {"choices": []})

    def _error_inside(self, request: Mapping[str, Any]) -> None:
        self._json(200, {"error": {"message": "the engine is gone"}})

    def _html(self, request: Mapping[str, Any]) -> None:
        self._send(200, b"<html>a proxy's page</html>", "text/html")


def completion(request: Mapping[str, Any], answer: str | Mapping[str, Any]) -> dict[str, Any]:
    """A chat completion around a text; a mapping replaces what it names ("choice": what it names of the choice)."""
    given: dict[str, Any] = {} if isinstance(answer, str) else dict(answer)
    text = answer if isinstance(answer, str) else given.pop("text", "")
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    prompt = sum(len(message["content"].split()) for message in request["messages"])
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": request["model"],
        "choices": [choice | given.pop("choice", {})],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": len((text or "").split()),
            "total_tokens": prompt + len((text or "").split()),
        },
    } | given


@contextlib.contextmanager
def serving(faulty: FaultyServer) -> Iterator[FaultyServer]:
    """Serve on a free port of loopback until the block ends."""
    handler = type("Handler", (_Handler,), {"faulty": faulty})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        faulty.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield faulty
        finally:
            faulty.stopped.set()
            server.shutdown()
            thread.join()
