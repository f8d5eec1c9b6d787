"""Scores fitted with gradients: distances against float64, planted tables found again, and what must stay as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hosts import HOSTS
from torch import Tensor

from pe_retrofit import patch_model
from pe_retrofit.attention.gain import QueryGain
from pe_retrofit.attention.reference import eager_attention
from pe_retrofit.patchers.family import find_host
from pe_retrofit.retrofit.calibration.descent import ASIDE, Descent, Stretch
from pe_retrofit.retrofit.calibration.replay import observe, record
from pe_retrofit.sites import BiasEncoding, ScoreEncoding

SCORES = ["shaw", "transformer_xl", "deberta", "cope", "fox"]
LENGTH = 40


def tokens(count: int, seed: int = 0) -> Tensor:
    return torch.randint(3, 61, (count, LENGTH), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def planted(host: str, spec: Any, *, windows: int = 8) -> tuple[Descent, list[Any]]:
    """A patched layer whose target is its own attention with random tables; the tables are zero again."""
    model = patch_model(HOSTS[host].fresh(), spec)
    attention = find_host(model).attentions[0]
    items = list(attention.position_encoding.values())
    calls = []
    for window in tokens(windows):
        states, others = record(find_host(model), window[None])
        calls.append(observe(find_host(model), 0, states[0], others[0]).rows(5, 30))
    parameters = [p for item in items for p in item.parameters()]
    before = [p.clone() for p in parameters]
    scores = [i for i in items if isinstance(i, ScoreEncoding)]
    descent = Descent(
        scores,
        next((i for i in items if isinstance(i, QueryGain)), None),
        [i for i in items if isinstance(i, BiasEncoding)],
        [],
    )
    generator = torch.Generator().manual_seed(3)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator))
    for call in calls:
        query = call.query if descent.gain is None else descent.gain.turn(call.query)
        output, weights = eager_attention(replace(call, query=query, scores=descent.scores, biases=descent.biases))
        descent.stretches = [*descent.stretches, Stretch(call, weights[0], output[0])]
    for item in descent.scores:
        for parameter in item.parameters():
            parameter.copy_(before[next(n for n, p in enumerate(parameters) if p is parameter)])
    return descent, parameters


@pytest.mark.parametrize("name", SCORES)
def test_a_planted_table_is_found_again(name: str) -> None:
    """Gains and a bias too; what is found also holds on stretches that were kept aside and not trained on."""
    descent, _ = planted("llama", [{"name": "nope", "gains": True}, name, "t5"])
    first = descent.measure()
    assert first.divergence > 0.02
    descent.run(steps=10, output_steps=3)
    last = descent.measure()
    assert last.divergence < 0.2 * first.divergence
    assert last.output < 0.2 * first.output


def direct(descent: Descent) -> tuple[float, float]:
    """The two distances in float64, head by head and query by query."""
    divergences, errors, sizes = [], torch.zeros(4), torch.zeros(4)
    for stretch in descent.stretches:
        call = stretch.call
        query = call.query if descent.gain is None else descent.gain.turn(call.query)
        output, weights = eager_attention(replace(call, query=query, scores=descent.scores, biases=descent.biases))
        for head in range(4):
            for p, q in zip(stretch.target[head].double(), weights[0, head].double(), strict=True):
                terms = [float(a * (a / b).log()) for a, b in zip(p, q, strict=True) if a > 0]
                if call.sinks is not None:
                    rest = 1 - p.sum()
                    terms.append(float(rest * (rest / (1 - q.sum())).log()))
                divergences.append(sum(terms))
        errors += (output[0] - stretch.wanted).square().sum((1, 2))
        sizes += stretch.wanted.square().sum((1, 2))
    return sum(divergences) / len(divergences), float((errors / sizes).mean())


@pytest.mark.parametrize(
    ("host", "spec"),
    [
        ("llama", [{"name": "nope", "gains": True}, "shaw"]),
        ("gpt_oss", ["nope", "deberta"]),  # with attention sinks
        ("bert", [{"name": "shaw", "values": True}, "t5"]),
        ("mistral", ["nope", "fox"]),
    ],
)
def test_distances(host: str, spec: Any) -> None:
    descent, _ = planted(host, spec, windows=3)
    with torch.no_grad():
        divergence, output = direct(descent)
    found = descent.measure()
    assert float(found.divergence) == pytest.approx(divergence, rel=1e-4)
    assert float(found.output) == pytest.approx(output, rel=1e-4)


def test_what_does_best_on_the_windows_kept_aside_is_taken() -> None:
    """Targets without any order: what helps on some windows harms on others, and harm is not taken."""
    descent, _ = planted("llama", ["nope", "deberta"], windows=4)
    generator = torch.Generator().manual_seed(0)
    for stretch in descent.stretches:
        allowed = stretch.target > 0
        noise = 4 * torch.randn(stretch.target.shape, generator=generator)
        stretch.target = noise.masked_fill(~allowed, -torch.inf).softmax(-1)
    aside = replace(descent, stretches=descent.stretches[::ASIDE])
    rest = replace(descent, stretches=descent.stretches[1:])
    before, used = aside.measure(), rest.measure()
    descent.run(steps=4, output_steps=0)
    assert aside.measure().divergence <= before.divergence
    alone = replace(descent, stretches=descent.stretches[1:2])
    alone.run(steps=4, output_steps=0)  # one stretch cannot be kept aside
    assert alone.measure().divergence < 0.9 * used.divergence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_stay_what_they_were_otherwise(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dtype, whether they are trained, no gradient; also when the search is broken off, with the best so far."""
    descent, parameters = planted("llama", ["nope", "shaw"])
    first = descent.measure().divergence
    for item in descent.scores:
        item.to(dtype)
    parameters[0].requires_grad_(False)
    descent.run(steps=1, output_steps=1)
    assert [p.dtype for p in parameters] == [dtype]
    assert [p.requires_grad for p in parameters] == [False]
    assert [p.grad for p in parameters] == [None]
    found = descent.measure().divergence
    assert found < 0.8 * first

    real, looks = Descent._distance, []

    def fail(self: Descent, stretches: Any) -> Any:
        looks.append(1)
        if len(looks) > 4:
            raise KeyboardInterrupt
        return real(self, stretches)

    monkeypatch.setattr(Descent, "_distance", fail)
    with pytest.raises(KeyboardInterrupt):
        descent.run(steps=3, output_steps=3)
    monkeypatch.undo()
    assert descent.measure().divergence <= found * 1.01
    assert [p.dtype for p in parameters] == [dtype]
    assert [p.grad for p in parameters] == [None]
