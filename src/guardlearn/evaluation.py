"""Evaluation: Definition 7's loop for base and candidate on the same specifications, paired, resumable.

Base and candidate answer with the same noise (keyed by seed, specification, sample and attempt), so a pair differs only
by the adapter. On the base's side may be another adapter, which is to be beaten. Every attempt is appended to
`attempts.jsonl` as it is judged; its first line names the plan, so that a killed run continues and another plan never
mixes in. What comes out is `guardlearn.evidence.Evidence`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import filelock
import msgspec

from guardlearn import evidence
from guardlearn.attempts import Attempt, ChainKey, attempt_chains
from guardlearn.digests import digest_file, digest_json, digest_text
from guardlearn.engines import Engine
from guardlearn.errors import DataError, LeakageError, ModelError, UsageError
from guardlearn.evidence import Evidence
from guardlearn.prompts import PromptConfig, Renderer
from guardlearn.training.saving import versions
from guardlearn.types import FeedbackEntry, Generation, Generator, Guard, OnProgress, Specification, Verdict

__all__ = ["Evidence", "check_leakage", "evaluate", "read_attempts"]

LOG = "attempts.jsonl"
_FORMAT = 1
_NAMED_LIBRARIES = ("torch", "transformers", "peft", "msgspec", "scipy", "numpy")


def evaluate(
    specs: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    *,
    adapter: str | Path | None,
    renderer: Renderer,
    folder: Path,
    against: str | Path | None = None,
    r_max: int = 4,
    samples: int = 1,
    seed: int = 0,
    manifest: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    engine: Engine | None = None,
) -> Evidence:
    """Measure base and candidate on the same specifications; the same call after a crash continues.

    The generator is left on the bare base.

    Args:
        specs: held-out specifications with distinct ids; `group` names what belongs together.
        generator: π_θ; it is switched between base and adapter.
        guard: G.
        adapter: candidate's adapter folder; for a server its name there, or NAME=FOLDER; None measures the base alone.
        renderer: must be the one the candidate was trained with.
        folder: gets `attempts.jsonl`; made if missing.
        against: adapter that answers as the base, named as `adapter` is; None: the bare base.
        r_max: R_max, the first attempt included.
        samples: chains per specification.
        seed: of the noise that base and candidate share.
        manifest: what the candidate, or the merged model measured alone, learned from (the job's manifest), checked for
            leakage and for its prompts.
        on_progress: called with (attempts made or no longer needed, those possible, note), for both models.
        engine: where generator and guard run; None: threads of this process.

    Raises:
        UsageError: no specifications, or `against` without `adapter`, or the folder holds an evaluation of something
            else, or one that is running.
        LeakageError: a specification or its group was trained on.
        ModelError: the candidate was trained with other prompts than it would be asked with.
        DataError: `attempts.jsonl` is damaged elsewhere than in its last line.
    """
    if not specs:
        raise UsageError("no specifications to evaluate; give at least one, better 100 in 37 groups or more")
    if adapter is None and against is not None:
        raise UsageError(f"against is {str(against)!r}, and there is no adapter to compare with it; name one")
    if manifest is not None:
        check_leakage(specs, manifest)
        _check_prompts(generator, renderer, manifest)
    plan = _plan(specs, generator, guard, adapter, against, renderer, r_max, samples, seed)
    steps = len(specs) * samples * r_max
    # the candidate first: an adapter that cannot be used says so before the base has cost any time
    base = None if against is None else str(against)
    models = {"base": base} if adapter is None else {"candidate": str(adapter), "base": base}
    attempts: dict[str, list[Attempt]] = {}
    with _AttemptLog(folder, plan, specs) as log:
        try:
            generator.use_adapter(base)  # so does the one it is compared with
            for turn, (which, weights) in enumerate(models.items()):
                generator.use_adapter(weights)
                attempts[which] = attempt_chains(
                    specs,
                    generator,
                    guard,
                    renderer=renderer,
                    r_max=r_max,
                    samples=samples,
                    seed=seed,
                    done=log.done[which],
                    on_attempt=log.writer(which),
                    on_progress=_shifted(on_progress, which, turn * steps, len(models) * steps),
                    engine=engine,
                )
        finally:
            generator.use_adapter(None)
    return evidence.summarise(
        specs,
        attempts["base"],
        attempts.get("candidate"),
        r_max=r_max,
        samples=samples,
        seed=seed,
        about=_about(plan, generator, guard, adapter, against, manifest),
    )


def read_attempts(folder: Path, specs: Sequence[Specification]) -> dict[str, list[Attempt]]:
    """Return the attempts of "base" and of "candidate" that an evaluation left in `folder`, in the order of `specs`.

    Raises:
        DataError: no attempt log there, or one of other specifications.
    """
    log = _AttemptLog(folder, {}, specs)
    if not log.path.is_file():
        raise DataError(f"{log.path} does not exist; evaluate into {folder} first")
    _, *rows = log.path.read_bytes().split(b"\n")
    for number, line in enumerate(rows[:-1], 2):  # what follows the last line end was never written whole
        log.remember(line, number)
    order = {spec.id: place for place, spec in enumerate(specs)}
    return {
        which: [each for key in sorted(chains, key=lambda key: (order[key[0]], key[1])) for each in chains[key]]
        for which, chains in log.done.items()
    }


def check_leakage(specs: Sequence[Specification], manifest: Mapping[str, Any]) -> None:
    """Refuse specifications whose text or group the adapter was trained on.

    Args:
        specs: what is to be evaluated.
        manifest: a job's manifest, with `specification_digests` and `groups`.

    Raises:
        LeakageError: naming the first such specification and how many there are.
        ModelError: the manifest does not say what was trained on.
    """
    try:
        texts, groups = set(manifest["specification_digests"]), set(manifest["groups"])
    except KeyError as error:
        raise ModelError(
            f"the adapter's manifest has no {error}, so leakage cannot be ruled out; train again, or give no manifest"
        ) from None
    leaks = []
    for spec in specs:
        if digest_text(spec.specification) in texts:
            leaks.append(f"specification {spec.id!r} was trained on (same text)")
        elif spec.group is not None and spec.group in groups:
            leaks.append(f"specification {spec.id!r} is of group {spec.group!r}, which was trained on")
    if leaks:
        more = f", and {len(leaks) - 1} more of {len(specs)}" if len(leaks) > 1 else ""
        raise LeakageError(f"{leaks[0]}{more}; evaluate on held-out specifications")


def _check_prompts(generator: Generator, renderer: Renderer, manifest: Mapping[str, Any]) -> None:
    written = manifest.get("prompts")  # jobs of earlier versions do not say
    if written is not None and PromptConfig(**written) != renderer.config:
        raise ModelError(
            f"the adapter was trained with prompts {written}, the renderer asks with {renderer.settings()}; evaluate "
            "with Renderer(config=PromptConfig(...)) of the training"
        )
    trained, asked = str(manifest.get("template_digest", "")), generator.prompt_digest
    if trained and asked and trained != asked:
        raise ModelError(
            f"the adapter was trained with prompts {trained[:12]}, the generator asks with {asked[:12]}: renderer, "
            "chat template or tokenizer differ; evaluate with the settings and the tokenizer of the training"
        )


def _plan(
    specs: Sequence[Specification],
    generator: Generator,
    guard: Guard,
    adapter: str | Path | None,
    against: str | Path | None,
    renderer: Renderer,
    r_max: int,
    samples: int,
    seed: int,
) -> dict[str, Any]:
    """Return everything that decides an outcome; equal plans continue each other."""
    plan = {
        "format": _FORMAT,
        "model": generator.model,
        "adapter": _adapter_identity(adapter),
        "specifications": digest_json([msgspec.to_builtins(spec) for spec in specs]),
        "guard": guard.name,
        "guard_version": guard.version,
        "constraints": digest_text(guard.constraints),
        "renderer": renderer.digest,
        "prompt": generator.prompt_digest,
        "sampling": dict(generator.describe()),
        "r_max": r_max,
        "samples": samples,
        "seed": seed,
    }
    if against is not None:  # plans from before there was a choice stay what they were
        plan["against"] = _adapter_identity(against)
    read_back: dict[str, Any] = json.loads(json.dumps(msgspec.to_builtins(plan)))
    return read_back


def _adapter_identity(adapter: str | Path | None) -> str:
    """Return the digest of an adapter's weights, or its name where it is no folder of weights."""
    if adapter is None:
        return ""
    text = str(adapter)
    for folder in (text, text.partition("=")[2]):  # on a server an adapter may be NAME=FOLDER
        files = sorted(Path(folder).expanduser().glob("adapter_model.*")) if folder else []
        if files:
            return digest_file(files[0])
    return f"name {text}"


class _AttemptLog:
    """`attempts.jsonl`: a header with the plan, then one judged attempt a line; only ever appended to."""

    def __init__(self, folder: Path, plan: Mapping[str, Any], specs: Sequence[Specification]) -> None:
        self.path = folder / LOG
        self.plan = plan
        self.done: dict[str, dict[ChainKey, list[Attempt]]] = {"base": {}, "candidate": {}}
        self._specs = {spec.id: spec for spec in specs}
        self._lock = filelock.FileLock(folder / ".evaluation.lock", timeout=0)

    def __enter__(self) -> _AttemptLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except filelock.Timeout:
            raise UsageError(
                f"another evaluation is running in {self.path.parent}; wait for it, or choose another folder"
            ) from None
        try:
            self._continue()
            self._file = self.path.open("ab")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
        self._lock.release()

    def writer(self, which: str) -> Any:
        """Return what appends an attempt of that model; a line is with the system before the next one starts."""

        def append(attempt: Attempt) -> None:
            row = _Row(
                model=which,
                spec=attempt.specification.id,
                sample=attempt.sample,
                attempt=attempt.attempt,
                generation=attempt.generation,
                verdict=attempt.verdict,
            )
            self._file.write(_line(msgspec.to_builtins(row)))
            self._file.flush()

        return append

    def _continue(self) -> None:
        """Read what is there, drop a torn last line, refuse another plan; write the header where there is none."""
        content = self.path.read_bytes() if self.path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        header, *rows = whole.split(b"\n")
        if not header:
            self.path.write_bytes(_line({"plan": self.plan, "digest": digest_json(self.plan)}))
            return
        self._check_plan(header)
        for number, line in enumerate(rows[:-1], 2):
            self.remember(line, number)
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))

    def _check_plan(self, header: bytes) -> None:
        try:
            stored = json.loads(header)["plan"]
            keys = sorted(stored.keys() | self.plan.keys())
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{self.path} is no attempt log of an evaluation; choose another folder") from None
        differ = [key for key in keys if stored.get(key) != self.plan.get(key)]
        if differ:
            shown = ", ".join(
                f"{key} {_short(stored.get(key))} there, {_short(self.plan.get(key))} here" for key in differ
            )
            raise UsageError(
                f"{self.path.parent} holds another evaluation ({shown}); choose another folder or remove it"
            )

    def remember(self, line: bytes, number: int) -> None:
        """Take a line of the file: the next attempt of its chain."""
        try:
            row = msgspec.convert(json.loads(line), _Row)
            spec, chains = self._specs[row.spec], self.done[row.model]
        except (ValueError, KeyError) as error:
            raise DataError(f"{self.path}, line {number}: not an attempt of this evaluation ({error})") from error
        chain = chains.setdefault((row.spec, row.sample), [])
        if row.attempt != len(chain) + 1:
            raise DataError(
                f"{self.path}, line {number}: attempt {row.attempt} of {row.spec!r} where {len(chain) + 1} was due"
            )
        history = tuple(
            FeedbackEntry(artifact=before.generation.text, feedback=before.verdict.feedback) for before in chain
        )
        chain.append(
            Attempt(
                specification=spec,
                sample=row.sample,
                attempt=row.attempt,
                generation=row.generation,
                verdict=row.verdict,
                history=history,
            )
        )


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the log; what the plan and the lines before it give is left out."""

    model: str
    spec: str
    sample: int
    attempt: int
    generation: Generation
    verdict: Verdict


def _line(value: Any) -> bytes:
    # json, not msgspec: an answer may hold a lone surrogate, which msgspec refuses
    return json.dumps(value, separators=(",", ":")).encode("ascii") + b"\n"


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"


def _shifted(on_progress: OnProgress | None, which: str, offset: int, total: int) -> OnProgress | None:
    if on_progress is None:
        return None
    report = on_progress
    return lambda done, _, note: report(offset + done, total, f"{which}, {note}")


def _about(
    plan: Mapping[str, Any],
    generator: Generator,
    guard: Guard,
    adapter: str | Path | None,
    against: str | Path | None,
    manifest: Mapping[str, Any] | None,
) -> dict[str, Any]:
    if adapter is None and manifest is None:
        leakage = "nothing to check: no adapter"
    elif manifest is None:
        leakage = "not checked: no manifest says what the adapter was trained on"
    else:
        leakage = "no text and no group of the adapter's training"
    return {
        "model": generator.model,
        "adapter": None if adapter is None else str(adapter),
        "against": None if against is None else str(against),
        "pairing": "common random numbers" if generator.common_random_numbers else "specification",
        "leakage": leakage,
        "sampling": plan["sampling"],
        "guard": guard.name,
        "guard_version": guard.version,
        "digests": {
            "plan": digest_json(plan),
            **{key: plan[key] for key in ("specifications", "adapter", "against", "prompt", "renderer") if key in plan},
        },
        "versions": versions("guardlearn", *_NAMED_LIBRARIES),
    }
