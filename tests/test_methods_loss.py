"""KTO's and DPO's losses: what TRL computes on the same batch, which tokens count, where gradients push."""

import dataclasses
import math

import pytest

from guardlearn.errors import JobError
from guardlearn.training import add_lora_adapters, load_model_for_training
from guardlearn.training.kto import class_weights
from guardlearn.training.methods import objective_for, rows_for
from guardlearn.training.reference import REFERENCE, log_probabilities
from guardlearn.training.rows import IGNORED
from guardlearn.training.settings import Settings
from guardlearn.training.sft import given_back

BETA = 0.3
SETTINGS = Settings(
    base_model="tiny", views=["first_attempt"], retry="feedback", max_length=512, epochs=1.0, batch_size=4,
    learning_rate=5e-3, warmup_ratio=0.0, lora_r=4, lora_alpha=4, seed=0, gradient_checkpointing=False, method="dpo",
    backend="trl", load_in_4bit=False, beta=BETA, sft_term=0.0,
)  # fmt: skip
GOOD = 'def f{0}(x):\n    """Return a sum."""\n    return x + {0}\n'
BAD = "def f{0}(x): return x + {0}\n"
PAIRS = [
    {"id": f"p{n}", "prompt": f"Write f{n}, it adds {n}." + " Please." * n, "chosen": GOOD.format(n),
     "rejected": BAD.format(n) * (1 + n % 2), "weight": weight}
    for n, weight in enumerate((1.0, 0.25, 1.0, 2.0, 1.0))
]  # fmt: skip
VERDICTS = [
    {"id": f"v{n}/{label}", "prompt": f"Write f{n}, it adds {n}." + " Please." * n, "weight": 1.0 + n / 2,
     "completion": (GOOD if label else BAD).format(n), "label": label}
    for n in range(5)
    for label in ((True, False) if n < 2 else (False,))
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tiny_model):
    """The tiny model with adapters that change nothing yet, its tokenizer, and those adapters."""
    import torch

    model, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    torch.manual_seed(7)
    model = add_lora_adapters(model, r=4)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    return model, tokenizer, start


@pytest.fixture
def model(loaded):
    """That model as it was at first."""
    import torch

    model, tokenizer, start = loaded
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name in start:
                weight.copy_(start[name])
    with given_back(model):
        yield model, tokenizer
    if "ref" in model.peft_config:  # a trainer of TRL's left its reference there
        model.delete_adapter("ref")


def moved(model, size=0.3):
    """Give the adapters weights of some size: the policy is not the reference any more."""
    import torch

    noise = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B.default" in name:
                weight.copy_(size * torch.randn(weight.shape, generator=noise))


def begun(model, tokenizer, method, data, folder, *, rows=None, batches=None, on_step=None, **changed):
    """A trainer whose objective has begun, and its rows."""
    from guardlearn.training import trl

    said = dataclasses.replace(SETTINGS, method=method, **changed)
    rows = rows or rows_for(method, data, tokenizer, 512)
    objective = objective_for(method, said, tokenizer.pad_token_id, rows)
    batches = batches or [list(range(len(rows)))]
    options = trl.Options(
        learning_rate=said.learning_rate, warmup_ratio=0.0, seed=0, save_steps=1000,
        micro_batch_size=said.micro_batch_size,
    )  # fmt: skip
    trainer = trl.build(model, tokenizer, rows, batches, folder, options, on_step, objective=objective)
    objective.begin(trainer, rows, folder)
    return trainer, rows


def batch_of(trainer, rows, numbers=None):
    return trainer.objective.collate([rows[n].columns(n) for n in numbers or range(len(rows))])


def ours(trainer, rows, numbers=None):
    """The loss of a batch, in full precision."""
    import torch

    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, batch_of(trainer, rows, numbers)).item()


def theirs(trainer, examples):
    """What a trainer of TRL says of a batch of tokens."""
    import torch

    trainer.model.eval()
    with torch.no_grad():
        return trainer.compute_loss(trainer.model, trainer.data_collator(examples)).item()


def preference(model, tokenizer, folder, loss_type, weights):
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    config = DPOConfig(
        output_dir=str(folder), beta=BETA, loss_type=loss_type, loss_weights=weights, bf16=False, use_cpu=True,
        report_to="none", max_length=None,
    )  # fmt: skip
    data = Dataset.from_list([{name: PAIRS[0][name] for name in ("prompt", "chosen", "rejected")}])
    return DPOTrainer(model, args=config, train_dataset=data, processing_class=tokenizer)


def pairs_for_trl(rows):
    return [
        {"prompt_ids": r.chosen.prompt, "chosen_ids": r.chosen.completion, "rejected_ids": r.rejected.completion}
        for r in rows
    ]


def test_dpo_is_trls_sigmoid_loss(model, tmp_path):
    policy, tokenizer = model
    data = [row | {"weight": 1.0} for row in PAIRS]
    trainer, rows = begun(policy, tokenizer, "dpo", data, tmp_path)
    assert ours(trainer, rows) == pytest.approx(math.log(2))  # nothing has moved yet
    reference = preference(policy, tokenizer, tmp_path / "trl", ["sigmoid"], [1.0])  # TRL's is the model as it is now
    moved(policy)
    assert len({len(row.chosen.completion) for row in rows}) + len({len(row.rejected.completion) for row in rows}) > 2
    want = theirs(reference, pairs_for_trl(rows))
    assert ours(trainer, rows) == pytest.approx(want, rel=1e-4)
    assert abs(want - math.log(2)) > 0.01


def test_dpos_sft_term_is_trls_where_completions_are_of_one_length(model, tmp_path):
    policy, tokenizer = model
    data = [row | {"weight": 1.0} for row in PAIRS]
    trainer, rows = begun(policy, tokenizer, "dpo", data, tmp_path, sft_term=0.7)
    reference = preference(policy, tokenizer, tmp_path / "trl", ["sigmoid", "sft"], [1.0, 0.7])
    moved(policy)
    by_length = {}
    for number, row in enumerate(rows):
        by_length.setdefault(len(row.chosen.completion), []).append(number)
    numbers = max(by_length.values(), key=len)
    assert len(numbers) > 1
    want = theirs(reference, pairs_for_trl([rows[n] for n in numbers]))
    assert ours(trainer, rows, numbers) == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize(("flipped", "before", "after"), [(False, 0.0, 0.3), (True, 0.3, 0.0)])
def test_kto_is_trls_loss_with_our_class_weights(model, tmp_path, flipped, before, after):
    """A random step makes every text less likely, so there z is held at 0; back from there it is above."""
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    policy, tokenizer = model
    data = [row | {"weight": 1.0, "label": row["label"] ^ flipped} for row in VERDICTS]
    # each prompt once: the row before a row then answers another prompt, and TRL takes just that one
    data = [row for n, row in enumerate(data) if row["prompt"] not in [other["prompt"] for other in data[:n]]]
    data.append(data[0] | {"id": "more", "prompt": "And one more?" + " Please." * 20, "label": not data[0]["label"]})
    moved(policy, before)
    trainer, rows = begun(policy, tokenizer, "kto", data, tmp_path)
    good, bad = class_weights(rows)
    assert max(good, bad) > 1
    config = KTOConfig(
        output_dir=str(tmp_path / "trl"), beta=BETA, desirable_weight=good, undesirable_weight=bad, bf16=False,
        use_cpu=True, report_to="none", max_length=None, per_device_train_batch_size=len(rows),
    )  # fmt: skip
    sample = Dataset.from_list([{name: row[name] for name in ("prompt", "completion", "label")} for row in data])
    reference = KTOTrainer(policy, args=config, train_dataset=sample, processing_class=tokenizer)
    moved(policy, after)
    examples = [
        {"prompt_ids": row.row.prompt, "completion_ids": row.row.completion, "label": row.label,
         "KL_completion_ids": rows[number - 1].row.completion}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    assert [row.mismatched for row in rows] == [each["KL_completion_ids"] for each in examples]
    z = trainer.objective.whole(policy, batch_of(trainer, rows))["z_ref"].item()
    assert (z > 0.1) if flipped else (z == 0.0)
    assert ours(trainer, rows) == pytest.approx(theirs(reference, examples), rel=1e-4)


@pytest.mark.parametrize(("method", "data"), [("dpo", PAIRS), ("kto", VERDICTS)])
def test_a_batch_is_the_weighted_mean_of_its_rows_whatever_goes_through_at_once(model, tmp_path, method, data):
    import torch

    policy, tokenizer = model
    trainer, rows = begun(policy, tokenizer, method, data, tmp_path, sft_term=0.5)
    moved(policy)
    policy.eval()
    objective, batch = trainer.objective, batch_of(trainer, rows)
    with torch.no_grad():
        whole = objective.whole(policy, batch)
        alone = [objective.total(policy, objective.part(batch, n, n + 1), whole).item() for n in range(len(rows))]
        once = objective.total(policy, batch, whole).item()
        for size in (1, 2, 3):
            trainer.room.micro_batch_size = size
            again = objective.whole(policy, batch)
            assert {name: value.item() for name, value in again.items()} == pytest.approx(
                {name: value.item() for name, value in whole.items()}, rel=1e-4
            )
    weights = [row["weight"] for row in data]
    assert once == pytest.approx(sum(alone), rel=1e-4)
    assert ours(trainer, rows) == pytest.approx(sum(alone) / sum(weights), rel=1e-4)
    if method == "dpo":
        assert [ours(trainer, rows, [n]) * weights[n] for n in range(len(rows))] == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("method", "data"), [("dpo", PAIRS), ("kto", VERDICTS)])
def test_only_completions_carry_loss_their_end_token_included(model, tmp_path, method, data):
    policy, tokenizer = model
    trainer, rows = begun(policy, tokenizer, method, data, tmp_path)
    batch = batch_of(trainer, rows)
    labels, ids, masks = (batch[name].flatten(0, 1) for name in ("labels", "input_ids", "attention_mask"))
    assert len(labels) == 2 * len(rows)
    for at in range(len(labels)):
        carries = labels[at] != IGNORED
        assert labels[at][carries].tolist() == ids[at][carries].tolist()
        assert labels[at][carries][-1] == tokenizer.eos_token_id
        said = tokenizer.decode(labels[at][carries][:-1])
        given_, other = data[at // 2], at % 2
        if method == "dpo":
            assert said == given_[("chosen", "rejected")[other]]
        else:
            assert said in ([row["completion"] for row in data] if other else [given_["completion"]])
        prompt = tokenizer.decode(ids[at][~carries & (masks[at] == 1)])
        assert prompt == tokenizer.apply_chat_template(
            [{"role": "user", "content": given_["prompt"]}], add_generation_prompt=True, tokenize=False
        )


@pytest.mark.parametrize(("method", "data"), [("dpo", PAIRS), ("kto", VERDICTS)])
def test_the_reference_is_what_the_stage_found_computed_once_and_read_again(model, tmp_path, method, data):
    import torch
    from safetensors.torch import load_file

    policy, tokenizer = model
    moved(policy)  # a second stage finds adapters that were trained
    trainer, rows = begun(policy, tokenizer, method, data, tmp_path)
    kept = load_file(tmp_path / REFERENCE)
    policy.eval()
    with torch.no_grad():
        for number in range(len(rows)):
            alone = trainer.objective.log_probabilities(policy, batch_of(trainer, rows, [number]))
            for name, value in alone.items():
                assert kept[name][number].item() == pytest.approx(value.item(), rel=1e-4)
    before = (tmp_path / REFERENCE).stat().st_mtime_ns, ours(trainer, rows)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B.default" in name:
                weight.mul_(-1.0)
    trained = ours(trainer, rows)
    again, _ = begun(policy, tokenizer, method, data, tmp_path)  # as a training that goes on after a kill
    assert ((tmp_path / REFERENCE).stat().st_mtime_ns, ours(again, rows)) == (before[0], trained)
    assert trained != pytest.approx(before[1], rel=1e-3)
    fewer = data[:-1]
    with pytest.raises(JobError, match="other rows"):
        begun(policy, tokenizer, method, fewer, tmp_path)


def said_of(policy, trainer, rows):
    """Log-probabilities of rows' own completions."""
    import torch

    policy.eval()
    with torch.no_grad():
        return trainer.objective.log_probabilities(policy, batch_of(trainer, rows))


@pytest.mark.slow
@pytest.mark.parametrize("sft_term", [0.0, 1.0])
def test_training_dpo_moves_accepted_away_from_rejected(model, tmp_path, sft_term):
    policy, tokenizer = model
    losses = []
    trainer, rows = begun(
        policy, tokenizer, "dpo", PAIRS, tmp_path, batches=[list(range(len(PAIRS)))] * 12, sft_term=sft_term,
        on_step=lambda step: losses.append(step.loss),
    )  # fmt: skip
    before = said_of(policy, trainer, rows)
    trainer.train()
    after = said_of(policy, trainer, rows)
    gap = {name: value - before[name] for name, value in after.items()}
    assert ((gap["chosen"] - gap["rejected"]) > 1.0).all()
    assert losses[-1] < losses[0]
    if sft_term:
        assert (gap["chosen"] > 0).all()


@pytest.mark.slow
def test_training_kto_raises_accepted_and_lowers_rejected(model, tmp_path):
    policy, tokenizer = model
    trainer, rows = begun(policy, tokenizer, "kto", VERDICTS, tmp_path, batches=[list(range(len(VERDICTS)))] * 16)
    before = said_of(policy, trainer, rows)["completion"]
    trainer.train()
    after = said_of(policy, trainer, rows)["completion"] - before
    good = [after[n].item() for n, row in enumerate(rows) if row.label]
    bad = [after[n].item() for n, row in enumerate(rows) if not row.label]
    assert min(good) > max(bad) + 1.0


def test_the_gradient_is_that_of_the_written_formula(model, tmp_path):
    """DPO by hand in log-probabilities: -w beta sigmoid(-beta d) for the accepted side, the opposite for the other."""
    import torch

    policy, tokenizer = model
    trainer, rows = begun(policy, tokenizer, "dpo", PAIRS, tmp_path)
    moved(policy)
    policy.eval()
    batch = batch_of(trainer, rows)
    policy.zero_grad()
    (trainer.objective.total(policy, batch, {}) / trainer.objective.weight(batch)).backward()
    got = {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.grad is not None}
    policy.zero_grad()
    said = trainer.objective.log_probabilities(policy, batch)
    weights = batch["weights"] / batch["weights"].sum()
    ref = trainer.objective._reference
    margin = (said["chosen"] - ref["chosen"] - said["rejected"] + ref["rejected"]).detach()
    slope = -weights * BETA * torch.sigmoid(-BETA * margin)
    (slope * (said["chosen"] - said["rejected"])).sum().backward()
    for name, weight in policy.named_parameters():
        if name in got:
            assert torch.allclose(got[name], weight.grad, rtol=1e-3, atol=1e-6)
    assert any(gradient.abs().max() > 1e-4 for gradient in got.values())


def test_log_probabilities_are_those_of_the_plain_model(model):
    import torch

    from guardlearn.training.rows import Collator

    policy, tokenizer = model
    rows = rows_for("sft", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in PAIRS], tokenizer, None)
    policy.eval()
    with torch.no_grad():
        batch = Collator(tokenizer.pad_token_id)([row.columns(n) for n, row in enumerate(rows)])
        got = log_probabilities(policy, batch)
        for at, row in enumerate(rows):
            logits = policy(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[
                0, len(row.prompt) - 1 : -1
            ]
            said = torch.log_softmax(logits.float(), dim=-1).gather(1, torch.tensor(row.completion)[:, None])
            assert got[at].item() == pytest.approx(said.sum().item(), rel=1e-4)
