"""AtomicGuard 2.39.1's prompt: the template of an action pair (a row of `ap_context`), filled for one attempt.

This is the prompt that its generators are sent, not the shorter one that its exporter writes for training. Its sections
and their order are those of its `PromptTemplate`; what an attempt built on stands in the item's metadata, where the
import of a store keeps it. Standard library only. Definition 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from guardlearn.errors import UsageError

__all__ = [
    "Templates",
    "added_texts",
    "check_templates",
    "template_messages",
    "template_obstacle",
    "unknown_dependencies",
]

Templates = Mapping[str, Mapping[str, str]]
"""Action pair → its template, by the names of `ap_context`'s columns; a field that is not there is ""."""

_WRAPPERS = ("feedback_wrapper", "escalation_feedback_wrapper")
_FIELDS = ("role", "constraints", "task", *_WRAPPERS, "feedback_mode", "artifact_context")
_MODES = ("", "inline", "chat")


def check_templates(templates: Templates) -> None:
    """Raise `UsageError` where a template has a field that is none, or one that cannot be filled."""
    for pair, template in templates.items():
        for field, text in template.items():
            if field not in _FIELDS or not isinstance(text, str):
                raise UsageError(f"template {pair!r}: {field!r} is no text of {', '.join(_FIELDS)}")
        for field in _WRAPPERS:
            try:
                template.get(field, "").format(feedback="")
            except (LookupError, ValueError, AttributeError) as error:
                raise UsageError(
                    f"template {pair!r}: {field} cannot be filled ({type(error).__name__}: {error}); it may hold "
                    "{feedback}, and braces as {{ and }}"
                ) from None
        if template.get("feedback_mode", "") not in _MODES:
            raise UsageError(
                f"template {pair!r}: feedback_mode {template['feedback_mode']!r} is neither inline nor chat"
            )


def template_obstacle(templates: Templates, about: Any, retry: bool) -> str:
    """Return why an attempt cannot be asked for, "" where it can.

    Args:
        templates: all of them.
        about: an item or specification; None: not known.
        retry: whether there is feedback to show.
    """
    template = templates.get(getattr(about, "action_pair_id", ""))
    if template is None:
        return "no template for its action pair"
    if retry and not template.get("feedback_wrapper"):
        return "its template has no feedback_wrapper"
    return "" if all(map(_sendable, _escalated(about))) else "NUL or lone surrogates in its escalation feedback"


def unknown_dependencies(templates: Templates, about: Any, contents: Mapping[str, str]) -> list[str]:
    """Return ids of the artifacts that an attempt's prompt held and `contents` does not."""
    return [item_id for _, item_id, told in _built_on(templates, about) if told and item_id not in contents]


def added_texts(templates: Templates, about: Any, contents: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the texts of other attempts that an attempt's prompt holds, and what they are to it."""
    built_on = [item_id for _, item_id, told in _built_on(templates, about) if told and item_id in contents]
    return [
        *(("dependency", contents[each]) for each in built_on),
        *(("escalation", each) for each in _escalated(about)),
    ]


def template_messages(
    templates: Templates,
    about: Any,
    asked: tuple[str, str],
    history: Sequence[tuple[str, str]],
    contents: Mapping[str, str],
    note: str = "",
) -> list[dict[str, str]]:
    """Return the messages of an attempt, without a system message.

    Args:
        templates: all of them.
        about: the item or specification; its action pair has a template.
        asked: Ψ and Ω.
        history: artifact and feedback of the attempts before it, oldest first.
        contents: artifacts that attempts built on, by id; one that is not there is left out, as AtomicGuard does.
        note: says that older entries were left out; "" where none were.
    """
    template = templates[about.action_pair_id]
    specification, constraints = asked
    latest = history[-1][1] if history else ""
    values = {"{specification}": specification, "{constraints}": constraints, "{feedback}": latest}
    role, rules, task = (_filled(template.get(name, ""), values) for name in ("role", "constraints", "task"))
    parts = [f"# ROLE\n{role}", f"# CONSTRAINTS\n{rules}"]
    if constraints:
        parts.append(f"# CONTEXT\n{constraints}")
    parts += _dependencies(templates, about, contents) + _escalations(template, about)
    wrapped = [template.get("feedback_wrapper", "").format(feedback=feedback) for _, feedback in history]
    turns: list[dict[str, str]] = []
    if template.get("feedback_mode") == "chat":
        parts += [note] if note else []
        turns += [
            {"role": role, "content": text}
            for (artifact, _), feedback in zip(history, wrapped, strict=True)
            for role, text in (("assistant", artifact), ("user", feedback))
        ]
    elif wrapped:
        parts += ["# RETRY HISTORY (Current Cycle)", *([note] if note else []), *_numbered("Attempt", wrapped)]
    parts.append(f"# TASK\n{task}")
    return [{"role": "user", "content": "\n\n".join(parts)}, *turns]


def _filled(text: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():  # one after the other, as AtomicGuard does: a Ψ may hold a placeholder too
        text = text.replace(name, value)
    return text


def _numbered(heading: str, texts: Sequence[str]) -> list[str]:
    return [f"--- {heading} {number} ---\n{text}" for number, text in enumerate(texts, 1)]


def _dependencies(templates: Templates, about: Any, contents: Mapping[str, str]) -> list[str]:
    shown = [
        f"## Context: {kind}\n{told}\n\n{contents[item_id]}"
        for kind, item_id, told in _built_on(templates, about)
        if told and item_id in contents
    ]
    return ["# DEPENDENCIES\n" + "\n\n".join(shown)] if shown else []


def _escalations(template: Mapping[str, str], about: Any) -> list[str]:
    said, wrapper = _escalated(about), template.get("escalation_feedback_wrapper")
    if not (said and wrapper):
        return []
    return [
        "# ESCALATION HISTORY (Prior Cycles)",
        *_numbered("Escalation Cycle", [wrapper.format(feedback=each) for each in said]),
    ]


def _escalated(about: Any) -> list[str]:
    said = _kept(about).get("escalation_feedback")
    return [text for text in (said if isinstance(said, list) else []) if isinstance(text, str)]


def _sendable(text: str) -> bool:
    """Whether a text can be sent and written: no NUL, no lone surrogate."""
    return "\0" not in text and not any("\ud800" <= sign <= "\udfff" for sign in text)


def _built_on(templates: Templates, about: Any) -> list[tuple[str, str, str]]:
    """Return kind, id and its producer's introduction ("" for none) of each artifact an attempt built on."""
    kept = _kept(about)
    found, kinds = (
        each if isinstance(each, dict) else {}
        for each in (kept.get("dependency_artifacts"), kept.get("dependency_types"))
    )
    order = kept.get("dependency_order") or list(found)  # ℛ sorts the names of metadata
    return [
        (str(kinds.get(pair, pair)), found[pair], templates.get(pair, {}).get("artifact_context", ""))
        for pair in order
        if isinstance(found.get(pair), str)
    ]


def _kept(about: Any) -> Mapping[str, Any]:
    """Return what the import of a store keeps of an object beside the fields of an item."""
    kept = about.metadata.get("atomicguard")
    return kept if isinstance(kept, dict) else {}
