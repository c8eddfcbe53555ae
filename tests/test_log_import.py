"""A user's own log comes into ℛ whole or not at all, and only once."""

import json
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardlearn.dag import ArtifactDAG
from guardlearn.dag.importers.fields import as_status, as_time
from guardlearn.dag.importers.log import import_log, read_log
from guardlearn.dag.importers.mapping import parse_mapping
from guardlearn.errors import LogError, UsageError
from guardlearn.predicates import everything
from guardlearn.traces import extract_traces
from guardlearn.types import ArtifactStatus, Side, Source

MAPPING = {
    "spec": "request.prompt",
    "artifact": "output",
    "accepted": "ok",
    "feedback": "error",
    "chain": "session_id",
    "time": "at",
}


def line(session: int, attempt: int, ok: object, **more: object) -> dict[str, object]:
    return {
        "request": {"prompt": f"task {session}"},
        "output": f"answer {session}.{attempt}",
        "ok": ok,
        "error": "" if ok else f"wrong {attempt}",
        "session_id": f"s{session}",
        "at": f"2026-01-01T00:{session:02}:{attempt:02}Z",
        **more,
    }


LINES = [line(1, 1, False), line(2, 1, True), line(1, 2, False), line(1, 3, True), line(3, 1, False)]


@pytest.fixture
def dag(tmp_path):
    with ArtifactDAG.create(str(tmp_path / "runs.db")) as opened:
        yield opened


@pytest.fixture
def log(json_lines):
    return json_lines("log.jsonl")


def stored(dag):
    return {item.id: item for item in dag.extract(everything())}


def test_retries_become_chains_with_their_history(dag, log):
    report = import_log(dag, log(LINES), MAPPING)
    assert (report.read, report.new, report.unchanged, report.faults) == (5, 5, 0, [])
    assert report.unknown == {"source": 5}
    (last,) = [item for item in stored(dag).values() if item.artifact == "answer 1.3"]
    assert last.status is ArtifactStatus.ACCEPTED and last.source is Source.UNKNOWN
    assert [(entry.artifact, entry.feedback) for entry in last.history] == [
        ("answer 1.1", "wrong 1"),
        ("answer 1.2", "wrong 2"),
    ]
    assert last.created_at == datetime(2026, 1, 1, 0, 1, 3, tzinfo=UTC)
    assert dag.count_by(everything(), "status") == {"accepted": 2, "rejected": 3}


def test_time_orders_a_chain_whatever_the_order_of_the_file(dag, log):
    shuffled = list(LINES)
    random.Random(1).shuffle(shuffled)
    ordered = {item.id: item.parent_id for item in read_log(log(LINES), MAPPING)}
    assert {item.id: item.parent_id for item in read_log(log(shuffled), MAPPING)} == ordered
    import_log(dag, log(shuffled), MAPPING)
    again = import_log(dag, log(LINES), MAPPING)
    assert (again.new, again.unchanged) == (0, 5)


def test_without_time_the_order_of_the_file_holds(dag, log):
    mapping = {key: field for key, field in MAPPING.items() if key != "time"}
    report = import_log(dag, log(LINES), mapping)
    assert report.unknown == {"source": 5, "time": 5}
    assert import_log(dag, log(LINES), mapping).new == 0
    assert [item.metadata["line"] for item in dag.extract(everything())] == [1, 2, 3, 4, 5]
    (last,) = [item for item in stored(dag).values() if item.artifact == "answer 1.3"]
    assert len(last.history) == 2


def test_the_same_file_again_is_nothing_new_and_a_grown_one_only_its_new_lines(dag, log):
    import_log(dag, log(LINES), MAPPING)
    before = stored(dag)
    assert import_log(dag, log(LINES), MAPPING).new == 0
    assert stored(dag) == before
    grown = import_log(dag, log([*LINES, line(3, 2, True), line(4, 1, True)]), MAPPING)
    assert (grown.read, grown.new, grown.unchanged, grown.faults) == (7, 2, 5, [])
    (retry,) = [item for item in stored(dag).values() if item.artifact == "answer 3.2"]
    assert [entry.feedback for entry in retry.history] == ["wrong 1"]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_importing_prefixes_of_a_log_stores_each_attempt_once(tmp_path_factory, data):
    verdicts = data.draw(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 1)), min_size=1))
    lines = [
        {"s": session, "p": "task", "o": f"answer {word}", "ok": ok, "e": "no"} for session, ok, word in verdicts
    ]  # few words: many lines are the same, and each is an attempt of its own
    mapping = {"spec": "p", "artifact": "o", "accepted": "ok", "feedback": "e", "chain": "s"}
    folder = tmp_path_factory.mktemp("log")
    stops = sorted({*data.draw(st.lists(st.integers(1, len(lines)), max_size=3)), len(lines)})
    with ArtifactDAG.create(str(folder / "runs.db")) as dag:
        done = 0
        for stop in stops:
            path = folder / "log.jsonl"
            path.write_text("".join(json.dumps(each) + "\n" for each in lines[:stop]), encoding="utf-8")
            report = import_log(dag, path, mapping)
            assert (report.read, report.new) == (stop, stop - done)
            done = stop
        whole = {item.id: item.parent_id for item in read_log(folder / "log.jsonl", mapping)}
        assert {item.id: item.parent_id for item in dag.extract(everything())} == whole


def test_a_line_that_arrives_late_is_kept_and_named(dag, log):
    import_log(dag, log([LINES[0], LINES[3]]), MAPPING)
    report = import_log(dag, log([LINES[0], LINES[2], LINES[3]]), MAPPING)
    assert (report.new, report.unchanged) == (1, 2)
    assert len(report.faults) == 1 and report.faults[0].startswith("log.jsonl line 2: comes before line 3")


def test_acceptance_ends_a_chain_and_the_session_goes_on_with_another(dag, log):
    lines = [line(1, 1, False), line(1, 2, True), line(1, 3, False), line(1, 4, True)]
    import_log(dag, log(lines), MAPPING)
    retries = {item.artifact: item.facts.rejected_ancestors for item in stored(dag).values()}
    assert retries == {"answer 1.1": 0, "answer 1.2": 1, "answer 1.3": 0, "answer 1.4": 1}


def test_a_log_that_is_being_written_is_read_to_its_last_whole_line(dag, log):
    path = log(LINES)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    report = import_log(dag, path, MAPPING)
    assert (report.read, report.new, report.skipped) == (4, 4, 1)
    assert (
        report.faults[0].startswith("log.jsonl line 5: no JSON") and "the last line is incomplete" in report.faults[0]
    )
    assert len(list(read_log(path, MAPPING))) == 4
    path.write_bytes(whole.removesuffix(b"\n"))  # whole, though its end is still missing
    report = import_log(dag, path, MAPPING)
    assert (report.read, report.new, report.unchanged, report.faults) == (5, 1, 4, [])
    path.write_bytes(whole)
    assert import_log(dag, path, MAPPING).new == 0


@pytest.mark.parametrize("own_ids", [{}, {"id": "uid"}], ids=["digests", "own ids"])
def test_a_late_verdict_becomes_an_event(dag, log, own_ids):
    mapping = MAPPING | own_ids
    waiting, first = line(1, 1, None, uid="a"), line(2, 1, False, uid="b")
    assert import_log(dag, log([first, waiting]), mapping).unknown["verdict"] == 1
    for judged in (line(1, 1, False, uid="a"), line(1, 1, True, uid="a")):
        report = import_log(dag, log([first, judged]), mapping)
        assert (report.read, report.new, report.unchanged, report.changed) == (2, 0, 1, 1)
        assert stored(dag)[_id(dag, "answer 1.1")].status is (
            ArtifactStatus.ACCEPTED if judged["ok"] else ArtifactStatus.REJECTED
        )
        seq = dag.last_seq
        assert import_log(dag, log([first, judged]), mapping).changed == 0
        assert import_log(dag, log([first, waiting]), mapping).changed == 0  # no verdict takes none back
        assert dag.last_seq == seq
    assert dag.verify().ok


def test_a_retry_is_shown_the_feedback_that_came_with_a_late_verdict(dag, log):
    import_log(dag, log([line(1, 1, None, error="")]), MAPPING)
    report = import_log(dag, log([line(1, 1, False), line(1, 2, True)]), MAPPING)
    assert (report.new, report.changed, report.faults) == (1, 1, [])
    retry = stored(dag)[_id(dag, "answer 1.2")]
    assert [(entry.artifact, entry.feedback) for entry in retry.history] == [("answer 1.1", "wrong 1")]
    assert retry.facts.rejected_ancestors == 1


def _id(dag, artifact):
    return next(item.id for item in dag.extract(everything()) if item.artifact == artifact)


def test_scores_and_constants_in_a_mapping(dag, log):
    lines = [line(1, 1, 0.2, error="weak"), line(2, 1, 0.5), line(3, 1, None)]
    report = import_log(dag, log(lines), MAPPING | {"accepted": "ok>=0.5", "source": "=human", "workflow_ref": "=ab"})
    assert sorted(item.status.value for item in stored(dag).values()) == ["accepted", "pending", "rejected"]
    assert {(item.source, item.workflow_ref) for item in stored(dag).values()} == {(Source.HUMAN, "ab")}
    assert report.unknown == {"verdict": 1}
    with pytest.raises(LogError, match=r"line 1: 'ok' \(for accepted\) 'true' is no number"):
        import_log(dag, log([line(1, 1, True)]), MAPPING | {"accepted": "ok>=0.5"})
    with pytest.raises(UsageError, match="'half' is no number"):
        parse_mapping("spec=a,artifact=b,accepted=ok>half,chain=c")


def test_every_optional_field_arrives(dag, log):
    extra = {
        "omega": "be brief", "fam": "sorting", "ap": "write", "by": "human", "check": "tests", "llm": "m1", "wf": "w1",
        "uid": "own-id", "why": "style",
    }  # fmt: skip
    mapping = MAPPING | {
        "constraints": "omega", "group": "fam", "action_pair": "ap", "source": "by", "guard": "check", "model": "llm",
        "workflow": "wf", "id": "uid", "cause": "why",
    }  # fmt: skip
    import_log(dag, log([line(1, 1, False, **extra)]), mapping)
    item = stored(dag)["own-id"]
    found = (item.constraints, item.group, item.action_pair_id, item.source, item.guard, item.model, item.workflow_id)
    assert (*found, item.cause) == ("be brief", "sorting", "write", Source.HUMAN, "tests", "m1", "w1", "style")


def test_own_ids_hold_their_content_for_ever(dag, log):
    mapping = MAPPING | {"id": "uid"}
    import_log(dag, log([line(1, 1, False, uid="a")]), mapping)
    assert import_log(dag, log([line(1, 1, False, uid="a"), line(1, 2, True, uid="b")]), mapping).new == 1
    with pytest.raises(LogError, match="line 1: id 'a' is stored already with another content"):
        import_log(dag, log([line(1, 1, False, uid="a") | {"output": "else"}]), mapping)
    with pytest.raises(LogError, match="line 2: id 'a' is that of line 1 too"):
        import_log(dag, log([line(1, 1, False, uid="a"), line(1, 2, True, uid="a")]), mapping)


def test_a_value_can_be_named_that_means_accepted(dag, log):
    lines = [line(1, 1, 7), line(1, 2, 0)]
    import_log(dag, log(lines), MAPPING | {"accepted": "ok:0"})
    assert sorted(item.status.value for item in stored(dag).values()) == ["accepted", "rejected"]


def test_structured_answers_are_kept_as_json_text(dag, log):
    lines = [line(1, 1, True) | {"output": {"name": "größe", "values": [1]}}, line(2, 1, None) | {"output": None}]
    report = import_log(dag, log(lines), MAPPING)
    texts = {item.artifact: item.status for item in stored(dag).values()}
    assert texts == {'{"name": "größe", "values": [1]}': ArtifactStatus.ACCEPTED, "": ArtifactStatus.PENDING}
    assert report.unknown["verdict"] == 1


def test_lists_and_names_with_dots_are_found(log):
    lines = [{"choices": [{"message": {"content": "a"}}], "x.y": "task", "ok": 1, "s": 1}]
    (item,) = read_log(
        log(lines), {"spec": "x.y", "artifact": "choices.0.message.content", "accepted": "ok", "chain": "s"}
    )
    assert (item.specification, item.artifact) == ("task", "a")


def test_texts_that_databases_dislike_survive(dag, log):
    ugly = "a\0b\ud800c\r\n\u2028d"
    import_log(dag, log([line(1, 1, True) | {"output": ugly}]), MAPPING)
    assert [item.artifact for item in stored(dag).values()] == [ugly]


BAD = [
    (LINES[0] | {"output": ...}, "no field 'output' (for artifact); the line has request.prompt, ok, error"),
    (LINES[0] | {"request": {"promt": "x"}}, "pass spec=request.promt"),
    (LINES[0] | {"error": ...}, "no field 'error' (for feedback)"),
    (LINES[0] | {"at": ...}, "no field 'at' (for time)"),
    (LINES[0] | {"at": "yesterday"}, "'at' (for time) 'yesterday' is no time"),
    (LINES[0] | {"at": None}, "'at' (for time) is null"),
    (LINES[0] | {"ok": "maybe"}, "'ok' (for accepted) 'maybe' is no verdict"),
    (LINES[0] | {"ok": "shipped"}, "'ok' (for accepted) 'shipped' is no verdict"),
    (LINES[0] | {"by": "robot"}, "'by' (for source) 'robot' is no source; allowed are generator, human, imported"),
    (LINES[0] | {"request": {"prompt": None}}, "(for spec) is null"),
    (LINES[0] | {"session_id": "a\0"}, "(for chain) 'a\\x00' holds NUL"),
    ('{"request": ', "no JSON"),
    ("[1, 2]", "list instead of an object"),
    ('"text"', "str instead of an object"),
]


@pytest.mark.parametrize(("bad", "said"), BAD, ids=[said for _, said in BAD])
def test_a_bad_line_is_named_and_nothing_is_stored(dag, log, bad, said):
    if isinstance(bad, dict):
        bad = {key: value for key, value in bad.items() if value is not ...}
    with pytest.raises(LogError) as caught:
        import_log(dag, log([LINES[1], "", bad, LINES[3]]), MAPPING | {"source": "by"})
    message = str(caught.value)
    assert message.startswith("log.jsonl line 3: ") and said in message and "\n" not in message
    assert caught.value.line == 3
    assert dag.count(everything()) == 0 and dag.last_seq == 0


def test_an_accepted_line_needs_no_feedback(dag, log):
    accepted = {key: value for key, value in LINES[1].items() if key != "error"}
    assert import_log(dag, log([accepted]), MAPPING).new == 1


def test_whole_files_that_are_no_log_are_refused(dag, log, tmp_path):
    with pytest.raises(LogError, match=r"no log at .*nowhere\.jsonl"):
        import_log(dag, tmp_path / "nowhere.jsonl", MAPPING)
    with pytest.raises(LogError, match="cannot be read"):
        import_log(dag, tmp_path, MAPPING)
    with pytest.raises(LogError, match="holds no line"):
        import_log(dag, log(["", ""]), MAPPING)
    with pytest.raises(LogError, match="jq -c"):
        import_log(dag, log([json.dumps(LINES, indent=1)]), MAPPING)
    cut = log(LINES[:1])
    cut.write_bytes(cut.read_bytes()[:-20])
    with pytest.raises(LogError, match=r"line 1: .*the last line is incomplete"):
        import_log(dag, cut, MAPPING)
    cut.write_bytes(b'{"a": "\xff"}\n')
    with pytest.raises(LogError, match="line 1: byte 8 is not UTF-8"):
        import_log(dag, cut, MAPPING)
    with pytest.raises(LogError, match=r"no line has the field 'nowhere' \(for group\)"):
        import_log(dag, log(LINES), MAPPING | {"group": "nowhere"})
    assert dag.last_seq == 0


def test_a_byte_order_mark_is_no_part_of_the_log(dag, tmp_path):
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(json.dumps(each) for each in LINES).encode())
    assert import_log(dag, path, MAPPING).new == 5


@pytest.mark.slow
def test_progress_ends_at_the_number_of_attempts(dag, log):
    calls = []
    many = [line(number, 1, True) | {"at": number} for number in range(2500)]
    import_log(dag, log(many), MAPPING, lambda *call: calls.append(call))
    assert calls[-1] == (2500, 2500, "storing")
    assert [note for _, _, note in calls] == ["reading", "reading", "storing", "storing", "storing"]


def test_mappings_are_read_from_text():
    text = "spec=request.prompt, artifact=output,accepted=ok,feedback=error,chain=session_id,time=at"
    assert parse_mapping(text) == MAPPING


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("spec=a,artefact=b", "'artefact' is unknown; allowed are spec, .*did you mean 'artifact'"),
        ("spec=a,artifact=b", "does not say which field is accepted, chain; add accepted=FIELD,chain=FIELD"),
        ("spec=a,spec=b", "names 'spec' twice"),
        ("spec", "'spec' is not KEY=FIELD"),
    ],
)
def test_a_wrong_mapping_says_what_to_pass(text, said):
    with pytest.raises(UsageError, match=said):
        parse_mapping(text)


@pytest.mark.parametrize(
    ("value", "status"),
    [
        *((value, ArtifactStatus.ACCEPTED) for value in (True, 1, 1.0, "1", "True", "PASSED", "ok", "Success", "yes")),
        *((value, ArtifactStatus.REJECTED) for value in (False, 0, 0.0, "0", "false", "Failed", "REJECTED", "fatal")),
        *((value, ArtifactStatus.PENDING) for value in (None, "", "pending")),
        ("SUPERSEDED", ArtifactStatus.SUPERSEDED),
    ],
)
def test_verdicts_are_read_as_logs_write_them(value, status):
    assert as_status(value) == (status, value == "fatal")


@pytest.mark.parametrize("value", [2, -1, 0.5, "perhaps", [], {}, [True], float("nan")])
def test_what_is_no_verdict_is_refused(value):
    with pytest.raises(ValueError, match="is no verdict"):
        as_status(value)


@pytest.mark.parametrize(
    "value",
    [
        1767323045, 1767323045.0, "1767323045", 1767323045000, 1767323045000000, 1767323045000000000,
        "2026-01-02T03:04:05Z", "2026-01-02T04:04:05+01:00", "2026-01-02 03:04:05", "2026-01-02T03:04:05.000000000Z",
        "2026/01/02 03:04:05", "Fri, 02 Jan 2026 03:04:05 +0000", "02/Jan/2026:03:04:05 +0000",
    ],
)  # fmt: skip
def test_times_are_read_as_logs_write_them(value):
    assert as_time(value) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("value", [True, "soon", "", [], {}, float("inf"), float("nan"), 1e300, "nan"])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(ValueError, match="is no time"):
        as_time(value)


@settings(max_examples=300)
@given(st.text(max_size=25) | st.integers() | st.floats())
def test_any_time_is_read_or_refused(value):
    try:
        assert as_time(value).tzinfo is UTC
    except ValueError as error:
        assert "is no time" in str(error)


def test_a_log_is_enough_to_train_from(dag, log):
    lines = [each for session in range(40) for each in (line(session, 1, False, g=session), line(session, 2, True))]
    import_log(dag, log([{**each, "g": f"g{each['session_id']}"} for each in lines]), MAPPING | {"group": "g"})
    extraction = extract_traces(dag)
    assert extraction.selected == 40
    assert {trace.side for trace in extraction.traces} == {Side.TRAIN, Side.VALIDATION}
    assert len(extraction.traces) + extraction.dropped["held-out side: kept for measuring"] == 40
