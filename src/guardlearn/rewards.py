"""Guards as rewards for those who run reinforcement learning themselves: R_sparse in the shape TRL's trainers ask for.

    from guardlearn import guard_reward
    trainer = GRPOTrainer(model, reward_funcs=guard_reward(guard), train_dataset=rows, args=config)

The dataset needs `prompt`; what the guard looks at beside the answer it reads from the columns `specification` and
`metadata`. Verdicts come as the collection loop gets them (`engines`): the same guard, the same sandbox, several at
once. Definition 23: +1 accepted, -1 rejected; a checker that failed says nothing about the answer, so its reward is
None, which TRL leaves out of the mean. Erratum 19.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from guardlearn.engines import LocalEngine
from guardlearn.errors import DataError, UsageError
from guardlearn.guards import as_guard
from guardlearn.types import ArtifactStatus, Guard, GuardContext, Specification, Verdict

__all__ = ["GuardReward", "guard_reward"]

_REWARDS = {ArtifactStatus.ACCEPTED: 1.0, ArtifactStatus.REJECTED: -1.0}


def guard_reward(
    guard: Guard | Callable[..., Any],
    *,
    specification_column: str = "specification",
    metadata_column: str = "metadata",
    workers: int | None = None,
) -> GuardReward:
    """Return a guard as a reward function of TRL: `reward(prompts, completions, **columns) -> [1.0, -1.0, None, …]`.

    Args:
        guard: G, or a function of (artifact) or (artifact, context), as `as_guard` takes.
        specification_column: the dataset column that says what was asked: Ψ as text, or a line of a specification file
            as a mapping or as JSON. Without it, Ψ is the last user message of the prompt.
        metadata_column: the column with the specification's metadata, a mapping or JSON, where the guard reads any.
        workers: guards that run at once; None: one a core, at least 2.

    Raises:
        GuardError: `guard` is no guard.
        UsageError: `workers` is below 1.
    """
    return GuardReward(as_guard(guard), specification_column, metadata_column, workers)


class GuardReward:
    """What `guard_reward` returns.

    Attributes:
        no_verdicts: answers so far about which the guard said nothing.
    """

    def __init__(self, guard: Guard, specification_column: str, metadata_column: str, workers: int | None) -> None:
        """See `guard_reward`."""
        self.__name__ = guard.name  # TRL logs the reward under it
        self.no_verdicts = 0
        self._columns = (specification_column, metadata_column)
        self._engine = LocalEngine(None, guard, guard_workers=workers)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """Judge answers.

        Args:
            prompts: texts, or lists of messages.
            completions: likewise, one for each prompt.
            columns: the dataset's other columns, one value for each prompt; what TRL adds is ignored.

        Returns:
            For each completion 1.0 (accepted), -1.0 (rejected) or None (no verdict).

        Raises:
            DataError: a column that is no specification or no metadata; the line names the row.
            GuardError: the guard returned something that is no verdict.
            BackendUnavailable: what the guard needs is not here: a sandbox, a library.
        """
        if len(prompts) != len(completions):
            raise UsageError(f"{len(prompts)} prompts and {len(completions)} completions; one is needed for each")
        given = [columns.get(name) for name in self._columns]
        for name, values in zip(self._columns, given, strict=True):
            if values is not None and len(values) != len(prompts):
                raise DataError(
                    f"column {name!r} has {len(values)} values for {len(prompts)} prompts; one each is needed"
                )
        asked = [
            _specification(row, prompt, *(values[row] if values is not None else None for values in given))
            for row, prompt in enumerate(prompts)
        ]
        answers = [
            self._engine.judge(_said(text), GuardContext(specification=spec))
            for text, spec in zip(completions, asked, strict=True)
        ]
        return [self._reward(answer.result()) for answer in answers]

    def close(self) -> None:
        """End the threads that run the guard."""
        self._engine.close()

    def _reward(self, verdict: Verdict) -> float | None:
        reward = _REWARDS.get(verdict.status)
        self.no_verdicts += reward is None
        return reward


def _specification(row: int, prompt: Any, told: Any, metadata: Any) -> Specification:
    asked: dict[str, Any] = {"id": f"row {row}", "specification": _last_question(prompt)}
    line = _mapping(told)
    if line is not None:
        # a column of mappings has every key in every row, None where a row has not
        asked |= {name: value for name, value in line.items() if value is not None}
    elif isinstance(told, str):
        asked["specification"] = told
    elif told is not None:
        raise DataError(f"row {row} has the specification {told!r:.60}; allowed: a text, a mapping, or its JSON")
    if metadata is not None:
        more = _mapping(metadata)
        if more is None:
            raise DataError(f"row {row} has the metadata {metadata!r:.60}; allowed: a mapping, or its JSON")
        asked["metadata"] = {**asked.get("metadata", {}), **more}
    try:
        return msgspec.convert(asked, Specification)
    except msgspec.ValidationError as error:
        raise DataError(f"row {row} has no usable specification ({error}); see `guardlearn collect --help`") from error


def _mapping(value: Any) -> Mapping[str, Any] | None:
    """Return a mapping, given as one or as JSON; None: it is something else."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str) or not value.lstrip().startswith("{"):
        return None
    try:
        read = json.loads(value)
    except ValueError:
        return None
    return read if isinstance(read, dict) else None


def _said(completion: Any) -> str:
    """Return an answer's text: as it is, or of the last message in it."""
    if isinstance(completion, str):
        return completion
    return _text(completion[-1]["content"]) if completion else ""


def _last_question(prompt: Any) -> str:
    if isinstance(prompt, str):
        return prompt
    return next((_text(message["content"]) for message in reversed(prompt) if message["role"] == "user"), "")


def _text(content: Any) -> str:
    """Return a message's text; content may come in parts."""
    if isinstance(content, str):
        return content
    return "".join(part.get("text") or "" for part in content or ())
