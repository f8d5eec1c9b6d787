"""Loading and saving: what transformers does without a word. Each has a guard, and a test that fails without it."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
)

from pe_retrofit import AlibiConfig, DynamicConfig, T5Config, UnsupportedError, unpatch_model
from pe_retrofit.attention import NAME


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """``torch.empty`` hands out NaN: whatever is read before it was written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.utils.deterministic.fill_uninitialized_memory = before[1]


STORED = {**tiny.OURS, **tiny.FREE, "learned": ("learned", {"max_positions": 64}), "sinusoidal": ("sinusoidal", {})}
STORED["alibi, learnable"] = ("alibi", {"learnable": True})
STORED["all at once"] = ([DynamicConfig(2.0), T5Config(8, 30), AlibiConfig(learnable=True)], {})


@pytest.mark.parametrize("name", STORED)
def test_nothing_comes_back_uninitialised(name: str, tmp_path: Path) -> None:
    """from_pretrained builds models on the meta device; constants in buffers come back as garbage."""
    spec, options = STORED[name]
    model = tiny.patched(spec, **options)
    tokens = tiny.ids(1, 2 * tiny.LENGTH)
    expected = model(tokens).logits
    model.save_pretrained(tmp_path)
    loaded = []
    for _ in range(3):
        with poisoned_memory():
            loaded.append(AutoModelForCausalLM.from_pretrained(tmp_path).eval())
        gc.collect()
    for again in loaded:
        for key, tensor in [*again.named_parameters(), *again.named_buffers()]:
            assert torch.isfinite(tensor).all(), key
        if name != "dynamic" and name != "longrope":  # plain on disk: transformers' own rule from there on
            torch.testing.assert_close(again(tokens).logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STORED)
def test_no_constant_lives_in_a_buffer(name: str) -> None:
    spec, options = STORED[name]
    model = tiny.patched(spec, **options)
    assert {n for n, _ in model.named_buffers()} == {n for n, _ in tiny.llama().named_buffers()}


@pytest.mark.parametrize("name", ["alibi", "t5", "native+t5"])
@pytest.mark.parametrize("build", [tiny.llama, tiny.bert])
def test_the_attention_implementation_survives_saving(name: str, build: Any, tmp_path: Path) -> None:
    """``_attn_implementation`` is not in config.json; the encoding says what it needs."""
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, build, **options)
    model.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    auto = AutoModelForMaskedLM if build is tiny.bert else AutoModelForCausalLM
    again = auto.from_pretrained(tmp_path).eval()
    assert again.config._attn_implementation == NAME
    tokens = tiny.ids(1, 20)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    with pytest.raises(UnsupportedError, match="attn_implementation='flex_attention' cannot carry"):
        auto.from_pretrained(tmp_path, attn_implementation="flex_attention")
    assert unpatch_model(model).config._attn_implementation != NAME


@pytest.mark.parametrize("damage", ["missing", "shape"])
@pytest.mark.parametrize("spec", ["t5", ["native", "t5"], "learned"], ids=str)
def test_learned_tensors_that_are_not_in_the_file(spec: Any, damage: str, tmp_path: Path) -> None:
    """transformers would go on with fresh weights, and say so in a warning at most."""
    model = tiny.patched(spec, **({"max_positions": 64} if spec == "learned" else {}))
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    learned = [key for key in tensors if ".position_encoding." in key]
    assert learned
    if damage == "missing":
        del tensors[learned[0]]
    else:
        tensors[learned[0]] = tensors[learned[0]][:-1].contiguous()
    save_file(tensors, file, metadata={"format": "pt"})
    kwargs = {"ignore_mismatched_sizes": True} if damage == "shape" else {}
    with pytest.raises(UnsupportedError, match="lacks learned tensors of its position encoding"):
        AutoModelForCausalLM.from_pretrained(tmp_path, **kwargs)


def mixtral() -> Any:
    """A tiny mixture of experts: its files hold one tensor per expert, the model one for all."""
    torch.manual_seed(0)
    config = hf.MixtralConfig(
        vocab_size=tiny.VOCAB,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
        num_experts_per_tok=1,
        max_position_embeddings=tiny.LENGTH,
        initializer_range=0.3,
    )
    return hf.MixtralForCausalLM(config).eval()


@pytest.mark.parametrize("build", [tiny.neox, mixtral])
@pytest.mark.parametrize("name", ["alibi", "native+t5"])
def test_tensors_that_transformers_renames(name: str, build: Any, tmp_path: Path) -> None:
    """It renames, splits and fuses tensors between model and file, but not for classes it takes for custom code."""
    spec, options = tiny.OURS[name]
    model = tiny.patched(spec, build, **options)
    tokens = tiny.ids(1, 12)
    expected = model(tokens).logits
    for turn in ("first", "second"):
        model.save_pretrained(tmp_path / turn)
        model, info = AutoModelForCausalLM.from_pretrained(tmp_path / turn, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert torch.equal(model.eval()(tokens).logits, expected)
    first, second = (set(load_file(tmp_path / turn / "model.safetensors")) for turn in ("first", "second"))
    assert first == second


def test_loading_without_the_package_is_loud(tmp_path: Path) -> None:
    """A checkpoint that says ``llama`` would load as a plain Llama; ours has a type of its own."""
    model = tiny.patched("alibi")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "pe_retrofit"
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llama"
    code = (
        "import sys\n"
        "from transformers import AutoConfig, AutoModelForCausalLM\n"
        "for auto in (AutoConfig, AutoModelForCausalLM):\n"
        "    try:\n"
        "        auto.from_pretrained(sys.argv[1])\n"
        "    except ValueError as error:\n"
        "        assert 'pe_retrofit' in str(error), error\n"
        "    else:\n"
        "        sys.exit('loaded without the package')\n"
        "assert 'pe_retrofit' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
