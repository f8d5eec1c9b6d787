"""Nothing of size heads x L x L exists, forward or backward."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pe_retrofit import patch_model
from pe_retrofit.attention import select

LENGTH, HEADS = 4096, 4
SCORES = HEADS * LENGTH * LENGTH * 4
"""Bytes of one float32 score matrix: 256 MB."""


SCORES_OF = ("shaw", "transformer_xl", "deberta", "cope")
"""Encodings whose parameters must not be zero for their kernel to run."""


class Largest(TorchDispatchMode):
    """Remembers the largest storage behind any tensor that an operation returned, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for item in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(item, torch.Tensor):
                self.bytes = max(self.bytes, item.untyped_storage().nbytes())
        return result


def largest(model: Any, *, train: bool, rows: int = 1, pad: int = 0) -> int:
    """Bytes of the largest tensor of one step at 4096 tokens."""
    tokens = tiny.ids(rows, LENGTH)
    mask = None
    if pad:
        mask = torch.ones_like(tokens)
        mask[0, :pad] = 0
    with Largest() as seen:
        if train:
            model.model(tokens, attention_mask=mask, use_cache=False).last_hidden_state.square().mean().backward()
        else:
            with torch.no_grad():
                model.model(tokens, attention_mask=mask)
    return seen.bytes


def model(spec: Any, *, fill: bool = True, **options: Any) -> Any:
    """A one-layer Llama, patched; tables filled, so that no kernel may leave them out."""
    made = tiny.llama(num_hidden_layers=1, max_position_embeddings=LENGTH)
    patch_model(made, spec, verify=False, **options)
    if fill:
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if name.endswith("t5.weight") or any(f".{score}." in name for score in SCORES_OF):
                    parameter.normal_(std=0.1)
    return made


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
@pytest.mark.parametrize(
    ("spec", "options"),
    [
        ("alibi", {}),
        ("alibi", {"learnable": True}),
        ("alibi", {"kernel": "separable"}),
        ("alibi", {"kernel": "toeplitz"}),
        ("t5", {}),
        ("t5", {"kernel": "blockwise"}),
        (["native", "t5"], {}),
        ("shaw", {}),
        ("transformer_xl", {}),
        (["native", "deberta"], {}),
        ("cope", {}),
        ("self_extend", {"window": 1024}),
        ("lm_infinite", {"window": 1000}),
        ("dual_chunk", {"chunk": 900}),
        (["self_extend", "t5"], {}),
    ],
    ids=str,
)
def test_small(spec: Any, options: dict[str, Any], train: bool) -> None:
    assert largest(model(spec, **options), train=train) < SCORES / 3


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
def test_small_when_the_table_is_frozen(train: bool) -> None:
    made = model("t5")
    for name, parameter in made.named_parameters():
        if ".position_encoding." in name:
            parameter.requires_grad_(False)
    assert largest(made, train=train) < SCORES / 3


@pytest.mark.parametrize("train", [False, True], ids=["forward", "training"])
def test_small_with_padding(train: bool) -> None:
    """transformers itself makes the padding mask ``[b, 1, L, L]``, one byte each; no head may multiply it."""
    for spec in ("alibi", "t5"):
        assert largest(model(spec), train=train, pad=100) < SCORES / 3


def test_the_reference_is_not_small() -> None:
    """The same measurement sees the scores of the reference, so the tests above can fail."""
    for spec in ("alibi", "shaw", "self_extend"):
        assert largest(model(spec, kernel="eager"), train=False) >= SCORES, spec


@pytest.mark.parametrize("spec", ["shaw", "dual_chunk"])
def test_scores_and_pieces_stay_small_with_padding(spec: str) -> None:
    assert largest(model(spec, **({"chunk": 900} if spec == "dual_chunk" else {})), train=True, pad=100) < SCORES / 3


def test_dropout_and_softcap_stay_small() -> None:
    call = tiny.make_call(
        biases=[tiny.t5(train=True)], queries=LENGTH, dim=8, dtype=torch.float32, dropout=0.1, softcap=5.0, grad=True
    )
    with Largest() as seen:
        select.run(call).sum().backward()
    assert 0 < seen.bytes < SCORES / 3
