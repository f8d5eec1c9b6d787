"""The application: its verbs, and what happens to errors.

A verb is a file of this package with ``register(app)``. Verb files import nothing heavy at their top.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

VERBS = (
    "list",
    "show",
    "check",
    "patch",
    "calibrate",
    "eval",
    "compare",
    "inspect",
    "train",
    "recipes",
    "merge",
    "export",
    "card",
    "push",
    "bench",
    "demo",
)


class Verbs(TyperGroup):
    """Turns errors meant for people into one message on stderr: exit code 2 for wrong input, 1 for the rest."""

    def invoke(self, ctx: Any) -> Any:
        """Run the verb."""
        from ..errors import ConfigError, TrainingError, UnknownEncodingError, UnsupportedError
        from .common import CommandError

        try:
            return super().invoke(ctx)
        except (ConfigError, UnknownEncodingError, UnsupportedError) as error:
            raise _stop(error, 2) from error
        except BrokenPipeError:  # the reader of a pipe has seen enough, e.g. `| head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(0) from None
        except (CommandError, TrainingError, OSError, MemoryError) as error:
            raise _stop(error, 1) from error


def _stop(error: BaseException, code: int) -> typer.Exit:
    typer.echo(f"Error: {str(error) or type(error).__name__}", err=True)
    return typer.Exit(code)


def build() -> typer.Typer:
    """The application with all verbs."""
    app = typer.Typer(
        name="pe-retrofit",
        cls=Verbs,
        help="Give a pretrained transformer another positional encoding: look at encodings, check them, patch a model.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for verb in VERBS:
        import_module(f".{verb}", __package__).register(app)
    return app


def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=lambda wanted: _version(wanted), help="Show and exit.")
    ] = False,
) -> None:
    """Options of all verbs."""


def _version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"pe-retrofit {__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    build()()
