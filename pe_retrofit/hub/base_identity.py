"""Which base model an adapter belongs to: its name, its shape, and samples of its own weights."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..installing.applied import CHILD, PATCHES
from ..patchers.family import find_host

TENSORS, VALUES = 16, 32
"""So many tensors are looked at, and so many values of each."""

MOST_TENSORS = 256
"""Records with more samples than this are refused."""

ROUNDING = {"float16": 2.0**-10, "bfloat16": 2.0**-7}
"""Relative tolerance where weights went through a dtype: twice its spacing."""

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


@dataclass(frozen=True)
class BaseIdentity:
    """A base model, without its adapter and without position parameters.

    Attributes:
        name: hub id, or the last component of a local path; None when unknown.
        revision: commit hash on the Hub; None when unknown.
        model_type: of the host, e.g. ``llama``.
        shape: the sizes that must agree, by name.
        dtype: of the weights that were sampled.
        samples: evenly spaced values of evenly spaced tensors, by their name below the base model; empty when the
            weights were spread over processes or not loaded.
    """

    name: str | None
    revision: str | None
    model_type: str
    shape: dict[str, int]
    dtype: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @property
    def digest(self) -> str:
        """Twelve letters that stand for the samples."""
        return hashlib.sha256(json.dumps(self.samples, sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def from_plain(cls, found: Any) -> BaseIdentity:
        """What :meth:`to_plain` gave.

        Raises:
            ConfigError: it is malformed.
        """
        try:
            made = cls(
                name=None if found["name"] is None else str(found["name"])[:500],
                revision=None if found["revision"] is None else str(found["revision"])[:100],
                model_type=str(found["model_type"])[:100],
                shape={str(key): int(value) for key, value in dict(found["shape"]).items()},
                dtype=str(found["dtype"])[:40],
                samples={str(n): [float(v) for v in values] for n, values in dict(found["samples"]).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"'base' is malformed ({type(error).__name__}: {error})") from error
        if len(made.samples) > MOST_TENSORS or any(len(v) > 4 * VALUES for v in made.samples.values()):
            raise ConfigError(f"'base.samples' may hold {MOST_TENSORS} tensors of {4 * VALUES} values at most")
        return made


def identify(model: Any) -> BaseIdentity:
    """The identity of the base under a model.

    Args:
        model: plain, patched, or wrapped by peft; perhaps quantised (then the tensors that are not are sampled).
    """
    host = find_host(model)
    config = host.config
    own = {name: tensor for name, tensor in own_tensors(model) if tensor.is_floating_point()}
    names = _spread(sorted(own), TENSORS)
    whole = all(_is_here(own[name]) for name in names)
    name = getattr(config, "_name_or_path", "") or ""
    return BaseIdentity(
        name=plain_name(name),
        revision=getattr(config, "_commit_hash", None),
        model_type=config.model_type,
        shape=_shape(host),
        dtype=str(own[names[0]].dtype).removeprefix("torch.") if names else "none",
        samples={name: sample(own[name]) for name in names} if whole else {},
    )


def plain_name(name: str) -> str | None:
    """A hub id as it is, a path by its last component."""
    if _HUB_ID.fullmatch(name) and not name.startswith(".") and not Path(name).exists():
        return name
    return Path(name).name or None


def own_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of the base model itself: without adapters, position parameters and position tables.

    The names are those of the plain base model, whatever wraps it.
    """
    host = find_host(model)
    for name, tensor in host.base.named_parameters():
        parts = name.split(".")
        if (
            CHILD in parts
            or "modules_to_save" in parts
            or any(part.startswith(("lora_", "trainable_")) for part in parts)
        ):
            continue
        if host.family.table and name.startswith(f"{host.family.table}."):
            continue
        yield ".".join(p for p in parts if p not in ("base_layer", "original_module", "token_adapter")), tensor


def sample(tensor: Tensor) -> list[float]:
    """Evenly spaced values, exact in any dtype."""
    flat = tensor.detach().reshape(-1)
    where = torch.linspace(0, flat.numel() - 1, min(VALUES, flat.numel()), dtype=torch.float64).long()
    return [float(value) for value in flat[where.to(flat.device)].to("cpu", torch.float64).tolist()]


def differences(recorded: BaseIdentity, model: Any, *, scaled: bool = False) -> list[str]:
    """What of a model's base is not as recorded: a line each, with both values; empty when all agrees.

    Args:
        recorded: of an adapter.
        model: to compare.
        scaled: it has its scaling in its config, so that the length there is not the trained one.

    Weights must be equal where the dtype is the recorded one; loaded in another, they must agree up to rounding.
    """
    there = identify(model)
    lines = []
    if recorded.model_type != there.model_type:
        lines.append(f"model_type is {there.model_type!r}, and the adapter's was {recorded.model_type!r}")
    for key, value in recorded.shape.items():
        if there.shape.get(key) != value and not (scaled and key == "trained_length"):
            lines.append(f"{key} is {there.shape.get(key)}, and the adapter's was {value}")
    if recorded.revision and there.revision and recorded.revision != there.revision:
        lines.append(
            f"revision is {there.name}@{there.revision}, and the adapter's was {recorded.name}@{recorded.revision}"
        )
    if not lines and (line := _weights_differ(recorded, there, model)):
        lines.append(line)
    return lines


def _weights_differ(recorded: BaseIdentity, there: BaseIdentity, model: Any) -> str | None:
    own = {n: t for n, t in own_tensors(model) if n in recorded.samples and t.is_floating_point() and _is_here(t)}
    if not recorded.samples or not own:  # shape and revision are all there is to go by
        return None
    apart = []
    for name, tensor in own.items():
        values, found = torch.tensor(recorded.samples[name]), torch.tensor(sample(tensor))
        dtype = str(tensor.dtype).removeprefix("torch.")
        allowed = 0.0 if dtype == recorded.dtype else max(ROUNDING.get(d, 1e-6) for d in (dtype, recorded.dtype))
        scale = values.abs().max().item() if len(values) else 0.0
        if len(values) != len(found) or not ((values - found).abs() <= allowed * scale).all():
            apart.append((name, values, found))
    if not apart:
        return None
    name, values, found = apart[0]
    at = int((values - found).abs().argmax()) if len(values) == len(found) else 0
    return (
        f"its weights are not the adapter's base ({len(apart)} of {len(own)} sampled tensors differ, such as {name}: "
        f"{found[at]:.6g}, and the adapter's had {values[at]:.6g}; fingerprint {there.digest}, and the adapter's was "
        f"{recorded.digest})"
    )


def _shape(host: Any) -> dict[str, int]:
    config = host.config
    applied = getattr(host.base, PATCHES, [])
    lengths = [
        a.config_before["max_position_embeddings"] for a in applied if "max_position_embeddings" in a.config_before
    ]
    sizes = {
        "layers": len(host.layers),
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        "head_dim": host.shape().head_dim,
        "vocabulary": host.base.get_input_embeddings().weight.shape[0],
        "trained_length": lengths[0] if lengths else config.max_position_embeddings,
    }
    return {key: int(value) for key, value in sizes.items()}


def _spread(names: list[str], count: int) -> list[str]:
    """So many of them, evenly spaced, first and last included."""
    if len(names) <= count:
        return names
    return [names[round(i * (len(names) - 1) / (count - 1))] for i in range(count)]


def _is_here(tensor: Tensor) -> bool:
    return not tensor.is_meta and type(tensor).__name__ != "DTensor"
