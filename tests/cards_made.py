"""Small saved models and results for the tests of model cards."""

from __future__ import annotations

import re
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import made_runs
import tiny
import yaml
from tokenizers_made import decoder_tokenizer

from pe_retrofit import NopeConfig, WindowConfig, patch_model
from pe_retrofit.hub.card import make_card

PICTURE = b"\x89PNG\r\n\x1a\n" + b"\0" * 32

ALIBI = [([{"name": "alibi", "learnable": False, "sides": "both"}], [0, 1])]
ON_ALIBI = [{"encodings": ALIBI[0][0], "layers": [0, 1], "kernel": "auto"}]

_KEPT = tempfile.TemporaryDirectory()


@cache
def folders() -> dict[str, Path]:
    """Folders with small models of every kind; the tests do not write into them."""
    root = Path(_KEPT.name)
    hybrid = {"3::4": NopeConfig(attn_scale=0.1), "rest": ["native", WindowConfig(16)]}
    made = {
        "alibi": patch_model(tiny.llama(), "alibi"),
        "t5": tiny.patched(["native", "t5"]),
        "hybrid": patch_model(tiny.llama(num_hidden_layers=4), hybrid),
        "some": patch_model(tiny.llama(), "nope", layers=[1]),
        "yarn": patch_model(tiny.llama(), "yarn", factor=4.0),
        "linear": patch_model(tiny.llama(), "linear", factor=2.0),
        "ntk": patch_model(tiny.llama(), "ntk", factor=2.0),
        "bert": patch_model(tiny.bert(), "alibi"),
        "longer": patch_model(tiny.bert(), "learned", max_positions=64),
        "classes": patch_model(tiny.bert("BertForSequenceClassification"), "t5"),
        "stock": tiny.llama(),
    }
    for name, model in made.items():
        model.save_pretrained(root / name)
    decoder_tokenizer().save_pretrained(root / "alibi")
    return {name: root / name for name in made}


@cache
def adapter_folder() -> Path:
    """An adapter of the stock model, patched with t5."""
    from peft import LoraConfig, get_peft_model

    from pe_retrofit.hub.adapters import save_adapter

    model = patch_model(tiny.llama(), ["native", "t5"])
    model.config._name_or_path = model.name_or_path = "org/stock-base"
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["position_encoding"], task_type="CAUSAL_LM")
    folder = Path(_KEPT.name) / "my-adapter"
    save_adapter(get_peft_model(model, options), folder)
    return folder


def planted(encodings: Any, *names: str, **more: Any) -> dict[str, Any]:
    """Results of a model with these patches."""
    made = made_runs.blind(*names, **more)
    made["model"]["encoding"] = encodings
    return made


def evaluated(folder: Path, encodings: Any, *, pictures: tuple[str, ...] = (), **more: Any) -> Path:
    """A run of an evaluation of a model with these encodings."""
    layers = [{"encodings": entries, "layers": on, "kernel": "auto"} for entries, on in encodings]
    made_runs.saved(folder, planted(layers, **more))
    for name in pictures:
        (folder / "pictures").mkdir(exist_ok=True)
        (folder / "pictures" / name).write_bytes(PICTURE)
    return folder


def text_of(folder: Path, **options: Any) -> str:
    return str(make_card(folder, **options))


def metadata(card: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(card.split("---\n")[1])
    return found


def section(card: str, title: str) -> str:
    return re.split(r"^## ", card, flags=re.MULTILINE)[[*_titles(card)].index(title) + 1]


def _titles(card: str) -> list[str]:
    return re.findall(r"^## (.*)$", card, re.MULTILINE)
