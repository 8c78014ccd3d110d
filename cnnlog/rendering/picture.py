"""A picture before it is drawn: values, their range and how they are shown. Grids, figures and files are made of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from cnnlog.kinds import Kind
from cnnlog.rendering.facts import facts_of
from cnnlog.rendering.grids import filters_grid, maps_grid
from cnnlog.rendering.png import Grid
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.views import ResolvedView, View, grid_columns, map_columns, resolve_view, thickened
from cnnlog.snapshot import FloatArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Picture:
    """A layer's filters, or its feature maps of one probe image.

    Attributes:
        values: `[n, k, kH, kW]` filters from `select_filters`, or `[n, h, w]` maps of one image from `select_maps`.
        limits: the ranges of the n channels.
        view: how filters are shown; None for feature maps.
        cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
    """

    values: FloatArray
    limits: Limits
    view: ResolvedView | None = None
    cmap: str = "auto"

    @property
    def kind(self) -> Kind:
        """What is shown."""
        return Kind.FEATURE_MAPS if self.view is None else Kind.FILTERS

    @property
    def columns(self) -> int:
        """How many cells stand in a row of the bare grid."""
        if self.view is None:
            return map_columns(len(self.values), (self.values.shape[-2], self.values.shape[-1]))
        return self.values.shape[1] if self.view == "slices" else grid_columns(len(self.values))

    @classmethod
    def several(
        cls, kind: Kind, shown: FloatArray, limits: Limits, *, view: View | None = None, cmap: str = "auto"
    ) -> tuple[Picture, ...]:
        """The pictures of a layer: one of its filters, or one of its maps for each probe image.

        Args:
            kind: filters or feature maps.
            shown: `[n, k, kH, kW]` filters, or `[N, n, h, w]` maps of N probe images.
            limits: the ranges of the n channels.
            view: how filters are shown; None takes the view that fits their shape.
            cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.
        """
        how: ResolvedView | None = None
        if not kind.per_image:
            how = resolve_view(shown.shape, "auto") if view is None or view == "auto" else view
        return tuple(cls(values, limits, how, cmap) for values in kind.pictures(shown))

    @classmethod
    def of(
        cls,
        kind: Kind,
        shown: FloatArray,
        limits: Limits,
        *,
        image: int = 0,
        view: View | None = None,
        cmap: str = "auto",
    ) -> Picture:
        """The picture of a layer's filters, or of its maps of one probe image.

        Args:
            kind: filters or feature maps.
            shown: `[n, k, kH, kW]` filters, or `[N, n, h, w]` maps of N probe images.
            limits: the ranges of the n channels.
            image: which image of the probe feature maps are of, counted from 0.
            view: how filters are shown; None takes the view that fits their shape.
            cmap: `"auto"`, `"gray"`, or the name of any matplotlib colour map.

        Raises:
            ValueError: the probe has no such image.
        """
        pictures = cls.several(kind, shown, limits, view=view, cmap=cmap)
        if kind.per_image and not 0 <= image < len(pictures):
            raise ValueError(f"image must be from 0 to {len(pictures) - 1}, the probe's images; got {image}")
        return pictures[image if kind.per_image else 0]

    def grid(self, width: int | None = 350, *, bare: bool = False) -> Grid:
        """One cell a channel.

        Args:
            width: of the grid in pixels, at most; None draws one pixel a value, however wide that is.
            bare: leave out the frame and the notches, and have `columns` cells in a row.
        """
        if self.view is None:
            columns = None if bare or self.columns > 1 else 1
            values = self.values if bare else thickened(self.values, width)
            return maps_grid(values, self.limits, cmap=self.cmap, width=width, bare=bare, columns=columns)
        return filters_grid(self.values, self.limits, view=self.view, cmap=self.cmap, width=width, bare=bare)

    def facts(self, grid: Grid) -> dict[str, Any]:
        """What it takes to read the values off the grid's pixels: the view, and what `facts_of` says.

        Args:
            grid: what `grid` gave.
        """
        cells = self.values.shape[1] if self.view == "slices" else 1
        return {"view": self.view, **facts_of(grid, self.limits, channels=range(len(self.values)), cells=cells)}

    def figure(self, title: str = "") -> Figure:
        """A matplotlib figure with channel numbers and a colour bar.

        Args:
            title: its first line; empty for none.
        """
        from cnnlog.rendering.figures import filters_figure, maps_figure

        if self.view is None:
            return maps_figure(self.values, self.limits, cmap=self.cmap, title=title)
        return filters_figure(self.values, self.limits, view=self.view, cmap=self.cmap, title=title)

    def first(self, n: int) -> Picture:
        """The picture of the first channels.

        Args:
            n: how many channels, at most.
        """
        return replace(self, values=self.values[:n], limits=self.limits.only(slice(n)))
