"""The table of a model's layers; torchinfo computes it."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import torch
import torchinfo
from torch import nn

from cnnlog.capture.capture import entry, in_precision
from cnnlog.capture.layers import layer_names
from cnnlog.capture.loan import borrow
from cnnlog.capture.watchable import without_lazy

MARK = "*"


@dataclass(frozen=True)
class Row:
    """One layer.

    Attributes:
        name: in the model.
        kind: the module's class name.
        output_shape: `(N, C, H, W)`; empty if the layer did not run.
        parameters: how many are its own.
        watched: whether it is marked.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    watched: bool


@dataclass(frozen=True)
class LayerTable:
    """Every layer without children, in execution order, and the model's totals.

    Attributes:
        rows: the layers. One that runs several times is listed once.
        input_shape: the shape of what went in.
        parameters: all parameters of the model.
        trainable: those that training changes.
    """

    rows: tuple[Row, ...]
    input_shape: tuple[int, ...]
    parameters: int
    trainable: int

    def to_text(self) -> str:
        """The table for a terminal."""
        header = ("", "layer", "type", "output", "parameters")
        cells = [header, *(self._cells(row) for row in self.rows)]
        widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
        lines = [
            "  ".join(
                text.rjust(width) if column == len(header) - 1 else text.ljust(width)
                for column, (text, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:], rule, *self._totals()])

    def to_markdown(self) -> str:
        """The table for TensorBoard's text dashboard."""
        lines = ["| | layer | type | output | parameters |", "|---|---|---|---|---:|"]
        for row in self.rows:
            mark, name, kind, output, parameters = self._cells(row)
            lines.append(f"| {mark and 'watched'} | {_code(name)} | {kind} | {output} | {parameters} |")
        return "\n".join([*lines, "", *(f"{line}  " for line in self._totals())])

    def _cells(self, row: Row) -> tuple[str, str, str, str, str]:
        output = "x".join(map(str, row.output_shape[1:])) or "-"
        return (MARK if row.watched else "", row.name, row.kind, output, f"{row.parameters:,}")

    def _totals(self) -> list[str]:
        return [
            f"Input: {'x'.join(map(str, self.input_shape[1:]))}",
            f"Total parameters: {self.parameters:,} ({self.trainable:,} trainable)",
            f"Watched ({MARK}): {', '.join(row.name for row in self.rows if row.watched) or 'none'}",
        ]


def _code(name: str) -> str:
    """A name in a cell of a Markdown table, whatever characters it has."""
    line = re.sub(r"[\r\n]+", " ", name).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def layer_table(
    model: nn.Module, example: torch.Tensor, *, watched: Collection[str] = (), through: str | None = None
) -> LayerTable:
    """Run an input through a model once, and list the layers. The model is given back as it was.

    Args:
        model: any module whose forward takes one tensor.
        example: the input `[N, C, H, W]`, on the model's device.
        watched: the names of the layers to mark. A layer with children is listed, too, if it is among them.
        through: the name of the sub-module that the input runs through, if the model has no forward of its own. The
            table is then of that part.

    Raises:
        RuntimeError: torchinfo could not run the model.
    """
    names = {id(module): name for name, _, module in layer_names(model)}
    with borrow(model):
        # torchinfo would call these, and `.eval()` merges LoRA weights, `.train()` thaws frozen parts.
        part = entry(model, through)
        example = in_precision(part, example).detach().clone()  # forward may write into what it is given
        part.__dict__["eval"] = part.__dict__["train"] = lambda *_: part
        with without_lazy(part.modules()):  # torchinfo counts what is in them
            found = torchinfo.summary(part, input_data=[example], verbose=0, mode="eval", depth=64)
    rows: dict[str, Row] = {}
    for info in found.summary_list:
        name = names.get(id(info.module), info.var_name)
        if name not in rows and (info.is_leaf_layer or name in watched):
            rows[name] = Row(name, info.class_name, tuple(info.output_size), max(info.num_params, 0), name in watched)
    return LayerTable(tuple(rows.values()), tuple(example.shape), found.total_params, found.trainable_params)
