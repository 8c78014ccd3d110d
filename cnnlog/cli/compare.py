"""`cnnlog compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from cnnlog.cli.options import Of
from cnnlog.cli.progress import progress_bar


def compare(
    sides: Annotated[
        list[str],
        typer.Argument(
            metavar="SIDE",
            help="RUN (its folder, or one above it), RUN@STEP, RUN@baseline, RUN@last, a file of weights, or "
            "torchvision:alexnet:DEFAULT. One run alone is compared with its baseline.",
        ),
    ],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The page to write, .html.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="The numbers, for programs.")] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="The table, for programs.")] = None,
    board: Annotated[
        Path | None, typer.Option("--tensorboard", metavar="DIR", help="The grids of all steps, for TensorBoard.")
    ] = None,
    image: Annotated[Path | None, typer.Option(help="What weights make feature maps of.")] = None,
    arch: Of = None,
    ranges: Annotated[
        Literal["shared", "own"],
        typer.Option("--range", help="Pictures in one range for all sides and steps, or in each side's own."),
    ] = "shared",
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Compare stored runs, or weights: what moved, where, and how far the sides are apart."""
    import json

    from cnnlog.comparison.comparison import compare as compared
    from cnnlog.runs import whole_files

    targets = [target for target in (output, json_file, csv_file) if target is not None]
    for target in targets:
        whole_files.refuse_target(target, force=force)
    if len({target.absolute() for target in targets}) < len(targets):
        raise ValueError("--output, --json and --csv were given the same file; give each a name of its own")
    if board is not None:
        from cnnlog.reports import tensorboard_run as boards  # imports much of TensorBoard

        boards.refuse_folder(board, force=force)
    with progress_bar() as progress:
        comparison = compared(*sides, image=image, arch=arch, ranges=ranges, progress=progress)
        comparison.measure(progress)
        text = comparison.to_text()
        if json_file is not None:
            with whole_files.whole(json_file, force=force) as temporary:
                temporary.write_text(json.dumps(comparison.to_dict(), indent=1) + "\n", encoding="utf-8")
        if csv_file is not None:
            with whole_files.whole(csv_file, force=force) as temporary:
                temporary.write_text(comparison.to_csv(), encoding="utf-8")
        if board is not None:
            boards.write_board(comparison, board, force=force, progress=progress)
        if output is not None:
            from cnnlog.reports.page.page import write_report

            write_report(comparison, output, force=force, progress=progress)
    typer.echo(text)
    written = [str(target) for target in (output, json_file, csv_file, board) if target is not None]
    if written:
        typer.echo(f"\nWritten: {', '.join(written)}")
