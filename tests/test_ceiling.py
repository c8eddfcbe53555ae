"""What a step has to multiply, against torch's own count; and the speed of this machine's matrix product."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from guardlearn.errors import UsageError
from guardlearn.training import add_lora_adapters, ceiling, load_model_for_training
from guardlearn.training.ceiling import Costs, Meter, matmul_ceiling, step_flops

COSTS = Costs(frozen=1000, trained=70, head=300, attention=12)


@pytest.fixture(scope="module")
def model(tiny_model):
    loaded, _ = load_model_for_training(str(tiny_model), load_in_4bit=False)
    loaded.set_attn_implementation("eager")
    return add_lora_adapters(loaded, r=4)


@pytest.mark.parametrize(("length", "completion"), [(40, 15), (7, 6), (64, 1)])
def test_a_steps_operations_are_those_torch_counts(model, length, completion):
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.randint(0, 90, (1, length), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, logits_to_keep=completion, use_cache=False).logits.sum().backward()
    model.zero_grad(set_to_none=True)
    config, costs = model.config, Costs.of(model)
    # torch also multiplies what a causal mask hides, and the angles of the positions; nothing asks for the gradient
    # of the first layer's input
    hidden = 2 * 3 * costs.attention * (length**2 - length * (length + 1) / 2)
    angles = 2 * length * (config.head_dim // 2)
    first = model.get_base_model().model.layers[0].self_attn
    inputs = [first.q_proj, first.k_proj, first.v_proj]
    unasked = sum(layer.base_layer.weight.numel() + layer.lora_A["default"].weight.numel() for layer in inputs)
    expected = step_flops(costs, [(length, completion)]) + hidden + angles - 2 * length * unasked
    assert counter.get_total_flops() == expected


def test_a_model_without_adapters_trains_every_layer(tiny_model):
    loaded, _ = load_model_for_training(str(tiny_model), load_in_4bit=False)
    bare, adapted = Costs.of(loaded), Costs.of(add_lora_adapters(loaded, r=4))
    assert bare.trained == adapted.frozen > 0 and bare.frozen == 0
    assert 0 < adapted.trained < adapted.frozen
    assert (bare.head, bare.attention) == (adapted.head, adapted.attention)
    assert bare.head == loaded.config.vocab_size * loaded.config.hidden_size


SEQUENCES = st.lists(st.integers(1, 500).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))), min_size=1)


@given(SEQUENCES, SEQUENCES)
def test_operations_add_up_over_sequences_and_grow_with_each(first, second):
    both = step_flops(COSTS, first + second)
    assert both == pytest.approx(step_flops(COSTS, first) + step_flops(COSTS, second))
    length, completion = first[0]
    assert step_flops(COSTS, [(length + 1, completion), *first[1:]]) > step_flops(COSTS, first)
    assert step_flops(COSTS, [(2 * length, completion)]) > step_flops(COSTS, [(length, completion), (length, 0)])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_ceiling_is_the_speed_of_a_large_product_and_is_measured_once(precision):
    found = matmul_ceiling(precision, "cpu")
    began = time.perf_counter()
    assert matmul_ceiling(precision, "cpu") == found
    assert time.perf_counter() - began < 0.1
    square = torch.randn(768, 768).to({"fp32": torch.float32, "bf16": torch.bfloat16}[precision])
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        square @ square
        seconds.append(time.perf_counter() - began)
    assert found / 100 < 2 * 768**3 / min(seconds) < 100 * found  # other processes may have the cores at either time


def test_the_ceiling_is_two_operations_a_multiplication_over_the_median_time(monkeypatch):
    ticks = itertools.chain([0, 0.05, 1, 1.02, 2], itertools.chain.from_iterable((n, n + 0.03) for n in range(3, 99)))
    monkeypatch.setattr(ceiling, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    ceiling._measured.cache_clear()
    try:
        assert matmul_ceiling("fp32", "cpu") == pytest.approx(2 * 256**3 / 0.03)
    finally:
        ceiling._measured.cache_clear()


def test_another_number_of_threads_has_its_own_ceiling():
    before = torch.get_num_threads()
    whole = matmul_ceiling("fp32", "cpu")
    try:
        torch.set_num_threads(before + 1)
        assert matmul_ceiling("fp32", "cpu") != whole
    finally:
        torch.set_num_threads(before)
    assert matmul_ceiling("fp32", "cpu") == whole


def test_an_unknown_precision_is_refused(model):
    with pytest.raises(UsageError, match="precision is 'int4'; allowed: fp32, bf16, fp16"):
        matmul_ceiling("int4")
    with pytest.raises(UsageError):
        Meter(model, "float32")


def test_a_meter_counts_steps_and_all_of_them(model):
    meter = Meter(model, "fp32")
    assert meter.total is None
    first = meter.count([(40, 10), (60, 30)], 2.0)
    assert first.tokens_per_second == 50 and first.completion_tokens_per_second == 20
    expected = step_flops(Costs.of(model), [(40, 10), (60, 30)]) / 2.0 / matmul_ceiling("fp32", "cpu")
    assert first.share_of_ceiling == pytest.approx(expected)
    assert meter.total == first
    second = meter.count([(20, 20)], 1.0)
    assert second.tokens_per_second == second.completion_tokens_per_second == 20
    total = meter.total
    assert (total.tokens_per_second, total.completion_tokens_per_second) == (40, 20)
    assert min(first[2], second[2]) < total.share_of_ceiling < max(first[2], second[2])
