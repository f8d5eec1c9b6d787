"""What cannot be saved whole is refused before it trains; ZeRO-3 is gathered through DeepSpeed's own context."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from finetuning import OPTIONS, patched, run
from tiny import llama
from torch import nn

from pe_retrofit.errors import UnsupportedError
from pe_retrofit.training.devices import check_gathering, check_start, whole_state

pytestmark = pytest.mark.filterwarnings("ignore")


def fsdp(version: int, kind: str) -> Any:
    plugin = SimpleNamespace(fsdp_version=version, state_dict_type=f"StateDictType.{kind}")
    return SimpleNamespace(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


def zero(stage: int, gathers: Any) -> Any:
    settings = {"zero_optimization": {"stage": stage, "stage3_gather_16bit_weights_on_model_save": gathers}}
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config=settings)
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, deepspeed_plugin=plugin)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (fsdp(1, "FULL_STATE_DICT"), "fsdp_version: 2"),
        (fsdp(2, "SHARDED_STATE_DICT"), "fsdp_state_dict_type: FULL_STATE_DICT"),
        (zero(3, False), "zero3_save_16bit_model: true"),
        (zero(3, "auto"), "zero3_save_16bit_model: true"),
        (fsdp(2, "FULL_STATE_DICT"), None),
        (zero(3, True), None),
        (zero(2, False), None),
        (SimpleNamespace(distributed_type=DistributedType.NO), None),
        (SimpleNamespace(distributed_type=DistributedType.MULTI_CPU), None),
    ],
)
def test_ways_of_sharding(state: Any, words: str | None) -> None:
    if words is None:
        check_gathering(state)
        return
    with pytest.raises(UnsupportedError, match=words):
        check_gathering(state)


def test_a_fine_tune_asks_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pe_retrofit.training import devices, trainer

    def refuse(state: Any) -> None:
        raise UnsupportedError(f"asked about {state.distributed_type}")

    monkeypatch.setattr(devices, "check_gathering", refuse)
    monkeypatch.setattr(trainer.PositionTrainer, "train", lambda *_, **__: pytest.fail("it trained"))
    with pytest.raises(UnsupportedError, match="asked about"):
        run(tmp_path, OPTIONS)


@pytest.mark.parametrize("plan", [{"cp_size": 2}, {"cp_size": 1, "sp_size": 2}])
def test_a_fine_tune_refuses_parts_of_a_text(plan: dict[str, int]) -> None:
    state = SimpleNamespace(distributed_type=DistributedType.NO)
    accelerator = SimpleNamespace(parallelism_config=SimpleNamespace(**plan), state=state)
    with pytest.raises(UnsupportedError, match="cp_size=2 splits each text"):
        check_start(SimpleNamespace(accelerator=accelerator, model=patched("t5")))
    check_start(SimpleNamespace(accelerator=accelerator, model=llama()))


def test_zero3_is_gathered_one_tensor_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for DeepSpeed: parameters are empty but inside its context."""
    model = nn.Linear(3, 2)
    wanted = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole, inside = {}, []
    for name, parameter in model.named_parameters():
        parameter.ds_id = name
        whole[name] = parameter.data
        parameter.data = torch.empty(0)

    @contextmanager
    def gathered(parameters: Any) -> Iterator[None]:
        inside.append(len(parameters))
        for parameter in parameters:
            parameter.data = whole[parameter.ds_id]
        yield
        for parameter in parameters:
            parameter.data = torch.empty(0)

    monkeypatch.setitem(sys.modules, "deepspeed", types.ModuleType("deepspeed"))
    monkeypatch.setitem(sys.modules, "deepspeed.zero", SimpleNamespace(GatheredParameters=gathered))
    found = whole_state(model)
    assert inside == [1, 1]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
