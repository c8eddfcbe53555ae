"""The first step of an ablation: which traces each arm gets, what measures them, and everything else that decides.

What is decided lies in `plan.json` before anything is trained. The same call later compares what it would decide with
that file and refuses what differs, so no record of one ablation ever stands beside another's. ℛ may grow meanwhile:
what came after the plan is not looked at.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from guardlearn.ablation.axes import AXES, Arm, arms_of
from guardlearn.ablation.config import AblationSettings
from guardlearn.ablation.keeping import FORMAT, begun_plan, check_same, keep_plan
from guardlearn.dag import ArtifactDAG
from guardlearn.digests import digest_json, digest_model
from guardlearn.errors import DataError, NoTracesError, UsageError
from guardlearn.evaluation import check_leakage
from guardlearn.evidence import group_of
from guardlearn.jobs import TrainingConfig
from guardlearn.jobs.writing import provenance
from guardlearn.loop.planning import on_side
from guardlearn.loop.rounds import Bench
from guardlearn.predicates import and_, up_to
from guardlearn.selections import to_predicate
from guardlearn.traces import Extraction, content_digest, extract_traces
from guardlearn.types import Side, Specification, TrainingTrace

__all__ = ["Planned", "fewest_groups", "plan_ablation", "subset"]

_RETRY_R_MAX = 4
_ALPHA = 0.05
_NOT_IN_SHARE = "not in this arm's share of the traces"
_NOTHING = "it selects no trace of the train side"


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """What an ablation will do."""

    over: str
    arms: list[Arm]
    """Those that are trained, the reference first."""
    reference: str
    same: dict[str, str]
    """Arms that would train on the same traces in the same way as another one, and which; they are not trained."""
    left_out: dict[str, str]
    """Arms that are not trained, and why."""
    extractions: dict[tuple[str, int], Extraction]
    """Traces by arm and seed."""
    specs: list[Specification]
    """Of the validation side; nothing else is measured on."""
    r_max: int
    notes: list[str]
    """What is to be known beside the figures."""
    digest: str
    """Of everything that decides a record."""

    @property
    def groups(self) -> int:
        """Among the specifications that measure."""
        return len({group_of(spec) for spec in self.specs})


def plan_ablation(
    dag: ArtifactDAG,
    settings: AblationSettings,
    bench: Bench,
    over: str,
    names: Sequence[str] = (),
    reference: str | None = None,
    *,
    folder: Path,
    keep: bool = True,
) -> Planned:
    """Return what an ablation will do, and keep it in `folder`; one that was begun there goes on, or is refused.

    Args:
        dag: ℛ; it is only read.
        settings: what all arms share.
        bench: base model, guard and specifications.
        over: a key of `AXES`.
        names: arms; none: the axis's usual ones.
        reference: the arm that the others are held against; None: the one that is set.
        folder: of this ablation.
        keep: False writes nothing.

    Raises:
        UsageError: no such axis or arm, nothing to compare, nothing to measure on, one attempt a chain where ways of
            asking a retry are compared, or `folder` holds another ablation.
        LeakageError: a specification that would measure stands in a trace.
        DataError: too few groups to take shares of the traces, or sides of ℛ that cannot support a measurement.
        NoTracesError: the reference, or an arm that was asked for, selects nothing.
    """
    training = _alike(settings.training, settings.loop.base_model)
    arms, chosen = arms_of(over, training, settings.loop.select, names, reference)
    arms.sort(key=lambda arm: arm.name != chosen)  # stable: the reference, then as they were named
    specs, r_max = _measured_on(dag, bench.specs), _r_max(over, settings.ablation.r_max)
    begun = begun_plan(folder)
    since = (begun["seq"], begun["now"]) if begun else (dag.last_seq, datetime.now(UTC).isoformat())
    found = _find(dag, arms, settings.ablation.seeds, since, optional=AXES[over].optional and not names)
    if len(found.arms) < 2:
        others = "; ".join(f"{name}: as {other}" for name, other in found.same.items()) or "the others select nothing"
        raise UsageError(f"only arm {chosen!r} of axis {over} is left ({others}); there is nothing to compare")
    for extraction in {id(each): each for each in found.extractions.values()}.values():  # arms may share theirs
        check_leakage(specs, provenance(extraction.traces))
    content = _content(settings, bench, specs, r_max) | _arms_content(found) | {"seq": since[0], "now": since[1]}
    content |= {"over": over, "same": found.same, "left_out": sorted(found.left_out)}
    read_back: dict[str, Any] = json.loads(json.dumps(content))
    if begun is not None:
        check_same(folder, begun, read_back)
    elif keep:
        keep_plan(folder, read_back)
    return Planned(
        over=over,
        arms=found.arms,
        reference=chosen,
        same=found.same,
        left_out=found.left_out,
        extractions=found.extractions,
        specs=specs,
        r_max=r_max,
        notes=_notes(settings, over, found.arms, specs),
        digest=digest_json(read_back),
    )


def subset(extraction: Extraction, share: float, seed: int) -> Extraction:
    """Return a share of the traces: whole groups, in an order that the seed decides, until the share is reached.

    With one seed, a smaller share's groups are among a greater one's.
    """
    if share >= 1:
        return extraction
    members: dict[str, list[TrainingTrace]] = {}
    for trace in extraction.traces:
        members.setdefault(trace.group, []).append(trace)
    wanted, taken, count = share * len(extraction.traces), set[str](), 0
    for group in sorted(members, key=lambda name: (_place(name, seed), name)):
        if count >= wanted - 1e-9:
            break
        taken.add(group)
        count += len(members[group])
    dropped = dict(extraction.dropped) | {_NOT_IN_SHARE: len(extraction.traces) - count}
    return msgspec.structs.replace(
        extraction, traces=[trace for trace in extraction.traces if trace.group in taken], dropped=dropped
    )


def fewest_groups(comparisons: int) -> int:
    """Return the fewest groups with which the sign-flip test can tell one of so many arms from the reference.

    All groups in one direction give p = 2 / 2^groups, which Holm's method multiplies by the number of comparisons.
    """
    return math.ceil(math.log2(2 * comparisons / _ALPHA))


def _place(group: str, seed: int) -> str:
    return hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).hexdigest()


def _alike(training: TrainingConfig, base_model: str) -> TrainingConfig:
    """Return how all arms train, without what ends one early or chooses weights by the side that measures."""
    name = training.base_model or Path(base_model).name
    return dataclasses.replace(training, base_model=name, early_stopping=0, keep="last", eval_steps=None)


def _measured_on(dag: ArtifactDAG, given: Sequence[Specification]) -> list[Specification]:
    specs = on_side(dag, given, Side.VALIDATION)
    if not specs:
        raise UsageError(
            f"none of {len(given)} specifications is on ℛ's validation side, where arms are compared; give more of "
            "them, with a group each, and collect or register them"
        )
    groups = {group_of(spec) for spec in specs}
    if len(groups) < 2:
        raise UsageError(
            f"all {len(specs)} specifications of the validation side are of one group, {groups.pop()!r}: nothing could "
            "be said about others; give specifications of more groups"
        )
    return specs


def _r_max(over: str, asked: int | None) -> int:
    if not AXES[over].by_attempts:
        return asked or 1
    if asked == 1:
        raise UsageError(
            f"r_max is 1, and axis {over} compares ways of asking a retry: there must be retries; give --rmax 2 or more"
        )
    return asked or _RETRY_R_MAX


class _Found(NamedTuple):
    """What arms select."""

    arms: list[Arm]
    same: dict[str, str]
    left_out: dict[str, str]
    extractions: dict[tuple[str, int], Extraction]


def _find(
    dag: ArtifactDAG, arms: Sequence[Arm], seeds: Sequence[int], since: tuple[int, str], *, optional: bool
) -> _Found:
    """Return what each arm trains on; the first is the reference, which must find something."""
    selected, left_out = _selected(dag, arms, optional, *since)
    present = [arm for arm in arms if arm.name in selected]
    extractions = {(arm.name, seed): subset(selected[arm.name], arm.share, seed) for arm in present for seed in seeds}
    _check_shares(present, seeds, extractions)
    known: dict[str, str] = {}
    kept, same = [], {}
    for arm in present:
        ids = [[trace.item.id for trace in extractions[arm.name, seed].traces] for seed in seeds]
        teaches = digest_json([msgspec.to_builtins(arm.training), ids])
        if teaches in known:
            same[arm.name] = known[teaches]
        else:
            known[teaches] = arm.name
            kept.append(arm)
    own = {key: each for key, each in extractions.items() if key[0] not in same}
    return _Found(kept, same, left_out, own)


def _selected(
    dag: ArtifactDAG, arms: Sequence[Arm], optional: bool, seq: int, now: str
) -> tuple[dict[str, Extraction], dict[str, str]]:
    """Return what each arm's Φ finds up to `seq`, and which arms find nothing; equal questions are asked once."""
    asked: dict[tuple[str, str], Extraction] = {}
    found: dict[str, Extraction] = {}
    left_out: dict[str, str] = {}
    for place, arm in enumerate(arms):
        how = arm.training.extraction
        key = (arm.select, repr(sorted(how.items())))
        if key not in asked:
            chosen = and_(to_predicate(arm.select).resolve(datetime.fromisoformat(now)), up_to(seq))
            try:
                asked[key] = extract_traces(dag, chosen, sides=(Side.TRAIN,), **how)
            except NoTracesError:
                if not optional or place == 0:
                    raise
                left_out[arm.name] = _NOTHING
                continue
        found[arm.name] = asked[key]
    return found, left_out


def _check_shares(arms: Sequence[Arm], seeds: Sequence[int], extractions: Mapping[tuple[str, int], Extraction]) -> None:
    for seed in seeds:
        for one, other in itertools.pairwise(sorted(arms, key=lambda arm: arm.share)):
            traces = extractions[one.name, seed].traces
            if one.share < other.share and len(traces) == len(extractions[other.name, seed].traces):
                groups = len({trace.group for trace in traces})
                raise DataError(
                    f"{one.name} and {other.name} of the traces are the same {len(traces)} traces of {groups} group(s) "
                    f"with seed {seed}: shares are taken by group; collect on more groups, or name shares further apart"
                )


def _content(settings: AblationSettings, bench: Bench, specs: Sequence[Specification], r_max: int) -> dict[str, Any]:
    """Return what decides a record and is the same for all arms."""
    loop, ablation = settings.loop, settings.ablation
    return {
        "format": FORMAT,
        "seeds": list(ablation.seeds),
        "samples": ablation.samples,
        "r_max": r_max,
        "minutes": ablation.minutes,
        "calibration_steps": ablation.calibration_steps,
        "first_stage": ablation.first_stage,
        "specifications": digest_json([msgspec.to_builtins(spec) for spec in specs]),
        "guard": f"{bench.guard.name}@{bench.guard.version}",
        "base": digest_model(bench.model_folder),
        "generator": loop.generator,
        "model": Path(loop.model).name,
        "temperature": loop.temperature,
        "max_new_tokens": loop.max_new_tokens,
        "stop": list(loop.stop),
        "seed": loop.seed,
    }


def _arms_content(found: _Found) -> dict[str, Any]:
    """Return what decides a record of each arm; the first is the reference."""
    seeds = sorted({seed for _, seed in found.extractions})
    said: dict[str, Any] = {
        f"arm {arm.name}": {
            "training": msgspec.to_builtins(arm.training),
            "select": arm.select,
            "share": arm.share,
            "traces": {str(seed): _traces_digest(found.extractions[arm.name, seed]) for seed in seeds},
        }
        for arm in found.arms
    }
    return {"reference": found.arms[0].name, **said}


def _traces_digest(extraction: Extraction) -> str:
    """Return what stands for a selection: its items, what they teach, and their attempts."""
    return digest_json(
        [
            [trace.item.id, content_digest(trace.item).hex(), trace.group, [each.id for each in trace.attempts]]
            for trace in extraction.traces
        ]
    )


def _notes(settings: AblationSettings, over: str, arms: Sequence[Arm], specs: Sequence[Specification]) -> list[str]:
    notes = []
    groups, least = len({group_of(spec) for spec in specs}), fewest_groups(len(arms) - 1)
    if groups < least:
        notes.append(
            f"Whatever comes out, {groups} groups on the validation side tell none of {len(arms) - 1} arms from the "
            f"reference: the test needs at least {least}."
        )
    training = settings.training
    if training.early_stopping or training.keep != "last":
        notes.append(
            "early_stopping and keep of [training] are not used: every arm trains for the same time, and the side that "
            "measures chooses no weights."
        )
    if over == "retry_prompt" and "repair" not in training.views:
        notes.append("No arm learns from repair prompts, so the arms differ in how they are asked only.")
    return notes
