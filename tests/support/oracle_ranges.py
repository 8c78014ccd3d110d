"""The ranges that live pictures should have, computed anew by their rules, against what the pictures' texts say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from support import oracle
from support.oracle import Stored
from support.oracle_checks import Place, Tally, shown_of, strip_cells
from support.oracle_zoo import State

Array = npt.NDArray[Any]
ROOM, CHANGE_ROOM, ONE_IN = 1.5, 4, 50


@dataclass
class Range:
    """Of each channel 1.5 times what it was at the baseline; doubled as long as more than 2 % lie beyond it.

    Attributes:
        signed: whether it is symmetric; None until values tell.
        base: `[n]`, at the baseline; None before there is one.
        doubled: `[n]`, how often it has doubled.
        switched: whether it became symmetric later.
    """

    signed: bool | None
    base: Array | None = None
    doubled: Array = field(default_factory=lambda: np.zeros(0, int))
    switched: bool = False

    def __post_init__(self) -> None:
        self._may_switch = self.signed is None

    def see(self, channels: Sequence[Array]) -> tuple[Array, bool]:
        """Take a step in: of each channel its finite values.

        Returns:
            The ends of the ranges, and whether these are symmetric.
        """
        negative = any(bool((values < 0).any()) for values in channels)
        signed = negative if self.signed is None else self.signed
        if negative and not signed and self._may_switch:
            signed = self.signed = self.switched = True
        sizes = [np.abs(values) if signed else values for values in channels]
        peaks = np.array([float(values.max(initial=0)) for values in sizes])
        if self.base is None:
            self.doubled = np.zeros(len(peaks), int)
            if not peaks.any():
                return np.ones(len(peaks)), signed
            self.signed = signed
            self.base = with_median(ROOM * peaks)
        else:
            for channel, values in enumerate(sizes):
                allowed = len(values) // ONE_IN
                while (values > self.base[channel] * 2.0 ** self.doubled[channel]).sum() > allowed:
                    self.doubled[channel] += 1
        return self.base * 2.0**self.doubled, signed


@dataclass
class ChangeRange:
    """Of all channels one power of two: at least 4 times the first difference, doubled by the same rule."""

    first: float | None = None
    doubled: int = 0

    def see(self, channels: Sequence[Array]) -> float:
        sizes = [np.abs(values) for values in channels]
        peak = max(float(values.max(initial=0)) for values in sizes)
        if self.first is None:
            if peak == 0:
                return 1.0
            self.first = 2.0 ** math.ceil(math.log2(CHANGE_ROOM * peak))
        for values in sizes:
            while (values > self.first * 2.0**self.doubled).sum() > len(values) // ONE_IN:
                self.doubled += 1
        return self.first * 2.0**self.doubled


def with_median(peaks: Array) -> Array:
    """A channel of zeros takes the median range of the others; 1 where all are."""
    return np.where(peaks > 0, peaks, np.median(peaks[peaks > 0]) if peaks.any() else 1.0)


def check_ranges(run: Stored, states: Sequence[State], tally: Tally) -> None:
    """What each picture's text says of its ranges, against the rules."""
    said: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for (tag, step), png in run.images.items():
        if tag.split("/")[0].startswith(("filters", "feature_maps")):
            facts, _ = oracle.facts_and_pixels(png)
            said.setdefault((facts["layer"], facts["kind"], step), []).append(facts)
    for layer in run.manifest["layers"]:
        for kind in shown_of(run, layer, states[0]):
            live, changing = Range(True if kind == "filters" else None), ChangeRange()
            for state, values, change in _steps(run, layer, states, kind):
                place = Place(f"range of {kind}", layer["kind"], f"{layer['name']} at step {state.step}")
                high, symmetric = live.see(values)
                for facts in said.get((layer["name"], kind, state.step), []):
                    _compare(facts, (high, symmetric, live.doubled), place, tally)
                    if facts["switched"] != live.switched:
                        tally.fault(place.what, place.where, f"switched is {facts['switched']}")
                end = changing.see(change)
                for facts in said.get((layer["name"], f"{kind}_change", state.step), []):
                    of_all = np.full(len(high), changing.doubled)
                    _compare(facts, (np.full(len(high), end), True, of_all), place, tally)
            for facts in said.get((layer["name"], f"{kind}_strip", states[-1].step), []):
                _check_strip(run, layer, facts, states, tally)


def _steps(
    run: Stored, layer: dict[str, Any], states: Sequence[State], kind: str
) -> Iterator[tuple[State, list[Array], list[Array]]]:
    """Of each step the finite values of each channel, and of what has changed."""
    first = shown_of(run, layer, states[0])[kind]
    for state in states:
        shown = shown_of(run, layer, state)[kind]
        with np.errstate(invalid="ignore"):
            yield state, _channels(shown, kind), _channels(shown - first, kind)


def _channels(shown: Array, kind: str) -> list[Array]:
    by_channel = shown if kind == "filters" else np.swapaxes(shown, 0, 1)
    return [values[np.isfinite(values)] for values in by_channel]


def _compare(facts: dict[str, Any], own: tuple[Array, bool, Array], place: Place, tally: Tally) -> None:
    """The ends, whether they are symmetric, and how often each has doubled."""
    high, symmetric, doubled = own
    tally.alike(high, facts["high"], place, rel=1e-6, least=1e-30)
    tally.alike(-high if symmetric else 0 * high, facts["low"], place, rel=1e-6, least=1e-30)
    grown = {str(channel): int(times) for channel, times in enumerate(doubled) if times}
    if facts["symmetric"] != symmetric or facts["doubled"] != grown:
        said = f"symmetric is {facts['symmetric']}, and doubled {facts['doubled']}"
        tally.fault(place.what, place.where, f"{said}, not {symmetric} and {grown}")


def _check_strip(
    run: Stored, layer: dict[str, Any], facts: dict[str, Any], states: Sequence[State], tally: Tally
) -> None:
    """Each row of a strip has the range that just holds it."""
    cells = strip_cells(run, layer, facts, {state.step: state for state in states})
    rows = cells.reshape(len(facts["channels"]), -1)
    rows = np.where(np.isfinite(rows), rows, 0)
    symmetric = facts["kind"].startswith("filters") or bool((rows < 0).any())
    high = with_median(np.abs(rows).max(axis=1) if symmetric else rows.max(axis=1))
    place = Place(f"range of {facts['kind']}", layer["kind"], layer["name"])
    _compare(facts, (high, symmetric, np.zeros(len(high), int)), place, tally)
    _check_rows(run, layer, facts, states, tally)


def _check_rows(
    run: Stored, layer: dict[str, Any], facts: dict[str, Any], states: Sequence[State], tally: Tally
) -> None:
    """The rows are the channels that changed most, against their length at the baseline, the first of them first."""
    every = next(len(values) for values in shown_of(run, layer, states[0]).values())
    if facts["kind"].startswith("feature_maps"):
        every = shown_of(run, layer, states[0])["feature_maps"].shape[1]
    of_all = {**facts, "channels": list(range(every))}
    cells = strip_cells(run, layer, of_all, {state.step: state for state in states})
    steps = cells.reshape(every, len(facts["steps"]), -1).astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths = np.sqrt((steps[:, 0] ** 2).sum(axis=1))
        moved = np.sqrt(((steps - steps[:, :1]) ** 2).sum(axis=2)).max(axis=1)
        change = np.where(moved == 0, 0, moved / np.maximum(lengths, np.median(lengths[np.isfinite(lengths)]) / 10))
    first = np.argsort(-change, kind="stable")[: len(facts["channels"])]
    wanted = min(8, every)
    near = len(first) == wanted and np.allclose(change[first], change[facts["channels"]], rtol=1e-5, equal_nan=True)
    tally.count("rows of strips", layer["kind"], wanted, 0)
    if not near or len(set(facts["channels"])) != wanted:
        tally.fault("rows of strips", layer["name"], f"{facts['channels']}, not {first.tolist()}")
