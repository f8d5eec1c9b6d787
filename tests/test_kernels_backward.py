"""Gradients and dropout of the attention kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.autograd import gradcheck

from pe_retrofit.attention import blockwise, toeplitz, toeplitz_backward
from pe_retrofit.attention.call import Call
from pe_retrofit.attention.select import KERNELS, choose, obstacle, run


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks in forward and in backward; 16 rows is the least the backward pass takes."""
    monkeypatch.setattr(toeplitz, "BLOCK", 7)
    monkeypatch.setattr(toeplitz, "MASKED_BUDGET", 1)
    monkeypatch.setattr(toeplitz_backward, "BUDGET", 1)
    original = blockwise.block_length
    monkeypatch.setattr(blockwise, "block_length", lambda call: min(5, original(call)))


def bias(name: str, *, causal: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    """A bias that learns."""
    if name == "t5":
        return tiny.t5(causal=causal, dtype=dtype, train=True)
    return tiny.alibi(causal=causal, dtype=dtype, learnable=True)


def padding(queries: int, past: int, *, causal: bool, rows: int = 2) -> Tensor:
    """bool ``[rows, 1, q, k]``, two more padding tokens on the left in each row."""
    mask = tiny.causal_mask(queries, past) if causal else torch.ones(1, 1, queries, queries + past, dtype=torch.bool)
    return torch.cat([mask & (torch.arange(queries + past) >= 2 * n) for n in range(rows)])


CASES = {
    "square": {"queries": 19, "past": 0},
    "past": {"queries": 18, "past": 5},
    "both": {"queries": 19, "past": 0, "causal": False},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("toeplitz", "t5"),
        ("toeplitz", "alibi"),
        ("separable", "alibi"),
        ("blockwise", "t5"),
        ("blockwise", "alibi"),
        ("eager", "t5"),
    ],
)
@pytest.mark.usefixtures("small_blocks")
def test_gradcheck(kernel: str, name: str, case: str) -> None:
    """Against finite differences in float64, for queries, keys, values and the learned parameter."""
    options = {"causal": True, **CASES[case]}
    if kernel == "separable" and not options["causal"]:
        options["causal"] = True  # it is causal by nature; a mask instead of the flag is its other path
        options["mask"] = padding(19, 0, causal=True, rows=1)
    learned = bias(name, causal=options["causal"])
    call = tiny.make_call(biases=[learned], dim=3, groups=2, grad=True, **options)
    parameter = next(learned.parameters())

    def output(query: Tensor, key: Tensor, value: Tensor, _: Tensor) -> Tensor:
        return KERNELS[kernel](replace(call, query=query, key=key, value=value))

    assert gradcheck(output, (call.query, call.key, call.value, parameter), eps=1e-6, atol=1e-6, fast_mode=True)


def gradients(call: Call, kernel: Callable[[Call], Tensor], weight: Tensor) -> list[Tensor]:
    """Of everything that may learn, for one weighted sum of the output."""
    inputs = [call.query, call.key, call.value, *(p for b in call.biases for p in b.parameters())]
    inputs += [t for t in (call.sinks, call.mask) if t is not None and t.requires_grad]
    return list(torch.autograd.grad((kernel(call) * weight).sum(), inputs))


@pytest.mark.parametrize("mask", ["none", "bool", "float", "empty rows"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", ["t5", "alibi", "alibi+t5"])
@pytest.mark.usefixtures("small_blocks")
def test_every_gradient_equals_eagers(name: str, causal: bool, mask: str) -> None:
    biases = [bias(n, causal=causal) for n in name.split("+")]
    for queries, past in ((37, 0), (20, 9), (1, 30)):
        given = None
        if mask != "none":
            given = padding(queries, past, causal=causal)
            if mask == "empty rows":
                given[1, :, queries // 2] = False
            if mask == "float":
                given = torch.zeros(given.shape, dtype=torch.float64).masked_fill(~given, -1e30)
        call = tiny.make_call(
            biases=biases, batch=2, groups=2, queries=queries, past=past, causal=causal, mask=given, grad=True
        )
        weight = torch.randn(call.query.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        if given is not None:  # rows without a key, or padding rows, take no part in a loss
            seen = given if given.dtype == torch.bool else given == 0
            weight = weight * seen.any(-1, keepdim=True)
        wanted = gradients(call, KERNELS["eager"], weight)
        kernels = [k for k in ("separable", "toeplitz", "blockwise") if obstacle(k, call) is None]
        assert len(kernels) == (3 if causal and name == "alibi" else 2)
        for kernel in kernels:
            for found, expected in zip(gradients(call, KERNELS[kernel], weight), wanted, strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8, msg=lambda m, k=kernel: f"{k}: {m}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_gradients_in_lower_precision(dtype: torch.dtype) -> None:
    """The learned table is held in the model's dtype; its gradient is close to float64's."""
    for name in ("t5", "alibi"):
        learned = bias(name, dtype=dtype)
        call = tiny.make_call(biases=[learned], groups=2, queries=50, dim=32, dtype=dtype, grad=True)
        exact = bias(name)
        exact.load_state_dict(learned.state_dict())
        wide = {n: getattr(call, n).detach().double().requires_grad_() for n in ("query", "key", "value")}
        weight = torch.randn(call.query.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
        wanted = gradients(replace(call, biases=[exact], **wide), KERNELS["eager"], weight.double())
        for found, expected in zip(gradients(call, KERNELS[choose(call)], weight), wanted, strict=True):
            assert found.dtype == dtype
            size = expected.abs().max()
            assert (found.double() - expected).abs().max() / size < (1e-5 if dtype == torch.float32 else 3e-2)


def test_gradients_with_softcap_and_sinks() -> None:
    learned = bias("t5")
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64, requires_grad=True)
    call = tiny.make_call(biases=[learned], queries=40, grad=True, sinks=sinks, softcap=3.0)
    weight = torch.randn(call.query.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    assert choose(call) == "blockwise"
    wanted = gradients(call, KERNELS["eager"], weight)
    assert len(wanted) == 5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockwise, "block_length", lambda call: 7)
        found = gradients(call, KERNELS["blockwise"], weight)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_a_zero_table_still_learns() -> None:
    """Where the bias is zero everywhere the forward pass leaves it out; its gradient must come all the same."""
    learned = bias("t5")
    with torch.no_grad():
        learned.weight.zero_()
    assert learned.silent
    call = tiny.make_call(biases=[learned], queries=30, grad=True)
    weight = torch.ones_like(call.query).cumsum(2)
    found, wanted = (gradients(call, KERNELS[k], weight) for k in ("toeplitz", "eager"))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert found[3].abs().max() > 0
    with torch.no_grad():
        learned.weight.add_(1.0)
    assert not learned.silent


@pytest.fixture
def dropped() -> Call:
    """A call with a dropout of 0.3."""
    return tiny.make_call(biases=[bias("t5"), tiny.alibi()], queries=24, dropout=0.3)


@pytest.mark.parametrize("rows", [7, 100])
def test_dropout_expectation(dropped: Call, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many seeds the mean is the output without dropout; single outputs differ from it."""
    monkeypatch.setattr(blockwise, "block_length", lambda call: rows)
    with torch.no_grad():
        exact = run(replace(dropped, dropout=0.0))
        samples = []
        for seed in range(400):
            torch.manual_seed(seed)
            samples.append(run(dropped))
        many = torch.stack(samples)
    error = (many.mean(0) - exact).abs()
    spread = many.std(0) / 400**0.5
    assert (error <= 5 * spread + 1e-9).all()
    assert (many[0] - exact).abs().max() > 0.1
    # Each weight is kept or dropped on its own: the first row has one key, so its output is 0 or 1 / 0.7 of the value.
    first = many[:, 0, :, 0, 0] / exact[0, :, 0, 0]
    kept = (first - 1 / 0.7).abs() < 1e-9
    assert (kept | (first.abs() < 1e-9)).all()
    assert 0.65 < kept.double().mean() < 0.75


@pytest.mark.parametrize("rows", [7, 100])
def test_dropout_same_seed(dropped: Call, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockwise, "block_length", lambda call: rows)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(run(dropped))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    without = replace(dropped, dropout=0.0)
    torch.testing.assert_close(KERNELS["blockwise"](without), run(without), rtol=1e-6, atol=1e-6)


def test_dropout_gradient(dropped: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass recomputes blocks: it must drop the very same weights."""
    monkeypatch.setattr(blockwise, "block_length", lambda call: 7)
    query = dropped.query.clone().requires_grad_()
    parameter = next(dropped.biases[0].parameters())

    def output(query: Tensor, _: Tensor) -> Tensor:
        torch.manual_seed(3)
        return run(replace(dropped, query=query))

    assert gradcheck(output, (query, parameter), atol=1e-6, fast_mode=True)
