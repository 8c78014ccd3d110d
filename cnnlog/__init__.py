"""Watch a CNN's filters and feature maps change while it is fine-tuned.

`import cnnlog` is light on purpose: the public names load torch and Lightning only when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlog.capture.probe import Probe
    from cnnlog.comparison.comparison import compare
    from cnnlog.monitors.callbacks import FeatureMapMonitor, FilterMonitor
    from cnnlog.monitors.loop import watch
    from cnnlog.runs.finding import open_run

__version__ = "0.1.0"
__all__ = ["FeatureMapMonitor", "FilterMonitor", "Probe", "__version__", "compare", "open_run", "watch"]

_HOME = {
    "FeatureMapMonitor": "cnnlog.monitors.callbacks",
    "FilterMonitor": "cnnlog.monitors.callbacks",
    "Probe": "cnnlog.capture.probe",
    "compare": "cnnlog.comparison.comparison",
    "open_run": "cnnlog.runs.finding",
    "watch": "cnnlog.monitors.loop",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cnnlog' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
