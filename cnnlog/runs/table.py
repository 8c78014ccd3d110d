"""A small table that shows itself in a terminal and in a notebook, for when there is no pandas."""

from __future__ import annotations

import csv
import html
import io
import math
from dataclasses import dataclass
from typing import Any

_SHOWN = 60


@dataclass(frozen=True)
class Table:
    """Rows under named columns.

    Attributes:
        columns: their names.
        rows: one tuple a row, as long as `columns`; None and NaN are shown as a dash.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def to_text(self, limit: int | None = None) -> str:
        """Aligned columns, text to the left and numbers to the right.

        Args:
            limit: how many rows are shown; if there are more, those in the middle are left out. None shows all.
        """
        rows = [[cell_text(value) for value in row] for row in self.rows]
        if limit is not None and len(rows) > limit:
            half = limit // 2
            rows = [*rows[:half], ["..."] * len(self.columns), *rows[-half:]]
        texts = [any(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]
        widths = [max(len(row[i]) for row in [list(self.columns), *rows]) for i in range(len(self.columns))]
        lines = [
            "  ".join(
                cell.ljust(width) if text else cell.rjust(width)
                for cell, width, text in zip(row, widths, texts, strict=True)
            ).rstrip()
            for row in [list(self.columns), *rows]
        ]
        rule = "  ".join("-" * width for width in widths)
        return "\n".join([lines[0], rule, *lines[1:]])

    def to_csv(self) -> str:
        """RFC 4180 text with a header. None and NaN are empty fields, and a NUL is shown by its symbol."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows([["" if _absent(value) else _csv_cell(value) for value in row] for row in self.rows])
        return buffer.getvalue()

    def to_frame(self) -> Any:
        """A pandas DataFrame, or this table itself if pandas is not installed."""
        try:
            import pandas  # type: ignore[import-not-found, import-untyped, unused-ignore]
        except ImportError:
            return self
        return pandas.DataFrame(list(self.rows), columns=list(self.columns))

    def __len__(self) -> int:
        return len(self.rows)

    def __str__(self) -> str:
        return self.to_text(_SHOWN)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(column)}</th>" for column in self.columns)
        shown = self.rows[:_SHOWN]
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell_text(value))}</td>" for value in row) + "</tr>" for row in shown
        )
        more = f"<p>and {len(self.rows) - _SHOWN} more rows</p>" if len(self.rows) > _SHOWN else ""
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def cell_text(value: Any) -> str:
    """A value as a cell shows it: 3 significant digits for a float, a dash for None and NaN.

    Args:
        value: a number, a text, or None.

    >>> cell_text(0.123456), cell_text(0.0000123), cell_text(1.0), cell_text(12), cell_text(None)
    ('0.123', '1.23e-05', '1.00', '12', '-')
    """
    if _absent(value):
        return "-"
    if isinstance(value, float):
        if value == 0:
            return "0"
        return f"{value:#.3g}".rstrip(".") if 1e-3 <= abs(value) < 1000 else f"{value:.2e}"
    return str(value)


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _csv_cell(value: Any) -> Any:
    return value.replace("\0", "\N{SYMBOL FOR NULL}") if isinstance(value, str) else value  # Python 3.10 writes no NUL
