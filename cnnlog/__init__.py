"""Watch a CNN's filters and feature maps change while it is fine-tuned.

`import cnnlog` is light on purpose: the public names load torch and Lightning only when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlog.callbacks import FeatureMapMonitor, FilterMonitor
    from cnnlog.comparison import compare
    from cnnlog.probe import Probe
    from cnnlog.run import open_run
    from cnnlog.watcher import watch

__version__ = "0.1.0"
__all__ = ["FeatureMapMonitor", "FilterMonitor", "Probe", "__version__", "compare", "open_run", "watch"]

_HOME = {
    "FeatureMapMonitor": "cnnlog.callbacks",
    "FilterMonitor": "cnnlog.callbacks",
    "Probe": "cnnlog.probe",
    "compare": "cnnlog.comparison",
    "open_run": "cnnlog.run",
    "watch": "cnnlog.watcher",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cnnlog' has no attribute {name!r}; the public names are {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
