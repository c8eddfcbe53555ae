"""Chat logs in OpenAI's message form come into ℛ as chains of attempts, and what they do not say stays unknown."""

import json
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.chat import import_chat, is_chat, read_chat
from guardlearn.dag.importers.mapping import parse_mapping
from guardlearn.dag.importers.protocol import ImportedItem
from guardlearn.errors import LogError, NoTracesError, UsageError
from guardlearn.predicates import everything, excluded, refinement
from guardlearn.prompts import Renderer
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, Source

pytestmark = pytest.mark.usefixtures("commands_start_warm")

SYSTEM = {"role": "system", "content": "Answer with SQL."}


def user(text):
    return {"role": "user", "content": text}


def assistant(text, **more):
    return {"role": "assistant", "content": text, **more}


RETRIED = [SYSTEM, user("all users"), assistant("SELEC"), user("syntax error"), assistant("SELECT 1"), user("no table"),
           assistant("SELECT * FROM users")]  # fmt: skip


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(str(tmp_path / "runs.db")) as opened:
        yield opened


@pytest.fixture
def log(json_lines):
    return json_lines("chat.jsonl")


def stored(dag):
    return {item.artifact: item for item in dag.extract(everything())}


def statuses(dag):
    return {artifact: item.status.value for artifact, item in stored(dag).items()}


def test_a_conversation_is_a_chain_of_attempts_and_the_last_has_the_verdict(dag, log):
    report = import_chat(dag, log([{"messages": RETRIED, "accepted": True}]))
    assert (report.read, report.new, report.skipped, report.faults) == (3, 3, 0, [])
    assert report.unknown == {"source": 3, "time": 3}
    assert statuses(dag) == {"SELEC": "rejected", "SELECT 1": "rejected", "SELECT * FROM users": "accepted"}
    last = stored(dag)["SELECT * FROM users"]
    assert (last.specification, last.constraints) == ("all users", "Answer with SQL.")
    assert [(entry.artifact, entry.feedback) for entry in last.history] == [
        ("SELEC", "syntax error"),
        ("SELECT 1", "no table"),
    ]
    assert last.seen_history is None and last.facts.rejected_ancestors == 2 and last.source is Source.UNKNOWN
    assert last.metadata["line"] == 1 and last.metadata["log"] == "chat.jsonl"
    assert dag.count(refinement()) == 1
    assert dag.verify().ok


def test_what_the_model_was_asked_is_what_is_rendered(dag, log):
    import_chat(dag, log([{"messages": RETRIED, "passed": 1}]))
    last = stored(dag)["SELECT * FROM users"]
    first = Renderer().messages(last.specification, last.constraints)
    assert first == RETRIED[:2]
    retry = Renderer().messages(last.specification, last.constraints, last.history)
    assert retry[-1]["content"] == "all users\n\nsyntax error\n\nno table"


def calls():
    """A log of calls: each line holds the conversation so far, and the answer."""
    return [
        {
            "request": {"model": "m-1", "messages": RETRIED[:end]},
            "response": {"created": 1767323045 + end, "choices": [{"index": 0, "message": RETRIED[end]}]},
            "passed": end == 6,
        }
        for end in (2, 4, 6)
    ]


def test_a_log_of_calls_holds_each_attempt_once(dag, log):
    report = import_chat(dag, log(calls()))
    assert (report.read, report.new, report.faults) == (3, 3, [])
    assert statuses(dag) == {"SELEC": "rejected", "SELECT 1": "rejected", "SELECT * FROM users": "accepted"}
    last = stored(dag)["SELECT * FROM users"]
    assert [entry.feedback for entry in last.history] == ["syntax error", "no table"]
    assert last.model == "m-1" and last.created_at == datetime(2026, 1, 2, 3, 4, 11, tzinfo=UTC)
    assert report.unknown == {"source": 3}
    assert import_chat(dag, log(calls()[::-1], "other.jsonl")).new == 0


def test_the_form_of_the_log_does_not_matter(dag, log):
    one = import_chat(dag, log([{"messages": RETRIED, "accepted": True}]))
    again = import_chat(dag, log(calls(), "calls.jsonl"))
    assert one.new == 3 and (again.new, again.unchanged, again.changed) == (0, 3, 0)


def test_again_nothing_is_new_and_a_grown_log_only_its_new_lines(dag, log):
    import_chat(dag, log(calls()[:1]))
    assert dag.count(refinement()) == 0
    report = import_chat(dag, log(calls()))
    assert (report.read, report.new, report.unchanged, report.changed) == (3, 2, 1, 0)
    assert report.faults == [
        f"{stored(dag)['SELEC'].id}: its feedback is another than when it was imported; the first one stays"
    ]
    last = stored(dag)["SELECT * FROM users"]
    assert [(entry.artifact, entry.feedback) for entry in last.history] == [
        ("SELEC", "syntax error"),
        ("SELECT 1", "no table"),
    ]  # as the generator was shown it, though the first attempt was stored without its feedback
    before, seq = stored(dag), dag.last_seq
    assert import_chat(dag, log(calls())).new == 0
    assert stored(dag) == before and dag.last_seq == seq


def test_a_late_verdict_becomes_an_event(dag, log):
    line = {"messages": RETRIED[:3], "accepted": None}
    report = import_chat(dag, log([line]))
    assert report.unknown["verdict"] == 1 and report.pending == {"": 1}
    late = import_chat(dag, log([line | {"accepted": True}]))
    assert (late.new, late.changed) == (0, 1) and statuses(dag) == {"SELEC": "accepted"}
    seq = dag.last_seq
    for lines in ([line | {"accepted": True}], [line]):  # no verdict takes none back
        assert import_chat(dag, log(lines)).unchanged == 1
    assert dag.last_seq == seq
    assert import_chat(dag, log([line | {"accepted": False}])).changed == 1
    assert statuses(dag) == {"SELEC": "rejected"}


def test_what_somebody_decided_stays(dag, log):
    import_chat(dag, log([{"messages": RETRIED[:3], "accepted": None}]))
    dag.append_event(stored(dag)["SELEC"].id, "status", value="accepted", actor="ann", reason="I looked")
    report = import_chat(dag, log([{"messages": RETRIED[:3], "accepted": False}]))
    assert report.changed == 0 and statuses(dag) == {"SELEC": "accepted"}
    assert "is rejected in its source now, and accepted by an event, which stays" in report.faults[0]


def test_an_implied_rejection_never_overrides_a_verdict(dag, log):
    import_chat(dag, log([{"messages": RETRIED[:3], "accepted": True}]))
    report = import_chat(dag, log([{"messages": RETRIED[:5], "accepted": True}]))
    assert (report.new, report.changed, statuses(dag)["SELEC"]) == (1, 0, "accepted")


@pytest.mark.parametrize("order", [1, -1])
def test_a_stated_verdict_wins_over_an_implied_one_within_a_log(dag, log, order):
    lines = [{"messages": RETRIED[:5], "accepted": True}, {"messages": RETRIED[:3], "accepted": True}]
    path = log(lines[::order])
    import_chat(dag, path)
    assert statuses(dag) == {"SELEC": "accepted", "SELECT 1": "accepted"}
    assert import_chat(dag, path).unchanged == 2
    assert dag.count(excluded()) == 1  # the second goes on from an accepted answer: Ψ is not what was asked


def test_the_same_words_twice_are_two_attempts_where_both_have_verdicts(dag, log):
    line = {"messages": RETRIED[:3]}
    path = log([line, line | {"accepted": False}, line | {"accepted": True}, line])
    assert import_chat(dag, path).new == 2
    assert sorted(item.status.value for item in dag.extract(everything())) == ["accepted", "rejected"]
    assert import_chat(dag, path).unchanged == 2


def test_a_session_keeps_equal_conversations_apart(dag, log):
    lines = [{"messages": RETRIED, "accepted": True, "session_id": f"s{n}"} for n in range(2)]
    assert import_chat(dag, log(lines)).new == 6
    assert {item.metadata["chain"] for item in dag.extract(everything())} == {"s0", "s1"}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_importing_prefixes_of_a_log_gives_what_the_whole_log_does(tmp_path_factory, data):
    turns = st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["f", "g"])), min_size=1, max_size=3)
    talks = data.draw(st.lists(st.tuples(turns, st.sampled_from([True, False, None])), min_size=1, max_size=8))
    lines = []
    for said, verdict in talks:
        messages = [user("task")]
        for artifact, feedback in said:
            messages += [assistant(artifact), user(feedback)]
        lines.append(json.dumps({"messages": messages[:-1], "passed": verdict}) + "\n")
    folder = tmp_path_factory.mktemp("chat")
    path = folder / "chat.jsonl"

    def content(dag):
        return {item.id: (item.parent_id, item.artifact, item.status) for item in dag.extract(everything())}

    with ArtifactDAG.create(str(folder / "whole.db")) as dag:
        path.write_text("".join(lines), encoding="utf-8")
        report = import_chat(dag, path)
        whole = content(dag)
        assert report.new == len(whole) and dag.verify().ok
        assert len(list(read_chat(path))) == len(whole) + len(report.faults)
    stops = sorted({*data.draw(st.lists(st.integers(1, len(lines)), max_size=2)), len(lines)})
    with ArtifactDAG.create(str(folder / "grown.db")) as dag:
        for stop in stops:
            path.write_text("".join(lines[:stop]), encoding="utf-8")
            import_chat(dag, path)
        assert content(dag) == whole
        seq = dag.last_seq
        assert import_chat(dag, path).changed == 0
        assert dag.last_seq == seq


# -- forms


def test_contents_in_parts_and_the_developers_role(dag, log):
    parts = [{"type": "text", "text": "two"}, {"type": "text", "text": "parts"}]
    messages = [{"role": "developer", "content": "Ω"}, user(parts), assistant([{"type": "text", "text": "a"}])]
    import_chat(dag, log([{"messages": messages, "label": True}]))
    item = stored(dag)["a"]
    assert (item.constraints, item.specification, item.status) == ("Ω", "two\nparts", ArtifactStatus.ACCEPTED)


def test_weights_of_fine_tuning_data(dag, log):
    lines = [
        {"messages": [user("q"), assistant("dull", weight=0), user("wittier"), assistant("witty", weight=1)]},
        {"messages": [user("r"), assistant("kept", weight=1), user("and?"), assistant("more")]},
    ]
    report = import_chat(dag, log(lines))
    assert statuses(dag) == {"dull": "rejected", "witty": "pending", "kept": "pending", "more": "pending"}
    assert dag.count(excluded()) == 0  # a rejected attempt is never imitated, and serves as one
    assert report.faults == ["chat.jsonl: no line states a verdict; name its field, as in accepted=FIELD"]
    assert [entry.artifact for entry in stored(dag)["more"].history] == ["kept"]
    unjudged = [{"messages": [user("s"), assistant("skip me", weight=0)], "passed": True}]
    import_chat(dag, log(unjudged, "judged.jsonl"))
    assert [item.artifact for item in dag.extract(excluded())] == ["skip me"]
    dag.append_event(stored(dag)["skip me"].id, "include", actor="ann")
    late = import_chat(dag, log(lines), "accepted=weight")
    told = {"dull": "rejected", "witty": "accepted", "kept": "accepted", "more": "pending", "skip me": "accepted"}
    assert statuses(dag) == told
    assert (late.new, late.changed) == (0, 2)


def test_a_constant_says_what_holds_for_every_line(dag, log):
    lines = [{"messages": [user(f"q{n}"), assistant(f"a{n}")]} for n in range(3)]
    report = import_chat(dag, log(lines), "accepted==accepted,source==human,workflow==curated")
    assert report.unknown == {"time": 3}
    assert {(i.status.value, i.source.value, i.workflow_id) for i in dag.extract(everything())} == {
        ("accepted", "human", "curated")
    }


def test_prompt_and_completion_in_fields_of_their_own(dag, log):
    lines = [
        {"messages": [user("a")], "completion": "text", "ok": "yes"},
        {"messages": [user("b")], "completion": [assistant("list")], "ok": "yes"},
        {"messages": [user("c")], "response": {"content": "dict"}, "ok": "no", "feedback": "worse"},
        {"messages": [user("d")], "response": {"body": {"choices": [{"text": "old form"}]}}, "ok": "no"},
        {"messages": [user("e")], "response": {"output": [{"type": "reasoning"}, assistant([{"text": "new form"}])]}},
    ]
    report = import_chat(dag, log(lines), "accepted=ok")
    assert report.faults == [] and report.skipped == 0
    assert statuses(dag) == {
        "text": "accepted", "list": "accepted", "dict": "rejected", "old form": "rejected", "new form": "pending",
    }  # fmt: skip
    assert stored(dag)["dict"].feedback == "worse" and report.unknown["feedback"] == 1


def test_other_names_are_mapped(dag, log):
    line = {
        "in": {"turns": [user("q")]}, "out": "a", "eval": {"reward": 0.7}, "why": "meh", "run": "r1",
        "when": 1767323045, "fam": "sql", "ap": "write", "by": "human", "check": "judge", "llm": "m", "wf": "w",
        "ref": "ab" * 32, "kind": "x",
    }  # fmt: skip
    mapping = (
        "messages=in.turns,answer=out,accepted=eval.reward>=0.5,feedback=why,chain=run,time=when,group=fam,"
        "action_pair=ap,source=by,guard=check,model=llm,workflow=wf,workflow_ref=ref,cause=kind"
    )
    assert import_chat(dag, log([line]), mapping).unknown == {}
    item = stored(dag)["a"]
    assert (item.status, item.feedback, item.metadata["chain"]) == (ArtifactStatus.ACCEPTED, "meh", "r1")
    assert (item.group, item.action_pair_id, item.source, item.guard) == ("sql", "write", Source.HUMAN, "judge")
    assert (item.model, item.workflow_id, item.workflow_ref, item.cause) == ("m", "w", "ab" * 32, "x")
    assert item.created_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("rule", "value", "status"),
    [
        ("r>=0.5", 0.5, "accepted"), ("r>0.5", 0.5, "rejected"), ("r<=1", "0.9", "accepted"), ("r<1", 1, "rejected"),
        ("r>=0.5", None, "pending"), ("r>=0.5", "high", "pending"), ("r>=0.5", True, "pending"),
        ("r:good", "good", "accepted"), ("r:good", "bad", "rejected"),
    ],
)  # fmt: skip
def test_scores_need_a_threshold(dag, log, rule, value, status):
    report = import_chat(dag, log([{"messages": RETRIED[:3], "r": value}]), f"accepted={rule}")
    assert statuses(dag) == {"SELEC": status}
    assert any("no number" in fault for fault in report.faults) == (value == "high" or value is True)


def test_a_score_alone_is_no_verdict(dag, log):
    report = import_chat(dag, log([{"messages": RETRIED[:3], "reward": 1}]))
    assert report.faults == ["chat.jsonl: no line states a verdict; name its field, as in accepted=reward>=0.5"]
    assert statuses(dag) == {"SELEC": "pending"}


def test_several_choices_are_attempts_of_their_own(dag, log):
    choices = [{"message": assistant("a"), "passed": True}, {"message": assistant("b"), "passed": False}]
    import_chat(dag, log([{"messages": RETRIED[:4], "choices": choices}]))
    assert statuses(dag) == {"SELEC": "rejected", "a": "accepted", "b": "rejected"}
    assert {stored(dag)[name].parent_id for name in "ab"} == {stored(dag)["SELEC"].id}
    unclear = [{"message": assistant(text)} for text in "cd"]
    report = import_chat(dag, log([{"messages": [user("q")], "choices": unclear, "passed": True}]))
    assert "chat.jsonl line 1: which of its 2 answers the verdict is about is not known" in report.faults
    assert {stored(dag)[name].status for name in "cd"} == {ArtifactStatus.PENDING}


def test_what_a_prompt_in_texts_cannot_hold_is_there_but_never_trained_on(dag, log):
    call = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    lines = [
        [
            user("weather?"),
            assistant(None, tool_calls=call),
            {"role": "tool", "content": "rain"},
            assistant("It rains"),
        ],
        [user("call it"), assistant(None, tool_calls=call)],
        [user([{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": "x"}}]), assistant("a cat")],
        [assistant("Hello!"), user("hi"), assistant("there")],
        [user("empty"), assistant("")],
    ]
    report = import_chat(dag, log([{"messages": each, "accepted": True} for each in lines]))
    assert (report.read, report.skipped) == (5, 0)
    assert set(stored(dag)) == {"It rains", json.dumps(call), "a cat", "there", ""}
    assert dag.count(excluded()) == 5
    with pytest.raises(NoTracesError, match="none can be used: 4 excluded; 1 held-out side"):
        extract_traces(dag, everything())
    assert set(_reasons(dag)) == {
        "its prompt holds tool results, which is not kept",
        "it calls tools, which a text cannot teach",
        "its prompt holds a part of type 'image_url', which is not kept",
        "its prompt holds an assistant turn before the first user message, which is not kept",
        "empty content",
    }
    (fault,) = [fault for fault in report.faults if "empty" in fault]
    assert fault.endswith(": its answer is empty (line 5)")


def _reasons(dag):
    import sqlalchemy as sa

    from guardlearn.dag.tables import events

    with dag.reading() as connection:
        return connection.execute(sa.select(events.c.reason).where(events.c.kind == "exclude")).scalars().all()


# -- bad input

BAD = [
    ({"messages": [{"role": "wizard", "content": "x"}, *RETRIED]}, "role 'wizard' is unknown; allowed are system,"),
    ({"messages": [user("q")]}, "no assistant turn after the first user message"),
    ({"messages": [SYSTEM, assistant("a")]}, "no user message, so nothing was asked"),
    ({"messages": [user("  "), assistant("a")]}, "its first user message is empty"),
    ({"messages": [user("q"), assistant("a"), assistant("b")]}, "two assistant turns without anything said between"),
    ({"messages": [user("q"), "a"]}, "a message is a str; it must be an object"),
    ({"messages": [user("q"), assistant(7)]}, "content is a int; it must be a text or a list of parts"),
    ({"messages": [user("q"), assistant("a")], "response": "b"}, "end with an assistant turn already"),
    ({"messages": [user("q")], "response": {"choices": [{"index": 0}]}}, "neither a message nor a text"),
    ({"messages": [user("q")], "response": 5}, "its answer is a int"),
    ({"messages": [user("q")], "response": {"role": "user", "content": "x"}}, "its answer has role 'user'"),
    ({"messages": []}, "no list of messages in messages, request.messages"),
    ({"messages": [user("q"), assistant("a")], "model": "a\0b"}, "its model 'a\\x00b' holds NUL or a lone surrogate"),
    ('{"messages": [', "no JSON"),
    ("[1]", "list instead of an object"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "said"), BAD, ids=[said for _, said in BAD])
def test_a_line_that_is_no_conversation_is_named_and_all_others_are_read(dag, log, bad, said):
    good = {"messages": RETRIED, "accepted": True}
    report = import_chat(dag, log(["", bad, good]))
    (fault,) = report.faults
    assert fault.startswith("chat.jsonl line 2: ") and said in fault and "\n" not in fault
    assert (report.read, report.new, report.skipped) == (3, 3, 1)
    with pytest.raises(LogError, match="holds no attempt") as caught:
        import_chat(dag, log([bad], "bad.jsonl"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"status": "shipped"}, "status 'shipped' is unknown; known are pending, accepted, rejected, superseded"),
        ({"passed": "perhaps"}, "passed 'perhaps' is no verdict"),
        ({"label": 3}, "label '3' is no verdict"),
        ({"passed": True, "label": False}, "its verdicts differ (passed says accepted, label says rejected)"),
    ],
)
def test_an_unknown_verdict_is_named_and_never_guessed(dag, log, line, said):
    report = import_chat(dag, log([line | {"messages": RETRIED[:3]}]))
    assert statuses(dag) == {"SELEC": "pending"}
    assert report.faults[0].startswith("chat.jsonl line 1: ") and said in report.faults[0]
    assert report.faults[0].endswith("taken as no verdict") and report.unknown["verdict"] == 1


def test_a_status_of_the_call_is_no_verdict_where_there_is_one(dag, log):
    report = import_chat(dag, log([{"messages": RETRIED[:3], "status": "completed", "passed": False}]))
    assert report.faults == [] and statuses(dag) == {"SELEC": "rejected"}


def test_an_unknown_source_or_time_is_named_and_never_guessed(dag, log):
    line = {"messages": RETRIED[:3], "accepted": True, "by": "robot", "time": "soon"}
    report = import_chat(dag, log([line]), "source=by")
    assert report.faults[0].startswith("chat.jsonl line 1: its time 'soon' is no time")
    assert report.faults[1].startswith("chat.jsonl line 1: its source 'robot' is no source; allowed are generator,")
    assert report.unknown == {"source": 1, "time": 1} and stored(dag)["SELEC"].source is Source.UNKNOWN


def test_texts_that_databases_dislike_survive_and_are_named(dag, log):
    ugly = "a\0b\ud800c\r\n\u2028d"
    report = import_chat(dag, log([{"messages": [user("q"), assistant(ugly)], "accepted": True}]))
    assert set(stored(dag)) == {ugly}
    assert "holds NUL or lone surrogates: kept as it is, but no trace is made of it" in report.faults[0]
    with pytest.raises(NoTracesError, match="1 NUL or lone surrogates in its text"):
        extract_traces(dag, everything())
    assert dag.verify().ok


def test_a_byte_order_mark_windows_lines_and_blank_ones(dag, tmp_path):
    path = tmp_path / "windows.jsonl"
    line = json.dumps({"messages": RETRIED, "accepted": True}, ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{line}\r\n\r\n".encode())
    assert is_chat(path) and import_chat(dag, path).new == 3


def test_a_last_line_that_is_being_written_is_read_when_it_is_whole(dag, log):
    path = log([{"messages": RETRIED, "accepted": True}, {"messages": [user("q"), assistant("ä")], "passed": True}])
    whole = path.read_bytes()
    for end in (len(whole) - 30, whole.index(b"\\u00e4") + 3):
        path.write_bytes(whole[:end])
        report = import_chat(dag, path)
        assert report.skipped == 1 and report.faults[0].startswith("chat.jsonl line 2: ")
        assert "the last line is incomplete: import again when it is written to its end" in report.faults[0]
    path.write_bytes(whole)
    assert (import_chat(dag, path).new, dag.count(everything())) == (1, 4)


@pytest.mark.slow
def test_an_answer_of_fifty_megabytes(dag, log):
    big = "x" * 50_000_000
    assert import_chat(dag, log([{"messages": [user("q"), assistant(big)], "accepted": True}])).new == 1
    assert stored(dag)[big].status is ArtifactStatus.ACCEPTED


@pytest.mark.slow
def test_a_log_that_is_rewritten_while_it_is_read_is_not_taken(dag, log):
    def rewrite(done, total, note):
        if note == "reading":
            path.write_text(path.read_text().replace("SELEC", "ELECS"))

    lines = [{"messages": [user(f"q{n}"), assistant("a")]} for n in range(999)]
    path = log([*lines, {"messages": RETRIED, "accepted": True}])
    with pytest.raises(LogError, match="line 1000: it changed while it was read; import again"):
        import_chat(dag, path, on_progress=rewrite)
    assert dag.last_seq == 0


def test_files_that_are_no_chat_log(dag, log, tmp_path):
    with pytest.raises(LogError, match=r"no log at .*nowhere\.jsonl"):
        import_chat(dag, tmp_path / "nowhere.jsonl")
    with pytest.raises(LogError, match="holds no attempt"):
        import_chat(dag, log([""]))
    with pytest.raises(LogError, match="jq -c"):
        import_chat(dag, log([json.dumps([{"messages": RETRIED}], indent=1)]))
    with pytest.raises(LogError, match=r"no line has the field 'nowhere' \(for group\)"):
        import_chat(dag, log([{"messages": RETRIED}]), "group=nowhere")
    with pytest.raises(UsageError, match="key 'spec' is unknown; allowed are messages, answer"):
        import_chat(dag, log([{"messages": RETRIED}]), "spec=prompt")
    with pytest.raises(UsageError, match=r"'much' is no number; write for example reward>=0\.5"):
        import_chat(dag, log([{"messages": RETRIED}]), "accepted=reward>=much")
    assert dag.last_seq == 0 and dag.imports() == []


def test_clocks_that_run_backwards_change_no_chain(dag, log):
    lines = calls()
    for number, line in enumerate(lines):
        line["response"]["created"] = 1767323045 - number * 3600
    import_chat(dag, log(lines))
    chain = dag.provenance(stored(dag)["SELECT * FROM users"].id)
    assert [item.artifact for item in chain] == ["SELEC", "SELECT 1", "SELECT * FROM users"]
    assert chain[0].created_at - chain[2].created_at == timedelta(hours=2)  # as stated


def test_a_log_may_be_read_without_a_repository(log):
    given = list(read_chat(log([{"messages": RETRIED, "accepted": True}])))
    assert all(isinstance(each, ImportedItem) for each in given)
    assert [each.item.parent_id for each in given] == [None, *(each.item.id for each in given[:-1])]


# -- the page, the command

PAGE = (Path(__file__).parents[1] / "docs" / "importers.md").read_text(encoding="utf-8")


def test_the_pages_conversation_is_what_it_says(dag, log):
    (shown,) = re.findall(r"^```json\n(.*?)^```$", PAGE, re.S | re.M)
    import_chat(dag, log([json.loads(shown)]))
    assert statuses(dag) == {"SELEC * FROM users": "rejected", "SELECT * FROM users": "accepted"}
    assert stored(dag)["SELECT * FROM users"].history[0].feedback == "syntax error at SELEC"


def test_the_pages_mappings_are_read(dag, log):
    mappings = re.findall(r"^    guardlearn import .*\.jsonl .*--map '?([^\s'…]+)'?$", PAGE, re.M)
    chats, (plain,) = [text for text in mappings if "spec=" not in text], [m for m in mappings if "spec=" in m]
    assert len(chats) == 3 and parse_mapping(plain)["chain"] == "session_id"
    line = {"messages": [user("q"), assistant("a")], "reward": 0.7, "outcome": "shipped"}
    for number, text in enumerate(chats):
        import_chat(dag, log([line | {"session_id": number}]), text)
    assert [item.status.value for item in dag.extract(everything())] == ["accepted"] * 3


def guardlearn(*arguments):
    command = [sys.executable, "-m", "guardlearn", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_knows_a_chat_log_by_its_messages(tmp_path, log):
    path, into = log([{"messages": RETRIED, "accepted": True}, {"messages": [user("q")]}]), tmp_path / "new.db"
    done = guardlearn("import", path, "--into", into, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["new"] == 3
    shown = guardlearn("import", path, "--into", into)
    assert "fault: chat.jsonl line 2: no assistant turn" in shown.stderr
    forced = guardlearn("import", path, "--into", into, "--format", "log")
    assert forced.returncode == 2 and "needs --map" in forced.stderr
    wrong = guardlearn("import", path, "--into", into, "--format", "xml")
    assert wrong.returncode == 2 and "unknown format 'xml'; use chat or log" in wrong.stderr
    mapped = guardlearn("import", path, "--into", into, "--map", "accepted=accepted,workflow==w", "--json")
    assert json.loads(mapped.stdout)["skipped"] == 4  # one line, and three that are there without that workflow
