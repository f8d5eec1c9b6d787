"""What every results file says about its run."""

from __future__ import annotations

import datetime
import platform
from typing import Any

import torch
import transformers

from . import __version__
from .patchers.family import find_host
from .texts import Text

SCHEMA_VERSION = 1


def provenance(model: Any, text: Text, *, kind: str, model_name: str, **used: int) -> dict[str, Any]:
    """Model, machine, versions and text, ready for JSON; ``used`` says which tokens of the text were taken."""
    config = find_host(model).config
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "model": {
            "name": model_name,
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "trained_length": int(config.max_position_embeddings),
            "dtype": str(model.dtype).removeprefix("torch."),
        },
        "device": {"type": model.device.type, "threads": torch.get_num_threads(), "machine": platform.machine()},
        "versions": {
            "pe_retrofit": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "text": {"source": text.name, "sha256": text.sha256, "characters": len(text.content), **used},
    }
