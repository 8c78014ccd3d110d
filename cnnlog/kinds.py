"""What is watched, and what steps count: said once, for everything above."""

from __future__ import annotations

from typing import Literal

Kind = Literal["filters", "feature_maps"]
Unit = Literal["epoch", "step"]
