"""Checkpoints as a version wrote them, kept in ``tests/checkpoints`` for all later versions to load.

``python tests/made_checkpoints.py`` writes those that are missing; what is there is never written again. A new schema
version, or a new way of saving, gets names of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from pe_retrofit import KerpleConfig, NopeConfig, T5Config, YarnConfig, patch_model
from pe_retrofit.hub import save_adapter, save_model

FOLDER = Path(__file__).with_name("checkpoints")
SIZES = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
EXPECTED = "expected.safetensors"


def llama() -> Any:
    torch.manual_seed(0)
    config = hf.LlamaConfig(**SIZES, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0, bos_token_id=1)
    return hf.LlamaForCausalLM(config).eval()


def neox() -> Any:
    torch.manual_seed(0)
    config = hf.GPTNeoXConfig(**SIZES, max_position_embeddings=32, initializer_range=0.3, rotary_pct=0.5)
    return hf.GPTNeoXForCausalLM(config).eval()


def bert() -> Any:
    torch.manual_seed(0)
    config = hf.BertConfig(**SIZES, max_position_embeddings=32, initializer_range=0.3, pad_token_id=0)
    return hf.BertForMaskedLM(config).eval()


CASES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "schema1_llama_alibi": (llama, "alibi", {}),
    "schema1_llama_native_t5": (llama, ["native", T5Config(num_buckets=8, max_distance=20)], {}),
    "schema1_llama_gains_kerple": (llama, [NopeConfig(gains=True), KerpleConfig()], {}),
    "schema1_llama_hybrid": (llama, {"0": "nope", "rest": ["native", "shaw"]}, {}),
    "schema1_llama_yarn_alibi": (llama, [YarnConfig(factor=2.0), "alibi"], {}),
    "schema1_gpt_neox_fire": (neox, "fire", {}),
    "plain_bert_learned": (bert, "learned", {"max_positions": 48}),
    "schema1_bert_rope": (bert, "rope", {}),
    "plain_llama_yarn": (llama, "yarn", {"factor": 2.0}),
}
ADAPTER = "schema2_adapter_t5"


def expected(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return {"ids": ids, "logits": model(input_ids=ids)[0].contiguous()}


def some_ids() -> torch.Tensor:
    return torch.randint(3, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(1))


def fill(model: Any) -> None:
    """Learned positions away from their start."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".position_encoding." in f".{name}":
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))


def make(name: str) -> None:
    build, spec, options = CASES[name]
    model = build()
    patch_model(model, spec, **options)
    fill(model)
    save_model(model, FOLDER / name, code=False)
    save_file(expected(model, some_ids()), FOLDER / name / EXPECTED)


def make_adapter() -> None:
    from pe_retrofit.training import LoraOptions, add_lora

    llama().save_pretrained(FOLDER / ADAPTER / "base")
    model = hf.AutoModelForCausalLM.from_pretrained(FOLDER / ADAPTER / "base").eval()
    patch_model(model, "t5", num_buckets=8, max_distance=20)
    wrapped = add_lora(model, LoraOptions(r=2)).eval()
    fill(wrapped)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key, parameter in wrapped.named_parameters():
            if "lora_B" in key:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    wrapped.peft_config["default"].base_model_name_or_path = "base"  # no path of this machine
    save_adapter(wrapped, FOLDER / ADAPTER / "adapter")
    save_file(expected(wrapped, some_ids()), FOLDER / ADAPTER / EXPECTED)


def known(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens of a checkpoint, and the logits of the model that was saved."""
    tensors = load_file(FOLDER / name / EXPECTED)
    return tensors["ids"], tensors["logits"]


if __name__ == "__main__":
    for case in CASES:
        if not (FOLDER / case).exists():
            make(case)
    if not (FOLDER / ADAPTER).exists():
        make_adapter()
