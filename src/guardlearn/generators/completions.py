"""A chat completion as servers send it, and the `Generation` it makes."""

from __future__ import annotations

import json
from collections.abc import Sequence

import msgspec

from guardlearn.generators.stops import cut_after_stop
from guardlearn.generators.tries import BrokenAnswer
from guardlearn.types import Generation

__all__ = ["Completion", "generation_of", "read_completion"]


class _Message(msgspec.Struct, frozen=True):
    content: str | None = None
    """None: nothing but reasoning or a tool call, or a filter took it away."""


class _Choice(msgspec.Struct, frozen=True):
    message: _Message
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    """vLLM: the stop string that ended the answer, or a token."""
    matched_stop: str | int | None = None
    """SGLang: the same."""


class _Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(msgspec.Struct, frozen=True):
    """What is read of a chat completion; a server may send more."""

    choices: list[_Choice]
    usage: _Usage | None = None


def read_completion(body: bytes) -> Completion:
    """Read the body of an answer.

    Raises:
        BrokenAnswer: no JSON, no completion, or one without a choice; says which.
    """
    try:
        # json, not msgspec: an answer may hold a lone surrogate, which msgspec refuses
        content = json.loads(body)
    except ValueError as error:
        raise BrokenAnswer(f"an answer of {len(body)} bytes that is no JSON ({error})") from None
    try:
        completion = msgspec.convert(content, Completion)
    except msgspec.ValidationError as error:
        told = f": {content['error']}" if isinstance(content, dict) and content.get("error") else f" ({error})"
        raise BrokenAnswer(f"JSON that is no chat completion{told}") from None
    if not completion.choices:
        raise BrokenAnswer("a chat completion without a choice")
    return completion


def generation_of(completion: Completion, stop: Sequence[str], seconds: float, latency: float) -> Generation:
    """Return the answer, ending right after the first of `stop`, also where the server leaves that out and says so."""
    choice, usage = completion.choices[0], completion.usage or _Usage()
    text, finish = choice.message.content or "", choice.finish_reason or "unknown"
    cut = cut_after_stop(text, stop)
    if cut is not None:
        text, finish = cut, "stop"
    elif ended := next((each for each in (choice.stop_reason, choice.matched_stop) if each in stop), None):
        text += str(ended)
    known = usage.prompt_tokens is not None and usage.completion_tokens is not None
    return Generation(
        text=text,
        finish=finish,
        prompt_tokens=usage.prompt_tokens or 0,
        completion_tokens=usage.completion_tokens or 0,
        seconds=seconds,
        latency_seconds=latency,
        tokens_known=known,
    )
