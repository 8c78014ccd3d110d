"""What one capture holds.

`Snapshot` is the narrow waist of the package: what writes one knows hooks and torch, what reads one knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """Every filter and every feature map of the pictured layers at one step, and what the numbers of all layers need.

    Attributes:
        step: completed training epochs, or optimiser steps with `every_n_train_steps`; 0 is the baseline.
        epoch: completed training epochs.
        global_step: completed optimiser steps, as Lightning counts them.
        filters: layer name -> effective weights `[O, I, kH, kW]`, float32.
        feature_maps: layer name -> that layer's own output on the probe `[N, C, H, W]`, float32.
        weights: measured layer -> its effective weights `[k, ...]`, one filter a row, float32: all filters, or of a
            very large layer the ones that the manifest names.
        outputs: measured layer -> its output on the probe at some fixed positions of each image `[samples, C]`.
        peaks: layer with an activation behind -> the largest value that each channel brings to it `[C]`.
        before: measured layer -> its weights before the last optimiser step, like `weights`; empty where that step is
            not known.
        metrics: what the trainer knew at that moment, such as losses and learning rates: name -> value.
        provisional: whether the state lies within an epoch, so that the step is not complete.
        drawn: whether trackers get its pictures and numbers, too.
        ready: waits until the arrays and metrics have arrived from a device; None if they have. Call it before you
            read them.
    """

    step: int
    epoch: int
    global_step: int
    filters: Mapping[str, FloatArray] = field(default_factory=dict)
    feature_maps: Mapping[str, FloatArray] = field(default_factory=dict)
    weights: Mapping[str, FloatArray] = field(default_factory=dict)
    outputs: Mapping[str, FloatArray] = field(default_factory=dict)
    peaks: Mapping[str, FloatArray] = field(default_factory=dict)
    before: Mapping[str, FloatArray] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provisional: bool = False
    drawn: bool = True
    ready: Callable[[], None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Record:
    """What is kept of a snapshot: the shown part, exactly, and numbers of all channels.

    Attributes:
        step: completed training epochs, or optimiser steps with `every_n_train_steps`; 0 is the baseline.
        epoch: completed training epochs.
        global_step: completed optimiser steps, as Lightning counts them.
        filters: layer -> shown filters `[n, k, kH, kW]` (k: 3 for `rgb`, 1 for `gray` and `mean`, input channels
            for `slices`), raw values.
        feature_maps: layer -> shown maps `[N, n, h, w]`, raw values, averaged by area where they are larger than
            they are drawn.
        numbers: name -> layer -> one value a channel (`filter_norm`, `filter_angle`, ...) or one value a layer
            (`weight_change`, `function_change`, ...).
        ranges: picture kind (`filters`, `feature_maps`, `filters_change`, `feature_maps_change`) -> layer -> the
            state of its value range, as plain arrays.
        metrics: what the trainer knew at that moment, such as losses and learning rates: name -> value.
        provisional: whether the state lies within an epoch, so that a training that goes on writes the step anew.
    """

    step: int
    epoch: int
    global_step: int
    filters: Mapping[str, FloatArray] = field(default_factory=dict)
    feature_maps: Mapping[str, FloatArray] = field(default_factory=dict)
    numbers: Mapping[str, Mapping[str, npt.NDArray[np.float64]]] = field(default_factory=dict)
    ranges: Mapping[str, Mapping[str, Mapping[str, npt.NDArray[np.generic]]]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    provisional: bool = False
