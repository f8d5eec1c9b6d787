"""Broken retrofits, planted: each is caught by the checks of the evaluation, by its scores, or by its verdict."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from bytetokens import ByteTokenizer

from pe_retrofit import patch_model, texts
from pe_retrofit.evaluation import evaluate_model
from pe_retrofit.evaluation.integrity import integrity
from pe_retrofit.evaluation.judging import judge
from pe_retrofit.evaluation.subject import Subject

LETTERS = b"abcdefghijklmnop"


def language(characters: int, seed: int) -> texts.Text:
    """Text in which a letter follows from the two before it, nine times out of ten: order matters."""
    rule, drawn = random.Random("rule"), random.Random(f"text {seed}")
    follows = {(a, b): rule.choice(LETTERS) for a in LETTERS for b in LETTERS}
    out = list(LETTERS[:2])
    while len(out) < characters:
        out.append(follows[out[-2], out[-1]] if drawn.random() < 0.9 else drawn.choice(LETTERS))
    return texts.Text("made", bytes(out).decode(), str(seed))


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """Weights of a small decoder with ALiBi that has learned the language."""
    model = fresh()
    body = torch.tensor(list(language(60_000, 1).content.encode()))
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(220):
        starts = torch.randint(0, len(body) - 48, (16,), generator=generator)
        ids = torch.stack([torch.cat((torch.tensor([256]), body[i : i + 47])) for i in starts])
        loss = model(input_ids=ids, labels=ids).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def fresh(weights: dict[str, Any] | None = None) -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=260, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=256, eos_token_id=257, pad_token_id=259,
    )  # fmt: skip
    model = patch_model(hf.LlamaForCausalLM(config), "alibi")
    if weights is not None:
        model.load_state_dict(weights)
    return model.eval()


def measured(model: Any, stock: Any) -> dict[str, Any]:
    options = {"perplexity": {"tail": 40, "skip": 0, "documents": 20, "sliding": False}}
    return evaluate_model(
        model, ByteTokenizer(), tasks=("perplexity",), lengths=(48, 64), text=language(4000, 2), against=stock,
        options=options,
    )  # fmt: skip


def wrong_slope_sign(model: Any) -> None:
    for layer in model.model.layers:
        bias = layer.self_attn.position_encoding["alibi"]
        right = bias.all_slopes
        bias.all_slopes = lambda right=right: -right()


def slopes_reversed(model: Any) -> None:
    for layer in model.model.layers:
        bias = layer.self_attn.position_encoding["alibi"]
        right = bias.all_slopes
        bias.all_slopes = lambda right=right: right().flip(0) * 8


def positions_twice_as_far(model: Any) -> None:
    """As where a scaling is applied that should not be."""
    for layer in model.model.layers:
        bias = layer.self_attn.position_encoding["alibi"]
        right = bias.all_slopes
        bias.all_slopes = lambda right=right: right() / 64


@pytest.mark.parametrize("plant", [wrong_slope_sign, slopes_reversed, positions_twice_as_far])
def test_wrong_slopes_cost_perplexity_beyond_doubt(trained: dict[str, Any], plant: Callable[[Any], None]) -> None:
    stock, model = fresh(trained), fresh(trained)
    plant(model)
    results = measured(model, stock)
    for cell in results["tasks"]["perplexity"]["cells"]:
        assert cell["ratio_ci95"][0] > 1.02
    whole = measured(fresh(trained), stock)
    for cell in whole["tasks"]["perplexity"]["cells"]:
        assert cell["ratio"] == 1.0
        assert cell["mean"] < 4  # it has learned something: 16 letters are equally likely a priori
    assert whole["verdict"]["short"] is True
    assert whole["verdict"]["broken"] is False
    if plant is wrong_slope_sign:
        assert results["verdict"]["short"] is False
        assert results["verdict"]["words"][0].startswith("Short context is damaged")


def sees_the_future(model: Any) -> None:
    """The mask is ignored: every token sees all."""

    def unmasked(_: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("past_key_values") is not None:
            return args, kwargs
        count = kwargs["hidden_states"].shape[1]
        return args, {**kwargs, "attention_mask": torch.zeros(1, 1, count, count)}

    for layer in model.model.layers:
        layer.self_attn.register_forward_pre_hook(unmasked, with_kwargs=True)


def ignores_padding(model: Any) -> None:
    inner = model.model.forward
    model.model.forward = lambda input_ids, use_cache=None, past_key_values=None, **_: inner(
        input_ids, use_cache=use_cache, past_key_values=past_key_values
    )


def decodes_one_position_late(model: Any) -> None:
    """Generated tokens stand one position further than they should: invisible to any score without a cache."""

    def late(_: Any, args: Any, kwargs: Any) -> Any:
        states, positions = (*args, *kwargs.values())[:2]
        return (states, positions + 1 if states.shape[1] == 1 else positions), {}

    model.model.rotary_emb.register_forward_pre_hook(late, with_kwargs=True)


PLANTS = {"causality": sees_the_future, "padding": ignores_padding, "cache": decodes_one_position_late}


@pytest.mark.parametrize("check", PLANTS)
def test_masks_and_caches_that_are_ignored_are_found(check: str) -> None:
    model = tiny.llama(vocab_size=260)
    assert all(found["ok"] for found in integrity(Subject(model, ByteTokenizer(), "whole")).values())
    PLANTS[check](model)
    found = integrity(Subject(model, ByteTokenizer(), "broken"))
    assert found[check]["ok"] is False
    assert found[check]["difference"] > 10 * found[check]["tolerance"]


def test_a_broken_model_is_called_broken_in_the_results() -> None:
    model = tiny.llama(vocab_size=260)
    sees_the_future(model)
    results = evaluate_model(model, ByteTokenizer(), tasks=("passkey",), lengths=(384,), samples=1, depths=(0.5,))
    assert results["verdict"]["broken"]
    assert results["verdict"]["words"][0].startswith("Broken (causality)")


@pytest.mark.parametrize("make", [tiny.llama, tiny.neox, tiny.mistral])
@pytest.mark.parametrize("spec", [None, "alibi", ["native", "t5"], "nope", "self_extend", "shaw", "conv", "cope"])
def test_whole_retrofits_pass_every_check(make: Any, spec: Any) -> None:
    model = make()
    if spec is not None:
        patch_model(model, spec)
    found = integrity(Subject(model, ByteTokenizer(), "whole"))
    assert {name for name, check in found.items() if check["ok"] is False} == set()
    assert found["causality"]["ok"]


def test_encoders_are_checked_for_padding() -> None:
    model = tiny.bert(vocab_size=260)
    assert integrity(Subject(model, ByteTokenizer(), "whole"))["padding"]["ok"]
    inner = model.bert.forward
    model.bert.forward = lambda *args, attention_mask=None, **kwargs: inner(*args, **kwargs)
    assert integrity(Subject(model, ByteTokenizer(), "broken"))["padding"]["ok"] is False


def rows(view: str, mine: list[float | None], stock: list[float], lengths: list[int]) -> list[dict[str, Any]]:
    return [
        {"variant": view, "length": n, "mean": a, "stock": {"mean": b}, "ratio": a / b if b else None}
        for n, a, b in zip(lengths, mine, stock, strict=True)
    ]


def test_the_verdict_tells_fluent_from_finding() -> None:
    """Low perplexity at every length and nothing found: what ALiBi is known for."""
    lengths = [1024, 4096, 16384]
    perplexity = {
        "cells": rows("fixed_tail", [20.0, 20.0, 20.1], [20.0, 19.9, 470.0], lengths)
        + rows("by_position", [20.0, 21.0, 20.0], [20.0, 20.0, 470.0], lengths)
    }
    blind = {"by_length": rows("", [1.0, 0.1, 0.0], [1.0, 1.0, 0.0], lengths)}
    found = judge({"perplexity": perplexity, "passkey": blind}, trained=8192)
    assert found["blind"] == [4096, 16384]
    assert "Blind at 4k, 16k" in found["words"][-1]
    assert found["short"] is True
    seeing = {"by_length": rows("", [1.0, 1.0, 0.95], [1.0, 1.0, 0.0], lengths)}
    found = judge({"perplexity": perplexity, "passkey": seeing}, trained=8192)
    assert found["blind"] == []
    assert found["lengths"]["16384"] == {"fluent": True, "flat": True, "retrieves": True}


def test_the_verdict_calls_flat_but_worse_what_it_is() -> None:
    """Twice stock's perplexity at every length, nothing found: flat, not fluent, and blind."""
    lengths = [1024, 16384]
    cells = rows("fixed_tail", [60.0, 61.0], [30.0, 470.0], lengths)
    blind = {"by_length": rows("", [0.0, 0.0], [1.0, 0.0], lengths)}
    found = judge({"perplexity": {"cells": cells}, "passkey": blind}, trained=8192)
    assert found["lengths"]["1024"] == {"fluent": False, "flat": True, "retrieves": False}
    assert found["blind"] == [16384]  # at the shortest length "flat" says nothing
