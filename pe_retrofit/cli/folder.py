"""Where a command may write a folder."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..folders import written_whole

__all__ = ["check_target", "written_whole"]


def check_target(out: Path, overwrite: bool, source: Path | None) -> Path:
    """The absolute target, if it may be written.

    Args:
        out: what the user asked for.
        overwrite: a saved model there may be replaced.
        source: folder of the model being read, or None.

    Raises:
        ConfigError: with what is in the way.
    """
    target = out.expanduser().resolve()
    if target.exists() and not target.is_dir():
        raise ConfigError(f"--out {str(out)!r} is a file; name a folder.")
    if source is not None and (target == source.resolve() or target in source.resolve().parents):
        raise ConfigError(f"--out {str(out)!r} holds the model being read; name another folder.")
    if target.is_dir() and any(target.iterdir()):
        if not overwrite:
            raise ConfigError(f"--out {str(out)!r} is not empty; name another folder, or replace it with --overwrite.")
        if not (target / "config.json").is_file():
            raise ConfigError(
                f"--out {str(out)!r} is not empty and holds no config.json, so it is no saved model, and --overwrite "
                "would delete what is in it. Remove it yourself, or name another folder."
            )
    return target
