"""Files that earlier versions wrote load, with the logits they had then."""

from __future__ import annotations

import json

import made_checkpoints
import pytest
import torch
import transformers as hf
from made_checkpoints import ADAPTER, CASES, FOLDER, known

from pe_retrofit import load_adapter, status, unpatch_model
from pe_retrofit.config import SCHEMA_VERSION


@pytest.mark.parametrize("name", CASES)
def test_a_checkpoint_gives_the_logits_it_gave(name: str) -> None:
    auto = hf.AutoModelForMaskedLM if "bert" in name else hf.AutoModelForCausalLM
    model = auto.from_pretrained(FOLDER / name).eval()
    ids, wanted = known(name)
    with torch.no_grad():
        assert (model(input_ids=ids)[0] - wanted).abs().max() < 1e-5
        assert status(model).patched == name.startswith("schema")
        if status(model).patched:
            stock = made_checkpoints.CASES[name][0]()
            assert (unpatch_model(model)(input_ids=ids)[0] - stock(input_ids=ids)[0]).abs().max() < 1e-5


def test_an_adapter_gives_the_logits_it_gave() -> None:
    base = hf.AutoModelForCausalLM.from_pretrained(FOLDER / ADAPTER / "base")
    model = load_adapter(FOLDER / ADAPTER / "adapter", base, patch=True)
    ids, wanted = known(ADAPTER)
    with torch.no_grad():
        assert (model(input_ids=ids)[0] - wanted).abs().max() < 1e-5


def test_todays_schema_is_among_them() -> None:
    """A new version of the schema needs checkpoints of its own; the old ones stay."""
    versions = {
        json.loads((FOLDER / name / "config.json").read_text())["position_encoding"]["schema_version"]
        for name in CASES
        if name.startswith("schema")
    }
    assert versions == set(range(1, SCHEMA_VERSION + 1))
    assert {f"schema{version}" for version in versions} <= {name.partition("_")[0] for name in CASES}
