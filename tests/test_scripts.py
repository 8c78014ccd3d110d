"""Scripts say how to get what they lack, from any folder; `scripts/test` runs what its usage says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import SCRIPTS

pytestmark = pytest.mark.once

QUICK = "--ignore=tests/promises --numprocesses=auto --dist=loadfile"
CHECKS = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "-m codespell_lib"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts in a folder with a space, without an environment."""
    folder = tmp_path / "my code" / "cnnlog"
    shutil.copytree(SCRIPTS, folder / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-S", "-E"] if script.suffix == ".py" else []  # -S: without what is installed
    return subprocess.run(
        [*command, str(script), *arguments], capture_output=True, text=True, check=False, timeout=60, cwd=os.sep
    )


def stand_in(path: Path, line: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{line}\n", encoding="utf-8")
    path.chmod(0o755)


def lines_of(checkout: Path, *arguments: str) -> list[str]:
    """What `scripts/test` calls, with a set-up and Pythons that only note what they are given."""
    stand_in(checkout / "scripts" / "setup", 'echo "setup $*"')
    stand_in(checkout / ".venv" / "bin" / "python", 'echo "$*"')
    stand_in(checkout / ".venv-lowest" / "bin" / "python", 'echo "lowest $*"')
    done = run(checkout / "scripts" / "test", *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["bench", "zoo"])
def test_a_door_without_an_environment_says_how_to_make_one(name: str, checkout: Path) -> None:
    done = run(checkout / "scripts" / name)
    assert done.returncode == 1
    assert done.stderr == (
        f"scripts/{name} needs the project's environment, and there is no .venv yet; scripts/setup makes it.\n"
    )


@pytest.mark.parametrize("name", ["bench", "zoo"])
def test_a_door_leads_to_its_module_with_all_arguments(name: str, checkout: Path) -> None:
    stand_in(checkout / ".venv" / "bin" / "python", 'printf "%s\\n" "$@"')
    script, *arguments = run(checkout / "scripts" / name, "--only", "a b*").stdout.splitlines()
    assert Path(script).samefile(checkout / "scripts" / f"{name}.py")
    assert arguments == ["--only", "a b*"]


@pytest.mark.parametrize(
    ("module", "command", "lacks"),
    [
        ("bench", "scripts/bench", "lightning"),
        ("bench_compare", "scripts/bench", "numpy"),
        ("zoo", "scripts/zoo", "torch"),
        ("outputs", ".venv/bin/python scripts/outputs.py", "torch"),
    ],
)
def test_a_module_in_another_python_says_which_package_is_missing_and_how_to_get_it(
    module: str, command: str, lacks: str, checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNNLOG_OUTPUTS", "1")  # else outputs.py begins anew, with what is installed
    arguments = [str(checkout / "sums.json")] if module == "outputs" else []
    done = run(checkout / "scripts" / f"{module}.py", *arguments)
    assert done.returncode == 1
    assert done.stderr == (
        f"{command} needs the package {lacks}, and this Python does not have it; "
        f"run scripts/setup, which installs it into .venv, and then {command}.\n"
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["setup --test", *CHECKS, "-m pytest"]),
        (["--quick"], ["setup --test", *CHECKS, f"-m pytest {QUICK}"]),
        (["--all"], ["setup --all", *CHECKS, "-m pytest"]),
        (["--lowest"], ["setup --lowest", "lowest -m pytest"]),
        (["tests/rendering"], ["setup --test", "-m pytest tests/rendering"]),
        (["-k", "drift", "-x"], ["setup --test", "-m pytest -k drift -x"]),
        (["tests/runs", "--quick"], ["setup --test", f"-m pytest tests/runs {QUICK}"]),
        (["--lowest", "-k", "a  or  b"], ["setup --lowest", "lowest -m pytest -k a  or  b"]),
    ],
)
def test_the_tests_are_called_as_the_usage_says(arguments: list[str], expected: list[str], checkout: Path) -> None:
    assert lines_of(checkout, *arguments) == expected


def test_only_the_lowest_versions_are_told_to_leave_out_what_is_tested_once(checkout: Path) -> None:
    lines_of(checkout)  # which makes what stands for the set-up
    said = 'echo "once ${CNNLOG_LOWEST:-is there}"'
    stand_in(checkout / ".venv" / "bin" / "python", said)
    stand_in(checkout / ".venv-lowest" / "bin" / "python", said)
    assert run(checkout / "scripts" / "test", "--lowest").stdout.splitlines()[-1] == "once 1"
    assert run(checkout / "scripts" / "test", "--all").stdout.splitlines()[-1] == "once is there"


def test_a_failed_check_ends_the_tests_before_they_run(checkout: Path) -> None:
    stand_in(checkout / "scripts" / "setup", "true")
    stand_in(checkout / ".venv" / "bin" / "python", 'echo "$*"; [ "$2" != mypy ]')
    done = run(checkout / "scripts" / "test")
    assert done.returncode == 1
    assert done.stdout.splitlines() == CHECKS[:3]


@pytest.mark.parametrize(
    ("name", "options"), [("test", ["--quick", "--all", "--lowest"]), ("docs", ["-q", "-E"])], ids=["test", "docs"]
)
@pytest.mark.parametrize("asked", [["--help"], ["-h"], ["-q", "--help"]], ids=" ".join)
def test_the_usage_is_printed_and_nothing_is_installed(
    name: str, options: list[str], asked: list[str], checkout: Path
) -> None:
    stand_in(checkout / "scripts" / "setup", "touch installed; exit 1")
    done = run(checkout / "scripts" / name, *asked)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"scripts/{name} {option} " in done.stdout for option in options)
    assert not (checkout / "installed").exists()
    assert not (checkout / ".venv").exists()
