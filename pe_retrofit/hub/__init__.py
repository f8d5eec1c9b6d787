"""Save, load and publish patched models, with transformers' own ``from_pretrained`` on the other side."""

from typing import TYPE_CHECKING

from ..later import importer
from .registering import register

if TYPE_CHECKING:
    from .adapter_loading import load_adapter
    from .adapters import save_adapter
    from .card import make_card, write_card
    from .merging import merge_adapter
    from .native import export_native
    from .publishing import publish
    from .pushing import push_folder
    from .saving import save_model

__getattr__ = importer(
    __name__,
    {
        "export_native": "native",
        "load_adapter": "adapter_loading",
        "make_card": "card",
        "merge_adapter": "merging",
        "publish": "publishing",
        "push_folder": "pushing",
        "save_adapter": "adapters",
        "save_model": "saving",
        "write_card": "card",
    },
)

__all__ = [
    "export_native",
    "load_adapter",
    "make_card",
    "merge_adapter",
    "publish",
    "push_folder",
    "register",
    "save_adapter",
    "save_model",
    "write_card",
]
