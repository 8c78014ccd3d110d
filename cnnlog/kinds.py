"""What is watched, and what steps count: what differs between the kinds, said once for everything above."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from cnnlog.snapshot import FloatArray

KindName = Literal["filters", "feature_maps"]
"""How the public functions take a kind: by its name, in files and tags, too."""

UnitName = Literal["epoch", "step"]
"""How the public functions take a unit of steps: by its name, in files, too."""


_T_co = TypeVar("_T_co", covariant=True)


class _OfBoth(Protocol[_T_co]):
    """What has one thing for filters and one for feature maps: a snapshot, a record, a summary, a side."""

    @property
    def filters(self) -> _T_co: ...

    @property
    def feature_maps(self) -> _T_co: ...


class _Shaped(Protocol):
    """A watched layer, as far as its shapes go."""

    @property
    def weight_shape(self) -> tuple[int, ...] | None: ...

    @property
    def output_shape(self) -> tuple[int, ...] | None: ...


class _Counts(Protocol[_T_co]):
    """What was made in a training, after so many epochs and optimiser steps."""

    @property
    def epoch(self) -> _T_co: ...

    @property
    def global_step(self) -> _T_co: ...


class _Named(str, Enum):
    """An enum whose members are the texts that stand in files, tags and arguments."""

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def _missing_(cls, value: object) -> None:
        names = ", ".join(member.value for member in cls)
        raise ValueError(f"{cls.__name__.lower()} must be one of {names}; got {value!r}")


class Kind(_Named):
    """Filters or feature maps.

    Example:
        >>> Kind("filters") is Kind.FILTERS, f"{Kind.FEATURE_MAPS}", Kind.FEATURE_MAPS.words
        (True, 'feature_maps', 'feature maps')
    """

    FILTERS = "filters"
    FEATURE_MAPS = "feature_maps"

    @property
    def words(self) -> str:
        """Several of them, as people say it."""
        return self.value.replace("_", " ")

    @property
    def one(self) -> str:
        """One of them, in few letters, for labels."""
        return "filter" if self is Kind.FILTERS else "map"

    @property
    def signed(self) -> bool | None:
        """Whether its values have a sign; None where only the values tell."""
        return True if self is Kind.FILTERS else None

    @property
    def per_image(self) -> bool:
        """Whether there is one picture for each image of the probe, rather than one in all."""
        return self is Kind.FEATURE_MAPS

    def of(self, holder: _OfBoth[_T_co]) -> _T_co:
        """What a snapshot, a record, a summary or a side has of this kind.

        Args:
            holder: what has `filters` and `feature_maps`. Those of a record are for each layer filters
                `[n, k, kH, kW]`, or maps `[N, n, h, w]` of N probe images.
        """
        return holder.filters if self is Kind.FILTERS else holder.feature_maps

    def shape(self, layer: _Shaped) -> tuple[int, ...] | None:
        """The shape of a layer's filters `(O, I, kH, kW)`, or of its output `(N, C, H, W)`; None if not watched.

        Args:
            layer: a watched layer, as the manifest has it.
        """
        return layer.weight_shape if self is Kind.FILTERS else layer.output_shape

    def by_channel(self, shown: FloatArray) -> FloatArray:
        """A layer's array with the axis of the channels first, as ranges take it: `[n, ...]`.

        Args:
            shown: filters `[n, k, kH, kW]`, or maps `[N, n, h, w]` of N probe images.
        """
        return shown if self is Kind.FILTERS else shown.swapaxes(0, 1)

    def pictures(self, shown: FloatArray) -> Iterator[FloatArray]:
        """What makes one picture each: the filters `[n, k, kH, kW]`, or the maps `[n, h, w]` of each probe image.

        Args:
            shown: filters `[n, k, kH, kW]`, or maps `[N, n, h, w]` of N probe images.
        """
        yield from (shown,) if self is Kind.FILTERS else shown


class Unit(_Named):
    """What the steps of a run count.

    Example:
        >>> Unit("step").words
        'optimiser steps'
    """

    EPOCH = "epoch"
    STEP = "step"

    @property
    def words(self) -> str:
        """What is counted, as people say it."""
        return "completed epochs" if self is Unit.EPOCH else "optimiser steps"

    @property
    def short(self) -> str:
        """What is counted, in few words."""
        return "epochs" if self is Unit.EPOCH else "training steps"

    def of(self, counts: _Counts[_T_co]) -> _T_co:
        """How far something is, counted in this unit.

        Args:
            counts: what has `epoch` and `global_step`, such as a snapshot or a checkpoint.
        """
        return counts.epoch if self is Unit.EPOCH else counts.global_step
