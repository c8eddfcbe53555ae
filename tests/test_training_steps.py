"""One optimiser step: the same whatever goes through the model at once, and it outlasts a lack of memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guardlearn.errors import JobError
from guardlearn.training.memory import parts, ran_out
from guardlearn.training.objective import Sft
from guardlearn.training.rows import TokenRow

TOO_MUCH = 1 << 62  # bytes: more than any machine gives


def rows_of(lengths, weights=(1.0, 0.5, 2.25)):
    """Rows of those many completion tokens, with prompts of other lengths and unequal weights."""
    return [
        TokenRow(
            id=f"row-{at}",
            prompt=[(at * 7 + token) % 300 + 3 for token in range(3 + 5 * at % 11)],
            completion=[(at * 11 + token * 3) % 300 + 3 for token in range(length)],
            weight=weights[at % len(weights)],
        )
        for at, length in enumerate(lengths)
    ]


def trainer_of(tiny_model, folder, rows, batches=None, **options):
    """A trainer over `rows`, in one batch unless told otherwise; adapters' both halves are random."""
    import torch

    from guardlearn.training import add_lora_adapters, load_model_for_training
    from guardlearn.training.trl import Options, build

    given = {name: options.pop(name) for name in ("objective", "on_note", "on_step") if name in options}
    model, tokenizer = load_model_for_training(str(tiny_model), load_in_4bit=False)
    model = add_lora_adapters(model, r=4)
    noise = torch.Generator().manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.copy_(0.1 * torch.randn(weight.shape, generator=noise))
    settled = Options(**({"learning_rate": 1e-3, "warmup_ratio": 0.0, "seed": 0, "save_steps": 1} | options))
    return build(model, tokenizer, rows, batches or [list(range(len(rows)))], folder, settled, **given)


def step(trainer, numbers):
    """Return a step's loss and its gradient, all weights in one vector."""
    import torch

    trainer.model.zero_grad()
    batch = trainer.objective.collate([trainer.train_dataset[number] for number in numbers])
    loss = trainer.training_step(trainer.model, batch)
    grads = [weight.grad.reshape(-1) for weight in trainer.model.parameters() if weight.requires_grad]
    return loss.item(), torch.cat(grads)


def differ(one, other):
    return ((one - other).norm() / other.norm()).item()


@given(start=st.integers(0, 20), rows=st.integers(0, 60), size=st.integers(1, 70))
def test_parts_are_as_few_and_as_alike_as_can_be(start, rows, size):
    found = list(parts(start, start + rows, size))
    assert [row for first, last in found for row in range(first, last)] == list(range(start, start + rows))
    assert len(found) == -(-rows // size)
    sizes = {last - first for first, last in found}
    assert not sizes or (max(sizes) <= size and max(sizes) - min(sizes) <= 1 and min(sizes) >= 1)


@settings(deadline=None)  # the first example imports torch
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), data=st.data())
def test_a_part_is_the_batch_of_its_rows_alone(lengths, data):
    import torch

    start = data.draw(st.integers(0, len(lengths) - 1))
    stop = data.draw(st.integers(start + 1, len(lengths)))
    columns = [row.columns(number) for number, row in enumerate(rows_of(lengths))]
    part, alone = Sft(0).part(Sft(0).collate(columns), start, stop), Sft(0).collate(columns[start:stop])
    assert part.keys() == alone.keys()
    assert all(torch.equal(part[name], alone[name]) for name in alone)  # no column of padding is left


@pytest.fixture(scope="module")
def seven(tiny_model, tmp_path_factory):
    """A trainer over seven rows of unequal lengths and weights."""
    rows = rows_of([9, 2, 30, 17, 5, 24, 11])
    return trainer_of(tiny_model, tmp_path_factory.mktemp("steps"), rows)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(numbers=st.lists(st.integers(0, 6), min_size=1, max_size=7, unique=True), size=st.integers(1, 7))
def test_a_steps_gradient_is_that_of_its_whole_batch(seven, numbers, size):
    import torch

    seven.room.micro_batch_size = 7
    loss, want = step(seven, numbers)
    seven.model.zero_grad()
    seven.compute_loss(
        seven.model, seven.objective.collate([seven.train_dataset[n] for n in numbers])
    ).backward()  # by autograd alone, with no trainer in between
    plain = torch.cat([weight.grad.reshape(-1) for weight in seven.model.parameters() if weight.requires_grad])
    assert differ(want, plain) < 1e-6
    seven.room.micro_batch_size = size
    small_loss, got = step(seven, numbers)
    assert small_loss == pytest.approx(loss, rel=1e-5)
    assert differ(got, want) < 1e-5
    assert seven.last_batch[1] == sum(
        len(seven.train_dataset[n]["prompt"] + seven.train_dataset[n]["completion"]) for n in numbers
    )
    assert seven.last_batch[2] == numbers


@pytest.mark.slow
def test_training_in_micro_batches_gives_the_same_losses(tiny_model, tmp_path):
    rows, plan = rows_of([9, 2, 30, 17, 5, 24]), [[0, 1, 2, 3], [4, 5], [3, 1, 5, 0, 2]]
    losses = {}
    for size in (None, 1, 2):
        seen = losses.setdefault(size, [])
        trainer = trainer_of(
            tiny_model, tmp_path / str(size), rows, plan, micro_batch_size=size,
            on_step=lambda record, seen=seen: seen.append(record.loss),
        )  # fmt: skip
        assert trainer.micro_batch_size == (size or 5)
        trainer.train()
    assert losses[1] == pytest.approx(losses[None], rel=1e-5)
    assert losses[2] == pytest.approx(losses[None], rel=1e-5)


class Greedy(Sft):
    """SFT that asks the machine for more than it has where more than `most` rows come at once."""

    def __init__(self, pad_token_id, most, words=None):
        super().__init__(pad_token_id)
        self.most, self.words = most, words
        self.asked = []

    def total(self, model, inputs, whole):
        import torch

        total = super().total(model, inputs, whole)
        self.asked.append(len(inputs["rows"]))
        if len(inputs["rows"]) > self.most:
            total.backward() if total.requires_grad else None  # a try that breaks off leaves gradients behind
            if self.words:
                raise RuntimeError(self.words)
            torch.empty(TOO_MUCH, dtype=torch.uint8)
        return total


def test_out_of_memory_halves_what_goes_at_once_says_so_and_loses_nothing(tiny_model, tmp_path):
    rows, plan, notes = rows_of([9, 2, 30, 17, 5, 24, 11]), [list(range(7)), [2, 3, 4], [0, 5, 1, 6]], []
    curves = []
    for most in (99, 1):
        seen = []
        trainer = trainer_of(
            tiny_model, tmp_path / str(most), rows, plan, objective=Greedy(0, most), on_note=notes.append,
            on_step=lambda record, seen=seen: seen.append((record.loss, record.tokens)),
        )  # fmt: skip
        trainer.train()
        curves.append((seen, [weight.detach().clone() for weight in trainer.model.parameters()], trainer))
    (want, weights, _), (got, others, trainer) = curves
    assert [loss for loss, _ in got] == pytest.approx([loss for loss, _ in want], rel=1e-5)
    assert [tokens for _, tokens in got] == [tokens for _, tokens in want]
    assert all((one - other).abs().max() < 1e-5 for one, other in zip(weights, others, strict=True))
    assert trainer.objective.asked == [7, 2, *[1] * 7, *[1] * 3, *[1] * 4]  # 7, parts of 2 and 3, and then 1 for good
    assert trainer.micro_batch_size == 1
    assert notes == trainer.notes == [
        "out of memory in step 1: from here on at most 3 of a batch's rows at once, not 7",
        "out of memory in step 1: from here on at most 1 of a batch's rows at once, not 3",
    ]  # fmt: skip


def test_one_row_too_much_takes_checkpointing_and_then_one_clear_error(tiny_model, tmp_path):
    rows, notes = rows_of([9, 2]), []
    trainer = trainer_of(tiny_model, tmp_path, rows, objective=Greedy(0, 0), on_note=notes.append)
    with pytest.raises(JobError, match=r"out of memory in step 1 with one row at once \(.*allocate.*free memory"):
        trainer.train()
    assert trainer.model.is_gradient_checkpointing
    assert notes == [
        "out of memory in step 1: from here on at most 1 of a batch's rows at once, not 2",
        "out of memory in step 1 with one row at once: gradient checkpointing from here on, it is slower",
    ]


def test_another_error_is_not_taken_for_a_lack_of_memory(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path, rows_of([9, 2]), objective=Greedy(0, 0, "shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trainer.train()
    assert trainer.notes == []


def test_validation_lessens_too(tiny_model, tmp_path):
    from guardlearn.training.trl import mean_loss

    rows = rows_of([9, 2, 30, 17])
    want = mean_loss(trainer_of(tiny_model, tmp_path / "a", rows), rows, 4)
    trainer = trainer_of(tiny_model, tmp_path / "b", rows, objective=Greedy(0, 2))
    assert mean_loss(trainer, rows, 4) == pytest.approx(want, rel=1e-5)
    assert trainer.notes == ["out of memory in validation: from here on at most 2 of a batch's rows at once, not 4"]
    trainer.objective.most = 0
    with pytest.raises(JobError, match="out of memory in validation with one row at once"):
        mean_loss(trainer, rows, 4)
    assert not trainer.model.is_gradient_checkpointing  # there is nothing to recompute


@pytest.mark.slow
def test_a_continued_training_goes_on_with_what_fitted(tiny_model, tmp_path):
    from guardlearn.training.trl import last_checkpoint

    rows, plan = rows_of([9, 2, 30, 17]), [[0, 1, 2, 3]] * 4
    trainer = trainer_of(tiny_model, tmp_path, rows, plan[:2], objective=Greedy(0, 1))
    trainer.train()
    again = trainer_of(tiny_model, tmp_path, rows, plan)
    assert again.micro_batch_size == 4
    again.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert again.state.global_step == 4
    assert again.micro_batch_size == 1
    assert again.notes == trainer.notes
    (last_checkpoint(tmp_path) / "complete").write_text("", encoding="utf-8")  # as older marks are
    older = trainer_of(tiny_model, tmp_path, rows, plan * 2)
    older.train(resume_from_checkpoint=str(last_checkpoint(tmp_path)))
    assert older.micro_batch_size == 4


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"), False),
        (ValueError("not enough memory of yesterday"), False),
    ],
)
def test_what_counts_as_a_lack_of_memory(error, found):
    assert ran_out(error) is found


# A process that may not have more memory: no error is made up, the system refuses

LIMITED = Path(__file__).with_name("limited_training.py")


def limited(python, what, megabytes, folder):
    done = subprocess.run(
        [python, str(LIMITED), what, str(megabytes), str(folder)],
        capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_under_a_real_limit_the_same_losses_come_from_fewer_rows_at_once(tmp_path, warm):
    free = limited(warm.python, "head", 0, tmp_path / "free")
    tight = limited(warm.python, "head", 450, tmp_path / "tight")
    assert free["notes"] == []
    assert free["micro_batch_size"] == 8
    assert 1 <= tight["micro_batch_size"] < 8
    assert "out of memory in step 1: from here on at most 4 of a batch's rows at once, not 8" in tight["notes"]
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-5)
    none = limited(warm.python, "head", 10, tmp_path / "none")
    assert none["error"].startswith("out of memory in step 1 with one row at once (")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs a limit on the address space")
def test_under_a_real_limit_checkpointing_makes_room_for_a_row_that_is_too_much(tmp_path, warm):
    free = limited(warm.python, "layers", 0, tmp_path / "free")
    for megabytes in (390, 340, 450, 510):  # what the libraries take beside differs with their versions
        tight = limited(warm.python, "layers", megabytes, tmp_path / str(megabytes))
        if tight["gradient_checkpointing"] and not tight["error"]:
            break
    assert free["notes"] == [] and not free["gradient_checkpointing"]
    assert tight["gradient_checkpointing"]
    assert tight["notes"][-1].endswith("gradient checkpointing from here on, it is slower")
    assert tight["losses"] == pytest.approx(free["losses"], rel=1e-4)
