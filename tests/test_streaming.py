"""Streams: segments, likelihoods, truncated back-propagation, and what is refused."""

from __future__ import annotations

import copy
import math
from typing import Any

import matrix
import pytest
import tiny
import torch
import transformers as hf
from matrix import ENCODINGS, HOSTS, Cell, distance, logits
from test_segments import encoding_streams
from torch import Tensor
from torch.nn import functional

from pe_retrofit import ConfigError, UnsupportedError, patch_model
from pe_retrofit.streaming import SegmentCache, perplexity, segments, stream, stream_nll, train_step

KINDS = ["native", "alibi", "native+t5"]


def model_of(name: str) -> Any:
    model = tiny.llama().double()
    return model if name == "native" else ENCODINGS[name].patch(model)


def test_segments_lose_no_prediction() -> None:
    ids = torch.arange(20).view(2, 10)
    parts = list(segments(ids, length=4))
    assert [(p.start, p.stop) for p in parts] == [(0, 4), (4, 8), (8, 10)]
    assert torch.equal(torch.cat([p.input_ids for p in parts], dim=1), ids)
    assert torch.cat([p.targets for p in parts], dim=1)[1].tolist() == [11, 12, 13, 14, 15, 16, 17, 18, 19, -100]
    labels = ids.clone()
    labels[0, :7] = -100
    assert [p.targets[0].tolist() for p in segments(ids, labels, 4)] == [[-100] * 4, [-100, -100, 7, 8], [9, -100]]


@pytest.mark.parametrize("name", KINDS)
def test_likelihood_with_a_memory_of_everything(name: str) -> None:
    model, ids = model_of(name), tiny.ids(2, 50)
    scores = logits(model, ids, use_cache=False)[:, :-1].reshape(-1, tiny.VOCAB).log_softmax(-1)
    wanted = -scores.gather(1, ids[:, 1:].reshape(-1, 1)).sum().item()
    parts = list(stream_nll(model, ids, segment=8, memory=64))
    assert [(p.start, p.stop, p.tokens) for p in parts] == [(s, min(s + 8, 50), 16) for s in range(0, 48, 8)] + [
        (48, 50, 2)
    ]
    assert math.fsum(p.nll for p in parts) == pytest.approx(wanted, rel=1e-6)
    assert perplexity(parts) == pytest.approx(math.exp(wanted / 98), rel=1e-6)
    assert torch.is_grad_enabled()


def test_padding_does_not_count() -> None:
    model, ids = model_of("alibi"), tiny.ids(2, 30)
    mask = torch.ones(2, 30, dtype=torch.long)
    mask[1, :11] = 0
    padded = list(stream_nll(model, ids, 8, 64, attention_mask=mask))
    alone = [*stream_nll(model, ids[:1], 8, 64), *stream_nll(model, ids[1:, 11:], 8, 64)]
    assert sum(p.tokens for p in padded) == 29 + 18
    assert math.fsum(p.nll for p in padded) == pytest.approx(math.fsum(p.nll for p in alone), rel=1e-6)
    step = train_step(model, ids, segment=8, memory=64, attention_mask=mask)
    assert step.loss == pytest.approx(math.fsum(p.nll for p in alone) / 47, rel=1e-6)


def test_a_stream_goes_on_with_its_cache() -> None:
    model, ids = model_of("alibi"), tiny.ids(1, 60)
    whole = torch.cat([p.output.logits for p in stream(model, ids, 6, 9)], dim=1)
    cache = SegmentCache(model, 9)
    parts = [p.output.logits for p in stream(model, ids[:, :24], 6, cache=cache)]
    more = torch.ones(1, 60, dtype=torch.long)
    parts += [p.output.logits for p in stream(model, ids[:, 24:], 6, cache=cache, attention_mask=more)]
    assert distance(torch.cat(parts, dim=1), whole) < 1e-10
    with pytest.raises(ConfigError, match="must cover all tokens: 60 that the cache has seen and 5 new"):
        stream(model, ids[:, :5], 6, cache=cache, attention_mask=torch.ones(1, 5))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_each_segment_with_its_past_as_constant(name: str) -> None:
    model, ids = model_of(name), tiny.ids(2, 40)
    reference = copy.deepcopy(model)
    total = 0.0
    for start in range(0, 40, 8):
        past = hf.DynamicCache()
        if start:
            with torch.no_grad():
                reference(ids[:, :start], past_key_values=past)
        found = reference(ids[:, start : start + 8], past_key_values=past).logits
        targets = ids[:, start + 1 : start + 9]
        loss = functional.cross_entropy(
            found[:, : targets.shape[1]].flatten(0, 1), targets.flatten(), reduction="sum"
        ) / (2 * 39)
        loss.backward()
        total += loss.item()
    step = train_step(model, ids, segment=8, memory=40)
    assert step.loss == pytest.approx(total, rel=1e-6)
    assert step.tokens == 78
    assert step.cache.get_seq_length() == 40
    grown = [(p.grad, q.grad) for p, q in zip(model.parameters(), reference.parameters(), strict=True)]
    assert all(torch.allclose(p, q, rtol=1e-5, atol=1e-7) for p, q in grown if q is not None)
    assert any(q is not None and q.abs().max() > 1e-3 for _, q in grown)
    whole = copy.deepcopy(reference)
    whole.zero_grad()
    whole(ids, labels=ids, use_cache=False).loss.backward()
    difference = [
        (p.grad - q.grad).abs().max() for p, q in zip(whole.parameters(), reference.parameters(), strict=True)
    ]
    assert max(difference) > 1e-3, "back-propagation must be cut between segments"


def test_gradients_do_not_reach_earlier_segments() -> None:
    model, ids = model_of("alibi"), tiny.ids(1, 24)
    cache = SegmentCache(model, 24)
    inputs, outputs = [], []
    for start in range(0, 24, 8):
        embeddings = model.get_input_embeddings()(ids[:, start : start + 8]).detach().requires_grad_()
        inputs.append(embeddings)
        outputs.append(model(inputs_embeds=embeddings, past_key_values=cache).logits)
    outputs[-1].square().sum().backward()
    assert inputs[0].grad is None
    assert inputs[1].grad is None
    assert inputs[2].grad is not None
    assert not torch.equal(outputs[-1], model(ids[:, 16:]).logits), "the memory is used"


def test_training_learns_and_carries_the_memory() -> None:
    model = ENCODINGS["native+t5"].patch(tiny.llama(), fill=False).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = tiny.ids(1, 10).repeat(1, 8)
    losses, cache, called = [], None, 0

    def backward(loss: Tensor) -> None:
        nonlocal called
        called += 1
        loss.backward()

    for _ in range(12):
        step = train_step(model, ids, segment=20, memory=16, cache=cache, backward=backward)
        cache = step.cache
        losses.append(step.loss)
        optimiser.step()
        optimiser.zero_grad()
    assert called == 48
    assert cache.get_seq_length() == 960
    assert losses[-1] < 0.5 * losses[0]
    assert any(p.abs().max() > 0 for n, p in model.named_parameters() if "position_encoding" in n)


def test_labels_weigh_every_token_the_same() -> None:
    model, ids = model_of("native"), tiny.ids(1, 20)
    labels = ids.clone()
    labels[0, 3:17] = -100
    step = train_step(model, ids, labels, segment=5, memory=20)
    assert step.tokens == 5
    assert step.loss == pytest.approx(model(ids, labels=labels, use_cache=False).loss.item(), rel=1e-5)
    with pytest.raises(ConfigError, match="No label counts"):
        train_step(model, ids, torch.full_like(ids, -100))


@pytest.mark.parametrize("name", sorted(set(ENCODINGS)))
def test_what_streams_is_what_is_relative(name: str) -> None:
    cell = Cell(HOSTS["llama"], ENCODINGS[name])
    if cell.refusal is not None:
        pytest.skip("not on a Llama")
    model = cell.patched(fill=False)
    if encoding_streams(cell.encoding):
        SegmentCache(model, 10)
    else:
        with pytest.raises(UnsupportedError, match=r"relative|SinkCache|whole text|embeddings"):
            SegmentCache(model, 10)


def bert(**more: Any) -> Any:
    return tiny.bert("BertLMHeadModel", is_decoder=True, **more)


def test_models_without_a_past_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="attends to both sides"):
        SegmentCache(tiny.bert(), 10)
    with pytest.raises(UnsupportedError, match="add_cross_attention"):
        SegmentCache(bert(add_cross_attention=True), 10)
    with pytest.raises(UnsupportedError, match="table of positions"):
        SegmentCache(bert(), 10)
    with pytest.raises(UnsupportedError, match="table of positions"):
        SegmentCache(patch_model(bert(), ["native", "alibi"]), 10)
    with pytest.raises(UnsupportedError, match="table of positions"):
        SegmentCache(patch_model(bert(), "sinusoidal"), 10)


def test_a_bert_decoder_streams_once_its_table_is_gone() -> None:
    model = patch_model(bert().double(), "alibi")
    ids = tiny.ids(2, 3 * tiny.LENGTH)
    found = torch.cat([p.output.logits.detach() for p in stream(model, ids, 10, 1000)], dim=1)
    assert distance(found, logits(model, ids, use_cache=False)) < 1e-10


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_rotations_of_transformers_that_depend_on_the_length_are_refused(kind: str) -> None:
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    model = tiny.llama(rope_parameters=rope)
    with pytest.raises(UnsupportedError, match="length of the whole text"):
        SegmentCache(model, 10)
    SegmentCache(patch_model(model, "alibi"), 10)  # which takes the rotation away


def test_gradient_checkpointing_is_refused() -> None:
    model = model_of("alibi").train()
    model.gradient_checkpointing_enable()
    with pytest.raises(UnsupportedError, match="gradient_checkpointing_disable"):
        train_step(model, tiny.ids(1, 10))
    model.eval()
    list(stream_nll(model, tiny.ids(1, 10), 5, 5))


@pytest.mark.parametrize(("name", "value"), [("memory", -1), ("memory", 2.5), ("memory", True), ("segment", 0)])
def test_wrong_sizes_are_refused(name: str, value: Any) -> None:
    with pytest.raises(
        ConfigError, match=f"{'length' if name == 'segment' else name}={value!r} must be a whole number"
    ):
        stream(tiny.llama(), tiny.ids(1, 10), **{"segment": 4, "memory": 4, name: value})


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="must be \\[batch, tokens\\]"):
        next(segments(tiny.ids(1, 10)[0]))
    with pytest.raises(ConfigError, match="must be \\[batch, tokens\\]"):
        next(segments(tiny.ids(1, 10), tiny.ids(1, 9)))
    with pytest.raises(ConfigError, match=r"attention_mask of shape \(1, 9\)"):
        stream(tiny.llama(), tiny.ids(1, 10), attention_mask=torch.ones(1, 9))


def test_streams_reach_beyond_the_trained_length_in_all_families() -> None:
    for name in ("llama", "gpt_neox", "gemma3"):
        model = HOSTS[name].fresh()
        parts = list(stream_nll(model, matrix.tokens(1, 5 * matrix.TRAINED), 16, 16))
        assert all(math.isfinite(p.nll) for p in parts)
        assert sum(p.tokens for p in parts) == 5 * matrix.TRAINED - 1
