"""What a job is refused for before any model is loaded: another base, another template, too few positions, no mask."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from guardlearn.digests import digest_model
from guardlearn.errors import JobError, ModelError
from guardlearn.prompts import PromptConfig, Renderer, as_messages, special_tokens, template_digest
from guardlearn.training.settings import Job

__all__ = ["check_base", "check_maskable", "check_positions", "check_template"]

_ANSWER = "An answer."


def check_base(job: Job, model_path: Path) -> None:
    """Refuse another base model than the one the job was written for.

    Raises:
        ModelError: naming both digests.
    """
    found = digest_model(model_path)
    written = job.manifest.get("base_model_digest")
    if found != written:
        raise ModelError(
            f"{model_path} is not the base model the job was written for ({job.settings.base_model}): its digest is "
            f"{found}, the manifest says {written}; give --model that one, or write the job again"
        )


def check_positions(job: Job, model_path: Path) -> None:
    """Refuse rows that may be longer than the model has positions: beyond them it knows no order.

    Raises:
        ModelError: `max_length` exceeds what the model's configuration says.
    """
    config = json.loads((model_path / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config")
    said = (text if isinstance(text, dict) else {}) | config  # a model of more than text keeps its own inside
    positions, longest = said.get("max_position_embeddings"), job.settings.max_length
    if isinstance(positions, int) and longest > positions:
        raise ModelError(
            f"max_length is {longest}, {model_path} has {positions} positions (max_position_embeddings); write the job "
            f"with max_length {positions} at most, or take a model with more"
        )


def check_template(job: Job, tokenizer: Any) -> None:
    """Refuse a tokenizer, chat template or renderer that turns the job's texts into other tokens.

    Raises:
        ModelError: naming both digests.
    """
    said = job.manifest.get("prompts", {}) | {"retry": job.settings.retry, "layout": job.settings.layout}
    found = template_digest(tokenizer, Renderer(config=PromptConfig(**said)))
    written = job.manifest.get("template_digest")
    if found != written:
        raise ModelError(
            f"tokenizer, chat template or renderer differ from those the job was written with: digest {found}, the "
            f"manifest says {written}; write the job again with this model and this guardlearn"
        )


def check_maskable(rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> None:
    """Refuse a chat template under which a prompt is not how prompt and answer together begin.

    Loss falls on what follows the prompt. Where the template writes the prompt otherwise once it is answered, what
    follows is not what the model will be asked for. One prompt of each order of roles is looked at: templates read
    roles, not texts.

    Args:
        rows: with a `prompt`, messages or text.
        tokenizer: the base model's; without a template nothing can differ.

    Raises:
        JobError: such a template, or one that cannot write the prompt at all.
    """
    if not tokenizer.chat_template:
        return
    special, looked = special_tokens(tokenizer), set()
    for number, row in enumerate(rows, start=1):
        prompt = row.get("prompt")
        if not prompt or not isinstance(prompt, str | list):
            continue  # tokenising says what is wrong with the row
        messages = as_messages(prompt, special)
        roles = tuple(message["role"] for message in messages)
        if roles not in looked:
            looked.add(roles)
            _check_prefix(tokenizer, messages, str(row.get("id", f"row {number}")))


def _check_prefix(tokenizer: Any, messages: list[dict[str, str]], name: str) -> None:
    answer = {"role": "assistant", "content": _ANSWER}
    prompt = _written(tokenizer, messages, name, begins_answer=True)
    whole = _written(tokenizer, [*messages, answer], name, begins_answer=False)
    if whole.startswith(prompt) and _ANSWER in whole[len(prompt) :]:
        return
    same = next((at for at, (one, other) in enumerate(zip(prompt, whole, strict=False)) if one != other), len(whole))
    raise JobError(
        f"the chat template cannot be masked: of {name}, it writes {prompt[same:][:40]!r} where a prompt stands alone "
        f"and {whole[same:][:40]!r} once it is answered, so where the answer begins is not known; train with a model "
        "whose template only adds the answer"
    )


def _written(tokenizer: Any, messages: list[dict[str, str]], name: str, *, begins_answer: bool) -> str:
    """Return what the template makes of messages, Ω folded into the first user message where it knows no system."""
    try:
        return str(tokenizer.apply_chat_template(messages, add_generation_prompt=begins_answer, tokenize=False))
    except Exception as error:  # jinja2's TemplateError, raised by the template itself
        if messages[0]["role"] == "system" and "system" in str(error).lower():
            head, first, *rest = messages
            folded = {"role": first["role"], "content": f"{head['content']}\n\n{first['content']}"}
            return _written(tokenizer, [folded, *rest], name, begins_answer=begins_answer)
        said = " ".join(str(error).split())[:200]
        raise JobError(
            f"the chat template cannot write {name} ({type(error).__name__}: {said}); train with a model whose "
            "template takes these roles"
        ) from error
