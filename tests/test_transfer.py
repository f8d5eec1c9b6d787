"""Attention transfer: each layer gets nearer to the original's attention, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pe_retrofit import ConfigError, NopeConfig, T5Config, UnsupportedError, patch_model
from pe_retrofit.installing.strength import original
from pe_retrofit.patchers.family import find_host
from pe_retrofit.retrofit import transfer as module
from pe_retrofit.retrofit.transfer import TransferOptions, transfer
from pe_retrofit.training.lora import LoraOptions, add_lora

pytestmark = pytest.mark.filterwarnings("ignore")
SHORT = TransferOptions(windows=6, length=16, steps=12, batch_size=4, learning_rate=1e-2)
T5 = T5Config(num_buckets=8, max_distance=16)
LORA = LoraOptions(r=2, target="attention", dropout=0.3)
SPECS: dict[str, Any] = {"t5": T5, "gains": [NopeConfig(gains=True), T5], "alibi": "alibi"}


def built(spec: str = "t5", lora: LoraOptions | None = LORA, build: Any = tiny.llama, dtype: Any = None) -> Any:
    model = build()
    model = model if dtype is None else model.to(dtype)
    patch_model(model, SPECS[spec])
    return model if lora is None else add_lora(model, lora)


def windows(count: int = 6) -> Tensor:
    return tiny.ids(count, 16)


def frozen(model: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def may_change(name: str) -> bool:
    position = ".position_encoding." in name and "original_module" not in name
    return position or ("lora_" in name and (".self_attn." in name or ".attention." in name))


@pytest.mark.parametrize("states", ["student", "original"])
@pytest.mark.parametrize(
    ("spec", "lora", "build"),
    [("t5", None, tiny.llama), ("gains", LORA, tiny.llama), ("alibi", LORA, tiny.neox), ("alibi", LORA, tiny.bert)],
)
def test_layers_get_nearer_and_nothing_else_changes(spec: str, lora: Any, build: Any, states: str) -> None:
    model = built(spec, lora, build).train()
    wanted = [p.requires_grad for p in model.parameters()]
    before, modes = frozen(model), [m.training for m in model.modules()]
    ids = windows()
    with torch.no_grad(), original(model.eval()):
        stock = find_host(model).base(input_ids=ids).last_hidden_state
    model.train()
    found = transfer(model, ids, TransferOptions(**{**vars(SHORT), "states": states}))
    assert [row["layer"] for row in found["layers"]] == [0, 1]
    assert all(row["after"] < row["before"] for row in found["layers"])
    assert found["tokens"] == 6 * 16
    after = model.state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed
    assert all(may_change(name) for name in changed), [n for n in changed if not may_change(n)]
    assert any(".position_encoding." in name for name in changed) == (spec != "alibi")
    assert any("lora_" in name for name in changed) == (lora is not None)
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    adapter = model.disable_adapter() if lora is not None else torch.no_grad()
    with torch.no_grad(), adapter, original(model.eval()):
        assert torch.equal(find_host(model).base(input_ids=ids).last_hidden_state, stock)


def test_a_table_is_learned_from_what_the_position_table_gave() -> None:
    """BERT's positions are in its states: only on the student's is there anything to make up for."""
    for states in ("student", "original"):
        model = built("t5", LORA, tiny.bert)
        before = frozen(model)
        rows = transfer(model, windows(), TransferOptions(**{**vars(SHORT), "states": states}))["layers"]
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert all(may_change(name) for name in changed)
        if states == "student":
            assert all(0 < row["after"] < row["before"] for row in rows)
            assert any(".position_encoding." in name for name in changed)
        else:
            assert all(row["before"] < 1e-5 for row in rows)


def attention_outputs(model: Any, ids: Tensor) -> list[Tensor]:
    """Output of each layer's attention in a forward pass."""
    host, found, handles = find_host(model), [], []
    for attention in host.attentions:
        handles.append(attention.register_forward_hook(lambda _, args, output: found.append(output[0])))
    with torch.no_grad():
        host.base(input_ids=ids)
    for handle in handles:
        handle.remove()
    return found


def test_errors_are_those_of_the_attentions_outputs() -> None:
    """Of whole forward passes: the first layers share their states, whatever the second ones got."""
    model, ids = built("t5", None), windows(4)
    with original(model):
        wanted = attention_outputs(model, ids)

    def errors() -> list[float]:
        now = attention_outputs(model, ids)
        return [float((n - w).norm() / w.norm()) for n, w in zip(now, wanted, strict=True)]

    before = errors()
    found = transfer(model, ids, TransferOptions(**{**vars(SHORT), "windows": 4}))["layers"]
    after = errors()
    assert [row["after"] for row in found] == pytest.approx(after, rel=1e-4)
    assert found[0]["before"] == pytest.approx(before[0], rel=1e-4)


def test_the_last_windows_count_too() -> None:
    """Six windows in batches of four: the rest is a batch of two."""
    seen = []
    run = module.record

    def recorded(host: Any, ids: Tensor) -> Any:
        seen.append(len(ids))
        return run(host, ids)

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "record", recorded)
    with patch.context():
        transfer(built(lora=None), windows(6), SHORT)
    patch.undo()
    assert seen == [4, 2, 4, 2]


def test_a_layer_that_gets_no_nearer_stays_as_it_was() -> None:
    for rate in (10.0, 0.0):
        model = built("gains")
        before = frozen(model)
        found = transfer(model, windows(), TransferOptions(**{**vars(SHORT), "learning_rate": rate, "steps": 3}))
        assert all(row["after"] <= row["before"] for row in found["layers"])
        for row in found["layers"]:
            if row["after"] == row["before"]:
                same = [n for n in before if f"layers.{row['layer']}." in n]
                assert all(torch.equal(model.state_dict()[n], before[n]) for n in same)
        assert rate or all(row["after"] == row["before"] for row in found["layers"])


@pytest.mark.parametrize("spec", ["t5", "gains", "alibi"])
def test_half_precision_stays_half(spec: str) -> None:
    model = built(spec, dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in model.named_parameters()}
    found = transfer(model, windows(), SHORT)
    assert {name: p.dtype for name, p in model.named_parameters()} == dtypes
    assert sum(row["after"] for row in found["layers"]) < sum(row["before"] for row in found["layers"])
    with torch.no_grad():
        assert model(input_ids=windows()).logits.isfinite().all()


def test_everything_is_put_back_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("t5", dtype=torch.bfloat16).train()
    wanted = [(p.requires_grad, p.dtype) for p in model.parameters()]
    modes = [m.training for m in model.modules()]

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_learn", fail)
    with pytest.raises(KeyboardInterrupt):
        transfer(model, windows(), SHORT)
    assert [(p.requires_grad, p.dtype) for p in model.parameters()] == wanted
    assert [m.training for m in model.modules()] == modes


def test_what_cannot_be_is_refused() -> None:
    stock = tiny.llama()
    for model in (stock, add_lora(tiny.llama(), LORA)):
        with pytest.raises(UnsupportedError, match="not patched"):
            transfer(model, windows(), SHORT)
    with pytest.raises(UnsupportedError, match="has parameters of an encoding or an adapter"):
        transfer(built("alibi", None), windows(), SHORT)
    for wrong in (windows()[0], windows().float(), windows()[:0], windows() + 100, windows() - 100, "text", None):
        with pytest.raises(ConfigError, match="Token ids must be whole numbers from 0 to 60"):
            transfer(built(), wrong, SHORT)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="batch_size=8 exceeds windows=4"):
        TransferOptions(windows=4, batch_size=8)
