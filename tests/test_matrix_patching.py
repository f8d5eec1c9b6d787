"""Every host with every encoding: what patching promises, and that it can be taken back."""

from __future__ import annotations

import copy

import pytest
import torch
from matrix import HOSTS, Cell, HostCase, cells, distance, learned_parameters, logits, tokens

from pe_retrofit import UnsupportedError, patch_model, status, unpatch_model
from pe_retrofit.patching import STATE


def state(model: torch.nn.Module) -> dict:
    """All that a model is: tensors, buffers, hooks, config, attributes of the base model."""
    base = model.base_model
    return {
        "parameters": {n: (id(p), p.requires_grad, p.detach().clone()) for n, p in model.named_parameters()},
        "buffers": {n: b.clone() for n, b in model.named_buffers()},
        "modules": {n: type(m) for n, m in model.named_modules()},
        "hooks": {
            n: (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_pre_hooks_with_kwargs))
            for n, m in model.named_modules()
        },
        "config": (type(model.config), model.config.to_dict(), model.config._attn_implementation),
        "attributes": {n: sorted(m.__dict__) for n, m in model.named_modules()},
        "trained": base.training,
    }


def same(left: object, right: object) -> bool:
    """Deep equality that knows tensors."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict):
        return isinstance(right, dict) and left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, tuple):
        return isinstance(right, tuple) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right


@pytest.mark.parametrize("cell", cells())
def test_patch_changes_what_it_says_and_is_taken_back_exactly(cell: Cell) -> None:
    model = cell.host.fresh()
    ids = tokens(2, 20)
    original, before = logits(model, ids), state(model)

    cell.patched_in_place(model)
    patched = logits(model, ids)
    report = status(model)
    assert report.patched
    assert len(report.patches) == max(1, cell.encoding.groups)
    if cell.promises_identity:
        assert torch.equal(patched, original), "the promised identity is none"
        assert report.patches[0].identity
    else:
        assert distance(patched, original) > 1e-4
        assert not report.patches[0].identity
        assert report.patches[0].max_change > 0
    assert sum(p.learned_parameters for p in report.patches) == sum(p.numel() for _, p in learned_parameters(model))
    assert bool(learned_parameters(model)) == (cell.encoding.learned and not cell.extends_table)
    assert not model.training

    unpatch_model(model)
    assert torch.equal(logits(model, ids), original)
    assert not status(model).patched
    after = state(model)
    for part, value in before.items():
        assert same(value, after[part]), f"{part} differs after unpatching"


@pytest.mark.parametrize("cell", cells(refused=True))
def test_refused_cells_say_why_and_leave_the_model_alone(cell: Cell) -> None:
    model = cell.host.fresh()
    before = state(model)
    with pytest.raises(UnsupportedError, match=cell.refusal) as caught:
        cell.patched_in_place(model)
    assert str(caught.value).rstrip().endswith("."), "an error is a full sentence"
    after = state(model)
    for part, value in before.items():
        assert same(value, after[part]), f"{part} differs after a refusal"


@pytest.mark.parametrize("cell", cells(lambda c: c.encoding.learned and not c.extends_table))
def test_random_learned_values_change_the_output(cell: Cell) -> None:
    """Guards the other tests of the matrix: what they fill in must matter."""
    model = cell.patched(fill=False)
    ids = tokens(2, 20)
    start = logits(model, ids)
    filled = cell.patched()
    assert distance(logits(filled, ids), start) > 1e-3


@pytest.mark.parametrize("cell", cells())
def test_copy_is_independent(cell: Cell) -> None:
    model = cell.patched()
    ids = tokens(2, 20)
    wanted = logits(model, ids)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin, ids), wanted)
    for _, parameter in learned_parameters(twin):
        parameter.data.add_(1.0)
    unpatch_model(twin)
    assert torch.equal(logits(twin, ids), logits(cell.host.fresh(), ids))
    assert torch.equal(logits(model, ids), wanted), "the copy shares something with the original"
    unpatch_model(model)
    assert torch.equal(logits(model, ids), logits(cell.host.fresh(), ids))


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name in ("llama", "stablelm", "gpt_neox", "bert")))
def test_second_patch_on_the_same_layers_is_refused(cell: Cell) -> None:
    model = cell.patched()
    wanted = logits(model, tokens(1, 9))
    with pytest.raises(UnsupportedError, match="already patched"):
        patch_model(model, ["native", "alibi"])
    assert torch.equal(logits(model, tokens(1, 9)), wanted)
    assert len(getattr(model.base_model, STATE)) == max(1, cell.encoding.groups)


HALVES = {
    "nope": {},
    "alibi": {},
    "yarn": {"factor": 4.0},
    "partial_rope": {"p": 0.5},
    "dynamic": {"factor": 2.0},
    "linear": {"factor": 2.0},
}


def halves(host: HostCase, encoding: str) -> list[list[int]]:
    """Two sets of layers that can be patched one after the other; those without anything to patch left out."""
    if host.native_nope and encoding != "alibi":
        return [[0], [2]]
    if host.rope_sets and encoding in ("yarn", "linear", "dynamic"):
        return [[1]]
    return [[0, 2], [1]]


def possible(host: HostCase, encoding: str) -> bool:
    """Whether a subset of the layers can be patched at all."""
    return host.rotates and not (
        (host.own_layout and encoding not in ("nope", "alibi")) or (host.own_application and encoding == "dynamic")
    )


@pytest.mark.parametrize(
    ("host", "encoding"),
    [pytest.param(h, e, id=f"{n}-{e}") for n, h in HOSTS.items() for e in HALVES if possible(h, e)],
)
def test_two_halves_make_a_whole(host: HostCase, encoding: str) -> None:
    """Patching layer by layer goes another way (hooks, own frequencies) and must end in the same model."""
    ids = tokens(2, 70)
    whole = patch_model(host.fresh(), encoding, **HALVES[encoding])
    model = host.fresh()
    for layers in halves(host, encoding):
        patch_model(model, encoding, layers=layers, **HALVES[encoding])
    assert distance(logits(model, ids), logits(whole, ids)) < 1e-5
    unpatch_model(model)
    assert torch.equal(logits(model, ids), logits(host.fresh(), ids))
