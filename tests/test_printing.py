"""What is written for people and programs holds nothing that a terminal acts on, and loses nothing."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.printing import json_text, printable

texts = st.text(st.characters(exclude_categories=()))
values = st.recursive(texts | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


class Record(msgspec.Struct):
    name: str


@given(values)
def test_json_is_whole_and_printable(value):
    text = json_text(value)
    assert json.loads(text) == value
    assert text.endswith("\n") and all(line.isprintable() for line in text.split("\n"))


@given(texts)
def test_a_text_of_others_is_printable(text):
    shown = printable(text)
    assert all(letter.isprintable() or letter in "\n\t" for letter in shown)
    assert text.isprintable() <= (shown == text)


def test_records_become_objects_and_controls_their_numbers():
    assert json_text(Record(name="\x9b31m\u202e")) == '{\n  "name": "\\u009b31m\\u202e"\n}\n'
    assert printable("\x1b[31m\tred\n") == "\\x1b[31m\tred\n"
