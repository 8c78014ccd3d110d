"""What a run says of itself: its layers, settings, probe and versions."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from cnnlog.kinds import Unit
from cnnlog.runs.writers import ENDED

VERSION = 2
_GIVE_UP = "restore it from a copy, or delete the folder"
DELETE_IT = "delete it, the other files of the run stand"


class StoreError(ValueError):
    """A file of a run cannot be used: it is truncated, written by a newer cnnlog, or not one of ours."""


@dataclass(frozen=True)
class WatchedLayer:
    """One watched layer, as a reader of the run needs it.

    Attributes:
        name: the module's name in the model.
        tag: `00_name`, what the layer is called in tags.
        kind: the module's class name.
        weight_shape: `[O, I, kH, kW]`, if its filters are watched.
        output_shape: `[k * N, C, H, W]`, if its feature maps are watched; H is 1 of a 1-D layer. The channels are
            second here and in the store, wherever the layer itself has them.
        view: how its filters are shown.
        maps_an_image: k, how many maps of each channel it makes of a probe image: of its frames, of both of a pair.
    """

    name: str
    tag: str
    kind: str
    weight_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    view: Literal["rgb", "gray", "slices", "mean"] | None = None
    maps_an_image: int = 1


@dataclass(frozen=True)
class MeasuredLayer:
    """One layer that numbers are kept of: a convolution or a linear layer, whether or not it is pictured.

    Attributes:
        name: the module's name in the model.
        tag: `00_name`, what the layer is called in the tags of its numbers.
        kind: the module's class name.
        weight_shape: of all its filters, `[O, I, kH, kW]`, `[O, I]` of a linear layer.
        output_shape: of its output on the probe; None if it did not run, or there is no probe.
        filters: the filters that are measured, rising; None for all. Of a very large layer it is
            every second, third, ... filter, and one at least.
        normalised: whether a batch, group, layer or instance norm follows directly, so that the length of a filter
            means nothing; None where no probe could tell.
        activation: the activation that follows, if nothing but a norm lies between; None if none does, if it cannot
            be seen, or if the layer makes the scores.
        samples: how many values of each channel are compared on the probe; 0 without a probe.
    """

    name: str
    tag: str
    kind: str
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...] | None = None
    filters: tuple[int, ...] | None = None
    normalised: bool | None = None
    activation: str | None = None
    samples: int = 0


@dataclass(frozen=True)
class Manifest:
    """What a run watches and how; written once, at its start.

    Attributes:
        layers: the pictured layers, in the order of their tags.
        unit: what a step counts.
        baseline_step: the step that changes and drift are relative to.
        settings: the monitors' arguments, plain values.
        probe: fingerprint, names, shape, and the seed that each pass of it starts from.
        versions: of cnnlog, torch, lightning.
        architecture: class name of the model.
        created: ISO 8601 time.
        run_id: unique for each run; a resumed run in the same folder keeps it.
        carried_from: the folder that the baseline was carried over from, on a resume into a new folder.
        measured: the layers that numbers are kept of, in the order of their tags; empty in format 1, whose numbers are
            of the pictured layers.
        hyper_parameters: of the module and the data module that Lightning trained, as far as they are plain values;
            empty without any.
        writer: the process that writes the run (`runs/writers.py`); empty if it ended as it should, or if that is not
            known.
        version: the format of the run's files.
    """

    layers: tuple[WatchedLayer, ...]
    unit: Unit
    baseline_step: int
    settings: Mapping[str, Any]
    probe: Mapping[str, Any]
    versions: Mapping[str, str]
    architecture: str
    created: str
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    carried_from: str | None = None
    measured: tuple[MeasuredLayer, ...] = ()
    hyper_parameters: Mapping[str, Any] = field(default_factory=dict)
    writer: str = ENDED
    version: int = VERSION

    def to_json(self) -> str:
        """The manifest as JSON text, with format name and version."""
        return json.dumps({"format": "cnnlog-run", **asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Read what `to_json` wrote.

        Args:
            text: the JSON.
            where: the path of the file, which a message names.

        Raises:
            StoreError: the text is not a manifest of ours, or of a newer version.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise StoreError(
                f"{where} is not readable as JSON, so it is truncated or not cnnlog's ({error}); {_GIVE_UP}"
            ) from error
        if not isinstance(raw, dict) or raw.get("format") != "cnnlog-run":
            raise StoreError(f"{where} is not cnnlog's: expected the format 'cnnlog-run' in it; {_GIVE_UP}")
        refuse_newer(raw.get("version"), where)
        try:
            layers = tuple(WatchedLayer(**_plain(layer)) for layer in raw["layers"])
            measured = tuple(MeasuredLayer(**_plain(layer)) for layer in raw.get("measured", ()))
            facts = {k: v for k, v in raw.items() if k not in ("format", "layers", "measured", "unit")}
            return cls(**facts, layers=layers, measured=measured, unit=Unit(raw["unit"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StoreError(f"{where} is damaged: it is not what cnnlog writes ({error}); {_GIVE_UP}") from error


def _plain(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's facts as JSON has them, with tuples for lists."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in layer.items()}


def refuse_newer(version: object, where: str) -> None:
    """Refuse a file that a newer cnnlog wrote.

    Args:
        version: the version that the file names, as a number or as its text.
        where: the path of the file, which a message names.

    Raises:
        StoreError: the version is above ours, or no version at all.
    """
    number = int(version) if isinstance(version, str) and version.isdecimal() else version
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise StoreError(f"{where} is not cnnlog's: expected a version number from 1 on, got {version!r}; {DELETE_IT}")
    if number > VERSION:
        raise StoreError(
            f"{where} has format version {number}, and this cnnlog reads up to {VERSION}; upgrade cnnlog to open it"
        )
