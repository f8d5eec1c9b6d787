"""``positions.resolve`` against a slow reference: a cache that holds the true positions themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import transformers as hf
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache, StaticCache

from pe_retrofit import UnsupportedError
from pe_retrofit.positions import Positions, declare, resolve

WINDOW, ROOM = 6, 64
SETTINGS = settings(max_examples=80, deadline=None)
CPU = torch.device("cpu")
KINDS = ("dynamic", "sliding", "mixed", "static", "static sliding", "static mixed")


def make_cache(kind: str) -> Any:
    """An empty cache of two layers."""
    types = {"sliding": ["sliding_attention"] * 2, "mixed": ["sliding_attention", "full_attention"]}
    config = hf.Gemma3TextConfig(
        num_hidden_layers=2,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=2,
        sliding_window=WINDOW,
        layer_types=types.get(kind.removeprefix("static").strip() or "full", ["full_attention"] * 2),
    )
    return StaticCache(config=config, max_cache_len=ROOM) if "static" in kind else DynamicCache(config=config)


@dataclass
class Truth:
    """What is known about every token so far, row by row, in plain lists."""

    rows: int
    position: list[list[int]] = field(default_factory=list)
    real: list[list[bool]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = [[] for _ in range(self.rows)]
        self.real = [[] for _ in range(self.rows)]

    def mask(self) -> Tensor:
        return torch.tensor(self.real).long()

    def keep(self, indices: list[int]) -> None:
        self.position = [list(self.position[i]) for i in indices]
        self.real = [list(self.real[i]) for i in indices]
        self.rows = len(indices)

    def crop(self, count: int) -> None:
        for row in (*self.position, *self.real):
            del row[len(row) - count :]


def run(truth: Truth, cache: Any, new: int, **given_inputs: Any) -> Positions:
    """One pass: resolve, then fill the cache with (position, is real) of each new token and compare every layer."""
    found = resolve(query_length=new, batch_size=truth.rows, device=CPU, cache=cache, **given_inputs)
    positions = torch.tensor(truth.position)[:, -new:].float()
    real = torch.tensor(truth.real)[:, -new:].float()
    check_queries(found, truth, new)
    states = torch.stack((positions, real), -1)[:, None]
    for layer in range(2):
        keys, _ = cache.update(states, states, layer)
        check_keys(found, layer, keys[:, 0, :, 0].long(), keys[:, 0, :, 1].bool(), truth, new)
    return found


def check_queries(found: Positions, truth: Truth, new: int) -> None:
    query = found.query.expand(truth.rows, -1)
    for row in range(truth.rows):
        for r in range(new):
            if truth.real[row][r - new]:
                assert int(query[row, r]) == truth.position[row][r - new]


def check_keys(found: Positions, layer: int, keys: Tensor, real: Tensor, truth: Truth, new: int) -> None:
    """Keys that are real have their position; where ``contiguous`` is claimed, distances follow from the indices."""
    ours = found.keys(layer, keys.shape[1]).expand(truth.rows, -1)
    assert torch.equal(ours[real], keys[real])
    if not found.contiguous:
        return
    shift = found.first_query - found.first_key(layer)
    for row in range(truth.rows):
        for r in range(new):
            for j in range(min(keys.shape[1], shift + r + 1)):
                if real[row, j] and truth.real[row][r - new]:
                    assert truth.position[row][r - new] - int(keys[row, j]) == shift + r - j


chunks = st.lists(st.integers(1, 9), min_size=1, max_size=5)


@SETTINGS
@given(st.sampled_from(KINDS), chunks, st.integers(1, 3))
def test_plain(kind: str, sizes: list[int], rows: int) -> None:
    """Nothing given: positions count the tokens, through every cache, in any chunks."""
    truth, cache = Truth(rows), make_cache(kind)
    for new in sizes:
        for row in range(rows):
            start = len(truth.position[row])
            truth.position[row] += range(start, start + new)
            truth.real[row] += [True] * new
        assert run(truth, cache, new).contiguous


@SETTINGS
@given(st.sampled_from(KINDS), chunks, st.data())
def test_padding_anywhere(kind: str, sizes: list[int], data: st.DataObject) -> None:
    """With a 2D mask positions count the real tokens: left, right or in between, grown over several calls."""
    rows = data.draw(st.integers(1, 3))
    truth, cache = Truth(rows), make_cache(kind)
    explicit = data.draw(st.booleans())
    for new in sizes:
        for row in range(rows):
            for _ in range(new):
                counted = sum(truth.real[row])
                truth.real[row].append(data.draw(st.booleans()))
                truth.position[row].append(counted if truth.real[row][-1] else max(counted - 1, 0))
        given_inputs: dict[str, Any] = {"attention_mask": truth.mask()}
        if explicit:  # as generate() does it: padding tokens get some position too
            ids = torch.tensor(truth.position)[:, -new:].masked_fill(truth.mask()[:, -new:] == 0, 1)
            given_inputs["position_ids"] = ids
        run(truth, cache, new, **given_inputs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pad", [0, 2, 5])
def test_left_padding_stays_contiguous(kind: str, pad: int) -> None:
    """The fast kernels must not be lost to padding on the left, which is every generation in a batch."""
    truth, cache = Truth(2), make_cache(kind)
    for new in (8, 1, 3):
        for row, hidden in ((0, 0), (1, pad)):
            for _ in range(new):
                index = len(truth.real[row])
                truth.real[row].append(index >= hidden)
                truth.position[row].append(max(index - hidden, 0))
        assert run(truth, cache, new, attention_mask=truth.mask()).contiguous


@SETTINGS
@given(st.sampled_from(KINDS), chunks, st.data())
def test_positions_of_the_caller(kind: str, sizes: list[int], data: st.DataObject) -> None:
    """Skipped, repeated or resetting ``position_ids``, shared by the rows or not, are taken as they are."""
    rows, shared = data.draw(st.integers(1, 3)), data.draw(st.booleans())
    masked = data.draw(st.booleans())
    truth, cache = Truth(rows), make_cache(kind)
    for new in sizes:
        drawn = st.lists(st.integers(0, 10_000), min_size=new, max_size=new)
        first = data.draw(drawn)
        for row in range(rows):
            truth.position[row] += first if shared or row == 0 else data.draw(drawn)
            truth.real[row] += [True] * new
        ids = torch.tensor(truth.position)[: 1 if shared else rows, -new:]
        run(truth, cache, new, position_ids=ids, attention_mask=truth.mask() if masked else None)


@SETTINGS
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.booleans())
def test_packed(lengths: list[int], masks: bool) -> None:
    """Resetting positions count as contiguous only where the model keeps the sequences apart."""
    ids = torch.cat([torch.arange(n) for n in lengths])[None]
    found = resolve(query_length=ids.shape[1], batch_size=1, device=CPU, position_ids=ids, packs_by_position=masks)
    assert torch.equal(found.query, ids)
    assert torch.equal(found.keys(0, ids.shape[1]), ids)
    assert found.contiguous == (masks or len(lengths) == 1)
    mask = torch.ones_like(ids)  # with a mask of its own the model does not look at positions
    found = resolve(
        query_length=ids.shape[1],
        batch_size=1,
        device=CPU,
        position_ids=ids,
        attention_mask=mask,
        packs_by_position=masks,
    )
    assert found.contiguous == (len(lengths) == 1)


def grow(truth: Truth, new: int, style: str, data: st.DataObject) -> dict[str, Any]:
    """New tokens in one style; returns what a caller would pass."""
    for row in range(truth.rows):
        hidden = row % 3 if style == "padded" else 0
        for _ in range(new):
            index = len(truth.position[row])
            truth.real[row].append(index >= hidden)
            truth.position[row].append(max(index - hidden, 0))
    if style == "skipping":
        jump = data.draw(st.integers(1, 50))
        for row in truth.position:
            before = row[-new - 1] if len(row) > new else 0
            row[-new:] = range(before + jump, before + jump + new)
        return {"position_ids": torch.tensor(truth.position)[:1, -new:]}
    if style == "padded":
        mask = truth.mask()
        if data.draw(st.booleans()):
            ids = torch.tensor(truth.position)[:, -new:].masked_fill(mask[:, -new:] == 0, 1)
            return {"attention_mask": mask, "position_ids": ids}
        return {"attention_mask": mask}
    return {}


@SETTINGS
@given(st.sampled_from(["plain", "padded", "skipping"]), st.data())
def test_cache_operations(style: str, data: st.DataObject) -> None:
    """Cropped (assisted decoding), repeated (contrastive search), thinned and reordered (beams) between the calls."""
    truth, cache = Truth(data.draw(st.integers(1, 3))), make_cache("dynamic")
    run(truth, cache, 7, **grow(truth, 7, style, data))
    for _ in range(data.draw(st.integers(1, 4))):
        operation = data.draw(st.sampled_from(["none", "crop", "repeat", "select", "reorder"]))
        if operation == "crop":
            count = data.draw(st.integers(1, len(truth.real[0]) - 4))
            cache.crop(-count)
            truth.crop(count)
        elif operation == "repeat" and truth.rows < 7:
            times = data.draw(st.integers(2, 3))
            cache.batch_repeat_interleave(times)
            truth.keep([row for row in range(truth.rows) for _ in range(times)])
        elif operation == "select":
            chosen = data.draw(st.lists(st.integers(0, truth.rows - 1), min_size=1, max_size=truth.rows))
            cache.batch_select_indices(torch.tensor(chosen))
            truth.keep(chosen)
        elif operation == "reorder":
            order = data.draw(st.permutations(range(truth.rows)))
            cache.reorder_cache(torch.tensor(order))
            truth.keep(list(order))
        new = data.draw(st.integers(1, 4))
        for row in range(truth.rows):
            for _ in range(new):
                truth.real[row].append(True)
                truth.position[row].append(truth.position[row][-1] + 1)
        if style == "padded":
            run(truth, cache, new, attention_mask=truth.mask())
        elif style == "skipping":
            run(truth, cache, new, position_ids=torch.tensor(truth.position)[:, -new:])
        else:
            run(truth, cache, new)


@SETTINGS
@given(st.data())
def test_rows_of_different_positions_are_never_confused(data: st.DataObject) -> None:
    """Each row its own positions, then another set of rows: right, or refused; never silently wrong."""
    rows = data.draw(st.integers(2, 3))
    truth, cache = Truth(rows), make_cache("dynamic")
    for row in range(rows):
        truth.position[row] = [100 * row + n for n in range(5)]
        truth.real[row] = [True] * 5
    run(truth, cache, 5, position_ids=torch.tensor(truth.position))
    chosen = data.draw(st.lists(st.integers(0, rows - 1), min_size=1, max_size=4))
    assume(len(chosen) != rows)  # a reordering that keeps the count cannot be seen
    cache.batch_select_indices(torch.tensor(chosen))
    truth.keep(chosen)
    for row in range(truth.rows):
        truth.position[row].append(truth.position[row][-1] + 1)
        truth.real[row].append(True)
    try:
        run(truth, cache, 1, position_ids=torch.tensor(truth.position)[:, -1:])
    except UnsupportedError as error:
        assert "which row is which" in str(error)  # noqa: PT017
    else:
        pytest.fail("rows of different positions were matched by guessing")


@pytest.mark.parametrize("kind", KINDS)
def test_a_cache_filled_elsewhere(kind: str) -> None:
    """Refused, and accepted once its positions are declared."""

    def filled() -> Any:
        cache = make_cache(kind)
        states = torch.stack((torch.arange(5.0) * 3, torch.ones(5)), -1)[None, None]
        for layer in range(2):
            cache.update(states, states, layer)
        return cache

    with pytest.raises(UnsupportedError, match=r"The cache holds 5 tokens, of which this model has seen 0.*declare"):
        resolve(query_length=2, batch_size=1, device=CPU, cache=filled())
    for wrong in (torch.arange(5), torch.arange(4)[None], torch.arange(6)[None]):
        with pytest.raises(UnsupportedError, match="do not fit a cache of 5 tokens"):
            declare(filled(), wrong)
    cache = filled()
    declare(cache, (torch.arange(5) * 3)[None])
    truth = Truth(1)
    truth.position, truth.real = [[0, 3, 6, 9, 12, 13, 14]], [[True] * 7]
    run(truth, cache, 2, position_ids=torch.tensor([[13, 14]]))


def test_a_cache_that_grew_elsewhere() -> None:
    cache, truth = make_cache("dynamic"), Truth(1)
    truth.position, truth.real = [[0, 1, 2]], [[True] * 3]
    run(truth, cache, 3)
    for layer in range(2):
        cache.update(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), layer)
    with pytest.raises(UnsupportedError, match="The cache holds 5 tokens, of which this model has seen 3"):
        resolve(query_length=1, batch_size=1, device=CPU, cache=cache)


def test_encoder_decoder_cache() -> None:
    inner = make_cache("dynamic")
    truth = Truth(1)
    truth.position, truth.real = [[0, 1, 2]], [[True] * 3]
    run(truth, inner, 3)
    found = resolve(query_length=1, batch_size=1, device=CPU, cache=EncoderDecoderCache(inner, make_cache("dynamic")))
    assert found.query.tolist() == [[3]]
    assert found.keys(0, 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize("shape", [(3, 1, 4), (3, 2, 4), (1, 5), (1, 3), (1, 1, 1, 4)])
def test_wrong_position_ids(shape: tuple[int, ...]) -> None:
    ids = torch.zeros(shape, dtype=torch.long)
    with pytest.raises(UnsupportedError, match=r"position_ids of shape .* do not fit an input of 4 tokens"):
        resolve(query_length=4, batch_size=1, device=CPU, position_ids=ids)


def test_more_keys_than_tokens() -> None:
    found = resolve(query_length=4, batch_size=1, device=CPU)
    with pytest.raises(UnsupportedError, match="attends to 5 keys, but only 4 tokens were seen"):
        found.keys(0, 5)


def test_one_dimensional_position_ids() -> None:
    found = resolve(query_length=3, batch_size=2, device=CPU, position_ids=torch.tensor([4, 5, 6]))
    assert found.query.tolist() == [[4, 5, 6]]


def test_masks_of_other_shapes_are_not_counted() -> None:
    """A 4D mask says who sees whom, not who is real: positions count the tokens."""
    found = resolve(query_length=3, batch_size=1, device=CPU, attention_mask=torch.zeros(1, 1, 3, 3))
    assert found.query.tolist() == [[0, 1, 2]]


def test_a_mask_of_the_new_tokens_only() -> None:
    cache, truth = make_cache("dynamic"), Truth(1)
    truth.position, truth.real = [[0, 1, 2]], [[True] * 3]
    run(truth, cache, 3)
    with pytest.raises(UnsupportedError, match=r"attention_mask of shape \(1, 2\) does not cover all 5 tokens"):
        resolve(query_length=2, batch_size=1, device=CPU, cache=cache, attention_mask=torch.ones(1, 2))


@pytest.mark.parametrize("kind", ["static", "static mixed"])
def test_a_static_cache_used_again(kind: str) -> None:
    """After ``reset`` the old record must not show, whatever the positions were."""
    cache, truth = make_cache(kind), Truth(2)
    truth.position, truth.real = [[5, 9, 30], [1, 2, 3]], [[True] * 3] * 2
    run(truth, cache, 3, position_ids=torch.tensor(truth.position))
    cache.reset()
    truth = Truth(2)
    truth.real = [[False, True, True, True], [True] * 4]
    truth.position = [[0, 0, 1, 2], [0, 1, 2, 3]]
    run(truth, cache, 4, attention_mask=truth.mask())
    cache.reorder_cache(torch.tensor([1, 0]))
    truth.keep([1, 0])
    for row in range(2):
        truth.position[row].append(truth.position[row][-1] + 1)
        truth.real[row].append(True)
    run(truth, cache, 1, attention_mask=truth.mask())
