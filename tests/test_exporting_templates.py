"""Chat templates as Go's: what a Modelfile's TEMPLATE writes is what the template of Jinja writes, or there is none."""

from __future__ import annotations

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from guardlearn.exporting.templates import Markers, find_markers

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WITH_DEFAULT = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are helpful.<|im_end|>\n{% endif %}" + CHATML
)
HEADERS = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    "<turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}</turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
BRACKETS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% else %}{{ raise_exception('no') }}{% endif %}"
    "{% endfor %}"
)
SYSTEM_INSIDE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{% elif m['role'] == 'user' %}[INST] "
    "{% if loop.previtem is defined and loop.previtem['role'] == 'system' %}<<S>>{{ loop.previtem['content'] }}<</S>>"
    "{% endif %}{{ m['content'] }} [/INST]{% else %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
EMPTY_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nDated.\n<|im_end|>\n{% endif %}{% for m in messages %}"
    "<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'system' %}Dated.\n{% endif %}{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
COUNTING = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{{ loop.index }}\n{% endfor")
LAST_ALONE = CHATML.replace(
    "{{ message['content'] }}", "{{ message['content'] if loop.last else message['content'] | upper }}"
)
QUOTING = CHATML.replace("<|im_start|>{{", '""<|im_start|>{{')
BRACES = CHATML.replace("<|im_start|>{{", "{{ '{{' }}<|im_start|>{{")

EXPRESSED = {
    "chatml": CHATML, "default": WITH_DEFAULT, "headers": HEADERS, "no system": NO_SYSTEM, "brackets": BRACKETS
}  # fmt: skip
NOT_EXPRESSED = {
    "system inside": (SYSTEM_INSIDE, "message"),
    "empty system": (EMPTY_SYSTEM, "message"),
    "counting": (COUNTING, "message"),
    "last alone": (LAST_ALONE, "message"),
    "quoting": (QUOTING, "end a Modelfile's text"),
    "braces": (BRACES, "end a Modelfile's text"),
    "always refusing": ("{{ raise_exception('no') }}", "cannot write a plain chat"),
    "": (None, "no chat template"),
}

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="{}"), min_size=1, max_size=12)
TURNS = st.lists(st.tuples(TEXT, TEXT), max_size=3)


@pytest.fixture(scope="module")
def tokenizers(tiny_model):
    """Return a tokenizer with a template; `adds`: it puts its first token before every text by itself."""

    def with_template(template, adds=False):
        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.chat_template = template
        if adds:
            from tokenizers.processors import TemplateProcessing

            tokenizer.bos_token = "<|endoftext|>"
            special = [("<|endoftext|>", tokenizer.bos_token_id)]
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="<|endoftext|> $A", special_tokens=special
            )
        return tokenizer

    return with_template


def written(template, chat):
    """What Go writes: its few actions here have equals in Jinja, which keeps every other character."""
    for go, ours in (
        ("{{ range .Messages }}", "{% for m in messages %}"),
        ('{{ if eq .Role "', '{% if m.role == "'),
        ('{{ else if eq .Role "', '{% elif m.role == "'),
        ('" }}', '" %}'),
        ("{{ .Content }}", "{{ m.content }}"),
        ("{{ end }}{{ end }}", "{% endif %}{% endfor %}"),
    ):
        assert go in template or go.startswith("{{ else")
        template = template.replace(go, ours)
    messages = [{"role": role, "content": text} for role, text in chat]
    return jinja2.Environment(keep_trailing_newline=True).from_string(template).render(messages=messages)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPRESSED)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=st.none() | TEXT, turns=TURNS, last=TEXT)
def test_gos_template_writes_every_chat_as_jinjas_does(name, system, turns, last, tokenizers):
    tokenizer = tokenizers(EXPRESSED[name])
    markers = find_markers(tokenizer)
    assert isinstance(markers, Markers), markers
    takes_system = "system" in markers.before
    assert takes_system == (name not in ("no system", "brackets"))
    chat = [each for asked, said in turns for each in (("user", asked), ("assistant", said))] + [("user", last)]
    if system is not None and takes_system:
        chat = [("system", system), *chat]
    messages = [{"role": role, "content": text} for role, text in chat]
    wanted = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert markers.render(chat) == wanted
    if markers.default_system and chat[0][0] != "system":  # what SYSTEM is for
        chat = [("system", markers.default_system), *chat]
    assert written(markers.go, chat) == wanted


@pytest.mark.parametrize("name", NOT_EXPRESSED)
def test_a_template_that_markers_cannot_write_is_left_out_with_the_reason(name, tokenizers):
    template, reason = NOT_EXPRESSED[name]
    found = find_markers(tokenizers(template))
    assert isinstance(found, str) and reason in found


def test_a_default_system_message_is_found(tokenizers):
    assert find_markers(tokenizers(WITH_DEFAULT)).default_system == "You are helpful."
    assert find_markers(tokenizers(CHATML)).default_system == ""


def test_a_first_token_that_the_tokenizer_adds_is_not_written_twice(tokenizers):
    assert find_markers(tokenizers(HEADERS)).go.startswith("{{ range") is False  # the tests' one adds none
    adding = find_markers(tokenizers(HEADERS, adds=True))
    assert adding.go.startswith("{{ range") and "<|endoftext|>" not in adding.go
    assert find_markers(tokenizers(NO_SYSTEM, adds=True)).opening == ""
