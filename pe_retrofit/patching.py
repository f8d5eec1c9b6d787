"""``patch_model`` and ``unpatch_model``: give a pretrained model another positional encoding, in place."""

from __future__ import annotations

import warnings
from typing import Any, TypeVar

import torch
from torch import nn

from . import attention
from .config import EncodingConfig
from .encodings.learned import LearnedConfig
from .encodings.nope import NopeConfig
from .errors import ConfigError, UnsupportedError
from .installing import Applied, forget_compiled, install, undo, use_kernel
from .installing.applied import PATCHES
from .installing.saved import apply_saved, mark_patches
from .installing.stamp import unstamp
from .installing.strength import check_whole, detach
from .layering import Part, split_spec
from .marking import unmark
from .models import release_gguf
from .patchers.family import Host, find_host
from .plan import Plan, make_plan, parse_spec, settle_rope, shape_for
from .proof import TOKENS, probe, prove
from .registry import get_encoding
from .sites import PiecewiseEncoding, RotationEncoding

__all__ = ["STATE", "apply_saved", "patch_model", "unpatch_model"]

M = TypeVar("M", bound=nn.Module)

STATE = PATCHES
"""Attribute of the base model that lists its patches."""


@torch.inference_mode(False)  # parameters made in inference mode could never be trained
def patch_model(
    model: M, spec: Any, *, layers: Any = None, kernel: str | None = None, verify: bool = True, **options: Any
) -> M:
    """Replace or extend the positional encoding of a model, in place.

    Args:
        model: a transformers model of the families ``llama``, ``gpt_neox`` or ``bert`` with any head, or one wrapped by
            peft.
        spec: a name (see :func:`~pe_retrofit.list_encodings`), a config object, or a list to compose. ``"native"`` in
            a list keeps what the model had; without it the native encoding is removed. Or a mapping from layers to
            these: its keys are indices, tuples of indices, text such as ``"0,5,7"`` or ``"3::4"`` (every fourth from
            the fourth on), and ``"rest"`` for the layers not named; ``"native"`` as a value leaves layers as they are,
            as it does layers that are not named. All of it is done or nothing.
        layers: None for all, or an index, a slice or a list of indices of the layers to patch; not with a mapping.
        kernel: force an attention kernel: ``separable``, ``toeplitz``, ``skewed``, ``merged``, ``keyed``, ``dense``,
            ``blockwise``, ``flex`` or ``eager``. By default the fastest that fits is chosen at each call.
        verify: run a few tokens before and after, to prove what changed.
        **options: of the encoding, when ``spec`` is a name, e.g. ``factor=4.0``.

    Returns:
        The same model. Config, hooks and (for learned encodings) child modules ``position_encoding`` were added to this
        instance only; :func:`unpatch_model` takes all of it back.

    Raises:
        UnknownEncodingError: no such encoding; the nearest names are suggested.
        ConfigError: wrong options or layers, all of them in one message.
        UnsupportedError: this model, or this combination, cannot carry it; or the patch would have had no effect.
        TypeError: ``model`` or ``spec`` is of a wrong type.

    Example:
        >>> patch_model(model, "yarn", factor=4.0)
        >>> patch_model(model, ["native", "t5"])
        >>> patch_model(model, "nope", layers=slice(3, None, 4))
        >>> patch_model(model, {"3::4": NopeConfig(attn_scale=0.1), "rest": ["native", WindowConfig(512)]})
        >>> patch_model(model, "rnope", window=512)
    """
    if kernel is not None and (not isinstance(kernel, str) or kernel not in attention.KERNELS):
        raise ConfigError(
            f"kernel={kernel!r} is unknown; choose one of {', '.join(attention.KERNELS)}, or leave it out."
        )
    host = find_host(model)
    check_whole(host.base)
    parts = split_spec(spec, options, layers, len(host.layers))
    plans = [plan for part in parts if (plan := _plan(host, part)) is not None]
    if not plans:
        raise UnsupportedError("'native' on every layer changes nothing. Give some layers another encoding.")
    for plan in plans:
        _check_model(model, host, plan)
    release_gguf(model)

    detach(host.base)
    before = list(getattr(host.base, STATE, []))
    done: list[Applied] = []
    try:
        for plan in plans:
            done.append(_apply(model, host, plan, kernel, verify))
        if kernel is not None:
            _force_kernel(host, plans, done, kernel, verify)
    except BaseException:
        for applied in reversed(done):
            undo(host, applied)
        forget_compiled(model)
        raise
    setattr(host.base, STATE, [*before, *done])
    mark_patches(host, [*before, *done])
    for config in {c.name: c for plan in plans for c in plan.configs}.values():
        if breaks := get_encoding(config.name).info.breaks:
            message = f"{config.name!r} is for teaching and diagnosis, not for use: {breaks}."
            warnings.warn(message, UserWarning, stacklevel=3)  # the frame between is inference_mode's
    return model


def _plan(host: Host, part: Part) -> Plan | None:
    """What to do on the layers of a part; None where they stay as they are."""
    configs, keeps_native = parse_spec(part.spec, part.options)
    configs, keeps_native = settle_rope(host, configs, keeps_native)
    if part.of_several and not configs:
        return None
    return make_plan(host, configs, keeps_native, part.layers)


def _apply(model: nn.Module, host: Host, plan: Plan, kernel: str | None, verify: bool) -> Applied:
    """Install one plan and prove what it changed, or take it back."""
    lengths = _probe_lengths(host, plan) if verify else []
    before = [probe(host, n) for n in lengths]
    applied = Applied(plan.entries, plan.names, plan.layers, plan.all_layers)
    try:
        install(host, plan, applied, kernel)
        forget_compiled(model)
        if verify:
            use_kernel(host, applied, "auto")  # a forced one need not run the scattered positions of the proof
            after = [probe(host, n) for n in lengths]
            applied.proof = prove(
                plan.names,
                before[0],
                after[0],
                may_be_identity=_may_be_identity(host, plan),
                must_change_beyond=len(lengths) > 1 and getattr(plan.rotation, "factor", 1.0) != 1.0,
                beyond=(before[1], after[1]) if len(lengths) > 1 else None,
                layers=plan.layers,
                tolerance=0.01 if host.base.dtype in (torch.float32, torch.float64) else 0.5,
            )
    except BaseException:
        undo(host, applied)
        forget_compiled(model)
        raise
    return applied


def _force_kernel(host: Host, plans: list[Plan], done: list[Applied], kernel: str, verify: bool) -> None:
    """Use a kernel in all parts that have one of ours, and see that it runs."""
    ours = [applied for applied in done if applied.kernel is not None]
    if not ours:
        raise UnsupportedError(
            f"kernel={kernel!r} has no meaning for {done[0].names!r}: it needs no attention kernel of its own and runs "
            "on whatever attention implementation the model uses."
        )
    for applied in ours:
        use_kernel(host, applied, kernel)
    if verify:  # neighbours, so that it refuses here and not at the first call
        probe(host, min(TOKENS, *(_probe_lengths(host, plan)[0] for plan in plans)))


def unpatch_model(model: M) -> M:
    """Take every patch back; the model is bit-exactly what it was.

    Args:
        model: a patched model, or one that is not (then nothing happens).

    Returns:
        The same model.
    """
    host = find_host(model)
    detach(host.base)
    for applied in reversed(getattr(host.base, STATE, [])):
        undo(host, applied)
    host.base.__dict__.pop(STATE, None)
    unmark(host.config)
    unstamp(host)
    forget_compiled(model)
    return model


def _check_model(model: nn.Module, host: Host, plan: Plan) -> None:
    learned = any(p.numel() for c in plan.configs for p in _parameters_of(host, plan, c))
    learned |= any(isinstance(c, NopeConfig) and c.gains for c in plan.configs)
    for applied in getattr(host.base, STATE, []):
        shared = sorted(set(applied.layers) & set(plan.layers))
        if shared:
            raise UnsupportedError(
                f"Layers {shared} are already patched with {applied.names!r}. Call unpatch_model(model) first, or "
                f"patch once with a list that composes: ['native', {plan.configs[0].name!r}]."
            )
    parameters = list(host.base.parameters())
    if any(p.device.type == "meta" for p in parameters):
        raise UnsupportedError(
            "The model has parameters on the meta device (not loaded, or offloaded by accelerate), so the patch could "
            "be neither installed nor checked. Load it onto a device first, then patch."
        )
    if any(type(p).__name__ == "DTensor" for p in parameters) or (getattr(host.base, "_tp_size", None) or 1) > 1:
        raise UnsupportedError(
            "The model is sharded (tensor parallel or FSDP2): each rank holds a part of the heads. Patch first, then "
            "shard it."
        )
    top = getattr(model, "config", None)
    if hasattr(top, "get_text_config") and top is not host.config and not hasattr(model, "peft_config"):
        raise UnsupportedError(
            f"{type(model).__name__} is a composite model whose text part has a config of its own; saved as a whole it "
            f"would lose the patch. Patch the text model alone ({type(host.base).__name__})."
        )
    if learned and hasattr(model, "peft_config"):
        raise UnsupportedError(
            f"{plan.names!r} has learned parameters, which an existing peft adapter would not save. Patch the plain "
            "model first and wrap it then, with LoraConfig(..., modules_to_save=['position_encoding'])."
        )


def _parameters_of(host: Host, plan: Plan, config: EncodingConfig) -> list[nn.Parameter]:
    kind = get_encoding(config.name)
    extends = isinstance(config, LearnedConfig) and host.table is not None  # a table that exists only grows
    if not issubclass(kind, nn.Module) or extends:
        return []
    return list(kind(config, shape_for(host, plan, 0)).parameters())


def _probe_lengths(host: Host, plan: Plan) -> list[int]:
    trained = min(plan.trained_length, 2**20)
    kind = get_encoding(plan.rotation.name) if plan.rotation else None
    late = kind is not None and issubclass(kind, RotationEncoding) and kind.length_dependent
    beyond = late or (kind is not None and issubclass(kind, PiecewiseEncoding))
    return [trained, 4 * trained] if beyond else [trained]


def _may_be_identity(host: Host, plan: Plan) -> bool:
    keeps = plan.keeps_native
    if not keeps and plan.rotation is None and not (isinstance(plan.input, LearnedConfig) and host.table is not None):
        return False
    shape = shape_for(host, plan, plan.layers[0])
    return all(get_encoding(c.name).identity(c, keeps_native=keeps, host=shape) for c in plan.configs)
