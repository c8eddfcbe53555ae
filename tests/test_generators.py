"""Generators: settings, stop strings, replay, opening by name."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.errors import LogError, ModelError, UsageError
from guardlearn.generators import OpenAISettings, ReplayGenerator, SamplingConfig, open_generator
from guardlearn.generators.stops import StopFinder, cut_after_stop
from guardlearn.types import GenerationRequest


def request(text: str, key: str = "0/a/0/1") -> GenerationRequest:
    return GenerationRequest(messages=({"role": "user", "content": text},), key=key)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("max_new_tokens", 0),
        ("stop", ("",)),
        ("stop", "```"),
    ],
)
def test_a_sampling_setting_that_means_nothing_is_refused_by_name(field, value):
    with pytest.raises(UsageError, match=field):
        SamplingConfig(**{field: value})


def test_sampling_settings_are_stored_as_json():
    described = SamplingConfig(stop=("\n```",)).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["stop"] == ["\n```"] and described["temperature"] == 0.7


def test_text_is_cut_right_after_the_stop_string_that_ends_first():
    text = "```python\nx = 1\n```\nSo.\n```"
    assert cut_after_stop(text, ("\n```\n", "\n```")) == "```python\nx = 1\n```"
    assert cut_after_stop(text, ("So.", "x")) == "```python\nx"
    assert cut_after_stop(text, ("END",)) is None


ALPHABET = "ab`\n"


@given(st.text(ALPHABET, max_size=30), st.lists(st.text(ALPHABET, min_size=1, max_size=3), max_size=3), st.data())
def test_the_finder_ends_at_the_first_token_that_completes_a_stop(text, stops, data):
    """Whatever the tokens' borders, what the finder gives is what looking at every prefix would give."""
    pieces = []
    rest = text
    while rest:
        size = data.draw(st.integers(1, 4))
        pieces.append(rest[:size])
        rest = rest[size:]
    finder = StopFinder(stops, lambda tokens: "".join(pieces[token] for token in tokens))
    cuts = [finder.cut(list(range(end))) for end in range(1, len(pieces) + 1)]
    expected = [cut_after_stop("".join(pieces[:end]), stops) for end in range(1, len(pieces) + 1)]
    first = next((n for n, cut in enumerate(expected) if cut is not None), len(pieces))
    assert cuts[: first + 1] == expected[: first + 1]


def test_replay_answers_attempt_by_attempt_and_repeats_the_last():
    generator = ReplayGenerator({"Add.": ["bad", "good"]})
    asked = [request("Add.", "0/x/0/1"), request("Add.\n\nNo.", "0/x/0/2"), request("Add.\n\nNo.", "0/x/0/3")]
    done = []
    answers = generator.generate(asked, lambda index, answer: done.append((index, answer.text)))
    assert [answer.text for answer in answers] == ["bad", "good", "good"]
    assert done == [(0, "bad"), (1, "good"), (2, "good")]


def test_replay_finds_answers_by_key_by_id_and_by_the_longest_specification():
    generator = ReplayGenerator({"0/a/0/1": ["by key"], "b/c": ["by id"], "Add.": ["short"], "Add.\n\nFast.": ["long"]})
    keys = ["0/a/0/1", "7/b/c/0/1", "0/z/0/1", "0/z/0/1"]
    texts = ["Add.", "Add.", "Add.\n\nWrong.", "Add.\n\nFast.\n\nWrong."]
    asked = [request(text, key) for text, key in zip(texts, keys, strict=True)]
    assert [answer.text for answer in generator.generate(asked)] == ["by key", "by id", "short", "long"]
    with pytest.raises(ModelError, match="0/q/0/1"):
        generator.generate([request("Subtract.", "0/q/0/1")])


def test_replay_has_other_answers_while_an_adapter_is_in_use():
    generator = ReplayGenerator({"Add.": ["base"]}, lambda asked: f"adapted {asked.key}")
    generator.use_adapter("some/folder")
    assert generator.generate([request("Add.")])[0].text == "adapted 0/a/0/1"
    generator.use_adapter(None)
    assert generator.generate([request("Add.")])[0].text == "base"


def test_replay_opens_from_a_file_and_names_a_malformed_line(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"specification": "Add.", "answers": ["a"], "adapter_answers": ["b"]}\n', encoding="utf-8")
    generator = open_generator("replay", path, adapter="folder")
    assert generator.generate([request("Add.")])[0].text == "b"
    assert generator.model == "answers.jsonl" and generator.special_tokens == ()
    for bad in ('{"specification": "Add."}', "{", '{"specification": "Add.", "answers": "a"}'):
        path.write_text(f'{{"specification": "x", "answers": ["y"]}}\n{bad}\n', encoding="utf-8")
        with pytest.raises(LogError, match="line 2") as caught:
            open_generator("replay", path)
        assert caught.value.line == 2 and "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="missing"):
        open_generator("replay", tmp_path / "missing.jsonl")


def test_an_unknown_generator_is_refused_with_the_right_names():
    for name, meant in (("vllm", "'vllm'; "), ("open-ai", "did you mean 'openai'")):
        with pytest.raises(UsageError, match=f"{meant}.*allowed: transformers, openai, replay"):
            open_generator(name, "model")


def test_every_generator_says_how_it_likes_to_be_called():
    called = {ReplayGenerator({}): (1, 0)}
    settings = OpenAISettings(base_url="http://localhost:1/v1", concurrency=5)
    called[open_generator("openai", "model", settings=settings)] = (5, 1)
    assert {each: (each.lanes, each.batch) for each in called} == called
