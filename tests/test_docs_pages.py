"""The pages of docs/ do what they say: their code runs, and the messages they quote are the ones that come."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch.nn import functional

from pe_retrofit import LearnedConfig, patch_model, unpatch_model
from pe_retrofit.hub import targets
from pe_retrofit.patchers import family

ROOT = Path(__file__).parent.parent


def code_of(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(page: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": f"code_of_{Path(page).stem}"}
    for block in code_of(page):
        exec(compile(block, f"docs/{page}", "exec", dont_inherit=True), names)
    return names


def test_the_quick_start_runs() -> None:
    assert len(code_of("quick_start.md")) == 5
    run("quick_start.md")


def test_the_page_on_publishing_saves_and_loads() -> None:
    (saving,) = [block for block in code_of("publishing.md") if "save_model" in block]
    exec(compile(saving, "docs/publishing.md", "exec", dont_inherit=True), {"__name__": "code_of_publishing"})


def test_the_page_on_publishing_has_the_table_of_tools() -> None:
    page = (ROOT / "docs" / "publishing.md").read_text(encoding="utf-8")
    assert targets.markdown() == page.partition(targets.BEGIN)[2].partition(targets.END)[0].strip()


def test_the_page_on_families_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(family, "FAMILIES", family.FAMILIES)
    run("add_a_family.md")
    printed = capsys.readouterr().out
    assert "ModernBertDecoderForCausalLM fits no supported family" in printed
    assert "skewed" in printed


def test_its_descriptor_carries_padding_saving_and_pieces(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More than the page shows: what tests/test_matrix*.py would ask."""
    monkeypatch.setattr(family, "FAMILIES", family.FAMILIES)
    names = run("add_a_family.md")
    model, before = names["model"], names["before"]
    text = names["text"]
    patch_model(model, "t5")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.attn.position_encoding.t5.weight.normal_(generator=torch.Generator().manual_seed(1))
    right = model(text).logits
    padded = torch.cat((torch.ones(2, 5, dtype=torch.long), text), dim=1)
    mask = torch.cat((torch.zeros(2, 5, dtype=torch.long), torch.ones_like(text)), dim=1)
    torch.testing.assert_close(model(padded, attention_mask=mask).logits[:, 5:], right, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(text).logits, right)
    unpatch_model(model)
    patch_model(model, "self_extend", window=8, group=2)
    assert not torch.allclose(model(text).logits, before, atol=1e-3)
    unpatch_model(model)
    assert torch.equal(model(text).logits, before)


# --- troubleshooting -------------------------------------------------------------------------------------------------


def _gpt2() -> Any:
    sizes = {"vocab_size": 97, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**sizes, bos_token_id=2, eos_token_id=2))


def _another_implementation() -> None:
    model = tiny.patched("alibi")
    model.set_attn_implementation("sdpa")
    model(tiny.ids(1, 6))


def _a_layer() -> None:
    hidden = torch.randn(1, 5, 32)
    model = tiny.patched("alibi")
    angles = model.model.rotary_emb(hidden, torch.arange(5)[None])
    model.model.layers[0](hidden, position_embeddings=angles, attention_mask=None)


@pytest.mark.filterwarnings("ignore:.*for teaching")
def _a_cache() -> None:
    model = tiny.patched("normalized")
    seen = model(tiny.ids(1, 6), use_cache=True)
    model(tiny.ids(1, 6), past_key_values=seen.past_key_values)


def _beyond_the_table() -> None:
    model = patch_model(tiny.llama(), ["native", LearnedConfig(max_positions=64)])
    model(tiny.ids(1, 65))


def _context_parallelism() -> None:
    model = tiny.patched("alibi")
    real = functional.scaled_dot_product_attention
    functional.scaled_dot_product_attention = lambda *args, **kwargs: real(*args, **kwargs)  # type: ignore[assignment]
    try:
        model(tiny.ids(1, 6))
    finally:
        functional.scaled_dot_product_attention = real  # type: ignore[assignment]


MADE: dict[str, Callable[[], Any]] = {
    "no family": lambda: patch_model(_gpt2(), "alibi"),
    "nothing": lambda: patch_model(tiny.llama(), "native"),
    "patched already": lambda: patch_model(tiny.patched("alibi"), "t5"),
    "wrong options": lambda: patch_model(tiny.llama(), "yarn", factor=0.5, beta_fsat=3),
    "compiled": lambda: patch_model(torch.compile(tiny.llama()), "alibi"),
    "another implementation": _another_implementation,
    "position_bias": lambda: tiny.patched("alibi")(tiny.ids(1, 6), position_bias=torch.zeros(1, 4, 6, 6)),
    "a layer": _a_layer,
    "a cache": _a_cache,
    "beyond the table": _beyond_the_table,
    "context parallelism": _context_parallelism,
}


def quoted() -> list[list[str]]:
    """What the page quotes: each message as the pieces between its dots, on one line."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```text\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    flat = [" ".join(block.split()) for block in blocks]
    return [[piece for piece in re.split(r"\(\.\.\.\)|\[\.\.\.\]|\.\.\.", one) if len(piece) > 3] for one in flat]


def is_quoted(error: BaseException) -> bool:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return any(all(piece.strip() in said for piece in pieces) for pieces in quoted())


@pytest.mark.filterwarnings("ignore:.*for teaching")
@pytest.mark.parametrize("name", MADE)
def test_the_message_is_the_one_on_the_page(name: str) -> None:
    with pytest.raises(Exception) as raised:  # noqa: PT011
        MADE[name]()
    assert is_quoted(raised.value), f"docs/troubleshooting.md does not quote: {raised.value}"


def test_messages_of_loading_are_those_on_the_page(tmp_path: Path) -> None:
    tiny.patched("t5").save_pretrained(tmp_path)
    with pytest.raises(KeyError) as explicit:
        hf.LlamaForCausalLM.from_pretrained(tmp_path)
    assert is_quoted(explicit.value)
    with pytest.raises(Exception, match="cannot carry") as implementation:
        hf.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="flex_attention")
    assert is_quoted(implementation.value)
    weights = tmp_path / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "position_encoding" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    with pytest.raises(Exception, match="lacks learned tensors") as lost:
        hf.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert is_quoted(lost.value)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(Exception, match="schema_version is 99") as newer:
        hf.AutoConfig.from_pretrained(tmp_path)
    assert is_quoted(newer.value)


OF_THE_CODE = {
    "proof.py": ("changed nothing in layers", "must leave the output as it is within the trained length, yet it"),
    "training/devices.py": ("What runs is not what was asked for", "was asked for, but"),
    "pipeline/launching.py": ("it would run DDP and not say so",),
    "hub/adapters.py": (", and the model is not patched. Let",),
}
"""Parts of quoted messages whose making takes more than a moment, and where they come from."""


def test_the_other_messages_stand_in_the_code() -> None:
    page = " ".join((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split())
    for path, parts in OF_THE_CODE.items():
        source = (ROOT / "pe_retrofit" / path).read_text(encoding="utf-8")
        for part in parts:
            assert part in source, f"{path} no longer says {part!r}"
            assert part in page, f"docs/troubleshooting.md no longer quotes {part!r}"
