"""README is short, and its one program runs as pasted and logs what README says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.documents import README, Block, blocks
from support.places import ROOT
from support.training import events, image_steps

import cnnlog

TEXT = README.read_text(encoding="utf-8")


def the_program() -> Block:
    (program,) = [block for block in blocks(README) if block.info == "python"]
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that was empty, in which the program has run as somebody would run it."""
    folder = tmp_path_factory.mktemp("stripes")
    (folder / "stripes.py").write_text(the_program().text, encoding="utf-8")
    paths = os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)
    done = subprocess.run(
        [sys.executable, "stripes.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "cnnlog watches filters and feature maps of 2 layers, conv1 and conv2, every epoch; probe" in done.stderr
    assert "cnnlog: " not in done.stderr, "it warned"
    return folder


def test_it_is_short() -> None:
    assert len(TEXT.splitlines()) <= 150
    assert len(the_program().text.splitlines()) <= 30


def test_the_program_leaves_a_run_whose_filters_moved(folder: Path) -> None:
    run = cnnlog.open_run(folder)
    assert run.steps == tuple(range(11))
    assert run.layers == ("conv1", "conv2")
    assert run.numbers("weight_change", "conv1")[0] > 0.05


def test_the_program_logs_the_tags_that_are_listed(folder: Path) -> None:
    listed = {tag for row in re.findall(r"^\|(.*?)\|", TEXT, re.MULTILINE) for tag in re.findall(r"`([^`]+)`", row)}
    found = events(folder / "lightning_logs" / "version_0")
    logged = {tag for kind in ("images", "scalars") for tag in found.Tags()[kind]}
    assert len(listed) == 12
    assert listed <= logged
    assert image_steps(found)["filters/00_conv1"] == list(range(11))


def test_the_comparison_that_it_shows_is_of_that_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cnnlog.cli.app import app

    commands = [words for block in blocks(README) if block.info == "sh" for words in block.commands]
    (arguments,) = [words[1:] for words in commands if words[:2] == ["cnnlog", "compare"]]
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (folder / "report.html").stat().st_size > 10_000
