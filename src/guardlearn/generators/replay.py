"""A generator that answers from a list: for tests, for examples, and for replaying what was recorded elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from guardlearn.digests import digest_json
from guardlearn.errors import LogError, ModelError
from guardlearn.types import Generation, GenerationRequest

__all__ = ["Answers", "ReplayGenerator"]

Answers = Mapping[str, Sequence[str]] | Callable[[GenerationRequest], str]
"""Answers by a request's key, by specification text or id, or a function of the request."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    specification: str
    answers: list[str]
    adapter_answers: list[str] | None = None


class ReplayGenerator:
    """Answers attempt k of a specification with the k-th entry of its list; the last entry repeats.

    A request's answers are looked up by its key, then by the specification id inside the key
    ("seed/spec id/sample/attempt"), then by the specification that opens its last user message.
    """

    common_random_numbers = True
    special_tokens: tuple[str, ...] = ()
    lanes = 1
    batch = 0

    def __init__(self, answers: Answers, adapter_answers: Answers | None = None, *, model: str = "replay") -> None:
        """Answer from `answers`, and from `adapter_answers` (if given) while an adapter is in use."""
        self.model = model
        self.prompt_digest = ""
        self._base = answers
        self._adapted = adapter_answers if adapter_answers is not None else answers
        self._adapter: str | None = None

    @classmethod
    def from_file(cls, path: Path) -> ReplayGenerator:
        """Read answers from JSON lines: {"specification", "answers": [...], "adapter_answers"?: [...]}.

        Raises:
            ModelError: the file cannot be read.
            LogError: a line is malformed; says which.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"no answers to replay at {path} ({error}); name a JSON lines file") from error
        read = [_line(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        base = {line.specification: line.answers for line in read}
        adapted = {line.specification: line.adapter_answers or line.answers for line in read}
        return cls(base, adapted, model=path.name)

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Answer every request, in order.

        Raises:
            ModelError: a request has no answer.
        """
        generations = []
        for index, request in enumerate(requests):
            text = self._answer(request)
            prompt = " ".join(message["content"] for message in request.messages)
            generation = Generation(
                text=text, finish="stop", prompt_tokens=len(prompt.split()), completion_tokens=len(text.split())
            )
            generations.append(generation)
            if on_done:
                on_done(index, generation)
        return generations

    def use_adapter(self, adapter: str | Path | None) -> None:
        """Answer from the adapter's answers, or from the base's with None."""
        self._adapter = None if adapter is None else str(adapter)

    def describe(self) -> Mapping[str, Any]:
        """Return what is stored with each item: that it was replayed, and from which answers."""
        listed = {name: list(texts) for name, texts in self._base.items()} if isinstance(self._base, Mapping) else {}
        return {"generator": "replay", "answers": digest_json(listed)[:16]}

    def _answer(self, request: GenerationRequest) -> str:
        answers = self._base if self._adapter is None else self._adapted
        if callable(answers):
            return answers(request)
        found = self._find(answers, request)
        if not found:
            raise ModelError(f"nothing to replay for request {request.key!r}; give its specification an answer")
        return found[min(_attempt(request.key), len(found)) - 1]

    @staticmethod
    def _find(answers: Mapping[str, Sequence[str]], request: GenerationRequest) -> Sequence[str]:
        parts = request.key.split("/")
        for name in (request.key, "/".join(parts[1:-2])):
            if name in answers:
                return answers[name]
        asked = next((m["content"] for m in reversed(request.messages) if m["role"] == "user"), "")
        matching = [spec for spec in answers if asked == spec or asked.startswith(f"{spec}\n\n")]
        return answers[max(matching, key=len)] if matching else ()  # the longest: one Ψ may open another


def _attempt(key: str) -> int:
    last = key.rsplit("/", 1)[-1]
    return max(1, int(last)) if last.isdecimal() else 1


def _line(path: Path, number: int, line: str) -> _Line:
    try:
        return msgspec.convert(json.loads(line), _Line)
    except (ValueError, msgspec.ValidationError) as error:
        raise LogError(
            f"{path.name}, line {number}: {error}; a line is "
            '{"specification": text, "answers": [texts], "adapter_answers": [texts] (optional)}',
            number,
        ) from error
