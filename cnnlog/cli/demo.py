"""`cnnlog demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    *,
    out: Annotated[Path, typer.Option(help="Folder for the three runs; the next free one if it is taken.")] = Path(
        "cnnlog-demo"
    ),
    seed: Annotated[int, typer.Option(help="Of images, weights and order.")] = 0,
    serve: Annotated[bool, typer.Option("--serve", help="Open TensorBoard on the runs at the end.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Two short epochs each, to see that it works.")] = False,
) -> None:
    """Train a small CNN, fine-tune it, and train it from scratch, watched; about a minute."""
    from cnnlog.demo.runs import run_demo, summary

    result = run_demo(out, seed=seed, quick=quick, echo=typer.echo)
    typer.echo(summary(result))
    if serve:
        from cnnlog.tensorboard.serve import serve as serve_runs

        serve_runs([result.folder], echo=typer.echo)
