"""The door for TensorBoard: installed entry points name `cnnlog.plugin:KeepAllImages`, so this module stays.

TensorBoard does not start where an entry point cannot be imported, so nothing here may fail.
"""

from __future__ import annotations

from cnnlog.tensorboard.plugin import KeepAllImages

__all__ = ["KeepAllImages"]
