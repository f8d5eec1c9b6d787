"""Every family and kind of host can be evaluated, patched and not: no task trips over a head, a table or a window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hosts import HOSTS, VOCAB

from pe_retrofit import patch_model, texts
from pe_retrofit.evaluation import evaluate_model


class SmallTokenizer:
    """Bytes, folded into the few tokens the hosts have; what is decoded has no meaning."""

    bos_token_id = cls_token_id = 2
    eos_token_id = sep_token_id = 3
    mask_token_id = 4
    pad_token_id = 1
    unk_token_id = 0
    all_special_ids = (0, 1, 2, 3, 4)

    def __len__(self) -> int:
        return VOCAB

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        body = [5 + byte % (VOCAB - 5) for byte in text.encode()]
        return [2, *body, 3] if add_special_tokens else body

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(32 + i) for i in ids if i > 4)


CAUSAL = {
    "tasks": ("perplexity", "passkey", "probe", "short"),
    "lengths": (400,),
    "options": {
        "perplexity": {"tail": 64, "skip": 0, "windows": 2, "window": 64, "stride": 32},
        "short": {"window": 24, "windows": 2},
        "probe": {"repeated": 8},
    },
}


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if host.causal])
def test_decoders(name: str) -> None:
    model = HOSTS[name].fresh()
    if model.get_output_embeddings() is None:
        pytest.skip("this host has no language-modelling head")
    patch_model(model, ["native", "t5"] if HOSTS[name].own_application else "alibi")
    results = evaluate_model(
        model, SmallTokenizer(), samples=1, depths=(0.5,), generate=True, text=texts.python_topics(), **CAUSAL
    )
    assert results["status"] == "complete", {n: t.get("reason") for n, t in results["tasks"].items()}
    for side in ("model", "stock"):
        checks = results[side]["integrity"]
        assert all(check["ok"] is not False for check in checks.values()), checks
    for task in results["tasks"].values():
        assert task["status"] == "ok"
        for cell in task["cells"]:
            assert cell["nll"] is not None
            if HOSTS[name].rotates:
                assert cell["stock"]["nll"] is not None
            elif cell["length"] > 32:
                assert cell["stock"] is None  # its table ends before


@pytest.mark.parametrize("name", [name for name, host in HOSTS.items() if not host.causal])
def test_encoders(name: str) -> None:
    model: Any = HOSTS[name].fresh()
    patch_model(model, "alibi" if not HOSTS[name].rotates else ["native", "t5"])
    tasks = ["encoder_passkey"] if model.get_output_embeddings() is None else ["encoder_passkey", "masked"]
    options = {"masked": {"tail": 32, "documents": 1}} if "masked" in tasks else {}
    results = evaluate_model(
        model, SmallTokenizer(), tasks=tasks, lengths=(300,), samples=2, depths=(0.5,), options=options,
        text=texts.python_topics(),
    )  # fmt: skip
    assert all(check["ok"] for check in results["model"]["integrity"].values())
    assert results["tasks"]["encoder_passkey"]["status"] == "ok"
    assert results["tasks"]["encoder_passkey"]["n"] == 2
    assert "reads at most" in results["tasks"]["encoder_passkey"]["stock_run"]["reason"]  # its table ends before
