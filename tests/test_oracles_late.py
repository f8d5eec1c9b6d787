"""xPos, RoPE on encoders and forget gates: float64 loops from the formulas, x-transformers and RoFormer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from matrix import HOSTS, TRAINED, distance, logits, randomise, tokens
from torch import Tensor
from x_transformers.x_transformers import RotaryEmbedding, apply_rotary_pos_emb

from pe_retrofit import RopeConfig, UnsupportedError, XposConfig, patch_model, status
from pe_retrofit.attention.late import Fixed, LateRotation
from pe_retrofit.encodings.alibi import alibi_slopes
from pe_retrofit.encodings.fox import Fox, FoxConfig
from pe_retrofit.encodings.rope import Rope
from pe_retrofit.encodings.xpos import Xpos
from pe_retrofit.sites import Block, HostShape

D, THETA = 8, 10000.0
SHAPE = HostShape(2, D, D, 16, 64, True)


def turned(vector: list[float], position: float, theta: float, width: int) -> list[float]:
    """RoPE in rotate-half layout on the first ``width`` numbers, by the formula."""
    result = list(vector)
    half = width // 2
    for m in range(half):
        angle = position * theta ** (-2 * m / width)
        a, b = vector[m], vector[m + half]
        result[m] = a * math.cos(angle) - b * math.sin(angle)
        result[m + half] = a * math.sin(angle) + b * math.cos(angle)
    return result


def xpos_score(q: list[float], k: list[float], i: int, j: int, base: float) -> float:
    """Sun et al.: each rotated component's share of the product, times ``zeta^((i - j) / base)``."""
    a, b, half, total = turned(q, i, THETA, D), turned(k, j, THETA, D), D // 2, 0.0
    for m in range(half):
        zeta = (2 * m / D + 0.4) / 1.4
        total += zeta ** ((i - j) / base) * (a[m] * b[m] + a[m + half] * b[m + half])
    return total


def xpos_scores(query: Tensor, key: Tensor, positions: Tensor, base: float) -> Tensor:
    """``q . k`` ``[h, q, k]`` by the package, query group by query group."""
    config = XposConfig(scale_base=base)
    late = LateRotation("xpos", Xpos(config, SHAPE), {"rope_theta": THETA}, 1.0)
    rows = []
    groups = late.encoding.groups(positions)[0]
    for i, group in enumerate(groups.tolist()):
        call = tiny.make_call(queries=query.shape[2], batch=1)
        call = type(call)(**{**vars(call), "query": query, "key": key, "query_positions": positions})
        call = type(call)(**{**vars(call), "key_positions": positions})
        found = late.turned(call, group)
        rows.append((found.query[0, :, i : i + 1] @ found.key[0].transpose(1, 2))[:, 0])
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("base", [512.0, 8.0])
def test_xpos_is_the_formula(base: float) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 30, D).double(), torch.randn(1, 2, 30, D).double()
    positions = (3 * torch.arange(30))[None]
    found = xpos_scores(query, key, positions, base)
    for h in range(2):
        for i in range(30):
            for j in range(i + 1):
                wanted = xpos_score(query[0, h, i].tolist(), key[0, h, j].tolist(), 3 * i, 3 * j, base)
                assert abs(found[h, i, j].item() - wanted) < 2e-5 * (1 + abs(wanted))


def test_xpos_is_that_of_x_transformers() -> None:
    """Their rotation takes pairs of neighbours, so dimension 2m + c there is m + c d/2 here."""
    torch.manual_seed(0)
    query, key = torch.randn(1, 2, 24, D), torch.randn(1, 2, 24, D)
    frequencies, scale = RotaryEmbedding(D, use_xpos=True, scale_base=512)(torch.arange(24))
    order = torch.arange(D).view(2, D // 2).t().flatten()
    theirs_q = apply_rotary_pos_emb(query[..., order], frequencies, scale)
    theirs_k = apply_rotary_pos_emb(key[..., order], frequencies, scale**-1)
    wanted = theirs_q[0] @ theirs_k[0].transpose(1, 2)
    found = xpos_scores(query, key, torch.arange(24)[None], 512.0)
    causal = torch.ones(24, 24).tril().bool()
    assert torch.allclose(found[:, causal], wanted[:, causal], atol=1e-4)


def test_xpos_stays_finite_far_out_and_decays() -> None:
    model = tiny.llama()
    patch_model(model, "xpos", scale_base=4.0)
    ids = tiny.ids(1, 300)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        assert torch.isfinite(logits(model.to(dtype), ids)).all()


def test_xpos_refuses_a_scaled_rotation() -> None:
    model = tiny.llama(rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0})
    with pytest.raises(UnsupportedError, match="already scaled"):
        patch_model(model, "xpos")


def roformer_and_bert() -> tuple[Any, Any]:
    """RoFormer, and a BERT with its weights in the order of rotate-half and no position table."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 97,
        "hidden_size": 32,
        "embedding_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": TRAINED,
        "initializer_range": 0.3,
    }
    roformer = hf.RoFormerForMaskedLM(hf.RoFormerConfig(**shape, rotary_value=False)).eval()
    shape.pop("embedding_size")
    bert = hf.BertForMaskedLM(hf.BertConfig(**shape)).eval()
    state = {name.replace("roformer.", "bert."): value for name, value in roformer.state_dict().items()}
    width = 32 // 4
    # neighbours (2m, 2m + 1) there are (m, m + d/2) here
    order = torch.cat([torch.arange(0, width, 2), torch.arange(1, width, 2)])
    rows = torch.cat([order + h * width for h in range(4)])
    for name, value in state.items():
        if ".self.query." in name or ".self.key." in name:
            state[name] = value[rows]
    missing, unexpected = bert.load_state_dict(state, strict=False)
    assert all("position" in name for name in [*missing, *unexpected])
    return roformer, bert


def test_rope_on_bert_is_roformer() -> None:
    roformer, bert = roformer_and_bert()
    ids = tokens(2, 25)
    mask = torch.ones_like(ids)
    mask[0, -6:] = 0
    patch_model(bert, "rope")
    for inputs in ({}, {"attention_mask": mask}):
        wanted, found = logits(roformer, ids, **inputs), logits(bert, ids, **inputs)
        assert distance(found[:, :19], wanted[:, :19]) < 1e-5


@pytest.mark.parametrize("options", [{}, {"theta": 300.0}, {"partial_rotary_factor": 0.5}, {"gate": 0.25}])
def test_rope_on_bert_is_the_formula(options: dict[str, float]) -> None:
    config = RopeConfig(**options)
    inv_freq = Rope(config, HostShape(2, D, 0, 16, 64, False)).added_inv_freq().tolist()
    late = LateRotation("rope", Fixed(inv_freq), {}, 1.0)
    call = tiny.make_call(queries=9, batch=1)
    found = late.turned(call, 0)
    d = call.query.shape[-1]
    width = int(d * config.partial_rotary_factor)
    for i in range(9):
        at = int(call.query_positions[0, i]) * config.gate
        wanted = torch.tensor(turned(call.query[0, 0, i].tolist(), at, config.theta or THETA, width))
        assert torch.allclose(found.query[0, 0, i].double(), wanted.double(), atol=1e-5)


def test_rope_reaches_beyond_the_table() -> None:
    model = HOSTS["bert"].fresh()
    patch_model(model, "rope")
    assert torch.isfinite(logits(model, tokens(1, 4 * TRAINED))).all()
    assert status(model).patches[0].encodings == "rope"


def test_rope_on_a_model_that_rotates() -> None:
    model = tiny.llama()
    patch_model(model, "rope", theta=500.0)
    assert model.config.rope_parameters["rope_theta"] == 500.0
    assert status(model).patches[0].native
    with pytest.raises(UnsupportedError, match="this model rotates already"):
        patch_model(tiny.llama(), "rope", gate=0.5)


def fox(heads: int = 4, groups: int = 2, seed: int = 0) -> tuple[Fox, Block]:
    torch.manual_seed(seed)
    module = Fox(FoxConfig(), HostShape(heads, D, D, 32, 64, True)).double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
    query, key = torch.randn(2, heads, 5, D).double(), torch.randn(2, groups, 11, D).double()
    positions = torch.arange(11)[None]
    return module, Block(query, key, positions[:, 6:], positions, True, D**-0.5, lambda: None, 6)


def test_fox_is_the_formula() -> None:
    module, block = fox()
    found = module.scores(block)
    for h in range(4):
        gates = []
        for j in range(11):
            x = float(module.weight[h] @ block.key[1, h // 2, j] + module.offset[h])
            gates.append(1 / (1 + math.exp(-x)))
        for r in range(5):
            i = 6 + r
            for j in range(i + 1):
                wanted = float(module.gate[h]) * sum(math.log(f) for f in gates[j + 1 : i + 1])
                assert abs(found[1, h, r, j].item() - wanted) < 1e-9


def test_fox_in_place_of_the_rotation_starts_as_alibi() -> None:
    ids, models = tokens(2, 40), [HOSTS["llama"].fresh().double() for _ in range(2)]
    patch_model(models[0], "alibi")
    patch_model(models[1], "fox")
    assert distance(logits(models[1], ids), logits(models[0], ids)) < 1e-6
    slopes = -torch.nn.functional.logsigmoid(models[1].model.layers[0].self_attn.position_encoding.fox.offset)
    assert torch.allclose(slopes, torch.tensor(alibi_slopes(4)).double(), atol=1e-6)


@pytest.mark.parametrize("host", ["llama", "gpt_neox"])
def test_fox_kernels_agree(host: str) -> None:
    ids, found = tokens(2, 50), {}
    for kernel in ("keyed", "blockwise", "eager"):
        model = HOSTS[host].fresh().double()
        patch_model(model, ["native", "fox"], kernel=kernel)
        randomise(model)
        found[kernel] = logits(model, ids)
    assert distance(found["keyed"], found["eager"]) < 1e-6
    assert distance(found["blockwise"], found["eager"]) < 1e-6
