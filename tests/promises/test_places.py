"""Where a checkout lies, and whose machine it is, does not matter: names with spaces, an empty home, any terminal."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.once

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())


def copied(folder: Path) -> Path:
    """What is, or would be, committed; called cnnlog, below a folder with a space in its name."""
    listing = ("git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    try:
        names = subprocess.run(listing, capture_output=True, check=True).stdout.split(b"\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a checkout, or there is no git")
    copy = folder / "my code" / "cnnlog"
    for name in map(os.fsdecode, filter(None, names)):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    return copy


# --- the tests


# Of each file, tests that such things may break: they tell warnings of ours, read texts, print, or start something.
SAMPLES = {
    "test_faults.py": "whose_writer_raises or nan_in_the_training_loss",
    "test_cli.py": "says_its_version or wrong_arguments or one_sentence or narrow",
    "test_compare_cli.py": "table_and_every_file or read_only or overwritten",
    "test_finetune.py": "what_is_missing",
    "test_monitors.py": "one_line_says",
    "test_names.py": "tracker_takes or stays_inside",
    "test_docs.py": "options_in_the_text or links_lead",
    "test_serve.py": "removes_the_links",
    "test_store.py": "umask or truncated_file",
}


@pytest.fixture
def stranger(tmp_path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A read-only copy of the checkout; and where, and as whom, a stranger runs a program there."""
    copy, home, temporary, decoys = copied(tmp_path), tmp_path / "home", tmp_path / "my files", tmp_path / "decoys"
    for folder in (home, temporary, decoys / "tests", decoys / "scripts"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("raise ImportError('another package')", encoding="utf-8")
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": f"{copy}{os.pathsep}{decoys}",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "TZ": "Asia/Kathmandu",
        "LC_ALL": "C",
        "PYTHONUTF8": "0",
        "COLUMNS": "40",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "OMP_NUM_THREADS": "1",
    }
    shut = [home, copy, *copy.rglob("*")]
    for path in shut:
        path.chmod(path.stat().st_mode & ~0o222)
    yield copy, {"env": environment, "cwd": temporary, "stdin": subprocess.DEVNULL, "preexec_fn": become_a_stranger}
    for path in shut:
        path.chmod(path.stat().st_mode | 0o200)  # so that it can be removed


def become_a_stranger() -> None:
    """Take from a child, before it becomes another program, root's right to write everywhere (Linux); share nothing."""
    drop_from_bounding_set, dac_override = 24, 1
    if os.geteuid() == 0 and ctypes.CDLL(None).prctl(drop_from_bounding_set, dac_override, 0, 0, 0) != 0:
        raise OSError("this root may not give up a capability")
    os.umask(0o077)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="how root gives up a right is known of Linux only")
def test_a_stranger_can_run_the_tests(stranger: tuple[Path, dict[str, Any]]) -> None:
    copy, as_stranger = stranger
    where = [sys.executable, "-c", "import cnnlog; print(cnnlog.__file__)"]
    imported = subprocess.run(where, **as_stranger, capture_output=True, check=True).stdout
    assert Path(os.fsdecode(imported)).is_relative_to(copy)
    paths = [str(path) for name in SAMPLES for path in copy.rglob(name)]
    assert sorted(map(os.path.basename, paths)) == sorted(SAMPLES)
    chosen = " or ".join(f"({name.removesuffix('.py')} and ({words}))" for name, words in SAMPLES.items())
    command = [sys.executable, "-m", "pytest", "--tb=short", "-k", chosen, *map(str, paths)]
    done = subprocess.run(
        command, **as_stranger, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=250
    )
    said = f"{done.stdout}\n{done.stderr}"
    assert done.returncode == 0, said
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed, said
    assert int(passed[1]) > 2 * len(SAMPLES), said


# --- the scripts

# Stands for Python and for what is installed: it notes where and how it was called, and makes what Python would make.
PROGRAM = r"""#!/usr/bin/env bash
call=$(printf '%s|' "$(basename "$0")" "$PWD" "$@")
echo "$call" >>"$CALLS" # at once, for two write
case "$*" in
*"${FAILS:-no such word}"*) exit 3 ;;
*"${HANGS:-no such word}"*) trap "" "$IGNORES" && for _ in {1..600}; do sleep 0.1 && echo >>"$CALLS.lives"; done ;;
*"print('%d.%d'"*) echo "3.10 $0" ;;
"-m venv --clear "*) environment=$4 ;;
"venv "*) environment=${!#} ;;
*install*uv) cp "$0" .venv/bin/uv ;;
esac
if [ -n "${environment:-}" ]; then
    rm -rf "$environment"
    mkdir -p "$environment/bin"
    for name in python ruff cnnlog; do cp "$0" "$environment/bin/$name"; done
fi
"""


class Scripts:
    """A checkout whose scripts run with stand-ins for all that they would install."""

    def __init__(self, folder: Path) -> None:
        self.checkout, self.calls, self.temporary = copied(folder), folder / "calls", folder / "temporary"
        programs = folder / "programs"
        for made in (self.temporary, programs, folder / "cdpath" / "scripts", folder / "cdpath" / ".venv"):
            made.mkdir(parents=True)
        for name in ("python3", "python3.10", "chromium"):
            (programs / name).write_text(PROGRAM, encoding="utf-8")
            (programs / name).chmod(0o755)
        self.environment = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(self.calls),
            "CDPATH": str(folder / "cdpath"),
            "TMPDIR": str(self.temporary),
        }

    def start(self, *command: str, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=cwd or self.checkout,
            env={**self.environment, **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def run(self, *command: str, cwd: Path | None = None) -> list[list[str]]:
        """The calls of what is installed: name, working folder, arguments."""
        self.calls.unlink(missing_ok=True)
        said, _ = (started := self.start(*command, cwd=cwd)).communicate(timeout=60)
        assert started.returncode == 0, said
        return self.called()

    def called(self) -> list[list[str]]:
        lines = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        return [line.split("|")[:-1] for line in lines]

    def commit(self) -> None:
        for words in ("init --quiet", "add --all", "-c user.name=me -c user.email=me@here commit --quiet -m all"):
            subprocess.run(["git", *words.split()], cwd=self.checkout, env=self.environment, check=True)


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


def test_scripts_run_from_anywhere_and_hand_on_their_arguments(scripts: Scripts, tmp_path: Path) -> None:
    there = str(scripts.checkout)
    assert ["python", there, "-m", "pytest", "-k", "a or b"] in scripts.run("scripts/test", "-k", "a or b")
    lowest = scripts.run("my code/cnnlog/scripts/test", "--lowest", "tests/a b", cwd=tmp_path)
    assert ["uv", there, "venv", "--quiet", "--clear", "--python"] == lowest[-3][:6]
    assert ["python", there, "-m", "pytest", "tests/a b"] == lowest[-1]
    demo = scripts.run(f"{there}/scripts/demo", "--out", "my runs", cwd=tmp_path)
    assert demo[-1] == ["cnnlog", str(tmp_path), "demo", "--out", "my runs"]


@pytest.mark.parametrize("name", ["setup", "test", "docs", "demo", "bench", "zoo"])
def test_a_script_that_is_called_by_links_finds_its_checkout(name: str, scripts: Scripts, tmp_path: Path) -> None:
    """By a chain of links, a relative one and an absolute one, in a folder that is a link as well."""
    real, bin_ = tmp_path / "links" / "real folder", tmp_path / "bin"
    real.mkdir(parents=True)
    bin_.symlink_to(real)
    (real / "relative").symlink_to(f"../../my code/cnnlog/scripts/{name}")
    (real / "absolute").symlink_to(bin_ / "relative")
    (bin_ / name).symlink_to("absolute")
    there = str(scripts.checkout)
    if name in ("bench", "zoo"):  # these make no environment
        scripts.run("scripts/setup")
    called = scripts.run(str(bin_ / name), cwd=tmp_path)[-1]
    begins = {
        "setup": ["uv", there, "pip", "install"],
        "test": ["python", there, "-m", "pytest"],
        "docs": ["python", there, "-m", "sphinx"],
        "demo": ["cnnlog", str(tmp_path), "demo"],
    }.get(name, ["python", str(tmp_path), f"{there}/scripts/{name}.py"])
    assert called[: len(begins)] == begins
    assert (scripts.checkout / ".venv").is_dir()
    assert sorted(path.name for path in real.iterdir()) == sorted(["relative", "absolute", name])


def test_a_checkout_that_was_moved_gets_another_environment(scripts: Scripts) -> None:
    def makes_and_installs() -> tuple[bool, bool]:
        words = [call[2:4] for call in scripts.run("scripts/setup", "--all")]
        return ["-m", "venv"] in words, ["pip", "install"] in words

    assert makes_and_installs() == (True, True)
    assert makes_and_installs() == (False, False)
    scripts.checkout = scripts.checkout.rename(scripts.checkout.with_name("renamed"))
    assert makes_and_installs() == (True, True)
    assert makes_and_installs() == (False, False)


def test_ci_runs_both_tests_in_a_clone_below_a_folder_with_a_space(scripts: Scripts) -> None:
    scripts.commit()
    tested = [call for call in scripts.run(".ci/run") if call[2:4] == ["-m", "pytest"]]
    assert len(tested) == 2
    for _, folder, *_ in tested:
        assert Path(folder).is_relative_to(scripts.temporary)
        assert Path(folder).parts[-2:] == ("my code", "cnnlog")
    assert not list(scripts.temporary.iterdir())
    assert not (scripts.checkout / ".venv").exists()


@pytest.mark.parametrize("step", ["--group lint", "check .", "-m mypy", "-m pytest", "--resolution lowest-direct"])
def test_ci_fails_if_any_step_does(scripts: Scripts, step: str) -> None:
    scripts.commit()
    started = scripts.start(".ci/run", FAILS=step)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 3, said
    assert not list(scripts.temporary.iterdir())


@pytest.mark.parametrize(("step", "ignored"), [("--group lint", "TERM"), ("-m pytest", "TERM"), ("-m pytest", "USR1")])
def test_ci_that_is_ended_ends_what_it_began_and_leaves_nothing(scripts: Scripts, step: str, ignored: str) -> None:
    scripts.commit()
    started, lives = scripts.start(".ci/run", HANGS=step, IGNORES=ignored), scripts.calls.with_name("calls.lives")
    deadline = time.monotonic() + 60
    while not lives.exists():
        assert time.monotonic() < deadline, scripts.called()
        time.sleep(0.05)
    started.terminate()
    said, _ = started.communicate(timeout=30)
    assert started.returncode == 128 + signal.SIGTERM, said
    assert not list(scripts.temporary.iterdir())
    written = lives.stat().st_size
    time.sleep(0.5)
    assert lives.stat().st_size == written
