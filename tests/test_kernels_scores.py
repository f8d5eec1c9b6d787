"""The skewed and the merged kernel, and CoPE in blocks, against the eager reference in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import brute
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pe_retrofit import UnsupportedError, get_encoding
from pe_retrofit.attention import blockwise, merged, skewed
from pe_retrofit.attention.call import Call
from pe_retrofit.attention.piecewise import PiecewiseRotation
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import KERNELS, choose, obstacle, run
from pe_retrofit.positions import Positions

HEADS, DIM = 6, 8
EXACT = 1e-9

SCORES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "shaw": [("shaw", {"max_distance": 4})],
    "shaw_far": [("shaw", {"max_distance": 400})],  # more rows than distances
    "transformer_xl": [("transformer_xl", {})],
    "deberta": [("deberta", {"position_buckets": 8, "max_relative_positions": 20})],
    "all": [
        ("shaw", {"max_distance": 4}),
        ("transformer_xl", {}),
        ("deberta", {"position_buckets": 8, "max_relative_positions": 20}),
    ],
}
PIECEWISE: dict[str, tuple[str, dict[str, Any]]] = {
    "self_extend": ("self_extend", {"window": 6, "group": 3}),
    "rerope": ("rerope", {"window": 9}),
    "rerope_leaky": ("rerope", {"window": 5, "leak": 2.5}),
    "lm_infinite": ("lm_infinite", {"sinks": 3, "window": 8}),
    "lm_infinite_near_limit": ("lm_infinite", {"sinks": 3, "window": 9, "limit": 5}),
    "dual_chunk": ("dual_chunk", {"chunk": 6, "context": 10}),
    "string": ("string", {"shift": 9, "local": 3}),
}
SIZES = [(1, 0), (1, 33), (5, 0), (37, 0), (23, 9), (7, 30), (64, 3)]
"""Queries and keys before them."""


def build(kind: str, *, causal: bool = True, dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    encoding = get_encoding(kind)
    made = encoding(encoding.Config(**options), tiny.shape(HEADS, DIM, causal=causal)).to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(generator=generator)
    return made


def scores(name: str, **more: Any) -> list[Any]:
    return [build(kind, **options, **more) for kind, options in SCORES[name]]


def turn_for(name: str, options: dict[str, Any] | None = None) -> PiecewiseRotation:
    kind, own = PIECEWISE[name] if options is None else (name, options)
    encoding = get_encoding(kind)
    return PiecewiseRotation(encoding(encoding.Config(**own), tiny.shape(HEADS, DIM)), brute.plain(100.0, DIM), 1.0)


def call_for(queries: int, past: int = 0, *, groups: int = 3, batch: int = 2, **more: Any) -> Call:
    return tiny.make_call(
        heads=HEADS, groups=groups, batch=batch, queries=queries, past=past, first=past, dim=DIM, **more
    )


def turned(turn: PiecewiseRotation, call: Call) -> Call:
    """The call that a kernel gets."""
    seen: list[Call] = []

    def look(given: Call) -> Tensor:
        seen.append(given)
        return given.query

    turn(call, look)
    return seen[0]


def close(found: Tensor, wanted: Tensor, tolerance: float = EXACT, rows: Tensor | None = None) -> None:
    assert torch.isfinite(found).all()
    if rows is not None:  # [b, q]
        found, wanted = found.transpose(1, 2)[rows], wanted.transpose(1, 2)[rows]
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(params=[5, 16, 512])
def skewed_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(skewed, "block_rows", lambda call: request.param)
    return request.param


@pytest.fixture(params=[4, 7, 16, 768])
def merged_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(merged, "BLOCK", request.param)
    return request.param


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The blockwise reference in blocks that divide nothing."""
    original = blockwise.block_length
    monkeypatch.setattr(blockwise, "block_length", lambda call: min(5, original(call)))


@pytest.mark.usefixtures("skewed_rows", "small_blocks")
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_skewed_and_blockwise_equal_eager(name: str, causal: bool, groups: int) -> None:
    for queries, past in SIZES if causal else [(1, 0), (37, 0)]:
        call = call_for(queries, past, groups=groups, causal=causal, scores=scores(name, causal=causal))
        assert choose(call) == "skewed"
        with torch.no_grad():
            wanted = eager_attention(call)[0]
            close(KERNELS["skewed"](call), wanted)
            close(KERNELS["blockwise"](call), wanted)


@pytest.mark.parametrize("name", SCORES)
def test_skewed_in_blocks_of_a_small_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skewed, "BUDGET", 1)
    call = call_for(150, 41, scores=scores(name))
    assert skewed.block_rows(call) == 64
    with torch.no_grad():
        close(KERNELS["skewed"](call), eager_attention(call)[0])


@pytest.mark.usefixtures("skewed_rows")
@pytest.mark.parametrize("name", SCORES)
def test_skewed_with_biases(name: str) -> None:
    call = call_for(37, 4, scores=scores(name), biases=[tiny.t5(HEADS, dtype=torch.float64), tiny.alibi(HEADS)])
    with torch.no_grad():
        close(KERNELS["skewed"](call), eager_attention(call)[0], 1e-6)


def padding(queries: int, past: int, left: int, *, causal: bool) -> tuple[Tensor, Tensor]:
    """bool mask ``[2, 1, q, k]``, the first row left-padded, and the query rows ``[2, q]`` that hold tokens."""
    keys = queries + past
    mask = torch.ones(2, 1, queries, keys, dtype=torch.bool)
    mask[0, ..., :left] = False
    if causal:
        mask = mask & tiny.causal_mask(queries, past)
    real = torch.ones(2, queries, dtype=torch.bool)
    real[0, : max(0, left - past)] = False
    return mask, real


def as_float(mask: Tensor, lowest: float) -> Tensor:
    return torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, lowest)


@pytest.mark.usefixtures("skewed_rows")
@pytest.mark.parametrize("kind", ["bool", "float", "inf"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("name", SCORES)
def test_skewed_with_masks(name: str, causal: bool, kind: str) -> None:
    for queries, past in ((37, 0), (9, 20), (1, 25)):
        mask, real = padding(queries, past, 6, causal=causal)
        if kind != "bool":
            lowest = torch.finfo(torch.float32).min if kind == "float" else -torch.inf
            mask = as_float(mask, lowest)
        call = call_for(queries, past, causal=causal, mask=mask, scores=scores(name, causal=causal))
        assert choose(call) == "skewed"
        with torch.no_grad():
            close(KERNELS["skewed"](call), eager_attention(call)[0], rows=real)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SCORES)
def test_skewed_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    low = call_for(37, 5, dtype=dtype, scores=[s.to(dtype) for s in scores(name)])
    wide = {n: getattr(low, n).double() for n in ("query", "key", "value")}
    high = replace(low, **wide, scores=[copy.deepcopy(s).double() for s in low.scores])
    tolerance = {torch.float32: 1e-4, torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype]
    with torch.no_grad():
        found = KERNELS["skewed"](low)
        assert found.dtype == dtype
        close(found.double(), eager_attention(high)[0], tolerance)


@pytest.mark.parametrize("rows", [3, 7])
@pytest.mark.parametrize("most", [3, 64])
def test_cope_in_blocks(rows: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates are summed over all keys between, whichever block a query is in."""
    monkeypatch.setattr(blockwise, "block_length", lambda call: rows)
    for queries, past in SIZES:
        for mask in (None, padding(queries, past, 4, causal=True)[0]):
            call = call_for(queries, past, mask=mask, scores=[build("cope", max_positions=most)])
            assert choose(call) == "blockwise"
            _, real = padding(queries, past, 4 if mask is not None else 0, causal=True)
            with torch.no_grad():
                close(KERNELS["blockwise"](call), eager_attention(call)[0], rows=real)
                for lowest in () if mask is None else (torch.finfo(torch.float32).min, -torch.inf, -1e4):
                    added = replace(call, mask=as_float(mask, lowest))
                    close(KERNELS["blockwise"](added), eager_attention(call)[0], rows=real)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("name", PIECEWISE)
def test_merged_and_blockwise_equal_eager(name: str, merged_rows: int) -> None:
    for groups in (1, 3):
        for queries, past in ((12, 0), (61, 0), (23, 17), (7, 40)):
            call = turned(turn_for(name), call_for(queries, past, groups=groups))
            assert len(call.pieces) > 1
            assert choose(call) == "merged"
            with torch.no_grad():
                wanted = eager_attention(call)[0]
                close(KERNELS["merged"](call), wanted)
                close(KERNELS["blockwise"](call), wanted)


@pytest.mark.parametrize("name", PIECEWISE)
def test_one_query_is_one_plain_call(name: str) -> None:
    """Each key is turned by its own distance; the eager reference of the pieces agrees."""
    turn, call = turn_for(name), call_for(12, 40)
    last = replace(
        call,
        query=call.query[:, :, -1:],
        query_positions=call.query_positions[:, -1:],
        limit=None,
        shift=51,
        first=51,
        positions=Positions(call.query_positions[:, -1:], call.key_positions, 51, True),
    )
    alone = turned(turn, last)
    assert not alone.pieces
    with torch.no_grad():
        close(eager_attention(alone)[0], eager_attention(turned(turn, call))[0][:, :, -1:], 1e-5)
        close(run(alone), eager_attention(alone)[0])


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which way the merged kernel went."""
    taken: list[str] = []

    def watch(name: str, own: Callable[[Call], Any]) -> None:
        def spy(call: Call) -> Any:
            taken.append(name)
            return own(call)

        monkeypatch.setattr(merged, name, spy)

    watch("_interval_parts", merged._interval_parts)
    watch("_masked_parts", merged._masked_parts)
    return taken


def test_merged_splits_wide_ranges_from_their_edges(path: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With few rows and many keys most pairs are computed without a mask."""
    monkeypatch.setattr(merged, "BLOCK", 8)
    call = turned(turn_for("self_extend", {"window": 30, "group": 3}), call_for(100))
    with torch.no_grad():
        close(KERNELS["merged"](call), eager_attention(call)[0])
    assert path == ["_interval_parts"]
    parts = merged._interval_parts(call)
    assert {part.piece for part in parts} == {0, 1}
    assert any(part.mask is None for part in parts)
    assert any(part.mask is not None for part in parts)
    wide = [part for part in parts if part.mask is None]
    assert max(part.last - part.first for part in wide) >= 16


@pytest.mark.parametrize("kind", ["bool", "float", "inf"])
@pytest.mark.parametrize("name", PIECEWISE)
def test_merged_with_masks(name: str, kind: str, path: list[str], merged_rows: int) -> None:
    for queries, past in ((37, 0), (9, 30)):
        mask, real = padding(queries, past, 6, causal=True)
        index = torch.arange(queries + past)
        keys = torch.stack(((index - 6).clamp_min(0), index))
        if kind != "bool":
            mask = as_float(mask, torch.finfo(torch.float32).min if kind == "float" else -torch.inf)
        plain = call_for(queries, past, mask=mask, query_positions=keys[:, past:], key_positions=keys)
        call = turned(turn_for(name), plain)
        with torch.no_grad():
            close(KERNELS["merged"](call), eager_attention(call)[0], 1e-6, rows=real)
        assert path.pop() == "_masked_parts"


@pytest.mark.parametrize("name", PIECEWISE)
def test_merged_with_scattered_positions(name: str, path: list[str], merged_rows: int) -> None:
    """Gaps, differently in each row."""
    gaps = torch.randint(0, 4, (2, 40), generator=torch.Generator().manual_seed(2)).cumsum(1)
    where = torch.arange(40) + gaps
    call = turned(turn_for(name), call_for(40, query_positions=where, key_positions=where))
    with torch.no_grad():
        close(KERNELS["merged"](call), eager_attention(call)[0])
    assert path == ["_masked_parts"]


@pytest.mark.parametrize("name", PIECEWISE)
def test_merged_far_from_the_first_position(name: str, path: list[str]) -> None:
    """Plain positions that start at 1000, as with ``position_ids`` given: for all rows at once, or different ones."""
    for rows in (torch.zeros(1, 1), torch.zeros(2, 1), torch.tensor([[0], [7]])):
        where = torch.arange(1000, 1050)[None] + rows.long()
        call = turned(turn_for(name), call_for(50, query_positions=where, key_positions=where, shift=0))
        with torch.no_grad():
            close(KERNELS["merged"](call), eager_attention(call)[0])
        assert path.pop() == ("_masked_parts" if rows.any() else "_interval_parts")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", PIECEWISE)
def test_merged_in_other_dtypes(name: str, dtype: torch.dtype) -> None:
    low = turned(turn_for(name), call_for(61, dtype=dtype))

    def double(piece: Any) -> Any:
        return replace(piece, query=piece.query.double(), key=piece.key.double())

    wide = {n: getattr(low, n).double() for n in ("query", "key", "value")}
    high = replace(low, **wide, pieces=[double(p) for p in low.pieces])
    tolerance = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}[dtype]
    with torch.no_grad():
        found = KERNELS["merged"](low)
        assert found.dtype == dtype
        close(found.double(), eager_attention(high)[0], tolerance)


def gradients(output: Tensor, call: Call) -> list[Tensor]:
    """Of queries, keys, values and parameters."""
    weight = torch.randn(output.shape, generator=torch.Generator().manual_seed(9), dtype=output.dtype)
    tensors = [call.query, call.key, call.value]
    parameters = [p for module in [*call.scores, *call.biases] for p in module.parameters()]
    found = torch.autograd.grad((output * weight).sum(), [*tensors, *parameters])
    assert all(bool(g.abs().max() > 0) for g in found)
    return list(found)


def same_gradients(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        close(a, b)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", [*SCORES, "shaw_values", "cope"])
def test_gradients_of_scores(name: str, masked: bool, checkpointed: bool) -> None:
    if name == "shaw_values":
        made = [build("shaw", max_distance=4, values=True)]
    elif name == "cope":
        made = [build("cope", max_positions=5)]
    else:
        made = [*scores(name)]
    mask = padding(23, 4, 6, causal=True)[0] if masked else None
    biases = [tiny.t5(HEADS, dtype=torch.float64, train=True)] if name != "cope" else []
    call = call_for(23, 4, grad=True, mask=mask, scores=made, biases=biases)
    expected = "skewed" if name in SCORES else "blockwise"
    assert choose(call) == expected
    wanted = eager_attention(call)[0]
    if checkpointed:
        found = checkpoint(
            lambda q, k, v: run(replace(call, query=q, key=k, value=v)),
            call.query,
            call.key,
            call.value,
            use_reentrant=False,
        )
    else:
        found = run(call)
    if mask is None:
        close(found, wanted)
        same_gradients(gradients(found, call), gradients(wanted, call))
    else:
        real = padding(23, 4, 6, causal=True)[1][:, None, :, None]
        close(found * real, wanted * real)
        same_gradients(gradients(found * real, call), gradients(wanted * real, call))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize("name", PIECEWISE)
def test_gradients_of_pieces(name: str, checkpointed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merged, "BLOCK", 8)
    turn, call = turn_for(name), call_for(37, 4, grad=True)
    used: list[str] = []

    def attend(given: Call) -> Tensor:
        used.append(choose(given))
        return run(given)

    def output(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return turn(replace(call, query=q, key=k, value=v), attend)

    inputs = (call.query, call.key, call.value)
    found = checkpoint(output, *inputs, use_reentrant=False) if checkpointed else output(*inputs)
    wanted = turn(call, lambda c: eager_attention(c)[0])
    close(found, wanted)
    same_gradients(gradients(found, call), gradients(wanted, call))
    assert set(used) == {"merged"}


def test_gradient_to_one_of_the_inputs_only() -> None:
    call = call_for(23, scores=scores("all"))
    for module in call.scores:
        module.requires_grad_(False)
    for field in ("query", "key", "value"):
        leaf = getattr(call, field).clone().requires_grad_()
        own = replace(call, **{field: leaf})
        found, wanted = (torch.autograd.grad(f(own).square().sum(), leaf)[0] for f in (run, KERNELS["eager"]))
        close(found, wanted)


CONFIGS = {
    "self_extend": st.fixed_dictionaries({"window": st.integers(1, 30), "group": st.integers(1, 9)}),
    "rerope": st.fixed_dictionaries({"window": st.integers(1, 30), "leak": st.one_of(st.none(), st.floats(1.0, 9.0))}),
    "lm_infinite": st.fixed_dictionaries(
        {"sinks": st.integers(0, 12), "window": st.integers(1, 30), "limit": st.one_of(st.none(), st.integers(1, 30))}
    ),
    "dual_chunk": st.integers(1, 20).flatmap(
        lambda s: st.fixed_dictionaries({"chunk": st.just(s), "context": st.integers(s + 1, s + 25)})
    ),
    "string": st.integers(2, 30).flatmap(
        lambda s: st.fixed_dictionaries({"shift": st.just(s), "local": st.integers(1, s - 1)})
    ),
}


@st.composite
def rotations(draw: st.DrawFn) -> PiecewiseRotation:
    """Any piecewise encoding with any options."""
    name = draw(st.sampled_from(sorted(CONFIGS)))
    return turn_for(name, draw(CONFIGS[name]))


@settings(max_examples=150, deadline=None)
@given(turn=rotations(), length=st.integers(1, 70), origin=st.integers(0, 50))
def test_pieces_hold_every_pair_once(turn: PiecewiseRotation, length: int, origin: int) -> None:
    """Each pair with ``i >= j`` lies in exactly one piece, or for LM-Infinite in one or none; no other in any."""
    where = torch.arange(origin, origin + length)[None]
    encoding: Any = turn.encoding
    count = torch.stack([piece.covers(where, where)[0] for piece in encoding.pieces()]).sum(0)
    i, j = where[0][:, None], where[0][None]
    wanted = i >= j
    if encoding.masks:
        wanted &= (i - j < encoding.window) | (j < encoding.config.sinks)
    assert torch.equal(count, wanted.long())


@settings(max_examples=80, deadline=None)
@given(
    turn=rotations(),
    cuts=st.lists(st.integers(1, 20), min_size=1, max_size=6),
    rows=st.sampled_from([3, 16, 768]),
    groups=st.sampled_from([1, 6]),
)
def test_merged_equals_eager_and_cached_equals_uncached(
    turn: PiecewiseRotation, cuts: list[int], rows: int, groups: int
) -> None:
    before, merged.BLOCK = merged.BLOCK, rows
    try:
        with torch.no_grad():
            whole = call_for(sum(cuts), groups=groups, batch=1)
            wanted = turn(whole, lambda c: eager_attention(c)[0])
            close(turn(whole, run), wanted)
            start = 0
            for size in cuts:
                stop = start + size
                queries, keys = whole.query_positions[:, start:stop], whole.key_positions[:, :stop]
                part = replace(
                    whole,
                    query=whole.query[:, :, start:stop],
                    key=whole.key[:, :, :stop],
                    value=whole.value[:, :, :stop],
                    query_positions=queries,
                    key_positions=keys,
                    limit=None if size == 1 else start,
                    shift=start,
                    first=start,
                    positions=Positions(queries, keys, start, True),
                )
                close(turn(part, run), wanted[:, :, start:stop], 1e-5)
                start = stop
    finally:
        merged.BLOCK = before


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(SCORES)),
    queries=st.integers(1, 40),
    past=st.integers(0, 40),
    rows=st.integers(1, 40),
    causal=st.booleans(),
)
def test_skewed_equals_eager(name: str, queries: int, past: int, rows: int, causal: bool) -> None:
    before, skewed.block_rows = skewed.block_rows, lambda call: rows
    try:
        with torch.no_grad():
            call = call_for(queries, past if causal else 0, batch=1, causal=causal, scores=scores(name, causal=causal))
            close(KERNELS["skewed"](call), eager_attention(call)[0])
    finally:
        skewed.block_rows = before


@pytest.mark.parametrize(
    ("change", "kernel", "reason"),
    [
        ({"softcap": 5.0}, "skewed", "it has no soft-capping"),
        ({"sinks": torch.zeros(HEADS)}, "skewed", "it has no attention sinks"),
        ({"dropout": 0.1}, "skewed", "it has no dropout"),
        ({"shift": None}, "skewed", "positions that grow by one per token are needed"),
        ({}, "merged", "it knows no scores of queries and keys"),
        ({}, "toeplitz", "it knows no scores of queries and keys"),
        ({}, "dense", "it knows no scores of queries and keys"),
        ({}, "separable", "it knows no scores of queries and keys"),
        ({}, "flex", "it knows no scores of queries and keys"),
    ],
)
def test_calls_with_scores_a_kernel_refuses(change: dict[str, Any], kernel: str, reason: str) -> None:
    call = replace(call_for(9, scores=scores("shaw")), **change)
    assert obstacle(kernel, call) == reason
    with pytest.raises(UnsupportedError, match=f"kernel='{kernel}' cannot run this call: {reason}.*'blockwise'"):
        run(call, kernel)
    with torch.no_grad():
        assert torch.isfinite(run(call)).all()


@pytest.mark.parametrize(
    ("change", "kernel", "reason"),
    [
        ({"softcap": 5.0}, "merged", "it has no soft-capping"),
        ({"sinks": torch.zeros(HEADS)}, "merged", "it has no attention sinks"),
        ({"dropout": 0.1}, "merged", "it has no dropout"),
        ({"biases": [tiny.alibi(HEADS)]}, "merged", "it adds no biases or scores"),
        ({}, "skewed", "it knows no piecewise rotation"),
        ({}, "dense", "it knows no piecewise rotation"),
        ({}, "flex", "it knows no piecewise rotation"),
    ],
)
def test_calls_with_pieces_a_kernel_refuses(change: dict[str, Any], kernel: str, reason: str) -> None:
    call = replace(turned(turn_for("self_extend"), call_for(19)), **change)
    assert obstacle(kernel, call) == reason
    with pytest.raises(UnsupportedError, match=f"kernel='{kernel}' cannot run this call: {reason}"):
        run(call, kernel)
    with torch.no_grad():
        assert torch.isfinite(run(call)).all()


@pytest.mark.parametrize("kind", ["cope", "values"])
def test_skewed_refuses_what_is_no_score_of_the_distance(kind: str) -> None:
    made = build("cope") if kind == "cope" else build("shaw", values=True)
    call = call_for(9, scores=[made])
    with pytest.raises(UnsupportedError, match="scores of the distance, without value vectors, are needed"):
        run(call, "skewed")
