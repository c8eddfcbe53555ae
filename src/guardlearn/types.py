"""Frozen records that flow through guardlearn; behaviour lives in functions elsewhere.

`RepositoryItem` is Definition 10's r = ⟨a, Ψ, Ω, W_ref, H, source, metadata⟩ with its verdict. What ℛ derives about
an item (`Facts`) and its history H come with it when it is read; they are empty on an item not yet stored.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

__all__ = [
    "ArtifactStatus",
    "Example",
    "Facts",
    "FeedbackEntry",
    "Generation",
    "GenerationRequest",
    "Generator",
    "Guard",
    "GuardContext",
    "Message",
    "OnProgress",
    "RepositoryItem",
    "Side",
    "Source",
    "Specification",
    "TrainingTrace",
    "Verdict",
    "View",
    "utc",
]

Message = dict[str, str]
"""One chat message: {"role": "system" | "user" | "assistant", "content": text}."""

OnProgress = Callable[[int, int, str], None]
"""Called with (done, total, note) as a long step advances; rates and ETA are the caller's business."""


class _Word(enum.StrEnum):
    """A string enum that reads the spellings other tools write (upper case, synonyms)."""

    @classmethod
    def _missing_(cls, value: object) -> _Word | None:
        text = str(value.value if isinstance(value, enum.Enum) else value).strip().lower().replace("-", "_")
        text = _SYNONYMS.get(text, text)
        return next((member for member in cls if member.value == text), None)


_SYNONYMS = {
    "generated": "generator",
    "model": "generator",
    "heldout": "held_out",
    "test": "held_out",
    "": "unknown",
}


class ArtifactStatus(_Word):
    """Verdict of a guard on an item. PENDING: not judged, or the checker gave no verdict."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


class Source(_Word):
    """Who wrote the artifact (Definition 10); UNKNOWN where a store does not say."""

    GENERATOR = "generator"
    HUMAN = "human"
    IMPORTED = "imported"
    UNKNOWN = "unknown"


class Side(_Word):
    """Which use a specification serves, for ever; SET_ASIDE lies near two sides and serves none."""

    TRAIN = "train"
    VALIDATION = "validation"
    HELD_OUT = "held_out"
    SET_ASIDE = "set_aside"


class View(_Word):
    """What a trace becomes: the prompt conditions on Ψ alone, or on Ψ and H (Definition 24)."""

    FIRST_ATTEMPT = "first_attempt"
    REPAIR = "repair"


class FeedbackEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One (a_k, φ_k) of the history H (Definition 5)."""

    artifact: str
    feedback: str
    item_id: str = ""
    """Item of ℛ it came from; "" where unknown."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a guard said (Definition 6). PENDING is "no verdict": the checker failed, not the artifact."""

    status: ArtifactStatus
    feedback: str = ""
    cause: str = ""
    """Short category of a rejection ("style", "cases", "timeout" …), counted in evidence; "" when accepted."""
    fatal: bool = False
    """True: rejected beyond repair, the chain ends (⊥fatal)."""
    guard: str = ""
    guard_version: str = ""
    """Digest of the guard's code and settings."""
    seconds: float = 0.0
    verdicts: tuple[Verdict, ...] = ()
    """What the parts of a composed guard said, in the order of the parts (Definition 43); those not run are absent."""

    @property
    def passed(self) -> bool:
        """Whether the artifact was accepted (the guide's `guard(output).passed`)."""
        return self.status is ArtifactStatus.ACCEPTED


class Specification(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task: a line of a specification file. Fields of your own go into `metadata`."""

    id: str
    specification: str
    """Ψ."""
    constraints: str | None = None
    """Ω; None takes the guard's or the configuration's default."""
    group: str | None = None
    """Family that must not be split between sides; None: near-duplicates are clustered."""
    action_pair_id: str = "default"
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)


class GuardContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a guard may look at beside the artifact (Definition 3's C, without ℛ)."""

    specification: Specification
    history: tuple[FeedbackEntry, ...] = ()


class Guard(Protocol):
    """G: ordinary code that accepts or rejects an artifact, and says why."""

    name: str
    version: str
    """Digest of code and settings; stored with each item it judged."""
    constraints: str
    """Default Ω of specifications that give none; may be ""."""

    def __call__(self, artifact: str, context: GuardContext) -> Verdict:
        """Judge `artifact`; a checker's own failure is a PENDING verdict, never a rejection."""
        ...


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What ℛ derives about an item from its chain and its events."""

    status: ArtifactStatus
    """Current status: the first one, or what a later event made of it."""
    root_id: str
    """First item of the chain; the item itself where its parent is missing."""
    attempt: int
    """Position in the chain, 1 = first attempt."""
    rejected_ancestors: int
    """REJECTED items before this one in its chain: its retries (Definition 21, errata 3-5)."""
    excluded: bool = False
    reviewed: bool = False
    stale: bool = False
    """The guard that judged it has changed since."""
    redacted: bool = False
    broken: bool = False
    """An ancestor is missing, or the links run in a circle."""


class RepositoryItem(msgspec.Struct, frozen=True, kw_only=True):
    """One guard-checked attempt (Definition 10)."""

    id: str
    artifact: str
    """a, exactly as judged."""
    specification: str
    """Ψ as it stood at this attempt (it may be amended within a chain, Definition 12)."""
    status: ArtifactStatus
    """Read from ℛ: the current status. On append: the first one."""
    action_pair_id: str = "default"
    constraints: str = ""
    """Ω."""
    workflow_id: str = ""
    workflow_ref: str = ""
    """W_ref, the digest of the workflow (Definition 11)."""
    parent_id: str | None = None
    """The attempt this one retries; None for a first attempt."""
    source: Source = Source.GENERATOR
    feedback: str = ""
    """φ; an accepting guard may speak too."""
    cause: str = ""
    fatal: bool = False
    guard: str = ""
    guard_version: str = ""
    created_at: datetime = msgspec.field(default_factory=lambda: datetime.now(UTC))
    model: str = ""
    """Base model that generated it; "" unknown."""
    adapter: str = ""
    """Adapter digest; "" for the bare base."""
    sampling: dict[str, Any] = msgspec.field(default_factory=dict)
    """Temperature, seed, token counts, seconds: whatever the generator reports."""
    prompt_digest: str = ""
    """Digest of renderer, chat template and tokenizer that made its prompt; "" unknown."""
    group: str | None = None
    """Group of Ψ; None: clustered by near-duplicates."""
    seen_history: tuple[FeedbackEntry, ...] | None = None
    """The H the generator was shown, where it is not the chain's; None: the chain's."""
    metadata: dict[str, Any] = msgspec.field(default_factory=dict)
    seq: int = 0
    """Commit order within ℛ; 0 before it is stored."""
    facts: Facts | None = None
    side: Side | None = None
    history: tuple[FeedbackEntry, ...] = ()
    """H: filled on reading with `seen_history`, or the rejected attempts before this one in its chain."""

    @property
    def spec(self) -> str:
        """Ψ under the guide's name."""
        return self.specification

    @property
    def artifact_content(self) -> str:
        """`artifact` under the guide's name."""
        return self.artifact

    @property
    def feedback_history(self) -> list[dict[str, str]]:
        """H under the guide's name and in its form: {artifact, feedback} dicts, oldest first (erratum 9)."""
        return [{"artifact": entry.artifact, "feedback": entry.feedback} for entry in self.history]


class TrainingTrace(msgspec.Struct, frozen=True, kw_only=True):
    """τ's element: an artifact with what it was conditioned on (Definition 22, Theorem 9).

    The artifact is an accepted one, unless the extraction was asked for other verdicts.
    """

    item: RepositoryItem
    history: tuple[FeedbackEntry, ...]
    group: str
    side: Side
    attempts: tuple[RepositoryItem, ...] = ()
    """The REJECTED attempts before it in its chain, oldest first; filled where the extraction was asked for them."""

    @property
    def retries(self) -> int:
        """Rejected attempts before the accepted one."""
        return self.item.facts.rejected_ancestors if self.item.facts else len(self.history)


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One training row: a trace under one view."""

    id: str
    """`<item id>/<view>`, unique within a job."""
    trace_id: str
    view: View
    prompt: tuple[Message, ...]
    completion: str
    weight: float
    """1 / (views of its trace that are in the job), so that the loss stays a mean over traces."""


class GenerationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt to answer; `key` seeds its sampling noise, whatever batch it lands in."""

    messages: tuple[Message, ...]
    key: str
    """For example "seed/spec id/sample/attempt": equal keys draw equal noise (common random numbers)."""


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One answer."""

    text: str
    finish: str
    """"stop", "length" when it ran into the token limit, or what else a server says ("content_filter")."""
    prompt_tokens: int
    completion_tokens: int
    seconds: float = 0.0
    """What it cost: wall time of its batch divided by the batch's rows; on a server, of the try that was answered."""
    latency_seconds: float = 0.0
    """From asking to answer, tries and waiting among others included; 0 where nothing measures it."""
    tokens_known: bool = True
    """False: a server counted none, and both counts are 0."""


class Generator(Protocol):
    """π_θ: answers prompts. Implementations: transformers (local, batched), openai (servers), replay (shipped fake)."""

    model: str
    prompt_digest: str
    """Digest of chat template and tokenizer; "" where a server hides them."""
    common_random_numbers: bool
    """Whether equal keys draw equal noise."""
    special_tokens: tuple[str, ...]
    """Strings its tokenizer reads as control tokens, for the renderer to break up; () where none is known."""
    lanes: int
    """Calls of `generate` it takes at once, each from a thread of its own; ≥ 1."""
    batch: int
    """Requests it likes in one call; 0: all that wait."""

    def generate(
        self, requests: list[GenerationRequest], on_done: Callable[[int, Generation], None] | None = None
    ) -> list[Generation]:
        """Answer every request, in order; `on_done(index, generation)` is called as each one finishes."""
        ...

    def use_adapter(self, adapter: str | None) -> None:
        """Switch to an adapter folder, or to the bare base with None."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Return the sampling settings to be stored with each item."""
        ...


def utc(moment: datetime | str) -> datetime:
    """Return `moment` as an aware UTC time; a naive one is taken as UTC, a string is ISO 8601.

    Raises:
        ValueError: the string is no ISO 8601 time.
    """
    if isinstance(moment, str):
        moment = datetime.fromisoformat(moment)
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
