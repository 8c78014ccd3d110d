from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.places import SCRIPTS

pytestmark = pytest.mark.once

BENCH = SCRIPTS / "bench.py"


def printed(*flags: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCH), *flags], capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_it_compares_four_ways() -> None:
    head, _, *body = rows(printed("--quick"))
    assert [row[0] for row in body] == [
        "bare forward",
        "cnnlog",
        "make_grid + add_image",
        "matplotlib 8x8 + add_figure",
    ]
    cost = {row[0]: dict(zip(head[1:], map(float, row[1:]), strict=True)) for row in body}
    assert cost["bare forward"]["events, kB"] == cost["bare forward"]["store, kB"] == 0
    assert cost["make_grid + add_image"]["store, kB"] == 0
    assert cost["cnnlog"]["events, kB"] > 0
    assert cost["cnnlog"]["store, kB"] > 0


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory from /proc")
def test_it_watches_memory_and_stores_every_snapshot() -> None:
    text = printed("--quick", "--memory")
    assert [row[0] for row in rows(text)[2:]] == ["2", "4", "10", "20"]
    assert "21 steps in the store" in text  # the baseline and 20 steps


def test_it_measures_a_snapshot_on_one_thread() -> None:
    _, _, (name, *numbers) = rows(printed("--quick", "--snapshot"))
    assert name == "A tiny network"
    bare, thread, everything, modules, walk, of_250, loan = map(float, numbers)
    assert modules == 6
    assert bare > 0
    assert everything >= thread > 1
    assert loan > walk > 0
    assert of_250 > walk


@pytest.mark.browser
def test_it_moves_the_slider_of_a_page() -> None:
    pytest.importorskip("playwright.sync_api", reason="no playwright to drive the browser with")
    if shutil.which("chromium") is None and shutil.which("chromium-browser") is None:
        pytest.skip("no browser: neither chromium nor chromium-browser is installed")
    _, _, (layers, steps, size, median, worst) = rows(printed("--quick", "--page"))
    assert (layers, steps) == ("3", "5")
    assert float(size) > 0
    assert 0 < float(median) <= float(worst)
