"""A chat template of Jinja as one of Go, which is what a Modelfile's TEMPLATE takes.

A template is not translated but measured: it renders chats of known texts, and what stands around the texts becomes
the markers of each role. They are used only where they write every probe chat exactly as the template does; a template
that trims, counts, dates or reorders is one that markers cannot express, and that is said.

Go's side is described in docs/template.mdx of github.com/ollama/ollama: `.Messages`, each with `.Role`, `.Content`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["Markers", "find_markers"]

Chat = Sequence[tuple[str, str]]
"""(role, text), in order."""

_SYSTEM, _USER, _ANSWER, _NEXT = "Qsys1Q", "Qask1Q", "Qans1Q", "Qask2Q"
_TURN = (("user", _USER), ("assistant", _ANSWER), ("user", _NEXT))
_ROLES = ("system", "user", "assistant")


class Markers(msgspec.Struct, frozen=True, kw_only=True):
    """What a chat template writes around texts."""

    before: dict[str, str]
    """By role: system (where the template takes one), user, assistant."""
    after: dict[str, str]
    opening: str
    """Before everything; the token that the server's tokenizer adds by itself apart."""
    answer: str
    """After everything, so that the model answers."""
    default_system: str
    """System message of a chat without one; "" for none."""

    def render(self, chat: Chat) -> str:
        """Write a chat with these markers, as `go` would have a server do."""
        if self.default_system and chat[0][0] != "system":
            chat = (("system", self.default_system), *chat)
        return self.opening + "".join(self.before[role] + text + self.after[role] for role, text in chat) + self.answer

    @property
    def go(self) -> str:
        """The template that writes these markers; `default_system` is SYSTEM's to add."""
        known = [role for role in _ROLES if role in self.before]
        branches = "".join(
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{self.before[role]}{{{{ .Content }}}}'
            f"{self.after[role]}"
            for number, role in enumerate(known)
        )
        return f"{self.opening}{{{{ range .Messages }}}}{branches}{{{{ end }}}}{{{{ end }}}}{self.answer}"


def find_markers(tokenizer: Any) -> Markers | str:
    """Return the markers of a tokenizer's chat template, or why it has none, in words.

    Args:
        tokenizer: of transformers.
    """
    if not tokenizer.chat_template:
        return "the tokenizer has no chat template"
    try:
        turn = _rendered(tokenizer, _TURN)
    except Exception as error:  # a template raises what it likes
        return f"the chat template cannot write a plain chat ({type(error).__name__})"
    with_system = _with_system(tokenizer)
    found = _measured(tokenizer, turn, with_system)
    if found is None:
        return "the chat template does not write each message by itself"
    texts = (*found.before.values(), *found.after.values(), found.opening, found.answer, found.default_system)
    if any(mark in text for text in texts for mark in ("{{", "}}", '""')):
        return "the chat template writes braces or quotes that end a Modelfile's text"
    for chat in _probes(with_system is not None):
        if _without_opening_token(tokenizer, _rendered(tokenizer, chat)) != found.render(chat):
            return "the chat template writes some chats otherwise than message by message"
    return found


def _measured(tokenizer: Any, turn: str, with_system: str | None) -> Markers | None:
    """Cut the markers out of rendered chats; None where the texts are not found in order."""
    pieces = _between(turn, (_USER, _ANSWER, _NEXT))
    plain = _between(_rendered(tokenizer, _TURN, answer=False), (_USER, _ANSWER, _NEXT))
    if pieces is None or plain is None or not pieces[3].startswith(plain[3]):
        return None
    after_user, answer = plain[3], pieces[3][len(plain[3]) :]
    if not pieces[1].startswith(after_user):
        return None
    before_answer, joint = pieces[1][len(after_user) :], pieces[2]
    start = _without_opening_token(tokenizer, pieces[0])
    system = None if with_system is None else _between(with_system, (_SYSTEM, _USER))
    if with_system is not None and system is None:
        return None
    before_user = _first_user(joint, start, None if system is None else system[1], after_user)
    if before_user is None:
        return None
    before, after = {"user": before_user, "assistant": before_answer}, {"user": after_user}
    after["assistant"] = joint.removesuffix(before_user)
    opening, default = start.removesuffix(before_user), ""
    if system is not None:
        head = _without_opening_token(tokenizer, system[0])
        after["system"] = system[1].removesuffix(before_user)
        if opening.startswith(head) and opening.endswith(after["system"]) and len(opening) > len(head):
            default = opening[len(head) : len(opening) - len(after["system"])]
            opening = ""
        before["system"] = head.removeprefix(opening)
    return Markers(before=before, after=after, opening=opening, answer=answer, default_system=default)


def _first_user(joint: str, start: str, after_system: str | None, after_user: str) -> str | None:
    """Return what stands before a user's text wherever it comes: first, after a system message, after an answer."""
    places = [joint, start, *([] if after_system is None else [after_system])]
    inner = joint.removeprefix(after_user)
    if all(place.endswith(inner) for place in places):
        return inner  # an answer ends as a user's text does: the usual case
    shortest = min(places, key=len)
    common = next(shortest[cut:] for cut in range(len(shortest) + 1) if all(p.endswith(shortest[cut:]) for p in places))
    return common or None


def _probes(system: bool) -> list[Chat]:
    chats: list[Chat] = [
        (("user", "Name a colour."),),
        (("user", "Write f(x).\n\nReply with code."), ("assistant", "x = 1"), ("user", "Once more:\n- shorter")),
        (("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5")),
    ]
    return chats + [(("system", "Be brief.\nUse no lists."), *chat) for chat in chats if system]


def _with_system(tokenizer: Any) -> str | None:
    """Return a rendered chat with a system message; None where the template takes none."""
    try:
        found = _rendered(tokenizer, (("system", _SYSTEM), ("user", _USER)), answer=False)
    except Exception:  # a template refuses by raising what it likes
        return None
    return found


def _rendered(tokenizer: Any, chat: Chat, answer: bool = True) -> str:
    messages = [{"role": role, "content": text} for role, text in chat]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return text


def _between(text: str, marks: Sequence[str]) -> list[str] | None:
    """Return what stands before, between and after `marks`; None unless each is there once, in this order."""
    pieces, rest = [], text
    for mark in marks:
        piece, found, rest = rest.partition(mark)
        if not found:
            return None
        pieces.append(piece)
    return None if any(mark in rest for mark in marks) else [*pieces, rest]


def _without_opening_token(tokenizer: Any, text: str) -> str:
    """Leave out a beginning-of-text token that the tokenizer puts before any text: a server adds it by itself."""
    first = tokenizer("a")["input_ids"][:1]
    if tokenizer.bos_token and first == [tokenizer.bos_token_id]:
        return text.removeprefix(tokenizer.bos_token)
    return text
