"""Default starts against calibrated ones: perplexity on text that calibration has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ...likelihood import perplexity
from ...patching import patch_model, unpatch_model
from ...progress import Report
from .calibrate import Calibration, calibrate
from .options import CalibrateOptions

CALIBRATED = (
    *("t5", "alibi", "kerple", "fire", "mlp", "sandwich", "nope"),
    *("shaw", "transformer_xl", "deberta", "cope", "fox"),
)
"""The encodings that calibration fits in place of a rotation."""


@dataclass(frozen=True)
class Start:
    """One encoding in place of a model's own.

    Attributes:
        name: of the encoding.
        stock, default, calibrated: perplexity of the original, with the default start, and calibrated; None where the
            model predicts no next tokens.
        before, after: mean divergence of attention from the original's, in nats per head and query.
        seconds: the calibration took.
    """

    name: str
    stock: float | None
    default: float | None
    calibrated: float | None
    before: float
    after: float
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def measure_start(
    model: Any,
    name: str,
    spec: Any,
    ids: Tensor,
    options: CalibrateOptions,
    *,
    layers: Any = None,
    stock: float | None = None,
    report: Report | None = None,
) -> tuple[Start, Calibration]:
    """Patch with the default start, measure, lift; calibrate, measure. The model stays calibrated.

    Args:
        model: in evaluation mode, not patched.
        name: for the result.
        spec, layers: as for :func:`~pe_retrofit.patch_model`.
        ids: token ids ``[w, n]``: the first ``options.windows`` are calibrated on, the others measured.
        stock: perplexity of the model on those others, where it is known already.
        report: told of the progress.
    """
    seen, held_out = ids[: options.windows], ids[options.windows :]
    stock = perplexity(model, held_out) if stock is None else stock
    patch_model(model, spec, layers=layers)
    try:
        default = perplexity(model, held_out)
    finally:
        unpatch_model(model)
    done = calibrate(model, spec, seen, layers=layers, options=options, report=report)
    found = done.to_dict()
    row = Start(
        name, stock, default, perplexity(model, held_out), found["before"], found["after"], round(done.seconds, 1)
    )
    return row, done


def compare_starts(
    model: Any,
    specs: Sequence[tuple[str, Any]],
    ids: Tensor,
    options: CalibrateOptions,
    *,
    layers: Any = None,
    report: Report | None = None,
) -> list[Start]:
    """One row per encoding; the model is as it was in the end."""
    stock = perplexity(model, ids[options.windows :])
    rows = []
    for name, spec in specs:
        told = None if report is None else _prefixed(report, name)
        try:
            row, _ = measure_start(model, name, spec, ids, options, layers=layers, stock=stock, report=told)
        finally:
            unpatch_model(model)
        rows.append(row)
    return rows


def _prefixed(report: Report, name: str) -> Report:
    return lambda what, done, total: report(f"{name}: {what}", done, total)
