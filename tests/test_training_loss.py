"""What the collator really gives, and what the loss really is."""

import json
import math

import pytest

from guardlearn.errors import JobError
from guardlearn.training import add_lora_adapters, load_model_for_training, save_trained_model, train_on_traces
from guardlearn.training.rows import IGNORED, plan, tokenise
from training_samples import sample_job


@pytest.fixture(scope="module")
def trainer(tiny_model, tmp_path_factory):
    """The trainer of a job, with its rows as they stand in the job folder."""
    from guardlearn.training.trl import Options, build

    folder = tmp_path_factory.mktemp("loss")
    job = sample_job(folder / "job", tiny_model)
    raw = [json.loads(line) for line in (job / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    model, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    rows = tokenise(raw, tokenizer, 1024)
    batches = plan([len(row) for row in rows], 4, epochs=1.0, max_steps=None, seed=0)
    options = Options(learning_rate=2e-4, warmup_ratio=0.0, seed=0, save_steps=100)
    built = build(add_lora_adapters(model), tokenizer, rows, batches, folder / "out", options)
    built.raw, built.tokenizer, built.rows = raw, tokenizer, rows
    return built


def test_loss_falls_on_completion_tokens_and_the_end_token_only(trainer):
    seen = []
    for batch in trainer.get_train_dataloader():
        for at, number in enumerate(batch["rows"].tolist()):
            row = trainer.raw[number]
            labels, ids, mask = batch["labels"][at], batch["input_ids"][at], batch["attention_mask"][at]
            trained = labels[labels != IGNORED].tolist()
            assert trained[-1] == trainer.tokenizer.eos_token_id
            assert trainer.tokenizer.decode(trained[:-1]) == row["completion"]
            prompt = ids[(labels == IGNORED) & (mask == 1)].tolist()
            assert trainer.tokenizer.decode(prompt) == trainer.tokenizer.apply_chat_template(
                row["prompt"], add_generation_prompt=True, tokenize=False
            )
            assert (labels[mask == 0] == IGNORED).all()
            assert ids[mask == 1].tolist() == prompt + trained  # the prompt stands whole before the completion
            assert batch["weights"][at].item() == row["weight"]
            seen.append(row["id"])
    assert sorted(seen) == sorted(row["id"] for row in trainer.raw)


def test_rows_weigh_one_over_the_views_of_their_trace(trainer):
    views = {}
    for row in trainer.raw:
        views.setdefault(row["trace_id"], []).append(row["weight"])
    assert {tuple(weights) for weights in views.values()} == {(1.0,), (0.5, 0.5)}


def test_the_loss_is_the_weighted_mean_of_each_row_computed_alone(trainer):
    import torch

    batch = next(iter(trainer.get_train_dataloader()))
    assert len(set(batch["weights"].tolist())) > 1 or len(set(batch["attention_mask"].sum(1).tolist())) > 1
    trainer.model.eval()
    above = below = 0.0
    with torch.no_grad():
        got = trainer.compute_loss(trainer.model, dict(batch)).item()
        for at in range(len(batch["rows"])):
            real = batch["attention_mask"][at] == 1
            ids, labels = batch["input_ids"][at][real], batch["labels"][at][real]
            logits = trainer.model(input_ids=ids[None]).logits[0, :-1]
            nll = -torch.log_softmax(logits.float(), dim=-1).gather(1, ids[1:, None])[:, 0]
            carries, weight = labels[1:] != IGNORED, batch["weights"][at].item()
            above += weight * nll[carries].sum().item()
            below += weight * carries.sum().item()
    assert got == pytest.approx(above / below, rel=1e-4)


def test_each_row_of_a_padded_batch_loses_what_it_loses_alone_without_padding(trainer):
    import torch

    from guardlearn.training.objective import token_losses

    trainer.model.eval()
    padded = 0
    with torch.no_grad():
        for batch in trainer.get_train_dataloader():
            nll, at = token_losses(trainer.model, batch)
            got = torch.zeros(len(batch["rows"])).index_add(0, at, nll)
            padded += int((batch["attention_mask"] == 0).sum())
            for row, number in enumerate(batch["rows"].tolist()):
                prompt, completion = trainer.rows[number].prompt, trainer.rows[number].completion
                ids = torch.tensor([[*prompt, *completion]])
                said = torch.log_softmax(trainer.model(input_ids=ids).logits[0, len(prompt) - 1 : -1].float(), dim=-1)
                alone = -said.gather(1, torch.tensor(completion)[:, None]).sum()
                assert got[row].item() == pytest.approx(alone.item(), rel=1e-4)
    assert padded  # batches are of like lengths, and still some rows are padded


def test_the_loss_of_many_rows_depends_on_no_batch(trainer):
    from guardlearn.training.trl import mean_loss

    alone = [mean_loss(trainer, [row], 1) for row in trainer.rows]
    weights = [row.weight * len(row.completion) for row in trainer.rows]
    want = sum(loss * weight for loss, weight in zip(alone, weights, strict=True)) / sum(weights)
    for batch_size in (1, 3, len(trainer.rows)):
        assert mean_loss(trainer, trainer.rows, batch_size) == pytest.approx(want, rel=1e-5)


def test_special_tokens_in_a_completion_are_plain_text_and_do_not_end_it(trainer):
    (row,) = tokenise([{"prompt": "p", "completion": "a<|im_end|>b"}], trainer.tokenizer, None)
    assert row.completion.count(trainer.tokenizer.eos_token_id) == 1
    assert trainer.tokenizer.decode(row.completion[:-1]) == "a<|im_end|>b"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "row 2 needs a prompt"),
        ({"prompt": [], "completion": "c"}, "row 2 needs a prompt"),
        ({"prompt": "p", "completion": "c", "weight": 0}, "weighs 0"),
        ({"prompt": "p", "completion": "c", "weight": math.nan}, "weighs nan"),
        ({"prompt": "p", "completion": ""}, "empty completion"),
        ({"id": "r9", "prompt": "p", "completion": "c" * 500}, "row r9 has .* more than max_length 40"),
    ],
)
def test_a_row_that_cannot_be_trained_on_is_named(trainer, row, message):
    with pytest.raises(JobError, match=message):
        tokenise([{"prompt": "p", "completion": "c"}, row], trainer.tokenizer, 40)
    with pytest.raises(JobError, match="no training row"):
        tokenise([], trainer.tokenizer, 40)


def test_the_guides_functions_train_and_save_an_adapter(tiny_model, tmp_path, capfd):
    from guardlearn.training import load_trained_model

    model, tokenizer = load_model_for_training(str(tiny_model), max_seq_length=256)
    base = {name: weight.clone() for name, weight in model.named_parameters()}
    model = add_lora_adapters(model, r=4)
    data = [{"prompt": f"say {n}", "completion": f"number {n}", "text": "unused", "metadata": {}} for n in range(5)]
    losses = []
    trained = train_on_traces(
        model, tokenizer, data, str(tmp_path / "outputs"), max_steps=4, on_step=lambda step: losses.append(step.loss)
    )
    assert trained.state.global_step == len(losses) == 4
    save_trained_model(model, tokenizer, str(tmp_path / "adapter"))
    again, _ = load_trained_model(str(tiny_model), str(tmp_path / "adapter"))
    for name, weight in again.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert (weight == base[plain]).all()
    assert any(weight.abs().sum() > 0 for name, weight in again.named_parameters() if "lora_B" in name)
    assert capfd.readouterr() == ("", "")
