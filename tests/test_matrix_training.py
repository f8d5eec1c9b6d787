"""Every host with every encoding: gradients arrive, checkpointing changes none, and compiling changes no logit."""

from __future__ import annotations

import shutil

import pytest
import torch
from matrix import ENCODINGS, HOSTS, Cell, cells, distance, encoder_state, learned_parameters, logits, tokens
from transformers import StaticCache

COMPILED = [
    *[("llama", name) for name in ("alibi", "t5", "nope", "yarn/2", "dynamic", "sinusoidal")],
    *[("llama", name) for name in ("fope", "swan")],
    *[("llama", name) for name in ("native+shaw", "transformer_xl", "cope", "self_extend")],
    *[("bert", "deberta"), ("gemma3", "dual_chunk")],
    *[("gemma3", "native+t5"), ("gpt_neox", "alibi_learnable"), ("stablelm", "alibi"), ("bert", "t5")],
]
"""Cells whose compiled forward is compared: each way of installing something once. Compiling takes seconds."""


def gradients(model: torch.nn.Module, passes: int = 1) -> dict[str, torch.Tensor]:
    """Gradients by name after ``passes`` forward passes and then one backward pass through them all."""
    model.zero_grad()
    total = torch.zeros((), dtype=model.dtype)
    for seed in range(passes):
        ids = tokens(2, 20 + 3 * seed, seed=seed)
        mask = torch.ones_like(ids)
        mask[0, -4 * seed :] = 0 if seed else 1
        state = encoder_state(model, ids, {})
        total = total + model(input_ids=ids, attention_mask=mask, **state).logits.square().mean()
    total.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("cell", cells())
def test_gradients_arrive_with_and_without_checkpointing(cell: Cell) -> None:
    """Two passes before one backward: recomputing the first must not see the positions of the second."""
    model = cell.patched(double=True)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0
    wanted = gradients(model, passes=2)
    for name, _ in learned_parameters(model):
        assert wanted[name].abs().max() > 0, f"{name} gets no gradient"

    kinds = (False, True) if cell.host.name in ("llama", "stablelm", "gpt_neox", "bert") else (False,)
    for reentrant in kinds:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
        model.enable_input_require_grads()
        found = gradients(model, passes=2)
        model.disable_input_require_grads()
        assert found.keys() == wanted.keys()
        for name, grad in wanted.items():
            size = grad.abs().max().clamp_min(1e-9)
            assert (found[name] - grad).abs().max() / size < 1e-6, f"{name}, use_reentrant={reentrant}"


@pytest.mark.parametrize(
    "cell",
    # the one number of "integer" is a step per token, too large at this learning rate
    cells(
        lambda c: (
            c.encoding.learned and c.host.name in ("llama", "gpt_neox", "electra") and c.encoding.name != "integer"
        )
    ),
)
def test_a_few_steps_of_training_lower_the_loss(cell: Cell) -> None:
    """Only what the encoding learns is trained, from where it starts."""
    model = cell.patched(fill=False).train()
    if cell.extends_table:
        trained = [model.base_model.embeddings.position_embeddings.weight]
    else:
        trained = [p for _, p in learned_parameters(model)]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    optimiser = torch.optim.Adam(trained, lr=0.05)
    ids, losses = tokens(4, 20), []
    model.eval()  # no dropout
    for _ in range(8):
        optimiser.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten())
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("host", "name"), COMPILED)
def test_compiled_equals_eager_mode(host: str, name: str) -> None:
    model, ids = ENCODINGS[name].patch(HOSTS[host].fresh()), tokens(2, 20)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    inputs = {"attention_mask": mask, **({"use_cache": False} if HOSTS[host].causal else {})}
    found, wanted = logits(compiled, ids, **inputs), logits(model, ids, **inputs)
    assert distance(found[:1, :-3], wanted[:1, :-3]) < 1e-5
    assert distance(found[1:], wanted[1:]) < 1e-5


def test_compiled_for_lengths_that_change() -> None:
    model = ENCODINGS["alibi"].patch(HOSTS["llama"].fresh())
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    for length in (20, 31, 17):
        ids = tokens(2, length)
        assert distance(logits(compiled, ids, use_cache=False), logits(model, ids, use_cache=False)) < 1e-5


@pytest.mark.parametrize("name", ["alibi", "t5", "dynamic"])
def test_compiled_decoding_with_a_static_cache(name: str) -> None:
    model, ids = ENCODINGS[name].patch(HOSTS["llama"].fresh()), tokens(2, 36)
    wanted = logits(model, ids, use_cache=False)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", dynamic=False)
    cache = StaticCache(config=model.config, max_cache_len=48)
    found = [logits(model, ids[:, :30], past_key_values=cache)]
    found += [logits(compiled, ids[:, i : i + 1], past_key_values=cache) for i in range(30, 36)]
    assert distance(torch.cat(found, 1), wanted) < 1e-5


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor generates C++, and there is no compiler here")
@pytest.mark.parametrize("name", ["alibi", "t5"])
def test_compiled_by_inductor_equals_eager_mode(name: str) -> None:
    model, ids = ENCODINGS[name].patch(HOSTS["llama"].fresh()), tokens(2, 24)
    torch._dynamo.reset()
    found = logits(torch.compile(model), ids, use_cache=False)
    assert distance(found, logits(model, ids, use_cache=False)) < 1e-5


def test_compiled_training_step_equals_eager_mode() -> None:
    model = ENCODINGS["native+t5"].patch(HOSTS["llama"].fresh())
    ids = tokens(2, 24)
    grads = []
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        run(ids, use_cache=False).logits.square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.allclose(grads[1][name], grad, atol=1e-5 * grad.abs().max().item()), name
