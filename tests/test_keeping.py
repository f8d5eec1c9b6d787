"""Hybrids chosen by calibration: what is kept computes what it did, and the order is that of the measured loss."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from pe_retrofit import ConfigError, UnsupportedError, calibrate, patch_model, status, unpatch_model
from pe_retrofit.patchers.family import find_host
from pe_retrofit.retrofit import CalibrateOptions
from pe_retrofit.retrofit.calibration.keeping import measure_keeping, native_layers

LENGTH = 24


def options(keep: int | None = 2, **more: Any) -> CalibrateOptions:
    return CalibrateOptions(windows=3, length=LENGTH, rows=12, steps=2, keep=keep, **more)


def llama(layers: int = 4) -> Any:
    return tiny.llama(num_hidden_layers=layers)


def quiet(text: str, done: float, total: float) -> None:
    pass


def nll(model: Any, windows: Tensor) -> float:
    """By transformers' own loss."""
    with torch.no_grad():
        return sum(float(model(input_ids=w[None], labels=w[None], use_cache=False).loss) for w in windows) / len(
            windows
        )


def layer_outputs(model: Any, ids: Tensor, given: dict[int, Tensor]) -> dict[int, Tensor]:
    """Output of layers on given states, within a forward pass."""
    found: dict[int, Tensor] = {}
    handles = []
    for layer, states in given.items():
        block = find_host(model).layers[layer]
        handles.append(block.register_forward_pre_hook(lambda _, args, states=states: (states, *args[1:])))
        handles.append(block.register_forward_hook(lambda _, args, out, layer=layer: found.update({layer: out})))
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return {k: v if isinstance(v, Tensor) else v[0] for k, v in found.items()}


@pytest.mark.parametrize("spec", ["t5", "alibi", "nope"])
def test_kept_layers_compute_what_they_did(spec: str) -> None:
    model, ids = llama(), tiny.ids(2, LENGTH)
    generator = torch.Generator().manual_seed(1)
    given = {layer: torch.randn(2, LENGTH, 32, generator=generator) for layer in range(4)}
    before = layer_outputs(model, ids, given)
    found = calibrate(model, spec, tiny.ids(3, LENGTH, seed=3), options=options())
    kept = found.curve.order[:2]
    after = layer_outputs(model, ids, given)
    assert all(torch.equal(before[layer], after[layer]) == (layer in kept) for layer in range(4))
    assert {layer for p in status(model).patches for layer in p.layers} == set(range(4)) - set(kept)
    assert [fit.layer for fit in found.layers] == sorted(set(range(4)) - set(kept))
    unpatch_model(model)
    assert all(torch.equal(a, before[k]) for k, a in layer_outputs(model, ids, given).items())


def test_the_curve_is_the_loss_of_the_hybrids() -> None:
    model, windows = llama(), tiny.ids(3, LENGTH)
    stock = nll(model, windows)
    patch_model(model, "alibi")
    every = tuple(range(4))
    curve = measure_keeping(model, windows, every, [0, 1, 4], quiet)
    assert curve.measure == "perplexity"
    assert curve.original == pytest.approx(math.exp(stock), rel=1e-5)
    points = dict(curve.points)
    assert points[4] == curve.original
    assert points[0] == pytest.approx(math.exp(nll(model, windows)), rel=1e-5)
    unpatch_model(model)
    alone = []
    for layer in every:
        patch_model(model, "alibi", layers=[layer])
        alone.append(math.exp(nll(model, windows)))
        unpatch_model(model)
    assert list(curve.alone) == pytest.approx(alone, rel=1e-4)
    assert list(curve.order) == sorted(every, key=lambda layer: -alone[layer])
    patch_model(model, "alibi", layers=[layer for layer in every if layer != curve.order[0]])
    assert points[1] == pytest.approx(math.exp(nll(model, windows)), rel=1e-4)


@pytest.mark.parametrize("planted", [0, 2, 3])
def test_the_layer_that_matters_most_is_kept_first(planted: int) -> None:
    """The attention of all the others adds next to nothing; the text is what the model itself says."""
    model = llama()
    for layer, attention in enumerate(find_host(model).attentions):
        attention.o_proj.weight.data *= 3.0 if layer == planted else 1e-3
    torch.manual_seed(0)
    said = model.generate(tiny.ids(3, 2), do_sample=True, min_length=LENGTH, max_length=LENGTH, top_k=0)
    found = calibrate(model, "nope", said, options=options(1))
    assert found.curve.order[0] == planted
    worth = [abs(loss - found.curve.original) for loss in found.curve.alone]
    assert worth[planted] > 10 * max(w for n, w in enumerate(worth) if n != planted)
    assert {point["native_layers"] for point in found.to_dict()["curve"]["points"]} >= {0, 1}


def test_native_layers_leave_no_trace() -> None:
    model, ids = llama(), tiny.ids(2, LENGTH)
    with torch.no_grad():
        stock = model(input_ids=ids, use_cache=False).logits
        patch_model(model, "t5")
        patched = model(input_ids=ids, use_cache=False).logits
        with native_layers(model, range(4)):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, stock)
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, patched)


def test_some_layers_only() -> None:
    model = llama()
    found = calibrate(model, "alibi", tiny.ids(3, LENGTH), options=options(1), layers=[1, 2, 3])
    assert sorted(found.curve.order) == [1, 2, 3]
    assert {layer for p in status(model).patches for layer in p.layers} == {1, 2, 3} - {found.curve.order[0]}


def test_what_cannot_be_is_refused() -> None:
    model, ids = llama(), tiny.ids(3, LENGTH)
    for spec, keep, error, words in [
        ({"2:": "alibi", "rest": "native"}, 1, UnsupportedError, "the patch says which layers get what"),
        ("alibi", 4, ConfigError, "keep=4 must be below the 4 layers"),
    ]:
        with pytest.raises(error, match=words):
            calibrate(model, spec, ids, options=options(keep))
        assert not status(model).patched
    with pytest.raises(UnsupportedError, match="adds its positions to the input"):
        calibrate(tiny.bert(), "alibi", ids, options=options(1))


def test_a_failure_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from pe_retrofit.retrofit.calibration import keeping

    model, ids = llama(), tiny.ids(3, LENGTH)
    with torch.no_grad():
        stock = model(input_ids=ids, use_cache=False).logits

    def fail(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(keeping, "perplexity", fail)
    with pytest.raises(KeyboardInterrupt):
        calibrate(model, "t5", ids, options=options())
    assert not status(model).patched
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids, use_cache=False).logits, stock)
