"""Piecewise-linear functions: properties of knots, hats and hinges, and networks that equal them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pe_retrofit.encodings.mlp import ScalarNetwork
from pe_retrofit.sites.hats import hats, hinges, knots

POINTS = st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=9, unique=True).map(sorted)


def apart(points: list[float]) -> bool:
    return all(b - a > 1e-3 for a, b in pairwise(points))


@given(st.integers(1, 100_000), st.integers(1, 80), st.booleans())
def test_knots(reach: int, count: int, both: bool) -> None:
    at = knots(reach, count, both=both).tolist()
    assert 1 <= len(at) <= count
    assert at == sorted(set(at)), "distinct and ascending"
    assert 0 in at
    assert at == [-d for d in reversed(at)] if both else at[0] == 0
    assert max(at) <= reach
    if count >= (3 if both else 2):
        assert at[-1] == reach
    if (2 * reach + 1 if both else reach + 1) <= count:
        assert len(at) == (2 * reach + 1 if both else reach + 1), "every distance while they are few"


@given(st.integers(3, 100_000), st.integers(8, 80))
def test_knots_grow_apart(reach: int, count: int) -> None:
    """Near 0 every distance has its own; beyond, the gaps do not shrink by more than rounding."""
    gaps = knots(reach, count, both=False).diff().tolist()
    assert gaps[0] == 1
    assert all(b >= a - 1 for a, b in pairwise(gaps))


@given(POINTS.filter(apart), st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_hats_are_a_partition_of_unity(points: list[float], x: list[float]) -> None:
    at, places = torch.tensor(points, dtype=torch.float64), torch.tensor(x, dtype=torch.float64)
    found = hats(places, at)
    assert found.shape == (len(x), len(points))
    assert (found >= 0).all()
    assert torch.allclose(found.sum(-1), torch.ones(len(x), dtype=torch.float64))
    assert (found > 0).sum(-1).max() <= 2
    assert torch.equal(hats(at, at), torch.eye(len(points), dtype=torch.float64))


@given(POINTS.filter(apart), st.lists(st.floats(-100, 100), min_size=1, max_size=20), st.integers(0, 9))
def test_hats_interpolate(points: list[float], x: list[float], seed: int) -> None:
    at = torch.tensor(points, dtype=torch.float64)
    values = torch.randn(len(points), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for place in x:
        found = (hats(torch.tensor([place], dtype=torch.float64), at) @ values).item()
        if place <= points[0]:
            wanted = values[0].item()
        elif place >= points[-1]:
            wanted = values[-1].item()
        else:
            k = next(n for n in range(1, len(points)) if points[n] >= place)
            share = (place - points[k - 1]) / (points[k] - points[k - 1])
            wanted = (1 - share) * values[k - 1].item() + share * values[k].item()
        assert found == pytest.approx(wanted, abs=1e-9)


def test_a_single_point_is_a_constant() -> None:
    assert torch.equal(hats(torch.tensor([-3.0, 0.0, 5.0]), torch.tensor([0.0])), torch.ones(3, 1))


@given(POINTS.filter(apart), st.integers(0, 9))
def test_hinges(points: list[float], seed: int) -> None:
    at = torch.tensor(points, dtype=torch.float64)
    values = torch.randn(3, len(points), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    c, v = hinges(values, at, torch.float64)
    x = torch.tensor([points[0] - 7, *points, points[-1] + 7], dtype=torch.float64)
    found = v[:, None] + c @ torch.relu(x - at[:, None])
    wanted = torch.cat((values[:, :1], values, values[:, -1:]), dim=1)
    assert (found - wanted).abs().max() < 1e-6 * (1 + c.abs().max())


@settings(max_examples=30)
@given(st.integers(2, 2000), st.integers(2, 40), st.booleans(), st.integers(0, 9))
def test_network_equals_the_interpolation(reach: int, width: int, both: bool, seed: int) -> None:
    """A network wider than needed, in float64, on the logarithm of the distance; and outside the points."""
    where = knots(reach, width, both=both).double()
    at = torch.sign(where) * torch.log1p(where.abs())
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(4, len(at), dtype=torch.float64, generator=generator)
    network = ScalarNetwork([width + 2], 4).double()
    for parameter in network.parameters():
        parameter.data.normal_(generator=generator)
    assert network.interpolates
    network.interpolate(at, values)
    x = torch.linspace(-12, 12, 301, dtype=torch.float64)
    with torch.no_grad():
        assert (network(x) - values @ hats(x, at).t()).abs().max() < 1e-9


def test_rounding_does_not_add_up() -> None:
    """In bfloat16 each coefficient makes up for those before it: the error at the points stays one of rounding."""
    at = torch.log1p(knots(511, 32, both=False).double()).bfloat16().double().unique()
    values = torch.linspace(0, 6, len(at), dtype=torch.float64).sin()[None]
    network = ScalarNetwork([32], 1).bfloat16()
    network.interpolate(at, values)
    with torch.no_grad():
        assert (network.float()(at.float()) - values).abs().max() < 0.05


def test_deep_and_smooth_networks_do_not_interpolate() -> None:
    assert not ScalarNetwork([8, 8], 2).interpolates
    assert not ScalarNetwork([8], 2, "silu").interpolates
