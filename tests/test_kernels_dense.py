"""The dense kernel: biases that are no function of the distance, and positions with gaps, by blocks of query rows."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pe_retrofit import BiasEncoding, FireConfig, KerpleConfig, MlpConfig, SandwichConfig, WindowConfig, get_encoding
from pe_retrofit.attention import dense
from pe_retrofit.attention.call import Call
from pe_retrofit.attention.dense import dense_attention
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import choose, obstacle, run
from pe_retrofit.sites import lookup as lookups

TOLERANCE = {torch.float64: 1e-9, torch.float32: 3e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of float32 for the table of FIRE's network."""


def bias(config: Any, *, causal: bool = True, dtype: torch.dtype = torch.float64, train: bool = False) -> BiasEncoding:
    """An encoding on its own, with random parameters."""
    made = get_encoding(config.name)(config, tiny.shape(causal=causal))
    assert isinstance(made, BiasEncoding)
    made.start(keeps_native=False)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made.to(dtype).requires_grad_(train)


def biases(name: str, **more: Any) -> list[BiasEncoding]:
    configs = {
        "fire": [FireConfig(width=8, length=10)],
        "fire+kerple": [FireConfig(width=8, length=10), KerpleConfig()],
        "mlp": [MlpConfig(width=8)],
        "sandwich+window": [SandwichConfig(16), WindowConfig(6)],
        "window": [WindowConfig(6)],
    }
    return [bias(config, **more) for config in configs[name]]


NAMES = ("fire", "fire+kerple", "mlp", "sandwich+window", "window")


@pytest.fixture(params=["tables", "pairs"], autouse=True)
def _small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 16 rows; with tables of distances from the first pair on, and without."""
    monkeypatch.setattr(dense, "BUDGET", 1)
    monkeypatch.setattr(dense, "TABLE_PAIRS", 0 if request.param == "tables" else 2**60)


def check(call: Call, rows: Tensor | None = None) -> None:
    """The reference's numbers in float64 (in the rows of interest), finite everywhere."""
    with torch.no_grad():
        found = dense_attention(call)
        wide = {name: getattr(call, name).double() for name in ("query", "key", "value")}
        wanted = eager_attention(replace(call, **wide, biases=[copy.deepcopy(b).double() for b in call.biases]))[0]
    assert found.dtype == call.query.dtype
    assert torch.isfinite(found).all()
    tolerance = TOLERANCE[call.query.dtype]
    pair = (
        (found.double(), wanted)
        if rows is None
        else (found.double().transpose(1, 2)[rows], wanted.transpose(1, 2)[rows])
    )
    torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("causal", [True, False])
def test_agrees_with_eager(name: str, causal: bool, dtype: torch.dtype) -> None:
    for queries, past in ((1, 0), (1, 21), (5, 0), (40, 0), (23, 19), (16, 16)):
        made = biases(name, causal=causal, dtype=dtype)
        check(tiny.make_call(biases=made, batch=2, groups=2, queries=queries, past=past, causal=causal, dtype=dtype))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_packed_and_scattered_positions(name: str, dtype: torch.dtype) -> None:
    """Two sequences in a row, in each row of the batch at another place; and positions that jump."""
    length = 40
    mask = torch.zeros(2, 1, length, length, dtype=torch.bool)
    positions = torch.zeros(2, length, dtype=torch.long)
    for row, cut in enumerate((13, 22)):
        for part in (slice(0, cut), slice(cut, length)):
            size = part.stop - part.start
            positions[row, part] = torch.arange(size)
            mask[row, :, part, part] = tiny.causal_mask(size)[0, 0]
    made = biases(name, dtype=dtype)
    check(
        tiny.make_call(
            biases=made,
            batch=2,
            queries=length,
            dtype=dtype,
            mask=mask,
            query_positions=positions,
            key_positions=positions,
        )
    )
    jumps = torch.randint(1, 3000, (1, length), generator=torch.Generator().manual_seed(1)).cumsum(-1)
    check(
        tiny.make_call(
            biases=made, batch=2, queries=29, past=11, dtype=dtype, query_positions=jumps[:, 11:], key_positions=jumps
        )
    )


@pytest.mark.parametrize("value", [-torch.inf, "lowest", None])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_that_see_nothing_are_finite(name: str, value: Any, dtype: torch.dtype) -> None:
    seen = tiny.causal_mask(40).clone()
    seen[..., 4:23, :] = False  # a whole block and more
    mask = seen
    if value is not None:
        low = torch.finfo(dtype).min if value == "lowest" else value
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, low)
    made = biases(name, dtype=dtype)
    check(tiny.make_call(biases=made, queries=40, dtype=dtype, mask=mask), rows=seen[:, 0].any(-1))


def test_a_float_mask_adds_its_values() -> None:
    mask = torch.randn(1, 1, 19, 19, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    check(tiny.make_call(biases=biases("fire"), mask=mask.masked_fill(~tiny.causal_mask(19), -torch.inf)))


@pytest.mark.parametrize("name", ["fire", "fire+kerple", "mlp"])
@pytest.mark.parametrize("train", [True, False])
def test_gradients(name: str, train: bool) -> None:
    """To queries, keys, values and, where it trains, the bias; recomputed by the blockwise reference."""
    made = biases(name, train=train)
    found = []
    for kernel in (dense_attention, lambda call: eager_attention(call)[0]):
        call = tiny.make_call(biases=made, groups=2, queries=40, grad=True)
        inputs = [call.query, call.key, call.value, *[p for b in made for p in b.parameters() if p.requires_grad]]
        weight = torch.randn(call.query.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        found.append(torch.autograd.grad((kernel(call) * weight).sum(), inputs))
    assert len(found[0]) > 3 or not train
    for one, other in zip(*found, strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_blocks_stay_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    original = dense.scaled_dot_product_attention

    def record(*states: Tensor, attn_mask: Tensor, **more: Any) -> Tensor:
        sizes.append(attn_mask.numel())
        return original(*states, attn_mask=attn_mask, **more)

    monkeypatch.setattr(dense, "scaled_dot_product_attention", record)
    monkeypatch.setattr(dense, "BUDGET", 2 * 4 * 200 * 30)
    with torch.no_grad():
        dense_attention(tiny.make_call(biases=biases("fire"), batch=2, queries=200))
    assert len(sizes) == 7
    assert max(sizes) <= dense.BUDGET


def test_positions_far_apart_make_no_table() -> None:
    """A table over all distances would be larger than the pairs it serves, here than any memory."""
    positions = torch.tensor([[0, 2**40]])
    call = tiny.make_call(biases=biases("mlp"), queries=2, query_positions=positions, key_positions=positions)
    check(call)
    check(replace(call, biases=biases("fire")))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_lookup(threads: int, mode: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rows shared between threads or not; a later, smaller result takes the memory of the one before."""
    monkeypatch.setattr(lookups, "PARALLEL", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    with mode():
        table = torch.randn(5, 300, generator=torch.Generator().manual_seed(1)).requires_grad_(
            mode is torch.enable_grad
        )
        index = torch.randint(0, 300, (2, 7, 11), generator=torch.Generator().manual_seed(2))
        assert torch.equal(lookups.lookup(table, index), table[:, index])
        search = lookups.Lookup(table.detach())
        first = search(index)
        assert torch.equal(first, table[:, index])
        assert torch.equal(search(index[:1, :3]), table[:, index[:1, :3]])
        assert search(index).data_ptr() == first.data_ptr()


def test_choice() -> None:
    call = tiny.make_call(biases=biases("fire"))
    assert choose(call) == "dense"
    assert "distance alone" in str(obstacle("toeplitz", call))
    assert "distance alone" in str(obstacle("flex", call))
    assert choose(replace(call, dropout=0.1)) == "blockwise"
    assert choose(replace(call, softcap=2.0)) == "blockwise"
    assert choose(replace(call, sinks=torch.zeros(4))) == "blockwise"
    assert choose(tiny.make_call(biases=biases("mlp"))) == "toeplitz"
    assert choose(replace(tiny.make_call(biases=biases("mlp")), shift=None)) == "dense"
    torch.testing.assert_close(run(call), dense_attention(call))
