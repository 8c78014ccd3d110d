"""What runs inside a transform of `torch.func` (grad, jvp, vmap): its tensors wrap others, one for each level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_functorch: Any = torch._C._functorch


def inside_transform() -> bool:
    """Whether a transform is under way."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def outside_transforms() -> Iterator[None]:
    """Let what follows be computed as if no transform was under way."""
    from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

    clear: Callable[[], Any] = temporarily_clear_interpreter_stack
    with clear():
        yield


def unwrapped(output: Any) -> Any:
    """A module's output without the wrappers of transforms; None in the place of a tensor that `vmap` has split.

    Args:
        output: a tensor, or nested tuples, lists and mappings.
    """
    if isinstance(output, torch.Tensor):
        while output is not None and _functorch.is_functorch_wrapped_tensor(output):
            output = None if _functorch.is_batchedtensor(output) else _functorch.get_unwrapped(output)
        return output
    if isinstance(output, Mapping):
        return {key: unwrapped(part) for key, part in output.items()}
    if isinstance(output, (tuple, list)):
        return [unwrapped(part) for part in output]
    return output
