"""Install what acts on the input: in place of a position table, on top of it, or before the first layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..encodings.learned import LearnedConfig
from ..patchers import table, tails
from ..patchers.family import Host
from ..plan import Plan, shape_for
from ..registry import get_encoding
from ..sites import InputEncoding, Installed, LocalInput
from .applied import CHILD, Applied, edit_config, like


def install_table(host: Host, plan: Plan, applied: Applied) -> bool:
    old = host.table
    assert old is not None
    if isinstance(plan.input, LearnedConfig):
        new = table.extended(host, plan.input)
        applied.table_before = old
        rows = len(new.weight)
        table.set_table(host, new)
        applied.buffers_before = table.resize_buffers(host, rows)
        edit_config(host, applied, {"max_position_embeddings": rows})
        return False
    if plan.keeps_native and (plan.input is None or is_local(plan)):
        return False
    encoding: InputEncoding | None = None
    if plan.input is not None and not is_local(plan):
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


def install_input(host: Host, plan: Plan, applied: Applied) -> None:
    assert plan.input is not None
    kind = get_encoding(plan.input.name)
    assert issubclass(kind, InputEncoding)
    shape = replace(shape_for(host, plan, 0), hidden_size=host.config.hidden_size)  # a table may be narrower (ELECTRA)
    module = like(kind(plan.input, shape), host, 0)
    if host.base.get_input_embeddings().weight.device.type != "meta":
        module.fit(None, keeps_native=plan.keeps_native, embedding_rms=_embedding_rms(host))
    installed = Installed()
    installed[plan.input.name] = module
    setattr(host.base, CHILD, installed.train(host.base.training))
    applied.input_child, applied.native = True, False
    hook = table.AddToInput(host.base)
    applied.handles.append(host.layers[0].register_forward_pre_hook(hook, with_kwargs=True))


def input_hooks(host: Host, plan: Plan) -> list[Any]:
    """What an input encoding needs beside the positions: neighbours of the past, or the length of the text."""
    if plan.input is None:
        return []
    if is_local(plan):
        remembered = tails.Tails(host.base)
        return [
            host.base.register_forward_pre_hook(remembered.before, with_kwargs=True),
            host.base.register_forward_hook(remembered.after, with_kwargs=True),
        ]
    kind = get_encoding(plan.input.name)
    if host.table is None or not issubclass(kind, InputEncoding) or not kind.needs_length:
        return []
    return [host.base.register_forward_pre_hook(table.tie_positions, with_kwargs=True)]


def is_local(plan: Plan) -> bool:
    """Whether the input encoding looks at neighbours, and so acts after a position table instead of in its place."""
    return plan.input is not None and issubclass(get_encoding(plan.input.name), LocalInput)


def needs_whole(plan: Plan) -> bool:
    """Whether the input encoding cannot do with a part of the text."""
    kind = get_encoding(plan.input.name) if plan.input is not None else None
    return kind is not None and issubclass(kind, InputEncoding) and (issubclass(kind, LocalInput) or kind.needs_length)


def _embedding_rms(host: Host) -> float:
    return host.base.get_input_embeddings().weight.detach()[:4096].float().square().mean().sqrt().item()
