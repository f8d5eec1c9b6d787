"""Every host with every encoding: the kernels agree with the eager reference in float64, forward and backward."""

from __future__ import annotations

import pytest
import torch
from matrix import ENCODINGS, HOSTS, Cell, HostCase, cells, distance, encoder_state, learned_parameters, logits, tokens

from pe_retrofit import UnsupportedError
from pe_retrofit.attention import KERNELS

EXACT = 1e-6
"""Relative, in float64; norms and rotations run in float32 in both."""


def obstacle(cell: Cell, kernel: str) -> str | None:
    """A pattern of the refusal where a forced kernel cannot run a cell, or None."""
    host: HostCase = cell.host
    if kernel in ("blockwise", "eager"):
        return None
    beside = bool(cell.encoding.biases or cell.encoding.score)
    if cell.encoding.pieces and ((cell.encoding.identity and host.unfused) or (beside and host.rope_sets)):
        return "cannot run this call"  # texts of one piece, or window layers, are refused for a reason of their own
    if cell.encoding.score and kernel not in ("skewed", "keyed"):
        return "knows no scores of queries and keys"
    if cell.encoding.pieces and kernel != "merged":
        return "knows no piecewise rotation"
    if kernel == "skewed":
        return host.unfused or None if cell.encoding.score == "relative" else "scores of the distance"
    if kernel == "keyed":
        return host.unfused or None if cell.encoding.score == "general" else "scores of the key alone"
    if kernel == "merged" and not cell.encoding.pieces:
        return "piecewise rotation"
    if kernel == "merged":
        return "adds no biases|piecewise rotation" if cell.encoding.biases else host.unfused or None
    if kernel == "separable" and (not set(cell.encoding.biases) <= {"alibi"} or not host.causal):
        return rf"-slope \* distance under causal attention|{host.unfused or 'causal attention is needed'}"
    if kernel in ("toeplitz", "flex") and cell.encoding.general:
        return "depends on the distance alone"
    if kernel in ("separable", "toeplitz", "dense") and host.unfused:
        return host.unfused
    if kernel == "flex" and host.unfused == "sinks":
        return "sinks"
    return None


BIASES = cells(lambda c: c.encoding.has_kernels)


FLEX = ("llama", "gemma2", "gemma3", "gpt_oss", "gpt_neox", "bert")
"""Hosts that run FlexAttention, slow uncompiled: with groups, windows, soft-capping, sinks, and without."""


@pytest.mark.parametrize(
    ("cell", "kernel"),
    [
        pytest.param(*case.values, kernel, id=f"{case.id}-{kernel}")
        for case in BIASES
        for kernel in KERNELS
        if kernel != "eager" and (kernel != "flex" or case.values[0].host.name in FLEX)
    ],
)
@pytest.mark.usefixtures("untraced_flex")
def test_kernel_agrees_with_eager_in_float64(cell: Cell, kernel: str) -> None:
    pattern = obstacle(cell, kernel)
    ids = tokens(2, min(cell.length, 40))
    if pattern is not None:
        with pytest.raises(UnsupportedError, match=pattern):
            logits(cell.patched(double=True, kernel=kernel), ids)
        return
    wanted = logits(cell.patched(double=True, kernel="eager"), ids)
    assert distance(logits(cell.patched(double=True, kernel=kernel), ids), wanted) < EXACT


@pytest.mark.parametrize("cell", BIASES)
def test_padding_agrees_with_eager_in_float64(cell: Cell) -> None:
    ids = tokens(2, min(cell.length, 40))
    mask = torch.ones_like(ids)
    mask[0, -6:] = 0
    found = logits(cell.patched(double=True), ids, attention_mask=mask)
    wanted = logits(cell.patched(double=True, kernel="eager"), ids, attention_mask=mask)
    assert distance(found[1:], wanted[1:]) < EXACT
    assert distance(found[:1, :-6], wanted[:1, :-6]) < EXACT


@pytest.mark.parametrize("cell", BIASES)
def test_gradients_agree_with_eager_in_float64(cell: Cell) -> None:
    ids = tokens(2, 24)
    grads = []
    for kernel in (None, "eager"):
        model = cell.patched(double=True, kernel=kernel)
        model(input_ids=ids, **encoder_state(model, ids, {})).logits.square().mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert {n for n, _ in learned_parameters(model)} <= grads[0].keys()
    for name, grad in grads[0].items():
        size = grads[1][name].abs().max().clamp_min(1e-9)
        assert (grad - grads[1][name]).abs().max() / size < 1e-5, name


@pytest.mark.parametrize("cell", cells(lambda c: c.needs_positions and not c.encoding.late))
def test_attention_weights_on_request(cell: Cell) -> None:
    """Each row sums to one (less where sinks take a share), and asking changes no logit."""
    model, ids = cell.patched(double=True), tokens(2, 20)
    with torch.no_grad():
        output = model(input_ids=ids, output_attentions=True, **encoder_state(model, ids, {}))
    assert len(output.attentions) == model.config.num_hidden_layers
    for layer, weights in enumerate(output.attentions):
        assert weights is not None, f"layer {layer} returned no weights"
        assert weights.shape == (2, 4, 20, 20)
        total = weights.sum(-1)
        assert (total < 1 + 1e-6).all()
        if cell.host.unfused != "sinks":
            assert torch.allclose(total, torch.ones_like(total))
    assert distance(output.logits, logits(model, ids)) < EXACT


@pytest.mark.parametrize(
    "cell", cells(lambda c: c.encoding.late and c.encoding.name != "xpos" and c.host.name in ("llama", "gpt_neox"))
)
def test_attention_weights_of_late_rotations_are_refused(cell: Cell) -> None:
    """Where queries differ in their rotation; within the trained length they do not."""
    model = cell.patched()
    with torch.no_grad():
        weights = model(tokens(1, 8), output_attentions=True).attentions
    assert all(torch.allclose(w.sum(-1), torch.ones(())) for w in weights)
    with pytest.raises(UnsupportedError, match="output_attentions=True is not available"):
        logits(model, tokens(1, cell.length), output_attentions=True)


@pytest.mark.parametrize("cell", cells(lambda c: c.host.name == "llama" and not c.encoding.has_kernels))
def test_kernel_without_a_meaning_is_refused(cell: Cell) -> None:
    if cell.needs_positions:
        assert torch.isfinite(logits(cell.patched(kernel="eager"), tokens(1, 8))).all()
    else:
        with pytest.raises(UnsupportedError, match=r"kernel='eager' has no meaning"):
            cell.patched(kernel="eager")


@pytest.mark.parametrize("name", ["llama", "stablelm"])
def test_attention_weights_by_config(name: str) -> None:
    """A model that was told to return its attentions goes on to do so, in layers that are not patched too."""
    model = HOSTS[name].fresh()
    model.set_attn_implementation("eager")
    model.config.output_attentions = True
    ENCODINGS["alibi/2"].patch(model)
    with torch.no_grad():
        attentions = model(tokens(1, 8)).attentions
    assert [tuple(weights.shape) for weights in attentions] == [(1, 4, 8, 8)] * 3
