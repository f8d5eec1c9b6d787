"""Make ``AutoModel*.from_pretrained`` load patched models.

Their ``config.json`` says ``model_type: pe_retrofit`` and holds the host's config plus a ``position_encoding`` block.
The config class registered for that type turns it into a marked subclass of the host's config class, and each of the
host's model classes gets a subclass that patches itself when built, so the learned tensors find their place.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..attention import NAME
from ..config import SCHEMA_VERSION
from ..errors import ConfigError, UnsupportedError
from ..marking import ACTIVATIONS, BLOCK, HOST, MODEL_TYPE, ORIGINAL, marked_class, on_new_class
from ..patchers.family import find_host
from ..patching import STATE, apply_saved
from ..plan import parse_spec

MOST_PATCHES = 4096
"""A config with more patches than this is refused."""


class PeRetrofitConfig(PreTrainedConfig):
    """What ``AutoConfig`` finds for ``model_type: pe_retrofit``; loading it returns a config of the host's class."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The host's config, marked as patched.

        Raises:
            ConfigError: the ``position_encoding`` block is missing, malformed, of a newer schema, or names an unknown
                host type.
            UnknownEncodingError: it names an encoding this installation does not have.
        """
        block = config_dict.get(BLOCK)
        check_block(block)
        assert isinstance(block, Mapping)
        host_type = block["host_model_type"]
        host_class = CONFIG_MAPPING[host_type]
        values = {**config_dict, **block.get(HOST, {}), "model_type": host_type}
        values[BLOCK] = {key: value for key, value in block.items() if key != HOST}
        return marked_class(host_class).from_dict(values, **kwargs)


class MarkedModel:
    """Mixin of the model classes that patch themselves when built from a marked config."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """The code is the host's: without this answer transformers would not rename and fuse the tensors of the files
        as it does for the host (GPT-NeoX's output layer, Mixtral's experts), and leave them at random values."""
        host_model = cls.__mro__[2]
        return bool(host_model.is_custom_code())  # type: ignore[attr-defined]

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
        if asked not in (None, "eager", "sdpa", NAME) and any(a.kernel for a in getattr(base, STATE)):
            raise UnsupportedError(
                f"attn_implementation={asked!r} cannot carry this model's encoding; leave it out (the model uses "
                f"{NAME!r})."
            )

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but learned tensors of an encoding that the files lack are an error, not fresh weights."""
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)  # type: ignore[misc]
        lost = sorted(
            key if isinstance(key, str) else str(key[0])
            for kind in ("missing_keys", "mismatched_keys")
            for key in info.get(kind, ())
            if f".{BLOCK}." in f".{key if isinstance(key, str) else key[0]}"
        )
        if lost:
            raise UnsupportedError(
                f"The checkpoint lacks learned tensors of its position encoding, or their shapes differ: {lost[:5]}"
                f"{' ...' if len(lost) > 5 else ''}. It was not saved from the patched model; save it again."
            )
        return (model, info) if output_loading_info else model


def check_block(block: Any) -> None:
    """Refuse a ``position_encoding`` block that this version cannot honour.

    Raises:
        ConfigError: with the field and what is allowed.
    """
    if not isinstance(block, Mapping):
        raise ConfigError(
            f"config.json has model_type {MODEL_TYPE!r} but no {BLOCK!r} block (a mapping); got {block!r:.80}."
        )
    version = block.get("schema_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ConfigError(f"{BLOCK}.schema_version must be a whole number from 1, got {version!r}.")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{BLOCK}.schema_version is {version}, and this pe_retrofit reads up to {SCHEMA_VERSION}. Upgrade it: "
            "pip install -U pe_retrofit."
        )
    host = block.get("host_model_type")
    if not isinstance(host, str) or host == MODEL_TYPE or host not in CONFIG_MAPPING:
        raise ConfigError(
            f"{BLOCK}.host_model_type must be a model type of transformers such as 'llama', got {host!r}."
        )
    guarded = block.get(HOST, {})
    if not isinstance(guarded, Mapping) or not set(guarded) <= {"rope_parameters", *ACTIVATIONS}:
        raise ConfigError(f"{BLOCK}.{HOST} may hold rope_parameters or an activation only, got {guarded!r:.80}.")
    patches = block.get("patches")
    if not isinstance(patches, list) or not 0 < len(patches) <= MOST_PATCHES:
        raise ConfigError(f"{BLOCK}.patches must be a list of 1 to {MOST_PATCHES} patches, got {patches!r:.80}.")
    for patch in patches:
        if not isinstance(patch, Mapping) or not isinstance(patch.get("encodings"), list):
            raise ConfigError(f"Each of {BLOCK}.patches must be a mapping with a list 'encodings', got {patch!r:.80}.")
        parse_spec(patch["encodings"], {})


def register() -> None:
    """Register the config type; model classes follow when a host is first met, so importing stays cheap."""
    AutoConfig.register(MODEL_TYPE, PeRetrofitConfig, exist_ok=True)
    if _register_models not in on_new_class:
        on_new_class.append(_register_models)


def _register_models(config_class: type[PreTrainedConfig], host_class: type[PreTrainedConfig]) -> None:
    """For each Auto class that knows the host: a patched subclass of its model class."""
    made: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}
    classes: list[Any] = list(vars(modeling_auto).values())
    for auto in classes:
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is None or not hasattr(auto, "register"):
            continue
        found = mapping.get(host_class, None)
        host_model = found[0] if isinstance(found, (tuple, list)) else found
        if not isinstance(host_model, type) or not issubclass(host_model, PreTrainedModel):
            continue
        if host_model not in made:
            body = {"config_class": config_class, "__module__": __name__, "__doc__": host_model.__doc__}
            made[host_model] = type(host_model.__name__, (MarkedModel, host_model), body)
        auto.register(config_class, made[host_model], exist_ok=True)
