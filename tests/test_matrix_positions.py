"""Every host with every encoding: padding, packing, skips, shifts and far positions."""

from __future__ import annotations

import copy

import pytest
import torch
from matrix import GQA, PAD, Cell, cached_logits, cells, distance, logits, tokens
from transformers import AfmoeConfig, AfmoeForCausalLM

from pe_retrofit import patch_model, unpatch_model

EXACT = 1e-5
"""Relative; the models run in float64, their norms and rotations in float32."""

DECODERS = cells(lambda c: c.host.causal)
ROTATING = cells(lambda c: c.host.rotates and c.encoding.caches)


def left_padded(length: int, pads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two rows, ids, mask and positions; the first row starts with padding."""
    ids = tokens(2, length)
    mask = torch.ones_like(ids)
    ids[0, :pads], mask[0, :pads] = PAD, 0
    return ids, mask, (mask.cumsum(-1) - 1).clamp_min(0)


@pytest.mark.parametrize("cell", DECODERS)
def test_left_padded_equals_unpadded(cell: Cell) -> None:
    model, pads = cell.patched(double=cell.host.name != "gemma2"), 7
    length = cell.length - 2
    ids, mask, position_ids = left_padded(length, pads)
    offset = {"roberta": PAD + 1}.get(cell.host.name, 0)
    padded = logits(model, ids, attention_mask=mask, position_ids=position_ids + offset, use_cache=False)
    assert distance(padded[:1, pads:], logits(model, ids[:1, pads:], use_cache=False)) < EXACT
    assert distance(padded[1:], logits(model, ids[1:], use_cache=False)) < EXACT


@pytest.mark.parametrize("cell", ROTATING)
def test_left_padding_is_known_from_the_mask_alone(cell: Cell) -> None:
    """Without position_ids too, and with a cache: what generate() of another library may do."""
    model, pads = cell.patched(double=cell.host.name != "gemma2"), 5  # its eager attention: NaN for pads in float64
    ids, mask, _ = left_padded(24, pads)
    padded = logits(model, ids, attention_mask=mask, use_cache=False)
    alone = logits(model, ids[:1, pads:], use_cache=False)
    assert distance(padded[:1, pads:], alone) < EXACT
    with torch.no_grad():
        prefill = model(ids[:, :16], attention_mask=mask[:, :16], use_cache=True)
        rest = model(ids[:, 16:], attention_mask=mask, past_key_values=prefill.past_key_values).logits
    assert distance(rest[:1], alone[:, 16 - pads :]) < EXACT
    assert distance(rest, padded[:, 16:]) < EXACT


@pytest.mark.parametrize("cell", cells())
def test_right_padded_equals_unpadded(cell: Cell) -> None:
    model = cell.patched(double=True)
    ids = tokens(2, 24)
    ids[0, 15:] = PAD
    mask = (ids != PAD).long()
    padded = logits(model, ids, attention_mask=mask)
    assert distance(padded[:1, :15], logits(model, ids[:1, :15])) < EXACT
    assert distance(padded[1:], logits(model, ids[1:])) < EXACT


@pytest.mark.parametrize("cell", cells(lambda c: c.host.packs and c.host.causal))
def test_packed_equals_separate(cell: Cell) -> None:
    model = cell.patched(double=True)
    sizes = (9, 1, 17, 14)
    pieces = tokens(1, sum(sizes)).split(sizes, 1)
    position_ids = torch.cat([torch.arange(n)[None] for n in sizes], 1)
    packed = logits(model, torch.cat(pieces, 1), position_ids=position_ids, use_cache=False)
    separate = torch.cat([logits(model, piece, use_cache=False) for piece in pieces], 1)
    assert distance(packed, separate) < EXACT


def test_packed_in_a_model_that_does_not_mask_sequences_from_each_other() -> None:
    """AFMoE hands no position_ids to its masks; the bias must then be that of the positions, not of the indices."""
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "num_dense_layers": 3, "moe_intermediate_size": 16}
    model = AfmoeForCausalLM(AfmoeConfig(**GQA, **experts, head_dim=16, sliding_window=64)).eval()
    ids, position_ids = tokens(1, 24), torch.cat((torch.arange(9), torch.arange(15)))[None]
    found = []
    for kernel in ("eager", None):
        patch_model(model, "alibi", kernel=kernel)
        found.append(logits(model, ids, position_ids=position_ids, use_cache=False))
        unpatch_model(model)
    assert distance(found[1], found[0]) < EXACT


def skipped(limit: int) -> torch.Tensor:
    """int64 ``[2, 20]`` positions with gaps, different in each row, below ``limit``."""
    gaps = torch.tensor([[0] * 8 + [3] + [0] * 11, [1] + [0] * 11 + [2, 0, 0, 5] + [0] * 4])
    if limit > 100:
        gaps = gaps * 6
    return torch.arange(20)[None] + gaps.cumsum(1)


@pytest.mark.parametrize("cell", cells(lambda c: c.host.causal and c.host.packs and c.encoding.caches))
def test_skipped_positions(cell: Cell) -> None:
    """PoSE-like ids: cached and uncached agree, the eager kernel too, and the gaps are seen."""
    model, ids = cell.patched(double=True), tokens(2, 20)
    position_ids = skipped(160)
    mask = torch.ones_like(ids)  # without one, transformers takes a gap for a new sequence
    plain = logits(model, ids, attention_mask=mask, use_cache=False)
    wanted = logits(model, ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
    found = cached_logits(model, ids, [5, 1, 1, 6, 1, 1, 5], position_ids=position_ids)
    assert distance(found, wanted) < EXACT
    if cell.encoding.has_kernels:
        eager = cell.patched(double=True, kernel="eager")
        assert distance(logits(eager, ids, attention_mask=mask, position_ids=position_ids), wanted) < EXACT
    if cell.encoding.name not in ("nope", "nope_warm", "nope_gains", "cope", "fox"):
        assert distance(wanted, plain) > 1e-4


@pytest.mark.parametrize(
    "cell",
    cells(lambda c: not c.host.packs and not c.encoding.keeps and c.encoding.layers is None and c.encoding.caches),
)
def test_skipped_positions_where_the_table_is_gone(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, 20)
    position_ids, mask = skipped(160), torch.ones_like(ids)
    wanted = logits(model, ids, attention_mask=mask, position_ids=position_ids, use_cache=False)
    found = cached_logits(model, ids, [5, 1, 1, 6, 1, 1, 5], position_ids=position_ids)
    assert distance(found, wanted) < EXACT


@pytest.mark.parametrize("cell", cells(lambda c: c.relative))
def test_shift_of_all_positions_changes_nothing(cell: Cell) -> None:
    model, ids = cell.patched(double=True), tokens(2, 24)
    mask = torch.ones_like(ids)
    position_ids = torch.arange(24)[None].expand(2, -1)
    offset = PAD + 1 if cell.host.name == "roberta" else 0
    near = logits(model, ids, attention_mask=mask, position_ids=position_ids + offset)
    for shift in (1, 400):
        far = logits(model, ids, attention_mask=mask, position_ids=position_ids + offset + shift)
        assert distance(far, near) < 1e-3  # float32 angles of the rotation


@pytest.mark.parametrize("cell", cells(lambda c: not c.encoding.relative and c.host.rotates))
def test_shift_changes_absolute_encodings(cell: Cell) -> None:
    """Guards the test above: it can fail."""
    model, ids = cell.patched(double=True), tokens(2, 24)
    mask, position_ids = torch.ones_like(ids), torch.arange(24)[None]
    near = logits(model, ids, attention_mask=mask, position_ids=position_ids)
    assert distance(logits(model, ids, attention_mask=mask, position_ids=position_ids + 40), near) > 1e-3


def far_positions(kind: str) -> torch.Tensor:
    """int64 ``[1, 40]`` up to 131071: neighbours far out, or spread over the whole range."""
    if kind == "neighbours":
        return torch.arange(131072 - 40, 131072)[None]
    return torch.linspace(0, 131071, 40).round().long()[None]


@pytest.mark.parametrize("kind", ["neighbours", "spread"])
@pytest.mark.parametrize(
    "cell",
    cells(
        lambda c: (
            c.host.name in ("llama", "mistral", "stablelm", "gpt_neox", "bert", "bert_decoder")
            and "learned" not in c.encoding.name
            and (c.host.rotates or not c.encoding.keeps)
        )
    ),
)
def test_bfloat16_is_as_good_far_out_as_near(cell: Cell, kind: str) -> None:
    """Positions must not pass through bfloat16, which tells apart no neighbours beyond 256."""
    model, ids = cell.patched().bfloat16(), tokens(1, 40)
    wide = copy.deepcopy(model).float()
    inputs = {"attention_mask": torch.ones_like(ids)}
    near, far = torch.arange(40)[None], far_positions(kind)
    noise = distance(logits(model, ids, position_ids=near, **inputs), logits(wide, ids, position_ids=near, **inputs))
    found = distance(logits(model, ids, position_ids=far, **inputs), logits(wide, ids, position_ids=far, **inputs))
    most = 0.2 if cell.encoding.score == "content" else 0.1  # a rounded query counts other keys
    assert found < max(3 * noise, most)


@pytest.mark.parametrize("cell", cells())
def test_embeddings_instead_of_ids(cell: Cell) -> None:
    model, ids = cell.patched(), tokens(2, cell.length)
    wanted = logits(model, ids)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(ids)
    assert distance(logits(model, inputs_embeds=embeddings), wanted) < EXACT
