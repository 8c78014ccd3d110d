"""Says how to get the environment that a script needs, where the script is run without it."""

from __future__ import annotations


def advice(script: str, error: ModuleNotFoundError, setup: str = "scripts/setup") -> SystemExit:
    """What a script raises when an import fails: one sentence instead of a traceback.

    Args:
        script: the command that the reader gave or should give, `scripts/bench` say.
        error: what the import raised; it names the package that is missing.
        setup: the command that installs this package.
    """
    return SystemExit(
        f"{script} needs the package {error.name}, and this Python does not have it; "
        f"run {setup}, which installs it into .venv, and then {script}."
    )
