"""`cnnlog tensorboard`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def tensorboard(
    logdirs: Annotated[list[Path], typer.Argument(metavar="LOGDIR...", help="Folders with runs; several show as one.")],
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(help="Port to listen on; a free one by default.")] = None,
    layer: Annotated[
        str | None, typer.Option(help="The layer to pin; by default the first that the runs share.")
    ] = None,
) -> None:
    """Start TensorBoard with every step kept, and print a link that pins a layer of all runs side by side."""
    from cnnlog.tensorboard.serve import serve

    serve(logdirs, host=host, port=port, layer=layer, echo=typer.echo)
