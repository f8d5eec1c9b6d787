"""``patch_model`` and ``unpatch_model``: give a pretrained model another positional encoding, in place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from . import attention
from .attention.interface import LogitScale
from .attention.late import LateRotation
from .config import EncodingConfig
from .encodings.base import BiasEncoding, InputEncoding, RotationEncoding
from .encodings.learned import LearnedConfig
from .encodings.longrope import Longrope
from .encodings.nope import Nope, NopeConfig
from .errors import ConfigError, UnsupportedError
from .marking import mark, unmark
from .patchers import handoff, rotation, table
from .patchers.context import PositionContext
from .patchers.family import Host, find_host
from .plan import Plan, check_unscaled, make_plan, parse_spec, shape_for
from .proof import Proof, probe, prove
from .registry import get_encoding

M = TypeVar("M", bound=nn.Module)

STATE = "_position_encoding_patches"
CHILD = "position_encoding"
KERNEL = "_position_encoding_kernel"


@dataclass
class Applied:
    """One patch on a model, with all that is needed to take it back.

    Attributes:
        entries: the spec as JSON.
        names: the spec in words.
        layers: layers concerned.
        all_layers: whether these are all.
        native: transformers' own config says it all; a saved model is a plain one.
        kernel: the kernel the user forced, or ``auto``; None when no kernel of ours is involved.
        proof: what the patch changed.
    """

    entries: list[dict[str, Any]]
    names: str
    layers: list[int]
    all_layers: bool
    native: bool = True
    kernel: str | None = None
    proof: Proof | None = None
    handles: list[Any] = field(default_factory=list)
    config_before: dict[str, Any] = field(default_factory=dict)
    attention_before: str | None = None
    rotary_before: nn.Module | None = None
    table_before: nn.Embedding | None = None
    table_trained: bool = True
    buffers_before: dict[str, Tensor] = field(default_factory=dict)
    children: list[int] = field(default_factory=list)
    input_child: bool = False


def patch_model(
    model: M, spec: Any, *, layers: Any = None, kernel: str | None = None, verify: bool = True, **options: Any
) -> M:
    """Replace or extend the positional encoding of a model, in place.

    Args:
        model: a transformers model of the families ``llama``, ``gpt_neox`` or ``bert`` with any head, or one wrapped by
            peft.
        spec: a name (see :func:`~pe_retrofit.list_encodings`), a config object, or a list to compose. ``"native"`` in
            a list keeps what the model had; without it the native encoding is removed.
        layers: None for all, or an index, a slice or a list of indices of the layers to patch.
        kernel: force an attention kernel: ``separable``, ``toeplitz``, ``blockwise``, ``flex`` or ``eager``. By
            default the fastest that fits is chosen at each call.
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
    """
    if kernel is not None and kernel not in attention.KERNELS:
        raise ConfigError(
            f"kernel={kernel!r} is unknown; choose one of {', '.join(attention.KERNELS)}, or leave it out."
        )
    host = find_host(model)
    configs, keeps_native = parse_spec(spec, options)
    if keeps_native and host.family.rotary is None and spec_names_rope(spec):
        raise UnsupportedError(
            f"{type(host.base).__name__} has no rotation to keep; 'native' keeps its position table."
        )
    plan = make_plan(host, configs, keeps_native, layers)
    _check_model(model, host, plan)
    _release_gguf(model)

    lengths = _probe_lengths(host, plan) if verify else []
    before = [probe(host, n) for n in lengths]
    applied = Applied(plan.entries, plan.names, plan.layers, plan.all_layers)
    try:
        _install(host, plan, applied, kernel)
        if verify:
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
        _undo(host, applied)
        raise
    patches = [*getattr(host.base, STATE, []), applied]
    setattr(host.base, STATE, patches)
    _remark(host, patches)
    return model


def unpatch_model(model: M) -> M:
    """Take every patch back; the model is bit-exactly what it was.

    Args:
        model: a patched model, or one that is not (then nothing happens).

    Returns:
        The same model.
    """
    host = find_host(model)
    for applied in reversed(getattr(host.base, STATE, [])):
        _undo(host, applied)
    host.base.__dict__.pop(STATE, None)
    unmark(host.config)
    return model


def apply_saved(model: nn.Module, patches: list[dict[str, Any]]) -> None:
    """Patch a model as its config says, without probing; for models still on the meta device."""
    for patch in patches:
        host = find_host(model)
        configs, keeps_native = parse_spec(patch["encodings"], {})
        plan = make_plan(host, configs, keeps_native, patch.get("layers"))
        applied = Applied(plan.entries, plan.names, plan.layers, plan.all_layers)
        _install(host, plan, applied, None)
        setattr(host.base, STATE, [*getattr(host.base, STATE, []), applied])
        _remark(host, getattr(host.base, STATE))


def spec_names_rope(spec: Any) -> bool:
    """Whether a spec asks for ``rope`` by that name."""
    items = spec if isinstance(spec, (list, tuple)) else [spec]
    return any(item == "rope" or (isinstance(item, dict) and item.get("name") == "rope") for item in items)


def _check_model(model: nn.Module, host: Host, plan: Plan) -> None:
    learned = any(p.numel() for c in plan.configs for p in _parameters_of(host, plan, c))
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
    if not issubclass(kind, nn.Module) or isinstance(config, LearnedConfig):
        return []
    return list(kind(config, shape_for(host, plan, 0)).parameters())


def _release_gguf(model: nn.Module) -> None:
    """A model loaded from GGUF is dequantised, yet transformers refuses to save it while it looks quantised."""
    method = getattr(model, "quantization_method", None)
    if method is None or getattr(method, "value", method) != "gguf":
        return
    for name in ("is_quantized", "quantization_method", "hf_quantizer"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("quantization_config", None)


def _probe_lengths(host: Host, plan: Plan) -> list[int]:
    trained = min(plan.trained_length, 2**20)
    kind = get_encoding(plan.rotation.name) if plan.rotation else None
    extends = kind is not None and issubclass(kind, RotationEncoding) and kind.length_dependent
    return [trained, 4 * trained] if extends else [trained]


def _may_be_identity(host: Host, plan: Plan) -> bool:
    keeps = plan.keeps_native
    if not keeps and plan.rotation is None and not (isinstance(plan.input, LearnedConfig) and host.table is not None):
        return False
    shape = shape_for(host, plan, plan.layers[0])
    return all(get_encoding(c.name).identity(c, keeps_native=keeps, host=shape) for c in plan.configs)


def _install(host: Host, plan: Plan, applied: Applied, kernel: str | None) -> None:
    """Do what the plan says; ``applied`` always knows enough to undo what was done so far."""
    needs_context = needs_attention = False
    if host.family.rotary is not None:
        needs_context, needs_attention = _install_rotation(host, plan, applied)
    elif isinstance(plan.rotation, NopeConfig) and plan.rotation.temperature:
        for layer in plan.layers:
            factor = Nope(plan.rotation, shape_for(host, plan, layer)).logit_scale()
            _child(host, applied, layer, "nope", LogitScale(factor))
        needs_attention = True
    for config in plan.biases:
        for layer in plan.layers:
            kind = get_encoding(config.name)
            assert issubclass(kind, BiasEncoding)
            module = kind(config, shape_for(host, plan, layer))
            _child(host, applied, layer, config.name, _like(module, host, layer))
        needs_attention, applied.native = True, False
    if host.family.table is not None:
        needs_context |= _install_table(host, plan, applied)
    elif plan.input is not None:
        _install_input(host, plan, applied)
        needs_context = True

    if needs_attention:
        applied.kernel = kernel or "auto"
        for layer in applied.children:
            setattr(host.attentions[layer], KERNEL, applied.kernel)
        _use_attention(host, applied)
    elif kernel is not None:
        raise UnsupportedError(
            f"kernel={kernel!r} has no meaning for {plan.names!r}: it needs no attention kernel of its own and runs on "
            "whatever attention implementation the model uses."
        )
    if needs_context or needs_attention:
        context = PositionContext(
            packs_by_position=host.family.packs_by_position,
            required=attention.NAME if needs_attention else None,
            table_offset=host.reserved_rows if isinstance(host.table, table.ReplacedTable) else None,
            encodings=plan.names,
            base=host.base,
        )
        applied.handles.append(host.base.register_forward_pre_hook(context.before, with_kwargs=True))
        applied.handles.append(host.base.register_forward_hook(context.after, with_kwargs=True))
        for layer in plan.layers:
            applied.handles += handoff.install(host.layers[layer], host.attentions[layer])


def _install_rotation(host: Host, plan: Plan, applied: Applied) -> tuple[bool, bool]:
    """Returns whether positions, and whether our attention function, are needed."""
    if plan.rotation is None:
        if not plan.keeps_native:
            applied.native = False
            _replace_rotation(host, applied, plan.layers)
        return False, False
    kind = get_encoding(plan.rotation.name)
    assert issubclass(kind, RotationEncoding)
    encoding = kind(plan.rotation, shape_for(host, plan, plan.layers[0]))
    if isinstance(encoding, Nope):
        applied.native = False
        _replace_rotation(host, applied, plan.layers)
        scale = encoding.logit_scale()
        if scale != 1.0:
            for layer in plan.layers:
                _child(host, applied, layer, "nope", LogitScale(scale))
        return False, scale != 1.0

    names = rotation.native_sets(host, encoding)
    new = {name: encoding.rope_parameters(host.rope_sets[name]) for name in names}
    check_unscaled(host, plan.rotation, names, new)
    concerned = [i for i in plan.layers if None in names or host.config.layer_types[i] in names]
    if kind.length_dependent:
        return _install_late(host, plan, applied, encoding, concerned)
    if plan.all_layers and rotation.expressible(host, encoding):
        edited = rotation.edited_config(host, encoding)
        _edit_config(host, applied, edited)
        applied.rotary_before = host.rotary
        setattr(host.base, str(host.family.rotary), rotation.rebuild_rotary(host))
        return False, False
    rotation.check_layout(host, plan.rotation.name)
    for layer in concerned:
        inv_freq, scaling = rotation.frequencies(host, encoding, layer)
        _replace_rotation(host, applied, [layer], inv_freq, scaling)
    applied.native = False
    return True, False


def _install_late(
    host: Host, plan: Plan, applied: Applied, encoding: RotationEncoding, layers: list[int]
) -> tuple[bool, bool]:
    """Length-dependent rotations: keys are cached raw, attention rotates them."""
    assert plan.rotation is not None
    rotation.check_layout(host, plan.rotation.name, rotates=True)
    scaling = encoding.attention_factor() if isinstance(encoding, Longrope) else 1.0
    ropes = {layer: host.rope_of(layer) for layer in layers}
    turning = [layer for layer in layers if getattr(host.attentions[layer], "use_rope", True)]
    for layer in turning:
        own = type(encoding)(plan.rotation, shape_for(host, plan, layer))
        _child(host, applied, layer, plan.rotation.name, LateRotation(own, ropes[layer], scaling))
    _replace_rotation(host, applied, turning)
    if plan.all_layers:
        _edit_config(host, applied, rotation.edited_config(host, encoding))
    else:
        applied.native = False
    return True, True


def _install_table(host: Host, plan: Plan, applied: Applied) -> bool:
    old = host.table
    assert old is not None
    if isinstance(plan.input, LearnedConfig):
        new = table.extended(host, plan.input)
        applied.table_before = old
        rows = len(new.weight)
        table.set_table(host, new)
        applied.buffers_before = table.resize_buffers(host, rows)
        _edit_config(host, applied, {"max_position_embeddings": rows})
        return False
    if plan.keeps_native and plan.input is None:
        return False
    encoding: InputEncoding | None = None
    if plan.input is not None:
        kind = get_encoding(plan.input.name)
        assert issubclass(kind, InputEncoding)
        encoding = kind(plan.input, shape_for(host, plan, 0))
        encoding = encoding.to(device=old.weight.device, dtype=old.weight.dtype)
        if old.weight.device.type != "meta":
            encoding.fit(old.weight.detach()[host.reserved_rows :], keeps_native=plan.keeps_native, embedding_rms=0.0)
    applied.table_before, applied.table_trained, applied.native = old, old.weight.requires_grad, False
    new_table = table.ReplacedTable(old, encoding, host.reserved_rows, keeps_rows=plan.keeps_native)
    if not plan.keeps_native:
        old.weight.requires_grad_(False)  # a parameter that gets no gradient would stop distributed training
    table.set_table(host, new_table.train(old.training))
    return True


def _install_input(host: Host, plan: Plan, applied: Applied) -> None:
    assert plan.input is not None
    kind = get_encoding(plan.input.name)
    assert issubclass(kind, InputEncoding)
    module = _like(kind(plan.input, shape_for(host, plan, 0)), host, 0)
    embeddings = host.base.get_input_embeddings().weight
    if embeddings.device.type != "meta":
        rms = embeddings.detach()[:4096].float().square().mean().sqrt().item()
        module.fit(None, keeps_native=plan.keeps_native, embedding_rms=rms)
    setattr(host.base, CHILD, nn.ModuleDict({plan.input.name: module}))
    applied.input_child, applied.native = True, False
    hook = table.AddToInput(module)
    applied.handles.append(host.layers[0].register_forward_pre_hook(hook, with_kwargs=True))


def _replace_rotation(
    host: Host, applied: Applied, layers: list[int], inv_freq: list[float] | None = None, scaling: float = 1.0
) -> None:
    hook = rotation.ReplaceRotation(inv_freq, scaling)
    for layer in layers:
        applied.handles.append(host.attentions[layer].register_forward_pre_hook(hook, with_kwargs=True))


def _child(host: Host, applied: Applied, layer: int, name: str, module: nn.Module) -> None:
    parent = host.attentions[layer]
    if not hasattr(parent, CHILD):
        setattr(parent, CHILD, nn.ModuleDict())
    getattr(parent, CHILD)[name] = module.train(parent.training)
    if layer not in applied.children:
        applied.children.append(layer)


def _like(module: Any, host: Host, layer: int) -> Any:
    """A new module where the layer's parameters are, in their dtype."""
    reference = host.reference_parameter(layer)
    return module.to(device=reference.device, dtype=reference.dtype)


def _edit_config(host: Host, applied: Applied, values: dict[str, Any]) -> None:
    for key, value in values.items():
        applied.config_before[key] = getattr(host.config, key)
        setattr(host.config, key, value)


def _use_attention(host: Host, applied: Applied) -> None:
    attention.register()
    before = host.config._attn_implementation
    if before != attention.NAME:
        applied.attention_before = before or "eager"
        host.base.set_attn_implementation(attention.NAME)
    if host.config._attn_implementation != attention.NAME:
        raise UnsupportedError(
            f"{type(host.base).__name__} does not let its attention function be chosen (no AttentionInterface), so a "
            "bias or a rotation of ours cannot reach it. Encodings that only edit the config, and 'nope', may work."
        )


def _undo(host: Host, applied: Applied) -> None:
    for handle in applied.handles:
        handle.remove()
    for layer in applied.children:
        for name in (CHILD, KERNEL):
            if hasattr(host.attentions[layer], name):
                delattr(host.attentions[layer], name)
    if applied.input_child:
        delattr(host.base, CHILD)
    if applied.rotary_before is not None:
        setattr(host.base, str(host.family.rotary), applied.rotary_before)
    if applied.table_before is not None:
        applied.table_before.weight.requires_grad_(applied.table_trained)
        table.set_table(host, applied.table_before)
        table.restore_buffers(host, applied.buffers_before)
    for key, value in applied.config_before.items():
        setattr(host.config, key, value)
    if applied.attention_before is not None:
        host.base.set_attn_implementation(applied.attention_before)


def _remark(host: Host, patches: list[Applied]) -> None:
    """Make the config say what the model carries; a plain model stays plain."""
    if all(applied.native for applied in patches):
        return
    original: dict[str, Any] = {}
    for applied in patches:
        for key, value in applied.config_before.items():
            original.setdefault(key, value)
    blocks = [{"encodings": a.entries, "layers": None if a.all_layers else a.layers} for a in patches]
    mark(host.config, blocks, original)
