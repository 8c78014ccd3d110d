"""Networks from outside: torchvision's classifiers, checkpoints, files of weights. Imports torch.

In come names, files and folders; out go modules, state dicts and weights. The names below are for you to use, too:

    from cnnlog.models import load_classifier, replace_head

They are loaded when they are first used, so that `import cnnlog.models` is light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnlog.models.torchvision import Loaded, architectures, load_classifier, replace_head

__all__ = ["Loaded", "architectures", "load_classifier", "replace_head"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(
            f"module 'cnnlog.models' has no attribute {name!r}; the public names are {', '.join(__all__)}"
        )
    return getattr(importlib.import_module("cnnlog.models.torchvision"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
