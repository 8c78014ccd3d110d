"""The command `cnnlog`: registers the commands, which import what is heavy where they use it."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from cnnlog.cli.compare import compare
from cnnlog.cli.demo import demo
from cnnlog.cli.export import export
from cnnlog.cli.replay import replay
from cnnlog.cli.show import layers, show
from cnnlog.cli.tensorboard import tensorboard

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Watch a CNN's filters and feature maps change while it is fine-tuned.",
)
for command in (layers, compare, tensorboard, export, replay, demo):
    app.command()(command)
app.add_typer(show, name="show")


def main() -> None:
    """Run the command; what is wrong with its arguments is said in one sentence, with exit code 2."""
    _spell_what_cannot_be_shown()
    try:
        app()
    except (ValueError, TypeError, OSError) as error:
        typer.echo(f"cnnlog: {error}", err=True)
        sys.exit(2)


def _spell_what_cannot_be_shown() -> None:
    """Print what the terminal's encoding lacks by its number, because help and names of layers may hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _say_version(wanted: bool) -> None:
    if wanted:
        from cnnlog import __version__

        typer.echo(f"cnnlog {__version__}")
        raise typer.Exit


@app.callback()
def common(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options that stand before a command."""
