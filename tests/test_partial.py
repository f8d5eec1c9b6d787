"""Views of encodings: weaker, or some heads only. What every kernel makes of a view is what the reference makes of the
encoding with the same numbers written into it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import make_call, shape

from pe_retrofit import (
    AlibiConfig,
    BiasEncoding,
    CopeConfig,
    DebertaConfig,
    FireConfig,
    FoxConfig,
    KerpleConfig,
    MlpConfig,
    SandwichConfig,
    ScoreEncoding,
    ShawConfig,
    T5Config,
    TransformerXlConfig,
    UnsupportedError,
    WindowConfig,
    get_encoding,
)
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.attention.select import KERNELS, obstacle
from pe_retrofit.sites.partial import partial

CONFIGS = [
    AlibiConfig(),
    AlibiConfig(learnable=True),
    T5Config(16, 40),
    KerpleConfig(),
    FireConfig(8, length=20),
    MlpConfig(8),
    SandwichConfig(16),
    ShawConfig(3),  # as many rows as heads: no rule of thumb may take them for heads
    ShawConfig(3, values=True),
    DebertaConfig(8, 20),
    TransformerXlConfig(),
    CopeConfig(8),
    FoxConfig(),
]
IDS = [
    f"{c.name}{'_learnable' if getattr(c, 'learnable', False) else ''}{'_values' * getattr(c, 'values', False)}"
    for c in CONFIGS
]


class Weaker(BiasEncoding):  # type: ignore[type-arg]
    """A bias times a number, by definition."""

    def __init__(self, inner: Any, factor: float) -> None:
        super().__init__(inner.config, inner.host)
        self.inner, self.factor = inner, factor

    def bias_at(self, query_positions: Any, key_positions: Any, *, causal: bool) -> Any:
        return self.factor * self.inner.bias_at(query_positions, key_positions, causal=causal)


class WeakerScore(ScoreEncoding):  # type: ignore[type-arg]
    """Scores times a number, by definition."""

    def __init__(self, inner: Any, factor: float) -> None:
        super().__init__(inner.config, inner.host)
        self.inner, self.factor = inner, factor

    def scores(self, block: Any) -> Any:
        return self.factor * self.inner.scores(block)


def made(config: Any) -> Any:
    encoding = get_encoding(config.name)(config, shape())  # type: ignore[call-arg]
    encoding = encoding.double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in encoding.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator).to(parameter)
            parameter.copy_(noise.abs() + 0.1) if "slopes" in name else parameter.copy_(noise)
    return encoding


def call_with(encoding: Any, **more: Any) -> Any:
    site = "biases" if isinstance(encoding, BiasEncoding) else "scores"
    return replace(make_call(groups=2, past=3, **more), **{site: [encoding], "first": 3})


def gradients(output: Any, encoding: Any) -> list[Any]:
    wanted = [p for p in encoding.parameters() if p.requires_grad]
    found = torch.autograd.grad((output * output.detach().cos()).sum(), wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


@pytest.mark.parametrize("kernel", [k for k in KERNELS if k not in ("merged", "flex")])
@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
def test_weaker(config: Any, kernel: str) -> None:
    if getattr(config, "values", False):
        pytest.skip("values are tested on their own")
    encoding = made(config)
    weak = partial(encoding, 0.3)
    call = call_with(weak)
    if obstacle(kernel, call):
        assert obstacle(kernel, call_with(encoding)), "a view runs on every kernel its encoding runs on"
        return
    reference = (Weaker if isinstance(encoding, BiasEncoding) else WeakerScore)(encoding, 0.3)
    wanted = eager_attention(call_with(reference))[0]
    with torch.no_grad():
        torch.testing.assert_close(KERNELS[kernel](call), wanted.detach())
    if kernel in ("skewed", "keyed") or not list(encoding.parameters()):
        return
    found = gradients(KERNELS[kernel](call), encoding)
    for one, other in zip(found, gradients(wanted, encoding), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("config", CONFIGS, ids=IDS)
@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_some_heads(config: Any, strength: float) -> None:
    """The heads of a view are those of the whole; kernels and gradients."""
    encoding = made(config)
    heads = slice(2, 4)
    whole = call_with(partial(encoding, strength))
    part = call_with(partial(encoding, strength, heads))
    part = replace(part, query=whole.query[:, heads], key=whole.key[:, 1:], value=whole.value[:, 1:])
    wanted = eager_attention(whole)[0][:, heads]
    for kernel in KERNELS:
        if kernel not in ("merged", "flex") and obstacle(kernel, part) is None:
            with torch.no_grad():
                torch.testing.assert_close(KERNELS[kernel](part), wanted.detach())
    if any(p.requires_grad for p in encoding.parameters()):
        found = gradients(KERNELS["blockwise"](part), encoding)
        for one, other in zip(found, gradients(wanted, encoding), strict=True):
            torch.testing.assert_close(one, other)


def test_values() -> None:
    """Relative value vectors are weaker too."""
    encoding, weak = made(ShawConfig(3, values=True)), partial(made(ShawConfig(3, values=True)), 0.3)
    with torch.no_grad():
        for parameter in encoding.parameters():
            parameter.mul_(0.3)
    torch.testing.assert_close(eager_attention(call_with(weak))[0], eager_attention(call_with(encoding))[0])


def test_whole_is_itself() -> None:
    encoding = made(T5Config(16, 40))
    assert partial(encoding) is encoding
    assert partial(encoding, 1.0, None) is encoding


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="'window' masks what is far"):
        partial(get_encoding("window")(WindowConfig(4), shape()), 0.5)  # type: ignore[call-arg]

    class Silent(get_encoding("cope")):  # type: ignore[misc]
        per_head = None

    with pytest.raises(UnsupportedError, match="does not say which of its parameters"):
        partial(Silent(CopeConfig(8), shape()), 1.0, slice(0, 2))
