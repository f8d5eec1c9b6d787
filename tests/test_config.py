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
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pe_retrofit import (
    ConfigError,
    get_encoding,
    list_encodings,
    patch_model,
    status,
)
from pe_retrofit.plan import parse_spec
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


def type_of(name: str, field: str) -> str:
    """The annotation, such as ``int | None``."""
    return next(f.type for f in dataclasses.fields(config_class(name)) if f.name == field)


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
        kind = type_of(name, field)
        if "None" not in kind:
            wrong.append(None)
        if "int" in kind:
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
        ("deberta", {"max_relative_positions": 129}, r"must exceed position_buckets / 2 \+ 1 = 129"),
        ("deberta", {"position_buckets": 64, "max_relative_positions": 20}, "max_relative_positions=20 must exceed"),
        ("dual_chunk", {"chunk": 10, "context": 10}, "chunk=10 must be smaller than context=10"),
        ("string", {"shift": 128}, "local=128 must be smaller than shift=128"),
        ("string", {"shift": 9, "local": 9}, "local=9 must be smaller than shift=9"),
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


WORDS = ("log", "power", "relu", "silu")


def accepts(field: Any, value: Any) -> bool:
    """Whether a field takes a value, by itself."""
    return field.metadata["check"](value) is None


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
        elif field.name == "attn_scale":
            chosen[field.name] = draw(st.floats(0.0, 10.0))
        elif field.name in ("every", "floor_scale") or (field.name == "window" and name in ("rnope", "irope", "swan")):
            chosen[field.name] = draw(st.integers(1, 1024))
        elif field.name == "sides":
            chosen[field.name] = draw(st.sampled_from(["both", "split"]))
        elif field.name == "init":
            chosen[field.name] = draw(st.sampled_from(["tile", "interpolate", "copy_last"]))
        elif field.name == "num_buckets":
            chosen.update(num_buckets=4 * draw(st.integers(1, 1024)), max_distance=draw(st.integers(2049, 2**24)))
        elif field.name in ("long_factor", "short_factor"):
            chosen[field.name] = draw(st.lists(positive, min_size=4, max_size=4))
        elif field.name in ("max_positions", "max_distance", "original_max_position_embeddings"):
            large = draw(st.integers(2049, 2**20))
            chosen[field.name] = large if accepts(field, large) else 64
        elif field.name == "p":
            chosen[field.name] = draw(st.floats(0.0, 1.0))
        elif field.name in ("temperature", "gate"):
            signed = draw(st.floats(-10.0, 10.0))
            chosen[field.name] = signed if accepts(field, signed) else 0.5
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
        elif isinstance(current, str):
            words = [w for w in WORDS if accepts(field, w)]
            chosen[field.name] = draw(st.sampled_from(words))
        elif "int" in field.type:
            whole = 4 * draw(st.integers(1, 16))
            chosen[field.name] = whole if accepts(field, whole) else 4
        else:
            chosen[field.name] = draw(st.sampled_from([v for v in (1.0, 1.5, 2.0, 0.5) if accepts(field, v)]))
        if "None" in field.type and draw(st.booleans()):
            chosen[field.name] = None
    try:
        return config_class(name).from_options(chosen)
    except ConfigError as error:
        assume("must exceed" not in str(error) and "must be smaller" not in str(error))  # fields that contradict
        raise


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
