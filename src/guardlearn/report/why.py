"""An adapter on one page, as lines of label and text: what it learned from, how it did, why it is live or not.

What `guardlearn why` prints and the browser shows; everything in it is in one `lineage.Explanation`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from guardlearn.comparing.costs import Payback
from guardlearn.lineage import Explanation
from guardlearn.lineage.items import CHANGES
from guardlearn.report.words import payback

__all__ = ["why_lines"]

_IDS_SHOWN = 3


def why_lines(found: Explanation) -> Iterator[tuple[str, str]]:
    """Yield the page, a label and a text each line; two empty ones part its sections."""
    yield from _what_it_is(found)
    yield "", ""
    yield from _learned_from(found)
    yield "", ""
    yield from _trained(found)
    if found.figures:
        yield "", ""
        yield from _measured(found)
    yield "", ""
    yield from _decided(found)
    yield "", ""
    yield from _since(found)


def _what_it_is(found: Explanation) -> Iterator[tuple[str, str]]:
    record = found.record
    about = [f"round {record.round} of {record.learner}", record.state] if record.round else ["made by no round"]
    about += ["live"] if record.live else []
    yield "adapter", f"{', '.join(about)}"
    yield "", f"{found.folder.said}"
    if record.digest:
        yield "", f"weights {record.digest}"


def _learned_from(found: Explanation) -> Iterator[tuple[str, str]]:
    record, now = found.record, found.items
    new = f", {len(record.new_item_ids)} of them new" if record.new_item_ids else ""
    yield "learned from", f"{now.count} items{new}; by side: {_counts(now.by_side)}"
    yield "", f"which: {found.selects}"
    yield "", f"       {record.predicate or '(no predicate is noted)'}, up to seq {record.seq}"
    if found.inherited:
        yield "", f"beside them, {found.inherited} items that its parents learned from"
    yield "", f"by source: {_counts(now.by_source)}"
    yield "", f"by action pair: {_counts(now.by_action_pair)}"
    yield "", f"judged by: {_counts(now.by_guard)}"
    if record.weighting:
        yield "", f"weighed: {_settings(record.weighting)}"
    if left := {**record.dropped, **record.dropped_rows}:
        yield "", f"left out: {_counts(left)}"


def _trained(found: Explanation) -> Iterator[tuple[str, str]]:
    record = found.record
    start = found.parent or "the bare base"
    base = record.base_model or "a base that is not noted"
    base += f" ({record.base_model_digest[:12]})" if record.base_model_digest else ""
    yield "trained", f"on {base}, from {start}{f' ({record.mode})' if record.mode else ''}, seed {_said(record.seed)}"
    if record.views:
        yield "", f"views {', '.join(record.views)}"
    steps = {name: record.result.get(name) for name in ("steps", "rows", "seconds")}
    shown = {name: value for name, value in steps.items() if isinstance(value, int | float)}
    if shown:
        yield "", _settings(shown)
    for name, words in {"loss": "loss", "validation_loss": "validation loss"}.items():
        losses = record.result.get(name)
        if isinstance(losses, Mapping) and losses:
            yield "", f"{words}: {_settings(losses)}"
    if record.training:
        kept = {name: value for name, value in record.training.items() if name in _CONFIG and value is not None}
        yield "", _settings(kept)


_CONFIG = ("epochs", "max_steps", "batch_size", "learning_rate", "lora_r", "lora_alpha", "max_length", "backend")


def _measured(found: Explanation) -> Iterator[tuple[str, str]]:
    record, figures = found.record, found.figures
    evidence = record.evidence
    groups = f"{evidence['groups']} held-out groups" if "groups" in evidence else "held-out groups"
    against = f"against {found.incumbent}" if found.incumbent else "against the bare base"
    yield "measured", f"on {groups} {against}{f', look {record.look}' if record.look else ''}"
    rates = [figures.get("base first attempts"), figures.get("first attempts")]
    if None not in rates:
        yield "", f"first attempts that pass: {rates[0]:.1%} before, {rates[1]:.1%} with it"
    yield "", f"gain {_points(figures.get('gain'))} points{_interval(figures)}{_test(figures)}"
    if figures.get("detectable") is not None:
        yield "", f"the smallest gain this could find: {100 * figures['detectable']:.1f} points"
    if evidence.get("guard"):
        yield "", f"judged by {evidence['guard']}@{str(evidence.get('guard_version', ''))[:12]}"
    for pair, other in record.regressions.items():
        yield "", f"on {pair}, not trained: {_points((other.get('difference') or {}).get('rate'))} points"
    if said := _forgetting(record.forgetting):
        yield "", f"forgetting: {said}"
    for guard, counts in record.hidden.items():
        yield "", f"hidden guard {guard}: {_hidden(counts)}"
    yield from (("", line) for line in _cost(record.cost))
    if record.checked:
        yield "", f"its answers and those before it: {record.checked}"
    for what, reason in record.unmeasured.items():
        yield "", f"{what} was not measured: {reason}"


def _cost(cost: Mapping[str, Any]) -> Iterator[str]:
    """Return what the round cost, and when that will have been saved again."""
    plain = {name: value for name, value in cost.items() if name != "payback"}
    if said := _settings(plain):
        yield f"cost: {said}"
    if cost.get("payback"):
        yield payback(msgspec.convert(cost["payback"], Payback))


def _forgetting(found: Mapping[str, Any]) -> str:
    """Return what a candidate lost of what the base knew, in nats a token."""
    words = {"loss_rise": "loss on general texts {:+.4f} nats a token", "kl": "KL on kept prompts {:.4f}"}
    return ", ".join(said.format(found[name]) for name, said in words.items() if isinstance(found.get(name), float))


def _hidden(counts: Mapping[str, Any]) -> str:
    """Return what a hidden guard said of the first attempts that the visible one accepted."""
    said = []
    for which, words in {"base": "before", "candidate": "with it"}.items():
        found = counts.get(which) or {}
        judged = sum(found.get(verdict, 0) for verdict in ("accepted", "rejected"))
        said.append(f"{found.get('accepted', 0)} of {judged} accepted {words}")
    return ", ".join(said)


def _decided(found: Explanation) -> Iterator[tuple[str, str]]:
    record = found.record
    if not record.decided:
        yield "decided", "not yet" if record.round else "no round, so no gate decided"
    else:
        yield "decided", record.reason or record.state
    for check in record.decision.get("checks") or ():
        mark = "holds" if check.get("passed") else "FAILS"
        yield "", f"{mark}  {check.get('name')}: {check.get('found')}; needed: {check.get('needed')}"
    for each in record.promotions:
        why = f": {each.reason}" if each.reason not in ("", record.reason) else ""
        yield "", f"{each.action}, {each.created_at:%Y-%m-%d %H:%M} UTC, by {each.actor}{why}"
    for now in found.live_now:
        yield "live now", "this one" if record.live else f"{found.live_name}, {now.adapter_digest[:12]}: {now.adapter}"
    if not found.live_now:
        yield "live now", "the bare base" if record.round else "not known: no round made it"


def _since(found: Explanation) -> Iterator[tuple[str, str]]:
    happened = {kind: ids for kind, ids in found.items.since.items() if ids}
    if not happened:
        yield "since then", "nothing was noted about its items"
    for place, (kind, ids) in enumerate(happened.items()):
        more = f", and {len(ids) - _IDS_SHOWN} more (--json)" if len(ids) > _IDS_SHOWN else ""
        many = f"{len(ids)} item{'s' if len(ids) > 1 else ''}"
        text = f"{kind}: {many} ({CHANGES[kind]}): {', '.join(ids[:_IDS_SHOWN])}{more}"
        yield "since then" if place == 0 else "", text
    yield "went on", ", ".join(found.children) or "no adapter went on from it"
    for note in found.notes:
        yield "note", note


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name or '(none)'} {count}" for name, count in counts.items()) or "none"


def _settings(values: Mapping[str, Any]) -> str:
    """Return plain values as one line; lists and tables, except short ones, are left to --json."""
    shown = []
    for name, value in values.items():
        if value is None:
            continue
        text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else _json(value)
        if len(text) <= 60:
            shown.append(f"{name} {text}")
    return ", ".join(shown)


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _said(value: Any) -> str:
    return "not noted" if value is None else str(value)


def _points(share: float | None) -> str:
    return "not known" if share is None else f"{100 * share:+.1f}"


def _interval(figures: Mapping[str, Any]) -> str:
    low, high = figures.get("low"), figures.get("high")
    return "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"


def _test(figures: Mapping[str, Any]) -> str:
    p_value, level = figures.get("p"), figures.get("level")
    if p_value is None:
        return ""
    return f", p = {p_value:.2g}{f' at level {level:.2g}' if level is not None else ''}"
