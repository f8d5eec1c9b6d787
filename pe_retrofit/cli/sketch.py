"""Pictures made of characters, for a terminal without a display."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..pictures import alike, sample_distances, smooth, spread
from ..views import BiasView, HybridView, InputView, PiecewiseView, RotationView, View

BARS = "▁▂▃▄▅▆▇█"
SHADES = " ░▒▓█"
WIDTH = 56


def sparkline(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """One bar per value, from ``low`` to ``high`` (by default the extremes); ``∞`` and blanks where there is none."""
    known = [v for v in values if math.isfinite(v)]
    if not known:
        return "∞" * len(values)
    low, high = min(known) if low is None else low, max(known) if high is None else high
    span = (high - low) or 1.0

    def bar(value: float) -> str:
        if math.isnan(value):
            return " "
        if math.isinf(value):
            return "∞"
        return BARS[round(min(1.0, max(0.0, (value - low) / span)) * (len(BARS) - 1))]

    return "".join(bar(v) for v in values)


def shades(matrix: Tensor, rows: int, columns: int) -> list[str]:
    """A matrix as ``rows`` lines of ``columns`` characters, dark where the values are high, ``·`` where masked."""
    matrix = _thinned(_thinned(matrix, rows).t(), columns).t()
    known = matrix[torch.isfinite(matrix)]
    low, high = (known.min().item(), known.max().item()) if len(known) else (0.0, 0.0)
    span = (high - low) or 1.0

    def shade(value: float) -> str:
        return SHADES[round((value - low) / span * (len(SHADES) - 1))] if math.isfinite(value) else "·"

    return ["".join(shade(v) for v in row) for row in matrix.tolist()]


def sketch(view: View) -> list[str]:
    """A view as lines of text."""
    if isinstance(view, BiasView):
        return _bias(view)
    if isinstance(view, PiecewiseView):
        return _pieces(view)
    if isinstance(view, RotationView):
        return _rotation(view)
    if isinstance(view, HybridView):
        return _layers(view)
    return _input(view)


def _bias(view: BiasView) -> list[str]:
    first, last = int(view.distances[0]), int(view.distances[-1])
    lines = [f"{view.what} against distance, {first} to {last} tokens (each head on its own scale):"]
    for head in spread(view.bias.shape[0], 8):
        values = _thinned(view.bias[head], WIDTH).tolist()
        known = [v for v in values if math.isfinite(v)] or [0.0]
        lines.append(f"  head {head:<3}{sparkline(values)}  {max(known):.3g} to {min(known):.3g}")
    if view.buckets is not None:
        buckets = sparkline(_thinned(view.buckets.double(), WIDTH).tolist())
        lines.append(f"  row used {buckets}  {len(torch.unique(view.buckets))} rows of the table")
    if view.counted is not None:
        seen = _thinned(view.counted[0], WIDTH)
        lines.append("positions counted by the last query, head 0:")
        lines.append(f"  counted  {sparkline(seen.tolist())}  {seen.min():.3g} to {seen.max():.3g}")
    if view.queries:
        lines.append("head 0 by the query's position, distance 0 to that position (log):")
        every = torch.cat([bias[0] for _, bias in view.queries.values()])
        low, high = every.min().item(), every.max().item()
        for query, (_, bias) in view.queries.items():
            lines.append(f"  i = {query:<8,}{sparkline(_thinned(bias[0], WIDTH).tolist(), low, high)}")
    lines.append("head 0, query i downwards, key j to the right (dark: high, dots: masked):")
    return lines + ["  " + line for line in shades(view.matrix[0], 12, 36)]


def _pieces(view: PiecewiseView) -> list[str]:
    last, known = int(view.distances[-1]), view.effective[torch.isfinite(view.effective)]
    lines = [f"effective distance against distance, 0 to {last:,} tokens, {known.min():,.0f} to {known.max():,.0f}:"]
    for label, values in (("RoPE", view.distances.double()), ("patched", view.effective)):
        lines.append(f"  {label:<9}{sparkline(_thinned(values, WIDTH).tolist(), 0.0, float(last))}")
    lines.append(" " * (11 + round(view.trained / last * (WIDTH - 1))) + f"^ trained length L = {view.trained:,}")
    if (hidden := int(torch.isnan(view.effective).sum())) > 0:
        lines.append(f"  blank: masked, {100 * hidden / len(view.effective):.0f} % of the distances")
    lines.append("query i downwards, key j to the right (dark: far, dots: masked):")
    return lines + ["  " + line for line in shades(view.matrix, 16, 48)]


def _rotation(view: RotationView) -> list[str]:
    curves = {"stock": view.stock, **view.after}
    wide = max(map(len, curves))
    turning = [t.periods[torch.isfinite(t.periods)].log() for t in curves.values()]
    extremes = torch.cat(turning)
    low, high = extremes.min().item(), extremes.max().item()
    lines = [f"tokens per turn of each frequency, fast to slow, {math.exp(low):.3g} to {math.exp(high):,.0f} (log):"]
    for label, one in curves.items():
        values = _thinned(one.periods.log(), WIDTH).tolist()
        beyond = int((one.periods > view.trained).sum())
        lines.append(f"  {label:<{wide}}  {sparkline(values, low, high)}  {beyond} do not complete a turn in L")
        if one.half_lives is not None:
            lives = _thinned(one.half_lives.log(), WIDTH).tolist()
            shortest, longest = one.half_lives.min().item(), one.half_lives.max().item()
            lines.append(f"tokens until a frequency counts half, {shortest:,.0f} to {longest:,.0f} (log):")
            lines.append(f"  {label:<{wide}}  {sparkline(lives)}")
    last = max(view.extended, 4 * view.trained)
    distances = sample_distances(last)
    kernels = {label: torch.from_numpy(smooth(distances, t.kernel(distances))[1]) for label, t in curves.items()}
    low = min(0.0, *[k.min().item() for k in kernels.values()])
    high = max(k.max().item() for k in kernels.values())
    lines.append(f"logit of equal contents against distance, 1 to {last:,} tokens (log), {high:.2f} down to {low:.2f}:")
    for label, kernel in kernels.items():
        lines.append(f"  {label:<{wide}}  {sparkline(_thinned(kernel, WIDTH).tolist(), low, high)}")
    place = round(math.log(view.trained) / math.log(last) * (WIDTH - 1))
    lines.append(" " * (wide + 4 + place) + f"^ trained length L = {view.trained:,}")
    return lines


def _layers(view: HybridView) -> list[str]:
    kinds = list(dict.fromkeys(view.layers))
    lines = [f"what each of {len(view.layers)} layers has, the first at the top:"]
    return [*lines, *(f"  layer {i:<4}{SHADES[-1 - kinds.index(k) % 4]} {k}" for i, k in enumerate(view.layers))]


def _input(view: InputView) -> list[str]:
    lines = ["vectors, position downwards, dimension to the right (dark: high):"]
    lines += ["  " + line for line in shades(view.vectors[:, :WIDTH], 16, WIDTH)]
    similarity = alike(view.vectors)
    lines.append(f"how alike two positions are, distance 0 to {len(similarity) - 1} tokens:")
    low, high = similarity.min().item(), similarity.max().item()
    return [*lines, f"  {sparkline(_thinned(similarity, WIDTH).tolist())}  {high:.2f} down to {low:.2f}"]


def _thinned(values: Tensor, most: int) -> Tensor:
    """At most ``most`` rows, evenly spread."""
    if len(values) <= most:
        return values
    return values[torch.linspace(0, len(values) - 1, most).round().long()]
