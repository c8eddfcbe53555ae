"""The openai generator against a real HTTP server that fails by schedule: tries, time-outs, refusals, what is sent."""

import email.utils
import pickle
import re
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from faulty_server import FAULTS, OK, FaultyServer, serving
from guardlearn.errors import DataError, GeneratorUnavailable, ModelError, RequestRefused, UsageError
from guardlearn.generators import OpenAISettings, SamplingConfig, open_generator
from guardlearn.generators.tries import Failure, pause
from guardlearn.settings import read
from guardlearn.types import GenerationRequest

KEY = "sk-do-not-show-2718281828"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def opened():
    """Return what opens generators, and close them at the end."""
    made = []

    def opener(server, model="base", sampling=None, adapter=None, **settings):
        url = server if isinstance(server, str) else server.url
        quick = {"base_url": url, "read_seconds": 3.0, "request_seconds": 5.0, "tries": 4} | settings
        generator = open_generator(
            "openai", model, adapter=adapter, sampling=sampling, settings=OpenAISettings(**quick)
        )
        made.append(generator)
        return generator

    yield opener
    for generator in made:
        generator.close()


def request(text, key=None):
    return GenerationRequest(messages=({"role": "user", "content": text},), key=key or f"0/{text}/0/1")


def asked_for(request):
    return request["messages"][-1]["content"]


def yes(request):
    return f"yes {asked_for(request)}"


def fails(*faults):
    """Every prompt meets these faults, one a try, and then none."""
    return lambda number, messages: faults[number - 1] if number <= len(faults) else OK


def always(fault):
    return lambda number, messages: fault


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and KEY not in text and len(text) < 700
    return text


@pytest.mark.slow
def test_a_fault_that_passes_is_met_with_another_try_and_answers_keep_their_order(opened):
    def fault(number, messages):
        return messages[0]["content"] if number == 1 else OK

    with serving(FaultyServer(yes, fault, retry_after="0.1")) as server:
        done = {}
        answers = opened(server).generate(
            [request(name) for name in FAULTS],
            lambda index, answer: done.update({index: (answer, threading.get_ident())}),
        )
    assert [answer.text for answer in answers] == [f"yes {name}" for name in FAULTS]
    assert {index: answer for index, (answer, _) in done.items()} == dict(enumerate(answers))
    assert {thread for _, thread in done.values()} == {threading.get_ident()}
    assert server.faults == {OK: len(FAULTS)} | dict.fromkeys(FAULTS, 1)
    assert all(answer.latency_seconds > answer.seconds > 0 for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("429", "429 injected 429"),
        ("500", "500 injected 500"),
        ("half", "peer closed connection"),
        ("half_chunk", "incomplete chunked read"),
        ("nothing", "disconnected"),
        ("silence", "no answer in time"),
        ("drip", "no answer in time"),
        ("not_json", "no JSON"),
        ("html", "no JSON"),
        ("no_choice", "without a choice"),
        ("error_inside", "the engine is gone"),
    ],
)
def test_a_fault_that_stays_ends_in_one_line_after_the_tries_it_may_have(opened, fault, said):
    with serving(FaultyServer(yes, always(fault))) as server, pytest.raises(GeneratorUnavailable) as caught:
        opened(server, tries=2, read_seconds=1.5, request_seconds=2.0).generate([request("a")])
    line = one_line(caught)
    assert said in line and "'0/a/0/1' in 2 tries" in line and server.url in line and "run the same command" in line
    assert server.faults == {fault: 2}


def test_a_server_that_is_not_there_is_named(opened):
    with serving(FaultyServer(yes)) as server:
        pass
    with pytest.raises(GeneratorUnavailable, match="ConnectError") as caught:
        opened(server, tries=2).generate([request("a")])
    assert server.url in one_line(caught)


@pytest.mark.slow
def test_one_request_without_an_answer_costs_the_others_nothing(opened):
    def slowly(request):
        if asked_for(request) == "d":  # long after b was given up
            time.sleep(2.0)
        return yes(request)

    with serving(FaultyServer(slowly, lambda n, messages: "500" if messages[0]["content"] == "b" else OK)) as server:
        done = []
        with pytest.raises(GeneratorUnavailable, match="'0/b/0/1' in 2 tries"):
            opened(server, tries=2).generate(
                [request(text) for text in "abcd"], lambda index, answer: done.append((index, answer.text))
            )
    assert sorted(done) == [(0, "yes a"), (2, "yes c"), (3, "yes d")]


@pytest.mark.parametrize(
    ("fault", "said"), [("401", "refuses the key"), ("403", "injected 403"), ("404", "it offers base, tuned")]
)
def test_a_key_or_a_model_that_is_refused_stops_at_once(opened, monkeypatch, fault, said):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    refusing = FaultyServer(yes, always(fault), models=("tuned", "base"))
    with serving(refusing) as server, pytest.raises(ModelError) as caught:
        opened(server, model="nothing", concurrency=1).generate([request(text) for text in "abcdef"])
    assert said in one_line(caught) and fault in str(caught.value)
    assert len(server.asked) <= 2  # one more may be on its way
    assert {each["headers"]["authorization"] for each in server.asked} == {f"Bearer {KEY}"}  # which 401 repeats


def test_an_address_that_is_no_api_is_told_from_an_unknown_model(opened):
    wrong = FaultyServer(yes, always("404"), models=())
    with serving(wrong) as server, pytest.raises(ModelError, match="lists no models; a base URL usually ends in /v1"):
        opened(server).generate([request("a")])


def test_an_account_without_credit_is_not_asked_again(opened):
    spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    with serving(FaultyServer(yes, always("429"))) as server:
        server.told = spent
        with pytest.raises(ModelError, match=r"answers no more \(429 You exceeded your current quota\)"):
            opened(server).generate([request("a")])
    assert len(server.asked) == 1


def test_a_server_that_wants_a_key_and_gets_none_says_so(opened):
    refusing = FaultyServer(yes, always("401"))
    with serving(refusing) as server, pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        opened(server).generate([request("a")])


def test_a_refused_setting_stops_at_once_but_a_refused_prompt_only_its_own_chain(opened):
    with serving(FaultyServer(yes, lambda n, messages: "400" if messages[0]["content"] == "b" else OK)) as server:
        with pytest.raises(ModelError, match=r"400 injected 400.*omit"):
            opened(server).generate([request("b")])
        generator = opened(server)
        generator.generate([request("a")])
        with pytest.raises(RequestRefused, match=r"400 injected 400.*answered others") as caught:
            generator.generate([request("b")])
    assert caught.value.key == "0/b/0/1"
    assert server.faults == {"400": 2, OK: 1}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["seconds", "date"])
def test_no_try_comes_before_the_server_wants_it(opened, form):
    with serving(FaultyServer(yes, fails("429"))) as server:
        at = time.time() + 2.5
        server.retry_after = "1.5" if form == "seconds" else email.utils.formatdate(at, usegmt=True)
        assert opened(server).generate([request("a")])[0].text == "yes a"
        first, second = server.times
    assert second - first >= 1.5 if form == "seconds" else time.time() >= int(at)


def test_a_wait_longer_than_the_time_left_is_not_begun(opened):
    with serving(FaultyServer(yes, always("429"), retry_after="3600")) as server:
        started = time.monotonic()
        with pytest.raises(GeneratorUnavailable, match="in 1 try over 0 s, and asks to wait 3600 s"):
            opened(server, give_up_seconds=60).generate([request("a")])
        assert time.monotonic() - started < 30
    assert len(server.asked) == 1


@given(st.integers(1, 30), st.floats(0, 1000))
def test_pauses_double_up_to_a_minute_and_are_drawn(number, retry_after):
    failure = Failure("", 429, again=True, fatal=False, retry_after=retry_after)
    longest = min(60.0, 0.5 * 2 ** (number - 1))
    drawn = {pause(number, failure) for _ in range(5)}
    assert all(max(longest / 2, retry_after) <= each <= max(longest, retry_after * 1.1) for each in drawn)
    assert len(drawn) > 1


def test_no_more_requests_are_under_way_than_the_server_may_have(opened):
    with serving(FaultyServer(yes, seconds=0.05)) as server:
        generator = opened(server, concurrency=3)
        assert (generator.lanes, generator.batch) == (3, 1)
        texts = {}

        def lane(number):
            texts[number] = [
                answer.text for answer in generator.generate([request(f"{number}a"), request(f"{number}b")])
            ]

        threads = [threading.Thread(target=lane, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert texts == {number: [f"yes {number}a", f"yes {number}b"] for number in range(6)}
    assert server.most == 3 and len(server.asked) == 12


@pytest.mark.slow
def test_a_server_that_is_down_costs_each_further_request_one_try_until_it_is_back(opened):
    down = threading.Event()
    down.set()
    with serving(FaultyServer(yes, lambda n, messages: "503" if down.is_set() else OK)) as server:
        generator = opened(server, tries=3)
        for text, tries in (("a", 3), ("b", 1), ("c", 1)):
            before = len(server.asked)
            with pytest.raises(GeneratorUnavailable):
                generator.generate([request(text)])
            assert len(server.asked) - before == tries
        down.clear()
        assert generator.generate([request("d")])[0].text == "yes d"
        server.fault = fails("503")
        assert generator.generate([request("e")])[0].text == "yes e"  # tried again as ever


def test_what_is_sent_is_what_the_settings_say(opened):
    sampling = SamplingConfig(temperature=0.25, top_p=0.9, max_new_tokens=33, seed=7, stop=("END",))
    with serving(FaultyServer(yes)) as server:
        generator = opened(server, sampling=sampling, extra_body={"top_k": 20})
        generator.generate([request("a"), request("b"), request("a", "0/other/0/1")])
        generator.generate([request("a")])
        opened(server, sampling=sampling, omit=("seed", "max_tokens"), send_stop=True).generate([request("c")])
    sent = [{name: value for name, value in each.items() if name != "headers"} for each in server.asked]
    assert {name: value for name, value in sent[0].items() if name not in ("seed", "messages")} == {
        "model": "base", "temperature": 0.25, "top_p": 0.9, "max_tokens": 33, "top_k": 20,
    }  # fmt: skip
    by_text = {(asked_for(each), each.get("seed")) for each in sent[:4]}
    assert len(by_text) == 3 and all(0 <= seed < 2**31 for _, seed in by_text)  # one key, one seed
    assert sent[4]["stop"] == ["END"] and not {"seed", "max_tokens"} & set(sent[4])


@pytest.mark.slow
def test_what_is_stored_names_neither_key_nor_server(opened, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    generator = opened("http://user:password@localhost:1/v1", omit=("seed",), extra_body={"min_p": 0.1})
    described = generator.describe()
    assert described == {
        "generator": "openai", "temperature": 0.7, "top_p": None, "max_new_tokens": 512, "seed": None, "stop": [],
        "extra_body": {"min_p": 0.1}, "special_tokens": "none known",
    }  # fmt: skip
    assert generator.common_random_numbers is False and generator.prompt_digest == ""
    generator._open()
    assert KEY.encode() not in pickle.dumps(generator) and KEY not in repr(vars(generator))
    with pytest.raises(GeneratorUnavailable) as caught:
        generator.generate([request("a")])
    assert "password" not in one_line(caught)


def test_a_copy_in_another_process_asks_with_that_process_s_key(opened, monkeypatch):
    with serving(FaultyServer(yes)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        copy = pickle.loads(pickle.dumps(opened(server)))
        monkeypatch.setenv("OPENAI_API_KEY", "sk-another")
        copy.generate([request("a")])
        copy.close()
    assert server.asked[0]["headers"]["authorization"] == "Bearer sk-another"


@pytest.mark.parametrize(
    ("choice", "text", "finish"),
    [
        ({"message": {"content": None}, "finish_reason": "length"}, "", "length"),
        ({"message": {"content": None, "refusal": "no"}, "finish_reason": "content_filter"}, "", "content_filter"),
        ({"message": {"content": "x = 1\n```\nSo it is"}, "finish_reason": "length"}, "x = 1\n```", "stop"),
        ({"message": {"content": "x = 1"}, "finish_reason": "length"}, "x = 1", "length"),
        ({"message": {"content": "x = 1"}, "stop_reason": "\n```"}, "x = 1\n```", "stop"),
        ({"message": {"content": "x = 1"}, "matched_stop": "\n```"}, "x = 1\n```", "stop"),
        ({"message": {"content": "x = 1"}, "stop_reason": 2}, "x = 1", "stop"),
        ({"message": {"content": "x = 1"}, "finish_reason": None}, "x = 1", "unknown"),
        ({"message": {"content": "a \ud800 b"}}, "a \ud800 b", "stop"),
    ],
)
def test_answers_come_out_as_they_ended(opened, choice, text, finish):
    with serving(FaultyServer(lambda request: {"text": "", "choice": choice})) as server:
        answer = opened(server, sampling=SamplingConfig(stop=("\n```",))).generate([request("a b c")])[0]
    assert (answer.text, answer.finish) == (text, finish)
    assert answer.tokens_known and answer.prompt_tokens == 3


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5, "completion_tokens": None}])
def test_tokens_that_a_server_does_not_count_are_unknown_not_none(opened, usage):
    with serving(FaultyServer(lambda request: {"text": "yes", "usage": usage})) as server:
        answer = opened(server).generate([request("a")])[0]
    assert answer.text == "yes" and not answer.tokens_known and answer.completion_tokens == 0


def test_a_prompt_with_a_lone_surrogate_is_sent_without_it(opened):
    with serving(FaultyServer(yes)) as server:
        opened(server).generate([request("a \ud800 \x00 b", "0/a\ud800/0/1")])
    sent = asked_for(server.asked[0])
    assert "\ud800" not in sent and sent.startswith("a ") and sent.endswith(" \x00 b")


def test_where_the_server_is_comes_from_the_settings_then_from_the_environment(opened, monkeypatch):
    with serving(FaultyServer(yes)) as one, serving(FaultyServer(yes)) as other:
        monkeypatch.setenv("OPENAI_BASE_URL", other.url)
        opened("").generate([request("a")])
        opened(one).generate([request("b")])
    assert [asked_for(each) for each in other.asked] == ["a"] and [asked_for(each) for each in one.asked] == ["b"]
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:1")
    with pytest.raises(UsageError, match="OPENAI_BASE_URL is 'localhost:1'"):
        opened("")


def test_a_server_elsewhere_wants_a_key_and_a_malformed_one_is_not_shown(opened, monkeypatch):
    for url in ("", "https://models.example.org/v1", "http://10.0.0.7:8000/v1"):
        with pytest.raises(UsageError, match="OPENAI_API_KEY is not set"):
            opened(url)
    for key in (f"{KEY} {KEY}", f"{KEY}\u2019"):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with pytest.raises(UsageError) as caught:
            opened("http://localhost:1/v1")
        one_line(caught)
    monkeypatch.setenv("OPENAI_API_KEY", f"{KEY}\n")
    opened("https://models.example.org/v1")


def test_an_adapter_is_a_name_on_the_server(opened, tmp_path):
    (tmp_path / "weights").mkdir()
    with serving(FaultyServer(yes, models=("base", "tuned"))) as server:
        generator = opened(server)
        for adapter in ("tuned", None, f"tuned={tmp_path / 'weights'}", str(tmp_path / "weights")):
            generator.use_adapter(adapter)
            generator.generate([request("a")])
        opened(server, adapter="tuned").generate([request("b")])
    names = [each["model"] for each in server.asked]
    assert names == ["tuned", "base", "tuned", str(tmp_path / "weights"), "tuned"]
    with pytest.raises(ModelError, match="no folder 'nowhere'"):
        generator.use_adapter("tuned=nowhere")


def test_an_adapter_that_the_server_does_not_offer_is_refused_though_it_would_answer(opened):
    """llama.cpp answers with the one model it has, whatever name it is asked by."""
    with serving(FaultyServer(yes, models=("base", "other"))) as server:
        generator = opened(server, adapter="tuned")
        for _ in range(2):
            with pytest.raises(ModelError, match=r"no model 'tuned'; it offers base, other"):
                generator.generate([request("a"), request("b")])
        assert server.asked == []
        generator.use_adapter(None)
        assert generator.generate([request("a")])[0].text == "yes a"


def test_what_the_caller_raises_ends_what_is_under_way(opened):
    class Enough(Exception):
        pass

    def enough(index, answer):
        raise Enough

    with serving(FaultyServer(yes, seconds=0.05)) as server:
        generator = opened(server, concurrency=2)
        with pytest.raises(Enough):
            generator.generate([request(str(number)) for number in range(40)], enough)
        assert generator.generate([request("after")])[0].text == "yes after"
        assert len(server.asked) < 20  # what waits its turn is asked in order: else all forty came first


def test_a_closed_generator_leaves_no_thread_and_opens_again(opened):
    with serving(FaultyServer(yes)) as server:
        generator = opened(server)
        for _ in range(2):
            generator.generate([request("a")])
            assert any(thread.name == "openai" for thread in threading.enumerate())
            generator.close()
            assert not any(thread.name == "openai" for thread in threading.enumerate())
        generator.generate([request("a")])
        del generator


@pytest.mark.parametrize(
    ("setting", "value", "named"),
    [
        ("base_url", "localhost:8000", "base_url is 'localhost:8000'"),
        ("base_url", "ftp://user:secret@host", "base_url is 'ftp://host'"),
        ("concurrency", 0, "concurrency is 0"),
        ("tries", 0, "tries is 0"),
        ("read_seconds", 0, "read_seconds is 0"),
        ("request_seconds", float("inf"), "request_seconds is inf"),
        ("omit", ("stop",), "omit is"),
        ("extra_body", {"seed": 1}, r"extra_body is \['seed'\]"),
        ("extra_body", {"api_key": KEY}, r"extra_body is \['api_key'\]"),
    ],
)
def test_a_setting_that_means_nothing_is_refused_by_name(setting, value, named):
    with pytest.raises(UsageError, match=named) as caught:
        OpenAISettings(**{setting: value})
    one_line(caught)


def test_the_page_shows_the_settings_with_their_defaults(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "servers.md").read_text(encoding="utf-8")
    path = tmp_path / "guardlearn.toml"
    path.write_text(re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1])
    found = read(path)
    assert set(found.tables["openai"]) == set(OpenAISettings.__struct_fields__)
    shown = found.table("openai", OpenAISettings)
    assert shown == OpenAISettings(base_url="http://localhost:8000/v1")


def test_the_settings_file_is_read_strictly_and_a_key_in_it_is_neither_taken_nor_shown(tmp_path):
    path = tmp_path / "guardlearn.toml"
    path.write_text('[openai]\nbase_url = "http://localhost:8000/v1"\nomit = ["seed"]\nextra_body = {top_k = 5}\n')
    found = read(path).table("openai", OpenAISettings)
    assert found == OpenAISettings(base_url="http://localhost:8000/v1", omit=("seed",), extra_body={"top_k": 5})
    for text, named in (
        (f'api_key = "{KEY}"', "api_key"),
        ('tries = "many"', "tries"),
        ("tries = 0", "tries is 0"),
        ("concurency = 3", "did you mean 'concurrency'"),
    ):
        path.write_text(f"[openai]\n{text}\n")
        with pytest.raises(DataError, match=named) as caught:
            read(path).table("openai", OpenAISettings)
        assert "guardlearn.toml, [openai]" in one_line(caught)
