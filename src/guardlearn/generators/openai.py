"""π_θ behind an OpenAI-compatible server: vLLM, llama.cpp, Ollama, `transformers serve`, or OpenAI itself.

Requests run in one event loop, at most `concurrency` at once, whatever thread asks. A try that may succeed later
(no connection, a time-out, 408, 409, 425, 429, 5xx, half an answer) is made again, after a pause that doubles, is drawn
at random, and is never shorter than the server's Retry-After. The server tokenises and fills its chat template itself:
neither is known here. The key is read from OPENAI_API_KEY when a connection is opened, and is no part of the generator.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import importlib.util
import json
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from guardlearn.digests import digest_json
from guardlearn.errors import GeneratorUnavailable, ModelError, RequestRefused, missing_library
from guardlearn.generators.completions import Completion, generation_of, read_completion
from guardlearn.generators.connection import Connection
from guardlearn.generators.sampling import SamplingConfig
from guardlearn.generators.server import NO_KEY, OpenAISettings, address, api_key, served, shown, special_tokens_in
from guardlearn.generators.tries import Failure, failure_of, pause
from guardlearn.prompts import Renderer
from guardlearn.types import Generation, GenerationRequest

__all__ = ["OpenAIGenerator"]

_SEEDS = 2**31
"""Every server takes a seed below this."""
_LISTED = 20
"""Most names of models that a message lists."""
_opening = threading.Lock()


class OpenAIGenerator:
    """Answers with a model on a server; an adapter is the name under which the server offers it.

    Equal keys send equal seeds, but what a server makes of a seed depends on its batches: pairs share the specification
    only. `generate` may be called from many threads.
    """

    common_random_numbers = False
    prompt_digest = ""
    """The server hides chat template and tokenizer; items carry the renderer's digest."""
    batch = 1

    def __init__(
        self,
        model: str | Path,
        *,
        sampling: SamplingConfig | None = None,
        adapter: str | Path | None = None,
        settings: OpenAISettings | None = None,
        renderer: Renderer | None = None,
    ) -> None:
        """Prepare to ask; nothing is sent yet.

        Args:
            model: name of the model on the server.
            sampling: how tokens are drawn; `top_k` is not sent: no field of OpenAI's, it goes into `extra_body`.
            adapter: name to answer with at first, or NAME=FOLDER; None: the model's own.
            settings: where the server is and how it is asked; None: OPENAI_BASE_URL and the defaults.
            renderer: not used; a server's prompt has no digest.

        Raises:
            BackendUnavailable: the client is not installed.
            UsageError: no key where one is needed.
            ModelError: `settings.tokenizer` holds no tokenizer.
        """
        if importlib.util.find_spec("openai") is None:
            raise missing_library("openai", "openai", "generator 'openai'")
        self.model = str(model)
        self.sampling = sampling or SamplingConfig()
        self.settings = settings or OpenAISettings()
        self.lanes = self.settings.concurrency
        self.special_tokens = _special_tokens(self.model, self.settings)
        self._url = address(self.settings)
        api_key(self._url)  # a missing one is said before anything is prepared
        self._connection: Connection | None = None
        self.use_adapter(adapter)

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Answer every request, in order; `on_done(index, generation)` is called in this thread as each finishes.

        Raises:
            GeneratorUnavailable: a request got no answer; the others were answered all the same.
            RequestRefused: a request never will be answered; the others of this call may not have been asked.
            ModelError: the server refuses the key, the model or the settings; nothing more is asked.
        """
        line = self._open()
        futures = {line.submit(self._answer(line, request)): index for index, request in enumerate(requests)}
        generations: dict[int, Generation] = {}
        unanswered: GeneratorUnavailable | None = None
        try:
            for future in concurrent.futures.as_completed(futures):
                index = futures[future]
                try:
                    generations[index] = future.result()
                except GeneratorUnavailable as error:
                    unanswered = unanswered or error
                    continue
                if on_done:
                    on_done(index, generations[index])
        finally:
            for future in futures:
                future.cancel()  # nothing where all are done
        if unanswered is not None:
            raise unanswered
        return [generations[index] for index in range(len(requests))]

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Ask for the model by the adapter's name, or by the base's with None.

        Raises:
            ModelError: NAME=FOLDER, and there is no such folder.
        """
        self._asked = self.model if adapter is None else served(adapter).name

    def describe(self) -> Mapping[str, Any]:
        """Return the settings to be stored with each item; where the server is, is none of them."""
        sent = self.sampling.describe()
        del sent["top_k"]
        sent |= {"max_new_tokens" if name == "max_tokens" else name: None for name in self.settings.omit}
        extra: dict[str, Any] = {"send_stop": True} if self.settings.send_stop and self.sampling.stop else {}
        extra |= {"extra_body": self.settings.extra_body} if self.settings.extra_body else {}
        tokens = digest_json(list(self.special_tokens))[:16] if self.special_tokens else "none known"
        return {"generator": "openai", **sent, **extra, "special_tokens": tokens}

    def close(self) -> None:
        """End the connections; the next `generate` opens new ones."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection out: a copy in another process opens its own, with that process's key."""
        return self.__dict__ | {"_connection": None}

    def _open(self) -> Connection:
        with _opening:
            if self._connection is None:
                self._connection = Connection(self._url, self.settings)
                weakref.finalize(self, self._connection.close)
            return self._connection

    async def _answer(self, line: Connection, request: GenerationRequest) -> Generation:
        asked_at = time.perf_counter()
        name = self._asked
        async with line.slots:
            await self._check_offer(line, name)
            first = time.monotonic()
            number = 0
            while True:
                number, began = number + 1, time.perf_counter()
                try:
                    completion = await self._try(line, name, request)
                except Exception as error:  # sorted by `failure_of`; what is not the server's goes on
                    failure = failure_of(error, line.key)
                    if failure is None:
                        raise
                    await self._go_on(line, name, request, failure, number, first)
                    continue
                line.answered_at, line.down = time.monotonic(), False
                ended = time.perf_counter()
                return generation_of(completion, self.sampling.stop, ended - began, ended - asked_at)

    async def _try(self, line: Connection, name: str, request: GenerationRequest) -> Completion:
        async with asyncio.timeout(self.settings.request_seconds):
            raw = await line.ask(
                model=name,
                messages=[_sendable(message) for message in request.messages],  # type: ignore[misc]
                extra_body=self._fields(request.key),
            )
        return read_completion(raw.content)

    def _fields(self, key: str) -> dict[str, Any]:
        """Return what is sent beside model and messages."""
        sampling = self.sampling
        fields: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": _seed(sampling.seed, key),
            "stop": list(sampling.stop) if sampling.stop and self.settings.send_stop else None,
        }
        sent = {name: value for name, value in fields.items() if value is not None and name not in self.settings.omit}
        return sent | self.settings.extra_body

    async def _go_on(
        self, line: Connection, name: str, request: GenerationRequest, failure: Failure, number: int, first: float
    ) -> None:
        """Wait for the next try, or say why there is none.

        Raises:
            GeneratorUnavailable: this request is given up.
            RequestRefused: the server takes others, but not this one.
            ModelError: no request would be answered.
        """
        if failure.fatal:
            await self._refuse_all(line, name, failure)
        asked = f"{shown(self._url)} gave no answer to {request.key!r}"
        if not failure.again:
            if line.answered_at < 0:
                raise ModelError(
                    f"{asked} ({failure.said}); what a server does not take goes into omit under [openai] in "
                    "guardlearn.toml"
                )
            raise RequestRefused(f"{asked} ({failure.said}), and has answered others", request.key)
        wait, spent = pause(number, failure), time.monotonic() - first
        if number < self.settings.tries and not line.down and spent + wait <= self.settings.give_up_seconds:
            await asyncio.sleep(wait)
            return
        line.down = line.down or line.answered_at < first
        later = f", and asks to wait {failure.retry_after:.0f} s" if failure.retry_after > 1 else ""
        tries = "1 try" if number == 1 else f"{number} tries"
        raise GeneratorUnavailable(
            f"{asked} in {tries} over {spent:.0f} s{later} (last: {failure.said}); see that it runs, then run the same "
            "command again"
        )

    async def _refuse_all(self, line: Connection, name: str, failure: Failure) -> NoReturn:
        url = shown(self._url)
        if failure.status == 404:
            offered = await self._offered(line)
            known = f"it offers {_listed(offered)}" if offered else "it lists no models; a base URL usually ends in /v1"
            raise ModelError(f"{url} has no model {name!r} ({failure.said}); {known}")
        if failure.status == 429:
            raise ModelError(f"{url} answers no more ({failure.said}); see to the account, then run the command again")
        said = "refuses the key in OPENAI_API_KEY"
        if line.key == NO_KEY:
            said = "wants a key, and OPENAI_API_KEY is not set"
        raise ModelError(f"{url} {said} ({failure.said}); export one that may use {name!r}")

    async def _check_offer(self, line: Connection, name: str) -> None:
        """Refuse an adapter that the server does not list beside its base: some answer with the base to any name."""
        if name == self.model:
            return
        if name not in line.offers:
            line.offers[name] = asyncio.create_task(self._compare_offer(line, name))
        await asyncio.shield(line.offers[name])

    async def _compare_offer(self, line: Connection, name: str) -> None:
        offered = await self._offered(line)
        if self.model in offered and name not in offered and not Path(name).is_dir():
            raise ModelError(f"{shown(self._url)} has no model {name!r}; it offers {_listed(offered)}")

    async def _offered(self, line: Connection) -> list[str]:
        """Return the names the server lists; none where it does not."""
        try:
            async with asyncio.timeout(30):
                raw = await line.list_models()
            return sorted(str(model["id"]) for model in json.loads(raw.content)["data"])
        except Exception as error:  # a server that lists nothing, or not in this form, lists no names
            if failure_of(error, line.key) is None and not isinstance(error, ValueError | KeyError | TypeError):
                raise
            return []


def _special_tokens(model: str, settings: OpenAISettings) -> tuple[str, ...]:
    if settings.tokenizer:
        return special_tokens_in(Path(settings.tokenizer).expanduser())
    here = Path(model)
    return special_tokens_in(here) if (here / "tokenizer.json").is_file() else ()


def _seed(seed: int, key: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % _SEEDS


def _sendable(message: Mapping[str, str]) -> dict[str, str]:
    """Return a message without lone surrogates, which JSON on the wire cannot hold."""
    return {name: text.encode("utf-8", "surrogatepass").decode("utf-8", "replace") for name, text in message.items()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
