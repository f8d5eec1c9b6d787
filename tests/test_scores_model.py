"""Score encodings and piecewise rotations in whole models: exact starts, attention weights, forced kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pe_retrofit import UnsupportedError, patch_model, status

ADDED = ["shaw", "transformer_xl", "deberta", "cope"]
SPECS: dict[str, tuple[Any, dict[str, Any]]] = {
    "native+shaw": (["native", "shaw"], {}),
    "native+deberta": (["native", "deberta"], {}),
    "cope": ("cope", {}),
    "self_extend": ("self_extend", {"window": 6, "group": 3}),
    "lm_infinite": ("lm_infinite", {"sinks": 2, "window": 8}),
    "dual_chunk": ("dual_chunk", {"chunk": 6, "context": 10}),
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("build", [tiny.llama, tiny.neox, tiny.mistral, tiny.bert])
@pytest.mark.parametrize("name", ADDED)
def test_an_added_score_starts_as_an_exact_identity(name: str, build: Callable[[], Any], grad: bool) -> None:
    """Not one bit differs, with gradients enabled too; and these reach what makes the encoding speak."""
    model, ids = build(), tiny.ids(2, 25)
    wanted = model(ids).logits.detach()
    if name == "cope" and build is tiny.bert:
        with pytest.raises(UnsupportedError, match="holds for causal attention only"):
            patch_model(model, ["native", name])
        return
    patch_model(model, ["native", name])
    assert status(model).patches[0].identity
    with torch.set_grad_enabled(grad):
        found = model(ids).logits
    assert torch.equal(found, wanted)
    if grad:
        found.square().mean().backward()
        for key, parameter in model.named_parameters():
            if ".position_encoding." in key:
                assert parameter.grad is not None, key
                silent = key.endswith("position_weight")  # v speaks through W_R alone, which is zero
                assert bool(parameter.grad.any()) != silent, key


@pytest.mark.parametrize("case", SPECS)
def test_attention_weights_are_those_that_are_used(case: str) -> None:
    """Weights times values is what the fast kernels return."""
    spec, options = SPECS[case]
    model, ids = tiny.patched(spec, **options).double(), tiny.ids(2, 26)
    seen: list[Tensor] = []
    own = model.model.layers[0].self_attn
    handle = own.register_forward_hook(lambda module, args, output: seen.append(output[0]))
    with torch.no_grad():
        plain = model(ids).logits
        handle.remove()
        output = model(ids, output_attentions=True)
        states = model.model.layers[0].input_layernorm(model.model.embed_tokens(ids))
        values = own.v_proj(states).unflatten(-1, (-1, 8)).transpose(1, 2).repeat_interleave(2, 1)
        expected = own.o_proj((output.attentions[0] @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(seen[0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.logits, plain, rtol=1e-5, atol=1e-5)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 26, dtype=torch.float64))
        assert not weights.triu(1).any()


@pytest.mark.parametrize(
    ("spec", "kernel", "reason"),
    [
        ("cope", "skewed", "scores of the distance, without value vectors, are needed"),
        ({"name": "shaw", "values": True}, "skewed", "scores of the distance, without value vectors, are needed"),
        (["native", "cope"], "skewed", "scores of the distance, without value vectors, are needed"),
        ("shaw", "toeplitz", "it knows no scores of queries and keys"),
        (["alibi", "shaw"], "dense", "it knows no scores of queries and keys"),
        ("shaw", "merged", "it knows no scores of queries and keys"),
        ("alibi", "merged", "a piecewise rotation over more tokens than its first piece holds is needed"),
        ("alibi", "skewed", "scores of the distance, without value vectors, are needed"),
        ({"name": "self_extend", "window": 6}, "skewed", "it knows no piecewise rotation"),
        ([{"name": "self_extend", "window": 6}, "t5"], "merged", "it adds no biases or scores"),
    ],
    ids=str,
)
def test_a_kernel_that_cannot_run_is_refused_when_patching(spec: Any, kernel: str, reason: str) -> None:
    model, ids = tiny.llama(), tiny.ids(1, 20)
    wanted = model(ids).logits
    with pytest.raises(UnsupportedError, match=f"kernel='{kernel}' cannot run this call: {reason}.*'blockwise'"):
        patch_model(model, spec, kernel=kernel)
    assert torch.equal(model(ids).logits, wanted)


def test_skewed_refuses_positions_with_gaps() -> None:
    model, ids = tiny.patched(["native", "shaw"], kernel="skewed"), tiny.ids(1, 20)
    where = torch.cat((torch.arange(10), torch.arange(15, 25)))[None]
    inputs = {"attention_mask": torch.ones_like(ids), "position_ids": where}
    with pytest.raises(UnsupportedError, match="positions that grow by one per token are needed"):
        model(ids, **inputs)
    assert torch.isfinite(model(ids).logits).all()
    free = tiny.patched(["native", "shaw"])
    assert torch.isfinite(free(ids, **inputs).logits).all()


@pytest.mark.parametrize("kernel", ["skewed", "blockwise", "eager"])
def test_forced_kernels_agree_in_a_model(kernel: str) -> None:
    ids = tiny.ids(2, 40)
    with torch.no_grad():
        wanted = tiny.patched(["native", "shaw"]).double()(ids).logits
        found = tiny.patched(["native", "shaw"], kernel=kernel).double()(ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-6)
