"""All pictures of a comparison, packed over the steps of a page and as fine as fits a number of bytes.

Steps are read one at a time; what is kept meanwhile is the packed reels (see `frames`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from cnnlog.comparison.comparison import Comparison, LayerMatch, Side
from cnnlog.kinds import Kind
from cnnlog.rendering.colours import palette
from cnnlog.rendering.ranges import Limits
from cnnlog.rendering.views import resolve_view
from cnnlog.reports.page.lives import Lives
from cnnlog.reports.page.reels import DETAILS, Detail, Reel, Scene, fitting, spread, strongest
from cnnlog.runs.run import Progress
from cnnlog.snapshot import FloatArray

_IMAGES = 4
_SAMPLES = 4


@dataclass(frozen=True)
class Key:
    """One picture of the page: a side's, or, with `change`, that side's difference to the first."""

    layer: int
    kind: Kind
    side: int
    image: int = 0
    change: bool = False

    @property
    def name(self) -> str:
        """What the page calls it; the same for all probe images."""
        return f"{self.layer}-{self.kind}-{'d' if self.change else 's'}{self.side}"


@dataclass
class Film:
    """The packed pictures of all steps.

    Attributes:
        steps: of the page.
        detail: how much of each picture is kept.
        images: how many probe images are shown.
        lives: the numbers of the shown filters.
        reels: the pictures.
        reduced: what the page shows less of than the runs hold.
    """

    steps: tuple[int, ...]
    detail: Detail
    images: int
    lives: Lives
    reels: dict[Key, Reel] = field(default_factory=dict)
    reduced: set[str] = field(default_factory=set)

    def shown(self) -> dict[tuple[int, int], int]:
        """Layer and side -> how many of its channels are shown so far."""
        found: dict[tuple[int, int], int] = {}
        for key, reel in self.reels.items():
            if key.image == 0 and not key.change and reel.last is not None:
                at = (key.layer, key.side)
                found[at] = max(found.get(at, 0), reel.last.layout()["n"])
        return found

    def sentence(self) -> str:
        """What the page shows less of than the runs hold, in words."""
        detail = self.detail
        texts = {
            "steps": f"The slider has {len(self.steps)} of the steps, evenly spread.",
            "map size": f"Feature maps are averaged by area to at most {detail.cell} × {detail.cell} pixels.",
            "maps": f"Of each layer the first {detail.maps} feature maps are shown, at most.",
            "filter size": "Large filters are averaged by area.",
            "filters": f"Of each layer the first {detail.filters} filters are shown, at most; of those shown as slices "
            f"{detail.slices}.",
        }
        said = [text for what, text in texts.items() if what in self.reduced]
        if not said:
            return "All shown cells of the runs, at the size they are stored in."
        return " ".join([*said, "The runs hold them all, at full size; this keeps the page small."])


class Pictures:
    """Goes through a comparison's pictures, one step at a time."""

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def film(self, budget: int, progress: Progress) -> Film:
        """All pictures, as fine as fits the budget of bytes."""
        steps = self.comparison.steps
        position, n_steps = 0, len(steps)
        if n_steps > 1:
            position, n_steps = fitting(self._pairs(), steps=n_steps, budget=budget)
        while True:
            film = self._pack(spread(steps, n_steps), DETAILS[position], progress)
            too_much = sum(reel.size for reel in film.reels.values()) / budget
            if too_much <= 1:
                return film
            if position < len(DETAILS) - 1:
                position += 1
            elif n_steps > 2:
                n_steps = max(2, int(0.9 * n_steps / too_much))
            else:
                return film

    def _pairs(self) -> Iterator[tuple[dict[Key, Scene], dict[Key, Scene]]]:
        steps = self.comparison.steps
        for at in np.unique(np.linspace(0, len(steps) - 2, _SAMPLES).round().astype(int)):
            yield self._scenes(steps[at]), self._scenes(steps[at + 1])

    def _pack(self, steps: tuple[int, ...], detail: Detail, progress: Progress) -> Film:
        film = Film(steps, detail, self._images(), Lives(self.comparison))
        if len(steps) < len(self.comparison.steps):
            film.reduced.add("steps")
        for position, step in enumerate(steps):
            for key, scene in self._scenes(step).items():
                reel = film.reels.setdefault(key, Reel(at=[-1] * position))
                own = self._own_step(key, step)
                if reel.steps and reel.steps[-1] == own:
                    continue
                kept = scene.kept(detail)
                reel.add(kept, own)
                _note_reduction(film.reduced, scene, kept)
            for reel in film.reels.values():
                if len(reel.at) == position:
                    reel.hold()
            film.lives.see(position, step, film.shown())
            progress("drawing", position + 1, len(steps))
        return film

    def _own_step(self, key: Key, step: int) -> int:
        """The step that a side's picture is of at a step of the page."""
        side, name = self.comparison.sides[key.side], self.comparison.layers[key.layer].names[key.side]
        if key.change:  # moves with either side
            return step if any(self.comparison.sides[of].run is not None for of in (0, key.side)) else 0
        own = self.comparison.step_of(key.side, step)
        if side.run is None or own is None or name is None:
            return step if side.run is not None else 0
        held = side.run.holding(name, key.kind, own)
        return own if held is None else held

    def _images(self) -> int:
        counts = [
            maps.shape[0]
            for layer in self.comparison.layers
            for side in range(len(self.comparison.sides))
            if (maps := self.comparison.shown(side, layer, Kind.FEATURE_MAPS, self.comparison.steps[-1])) is not None
        ]
        return min(_IMAGES, max(counts, default=1))

    def _scenes(self, step: int) -> dict[Key, Scene]:
        """Every picture at a step, at full size."""
        found: dict[Key, Scene] = {}
        for number, layer in enumerate(self.comparison.layers):
            for side in range(len(self.comparison.sides)):
                found.update(self._of_side(number, layer, side, step))
            for side in range(1, len(self.comparison.sides)):
                found.update(self._differences(number, layer, side, step))
        return found

    def _of_side(self, number: int, layer: LayerMatch, side: int, step: int) -> Iterator[tuple[Key, Scene]]:
        comparison, of = self.comparison, self.comparison.sides[side]
        filters = comparison.shown(side, layer, Kind.FILTERS, step)
        limits = comparison.limits(side, layer, Kind.FILTERS, step)
        if filters is not None and limits is not None:
            view = comparison.view_of(side, layer) or resolve_view(filters.shape, "auto")
            yield Key(number, Kind.FILTERS, side), Scene(filters, limits, view, _cmap(of, Kind.FILTERS))
        maps = comparison.shown(side, layer, Kind.FEATURE_MAPS, step)
        limits = comparison.limits(side, layer, Kind.FEATURE_MAPS, step)
        yield from _of_images(Key(number, Kind.FEATURE_MAPS, side), maps, limits, _cmap(of, Kind.FEATURE_MAPS))

    def _differences(self, number: int, layer: LayerMatch, side: int, step: int) -> Iterator[tuple[Key, Scene]]:
        comparison = self.comparison
        filters = comparison.difference(layer, Kind.FILTERS, step, side)
        limits = comparison.difference_limits(layer, Kind.FILTERS, step, side)
        if filters is not None and limits is not None:
            view = comparison.view_of(0, layer) or resolve_view(filters.shape, "auto")
            if view == "rgb":  # colours have no white at 0
                filters, view = strongest(filters), "gray"
            yield Key(number, Kind.FILTERS, side, change=True), Scene(filters, limits, view)
        maps = comparison.difference(layer, Kind.FEATURE_MAPS, step, side)
        limits = comparison.difference_limits(layer, Kind.FEATURE_MAPS, step, side)
        yield from _of_images(Key(number, Kind.FEATURE_MAPS, side, change=True), maps, limits)


def _of_images(
    key: Key, maps: FloatArray | None, limits: Limits | None, cmap: str = "auto"
) -> Iterator[tuple[Key, Scene]]:
    if maps is not None and limits is not None:
        for image in range(min(len(maps), _IMAGES)):
            yield replace(key, image=image), Scene(maps[image], limits, None, cmap)


def _note_reduction(reduced: set[str], scene: Scene, kept: Scene) -> None:
    what = "map" if scene.view is None else "filter"
    if kept.values.shape[-2:] != scene.values.shape[-2:]:
        reduced.add(f"{what} size")
    if kept.values.shape[:-2] != scene.values.shape[:-2]:
        reduced.add(f"{what}s")


def _cmap(side: Side, kind: Kind) -> str:
    settings = side.run.manifest.settings.get(kind) if side.run is not None else None
    cmap = str((settings or {}).get("cmap", "auto"))
    try:
        palette(cmap, True)
    except ValueError:  # a colour map that was registered where the run was made
        return "auto"
    return cmap
