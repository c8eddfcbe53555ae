"""An open line to a server: the official client in an event loop of its own thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from guardlearn.generators.server import OpenAISettings, api_key, is_loopback

__all__ = ["Connection"]

T = TypeVar("T")


class Connection:
    """Client, event loop and what has been seen of the server so far."""

    def __init__(self, url: str, settings: OpenAISettings) -> None:
        """Start the thread; nothing is sent yet.

        Raises:
            UsageError: no key where one is needed.
        """
        import openai

        self.key = api_key(url)
        self.client = openai.AsyncOpenAI(
            api_key=self.key,
            base_url=url,
            max_retries=0,  # tries are counted and told here
            timeout=openai.Timeout(settings.read_seconds, connect=settings.connect_seconds),
            # a proxy for the way out has no way to a server on this machine
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(url)),
        )
        # the client imports what it asks with at first use, which is no time of the server's
        self.ask = self.client.chat.completions.with_raw_response.create
        self.list_models = self.client.models.with_raw_response.list
        self.slots = asyncio.Semaphore(settings.concurrency)
        self.offers: dict[str, asyncio.Task[None]] = {}
        """Checks that the server offers a name, by name; touched in the loop only."""
        self.answered_at = float("-inf")
        """Monotonic time of the newest answer."""
        self.down = False
        """Whether a request was given up and none has been answered since: one try is then enough."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(self._loop,), name="openai", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run `work` in the loop; cancelling what is returned ends it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End what is under way, the connections and the thread."""
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(lambda: self._loop.create_task(self._end()))
        if threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)

    async def _end(self) -> None:
        mine = asyncio.current_task()
        others = [task for task in asyncio.all_tasks() if task is not mine]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.close()
        self._loop.stop()

    @staticmethod
    def _run(loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            loop.close()
