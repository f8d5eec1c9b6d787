"""Install a rotation: in the config, at each attention's door, or inside the attention."""

from __future__ import annotations

from ..attention.gain import QueryGain
from ..attention.late import Fixed, LateRotation
from ..attention.piecewise import PiecewiseRotation
from ..attention.scale import LogitScale
from ..encodings.fope import Fope, FopeConfig
from ..encodings.longrope import Longrope
from ..encodings.nope import Nope, NopeConfig
from ..encodings.rope import Rope, RopeConfig
from ..errors import UnsupportedError
from ..patchers import rotation
from ..patchers.family import Host
from ..plan import Plan, check_unscaled, shape_for
from ..registry import NATIVE, get_encoding
from ..sites import PiecewiseEncoding, RotationEncoding
from .applied import Applied, add_child, edit_config, like, replace_rotation


def install_rotation(host: Host, plan: Plan, applied: Applied) -> tuple[bool, bool]:
    """Returns whether positions, and whether our attention function, are needed."""
    if plan.rotation is None:
        if not plan.keeps_native:
            applied.native = False
            replace_rotation(host, applied, plan.layers)
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
        replace_rotation(host, applied, plan.layers)
        return False, install_temperature(host, plan, applied)

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
        edit_config(host, applied, edited)
        applied.rotary_before = host.rotary
        setattr(host.base, str(host.family.rotary), rotation.rebuild_rotary(host))
        return False, False
    rotation.check_layout(host, plan.rotation.name)
    for layer in concerned:
        inv_freq, scaling = rotation.frequencies(host, encoding, layer)
        replace_rotation(host, applied, [layer], inv_freq, scaling)
    applied.native = False
    return True, False


def install_temperature(host: Host, plan: Plan, applied: Applied) -> bool:
    """NoPE's factors on the logits and gains on the queries; returns whether any needs our attention function."""
    assert isinstance(plan.rotation, NopeConfig)
    needed = False
    for layer in plan.layers:
        shape = shape_for(host, plan, layer)
        nope = Nope(plan.rotation, shape)
        scale = LogitScale(nope.logit_scale(), plan.rotation.attn_scale, nope.floor_scale())
        if not scale.idle:
            add_child(host, applied, layer, "nope", scale)
            needed = True
        if plan.rotation.gains:
            _check_gains(host, layer)
            add_child(
                host, applied, layer, "gains", like(QueryGain(shape.num_heads, shape.rotary_dim // 2), host, layer)
            )
            needed = True
    return needed


def _check_gains(host: Host, layer: int) -> None:
    if host.family.rotary is None or not _turning(host, [layer]):
        what = type(host.base).__name__ if host.family.rotary is None else f"Layer {layer}"
        raise UnsupportedError(
            f"gains=True of 'nope' takes the place of a rotation, and {what} has none. Pass gains=False."
        )
    rotation.check_layout(host, "nope with gains=True", rotates=True)


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
        add_child(host, applied, layer, plan.rotation.name, like(module, host, layer))
        replace_rotation(host, applied, [layer], inv_freq, scaling, plan.rotation.name)
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
        add_child(
            host, applied, layer, plan.rotation.name, LateRotation(plan.rotation.name, own, ropes[layer], scaling)
        )
    replace_rotation(host, applied, turning, later=True)
    if plan.all_layers and rotation.expressible(host, encoding):
        edit_config(host, applied, rotation.edited_config(host, encoding))
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
        add_child(host, applied, layer, name, LateRotation(name, Fixed(inv_freq), host.rope_of(layer), scaling))
    replace_rotation(host, applied, turning, later=True)
    applied.native = False
    return True, True


def install_added_rope(host: Host, plan: Plan, applied: Applied) -> None:
    """A rotation inside the attention of a model that has none."""
    assert isinstance(plan.rotation, RopeConfig)
    for layer in plan.layers:
        inv_freq = Rope(plan.rotation, shape_for(host, plan, layer)).added_inv_freq().tolist()
        add_child(host, applied, layer, "rope", LateRotation("rope", Fixed(inv_freq), {}, 1.0))
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
        add_child(host, applied, layer, plan.rotation.name, PiecewiseRotation(encoding, inv_freq, scaling))
    replace_rotation(host, applied, turning, later=True)
    applied.native = False
    return True, True


def _turning(host: Host, layers: list[int]) -> list[int]:
    """Those of the layers that rotate (SmolLM3 has some that do not)."""
    return [layer for layer in layers if getattr(host.attentions[layer], "use_rope", True)]
