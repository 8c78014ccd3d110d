"""What one capture holds.

`Snapshot` is the narrow waist of the package: what writes one knows hooks and torch, what reads one knows neither.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Snapshot:
    """Every filter and every feature map of the watched layers at one step, at full size.

    Attributes:
        step: completed training epochs, or optimiser steps with `every_n_train_steps`; 0 is the baseline.
        epoch: completed training epochs.
        global_step: completed optimiser steps, as Lightning counts them.
        filters: layer name -> effective weights `[O, I, kH, kW]`, float32.
        feature_maps: layer name -> that layer's own output on the probe `[N, C, H, W]`, float32.
    """

    step: int
    epoch: int
    global_step: int
    filters: Mapping[str, FloatArray] = field(default_factory=dict)
    feature_maps: Mapping[str, FloatArray] = field(default_factory=dict)
