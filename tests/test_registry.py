"""Encodings of other people: registered, patched, saved, loaded, refused when they are not right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brute
import pytest
import tiny
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache

from pe_retrofit import (
    BiasEncoding,
    ConfigError,
    EncodingConfig,
    EncodingInfo,
    HostShape,
    InputEncoding,
    RotationEncoding,
    UnknownEncodingError,
    UnsupportedError,
    get_encoding,
    list_encodings,
    patch_model,
    register_encoding,
    registry,
    status,
    unpatch_model,
)
from pe_retrofit.config import number

INFO = EncodingInfo(title="mine", formula="b = ...", paper="none")


@dataclass(frozen=True)
class KerpleConfig(EncodingConfig):
    """Options of a relative bias."""

    name = "my_kerple"
    start: float = number(0.5, low=0.0, high=10.0, help="starting value of both parameters")


class Kerple(BiasEncoding):
    """``-r1 ln(1 + r2 |i - j|)`` with two learned numbers per head."""

    Config = KerpleConfig
    info = INFO

    def __init__(self, config: KerpleConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.r1 = nn.Parameter(torch.full((host.num_heads,), config.start))
        self.r2 = nn.Parameter(torch.full((host.num_heads,), config.start))

    def bias(self, prepared: Tensor, *, causal: bool) -> Tensor:
        r1, r2 = (r.view(-1, *[1] * prepared.dim()) for r in (self.r1, self.r2))
        return -r1 * torch.log1p(r2 * prepared.abs())


@dataclass(frozen=True)
class FireConfig(EncodingConfig):
    """Options of a bias that is no function of the distance alone."""

    name = "my_fire"


class Fire(BiasEncoding):
    """``w_h ln(1 + |i - j|) / ln(2 + i)``: the same distance counts less later in the text."""

    Config = FireConfig
    info = EncodingInfo(title="mine", formula="b = ...", paper="none", relative=False)
    toeplitz = False

    def __init__(self, config: FireConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.weight = nn.Parameter(-torch.linspace(0.5, 3.0, host.num_heads))

    def bias_at(self, query_positions: Tensor, key_positions: Tensor, *, causal: bool) -> Tensor:
        distance = (query_positions[:, :, None] - key_positions[:, None, :]).abs()
        part = torch.log1p(distance.float()) / torch.log(2.0 + query_positions.float())[:, :, None]
        return self.weight.view(1, -1, 1, 1) * part[:, None]


@dataclass(frozen=True)
class SlowConfig(EncodingConfig):
    """Options of a rotation."""

    name = "my_slow"
    times: float = number(4.0, low=1.0, high=100.0, help="factor on the base")


class Slow(RotationEncoding):
    """A larger base, said to transformers."""

    Config = SlowConfig
    info = INFO

    def rope_parameters(self, rope: Mapping[str, Any]) -> dict[str, Any]:
        return {**self._keep(rope), "rope_type": "default", "rope_theta": rope["rope_theta"] * self.config.times}


@dataclass(frozen=True)
class RampConfig(EncodingConfig):
    """Options of an input encoding."""

    name = "my_ramp"


class Ramp(InputEncoding):
    """``direction * position / 100``."""

    Config = RampConfig
    info = EncodingInfo(title="mine", formula="x + d i", paper="none", relative=False)

    def __init__(self, config: RampConfig, host: HostShape) -> None:
        super().__init__(config, host)
        self.direction = nn.Parameter(torch.ones(host.hidden_size))

    def forward(self, position_ids: Tensor) -> Tensor:
        return position_ids[..., None] / 100 * self.direction


MINE = (Kerple, Fire, Slow, Ramp)
NAMES = [cls.Config.name for cls in MINE]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of its own for every test, with all of the above in it."""
    monkeypatch.setattr(registry, "_ENCODINGS", dict(registry._ENCODINGS))
    for cls in MINE:
        assert register_encoding(cls) is cls


def test_listed_and_found() -> None:
    assert set(NAMES) < set(list_encodings())
    assert get_encoding("my_kerple") is Kerple
    with pytest.raises(UnknownEncodingError, match=r"Did you mean 'my_kerple'"):
        get_encoding("my_kerpel")
    with pytest.raises(ConfigError, match="'begin' is not an option"):
        patch_model(tiny.llama(), "my_kerple", begin=1.0)
    register_encoding(Kerple)  # running a notebook's cell twice


def bias_of(name: str, head: int, i: int, j: int) -> float:
    """The formula, with the weights as they start."""
    if name == "my_kerple":
        return -0.5 * math.log1p(0.5 * abs(i - j))
    weight = -torch.linspace(0.5, 3.0, 4)[head].item()
    return weight * math.log1p(abs(i - j)) / math.log(2 + i)


@pytest.mark.parametrize("name", ["my_kerple", "my_fire"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_formula_reaches_the_attention(name: str, causal: bool) -> None:
    """Through the model: its own queries and keys, its own output projection, and the bias by brute force."""
    model = tiny.llama(num_hidden_layers=1) if causal else tiny.bert(num_hidden_layers=1)
    patch_model(model, name)
    attention = model.model.layers[0].self_attn if causal else model.bert.encoder.layer[0].attention.self
    seen: dict[str, Tensor] = {}
    last = attention.o_proj if causal else model.bert.encoder.layer[0].attention.output.dense
    names = ("q_proj", "k_proj", "v_proj") if causal else ("query", "key", "value")
    for part in names:
        getattr(attention, part).register_forward_hook(lambda m, a, out, p=part: seen.update({p: out}))
    last.register_forward_pre_hook(lambda m, a: seen.update(output=a[0]))
    with torch.no_grad():
        model(tiny.ids(2, 15))
    query, key, value = (seen[p].unflatten(-1, (-1, 8)).transpose(1, 2) for p in names)
    expected = brute.attention(
        query,
        key,
        value,
        8**-0.5,
        lambda h, i, j: bias_of(name, h, i, j),
        lambda n, i, j: not causal or j <= i,
    )
    torch.testing.assert_close(seen["output"].double(), expected.transpose(1, 2).flatten(2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("build", [tiny.llama, tiny.neox, tiny.bert])
def test_patch_save_load_unpatch(name: str, build: Any, tmp_path: Path) -> None:
    model, tokens = build(), tiny.ids(2, 30)
    before = model(tokens).logits
    if name == "my_slow" and build is tiny.bert:
        with pytest.raises(UnsupportedError, match="'my_slow' scales a rotation, and BertModel has none"):
            patch_model(model, name)
        return
    patch_model(model, name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".position_encoding." in f".{key}":
                parameter.mul_(0.7)
    after = model(tokens).logits
    assert not torch.allclose(before, after, atol=1e-3)
    assert status(model).patches[0].encodings == name
    model.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if build is tiny.bert else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(tokens).logits, after, rtol=1e-5, atol=1e-5)
    assert status(again).patches if name != "my_slow" else not status(again).patched
    unpatch_model(model)
    assert torch.equal(model(tokens).logits, before)


def test_loading_where_the_encoding_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    patch_model(model, ["native", "my_kerple"])
    model.save_pretrained(tmp_path)
    monkeypatch.delitem(registry._ENCODINGS, "my_kerple")
    with pytest.raises(UnknownEncodingError, match="No encoding is called 'my_kerple'"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["my_kerple", "my_fire", "my_ramp"])
def test_cache_padding_and_gradient(name: str) -> None:
    """What the package promises for its own encodings holds for others' as well."""
    model = tiny.llama()
    patch_model(model, name)
    tokens, mask = tiny.ids(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[1, :5] = 0
    with torch.no_grad():
        whole = model(tokens, attention_mask=mask).logits
        cache = DynamicCache(config=model.config)
        parts = [
            model(tokens[:, part], attention_mask=mask[:, : part.stop], past_key_values=cache).logits
            for part in (slice(0, 8), slice(8, 9), slice(9, 14))
        ]
        torch.testing.assert_close(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model(tokens[1:, 5:]).logits[0], whole[1, 5:], rtol=1e-4, atol=1e-4)
    model(tokens, attention_mask=mask).logits.square().mean().backward()
    learned = [p for key, p in model.named_parameters() if ".position_encoding." in f".{key}"]
    assert learned
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learned)


def test_a_general_bias_refuses_the_kernels_of_relative_ones() -> None:
    for kernel in ("toeplitz", "flex"):
        with pytest.raises(UnsupportedError, match="depends on the distance alone"):
            patch_model(tiny.llama(), "my_fire", kernel=kernel)
    with pytest.raises(UnsupportedError, match="-slope"):
        patch_model(tiny.llama(), "my_kerple", kernel="separable")


def make(base: type = BiasEncoding, **body: Any) -> type:
    """A class that would do, but for what the body says."""

    def bias(self: Any, prepared: Tensor, *, causal: bool) -> Tensor:
        return -prepared.float()[None]

    config = body.pop(
        "Config", dataclass(frozen=True)(type("C", (EncodingConfig,), {"name": body.pop("name", "good")}))
    )
    return type("Made", (base,), {"Config": config, "info": INFO, "bias": bias, **body})


def test_what_would_do() -> None:
    register_encoding(make())
    assert "good" in list_encodings()


@pytest.mark.parametrize("name", ["", "Upper", "with space", "with-dash", "1st", 3, None, "dot.ted", "ünïcode "])
def test_malformed_names(name: Any) -> None:
    with pytest.raises(ConfigError, match="must be a lower-case identifier such as 'my_bias'"):
        register_encoding(make(name=name))


@pytest.mark.parametrize("name", ["native", "pope", "values", "training", "forward"])
def test_reserved_names(name: str) -> None:
    """Names that mean something in a spec, or that a module has already."""
    with pytest.raises(ConfigError, match=f"The name '{name}' is reserved"):
        register_encoding(make(name=name))


@pytest.mark.parametrize("name", ["alibi", "t5", "my_kerple"])
def test_taken_names(name: str) -> None:
    taken = get_encoding(name)
    with pytest.raises(ConfigError, match=f"The name '{name}' is taken by {taken.__module__}.{taken.__qualname__}"):
        register_encoding(make(name=name))
    assert get_encoding(name) is taken


@pytest.mark.parametrize("config", [None, dict, "my_config", KerpleConfig(), int])
def test_config_of_a_wrong_type(config: Any) -> None:
    with pytest.raises(ConfigError, match=r"Made.Config must be an EncodingConfig subclass, got "):
        register_encoding(make(Config=config))


@pytest.mark.parametrize("thing", [None, "alibi", 3, dict, nn.Linear, lambda: None, object()])
def test_things_that_are_no_encodings(thing: Any) -> None:
    with pytest.raises(ConfigError, match=r"needs a subclass of InputEncoding, .*ScoreEncoding or HybridEncoding"):
        register_encoding(thing)


def test_incomplete_classes() -> None:
    """All that is missing, in one message; a class that got through would fail, or do nothing, much later."""
    with pytest.raises(ConfigError, match=r"set info = EncodingInfo\("):
        register_encoding(make(info="text"))
    with pytest.raises(ConfigError, match=r"override bias\(\), or bias_at\(\)"):
        register_encoding(make(bias=BiasEncoding.bias))
    with pytest.raises(ConfigError, match=r"set toeplitz = False, because bias_at\(\) is overridden"):
        register_encoding(make(bias=BiasEncoding.bias, bias_at=lambda self, q, k, *, causal: q))
    plain = type("Plain", (EncodingConfig,), {"name": "plain", "__annotations__": {"size": int}, "size": 3})
    with pytest.raises(ConfigError, match=r"decorate Plain with @dataclass\(frozen=True\)"):
        register_encoding(make(Config=plain))
    with pytest.raises(ConfigError) as error:
        register_encoding(make(bias=BiasEncoding.bias, info=None))
    assert "info" in str(error.value)
    assert "bias()" in str(error.value)
    assert "good" not in list_encodings()
