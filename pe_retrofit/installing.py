"""Install a plan on a model, and take it back. What was done is kept as data, so that copies of a model unpatch too."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import attention
from .attention.late import Fixed, LateRotation
from .attention.piecewise import PiecewiseRotation
from .attention.scale import LogitScale
from .encodings.fope import Fope, FopeConfig
from .encodings.learned import LearnedConfig
from .encodings.longrope import Longrope
from .encodings.nope import Nope, NopeConfig
from .encodings.rope import Rope, RopeConfig
from .errors import UnsupportedError
from .patchers import handoff, rotation, table, tails
from .patchers.context import PositionContext
from .patchers.family import Host
from .plan import Plan, check_unscaled, shape_for
from .proof import Proof
from .registry import NATIVE, get_encoding
from .sites import (
    BiasEncoding,
    InputEncoding,
    Installed,
    LocalInput,
    PiecewiseEncoding,
    RotationEncoding,
    ScoreEncoding,
)

CHILD = "position_encoding"
"""Name of the child module that carries what is installed on an attention, or on the base model."""

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


def install(host: Host, plan: Plan, applied: Applied, kernel: str | None) -> None:
    """Do what the plan says; ``applied`` always knows enough to undo what was done so far."""
    needs_context = needs_attention = False
    if host.family.rotary is not None:
        needs_context, needs_attention = _install_rotation(host, plan, applied)
    elif isinstance(plan.rotation, RopeConfig):
        _install_added_rope(host, plan, applied)
        needs_attention = True
    elif isinstance(plan.rotation, NopeConfig):
        needs_attention = _install_temperature(host, plan, applied)
    for config in [*plan.biases, *plan.scores]:
        for layer in plan.layers:
            kind = get_encoding(config.name)
            assert issubclass(kind, (BiasEncoding, ScoreEncoding))
            module = kind(config, shape_for(host, plan, layer))
            if host.reference_parameter(layer).device.type != "meta":
                module.start(keeps_native=plan.keeps_order)
            _child(host, applied, layer, config.name, _like(module, host, layer))
        needs_attention, applied.native = True, False
    if host.family.table is not None:
        needs_context |= _install_table(host, plan, applied)
    if plan.input is not None and (host.family.table is None or _local(plan)):
        _install_input(host, plan, applied)
        needs_context = True

    if needs_attention:
        applied.kernel = kernel or "auto"
        use_kernel(host, applied, applied.kernel)
        _use_attention(host, applied)
    if needs_context or needs_attention:
        context = PositionContext(
            packs_by_position=host.family.packs_by_position,
            required=attention.NAME if needs_attention else None,
            whole=_whole(plan),
            table_offset=host.reserved_rows if isinstance(host.table, table.ReplacedTable) else None,
            encodings=plan.names,
            base=host.base,
        )
        applied.handles.append(host.base.register_forward_pre_hook(context.before, with_kwargs=True))
        applied.handles.append(host.base.register_forward_hook(context.after, with_kwargs=True))
        applied.handles += _input_hooks(host, plan)
        for block, parent in zip(host.layers, host.attentions, strict=True):
            applied.handles += handoff.install(block, parent)


def _install_rotation(host: Host, plan: Plan, applied: Applied) -> tuple[bool, bool]:
    """Returns whether positions, and whether our attention function, are needed."""
    if plan.rotation is None:
        if not plan.keeps_native:
            applied.native = False
            _replace_rotation(host, applied, plan.layers)
        elif plan.scores:
            return _install_fixed(host, plan, applied, plan.layers, None)
        return False, False
    kind = get_encoding(plan.rotation.name)
    if issubclass(kind, PiecewiseEncoding):
        return _install_piecewise(host, plan, applied)
    assert issubclass(kind, RotationEncoding)
    encoding = kind(plan.rotation, shape_for(host, plan, plan.layers[0]))
    if isinstance(encoding, Nope):
        applied.native = False
        _replace_rotation(host, applied, plan.layers)
        return False, _install_temperature(host, plan, applied)

    if isinstance(encoding, Fope):
        return _install_series(host, plan, applied)

    names = rotation.native_sets(host, encoding)
    new = {name: encoding.rope_parameters(host.rope_sets[name]) for name in names}
    check_unscaled(host, plan.rotation, names, new)
    concerned = [i for i in plan.layers if None in names or host.config.layer_types[i] in names]
    if plan.scores and len(concerned) < len(plan.layers):
        _install_fixed(host, plan, applied, [i for i in plan.layers if i not in concerned], None)
    if kind.length_dependent:
        return _install_late(host, plan, applied, encoding, concerned)
    if plan.scores:
        return _install_fixed(host, plan, applied, concerned, encoding)
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


def _install_temperature(host: Host, plan: Plan, applied: Applied) -> bool:
    """NoPE's factors on the logits; returns whether there are any, which need our attention function."""
    assert isinstance(plan.rotation, NopeConfig)
    for layer in plan.layers:
        nope = Nope(plan.rotation, shape_for(host, plan, layer))
        scale = LogitScale(nope.logit_scale(), plan.rotation.attn_scale, nope.floor_scale())
        if scale.idle:
            return False
        _child(host, applied, layer, "nope", scale)
    return True


def _install_series(host: Host, plan: Plan, applied: Applied) -> tuple[bool, bool]:
    """FoPE: cos and sin of the model's own frequencies are mixed at each attention's door."""
    assert isinstance(plan.rotation, FopeConfig)
    if plan.scores:
        raise UnsupportedError(
            f"'fope' changes cos and sin before the attention, and {plan.scores[0].name!r} needs queries and keys from "
            "before their rotation. Use one of them."
        )
    turning = _turning(host, plan.layers)
    if not turning:
        raise UnsupportedError(f"Layers {plan.layers} do not rotate, so 'fope' has nothing to act on; choose others.")
    kinds = {host.rope_of(layer).get("rope_type") for layer in turning} & {"dynamic", "longrope"}
    if kinds:
        raise UnsupportedError(
            f"The model's own frequencies depend on the length of the text (rope_type={kinds.pop()!r}), and so would "
            "'fope' of cached keys. Set config.rope_parameters to frequencies that stay, e.g. rope_type='yarn', before "
            "loading."
        )
    rotation.check_layout(host, plan.rotation.name)
    clipped = False
    for layer in turning:
        inv_freq, scaling = rotation.frequencies(host, None, layer)
        module = Fope(plan.rotation, shape_for(host, plan, layer), inv_freq, scaling)
        clipped |= module.kept < len(inv_freq)
        _child(host, applied, layer, plan.rotation.name, _like(module, host, layer))
        _replace_rotation(host, applied, [layer], inv_freq, scaling, plan.rotation.name)
    if plan.rotation.clip and not clipped:
        raise UnsupportedError(
            f"clip=True clips nothing here: every frequency turns at least once in {plan.trained_length} tokens, the "
            "trained length. Pass clip=False."
        )
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
    turning = _turning(host, layers)
    for layer in turning:
        own = type(encoding)(plan.rotation, shape_for(host, plan, layer))
        _child(host, applied, layer, plan.rotation.name, LateRotation(plan.rotation.name, own, ropes[layer], scaling))
    _replace_rotation(host, applied, turning)
    if plan.all_layers and rotation.expressible(host, encoding):
        _edit_config(host, applied, rotation.edited_config(host, encoding))
    else:
        applied.native = False
    return True, True


def _install_fixed(
    host: Host, plan: Plan, applied: Applied, layers: list[int], encoding: RotationEncoding | None
) -> tuple[bool, bool]:
    """A rotation (None: the model's own) beside which queries and keys are needed as they were."""
    name = plan.rotation.name if plan.rotation is not None and encoding is not None else NATIVE[0]
    rotation.check_layout(host, plan.names, rotates=True)
    turning = _turning(host, layers)
    for layer in turning:
        inv_freq, scaling = rotation.frequencies(host, encoding, layer)
        _child(host, applied, layer, name, LateRotation(name, Fixed(inv_freq), host.rope_of(layer), scaling))
    _replace_rotation(host, applied, turning)
    applied.native = False
    return True, True


def _install_added_rope(host: Host, plan: Plan, applied: Applied) -> None:
    """A rotation inside the attention of a model that has none."""
    assert isinstance(plan.rotation, RopeConfig)
    for layer in plan.layers:
        inv_freq = Rope(plan.rotation, shape_for(host, plan, layer)).added_inv_freq().tolist()
        _child(host, applied, layer, "rope", LateRotation("rope", Fixed(inv_freq), {}, 1.0))
    applied.native = False


def _install_piecewise(host: Host, plan: Plan, applied: Applied) -> tuple[bool, bool]:
    """Keys are cached raw; attention rotates them piece by piece. Window layers of a rotation of their own keep it."""
    assert plan.rotation is not None
    rotation.check_layout(host, plan.rotation.name, rotates=True)
    names = rotation.extended_sets(host)
    concerned = [i for i in plan.layers if None in names or host.config.layer_types[i] in names]
    if plan.scores and len(concerned) < len(plan.layers):
        _install_fixed(host, plan, applied, [i for i in plan.layers if i not in concerned], None)
    turning = _turning(host, concerned)
    for layer in turning:
        kind = get_encoding(plan.rotation.name)
        assert issubclass(kind, PiecewiseEncoding)
        encoding = kind(plan.rotation, shape_for(host, plan, layer))
        inv_freq, scaling = rotation.frequencies(host, None, layer)
        _child(host, applied, layer, plan.rotation.name, PiecewiseRotation(encoding, inv_freq, scaling))
    _replace_rotation(host, applied, turning)
    applied.native = False
    return True, True


def _turning(host: Host, layers: list[int]) -> list[int]:
    """Those of the layers that rotate (SmolLM3 has some that do not)."""
    return [layer for layer in layers if getattr(host.attentions[layer], "use_rope", True)]


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
    if plan.keeps_native and (plan.input is None or _local(plan)):
        return False
    encoding: InputEncoding | None = None
    if plan.input is not None and not _local(plan):
        kind = get_encoding(plan.input.name)
        assert issubclass(kind, InputEncoding)
        encoding = kind(plan.input, shape_for(host, plan, 0))
        encoding = encoding.to(device=old.weight.device, dtype=old.weight.dtype)
        if old.weight.device.type != "meta":
            body = old.weight.detach()[host.reserved_rows :]
            encoding.fit(body, keeps_native=plan.keeps_native, embedding_rms=_embedding_rms(host))
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
    shape = replace(shape_for(host, plan, 0), hidden_size=host.config.hidden_size)  # a table may be narrower (ELECTRA)
    module = _like(kind(plan.input, shape), host, 0)
    if host.base.get_input_embeddings().weight.device.type != "meta":
        module.fit(None, keeps_native=plan.keeps_native, embedding_rms=_embedding_rms(host))
    installed = Installed()
    installed[plan.input.name] = module
    setattr(host.base, CHILD, installed.train(host.base.training))
    applied.input_child, applied.native = True, False
    hook = table.AddToInput(host.base)
    applied.handles.append(host.layers[0].register_forward_pre_hook(hook, with_kwargs=True))


def _input_hooks(host: Host, plan: Plan) -> list[Any]:
    """What an input encoding needs beside the positions: neighbours of the past, or the length of the text."""
    if plan.input is None:
        return []
    if _local(plan):
        remembered = tails.Tails(host.base)
        return [
            host.base.register_forward_pre_hook(remembered.before, with_kwargs=True),
            host.base.register_forward_hook(remembered.after, with_kwargs=True),
        ]
    kind = get_encoding(plan.input.name)
    if host.table is None or not issubclass(kind, InputEncoding) or not kind.needs_length:
        return []
    return [host.base.register_forward_pre_hook(table.tie_positions, with_kwargs=True)]


def _local(plan: Plan) -> bool:
    """Whether the input encoding looks at neighbours, and so acts after a position table instead of in its place."""
    return plan.input is not None and issubclass(get_encoding(plan.input.name), LocalInput)


def _whole(plan: Plan) -> bool:
    """Whether the input encoding cannot do with a part of the text."""
    kind = get_encoding(plan.input.name) if plan.input is not None else None
    return kind is not None and issubclass(kind, InputEncoding) and (issubclass(kind, LocalInput) or kind.needs_length)


def _embedding_rms(host: Host) -> float:
    return host.base.get_input_embeddings().weight.detach()[:4096].float().square().mean().sqrt().item()


def _replace_rotation(
    host: Host,
    applied: Applied,
    layers: list[int],
    inv_freq: list[float] | None = None,
    scaling: float = 1.0,
    through: str | None = None,
) -> None:
    hook = rotation.ReplaceRotation(inv_freq, scaling, through)
    for layer in layers:
        applied.handles.append(host.attentions[layer].register_forward_pre_hook(hook, with_kwargs=True))


def _child(host: Host, applied: Applied, layer: int, name: str, module: nn.Module) -> None:
    parent = host.attentions[layer]
    if not hasattr(parent, CHILD):
        setattr(parent, CHILD, Installed().train(parent.training))
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


def use_kernel(host: Host, applied: Applied, kernel: str) -> None:
    """Let the layers of a patch run on a kernel, or on the fastest that fits with ``auto``."""
    for layer in applied.children:
        setattr(host.attentions[layer], KERNEL, kernel)


def forget_compiled(model: nn.Module) -> None:
    """Drop compiled code if a part of the model is compiled: it was traced without, or with, the hooks of a patch.

    torch can only drop all there is in the process; what is still needed is compiled again at its next call.
    """
    for module in model.modules():
        own = vars(module)
        traced = hasattr(own.get("forward"), "_torchdynamo_orig_callable") or own.get("_compiled_call") is not None
        if traced or own.get("_compiled_call_impl") is not None or "_orig_mod" in module._modules:
            torch.compiler.reset()
            return


def undo(host: Host, applied: Applied) -> None:
    for handle in applied.handles:
        handle.remove()
    for layer in applied.children:
        for name in (CHILD, KERNEL):
            if hasattr(host.attentions[layer], name):
                delattr(host.attentions[layer], name)
    if applied.input_child:
        delattr(host.base, CHILD)
    for key, value in applied.config_before.items():
        setattr(host.config, key, value)
    if applied.rotary_before is not None:
        rotation.restore_rotary(host, applied.rotary_before)
    if applied.table_before is not None:
        table.restore_table(host, applied.table_before)
        applied.table_before.weight.requires_grad_(applied.table_trained)
        table.restore_buffers(host, applied.buffers_before)
    if applied.attention_before is not None:
        host.base.set_attn_implementation(applied.attention_before)
