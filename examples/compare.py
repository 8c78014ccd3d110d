"""Ask stored runs, from Python, what fine-tuning changed. Needs no GPU and no torch.

    python examples/compare.py RUN [RUN] [--out FOLDER]

RUN is what the monitors wrote (or a folder above it). With one run, its last step is compared with its baseline.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import cnnlog


def main() -> None:
    parser = argparse.ArgumentParser(description="What did fine-tuning change?")
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the two files")
    args = parser.parse_args()

    # A run by itself: NumPy arrays, and numbers of every step
    run = cnnlog.open_run(args.runs[0])
    layer = run.layers[0]
    print(run)
    print(f"filters of {layer} at the last step: {run.filters(layer).shape}")
    print(f"angle of each from its baseline, in degrees: {run.numbers('filter_angle', layer).round(1)}")
    print(run.over_steps("weight_change"))  # a DataFrame, if pandas is installed

    # Side by side: the same layers, the same steps
    comparison = cnnlog.compare(*args.runs)
    print(comparison.to_text())
    (args.out / "numbers.csv").write_text(comparison.to_csv(), encoding="utf-8")

    # Where they differ most, as a figure: signed differences, white at 0
    rows, shown = comparison.rows(), {layer.name for layer in comparison.layers if layer.has_filters}
    apart = {row.layer: row.weight_distance[0] or row.weight_change[-1] or 0.0 for row in rows if row.layer in shown}
    most = max(apart, key=lambda name: apart[name])
    a, b = (side.label.replace("/", "-") for side in comparison.sides[:2])
    comparison.figure(most).savefig(args.out / f"{b}-minus-{a}-{most}.png", dpi=150)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"compare: {error}")
