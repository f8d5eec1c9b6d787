"""Install a plan on a model, and take it back. What was done is kept as data, so that copies of a model unpatch too."""

from __future__ import annotations

from .. import attention
from ..encodings.nope import NopeConfig
from ..encodings.rope import RopeConfig
from ..errors import UnsupportedError
from ..patchers import handoff, table
from ..patchers.context import PositionContext
from ..patchers.family import Host
from ..plan import Plan, shape_for
from ..registry import get_encoding
from ..sites import BiasEncoding, ScoreEncoding
from .applied import CHILD, KERNEL, Applied, add_child, like
from .inputs import input_hooks, install_input, install_table, is_local, needs_whole
from .rotations import install_added_rope, install_rotation, install_temperature
from .undoing import forget_compiled, undo

__all__ = ["CHILD", "KERNEL", "Applied", "forget_compiled", "install", "undo", "use_kernel"]


def install(host: Host, plan: Plan, applied: Applied, kernel: str | None) -> None:
    """Do what the plan says; ``applied`` always knows enough to undo what was done so far."""
    needs_context = needs_attention = False
    if host.family.rotary is not None:
        needs_context, needs_attention = install_rotation(host, plan, applied)
    elif isinstance(plan.rotation, RopeConfig):
        install_added_rope(host, plan, applied)
        needs_attention = True
    elif isinstance(plan.rotation, NopeConfig):
        needs_attention = install_temperature(host, plan, applied)
    for config in [*plan.biases, *plan.scores]:
        for layer in plan.layers:
            kind = get_encoding(config.name)
            assert issubclass(kind, (BiasEncoding, ScoreEncoding))
            module = kind(config, shape_for(host, plan, layer))
            if host.reference_parameter(layer).device.type != "meta":
                module.start(keeps_native=plan.keeps_order)
            add_child(host, applied, layer, config.name, like(module, host, layer))
        needs_attention, applied.native = True, False
    if host.family.table is not None:
        needs_context |= install_table(host, plan, applied)
    if plan.input is not None and (host.family.table is None or is_local(plan)):
        install_input(host, plan, applied)
        needs_context = True

    if needs_attention:
        applied.kernel = kernel or "auto"
        use_kernel(host, applied, applied.kernel)
        use_attention(host, applied)
    if needs_context or needs_attention:
        context = PositionContext(
            packs_by_position=host.family.packs_by_position,
            required=attention.NAME if needs_attention else None,
            whole=needs_whole(plan),
            table_offset=host.reserved_rows if isinstance(host.table, table.ReplacedTable) else None,
            encodings=plan.names,
            base=host.base,
        )
        applied.context = True
        applied.handles.append(host.base.register_forward_pre_hook(context.before, with_kwargs=True))
        applied.handles.append(host.base.register_forward_hook(context.after, with_kwargs=True))
        applied.handles += input_hooks(host, plan)
        for block, parent in zip(host.layers, host.attentions, strict=True):
            applied.handles += handoff.install(block, parent)


def use_attention(host: Host, applied: Applied) -> None:
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
