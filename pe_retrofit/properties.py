"""The textbook properties of a positional encoding, measured on a small random model that is patched with it.

Nothing here knows an encoding by name: every answer is a number measured on the model's output, on its attention or on
what the encoding puts into it, compared with a stated limit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from .errors import UnsupportedError
from .probes import FAMILY_NAMES, TOO_FAR, Lab
from .probes.cost import finite, largest_tensor, power, time_ratio
from .probes.lab import Start
from .probes.outputs import (
    bf16_error,
    cache_change,
    farthest,
    input_change,
    pair_outputs,
    permutation_change,
    prefix_output,
    shift_change,
)
from .probes.scores import score_rise
from .probes.sizes import sizes

SHIFTS = (37, 384)
"""Constants added to all positions: within the trained length, and three times beyond it."""

FAR = 131_072
"""Position from which bfloat16 is compared with float32."""


@dataclass(frozen=True)
class Property:
    """One answer.

    Attributes:
        name: the property.
        holds: None where it has no meaning for this model.
        figure: what was measured, in words.
        value: the number that was compared, if there is one.
        meaning: what the property says, in words.
    """

    name: str
    holds: bool | None
    figure: str
    value: float | None
    meaning: str


@dataclass(frozen=True)
class Report:
    """All answers about one encoding.

    Attributes:
        encoding: in words, e.g. ``native + t5``.
        options: of each encoding.
        family: the small model's: ``llama``, ``gpt_neox`` or ``bert``.
        trained_length: of the small model, in tokens.
        layers: of the small model.
        chosen: options that were not given, with the value taken for so small a model.
        starts: what patching changed before anything was learned; where the encoding takes the place of the native one,
            also what it changes beside it.
        filled: learned parameters that are zero at the start and were given random values.
        breaks: for encodings that are for teaching: what they say they lack.
        properties: the answers.
    """

    encoding: str
    options: list[dict[str, Any]]
    family: str
    trained_length: int
    layers: int
    chosen: dict[str, Any]
    starts: list[Start]
    filled: list[str]
    breaks: str
    properties: list[Property] = field(default_factory=list)

    def __getitem__(self, name: str) -> Property:
        return next(p for p in self.properties if p.name == name)

    @property
    def lacking(self) -> list[str]:
        """Properties that do not hold."""
        return [p.name for p in self.properties if p.holds is False]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def check_encoding(
    spec: Any, family: str = "llama", *, progress: Callable[[str], None] = lambda name: None, **options: Any
) -> Report:
    """Measure every property of an encoding.

    Args:
        spec: as for :func:`~pe_retrofit.patch_model`; ``"native"`` alone measures the unpatched model.
        family: which small model: ``llama``, ``gpt_neox`` (decoders) or ``bert`` (an encoder).
        progress: called with the name of each property before it is measured.
        **options: of the encoding.

    Returns:
        One :class:`Property` per name in :data:`PROPERTIES`.

    Raises:
        ConfigError, UnknownEncodingError, UnsupportedError: as from :func:`~pe_retrofit.patch_model`, or an unknown
            family.
    """
    if family not in FAMILY_NAMES:
        raise UnsupportedError(f"family={family!r} is unknown; choose one of {', '.join(FAMILY_NAMES)}.")
    lab = Lab(spec, family, options)
    report = Report(
        lab.names, lab.entries, family, lab.trained, lab.layers, lab.chosen, lab.starts, lab.filled, lab.breaks
    )
    for name, (measure, meaning) in PROPERTIES.items():
        progress(name)
        holds, figure, value = measure(lab)
        report.properties.append(Property(name, holds, figure, value, meaning))
    return report


Answer = tuple["bool | None", str, "float | None"]


def unique(lab: Lab) -> Answer:
    """A token attends to one other at each distance below L; outputs that differ are counted."""
    outputs = pair_outputs(lab, torch.arange(min(lab.trained, lab.reach)))
    gaps = torch.cdist(outputs, outputs, p=float("inf")) / lab.size(outputs)
    same = gaps < 1e-6  # angles are float32
    distinct = int((same.long().argmax(1) == torch.arange(len(outputs))).sum())  # the first of each set of equals
    count = len(outputs)
    return distinct == count, f"{distinct} of {count} distances give an output of their own", distinct / count


def consistent(lab: Lab) -> Answer:
    """The first tokens' output, alone and within a longer input (decoders: more text; encoders: more padding).

    Encoders see all of a text, so of longer texts what enters their first layer is compared.
    """
    longer = min(lab.reach, 4 * lab.trained)
    short = min(lab.trained, longer) // 2
    change = lab.change(prefix_output(lab, short, short), prefix_output(lab, short, longer))
    if not lab.causal:
        vectors = input_change(lab, short, longer)
        if vectors > change:
            return vectors < 1e-4, f"input of {short // 2} tokens changes by {vectors:.2g} within {longer}", vectors
    return change < 1e-4, f"output of {short} tokens changes by {change:.2g} of its size within {longer}", change


def order_sensitive(lab: Lab) -> Answer:
    """The output at the last token when the tokens before it are permuted."""
    change = permutation_change(lab, 24)
    return change > 1e-4, f"permuting what comes before changes the last output by {change:.2g} of its size", change


def relative(lab: Lab) -> Answer:
    """Adding a constant to all positions; the largest change over the shifts that the encoding takes."""
    changes = {}
    for shift in SHIFTS:
        try:
            changes[shift] = shift_change(lab, min(2 * lab.trained, lab.reach // 2), shift)
        except TOO_FAR:
            continue
    if not changes:
        return None, f"no shift of {SHIFTS[0]} or more is possible: the encoding refuses the positions", None
    worst = max(changes.values())
    words = ", ".join(f"{change:.2g} of its size by +{shift}" for shift, change in changes.items())
    return worst < 1e-3, f"shifting all positions changes the output by {words}", worst


def bounded(lab: Lab) -> Answer:
    """Size of what the encoding brings in, at 16 L (or as far as it goes) over that at L."""
    size = sizes(lab)[0]
    figure = f"{size.what}: {size.near:.3g} up to L, {size.far:.3g} up to {size.last:,} tokens"
    return size.bounded, figure, size.growth


def extrapolates(lab: Lab) -> Answer:
    """Runs at 16 L, finite, and neither input vectors nor attention scores leave what training has shown by a tenth."""
    if lab.reach < 16 * lab.trained:
        return False, f"refuses inputs beyond {lab.reach:,} tokens", None
    if not finite(lab, 16 * lab.trained):
        return False, f"output is not finite at {16 * lab.trained:,} tokens", None
    grown = next((size for size in sizes(lab) if size.at_input and not size.bounded), None)
    if grown is not None:
        return False, f"input vectors grow to {grown.growth:.3g} times the largest within L", grown.growth
    rises = score_rise(lab, (2, 4, 8, 16))
    good = [times for times, rise in rises.items() if rise <= 0.1]
    worst = max(0.0, rises[16])
    held = 1
    for times in rises:
        if times not in good:
            break
        held = times
    words = f"finite at 16 L; scores beyond L rise by {100 * worst:.0f} % of their trained range"
    return worst <= 0.1, words if worst <= 0.1 else f"{words}, well-behaved up to {held} L", worst


def scalable(lab: Lab) -> Answer:
    """Largest tensor that a forward pass allocates, at two lengths four apart; time over the unpatched model's."""
    long = lab.reach
    short = long // 4
    small, large = largest_tensor(lab, short), largest_tensor(lab, long)
    exponent = power(small, large, short, long)
    dense = lab.heads * long * long
    ratio, count = time_ratio(lab, long)
    figure = (
        f"largest tensor {large:,} numbers at {long:,} tokens (H L^2 = {dense:,}), growing as L^{exponent:.1f}; "
        f"{ratio:.2f} x the unpatched model's time at {count:,} tokens"
    )
    return exponent < 1.5 and large < dense, figure, exponent


def cached(lab: Lab) -> Answer:
    """Token by token and in chunks with a cache, across the trained length, against one pass."""
    try:
        change = cache_change(lab)
    except UnsupportedError as error:
        return False, f"a cache cannot be continued: {error}", None
    if change is None:
        return None, "an encoder has no cache", None
    return change < 1e-4, f"decoding with a cache changes the output by {change:.2g} of its size", change


def precise(lab: Lab) -> Answer:
    """Error of bfloat16 against float32 at far positions, over that at near ones."""
    far = farthest(lab, FAR)
    near_error, far_error = bf16_error(lab, 0), bf16_error(lab, far)
    figure = f"error {near_error:.2g} of the output at position 0, {far_error:.2g} at {far:,}"
    return far_error < 2 * near_error, figure, far_error / near_error


PROPERTIES: dict[str, tuple[Callable[[Lab], Answer], str]] = {
    "unique": (unique, "every distance up to L can be told from every other"),
    "consistent": (consistent, "the same for a text alone and within a longer input"),
    "order-sensitive": (order_sensitive, "another order of the tokens gives another output"),
    "relative": (relative, "adding a constant to all positions changes nothing"),
    "bounded": (bounded, "its values do not grow with the length"),
    "extrapolates": (extrapolates, "finite and well-behaved at 16 L"),
    "scalable": (scalable, "memory grows in proportion to the length"),
    "cached = uncached": (cached, "decoding with a cache gives what one pass gives"),
    "precise in bfloat16": (precise, "far positions are as exact as near ones"),
}
"""Name -> (measurement, meaning)."""
