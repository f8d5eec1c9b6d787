"""Models that patch themselves when built, so that the learned tensors of a checkpoint find their place."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..attention import NAME
from ..errors import ConfigError, UnsupportedError
from ..installing.applied import PATCHES
from ..installing.saved import apply_saved
from ..marking import BLOCK, ORIGINAL
from ..patchers.family import find_host
from .configuration import check_block
from .offloading import keep_positions
from .weights import check_weights


class MarkedModel:
    """Mixin of the model classes that patch themselves when built from a marked config."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """The code is the host's: without this answer transformers would not rename and fuse the tensors of the files
        as it does for the host (GPT-NeoX's output layer, Mixtral's experts), and leave them at random values."""
        return bool(_host_class(cls).is_custom_code())

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        block = getattr(config, BLOCK, None)
        check_block(block)
        assert isinstance(block, Mapping)
        if block.get(ORIGINAL):  # the config of a live patched model, not one from disk
            config = copy.deepcopy(config)
            for key, value in block[ORIGINAL].items():
                setattr(config, key, copy.deepcopy(value))
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        assert isinstance(self, nn.Module)
        asked = find_host(self).config._attn_implementation
        apply_saved(self, list(block["patches"]))
        base = find_host(self).base
        if asked not in (None, "eager", "sdpa", NAME) and any(a.kernel for a in getattr(base, PATCHES)):
            raise UnsupportedError(
                f"attn_implementation={asked!r} cannot carry this model's encoding; leave it out (the model uses "
                f"{NAME!r})."
            )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Any:
        """As transformers', from safetensors only, and with files that are checked before anything is built.

        Raises:
            ConfigError: the files are damaged, hold something else than ``config.json`` says, or lack tensors.
            UnsupportedError: learned tensors of the encoding are missing, or ``use_safetensors=False`` was asked for.
        """
        if kwargs.get("use_safetensors") is False:
            raise UnsupportedError(
                "use_safetensors=False would read pickled weights, which can run code. Patched models are saved as "
                "safetensors; leave it out."
            )
        name = pretrained_model_name_or_path
        if name is not None and kwargs.get("state_dict") is None and kwargs.get("gguf_file") is None:
            kwargs["use_safetensors"] = True
            check_weights(cls, name, kwargs)
        model, info = super().from_pretrained(name, *args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        _check_loaded(model, info)
        keep_positions(model)
        return (model, info) if output_loading_info else model


def _host_class(cls: type[Any]) -> Any:
    """The transformers class behind a marked one, also where FSDP2 put a class of its own in front."""
    return cls.__mro__[cls.__mro__.index(MarkedModel) + 1]


def _check_loaded(model: Any, info: Mapping[str, Any]) -> None:
    """Fresh weights where a checkpoint should have filled them are an error; a new head is not."""
    names = {
        kind: sorted(key if isinstance(key, str) else str(key[0]) for key in info.get(kind, ()))
        for kind in ("missing_keys", "mismatched_keys", "unexpected_keys")
    }
    lost = [n for kind in ("missing_keys", "mismatched_keys") for n in names[kind] if f".{BLOCK}." in f".{n}"]
    if lost:
        raise UnsupportedError(
            f"The checkpoint lacks learned tensors of its position encoding, or their shapes differ: {_some(lost)}. "
            "It was not saved from the patched model; save it again."
        )
    base = find_host(model).base
    inside = {id(p) for p in base.parameters()}
    of_base = {name for name, p in model.named_parameters() if id(p) in inside}
    lost = [n for kind in ("missing_keys", "mismatched_keys") for n in names[kind] if n in of_base]
    if lost:
        raise ConfigError(
            f"The checkpoint lacks tensors of the model, or their shapes differ: {_some(lost)}. They would have random "
            "values. Download or save the checkpoint again."
        )
    prefix = "" if base is model else f"{model.base_model_prefix}."
    extra = [n for n in names["unexpected_keys"] if f".{BLOCK}." in f".{n}" or (prefix and n.startswith(prefix))]
    if extra:
        raise ConfigError(
            f"The checkpoint holds tensors that the model has no place for: {_some(extra)}. Its config.json is not the "
            "one it was saved with."
        )


def _some(names: list[str]) -> str:
    return f"{names[:5]}{' ...' if len(names) > 5 else ''}"
