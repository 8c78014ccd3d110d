"""What tests of several folders share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from support.forks import Forks
from tensorboard.summary.writer import event_file_writer

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tiny convolutions gain nothing from two threads, and lose much when the machine is busy; and what two trainings end
# with is compared bit by bit, whichever fixture or process they run in. torch reads it when it is imported.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`scripts/test --lowest` asks for what other versions can change; the rest runs with the newest ones alone."""
    if "CNNLOG_LOWEST" in os.environ:
        reason = "older versions change nothing here; scripts/test runs it"
        for item in items:
            if item.get_closest_marker("once") is not None:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def _what_is_printed_does_not_depend_on_the_terminal() -> Iterator[None]:
    """Rich and Typer print colours where one of these is set, and fold lines by the width that is said."""
    with pytest.MonkeyPatch.context() as patch:
        colours = ("FORCE_COLOR", "PY_COLORS", "TTY_COMPATIBLE")
        # PYTEST_ADDOPTS is for this pytest, and not for those that tests start.
        for name in (*colours, "GITHUB_ACTIONS", "COLUMNS", "TERMINAL_WIDTH", "PYTEST_ADDOPTS"):
            patch.delenv(name, raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def _event_files_of_a_second_are_read_in_order() -> None:
    """TensorBoard numbers the event files of a process, and reads those of one second by name, 10 before 9."""
    event_file_writer._global_uid = event_file_writer.AtomicCounter(10_000)


@pytest.fixture(scope="module")
def forks(request: pytest.FixtureRequest) -> Iterator[Forks]:
    """Calls functions of the test's own module, each in a process of its own."""
    with Forks(str(request.path)) as forks:
        yield forks


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, without a window."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("no browser: neither chromium nor chromium-browser is installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright to drive the browser with")
    quiet = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=quiet)
        yield browser
        browser.close()
