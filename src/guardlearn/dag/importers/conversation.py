"""One chat conversation in OpenAI's message form: who said what, and which answers are attempts.

Ψ is what the user asks first, Ω the system messages before it. Each assistant turn is an attempt; what is said after it
and before the next one is its feedback. Nothing is guessed: what does not fit this form is a `ValueError` whose text
says why, and what ℛ cannot hold of a prompt (tools, images) keeps the attempts after it out of training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from guardlearn.dag.importers.fields import MISSING, lookup

__all__ = ["ANSWER_FIELDS", "MESSAGES_FIELDS", "Conversation", "Turn", "holds_messages", "read_conversation"]

MESSAGES_FIELDS = ("messages", "request.messages", "request.body.messages", "body.messages")
"""Where the messages of a line are looked for."""

ANSWER_FIELDS = ("response", "completion", "choices")
"""Where the answer is looked for that does not stand among the messages."""

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_TOOLS = ("tool", "function")
_NO_PROMPT = "its prompt holds {}, which is not kept"


@dataclass(slots=True)
class Turn:
    """One assistant turn: an attempt."""

    artifact: str
    message: Mapping[str, Any]
    """As the log has it, for what it may say of itself."""
    choice: Mapping[str, Any] = field(default_factory=dict)
    """The choice of a completion that it came in."""
    followed: bool = False
    """Whether anything was said after it."""
    feedback: str = ""
    """What was said after it."""
    exclude: str = ""
    """Why nothing should be learnt from it."""


@dataclass(slots=True)
class Conversation:
    """What a line says: Ψ, Ω and the attempts, each but the last alternatives a retry of the one before it."""

    constraints: str
    specification: str
    turns: list[Turn]
    """At least one."""
    alternatives: list[Turn]
    """Answers to the same prompt after `turns[:-1]`, where a completion holds several; `turns` ends with the first."""


def holds_messages(record: Mapping[str, Any]) -> bool:
    """Whether a line looks like a conversation."""
    found = _first_list(record, MESSAGES_FIELDS)
    return bool(found) and all(isinstance(each, dict) and "role" in each for each in found)


def _first_list(record: Mapping[str, Any], fields: Sequence[str]) -> list[Any]:
    return next((found for found in (lookup(record, name) for name in fields) if isinstance(found, list)), [])


def read_conversation(
    record: Mapping[str, Any], messages: Sequence[str] = MESSAGES_FIELDS, answer: Sequence[str] = ANSWER_FIELDS
) -> Conversation:
    """Return what a line says.

    Args:
        record: the line.
        messages: fields that may hold the messages.
        answer: fields that may hold the answer.

    Raises:
        ValueError: it is no conversation with an answer.
    """
    said = _first_list(record, messages)
    if not said:
        raise ValueError(f"no list of messages in {', '.join(messages)}; name its field with messages=FIELD")
    found = next((each for each in (lookup(record, name) for name in answer) if each not in (MISSING, None)), None)
    sequence, choices = _answers(found)
    if sequence and said[-len(sequence) :] == sequence:
        sequence = []  # the log repeats among the messages what was answered
    reader = _Reader()
    for message in [*said, *sequence]:
        reader.read(message)
    answered = bool(choices) and reader.waiting() and not reader.forget_call()
    alternatives = [reader.alternative(message, choice) for message, choice in choices]
    if answered:
        if [each.artifact for each in alternatives] != [reader.turns[-1].artifact]:
            raise ValueError("its messages end with an assistant turn already, and its answer is another one")
        alternatives = []
    turns = [*reader.turns, *alternatives[:1]]
    if reader.asked is None:
        raise ValueError("no user message, so nothing was asked")
    if not reader.asked.strip():
        raise ValueError("its first user message is empty")
    if not turns:
        raise ValueError("no assistant turn after the first user message, so there is no attempt")
    return Conversation("\n\n".join(reader.system), reader.asked, turns, alternatives)


class _Reader:
    """Reads message after message."""

    def __init__(self) -> None:
        self.system: list[str] = []
        self.asked: str | None = None
        self.turns: list[Turn] = []
        self._lacks = ""

    def read(self, message: Any) -> None:
        role = _role(message)
        if role == "assistant":
            self._answer(message)
        elif role in _TOOLS:
            self._lacks = self._lacks or "tool results"
        else:
            self._say(role, message)

    def alternative(self, message: Any, choice: Mapping[str, Any]) -> Turn:
        if _role(message) != "assistant":
            raise ValueError(f"its answer has role {message['role']!a}; allowed is assistant")
        return self._turn(message, choice)

    def _say(self, role: str, message: Mapping[str, Any]) -> None:
        text, other = _text(message.get("content"))
        self._lacks = self._lacks or other
        if self.turns:
            last = self.turns[-1]
            last.feedback = f"{last.feedback}\n\n{text}" if last.followed else text
            last.followed = True
        elif role == "user":
            self.asked = text if self.asked is None else f"{self.asked}\n\n{text}"
        elif text:
            self.system.append(text)

    def _answer(self, message: Mapping[str, Any]) -> None:
        if self.asked is None:  # a greeting
            self._lacks = self._lacks or "an assistant turn before the first user message"
            return
        if self.waiting() and not self.forget_call():
            raise ValueError("two assistant turns without anything said between them")
        self.turns.append(self._turn(message, {}))

    def waiting(self) -> bool:
        """Whether nothing was said after the last turn."""
        return bool(self.turns) and not self.turns[-1].followed

    def forget_call(self) -> bool:
        """Take back a last turn that called a tool: a step on the way to the answer that comes now."""
        if not _calls(self.turns[-1].message):
            return False
        self.turns.pop()
        self._lacks = self._lacks or "tool calls"
        return True

    def _turn(self, message: Mapping[str, Any], choice: Mapping[str, Any]) -> Turn:
        text, other = _text(message.get("content"))
        calls = _calls(message)
        refusal = message.get("refusal")
        if not text and isinstance(refusal, str):
            text = refusal
        exclude = _NO_PROMPT.format(self._lacks) if self._lacks else ""
        if calls:
            text = json.dumps({"content": text, "tool_calls": calls} if text else calls, ensure_ascii=False)
            exclude = exclude or "it calls tools, which a text cannot teach"
        elif other:
            exclude = exclude or f"its answer holds {other}, which is not kept"
        elif not text.strip():
            exclude = exclude or "empty content"
        return Turn(text, message, choice, exclude=exclude)


def _role(message: Any) -> str:
    if not isinstance(message, dict):
        raise ValueError(f"a message is a {type(message).__name__}; it must be an object with role and content")
    role = message.get("role")
    if role not in _ROLES:
        raise ValueError(f"role {role!a} is unknown; allowed are {', '.join(_ROLES)}")
    return str(role)


def _calls(message: Mapping[str, Any]) -> Any:
    return message.get("tool_calls") or message.get("function_call")


def _text(content: Any) -> tuple[str, str]:
    """Return a message's text, parts a line each, and what of it is no text."""
    if content is None or isinstance(content, str):
        return content or "", ""
    if not isinstance(content, list):
        raise ValueError(f"a message's content is a {type(content).__name__}; it must be a text or a list of parts")
    texts, other = [], ""
    for part in content:
        text = part if isinstance(part, str) else part.get("text") if isinstance(part, dict) else None
        if isinstance(part, dict) and part.get("type") == "refusal":
            text = part.get("refusal")
        if isinstance(text, str):
            texts.append(text)
        else:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            other = other or f"a part of type {kind!a}"
    return "\n".join(texts), other


_Choices = list[tuple[Any, Mapping[str, Any]]]


def _answers(found: Any) -> tuple[list[Any], _Choices]:
    """Return messages that go on the conversation, or else the choices of a completion."""
    if found is None:
        return [], []
    if isinstance(found, str):
        return [], [(_message(found), {})]
    if isinstance(found, list):
        if found and all(isinstance(each, dict) and "role" in each for each in found):
            return found, []
        return [], [_choice(each) for each in found]
    if isinstance(found, dict):
        for name in ("choices", "output"):
            if isinstance(found.get(name), list):
                return [], [_choice(each) for each in found[name] if name == "choices" or _spoken(each)]
        if isinstance(found.get("body"), dict):
            return _answers(found["body"])
        if any(name in found for name in ("message", "role", "content")):
            return [], [_choice(found)]
        return [], []  # an error instead of an answer
    raise ValueError(f"its answer is a {type(found).__name__}; it must be a text, a message or a completion")


def _spoken(part: Any) -> bool:
    """Whether an output of the Responses interface is a message."""
    return not isinstance(part, dict) or part.get("type", "message") == "message"


def _choice(value: Any) -> tuple[Any, Mapping[str, Any]]:
    if isinstance(value, str):
        return _message(value), {}
    if isinstance(value, dict):
        if isinstance(value.get("message"), dict):
            return {"role": "assistant", **value["message"]}, value
        if "role" in value or "content" in value:
            return {"role": "assistant", **value}, {}
        if isinstance(value.get("text"), str):
            return _message(value["text"]), value
    raise ValueError("its answer holds neither a message nor a text")


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
