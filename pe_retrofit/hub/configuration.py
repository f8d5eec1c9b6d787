"""The config type of patched models on disk, and what it accepts.

``config.json`` of a patched model says ``model_type: pe_retrofit`` and holds the host's config plus a
``position_encoding`` block. It is data from anywhere: everything is checked before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from ..config import SCHEMA_VERSION
from ..errors import ConfigError
from ..marking import ACTIVATIONS, BLOCK, HOST, MODEL_TYPE, marked_class
from ..plan import parse_spec
from .bounds import check_bounds

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
                host type; or a value of the host's config is out of bounds.
            UnknownEncodingError: it names an encoding this installation does not have.
        """
        block = config_dict.get(BLOCK)
        check_block(block)
        assert isinstance(block, Mapping)
        host_type = block["host_model_type"]
        host_class = CONFIG_MAPPING[host_type]
        values = {**config_dict, **block.get(HOST, {}), "model_type": host_type}
        values[BLOCK] = {key: value for key, value in block.items() if key != HOST}
        check_bounds(values, host_class)
        return marked_class(host_class).from_dict(values, **kwargs)


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
        raise ConfigError(f"{BLOCK}.schema_version must be a whole number from 1, got {version!r:.80}.")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{BLOCK}.schema_version is {version}, and this pe_retrofit reads up to {SCHEMA_VERSION}. Upgrade it: "
            "pip install -U pe_retrofit."
        )
    host = block.get("host_model_type")
    if not isinstance(host, str) or host == MODEL_TYPE or host not in CONFIG_MAPPING:
        raise ConfigError(
            f"{BLOCK}.host_model_type must be a model type of transformers such as 'llama', got {host!r:.80}."
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
