"""All pictures of a comparison, packed over the steps of a page, and as fine as fits a number of bytes.

Steps are read one at a time. Only the packed reels are kept meanwhile, so a long comparison fits into memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cnnlog.comparison.comparison import Comparison
from cnnlog.comparison.pictures import Key, pictures
from cnnlog.kinds import Kind
from cnnlog.rendering.picture import Picture
from cnnlog.reports.page.lives import Lives
from cnnlog.reports.page.reels import DETAILS, Detail, Reel, fitting, layout, strongest
from cnnlog.runs.run import Progress
from cnnlog.runs.steps import evenly

_IMAGES = 4
_SAMPLES = 4


@dataclass
class Film:
    """The packed pictures of all steps.

    Attributes:
        steps: the steps of the page's slider.
        detail: how much of each picture is kept.
        images: how many probe images are shown.
        lives: the numbers of the shown filters.
        reels: for each picture its frames.
        reduced: what the page shows less of than the runs store.
    """

    steps: tuple[int, ...]
    detail: Detail
    images: int
    lives: Lives
    reels: dict[Key, Reel] = field(default_factory=dict)
    reduced: set[str] = field(default_factory=set)

    def shown(self) -> dict[tuple[int, int], int]:
        """For each layer and side how many channels are shown so far."""
        found: dict[tuple[int, int], int] = {}
        for key, reel in self.reels.items():
            if key.image == 0 and not key.change and reel.last is not None:
                at = (key.layer, key.side)
                found[at] = max(found.get(at, 0), layout(reel.last)["n"])
        return found

    def sentence(self) -> str:
        """What the page shows less of than the runs store, in words."""
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


class Filming:
    """Packs a comparison's pictures, one step at a time.

    Args:
        comparison: what to show.
    """

    def __init__(self, comparison: Comparison) -> None:
        self.comparison = comparison

    def film(self, budget: int, progress: Progress) -> Film:
        """All pictures, as fine as fits.

        Args:
            budget: how many bytes the packed pictures may take.
            progress: a function that is told how far the work is: `progress("drawing", done, total)`.
        """
        steps = self.comparison.steps
        position, n_steps = 0, len(steps)
        if n_steps > 1:
            position, n_steps = fitting(self._pairs(), steps=n_steps, budget=budget)
        while True:
            film = self._pack(evenly(steps, n_steps), DETAILS[position], progress)
            too_much = sum(reel.size for reel in film.reels.values()) / budget
            if too_much <= 1:
                return film
            if position < len(DETAILS) - 1:
                position += 1
            elif n_steps > 2:
                n_steps = max(2, int(0.9 * n_steps / too_much))
            else:
                return film

    def _pairs(self) -> Iterator[tuple[dict[Key, Picture], dict[Key, Picture]]]:
        steps = self.comparison.steps
        for at in evenly(range(len(steps) - 1), _SAMPLES):
            yield self._pictures(steps[at]), self._pictures(steps[at + 1])

    def _pack(self, steps: tuple[int, ...], detail: Detail, progress: Progress) -> Film:
        film = Film(steps, detail, self._images(), Lives(self.comparison))
        if len(steps) < len(self.comparison.steps):
            film.reduced.add("steps")
        for position, step in enumerate(steps):
            for key, picture in self._pictures(step).items():
                reel = film.reels.setdefault(key, Reel(at=[-1] * position))
                own = self._own_step(key, step)
                if reel.steps and reel.steps[-1] == own:
                    continue
                kept = detail.kept(picture)
                reel.add(kept, own)
                _note_reduction(film.reduced, picture, kept)
            for reel in film.reels.values():
                if len(reel.at) == position:
                    reel.hold()
            film.lives.see(position, step, film.shown())
            progress("drawing", position + 1, len(steps))
        return film

    def _own_step(self, key: Key, step: int) -> int:
        """The step that a side's picture is of at a step of the page.

        Args:
            key: which picture.
            step: of the comparison.
        """
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

    def _pictures(self, step: int) -> dict[Key, Picture]:
        """The pictures that the page shows at a step, at full size: of each layer every side's, then the changes.

        Args:
            step: of the comparison.
        """
        shown = ((key, picture) for key, picture in pictures(self.comparison, step) if key.image < _IMAGES)
        by_side = sorted(shown, key=lambda one: (one[0].layer, one[0].change, one[0].side))
        return {key: _white_at_0(picture) if key.change else picture for key, picture in by_side}


def _white_at_0(change: Picture) -> Picture:
    """The change of filters in a view that draws 0 in white: of three colours the one that changed most.

    Args:
        change: in any view.
    """
    return replace(change, values=strongest(change.values), view="gray") if change.view == "rgb" else change


def _note_reduction(reduced: set[str], picture: Picture, kept: Picture) -> None:
    what = picture.kind.one
    if kept.values.shape[-2:] != picture.values.shape[-2:]:
        reduced.add(f"{what} size")
    if kept.values.shape[:-2] != picture.values.shape[:-2]:
        reduced.add(f"{what}s")
