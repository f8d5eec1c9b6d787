"""The code that travels with a checkpoint: one file, made from this package's own sources.

With it, ``from_pretrained(..., trust_remote_code=True)`` gives the same logits where pe_retrofit is not installed. It
holds the modules that loading and running take, and the encodings of this checkpoint. Where pe_retrofit is installed
and imported, transformers prefers it to the file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnsupportedError
from ..marking import BLOCK, MODEL_TYPE, MarkedConfig
from ..registry import NATIVE, get_encoding
from ..version import __version__
from .bundling import bundle
from .registering import auto_classes

FILE = "modeling_pe_retrofit.py"
MODULE = FILE.removesuffix(".py")
ENTRIES = ["hub.modeling", "hub.configuration", "attention", "marking"]
PACKAGE = __name__.partition(".")[0]


def add_code(folder: Path) -> list[str]:
    """Put the code of a saved model beside it, and say so in its ``config.json``.

    Args:
        folder: written by ``save_pretrained`` of a patched model.

    Returns:
        The names of the files written; none for a model that plain transformers loads.

    Raises:
        ConfigError: the config cannot be read.
        UnsupportedError: the model has an encoding that is not part of this package.
    """
    from transformers import AutoConfig

    path = folder / "config.json"
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}") from error
    if written.get("model_type") != MODEL_TYPE:
        return []
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text, auto_map = code_for(config)
    (folder / FILE).write_text(text, encoding="utf-8")
    path.write_text(json.dumps({**written, "auto_map": auto_map}, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return [FILE]


def code_for(config: Any) -> tuple[str, dict[str, str]]:
    """The file's text for a marked config, and the ``auto_map`` that names its classes.

    Raises:
        UnsupportedError: an encoding is not part of this package, or the host's classes are not transformers' own.
    """
    if not isinstance(config, MarkedConfig):
        raise UnsupportedError(
            f"{type(config).__name__} is not the config of a patched model; plain transformers loads it without code."
        )
    encodings = sorted({_module_of(name) for name in encodings_of(config)})
    marker = f"{PACKAGE}_at_home"
    body, _ = bundle(
        [*ENTRIES, *encodings],
        {("attention.interface", "NAME"): repr(marker), ("marking", "STANDALONE"): "True"},
    )
    classes, auto_map = _classes(config)
    body = f"{body}\n\n{classes}"
    digest = hashlib.sha256(body.encode()).hexdigest()[:12]
    # copies of different checkpoints, and the package itself, live side by side in one process
    body = body.replace(repr(marker), f'"{PACKAGE}_{digest}"')
    return f"{_head(config)}\n{body}", auto_map


def encodings_of(config: Any) -> list[str]:
    """Names of the encodings that a marked config asks for."""
    entries = [entry for patch in getattr(config, BLOCK)["patches"] for entry in patch["encodings"]]
    names = [entry if isinstance(entry, str) else entry["name"] for entry in entries]
    return list(dict.fromkeys(name for name in names if name not in NATIVE))


def _module_of(name: str) -> str:
    module = get_encoding(name).__module__
    if not module.startswith(f"{PACKAGE}."):
        raise UnsupportedError(
            f"The encoding {name!r} is defined in {module!r}, outside of {PACKAGE}, so its code cannot be sent along. "
            "Publish without code (code=False); whoever loads the model needs that module."
        )
    return module.removeprefix(f"{PACKAGE}.")


def _classes(config: Any) -> tuple[str, dict[str, str]]:
    """A class statement per model class of the host, and which Auto class loads which."""
    host = type(config).host_class
    autos = auto_classes(host)
    models = list(dict.fromkeys(autos.values()))
    for cls in [host, *models]:
        if not cls.__module__.startswith("transformers."):
            raise UnsupportedError(
                f"{cls.__name__} comes from {cls.__module__!r}, not from transformers, so code that extends it cannot "
                "be sent along. Publish without code (code=False)."
            )
    imports = [f"from {cls.__module__} import {cls.__name__} as Host{cls.__name__}" for cls in [host, *models]]
    statements = [
        f'class {cls.__name__}(MarkedModel, Host{cls.__name__}):\n    """transformers\' {cls.__name__}, patched."""\n\n'
        f"    config_class = marked_class(Host{host.__name__})\n"
        for cls in models
    ]
    names = {auto.__name__: f"{MODULE}.{cls.__name__}" for auto, cls in autos.items()}
    return "\n\n".join([_lines(imports), *statements]), {"AutoConfig": f"{MODULE}.PeRetrofitConfig", **names}


def _lines(lines: Iterable[str]) -> str:
    return "\n".join(lines) + "\n"


def _head(config: Any) -> str:
    names = ", ".join(encodings_of(config))
    return f'''"""{type(config).host_class.model_type} with another positional encoding: {names}.

Made by pe_retrofit {__version__} from its own sources, module by module; do not edit. It needs torch, transformers and
safetensors, reads no files but the checkpoint, and opens no connections. With pe_retrofit installed it is not needed.
"""

from __future__ import annotations
'''
