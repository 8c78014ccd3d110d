"""The `cnnlog` command: one file a command. Commands are wiring; they compute nothing."""

from __future__ import annotations


def main() -> None:
    """Run the command line; the entry point `cnnlog` names this function."""
    from cnnlog.cli import app

    app.main()
