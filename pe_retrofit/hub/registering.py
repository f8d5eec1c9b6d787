"""Make ``AutoModel*.from_pretrained`` load patched models.

The config class registered for ``model_type: pe_retrofit`` turns such a config into a marked subclass of the host's
config class, and each of the host's model classes gets a subclass that patches itself when built.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from ..marking import MODEL_TYPE, on_new_class
from .configuration import PeRetrofitConfig
from .modeling import MarkedModel


def register() -> None:
    """Register the config type; model classes follow when a host is first met, so importing stays cheap."""
    AutoConfig.register(MODEL_TYPE, PeRetrofitConfig, exist_ok=True)
    if _register_models not in on_new_class:
        on_new_class.append(_register_models)


def auto_classes(host_class: type[PreTrainedConfig]) -> dict[Any, type[PreTrainedModel]]:
    """The Auto classes that know a host, and the model class each of them loads."""
    found: dict[Any, type[PreTrainedModel]] = {}
    for auto in list(vars(modeling_auto).values()):
        mapping = getattr(auto, "_model_mapping", None)
        if mapping is None or not hasattr(auto, "register"):
            continue
        model_class = mapping.get(host_class, None)
        model_class = model_class[0] if isinstance(model_class, (tuple, list)) else model_class
        if isinstance(model_class, type) and issubclass(model_class, PreTrainedModel):
            found[auto] = model_class
    return found


def _register_models(config_class: type[PreTrainedConfig], host_class: type[PreTrainedConfig]) -> None:
    """For each Auto class that knows the host: a patched subclass of its model class."""
    made: dict[type[PreTrainedModel], type[PreTrainedModel]] = {}
    for auto, host_model in auto_classes(host_class).items():
        if host_model not in made:
            body = {"config_class": config_class, "__module__": __name__, "__doc__": host_model.__doc__}
            made[host_model] = type(host_model.__name__, (MarkedModel, host_model), body)
        auto.register(config_class, made[host_model], exist_ok=True)
