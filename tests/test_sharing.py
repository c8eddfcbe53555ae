"""What a batch's rows begin with is computed once, and nothing else changes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.training import add_lora_adapters, load_model_for_training, sharing
from guardlearn.training.objective import Sft, token_losses
from guardlearn.training.rows import TokenRow

OMEGA = [7, 8, 9, 10, 11, 12] * 6


def rows(*texts, prefix=OMEGA):
    return [
        TokenRow(id=str(n), prompt=[*prefix, *prompt], completion=completion, weight=1.0 + n)
        for n, (prompt, completion) in enumerate(texts)
    ]


DIFFERENT = (([20, 21, 22], [30, 31, 2]), ([40], [41, 42, 43, 44, 45, 2]), ([50] * 20, [2]), ([20, 21, 60], [61, 2]))


@pytest.fixture(scope="module")
def model(tiny_model):
    loaded, _ = load_model_for_training(str(tiny_model), load_in_4bit=False)
    loaded = add_lora_adapters(loaded, r=4)
    torch.manual_seed(0)
    for name, weight in loaded.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return loaded


def batch(some):
    return Sft(0).collate([row.columns(number) for number, row in enumerate(some)])


def tokens_through(model, inputs, siblings=1):
    """Return the losses, the gradients, and how many columns went through the model in each pass."""
    columns = []
    handle = model.get_base_model().register_forward_pre_hook(
        lambda module, args, kwargs: columns.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    model.zero_grad()
    nll, at = token_losses(model, inputs, siblings)
    (nll * inputs["weights"][at]).sum().backward()
    handle.remove()
    return nll.detach(), [weight.grad.clone() for weight in model.parameters() if weight.grad is not None], columns


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_losses_and_gradients_are_those_of_whole_rows(model, monkeypatch, attention):
    model.get_base_model().set_attn_implementation(attention)
    inputs = batch(rows(*DIFFERENT))
    shared, gradients, columns = tokens_through(model, inputs)
    assert columns == [(1, len(OMEGA)), (4, inputs["input_ids"].shape[1] - len(OMEGA))]
    monkeypatch.setattr(sharing, "_LEAST_SAVED", 1e9)
    whole, expected, once = tokens_through(model, inputs)
    assert once == [tuple(inputs["input_ids"].shape)]
    assert torch.allclose(shared, whole, rtol=1e-4, atol=1e-6)
    assert len(gradients) == len(expected) > 0
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item() + 1e-8)


LONG, SHORT, OTHER = [*range(60, 90)], [91, 92], [*range(70, 95)]
TWINS = (
    (LONG, [30, 31, 2]), (LONG, [2]), (SHORT, [41, 42, 43, 44, 45, 2]), (SHORT, [46, 2]), (OTHER, [5, 2]),
    (OTHER, [6, 2]),
)  # fmt: skip


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("prefix", [OMEGA, []], ids=["all begin alike", "only twins do"])
def test_a_prompt_of_two_rows_goes_through_once(model, monkeypatch, attention, prefix):
    model.get_base_model().set_attn_implementation(attention)
    inputs = batch(rows(*TWINS, prefix=prefix))
    shared, gradients, columns = tokens_through(model, inputs, siblings=2)
    first = [(1, len(OMEGA))] if prefix else []
    assert columns == [*first, (3, len(LONG) - 1), (6, 7)]  # a prompt's last token predicts, so it goes with the rest
    monkeypatch.setattr(sharing, "_LEAST_SAVED", 1e9)
    whole, expected, once = tokens_through(model, inputs, siblings=2)
    assert once == [tuple(inputs["input_ids"].shape)]
    assert torch.allclose(shared, whole, rtol=1e-4, atol=1e-6)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5 * theirs.abs().max().item() + 1e-8)


def test_twins_are_told_by_their_tokens_not_by_their_places(model, monkeypatch):
    """Neighbours that do not begin alike share what they share, nothing more."""
    mixed = [TWINS[0], TWINS[4], TWINS[1], TWINS[5], TWINS[2], TWINS[3]]
    inputs = batch(rows(*mixed))
    assert sharing.shared_tokens(inputs, 2).tolist() == [len(OMEGA), len(OMEGA), len(OMEGA) + 1]
    shared = tokens_through(model, inputs, siblings=2)[0]
    monkeypatch.setattr(sharing, "_LEAST_SAVED", 1)
    every = tokens_through(model, inputs, siblings=2)[0]
    monkeypatch.setattr(sharing, "_LEAST_SAVED", 1e9)
    assert torch.allclose(shared, tokens_through(model, inputs)[0], rtol=1e-4, atol=1e-6)
    assert torch.allclose(every, shared, rtol=1e-4, atol=1e-6)


def test_a_batch_gives_each_row_the_loss_it_has_alone(model):
    some = rows(*DIFFERENT)
    together, _, columns = tokens_through(model, batch(some))
    assert len(columns) == 2
    alone = torch.cat([tokens_through(model, batch([row]))[0] for row in some])
    assert torch.allclose(together, alone, rtol=1e-4)


def test_equal_prompts_share_all_but_the_token_that_predicts(model):
    prompt = [*range(100, 130)]
    some = rows((prompt, [5, 2]), (prompt, [6, 7, 2]), prefix=[])
    assert sharing.shared_tokens(batch(some)).tolist() == [len(prompt) - 1]
    assert tokens_through(model, batch(some))[2] == [(2, 33)]  # two rows save 29 tokens: too few for a pass of its own
    assert tokens_through(model, batch([*some, *some]))[2] == [(1, 29), (4, 4)]


def test_nothing_is_shared_where_it_does_not_pay_or_cannot_be(model):
    lone = tokens_through(model, batch(rows(DIFFERENT[0])))[2]
    assert len(lone) == 1
    assert len(tokens_through(model, batch(rows(*DIFFERENT, prefix=[])))[2]) == 1
    base = model.get_base_model()
    base.gradient_checkpointing_enable()
    base.enable_input_require_grads()
    try:
        model.train()
        assert len(tokens_through(model, batch(rows(*DIFFERENT)))[2]) == 1
    finally:
        base.gradient_checkpointing_disable()
        base.disable_input_require_grads()
    base.config.sliding_window = 16
    try:
        assert len(tokens_through(model, batch(rows(*DIFFERENT)))[2]) == 1
    finally:
        del base.config.sliding_window


TOKENS = st.lists(st.integers(3, 6), max_size=6)


@given(st.lists(st.tuples(TOKENS, TOKENS), min_size=1, max_size=5), TOKENS)
def test_shared_tokens_are_the_longest_common_beginning_of_the_prompts(texts, prefix):
    some = rows(*(([1, *prompt], [*completion, 2]) for prompt, completion in texts), prefix=prefix)
    most = min(len(row.prompt) for row in some) - 1
    expected = 0
    while expected < most and len({row.prompt[expected] for row in some}) == 1:
        expected += 1
    assert sharing.shared_tokens(batch(some)).tolist() == [expected]


@given(st.lists(st.tuples(TOKENS, TOKENS, TOKENS), min_size=1, max_size=4), TOKENS)
def test_each_group_of_neighbours_shares_its_own_beginning(texts, prefix):
    twins = [([1, *prompt, *more], [*completion, 2]) for prompt, more, completion in texts for more in ([], more)]
    some = rows(*twins, prefix=prefix)
    pairs = [some[at : at + 2] for at in range(0, len(some), 2)]
    expected = [sharing.shared_tokens(batch(pair)).item() for pair in pairs]
    assert sharing.shared_tokens(batch(some), 2).tolist() == expected
    assert sharing.shared_tokens(batch(some), 1).tolist() == [len(row.prompt) - 1 for row in some]
