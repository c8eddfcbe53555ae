"""settings.py: guardlearn.toml is read strictly; every error is one line that names file, table and key."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from guardlearn import settings
from guardlearn.errors import DataError, UsageError


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    depth: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    seconds: float = 1.0


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    words: tuple[str, ...] = ()
    inner: Inner = Inner()
    several: dict[str, Inner] = {}
    plain: Plain = Plain()


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes):
        path = tmp_path / "guardlearn.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_a_table_becomes_a_struct(file):
    file('[collect]\nname = "a"\nwords = ["x"]\ninner = {depth = 3}\nseveral.one.depth = 4\nplain.seconds = 2')
    table = settings.read().table("collect", Table)
    assert table == Table(
        name="a", words=("x",), inner=Inner(depth=3), several={"one": Inner(depth=4)}, plain=Plain(seconds=2)
    )


def test_no_file_means_defaults_and_an_absent_table_too(file, tmp_path):
    assert settings.read() == settings.Settings()
    assert settings.read().table("audit", Inner) == Inner()
    path = file("[collect]\ndepth = 2\n")
    assert settings.read(path).table("audit", Inner) == Inner()
    assert settings.read(path).table("collect", Inner) == Inner(depth=2)
    assert (settings.read(path).path, settings.read(path).folder) == (path, tmp_path)
    with pytest.raises(UsageError, match=r"no settings file .*other\.toml"):
        settings.read(tmp_path / "other.toml")


def test_windows_editors_may_mark_their_utf8(file):
    file(b"\xef\xbb\xbf[collect]\r\ndepth = 2\r\n")
    assert settings.read().table("collect", Inner).depth == 2


FILES = [
    ("[collect\n", "guardlearn.toml is no TOML: .*line 1"),
    (b"[collect]\nname = '\xff'\n", r"is not UTF-8 \(byte 18\)"),
    ("[colect]\n", r"unknown table \[colect\] \(did you mean 'collect'\?\); it may have guards, sandbox, collect"),
    ("collect = 3\n", r"collect is 3; write a table \[collect\]"),
    ("[guards]\ntests = 'pytest'\n", r"\[guards\]: tests is 'pytest'; write a table \[guards.tests\]"),
]


@pytest.mark.parametrize(("text", "words"), FILES)
def test_a_malformed_file_says_where(file, text, words):
    file(text)
    with pytest.raises(DataError, match=words) as caught:
        settings.read()
    assert "\n" not in str(caught.value)


TABLES = [
    (
        "nam = 'a'",
        r"^guardlearn.toml, \[collect\]: unknown key 'nam' \(did you mean 'name'\?\); it may have name, words",
    ),
    ("", r"^guardlearn.toml, \[collect\]: name is missing"),
    ("name = 3", r"\[collect\]: name: expected `string`, got `int`"),
    ("name = 'a'\nwords = ['a', 3]", r"\[collect\]: words.1: expected `string`, got `int`"),
    ("name = 'a'\ninner = 3", r"\[collect\]: inner: expected `table`, got `int`"),
    ("name = 'a'\ninner = {deep = 3}", r"\[collect\]: inner: unknown key 'deep' .*it may have depth"),
    ("name = 'a'\nseveral.x.deep = 3", r"\[collect\]: several: unknown key 'deep' .*it may have depth"),
    ("name = 'a'\nplain = {second = 3}", r"\[collect\]: plain: unknown key 'second' .*it may have seconds"),
]


@pytest.mark.parametrize(("text", "words"), TABLES)
def test_a_malformed_table_says_which_key_and_what_is_allowed(file, text, words):
    file(f"[collect]\n{text}\n")
    with pytest.raises(DataError, match=words) as caught:
        settings.read().table("collect", Table)
    assert "\n" not in str(caught.value)


def test_what_is_no_table_is_refused():
    with pytest.raises(DataError, match=r"here is \[1\]; it must be a table"):
        settings.convert([1], Table, "here")


def test_an_unreadable_file_is_an_error_of_one_line(tmp_path, monkeypatch):
    (tmp_path / "guardlearn.toml").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        settings.read()


def test_what_train_is_not_told_the_settings_file_says(file):
    from guardlearn.cli import train

    file('[training]\nmethod = "sft+dpo"\nepochs = 1.0\nkeep = "best"\n')
    config = train.configured(epochs=2.0, method=None, seed=7)
    assert (config.method, config.epochs, config.keep, config.seed) == ("sft+dpo", 2.0, "best", 7)
    file("[training]\nepoch = 1.0\n")
    with pytest.raises(DataError, match="epoch"):
        train.configured()
