"""The weight files of a checkpoint, looked through before a model is built from them.

Only safetensors are read. Their headers say what they hold, so that damaged files, tensors of other shapes and a config
that describes far more than there is are found before memory is allocated for it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig
from transformers.utils import cached_file

from ..errors import ConfigError
from ..marking import BLOCK

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
DOWNLOADING = ("cache_dir", "proxies", "token", "revision", "local_files_only", "subfolder")
LARGEST_INDEX = 1 << 28
FRESH = 1 << 26
"""So many parameters may be new (a head) beside a checkpoint that holds fewer."""


def check_weights(model_class: type[Any], name: Any, kwargs: dict[str, Any]) -> None:
    """Refuse a checkpoint whose files could not be, or should not be, loaded.

    Args:
        model_class: to be built.
        name: folder, or id on the Hub.
        kwargs: of ``from_pretrained``; files that had to be downloaded anew are not downloaded twice.

    Raises:
        ConfigError: no safetensors, a damaged or truncated file, a name outside the folder, tensors of other shapes,
            values that are no numbers among learned positions, or far fewer weights than the config describes.
    """
    held = tensors_of(weight_files(name, kwargs))
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        return
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0) or 0
    if layers > len(held):
        raise ConfigError(
            f"config.json describes num_hidden_layers={layers}, and the files of {str(name)!r} hold {len(held)} "
            "tensors. The config is not the one they were saved with; nothing was allocated."
        )
    with torch.device("meta"):
        expected = {key: tuple(p.shape) for key, p in model_class(copy.deepcopy(config)).named_parameters()}
    quantized = getattr(config, "quantization_config", None) is not None
    if not quantized and not kwargs.get("ignore_mismatched_sizes"):
        _check_shapes(model_class, expected, held)
    wanted, there = (sum(_size(shape) for shape in shapes.values()) for shapes in (expected, held))
    if wanted > (16 if quantized else 2) * there + FRESH:
        raise ConfigError(
            f"config.json describes {wanted:,} parameters, and the files of {str(name)!r} hold {there:,}. The config "
            "is not the one they were saved with; nothing was allocated."
        )


def weight_files(name: Any, kwargs: dict[str, Any]) -> list[Path]:
    """The safetensors files of a folder or of a repository of the Hub, downloaded if need be.

    Raises:
        ConfigError: there are none, or the index is damaged or names files elsewhere.
    """
    variant = kwargs.get("variant")
    found = {key: kwargs[key] for key in DOWNLOADING if kwargs.get(key) is not None}
    found["force_download"] = bool(kwargs.get("force_download"))
    if found["force_download"]:
        kwargs["force_download"] = False

    def fetch(file: str, *, needed: bool = False) -> Path | None:
        path = cached_file(name, _variant(file, variant), _raise_exceptions_for_missing_entries=needed, **found)
        return None if path is None else Path(path)

    if (single := fetch(WEIGHTS)) is not None:
        return [single]
    index = fetch(INDEX)
    if index is None:
        raise ConfigError(
            f"{str(name)!r} holds no {_variant(WEIGHTS, variant)} and no {_variant(INDEX, variant)}. Patched models "
            "are read from safetensors only: pickled weights (*.bin, *.pt) can run code. Save it again with "
            "save_pretrained."
        )
    files = []
    for file in shard_names(index):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, **found)
        if path is None:
            raise ConfigError(f"{str(name)!r} lacks {file}, which {index.name} names. Download or save it again.")
        files.append(Path(path))
    return files


def shard_names(index: Path) -> list[str]:
    """The files that an index names, each a plain name beside it.

    Raises:
        ConfigError: it is damaged, or names something else.
    """
    try:
        if index.stat().st_size > LARGEST_INDEX:
            raise ValueError(f"it has {index.stat().st_size:,} bytes")
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{index.name} cannot be read ({type(error).__name__}: {error!s:.200}).") from error
    wrong = [n for n in names if not _is_plain(n)]
    if wrong or not names:
        got = str(wrong[:3]) if wrong else "none"
        raise ConfigError(f"{index.name} must name files beside it that end in .safetensors, got {got}.")
    return names


def _is_plain(name: Any) -> bool:
    good = isinstance(name, str) and name.endswith(".safetensors") and not name.startswith(".")
    return good and not set(name) & set("/\\:\0")


def tensors_of(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors, from the headers; learned positions are looked through for NaN too.

    Raises:
        ConfigError: a file is damaged, a tensor comes twice, or learned positions hold values that are no numbers.
    """
    found: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a mapping)
                    if key in found:
                        raise ConfigError(f"The tensor {key!r:.120} is in two files of the checkpoint.")
                    found[key] = tuple(file.get_slice(key).get_shape())
                    if f".{BLOCK}." in f".{key}" and not _finite(file.get_tensor(key)):
                        raise ConfigError(
                            f"The learned positions {key!r:.120} hold values that are not finite (NaN or infinity). "
                            "The checkpoint is damaged, or its training had failed."
                        )
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"{path.name} is damaged or cut off ({error!s:.200}). Download or save the checkpoint again."
            ) from error
    return found


def _check_shapes(model_class: type[Any], expected: Mapping[str, Any], held: Mapping[str, Any]) -> None:
    prefix = f"{getattr(model_class, 'base_model_prefix', '')}."
    wrong = []
    for key, shape in held.items():
        names = (key, f"{prefix}{key}", key.removeprefix(prefix))
        name = next((n for n in names if n in expected), None)
        if name is not None and expected[name] != shape:
            wrong.append(f"{key} is {list(shape)}, and config.json makes it {list(expected[name])}")
    if wrong:
        shown = "".join(f"\n  - {line}" for line in wrong[:5])
        raise ConfigError(
            f"{len(wrong)} tensors of the checkpoint have other shapes than config.json describes:{shown}\n"
            "The config is not the one they were saved with; nothing was allocated."
        )


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for number in shape:
        size *= number
    return size


def _finite(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _variant(file: str, variant: str | None) -> str:
    stem, _, ending = file.rpartition(".")
    return file if variant is None else f"{stem}.{variant}.{ending}"
