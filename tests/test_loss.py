"""The chunked loss against the plain formula, and a model's own loss."""

from __future__ import annotations

from typing import Any

import hosts
import pytest
import tiny
import torch
from finetuning import patched
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pe_retrofit.training import LoraOptions, add_lora
from pe_retrofit.training.heads import adapter_off, find_head, teacher_of, token_loss
from pe_retrofit.training.loss import Teacher, chunked_loss

WIDTH, WORDS = 6, 23


def plain(
    hidden: Tensor, targets: Tensor, head: Any, other: tuple[Tensor, Any] | None, weight: float, t: float, count: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The formula of the documentation, all logits at once."""
    kept = targets >= 0
    logits = head(hidden)[kept]
    entropy = -logits.softmax(-1).log()[torch.arange(len(logits)), targets[kept]].sum() / count
    distance = torch.zeros((), dtype=hidden.dtype)
    if other is not None:
        truth = (other[1](other[0])[kept] / t).softmax(-1)
        distance = (truth * (truth.log() - (logits / t).softmax(-1).log())).sum() / count
        return (1 - weight) * entropy + weight * t * t * distance, entropy, distance
    return entropy, entropy, distance


def material(n: int, seed: int, ignored: float) -> tuple[Tensor, Tensor, nn.Linear, nn.Linear, Tensor]:
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, WIDTH, generator=g, dtype=torch.float64)
    targets = torch.randint(0, WORDS, (n,), generator=g)
    targets[torch.rand(n, generator=g) < ignored] = -100
    heads = [nn.Linear(WIDTH, WORDS).double() for _ in range(2)]
    for head in heads:
        for p in head.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
    return hidden, targets, heads[0], heads[1], torch.randn(n, WIDTH, generator=g, dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 13),
    chunk=st.integers(1, 15),
    seed=st.integers(0, 99),
    ignored=st.sampled_from([0.0, 0.4]),
    weight=st.sampled_from([None, 0.3, 1.0]),
    temperature=st.sampled_from([0.5, 1.0, 3.0]),
    counted=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_formula(
    n: int, chunk: int, seed: int, ignored: float, weight: float | None, temperature: float, counted: bool
) -> None:
    hidden, targets, head, other, others = material(n, seed, ignored)
    count = 7.0 if counted else max(int((targets >= 0).sum()), 1)
    leaf, again = (hidden.clone().requires_grad_() for _ in range(2))
    parameters = tuple(head.parameters())
    teacher = None if weight is None else Teacher(others, other, weight, temperature)
    guide = None if weight is None else (others, other)
    wanted = plain(leaf, targets, head, guide, weight or 0.0, temperature, count)
    slopes = torch.autograd.grad(3 * wanted[0], [leaf, *parameters])
    found = chunked_loss(
        again, targets, head, trained=parameters, teacher=teacher, count=count if counted else None, chunk=chunk
    )
    torch.testing.assert_close(found.detach(), torch.stack(wanted).detach())
    for a, b in zip(torch.autograd.grad(3 * found[0], [again, *parameters]), slopes, strict=True):
        torch.testing.assert_close(a, b)


def test_a_wrong_temperature_or_an_ignored_label_would_be_seen() -> None:
    hidden, targets, head, other, others = material(9, 1, 0.3)
    good = chunked_loss(hidden, targets, head, teacher=Teacher(others, other, 0.5, 2.0))
    for wrong in (
        chunked_loss(hidden, targets, head, teacher=Teacher(others, other, 0.5, 2.1)),
        chunked_loss(hidden, targets.clamp_min(0), head, teacher=Teacher(others, other, 0.5, 2.0)),
        chunked_loss(hidden, targets, head, teacher=Teacher(hidden, head, 0.5, 2.0)),
    ):
        assert not torch.allclose(good, wrong, rtol=1e-4)


def test_never_more_than_a_chunk_of_logits() -> None:
    hidden, targets, head, _, _ = material(50, 2, 0.0)
    seen = []
    handle = head.register_forward_hook(lambda _, args, output: seen.append(len(output)))
    chunked_loss(hidden.requires_grad_(), targets, head, chunk=8)[0].backward()
    handle.remove()
    assert seen == [8] * 6 + [2]


def test_half_precision_states_keep_small_gradients() -> None:
    hidden, targets, head, _, _ = material(40, 3, 0.0)
    wanted = hidden.clone().requires_grad_()
    chunked_loss(wanted, targets, head)[0].backward()
    leaf = hidden.bfloat16().requires_grad_()
    chunked_loss(leaf, targets, head.bfloat16(), count=40, chunk=7)[0].backward()
    assert leaf.grad is not None
    assert wanted.grad is not None
    assert torch.nn.functional.cosine_similarity(leaf.grad.double().flatten(), wanted.grad.flatten(), 0) > 0.999


def test_no_target_at_all_is_a_loss_of_zero() -> None:
    hidden, targets, head, _, _ = material(4, 4, 0.0)
    leaf = hidden.requires_grad_()
    loss = chunked_loss(leaf, targets.fill_(-100), head)
    loss[0].backward()
    assert leaf.grad is not None
    assert loss.tolist() == [0, 0, 0]
    assert not leaf.grad.any()


def tied() -> Any:
    return tiny.llama(tie_word_embeddings=True)


@pytest.mark.parametrize("build", [tiny.llama, tied, tiny.neox, tiny.bert])
@pytest.mark.parametrize("embeddings", [False, True])
def test_the_loss_inside_the_head_is_the_models_own(build: Any, embeddings: bool) -> None:
    model = add_lora(patched(build=build), LoraOptions(r=2, embeddings=embeddings)).double().eval()
    ids = tiny.ids(2, 12)
    labels = ids.clone()
    labels[0, :5] = -100
    inputs = {"input_ids": ids, "labels": labels}
    head = find_head(model, ids)
    assert head is not None
    model(**inputs).loss.backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    found = token_loss(model, head, inputs, causal=build is not tiny.bert)
    found[0].backward()
    assert "forward" not in head.__dict__
    assert wanted
    torch.testing.assert_close(found[0].detach().double(), model(**inputs).loss.detach().double())
    for name, parameter in model.named_parameters():
        assert (name in wanted) == (parameter.grad is not None), name
        if name in wanted:
            torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-5, atol=1e-6)  # theirs is float32


def test_a_head_that_caps_its_logits_is_not_taken_apart() -> None:
    model = hosts.HOSTS["gemma2"].fresh().double()
    ids = torch.randint(3, 90, (2, 10), generator=torch.Generator().manual_seed(0))
    model.config.final_logit_softcapping = 2.0
    assert find_head(model, ids) is None
    found = token_loss(model, None, {"input_ids": ids, "labels": ids}, causal=True)
    torch.testing.assert_close(found[0].detach().double(), model(input_ids=ids, labels=ids).loss.detach().double())
    model.config.final_logit_softcapping = None
    assert find_head(model, ids) is not None


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("build", [tiny.llama, tied])
def test_the_teacher_is_the_untouched_model(whole: bool, build: Any) -> None:
    options = LoraOptions(r=2, embeddings=True, norms=True, dropout=0.3)
    model = add_lora(patched("t5", build), options).train()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    ids = tiny.ids(2, 12)
    inputs = {"input_ids": ids, "labels": ids}
    head = None if whole else find_head(model, ids)
    kept = torch.ones_like(ids, dtype=torch.bool)
    teacher = teacher_of(model, head, inputs, 0.5, 1.0)(kept)
    with torch.no_grad():
        wanted = build()(input_ids=ids).logits.flatten(0, 1)
    torch.testing.assert_close(teacher.head(teacher.hidden), wanted, rtol=0, atol=0)
    assert model.training
    assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)


def test_switching_the_adapter_off_is_what_peft_does() -> None:
    model = add_lora(patched("t5"), LoraOptions(r=2, norms=True)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    ids = tiny.ids(2, 12)
    with torch.no_grad():
        on = model(input_ids=ids).logits
        with model.disable_adapter():
            wanted = model(input_ids=ids).logits
        with adapter_off(model):
            assert torch.equal(model(input_ids=ids).logits, wanted)
        assert torch.equal(model(input_ids=ids).logits, on)
        assert not torch.equal(on, wanted)
