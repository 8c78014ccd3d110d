"""What `cnnlog compare` takes, by the number of steps: seconds, and peak memory of its process.

Two made-up runs of 8 layers each (64 maps of 42 x 42 and slices of 16 x 16 filters; noise that moves, which nothing
compresses) are stored with 50, 100 and 200 steps, then compared into a page by the command itself.

    scripts/bench --compare            about three minutes on two cores
    scripts/bench --page               20 layers, 200 steps: how long the page takes to show a step
    scripts/bench --compare --quick    5 and 10 steps, to see that the script runs
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from environment import advice

try:
    import numpy as np
    import numpy.typing as npt
    import safetensors  # noqa: F401 - what the runs are written with, below
except ModuleNotFoundError as error:
    raise advice("scripts/bench", error) from error

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from support.stored_runs import Arrays, write_run

LAYERS = 8
COMPARE = [sys.executable, "-c", "from cnnlog.cli import main; main()", "compare"]
"""The command `cnnlog compare`, of this environment wherever it lies: the one in its folder names a path at its top."""


def drifting(seed: int, maps: int, size: int, layers: int) -> tuple[Arrays, Arrays]:
    """Noise for the filters and the feature maps of so many layers."""
    generator = np.random.default_rng(seed)

    def some(*shape: int) -> npt.NDArray[np.float32]:
        return generator.standard_normal(shape).astype(np.float32)

    names = [f"layer{i}" for i in range(layers)]
    return {name: some(maps, 32, 3, 3) for name in names}, {name: some(1, maps, size, size) for name in names}


def store(folder: Path, seed: int, steps: int, *, maps: int, size: int, layers: int = LAYERS) -> Path:
    """Write a made-up run whose filters and feature maps move on in a straight line.

    Args:
        folder: where.
        seed: of the direction; all runs begin at the same place.
        steps: how many snapshots.
        maps: channels of a layer.
        size: height and width of a feature map.
        layers: how many.
    """
    start, way = drifting(0, maps, size, layers), drifting(seed, maps, size, layers)

    def at(step: int) -> tuple[Arrays, Arrays]:
        filters, feature_maps = (
            {name: array + 0.01 * step * moves[name] for name, array in arrays.items()}
            for arrays, moves in zip(start, way, strict=True)
        )
        return filters, feature_maps

    return write_run(folder, at, steps=range(steps))


def measured(command: list[str]) -> tuple[float, float]:
    """Seconds, and peak resident MiB, of a process."""
    start = time.perf_counter()
    process = os.posix_spawn(
        command[0], command, os.environ, file_actions=[(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    )
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"{' '.join(command)} failed with status {status}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def reactions(page: Path) -> list[float]:
    """Milliseconds from a move of the slider to the end of the frame that shows it, step by step from the last back."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise advice("scripts/bench --page", error, setup="scripts/setup --test") from error

    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise SystemExit("--page measures in a browser: install chromium")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, headless=True, args=flags)
        shown = browser.new_page(viewport={"width": 1280, "height": 1000})
        shown.goto(page.as_uri())
        shown.wait_for_timeout(3000)
        times: list[float] = shown.evaluate(
            """async () => {
                const slider = document.querySelector('input[type=range]');
                const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
                const times = [];
                for (let step = Number(slider.max) - 1; step >= Number(slider.min); step--) {
                    await frame();
                    const start = performance.now();
                    slider.value = step;
                    slider.dispatchEvent(new Event('input', { bubbles: true }));
                    await frame();
                    times.push(performance.now() - start);
                }
                return times;
            }"""
        )
        browser.close()
    return times


def measure_page(*, quick: bool) -> None:
    """Print how long the page of a comparison takes to show a step."""
    layers, steps, maps, size = (3, 5, 4, 8) if quick else (20, 200, 64, 42)
    with tempfile.TemporaryDirectory() as scratch:
        runs = [store(Path(scratch, str(seed)), seed, steps, maps=maps, size=size, layers=layers) for seed in (1, 2)]
        page = Path(scratch, "page.html")
        measured([*COMPARE, *map(str, runs), "-o", str(page)])
        times = reactions(page)
        print("| layers | steps | page, MB | a step, ms: median | worst |")
        print("|--:|--:|--:|--:|--:|")
        weight = page.stat().st_size / 1e6
        print(f"| {layers} | {steps} | {weight:.1f} | {statistics.median(times):.1f} | {max(times):.1f} |")


def main() -> None:
    """Run what the options ask for, and print its table."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench --compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small and short")
    parser.add_argument("--page", action="store_true", help="how long the page takes to show a step")
    args = parser.parse_args()
    quick = args.quick
    if args.page:
        measure_page(quick=quick)
        return
    lengths, maps, size = ((5, 10), 4, 8) if quick else ((50, 100, 200), 64, 42)
    print(
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n"
    )
    print("| steps | seconds | seconds a step | peak memory, MiB | page, MB |")
    print("|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as scratch:
        for steps in lengths:
            runs = [store(Path(scratch, f"{steps}-{seed}"), seed, steps, maps=maps, size=size) for seed in (1, 2)]
            page = Path(scratch, f"{steps}.html")
            seconds, memory = measured([*COMPARE, *map(str, runs), "-o", str(page)])
            row = (
                f"{steps}",
                f"{seconds:.1f}",
                f"{seconds / steps:.3f}",
                f"{memory:.0f}",
                f"{page.stat().st_size / 1e6:.1f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
