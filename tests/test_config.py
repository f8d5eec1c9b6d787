"""Wrong input of every kind, and the JSON form of options."""

from __future__ import annotations

import dataclasses
import json
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_retrofit import (
    ConfigError,
    T5Config,
    UnknownEncodingError,
    UnsupportedError,
    get_encoding,
    list_encodings,
    patch_model,
    status,
)
from pe_retrofit.plan import parse_spec, resolve_layers
from pe_retrofit.registry import config_from_dict

NAMES = [n for n in list_encodings() if get_encoding(n).__module__.startswith("pe_retrofit.")]
FIELDS = [(n, f.name) for n in NAMES for f in dataclasses.fields(get_encoding(n).Config)]
REQUIRED = {"factor": 2.0, "max_positions": 64}


def config_class(name: str) -> Any:
    return get_encoding(name).Config


def options(name: str) -> dict[str, Any]:
    """The least a config needs."""
    fields = dataclasses.fields(config_class(name))
    return {f.name: REQUIRED[f.name] for f in fields if f.default is dataclasses.MISSING}


def default_of(name: str, field: str) -> Any:
    config = config_class(name).from_options(options(name))
    return getattr(config, field)


NUMBERS = [math.nan, math.inf, -math.inf, -1.0, 1e300, 10**400, 10**5000, -(10**30)]
STRANGE = [
    "2",
    b"2",
    [],
    [1.0],
    {},
    (),
    object(),
    1j,
    Fraction(3, 2),
    np.float32(2.0),
    torch.tensor(2.0),
    type,
    "\x00" * 9,
]


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_wrong_values_are_refused(name: str, field: str) -> None:
    """Every field refuses what is of another kind or out of bounds, naming itself, the value and what is allowed."""
    current = default_of(name, field)
    is_list, is_flag, is_word = field.endswith("_factor") and field[:5] in ("long_", "short"), False, False
    if isinstance(current, bool):
        is_flag, wrong = True, [0, 1, "yes", None, 1.0, *STRANGE]
    elif isinstance(current, str):
        is_word, wrong = True, [0, None, True, "nonsense", "", *STRANGE]
    elif is_list:
        wrong = [
            True,
            2.0,
            "1.0",
            [],
            [math.nan],
            [1.0, math.inf],
            [True],
            ["1"],
            [0.0],
            [-1.0],
            [1e9],
            [1.0] * 5000,
            {},
        ]
    else:
        wrong = [True, False, *NUMBERS, *STRANGE]
        if not field.endswith(("max_position_embeddings", "attention_factor", "gate")):
            wrong.append(None)
        if isinstance(current, int) or "max_position" in field:
            wrong += [2.5, 64.0]
        if field in ("temperature", "gate"):
            wrong = [v for v in wrong if not (isinstance(v, float) and v == -1.0)]  # a negative number is a choice here
    for value in wrong:
        with pytest.raises(ConfigError) as error:
            config_class(name).from_options({**options(name), field: value})
        text = str(error.value)
        assert f"encoding {name!r}" in text
        assert f"- {field}=" in text
        allowed = "true or false" if is_flag else "one of" if is_word else "list of|numbers" if is_list else "between"
        assert any(word in text for word in allowed.split("|")), text
        assert len(text) < 400, "a huge value must not fill the screen"
        with pytest.raises(ConfigError, match=f"- {field}="):
            config_class(name)(**{**options(name), field: value})


@pytest.mark.parametrize("name", NAMES)
def test_unknown_options(name: str) -> None:
    good = options(name)
    with pytest.raises(ConfigError, match="'wrong_thing' is not an option"):
        config_class(name).from_options({**good, "wrong_thing": 1})
    for field in dataclasses.fields(config_class(name)):
        with pytest.raises(ConfigError, match=f"'{field.name}s' is not an option; did you mean '{field.name}'"):
            config_class(name).from_options({**good, f"{field.name}s": 1})
    for field_name in good:
        with pytest.raises(ConfigError, match=f"'{field_name}' is required"):
            config_class(name).from_options({})


def test_all_problems_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        patch_model(tiny.llama(), "yarn", factr=2.0, beta_fast="x", beta_slow=-1.0)
    text = str(error.value)
    for part in ("did you mean 'factor'", "'factor' is required", "beta_fast='x'", "beta_slow=-1.0"):
        assert part in text
    assert text.count("\n  - ") == 4
    with pytest.raises(ConfigError) as error:
        config_class("t5")(num_buckets=-1, max_distance=1.5)
    assert str(error.value).count("\n  - ") == 2


@pytest.mark.parametrize(
    ("name", "given_options", "message"),
    [
        ("yarn", {"factor": 2.0, "beta_fast": 1.0, "beta_slow": 2.0}, "beta_fast=1 must not be below beta_slow=2"),
        ("llama3", {"factor": 2.0, "low_freq_factor": 4.0}, "high_freq_factor=4 must exceed low_freq_factor=4"),
        ("t5", {"num_buckets": 30}, "must be a multiple of 4"),
        ("t5", {"num_buckets": 32, "max_distance": 16}, "must exceed num_buckets / 2 = 16"),
        ("longrope", {"factor": 2.0, "long_factor": [1.0], "short_factor": [1.0, 2.0]}, "the same length"),
    ],
)
def test_fields_that_contradict(name: str, given_options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_class(name).from_options(given_options)


@pytest.mark.parametrize("count", [1, 3, 5, 8])
def test_longrope_lists_must_fit_the_model(count: int) -> None:
    model = tiny.llama()
    for field in ("long_factor", "short_factor"):
        with pytest.raises(ConfigError, match=f"{field} has {count} entries; this model rotates 8 .* needs 4"):
            patch_model(model, "longrope", factor=2.0, **{field: [1.0] * count})
    assert not status(model).patched


@st.composite
def configs(draw: st.DrawFn) -> Any:
    """A valid config of any encoding, with any subset of its options."""
    name = draw(st.sampled_from(NAMES))
    positive = st.floats(1.0, 1000.0)
    chosen = dict(options(name))
    for field in dataclasses.fields(config_class(name)):
        if not draw(st.booleans()):
            continue
        current = default_of(name, field.name)
        if isinstance(current, bool):
            chosen[field.name] = draw(st.booleans())
        elif field.name == "sides":
            chosen[field.name] = draw(st.sampled_from(["both", "split"]))
        elif field.name == "init":
            chosen[field.name] = draw(st.sampled_from(["tile", "interpolate", "copy_last"]))
        elif field.name == "num_buckets":
            chosen.update(num_buckets=4 * draw(st.integers(1, 1024)), max_distance=draw(st.integers(2049, 2**24)))
        elif field.name in ("long_factor", "short_factor"):
            chosen[field.name] = draw(st.lists(positive, min_size=4, max_size=4))
        elif field.name in ("max_positions", "max_distance", "original_max_position_embeddings"):
            chosen[field.name] = draw(st.integers(2049, 2**20))
        elif field.name == "p":
            chosen[field.name] = draw(st.floats(0.0, 1.0))
        elif field.name in ("temperature", "gate"):
            chosen[field.name] = draw(st.floats(-10.0, 10.0))
        elif field.name == "attention_factor":
            chosen[field.name] = draw(st.floats(0.01, 100.0))
        elif field.name in ("beta_fast", "high_freq_factor"):
            chosen[field.name] = draw(st.floats(32.0, 9999.0))
        elif field.name == "beta_slow":
            chosen[field.name] = draw(st.floats(0.001, 32.0))
        elif field.name == "low_freq_factor":
            chosen[field.name] = draw(st.floats(0.01, 3.9))
        elif field.name == "base":
            chosen[field.name] = draw(st.floats(2.0, 1e9))
        else:
            chosen[field.name] = draw(positive)
    return config_class(name).from_options(chosen)


@settings(max_examples=300, deadline=None)
@given(configs())
def test_json_round_trip(config: Any) -> None:
    text = json.dumps(config.to_dict(), allow_nan=False)
    again = config_from_dict(json.loads(text))
    assert again == config
    assert type(again) is type(config)
    assert json.dumps(again.to_dict()) == text
    assert hash(again) == hash(config)
    parsed, keeps = parse_spec([{"name": "native"}, json.loads(text)], {})
    assert (parsed, keeps) == ([config], True)


def test_lists_become_tuples() -> None:
    """Two configs that say the same are the same, however they were written."""
    given_lists = config_class("longrope")(factor=2.0, long_factor=[1.0, 2.0, 3.0, 4.0])
    from_json = config_from_dict(given_lists.to_dict())
    assert given_lists == from_json
    assert hash(given_lists) == hash(from_json)
    model, other = tiny.llama(), tiny.llama()
    patch_model(model, given_lists)
    patch_model(other, from_json)
    tokens = tiny.ids(1, 2 * tiny.LENGTH)
    assert torch.equal(model(tokens).logits, other(tokens).logits)


@pytest.mark.parametrize(
    "block", [None, 3, "t5", [], {}, {"num_buckets": 8}, {"name": 3}, {"name": None}, {"name": "t5", "buckets": 3}]
)
def test_wrong_blocks(block: Any) -> None:
    with pytest.raises(ConfigError):
        config_from_dict(block)


@pytest.mark.parametrize("name", NAMES)
def test_description_names_every_option(name: str) -> None:
    rows = config_class(name).describe()
    assert [row["option"] for row in rows] == [f.name for f in dataclasses.fields(config_class(name))]
    assert all(row["help"] for row in rows)


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
    with pytest.raises(ConfigError, match="is unknown; choose one of separable, toeplitz, blockwise, flex, eager"):
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
    ids=str,
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
    ids=str,
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
