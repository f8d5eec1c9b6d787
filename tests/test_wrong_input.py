"""Wrong input of ``patch_model``: names, specs, layers, kernels, models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tiny
import torch

from pe_retrofit import (
    ConfigError,
    T5Config,
    UnknownEncodingError,
    UnsupportedError,
    get_encoding,
    patch_model,
    status,
)
from pe_retrofit.plan import resolve_layers


def name(value: Any) -> str:
    """The same in every process, which ``str`` is not for objects that print their address."""
    return type(value).__name__ if " at 0x" in str(value) else str(value)


@pytest.mark.parametrize(
    ("wrong", "suggestion"),
    [
        ("alibii", "'alibi'"),
        ("Yarn", "'yarn'"),
        ("ALIBI", "'alibi'"),
        ("linaer", "'linear'"),
        ("T-5", "'t5'"),
        ("long_rope", "'longrope'"),
        ("sinusoid", "'sinusoidal'"),
    ],
)
def test_unknown_names(wrong: str, suggestion: str) -> None:
    model = tiny.llama()
    for spec in (wrong, [wrong], ["native", wrong], {"name": wrong}):
        with pytest.raises(UnknownEncodingError, match=f"No encoding is called '{wrong}'.*Did you mean.*{suggestion}"):
            patch_model(model, spec)
    with pytest.raises(KeyError):
        get_encoding("nothing_like_it")
    with pytest.raises(ValueError, match="Known: alibi, ") as error:
        get_encoding("")
    assert "Did you mean" not in str(error.value)


def test_pope_is_refused_with_its_reason() -> None:
    with pytest.raises(UnsupportedError, match=r"'pope' cannot be retrofitted.*softplus.*signs"):
        patch_model(tiny.llama(), "pope")


@pytest.mark.parametrize("spec", [None, 3, 2.5, True, b"t5", {1, 2}, object(), T5Config, [None], ["t5", 4], [["t5"]]])
def test_spec_of_a_wrong_type(spec: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a name, a config object or a list of these, got "):
        patch_model(tiny.llama(), spec)


@pytest.mark.parametrize("spec", [[], ()])
def test_empty_spec(spec: Any) -> None:
    with pytest.raises(ConfigError, match="The list of encodings is empty"):
        patch_model(tiny.llama(), spec)


@pytest.mark.parametrize("spec", ["native", ["native"], ["rope"], ["native", "native"], "rope"])
def test_native_alone_changes_nothing(spec: Any) -> None:
    with pytest.raises(UnsupportedError, match="adding nothing changes nothing"):
        patch_model(tiny.llama(), spec)


@pytest.mark.parametrize("spec", [["native", "t5"], T5Config(), [T5Config(), "alibi"], {"name": "t5"}])
def test_options_beside_something_that_has_its_own(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"Options \['num_buckets'\] were given beside a list or config object"):
        patch_model(tiny.llama(), spec, num_buckets=8)


@pytest.mark.parametrize("kernel", ["fast", "", "Toeplitz", 3, True, ["eager"], b"eager"])
def test_unknown_kernel(kernel: Any) -> None:
    with pytest.raises(ConfigError, match=r"is unknown; choose one of separable, toeplitz, .*blockwise, flex, eager"):
        patch_model(tiny.llama(), "alibi", kernel=kernel)


@pytest.mark.parametrize("spec", ["linear", "nope"])
def test_kernel_without_meaning(spec: str) -> None:
    model = tiny.llama()
    with pytest.raises(UnsupportedError, match="kernel='eager' has no meaning"):
        patch_model(model, spec, kernel="eager", **({"factor": 2.0} if spec == "linear" else {}))
    assert not status(model).patched
    assert model.config.rope_parameters["rope_type"] == "default"


@pytest.mark.parametrize("model", [None, "gpt2", 3, {}, torch.zeros(2), tiny.llama])
def test_model_of_a_wrong_type(model: Any) -> None:
    with pytest.raises(TypeError, match="A transformers model is needed, got"):
        patch_model(model, "alibi")


def test_models_that_are_none_of_the_families() -> None:
    for model in (torch.nn.Linear(2, 2), torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2), 1)):
        with pytest.raises(
            UnsupportedError, match=r"fits no supported family. Supported, .*llama: .*gpt_neox: .*bert: "
        ):
            patch_model(model, "alibi")


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, [0, 1, 2, 3]),
        (2, [2]),
        (-1, [3]),
        ([3, 0], [0, 3]),
        ((1,), [1]),
        (range(0, 4, 2), [0, 2]),
        ({1, 2}, [1, 2]),
        (iter([0, -1]), [0, 3]),
        (slice(1, None, 2), [1, 3]),
        (slice(None, None, -1), [0, 1, 2, 3]),
        (slice(-2, 99), [2, 3]),
        (np.int64(2), [2]),
        (torch.tensor(2), [2]),
        (np.array([0, 3]), [0, 3]),
        ([np.int32(1), 2], [1, 2]),
        (torch.tensor([0, 3]), [0, 3]),
    ],
    ids=name,
)
def test_layers(layers: Any, expected: list[int]) -> None:
    """NumPy and torch integers are whole numbers as well as any."""
    found = resolve_layers(layers, 4)
    assert found == expected
    assert all(type(i) is int for i in found)  # they go into config.json


@pytest.mark.parametrize(
    ("layers", "error", "message"),
    [
        ([], ConfigError, "layers is empty"),
        (np.array([], dtype=int), ConfigError, "layers is empty"),
        (slice(9, None), ConfigError, "selects none of the 4 layers"),
        (4, ConfigError, r"layers \[4\] are out of range: the model has 4 layers, 0 to 3"),
        ([0, -5], ConfigError, r"layers \[-5\] are out of range"),
        ([10**30], ConfigError, "out of range"),
        ([1, 1], ConfigError, "name a layer twice"),
        ([0, -4], ConfigError, "name a layer twice"),
        (True, TypeError, "layers must be None, a slice or a list"),
        ([True], TypeError, "layers must hold whole numbers"),
        (np.array([True, False]), TypeError, "layers must hold whole numbers"),
        (torch.tensor([True]), TypeError, "layers must hold whole numbers"),
        ([1.0], TypeError, "layers must hold whole numbers"),
        (np.array([1.5]), TypeError, "layers must hold whole numbers"),
        (np.array([[0, 1]]), TypeError, "layers must hold whole numbers"),
        ([None], TypeError, "layers must hold whole numbers"),
        ("0", TypeError, "layers must be None, a slice or a list"),
        (b"0", TypeError, "layers must be None"),
        ({0: 1}, TypeError, "layers must be None"),
        (1.0, TypeError, "layers must be None"),
        (object(), TypeError, "layers must be None"),
        (slice("a", None), ConfigError, "is no slice of 4 layers: slice indices must be integers"),
        (slice(0, 4, 0), ConfigError, "is no slice of 4 layers: slice step cannot be zero"),
    ],
    ids=name,
)
def test_wrong_layers(layers: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        resolve_layers(layers, 4)


def test_a_failed_patch_leaves_nothing() -> None:
    """Whatever was wrong, the model is as it was."""
    model = tiny.llama()
    tokens = tiny.ids(1, 9)
    before, keys, config = model(tokens).logits, list(model.state_dict()), model.config.to_dict()
    for spec, options_, layers in (
        ("alibi", {"nothing": 1}, None),
        ("alibi", {}, [7]),
        ("linear", {"factor": 1e9}, None),
        ("longrope", {"factor": 2.0, "long_factor": [1.0]}, None),
        (["alibi", "alibi"], {}, None),
        (["yarn", "linear"], {}, None),
        (["native", "nope"], {}, None),
    ):
        with pytest.raises((ConfigError, UnsupportedError)):
            patch_model(model, spec, layers=layers, **options_)
    assert list(model.state_dict()) == keys
    assert model.config.to_dict() == config
    assert torch.equal(model(tokens).logits, before)
