"""The pictures of a comparison at a step, one after another: every side's, and the differences to the first side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from cnnlog.comparison.comparison import Comparison
from cnnlog.comparison.sides import LayerMatch
from cnnlog.kinds import Kind
from cnnlog.rendering.colours import palette
from cnnlog.rendering.picture import Picture


@dataclass(frozen=True)
class Key:
    """Which picture of a comparison: a side's, or, with `change`, what that side shows minus what the first shows.

    Attributes:
        layer: the position of the layer in the comparison's `layers`.
        kind: filters or feature maps.
        side: the position of the side in the comparison's `sides`.
        image: which image of the probe feature maps are of; 0 for filters.
        change: whether it is the difference to the first side.
    """

    layer: int
    kind: Kind
    side: int
    image: int = 0
    change: bool = False

    @property
    def name(self) -> str:
        """What the page calls it; the same for all probe images."""
        return f"{self.layer}-{self.kind}-{'d' if self.change else 's'}{self.side}"


def pictures(comparison: Comparison, step: int) -> Iterator[tuple[Key, Picture]]:
    """Every picture of a comparison at a step, at full size: layer by layer, filters first, each side's, then changes.

    All sides have the colours of the first run, because one colour is one value in all of them. Differences have those
    that are white at 0.

    Args:
        comparison: what to draw.
        step: a step of the comparison.
    """
    for number, layer in enumerate(comparison.layers):
        for kind in Kind:
            for side in range(len(comparison.sides)):
                yield from _of_side(comparison, Key(number, kind, side), layer, step)
            for side in range(1, len(comparison.sides)):
                yield from _of_change(comparison, Key(number, kind, side, change=True), layer, step)


def _of_side(comparison: Comparison, key: Key, layer: LayerMatch, step: int) -> Iterator[tuple[Key, Picture]]:
    shown = comparison.shown(key.side, layer, key.kind, step)
    limits = comparison.limits(key.side, layer, key.kind, step)
    if shown is not None and limits is not None:
        view, cmap = comparison.view_of(key.side, layer), _cmap(comparison, key.kind)
        yield from _by_image(key, Picture.several(key.kind, shown, limits, view=view, cmap=cmap))


def _of_change(comparison: Comparison, key: Key, layer: LayerMatch, step: int) -> Iterator[tuple[Key, Picture]]:
    change = comparison.difference(layer, key.kind, step, key.side)
    limits = comparison.difference_limits(layer, key.kind, step, key.side)
    if change is not None and limits is not None:
        yield from _by_image(key, Picture.several(key.kind, change, limits, view=comparison.view_of(0, layer)))


def _by_image(key: Key, several: tuple[Picture, ...]) -> Iterator[tuple[Key, Picture]]:
    for image, picture in enumerate(several):
        yield replace(key, image=image), picture


def _cmap(comparison: Comparison, kind: Kind) -> str:
    """The colour map of the first run, if it is known here."""
    settings = next((side.run.manifest.settings for side in comparison.sides if side.run is not None), {})
    cmap = str((settings.get(kind) or {}).get("cmap", "auto"))
    try:
        palette(cmap, True)
    except ValueError:  # a colour map that was registered where the run was made
        return "auto"
    return cmap
