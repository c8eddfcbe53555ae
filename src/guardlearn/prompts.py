"""The one renderer: Ψ, Ω and H become chat messages, for collecting, training, evaluating and serving alike.

A first attempt's user message is Ψ alone; a retry adds the feedback so far (and, if configured, the rejected
artifacts). Ω is the system message. The tokenizer's own chat template turns messages into tokens. The guide's text
forms (its section 3) are these messages written out. Standard library only: the training process imports this module
too, and tokenizers are passed in.

Definitions 3, 5, 13 and 24; errata 24-29.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from guardlearn.digests import digest_json
from guardlearn.errors import ModelError, UsageError
from guardlearn.templates import (
    Templates,
    added_texts,
    check_templates,
    template_messages,
    template_obstacle,
    unknown_dependencies,
)

__all__ = [
    "PromptConfig",
    "Renderer",
    "alpaca_row",
    "as_messages",
    "chat_text",
    "encode_completion",
    "encode_prompt",
    "fence",
    "format_alpaca",
    "format_full_example",
    "format_prompt",
    "special_tokens",
    "template_digest",
]

RENDERER_VERSION = 1
_ELIDED = "(earlier feedback left out)"

Retry = Literal["feedback", "artifact"]
Layout = Literal["plain", "guide", "atomicguard"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PromptConfig:
    """How prompts are asked."""

    retry: Retry = "feedback"
    """A retry shows the feedback only, or the rejected artifact too (a small model tends to copy it)."""
    layout: Layout = "plain"
    """"plain": Ψ, then what a retry adds. "guide": the guide's headings around both (its section 3). "atomicguard":
    AtomicGuard 2.39.1's own prompt, by the template of the action pair."""
    templates: Templates = dataclasses.field(default_factory=dict, hash=False)
    """For "atomicguard": action pair → its fields of `ap_context`; `load_prompts` reads them."""
    system: str = ""
    """For "atomicguard": the system message that its generator sends, which no store tells; "" for none."""

    def __post_init__(self) -> None:
        for field, kind in (("retry", Retry), ("layout", Layout)):
            allowed = get_args(kind)
            if getattr(self, field) not in allowed:
                raise UsageError(f"{field} {getattr(self, field)!r} is unknown; choose {' or '.join(allowed)}")
        if (self.layout == "atomicguard") != bool(self.templates) or (self.system and not self.templates):
            raise UsageError(
                f"layout {self.layout!r} with {len(self.templates)} templates: atomicguard needs them, no other layout "
                "takes them or a system message; load_prompts(PATH) gives both"
            )
        if self.templates and self.retry != "feedback":
            raise UsageError("layout 'atomicguard' shows what its templates say; leave retry out")
        check_templates(self.templates)


_GUIDE = PromptConfig(retry="artifact")  # what the guide's functions show: attempts and feedback


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """Renders messages; equal renderers give equal messages."""

    config: PromptConfig = PromptConfig()
    special_tokens: tuple[str, ...] = ()
    """Strings the tokenizer would read as control tokens; they are broken up wherever a text contains them."""
    dependencies: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
    """For layout "atomicguard": contents of the artifacts that attempts built on, by id."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides how messages come out, the tokenizer and the items apart."""
        settings = self.settings()
        if settings["layout"] == "plain":
            del settings["layout"]  # the same messages as before there was a choice, so the same digest
        return digest_json({"version": RENDERER_VERSION, "config": settings})

    def settings(self) -> dict[str, Any]:
        """Return the configuration as a manifest keeps it: `PromptConfig(**settings)` makes the same prompts."""
        settings = dataclasses.asdict(self.config)
        return {name: each for name, each in settings.items() if each or name not in ("templates", "system")}

    def messages(
        self,
        specification: str,
        constraints: str = "",
        history: Sequence[Any] = (),
        *,
        elided: bool = False,
        about: Any = None,
    ) -> list[dict[str, str]]:
        """Return the prompt for the next attempt at Ψ, given Ω and H (oldest first).

        Args:
            specification: Ψ.
            constraints: Ω; "" gives no system message.
            history: entries with `artifact` and `feedback`, as attributes or keys.
            elided: older entries were left out; the prompt says so.
            about: the item or specification asked for; layout "atomicguard" needs its action pair and metadata.

        Raises:
            UsageError: layout "atomicguard" has no template for it, see `obstacle`.
        """
        if self.config.layout == "atomicguard":
            return self._filled(specification, constraints, history, elided, about)
        messages = [{"role": "system", "content": self.neutralise(constraints)}] if constraints else []
        question, retry = self.sections(specification, history, elided=elided)
        if self.config.layout == "guide":
            shown = f"### Previous Attempts and Feedback\n{retry}\n\n" if retry else ""
            user = f"### Specification\n{question}\n\n{shown}### Solution\n"
        else:
            user = f"{question}\n\n{retry}" if retry else question
        return [*messages, {"role": "user", "content": user}]

    def obstacle(self, about: Any, history: Sequence[Any] = ()) -> str:
        """Return why an attempt cannot be asked for in this layout, "" where it can."""
        if self.config.layout != "atomicguard":
            return ""
        return template_obstacle(self.config.templates, about, bool(history))

    def unknown_dependencies(self, about: Any) -> list[str]:
        """Return ids of the artifacts that an attempt's prompt held and `dependencies` does not."""
        if self.config.layout != "atomicguard":
            return []
        return unknown_dependencies(self.config.templates, about, self.dependencies)

    def added_texts(self, about: Any) -> list[tuple[str, str]]:
        """Return what a prompt holds beside Ψ, Ω and H, and where it comes from: "dependency" or "escalation"."""
        if self.config.layout != "atomicguard":
            return []
        return added_texts(self.config.templates, about, self.dependencies)

    def _filled(
        self, specification: str, constraints: str, history: Sequence[Any], elided: bool, about: Any
    ) -> list[dict[str, str]]:
        if obstacle := self.obstacle(about, history):
            pair = getattr(about, "action_pair_id", "")
            raise UsageError(
                f"action pair {pair!r} cannot be asked as AtomicGuard asks: {obstacle}; there are templates for "
                f"{', '.join(sorted(self.config.templates))}"
            )
        entries = [(_field(entry, "artifact"), _field(entry, "feedback")) for entry in history]
        told = template_messages(
            self.config.templates,
            about,
            (specification, constraints),
            entries,
            self.dependencies,
            _ELIDED if elided else "",
        )
        system = [{"role": "system", "content": self.config.system}] if self.config.system else []
        return [{**each, "content": self.neutralise(each["content"])} for each in (*system, *told)]

    def sections(self, specification: str, history: Sequence[Any] = (), *, elided: bool = False) -> tuple[str, str]:
        """Return Ψ and what a retry adds to it ("" for a first attempt), in the words every format uses.

        Args:
            specification: Ψ.
            history: H, oldest first; all of it is used.
            elided: older entries were left out; the text says so.
        """
        parts = [_ELIDED] if elided else []
        parts.extend(self.neutralise(part) for part in self._retry_parts(history))
        return self.neutralise(specification), "\n\n".join(parts)

    def fit(
        self,
        specification: str,
        constraints: str,
        history: Sequence[Any],
        count_tokens: Callable[[list[dict[str, str]]], int],
        budget: int,
        *,
        about: Any = None,
    ) -> list[dict[str, str]] | None:
        """Return the fullest prompt within `budget` tokens, or None; see `messages`.

        The oldest history goes first and the newest feedback last; Ψ and Ω are never cut.
        """
        newest = [{"artifact": "", "feedback": _field(entry, "feedback")} for entry in history[-1:]]
        for start, kept in [*((n, history[n:]) for n in range(max(1, len(history)))), (len(history) - 1, newest)]:
            messages = self.messages(specification, constraints, kept, elided=start > 0, about=about)
            if count_tokens(messages) <= budget:
                return messages
        return None  # a retry without any feedback would be another prompt, not a shorter one

    def _retry_parts(self, history: Sequence[Any]) -> list[str]:
        headed = self.config.layout == "guide"
        attempt, said = ("**Attempt:**", "**Feedback:** ") if headed else ("Rejected answer:", "")
        parts: list[str] = []
        for entry in history:
            artifact, feedback = _field(entry, "artifact"), _field(entry, "feedback")
            shown = f"{attempt}\n{fence(artifact)}\n\n" if self.config.retry == "artifact" and artifact else ""
            part = f"{shown}{said}{feedback or 'The previous answer was rejected.'}"
            if not parts or parts[-1] != part:  # the same words again teach nothing and cost tokens
                parts.append(part)
        return parts

    def neutralise(self, text: str) -> str:
        """Return `text` with every special token in it broken up, so that a tokenizer reads plain text."""
        if not self.special_tokens or not any(token in text for token in self.special_tokens):
            return text
        pattern = "|".join(re.escape(token) for token in sorted(self.special_tokens, key=len, reverse=True))
        # every place where one begins: tokens may overlap, and a broken one may leave another whole
        return re.sub(f"(?=(?:{pattern}))(.)", "\\1\u200b", text, flags=re.DOTALL)


def format_prompt(spec: str, history: Iterable[Any] = (), *, constraints: str = "", layout: Layout = "plain") -> str:
    """Return the guide's prompt text for π_θ(a | Ψ, H): what a model without a chat template is given.

    Args:
        spec: Ψ.
        history: H as {artifact, feedback} dicts or entries, oldest first; all of it is used, whole (erratum 25).
        constraints: Ω.
        layout: "guide" sets the guide's own headings.

    Raises:
        UsageError: no such layout.
    """
    messages = Renderer(config=PromptConfig(retry="artifact", layout=layout)).messages(spec, constraints, list(history))
    return "\n\n".join(message["content"] for message in messages)


def format_full_example(r: Any, tokenizer: Any = None) -> str:
    """Return prompt and completion of an item as one text, for trainers that take nothing else (erratum 30).

    guardlearn's own trainer never reads it: loss would fall on the prompt too.

    Args:
        r: a `RepositoryItem`.
        tokenizer: its own chat template makes the text, as in `chat_text`; None: `format_prompt`'s text, a blank line,
            the artifact.
    """
    if tokenizer is None:
        return f"{format_prompt(r.spec, r.feedback_history, constraints=r.constraints)}\n\n{r.artifact_content}"
    renderer = Renderer(config=_GUIDE, special_tokens=special_tokens(tokenizer))
    messages = renderer.messages(r.spec, r.constraints, r.feedback_history)
    return chat_text(tokenizer, messages, renderer.neutralise(r.artifact_content))


def format_alpaca(r: Any) -> dict[str, str]:
    """Return an item as `instruction`, `input` and `output`, with a `system` where it has constraints.

    `instruction` is Ψ and `input` what H adds, in the words of `format_prompt` (erratum 28).

    Args:
        r: a `RepositoryItem`.
    """
    return alpaca_row(Renderer(config=_GUIDE), r, r.feedback_history)


def alpaca_row(renderer: Renderer, r: Any, history: Sequence[Any]) -> dict[str, str]:
    """Return what `format_alpaca` does, as `renderer` says it, for an item under the history `history`.

    A layout that does not part Ψ from H stands in `instruction` as a whole.
    """
    if renderer.config.layout == "atomicguard":
        told = renderer.messages(r.spec, r.constraints, history, about=r)
        system = "".join(each["content"] for each in told if each["role"] == "system")
        asked = "\n\n".join(each["content"] for each in told if each["role"] != "system")
        row = {"instruction": asked, "input": "", "output": renderer.neutralise(r.artifact_content)}
        return row | ({"system": system} if system else {})
    instruction, retry = renderer.sections(r.spec, history)
    row = {"instruction": instruction, "input": retry, "output": renderer.neutralise(r.artifact_content)}
    return row | ({"system": renderer.neutralise(r.constraints)} if r.constraints else {})


def as_messages(prompt: str | Sequence[Mapping[str, str]], special: Sequence[str] = ()) -> list[dict[str, str]]:
    """Return a prompt as chat messages: a text is one user message; `special` tokens inside are broken up."""
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    clean = Renderer(special_tokens=tuple(special)).neutralise
    return [{**message, "content": clean(message["content"])} for message in messages]


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
    text = _prompt_text(tokenizer, messages)  # a template writes the tokenizer's first token itself
    return list(tokenizer(text, add_special_tokens=not tokenizer.chat_template)["input_ids"])


def chat_text(tokenizer: Any, messages: Sequence[Mapping[str, str]], completion: str) -> str:
    """Return prompt and completion as one text, the end token last.

    `tokenizer(text)`, as it stands, gives the tokens of `encode_prompt` and `encode_completion`: a first token that the
    tokenizer sets before every text is left out, so that none is doubled (erratum 27). The tokens differ where text
    cannot tell: a special token inside the completion was broken up, the completion begins with white space that
    merges with the end of the prompt, or the template has no such first token and the tokenizer sets one.

    Args:
        tokenizer: of the model to be trained.
        messages: the prompt, special tokens broken up.
        completion: the answer, special tokens broken up.

    Raises:
        ModelError: the tokenizer names no end token.
    """
    if tokenizer.eos_token is None:
        raise ModelError("the tokenizer names no end token (eos_token); a text without one would not teach to stop")
    text = _prompt_text(tokenizer, messages)
    first = tokenizer.bos_token
    if first and text.startswith(first) and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]:
        text = text.removeprefix(first)
    return f"{text}{completion}{tokenizer.eos_token}"


def _prompt_text(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> str:
    plain = [dict(message) for message in messages]
    if not tokenizer.chat_template:
        return "\n\n".join(message["content"] for message in plain) + "\n\n"
    try:
        return str(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))
    except Exception as error:  # jinja2's TemplateError, raised by the template itself ("System role not supported")
        if plain[0]["role"] != "system" or "system" not in str(error).lower():
            raise
        head, first, *rest = plain
        folded = {"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}
        return str(tokenizer.apply_chat_template([folded, *rest], add_generation_prompt=True, tokenize=False))


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
