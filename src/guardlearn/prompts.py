"""The one renderer: Ψ, Ω and H become chat messages, for collecting, training, evaluating and serving alike.

A first attempt's user message is Ψ alone; a retry adds the feedback so far (and, if configured, the rejected
artifacts). Ω is the system message. The tokenizer's own chat template turns messages into tokens. Standard library
only: the training process imports this module too, and tokenizers are passed in.

Definitions 3, 5, 13 and 24; errata 24-29.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from guardlearn.digests import digest_json

__all__ = [
    "PromptConfig",
    "Renderer",
    "encode_completion",
    "encode_prompt",
    "fence",
    "format_prompt",
    "special_tokens",
    "template_digest",
]

RENDERER_VERSION = 1
_ELIDED = "(earlier feedback left out)"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How prompts are asked."""

    retry: Literal["feedback", "artifact"] = "feedback"
    """A retry shows the feedback only, or the rejected artifact too (a small model tends to copy it)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Renders messages; equal renderers give equal messages."""

    config: PromptConfig = PromptConfig()
    special_tokens: tuple[str, ...] = ()
    """Strings the tokenizer would read as control tokens; they are broken up wherever a text contains them."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides how messages come out, the tokenizer apart."""
        return digest_json({"version": RENDERER_VERSION, "config": dataclasses.asdict(self.config)})

    def messages(
        self, specification: str, constraints: str = "", history: Sequence[Any] = (), *, elided: bool = False
    ) -> list[dict[str, str]]:
        """Return the prompt for the next attempt at Ψ, given Ω and H (oldest first).

        Args:
            specification: Ψ.
            constraints: Ω; "" gives no system message.
            history: entries with `artifact` and `feedback`, as attributes or keys.
            elided: older entries were left out; the prompt says so.
        """
        clean = self._neutralise
        messages = [{"role": "system", "content": clean(constraints)}] if constraints else []
        parts = [clean(specification)]
        if elided:
            parts.append(_ELIDED)
        parts.extend(clean(part) for part in self._retry_parts(history))
        return [*messages, {"role": "user", "content": "\n\n".join(parts)}]

    def fit(
        self,
        specification: str,
        constraints: str,
        history: Sequence[Any],
        count_tokens: Callable[[list[dict[str, str]]], int],
        budget: int,
    ) -> list[dict[str, str]] | None:
        """Return the fullest prompt within `budget` tokens, or None.

        The oldest history goes first and the newest feedback last; Ψ and Ω are never cut.
        """
        newest = [{"artifact": "", "feedback": _field(entry, "feedback")} for entry in history[-1:]]
        for start, kept in [*((n, history[n:]) for n in range(max(1, len(history)))), (len(history) - 1, newest)]:
            messages = self.messages(specification, constraints, kept, elided=start > 0)
            if count_tokens(messages) <= budget:
                return messages
        return None  # a retry without any feedback would be another prompt, not a shorter one

    def _retry_parts(self, history: Sequence[Any]) -> list[str]:
        parts: list[str] = []
        for entry in history:
            artifact, feedback = _field(entry, "artifact"), _field(entry, "feedback")
            shown = f"Rejected answer:\n{fence(artifact)}\n\n" if self.config.retry == "artifact" and artifact else ""
            part = f"{shown}{feedback or 'The previous answer was rejected.'}"
            if not parts or parts[-1] != part:  # the same words again teach nothing and cost tokens
                parts.append(part)
        return parts

    def _neutralise(self, text: str) -> str:
        if not self.special_tokens or not any(token in text for token in self.special_tokens):
            return text
        pattern = "|".join(re.escape(token) for token in sorted(self.special_tokens, key=len, reverse=True))
        return re.sub(pattern, lambda match: match[0][0] + "\u200b" + match[0][1:], text)


def format_prompt(spec: str, history: Iterable[Any] = (), *, constraints: str = "") -> str:
    """Return the guide's prompt text for π_θ(a | Ψ, H): what a model without a chat template is given.

    Args:
        spec: Ψ.
        history: H as {artifact, feedback} dicts or entries, oldest first; all of it is used.
        constraints: Ω.
    """
    messages = Renderer(config=PromptConfig(retry="artifact")).messages(spec, constraints, list(history))
    return "\n\n".join(message["content"] for message in messages)


def fence(text: str, language: str = "") -> str:
    """Return `text` in a code fence longer than any run of backticks inside it."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}{language}\n{text}\n{ticks}"


def encode_prompt(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Return token ids of a prompt under the tokenizer's own chat template, ending where the answer begins.

    A template that knows no system role gets Ω at the head of the first user message; a tokenizer without a
    template gets the contents as plain text.
    """
    plain = [dict(message) for message in messages]
    if not tokenizer.chat_template:
        text = "\n\n".join(message["content"] for message in plain) + "\n\n"
        return list(tokenizer(text)["input_ids"])
    try:
        text = tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # jinja2's TemplateError, raised by the template itself ("System role not supported")
        if plain[0]["role"] != "system" or "system" not in str(error).lower():
            raise
        head, first, *rest = plain
        folded = {"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}
        text = tokenizer.apply_chat_template([folded, *rest], add_generation_prompt=True, tokenize=False)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_completion(tokenizer: Any, text: str) -> list[int]:
    """Return token ids of an answer, its end token last; special tokens inside the text are plain text."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*ids, tokenizer.eos_token_id]


def special_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Return the strings `tokenizer` reads as control tokens, sorted."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    return tuple(sorted({*tokenizer.all_special_tokens, *added}))


def template_digest(tokenizer: Any, renderer: Renderer) -> str:
    """Return the digest of renderer, chat template and tokenizer: equal digests turn equal texts into equal tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else str(Path(tokenizer.name_or_path).name)
    return digest_json(
        {
            "renderer": renderer.digest,
            "template": tokenizer.chat_template or "",
            "tokenizer": vocabulary,
            "eos": tokenizer.eos_token,
        }
    )


def _field(entry: Any, name: str) -> str:
    return str(entry.get(name, "") if isinstance(entry, Mapping) else getattr(entry, name))
