"""Pictures of an inspection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...plots import COLOURS, figure, legend, mark, save, thousands

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STOCK, MODEL = "#101828", COLOURS[0]
MAPS = (
    ("entropy_normalised", "entropy over uniform's", "viridis", (0.0, 1.0)),
    ("sink_mass", "attention on sinks", "viridis", (0.0, 1.0)),
    ("mean_distance", "mean distance (tokens)", "viridis", None),
)


def draw(results: Mapping[str, Any], folder: Path) -> Iterator[Path]:
    """All pictures of an inspection, as PNG files."""
    attention = results["attention"]
    stock = attention.get("stock")
    compared = attention.get("model_at_stock_length", attention["model"])
    yield _by_distance(results, attention["model"], stock, folder / "attention_by_distance.png")
    yield _heads(results, compared, stock, folder / "heads.png")
    yield _layers(results, compared, stock, folder / "layers.png")
    drift = results["drift"]
    if drift is not None and drift["status"] == "ok":
        yield _drift(results, drift, folder / "drift.png")


def _name(results: Mapping[str, Any]) -> str:
    name = str(results["model"]["name"])
    return name if len(name) <= 60 else "..." + name[-57:]


def _note(drawn: Figure, words: str) -> None:
    drawn.suptitle(words, fontsize=9.5, x=0.01, ha="left", color="#475467")


def _middle(part: Mapping[str, Any]) -> np.ndarray:
    """Middle of each bin on a logarithmic axis, shifted by one so that distance 0 has a place."""
    bins = np.array(part["bins"], dtype=float)
    return np.sqrt((bins[:, 0] + 1) * (bins[:, 1] + 1))


def _distance_axis(axes: Axes, length: int) -> None:
    axes.set_xscale("log", base=2)
    marks = [0, 1, 3, *(4**n for n in range(2, 12) if 4**n < length)]
    axes.set_xticks([m + 1 for m in marks], [thousands(m) for m in marks])
    axes.tick_params(axis="x", which="minor", bottom=False)
    axes.set_xlabel("distance between query and key (tokens)")


def _by_distance(results: Mapping[str, Any], model: Any, stock: Any, path: Path) -> Path:
    """Mean attention to one key, and how much lies within a distance: all heads, with the middle 80 % as a band."""
    parts = [(_name(results), model, MODEL)]
    if stock is not None:
        parts.insert(0, ("stock", stock, STOCK))
    with figure(12, 4.6, nrows=1, ncols=2) as (drawn, (left, right)):
        for label, part, colour in parts:
            x, ends = _middle(part), np.array(part["bins"])[:, 1] + 1
            weight = _flat(part["weight"])
            within = _flat(part["mass"]).cumsum(-1)
            within = within / within[:, -1:].clip(1e-12)
            for axes, values, at in ((left, weight, x), (right, within, ends)):
                low, high = np.nanquantile(values, [0.1, 0.9], axis=0)
                axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)
                axes.plot(at, np.nanmean(values, 0), color=colour, label=label, marker="o", markersize=3.5)
        left.set_yscale("log")
        top = max(np.nanmax(np.nanmean(_flat(p["weight"]), 0)) for _, p, _ in parts)
        low = min(_lowest(np.nanmean(_flat(p["weight"]), 0)) for _, p, _ in parts)
        left.set_ylim(max(low / 4, top * 1e-9), min(2.0, top * 4))
        left.set(title="Attention to one key", ylabel="mean weight, sinks aside")
        right.set(title="Attention within a distance", ylabel="share of the attention, sinks aside", ylim=(0, 1.02))
        for axes in (left, right):
            _distance_axis(axes, model["length"])
        if stock is not None and stock["length"] < model["length"]:
            mark(left, {"longest of stock": stock["length"] + 1}, None)
        left.legend(loc="lower left")
        _note(drawn, "Mean over all heads; bands: the middle 80 % of the heads")
        return save(drawn, path)


def _flat(values: Sequence[Any]) -> np.ndarray:
    """``[layer * head, n]``."""
    found = np.array(values, dtype=float)
    return found.reshape(-1, found.shape[-1])


def _lowest(values: np.ndarray) -> float:
    good = values[np.isfinite(values) & (values > 0)]
    return float(good.min()) if len(good) else 1e-9


def _panel(drawn: Figure, axes: Axes, values: np.ndarray, title: str, colours: str, limits: Any) -> None:
    axes.grid(visible=False)
    shown = axes.imshow(
        values, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1], origin="lower", interpolation="nearest"
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_title(title)
    bar = drawn.colorbar(shown, ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)


def _triple(
    drawn: Figure, row: Sequence[Axes], words: str, mine: np.ndarray, theirs: np.ndarray | None, limits: Any
) -> None:
    """Model alone, or stock, model and their difference."""
    both = mine if theirs is None else np.concatenate((mine, theirs))
    limits = limits or (0.0, float(np.nanmax(both)) or 1.0)
    if theirs is None:
        _panel(drawn, row[0], mine, words, "viridis", limits)
        return
    change = mine - theirs
    most = max(float(np.nanmax(np.abs(change))), 0.01 * limits[1])  # rounding is not to be seen
    _panel(drawn, row[0], theirs, f"Stock: {words}", "viridis", limits)
    _panel(drawn, row[1], mine, "Model", "viridis", limits)
    _panel(drawn, row[2], change, "Model minus stock", "RdBu_r", (-most, most))


def _heads(results: Mapping[str, Any], model: Any, stock: Any, path: Path) -> Path:
    """Layer by head: entropy, sink mass and mean distance."""
    columns = 1 if stock is None else 3
    layers = len(model["entropy"])
    each = min(4.2, max(2.4, 0.11 * layers + 1.2))
    with figure(1.5 + 3.9 * columns, 0.5 + each * len(MAPS), nrows=len(MAPS), ncols=columns, squeeze=False) as made:
        drawn, grid = made
        for row, (name, words, _, limits) in zip(grid, MAPS, strict=True):
            theirs = None if stock is None else np.array(stock[name], dtype=float)
            _triple(drawn, row, words, np.array(model[name], dtype=float), theirs, limits)
            for axes in row:
                axes.xaxis.get_major_locator().set_params(integer=True)
                axes.yaxis.get_major_locator().set_params(integer=True)
            row[0].set_ylabel("layer")
        for axes in grid[-1]:
            axes.set_xlabel("head")
        _note(drawn, f"{_name(results)}, {thousands(model['length'])} tokens")
        return save(drawn, path)


def _layers(results: Mapping[str, Any], model: Any, stock: Any, path: Path) -> Path:
    """Layer by distance: where the attention of each layer goes."""
    columns = 1 if stock is None else 3
    mine = np.array(model["mass"], dtype=float).mean(1)
    theirs = None if stock is None else np.array(stock["mass"], dtype=float).mean(1)
    with figure(1.5 + 4.3 * columns, 4.6, nrows=1, ncols=columns, squeeze=False) as (drawn, grid):
        _triple(drawn, grid[0], "share by distance", mine, theirs, None)
        lows = [low for low, _ in model["bins"]]
        places = [i for i, low in enumerate(lows) if low in (0, 1, *(4**n for n in range(1, 12)))]
        for axes in grid[0]:
            axes.set_xticks(places, [thousands(lows[i]) for i in places])
            axes.set_xlabel("distance (tokens)")
            axes.yaxis.get_major_locator().set_params(integer=True)
        grid[0][0].set_ylabel("layer")
        words = f"{_name(results)}, {thousands(model['length'])} tokens; attention of each layer, sinks aside"
        _note(drawn, words)
        return save(drawn, path)


def _drift(results: Mapping[str, Any], drift: Mapping[str, Any], path: Path) -> Path:
    """Drift by position."""
    by = drift["by_position"]
    x = [(low + high) / 2 for low, high in by["positions"]]
    panels: list[tuple[str, str, list[tuple[str, str, str]]]]
    if "cosine" in by:
        panels = [("Hidden states against the original's", "mean cosine", [("cosine", "", MODEL)])]
    else:
        panels = [
            ("Divergence from the original", "KL(stock || model), nats per token", [("kl", "", MODEL)]),
            ("Agreement with the original", "share of equal first choices", [("agreement", "", MODEL)]),
        ]
        if "nll" in by:
            both = [("stock_nll", "stock", STOCK), ("nll", "model", MODEL)]
            panels.append(("Negative log-likelihood", "nats per token", both))
    with figure(1 + 5 * len(panels), 4.2, nrows=1, ncols=len(panels), squeeze=False) as (drawn, grid):
        for axes, (title, label, lines) in zip(grid[0], panels, strict=True):
            for name, words, colour in lines:
                axes.plot(x[: len(by[name])], by[name], color=colour, label=words, marker="o", markersize=3)
            axes.set(title=title, ylabel=label, xlabel="position (tokens)")
            axes.set_ylim(bottom=0)
            if title.startswith(("Agreement", "Hidden")):
                axes.set_ylim(0, 1.02)
            if len(lines) > 1:
                legend(axes, len(lines))
        _note(drawn, _name(results))
        return save(drawn, path)
