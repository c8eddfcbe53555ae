"""Evaluation with another adapter on the base's side: the incumbent that a candidate has to beat."""

from __future__ import annotations

import json

import msgspec
import pytest

from guardlearn.errors import DataError, ModelError, UsageError
from guardlearn.evaluation import Evidence, evaluate, read_attempts
from guardlearn.prompts import Renderer
from rivals import LIVE, NEXT, Rivals, WordGuard, drawn, specifications

SPECS = specifications(12)


def rivals():
    return Rivals(base=drawn(0.1), live=drawn(0.4), next=drawn(0.9))


def run(folder, generator=None, **options):
    options = {"adapter": NEXT, "against": LIVE, "renderer": Renderer(), "r_max": 3} | options
    return evaluate(SPECS, generator or rivals(), WordGuard(), folder=folder, **options)


def plan(folder):
    return json.loads((folder / "attempts.jsonl").read_bytes().split(b"\n")[0])["plan"]


def test_the_bases_side_is_the_adapter_that_was_named(tmp_path):
    generator = rivals()
    found = run(tmp_path / "live", generator)
    bare = run(tmp_path / "bare", against=None)
    alone = run(tmp_path / "alone", adapter=LIVE, against=None)
    assert found.base == alone.candidate
    assert found.candidate == bare.candidate
    assert found.base.first_attempt.rate > bare.base.first_attempt.rate
    assert generator.used[-1] is None  # the bare base is left in use
    assert found.against == LIVE and found.digests["against"] == "name live"
    assert "common random numbers" in found.pairing


def test_against_the_candidate_itself_nothing_differs(tmp_path):
    found = run(tmp_path, against=NEXT)
    assert found.changes.chains_changed == 0
    assert found.base == found.candidate


def test_plans_without_it_are_what_they_were(tmp_path):
    bare = run(tmp_path, against=None)
    assert "against" not in plan(tmp_path) and "against" not in bare.digests
    assert bare.against is None
    stored = json.loads(msgspec.json.encode(bare))
    del stored["against"]  # as evidence was written before
    assert msgspec.convert(stored, Evidence) == bare


def test_another_incumbent_is_another_evaluation(tmp_path):
    run(tmp_path / "log")
    with pytest.raises(UsageError, match=r"holds another evaluation \(against name live there, None here\)"):
        run(tmp_path / "log", against=None)
    for name, weights in (("one", b"w"), ("moved", b"w"), ("other", b"x")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").write_bytes(weights)
    answers = {str(tmp_path / name): drawn(0.4) for name in ("one", "moved", "other")}
    generator = Rivals(base=drawn(0.1), next=drawn(0.9), **answers)
    first = run(tmp_path / "weights", generator, against=tmp_path / "one")
    moved = run(tmp_path / "weights", generator, against=tmp_path / "moved")
    assert first.digests == moved.digests
    with pytest.raises(UsageError, match="against"):
        run(tmp_path / "weights", generator, against=tmp_path / "other")


def test_an_incumbent_that_cannot_be_used_is_said_before_anything_is_sampled(tmp_path):
    asked = []

    class Missing(Rivals):
        def use_adapter(self, adapter):
            if adapter == "gone":
                raise ModelError("no adapter folder")
            super().use_adapter(adapter)

    generator = Missing(base=drawn(0.1), next=lambda request: asked.append(request) or "good")
    with pytest.raises(ModelError, match="no adapter folder"):
        run(tmp_path, generator, against="gone")
    assert asked == []


def test_an_incumbent_alone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="against is 'live', and there is no adapter"):
        run(tmp_path, adapter=None)


def test_the_attempts_of_a_log_are_read_back(tmp_path):
    run(tmp_path, Rivals(base=drawn(0.1), live=drawn(0.4), next=drawn(0.6)))
    found = read_attempts(tmp_path, SPECS)
    lines = [json.loads(line) for line in (tmp_path / "attempts.jsonl").read_bytes().splitlines()[1:]]
    for which in ("base", "candidate"):
        order = [(each.specification.id, each.sample, each.attempt) for each in found[which]]
        written = [(line["spec"], line["sample"], line["attempt"]) for line in lines if line["model"] == which]
        assert sorted(order) == sorted(written)
        ids = [spec.id for spec in SPECS]
        assert [ids.index(name) for name, _, _ in order] == sorted(ids.index(name) for name, _, _ in order)
        repaired = next(each for each in found[which] if each.attempt == 2)
        assert repaired.history[0].feedback == "word misses good"
    with (tmp_path / "attempts.jsonl").open("ab") as log:
        log.write(b'{"model":"ba')  # being written
    assert read_attempts(tmp_path, SPECS) == found
    with pytest.raises(DataError, match="does not exist"):
        read_attempts(tmp_path / "nowhere", SPECS)
    with pytest.raises(DataError, match="line 2: not an attempt of this evaluation"):
        read_attempts(tmp_path, SPECS[:0])
