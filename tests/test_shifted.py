"""Shifted sparse attention against dense attention under a mask written out token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import alibi, bert, ids, llama, make_call, mistral, neox, patched, t5

from pe_retrofit.attention import grouped as module
from pe_retrofit.attention.grouped import grouped
from pe_retrofit.attention.interface import OBSERVER
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import run
from pe_retrofit.errors import ConfigError, UnsupportedError
from pe_retrofit.patchers.family import find_host
from pe_retrofit.training.shifted import shifted_sparse


def visible(length: int, group: int, *, moved: bool) -> torch.Tensor:
    """Token by token: causal, and in one group."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for i in range(length):
        for j in range(i + 1):
            one, other = (i + group // 2, j + group // 2) if moved else (i, j)
            mask[i, j] = one // group == other // group
    return mask


def brute(call: Any, group: int) -> torch.Tensor:
    """Dense attention twice, each half of the heads from the one with its mask."""
    length, heads = call.query.shape[2], call.query.shape[1]
    parts = []
    for moved in (False, True):
        mask = visible(length, group, moved=moved)[None, None]
        output = eager_attention(replace(call, mask=mask, limit=None))[0]
        parts.append(output[:, heads // 2 :] if moved else output[:, : heads // 2])
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("group", [2, 4, 12, 24])
@pytest.mark.parametrize("bias", [None, "alibi", "t5"])
@pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 2), (6, 2), (3, 1), (9, 3)])
def test_equal_to_dense_attention_under_the_mask(group: int, bias: str | None, heads: int, groups: int) -> None:
    kinds = {None: [], "alibi": [alibi], "t5": [t5]}[bias]
    call = make_call(
        biases=[kind(heads, dtype=torch.float64) for kind in kinds],
        batch=2,
        heads=heads,
        groups=groups,
        queries=24,
    )
    output = grouped(call, group, run)
    assert torch.allclose(output, brute(call, group), atol=1e-6)
    assert not torch.allclose(output, eager_attention(call)[0], atol=1e-2)


def test_far_positions_keep_their_distances() -> None:
    positions = torch.cat((torch.arange(7), torch.arange(500, 517)))[None].repeat(2, 1)
    positions[1] += torch.arange(24)
    call = make_call(
        biases=[alibi(dtype=torch.float64)], batch=2, queries=24, query_positions=positions, key_positions=positions
    )
    assert torch.allclose(grouped(call, 8, run), brute(call, 8), atol=1e-6)


def test_gradients_are_those_of_dense_attention() -> None:
    found = []
    for function in (lambda call: grouped(call, 8, run), lambda call: brute(call, 8)):
        bias = t5(dtype=torch.float64, train=True)
        call = make_call(biases=[bias], batch=2, groups=2, queries=16, grad=True)
        function(call).square().sum().backward()
        found.append([call.query.grad, call.key.grad, call.value.grad, bias.weight.grad])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


SPECS = [
    None,
    "yarn",
    "alibi",
    "t5",
    ["native", "t5"],
    "nope",
    "dynamic",
    "xpos",
    "fire",
    "kerple",
    "fox",
    "cope",
    "shaw",
    "self_extend",
]
OPTIONS: dict[Any, dict[str, Any]] = {"yarn": {"factor": 2.0}, "dynamic": {"factor": 2.0}}


def built(spec: Any, build: Any = llama) -> Any:
    model = (
        build() if spec is None else patched(spec, build, **(OPTIONS.get(spec, {}) if isinstance(spec, str) else {}))
    )
    return model.train()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_models_see_their_groups_and_no_more(spec: Any) -> None:
    """One layer, so that what reaches a token through the heads can be read off the gradients."""
    model, tokens, group, length = built(spec, lambda: llama(num_hidden_layers=1)), ids(1, 16), 8, 16
    vectors = model.get_input_embeddings()(tokens).detach().requires_grad_()
    with shifted_sparse(model, group=group):
        output = model(inputs_embeds=vectors, use_cache=False).logits
        reached = torch.stack(
            [torch.autograd.grad(output[0, i].sum(), vectors, retain_graph=True)[0][0] for i in range(length)]
        )
    seen = reached.abs().sum(-1) > 0
    union = visible(length, group, moved=False) | visible(length, group, moved=True)
    assert not (seen & ~union).any()
    assert (seen == union).float().mean() > 0.97


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_every_encoding_is_as_dense_attention_under_the_mask(spec: Any) -> None:
    model, calls = built(spec), []
    host = find_host(model)
    with shifted_sparse(model, group=8):
        for attention in host.attentions:
            setattr(attention, OBSERVER, calls.append)
        model(ids(2, 16), use_cache=False)
    assert len(calls) == 2
    for call in calls:
        assert torch.allclose(grouped(call, 8, run), brute(call, 8), atol=1e-5)


@pytest.mark.parametrize("build", [llama, neox])
@pytest.mark.parametrize("spec", [None, "alibi", "yarn"])
def test_one_group_over_all_differs_only_in_the_shifted_half(build: Any, spec: Any) -> None:
    model, tokens = built(spec, build), ids(2, 16)
    before = model.config._attn_implementation
    plain = model(tokens, use_cache=False).logits
    with shifted_sparse(model, group=16):
        whole = model(tokens, use_cache=False).logits
        assert torch.equal(model.eval()(tokens, use_cache=False).logits, plain) or torch.allclose(
            model(tokens, use_cache=False).logits, plain, atol=1e-4
        )
        model.train()
    assert torch.allclose(whole[:, :8], plain[:, :8], atol=1e-4)  # no border before the ninth token
    assert not torch.allclose(whole[:, 8:], plain[:, 8:], atol=1e-2)
    assert model.config._attn_implementation == before
    assert torch.allclose(model(tokens, use_cache=False).logits, plain, atol=1e-5)


def test_the_wrap_of_the_published_code_would_be_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def rolled(call: Any, group: int, attend: Any) -> torch.Tensor:
        heads, half = call.query.shape[1], group // 2
        plain, moved = module._heads(call, slice(0, heads // 2)), module._heads(call, slice(heads // 2, heads))
        length = call.query.shape[2]
        turned = module._folded(moved, ((half, length), (0, half)), group, attend).roll(half, dims=2)
        return torch.cat((module._folded(plain, ((0, length),), group, attend), turned), dim=1)

    call = make_call(queries=24)
    assert not torch.allclose(rolled(call, 8, run), brute(call, 8), atol=1e-3)
    assert torch.allclose(grouped(call, 8, run), brute(call, 8), atol=1e-6)


def test_gradient_checkpointing_sees_the_same_groups() -> None:
    losses = []
    for checkpointing in (False, True):
        model, tokens = built("alibi"), ids(2, 16)
        if checkpointing:
            model.gradient_checkpointing_enable()
        with shifted_sparse(model, group=8):
            model(tokens, labels=tokens, use_cache=False).loss.backward()
        losses.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*losses, strict=True))


def test_what_cannot_be_is_refused() -> None:
    model, tokens = llama().train(), ids(2, 16)
    with shifted_sparse(model, group=8):
        with pytest.raises(UnsupportedError, match="12 tokens is no multiple"):
            model(tokens[:, :12], use_cache=False)
        mask = torch.ones_like(tokens)
        model(tokens, attention_mask=mask, use_cache=False)
        mask[0, :4] = 0
        with pytest.raises(UnsupportedError, match=r"padding, packed"):
            model(tokens, attention_mask=mask, use_cache=False)
        with pytest.raises(UnsupportedError, match=r"padding, packed"):
            model(tokens, position_ids=(torch.arange(16) % 8)[None], use_cache=False)
        past = model(tokens, use_cache=True).past_key_values
        with pytest.raises(UnsupportedError, match=r"a cache|there is a mask"):
            model(tokens[:, :8], past_key_values=past)
        with pytest.raises(UnsupportedError, match="output_attentions"):
            model(tokens, output_attentions=True, use_cache=False)
    with (
        pytest.raises(UnsupportedError, match="sliding window"),
        shifted_sparse(small := mistral().train(), group=8),
    ):
        small(tokens, use_cache=False)
    with pytest.raises(UnsupportedError, match="BertModel"), shifted_sparse(bert(), group=8):
        pass
    for group in (0, 3, -2, 2.0, True):
        with pytest.raises(ConfigError, match="even"), shifted_sparse(model, group=group):  # type: ignore[arg-type]
            pass
