"""The wheel and the sdist: they build, carry what they should, and work where there is nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.places import ROOT
from support.stored_runs import write_run

import cnnlog

pytestmark = pytest.mark.once

NAME = f"cnnlog-{cnnlog.__version__}"
# What a user does first, and what TensorBoard looks for.
FIRST_USE = """
import importlib.metadata as metadata, sys
import cnnlog
print(cnnlog.__file__)
(plugin,) = metadata.entry_points(group="tensorboard_plugins", name="cnnlog")
plugin.load()
assert "torch" not in sys.modules
assert metadata.version("cnnlog") == cnnlog.__version__
assert all(getattr(cnnlog, name) is not None for name in cnnlog.__all__)
"""


def done(*command: object, cwd: Path) -> str:
    finished = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False, timeout=500
    )
    assert finished.returncode == 0, f"{command}\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout


def build(source: Path, target: str, folder: Path) -> Path:
    done(sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder, cwd=source)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "sdist", tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the sdist, as an index would have it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder)
    return build(folder / NAME, "wheel", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_carries_the_package_whole_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        entry_points = archive.read(f"{NAME}.dist-info/entry_points.txt").decode()
    package = [path for path in (ROOT / "cnnlog").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert names == {path.relative_to(ROOT).as_posix() for path in package}
    assert {"cnnlog/py.typed", "cnnlog/reports/page/assets/page.html.j2", "cnnlog/reports/page/assets/page.js"} <= names
    assert "[tensorboard_plugins]\ncnnlog = cnnlog.plugin:KeepAllImages" in entry_points
    assert "[console_scripts]\ncnnlog = cnnlog.cli:main" in entry_points


def test_the_sdist_carries_what_the_tests_need_and_nothing_of_this_machine(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "scripts/test",
        "tests/promises/test_package.py",
        "tests/rendering/goldens",
    } <= {
        *names,
        *(str(Path(name).parent) for name in names),
    }
    assert not [name for name in names if name.split("/")[0].startswith((".venv", ".git/", "dist", "lightning_logs"))]
    assert ".git" not in names


@pytest.fixture(scope="module")
def uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed; scripts/setup installs it into .venv")
    cache = Path(done(found, "cache", "dir", cwd=ROOT).strip())
    if not os.access(next(folder for folder in (cache, *cache.parents) if folder.exists()), os.W_OK):
        pytest.skip(f"uv's cache {cache} cannot be written, and without it torch would be fetched anew")
    return found


@pytest.mark.timeout(600)
def test_both_install_into_an_empty_environment_and_work_there(
    wheel: Path, sdist: Path, uv: str, tmp_path: Path
) -> None:
    """With all that it depends on, resolved anew and linked from uv's cache; Python compiles it at its first use."""
    environment = tmp_path / "empty"
    binaries = environment / ("Scripts" if os.name == "nt" else "bin")
    run = write_run(tmp_path / "run")
    done(Path(sys.executable).with_name("cnnlog"), "compare", run, "-o", tmp_path / "expected.html", cwd=tmp_path)
    expected = (tmp_path / "expected.html").read_bytes()
    done(uv, "venv", "--python", sys.executable, environment, cwd=tmp_path)
    python = binaries / "python"
    done(uv, "pip", "install", "--python", python, wheel, cwd=tmp_path)
    where = Path(done(python, "-c", FIRST_USE, cwd=tmp_path).strip())
    assert where.is_relative_to(environment)
    for package in (wheel, sdist):
        done(uv, "pip", "install", "--python", python, "--no-deps", "--reinstall", package, cwd=tmp_path)
        assert (where.parent / "py.typed").is_file()
        assert done(binaries / "cnnlog", "--version", cwd=tmp_path) == f"cnnlog {cnnlog.__version__}\n"
        page = tmp_path / f"{package.name}.html"
        done(binaries / "cnnlog", "compare", run, "-o", page, cwd=tmp_path)
        assert page.read_bytes() == expected
