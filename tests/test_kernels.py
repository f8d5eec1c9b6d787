"""Every attention kernel against the eager reference in float64, forward."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pe_retrofit import UnsupportedError
from pe_retrofit.attention import blockwise, dense, fused, toeplitz
from pe_retrofit.attention.call import Call
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import KERNELS, choose, obstacle, run

pytestmark = pytest.mark.usefixtures("untraced_flex")

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""float64 is not tighter because the fixed ALiBi bias is float32; learned biases are held to 1e-12 below."""

BIASES = {
    "alibi": lambda heads, causal=True: [tiny.alibi(heads, causal=causal)],
    "alibi_learnable": lambda heads, causal=True: [tiny.alibi(heads, causal=causal, learnable=True)],
    "t5": lambda heads, causal=True: [tiny.t5(heads, causal=causal)],
    "alibi+t5": lambda heads, causal=True: [tiny.alibi(heads, causal=causal), tiny.t5(heads, causal=causal)],
}


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks on short inputs, none of which divides the lengths used here."""
    monkeypatch.setattr(toeplitz, "BLOCK", 7)
    monkeypatch.setattr(fused, "BLOCK", 7)
    monkeypatch.setattr(toeplitz, "MASKED_BUDGET", 1)
    monkeypatch.setattr(dense, "BUDGET", 1)
    original = blockwise.block_length
    monkeypatch.setattr(blockwise, "block_length", lambda call: min(5, original(call)))


def reference(call: Call) -> Tensor:
    """Eager in float64 on the same (rounded) numbers."""
    wide = {name: getattr(call, name).double() for name in ("query", "key", "value")}
    biases = [copy.deepcopy(b).double() for b in call.biases]
    return eager_attention(replace(call, **wide, biases=biases))[0]


def kernels_for(call: Call) -> list[str]:
    """All kernels that say they can run a call; ``fused`` where there is nothing to add."""
    if not call.biases and call.softcap is None and call.sinks is None:
        return ["fused", "blockwise", "eager"]
    return [name for name in KERNELS if obstacle(name, call) is None]


def check(call: Call, expected_kernels: set[str] | None = None, rows: Tensor | None = None) -> None:
    """Every kernel gives the reference's numbers (in the rows of interest, bool ``[b, q]``) and only finite ones."""
    names = kernels_for(call)
    if expected_kernels is not None:
        assert set(names) == expected_kernels
    wanted = reference(call)
    tolerance = TOLERANCE[call.query.dtype]
    for name in names:
        found = run(call) if name == "fused" else KERNELS[name](call)
        assert found.dtype == call.query.dtype
        assert found.shape == call.query.shape
        assert torch.isfinite(found).all(), name
        found = found.double()
        pair = (found, wanted) if rows is None else (found.transpose(1, 2)[rows], wanted.transpose(1, 2)[rows])
        torch.testing.assert_close(*pair, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


ALL = {"separable", "toeplitz", "dense", "blockwise", "flex", "eager"}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.usefixtures("small_blocks")
def test_causal(dtype: torch.dtype, biases: str, groups: int) -> None:
    for queries, past in ((1, 0), (1, 21), (5, 0), (23, 0), (23, 9), (7, 30), (33, 0)):
        call = tiny.make_call(
            biases=BIASES[biases](6), heads=6, groups=groups, batch=2, queries=queries, past=past, dtype=dtype
        )
        check(call, ALL if "t5" not in biases else ALL - {"separable"})


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("biases", BIASES)
@pytest.mark.usefixtures("small_blocks")
def test_bidirectional(dtype: torch.dtype, biases: str) -> None:
    for queries in (1, 6, 22):
        call = tiny.make_call(
            biases=BIASES[biases](4, causal=False), causal=False, batch=2, queries=queries, dtype=dtype
        )
        check(call, ALL - {"separable"})


@pytest.mark.parametrize("dim", [32, 64, 80, 96, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_head_sizes(dim: int, dtype: torch.dtype) -> None:
    for name in BIASES:
        check(tiny.make_call(biases=BIASES[name](8), heads=8, groups=8, queries=35, dim=dim, dtype=dtype))


@pytest.mark.parametrize("past", [0, 4, 20])
@pytest.mark.usefixtures("small_blocks")
def test_without_bias(past: int) -> None:
    for queries in (1, 5, 19):
        for dtype in TOLERANCE:
            check(tiny.make_call(queries=queries, past=past, groups=2, dtype=dtype), {"fused", "blockwise", "eager"})


def padded(queries: int, past: int, *, causal: bool = True, left: tuple[int, ...] = (0, 3)) -> Tensor:
    """bool ``[b, 1, q, k]`` with that many padding tokens on the left of each row."""
    mask = tiny.causal_mask(queries, past) if causal else torch.ones(1, 1, queries, queries + past, dtype=torch.bool)
    columns = torch.arange(queries + past)
    return torch.cat([mask & (columns >= n) for n in left])


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_masks(causal: bool, kind: str, dtype: torch.dtype) -> None:
    """Padding masks; rows that see nothing may hold anything finite."""
    for queries, past in ((19, 0), (1, 8), (6, 13)):
        seen = padded(queries, past, causal=causal)
        rows = seen[:, 0].any(-1)
        mask = seen
        if kind == "float":
            mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)
        for name in BIASES:
            call = tiny.make_call(
                biases=BIASES[name](4, causal=causal),
                causal=causal,
                batch=2,
                groups=2,
                queries=queries,
                past=past,
                dtype=dtype,
                mask=mask,
            )
            check(call, rows=rows)


def test_float_mask_adds_its_values() -> None:
    """A float mask is more than 0 and -inf: an additive bias of the user's own."""
    mask = torch.randn(1, 1, 19, 19, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    mask = mask.masked_fill(~tiny.causal_mask(19), -torch.inf)
    for name in BIASES:
        call = tiny.make_call(biases=BIASES[name](4), mask=mask)
        check(call)
        without = eager_attention(replace(call, mask=tiny.causal_mask(19)))[0]
        assert not torch.allclose(reference(call), without, atol=1e-2)


@pytest.mark.parametrize("value", [-torch.inf, "lowest", None])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_rows_that_see_nothing_are_finite(value: Any, dtype: torch.dtype) -> None:
    seen = tiny.causal_mask(12).clone()
    seen[..., 4:7, :] = False
    mask = seen
    if value is not None:
        low = torch.finfo(dtype).min if value == "lowest" else value
        mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, low)
    for name in BIASES:
        check(tiny.make_call(biases=BIASES[name](4), queries=12, dtype=dtype, mask=mask), rows=seen[:, 0].any(-1))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.usefixtures("small_blocks")
def test_positions_with_gaps(dtype: torch.dtype) -> None:
    """Skipped positions, other ones in each row: the Toeplitz kernel refuses, the rest agrees."""
    steps = torch.randint(1, 4000, (2, 40), generator=torch.Generator().manual_seed(1))
    positions = steps.cumsum(-1)
    assert positions.max() > 65_536
    for name in BIASES:
        call = tiny.make_call(
            biases=BIASES[name](4),
            batch=2,
            queries=29,
            past=11,
            dtype=dtype,
            query_positions=positions[:, 11:],
            key_positions=positions,
        )
        assert "positions that grow by one" in str(obstacle("toeplitz", call))
        check(call, ALL - {"toeplitz"} - ({"separable"} if "t5" in name else set()))


def test_positions_that_decrease() -> None:
    """A visible key may lie ahead in position; a penalty of the distance must then not turn into a reward."""
    positions = torch.randperm(200, generator=torch.Generator().manual_seed(1))[:30].view(1, 30)
    call = tiny.make_call(biases=BIASES["alibi"](4), queries=30, query_positions=positions, key_positions=positions)
    assert "never decrease" in str(obstacle("separable", call))
    check(call, {"dense", "blockwise", "flex", "eager"})
    assert choose(call) == "dense"


@pytest.mark.parametrize("start", [0, 1000, 131_040])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_far_positions(start: int, dtype: torch.dtype) -> None:
    """The same distances give the same numbers wherever they lie, in half precision too."""
    near = tiny.make_call(biases=BIASES["alibi"](6), heads=6, queries=33, dtype=dtype)
    positions = torch.arange(start, start + 33)[None]
    far = replace(near, query_positions=positions, key_positions=positions)
    for name in kernels_for(far):
        assert torch.equal(KERNELS[name](far), KERNELS[name](near)), name


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_one_query_over_a_long_past(dtype: torch.dtype) -> None:
    """Decoding at 131,072 tokens. Queries and keys are small so that the bias decides; half precision holds it."""
    call = tiny.make_call(biases=BIASES["alibi"](8), heads=8, groups=8, queries=1, past=131_071, dim=8, dtype=dtype)
    check(replace(call, query=call.query * 0.1))


@pytest.mark.parametrize("special", ["softcap", "sinks", "both"])
@pytest.mark.usefixtures("small_blocks")
def test_softcap_and_sinks(special: str) -> None:
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0], dtype=torch.float64)
    more = {} if special == "sinks" else {"softcap": 2.0}
    more |= {} if special == "softcap" else {"sinks": sinks}
    for name in (*BIASES, "none"):
        biases = BIASES[name](4) if name != "none" else []
        for mask in (None, padded(23, 4)):
            call = tiny.make_call(biases=biases, batch=2, groups=2, queries=23, past=4, mask=mask, **more)
            found = set(kernels_for(call))
            assert found == {"blockwise", "eager"} | ({"flex"} if special == "softcap" else set())
            check(call, rows=None if mask is None else mask[:, 0].any(-1))
            if special != "sinks":  # scores of 2 and more are really capped
                assert not torch.allclose(reference(call), reference(replace(call, softcap=None)), atol=1e-2)
            if special != "softcap":
                assert not torch.allclose(reference(call), reference(replace(call, sinks=None)), atol=1e-2)
    with pytest.raises(UnsupportedError, match=r"kernel='toeplitz' cannot run this call: it has no (soft|attention)"):
        run(call if call.biases else replace(call, biases=BIASES["t5"](4)), "toeplitz")


def test_sinks_take_weight_from_all_keys() -> None:
    """Against the formula: a sink is one more key whose value is 0."""
    call = tiny.make_call(queries=9, sinks=torch.tensor([1.0, 0.0, -1.0, 3.0], dtype=torch.float64))
    output, weights = eager_attention(call)
    scores = (call.query @ call.key.transpose(2, 3)) * call.scaling
    scores = scores.masked_fill(~tiny.causal_mask(9), -torch.inf)
    total = scores.exp().sum(-1, keepdim=True) + call.sinks.exp().view(1, 4, 1, 1)
    torch.testing.assert_close(weights, scores.exp() / total)
    torch.testing.assert_close(output, (scores.exp() / total) @ call.value)
    assert (weights.sum(-1) < 1).all()


def test_learned_biases_in_float64_are_exact() -> None:
    for name in ("alibi", "t5"):
        bias = tiny.alibi(learnable=True, dtype=torch.float64) if name == "alibi" else tiny.t5(dtype=torch.float64)
        call = tiny.make_call(biases=[bias], queries=40)
        wanted = eager_attention(call)[0]
        for kernel in set(kernels_for(call)) - {"flex"}:  # FlexAttention's table is float32
            torch.testing.assert_close(KERNELS[kernel](call), wanted, rtol=1e-12, atol=1e-12)


def test_choice() -> None:
    """What the encoding declares decides, together with gradients, dropout and positions."""
    fixed, learned = tiny.make_call(biases=BIASES["alibi"](4)), tiny.make_call(biases=[tiny.t5(train=True)])
    assert choose(fixed) == "toeplitz"
    assert choose(replace(fixed, shift=None)) == "separable"
    assert choose(replace(fixed, shift=None, causal=False)) == "dense"
    assert choose(replace(fixed, dropout=0.1)) == "blockwise"
    assert choose(replace(fixed, softcap=1.0)) == "blockwise"
    with torch.enable_grad():
        assert choose(learned) == "toeplitz"
        assert choose(replace(fixed, biases=[tiny.alibi(learnable=True)])) == "separable"
        assert choose(replace(learned, dropout=0.1)) == "blockwise"
    for kernel, call, reason in (
        ("separable", learned, "-slope"),
        ("separable", replace(fixed, causal=False), "causal attention is needed"),
        ("toeplitz", replace(fixed, shift=None), "positions that grow by one"),
        ("toeplitz", replace(fixed, dropout=0.5), "no dropout"),
        ("dense", replace(fixed, dropout=0.5), "no dropout"),
        ("dense", replace(fixed, softcap=2.0), "no soft-capping"),
        ("flex", replace(fixed, dropout=0.5), "no dropout"),
        ("flex", replace(fixed, sinks=torch.zeros(4)), "sinks"),
    ):
        with pytest.raises(UnsupportedError, match=f"kernel='{kernel}' cannot run this call: .*{reason}.*'blockwise'"):
            run(call, kernel)
