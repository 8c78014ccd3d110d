"""What a forward pass of the probe failed of, in words: its size, its form, a hook, or the forward itself."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
import re
from collections.abc import Iterator, Mapping
from types import CodeType, FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from cnnlog.capture.layers import layer_names

_CALLS = ("_call_impl", "inner")  # where torch calls hooks
_OF_SIZE = re.compile(
    r"size|shape|channel|dimension|dim\b|broadcast|expand|mat1|kernel|padding|too small|must match|divisible|\d+D\b",
    re.IGNORECASE,
)
_OF_FORM = re.compile(
    r"positional argument|keyword argument|too many indices|only integers|indices must be|tensor indices|"
    r"'Tensor' object has no attribute|values to unpack|not subscriptable|cannot be used as indices|new\(\)",
)


def how_far(
    model: nn.Module, start: nn.Module, tensor: torch.Tensor, ran: Mapping[str, tuple[int, ...]], error: Exception
) -> str:
    """Why the probe did not go through a module, and what ran of it.

    Args:
        model: the whole one.
        start: the part of it that the probe went into.
        tensor: the probe.
        ran: the shapes of what the layers gave, of those that ran.
        error: what was raised.
    """
    last = [f"{name or type(start).__name__} {list(shape)}" for name, shape in list(ran.items())[-5:]]
    before = f"{len(ran) - 5} layers, then " if len(ran) > 5 else ""
    what_ran = f"what ran: {before}{', '.join(last) or 'nothing'}"
    reason = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
    failed = _failed_hook(error)
    if failed is not None:
        module, hook = failed
        layer = next((name for name, _, other in layer_names(model) if other is module), "")
        where = f"layer {layer!r} ({type(module).__name__})" if layer else f"the model ({type(module).__name__})"
        return (
            f"Your hook {_name(hook)} on {where} failed while the probe {list(tensor.shape)} ran through "
            f"{type(start).__name__} ({reason}); {what_ran}. Hooks run for the probe as for a batch of {len(tensor)}: "
            "let this one bear that, or remove it."
        )
    said = f"The probe {list(tensor.shape)} cannot go through {type(start).__name__} ({reason}); {what_ran}."
    if is_of_form(start, error):
        return f"{said} Its forward takes something else than one tensor [N, ...]."
    if _is_of_size(error):
        return f"{said} Give a probe of the size and channels that the model is trained on."
    return f"{said} That was raised {_place(error)}, and says nothing of the probe's size."


def is_of_form(start: nn.Module, error: Exception) -> bool:
    """Whether a pass failed because forward takes something else than one tensor: a dict, several inputs, keywords.

    Args:
        start: what was called with the tensor.
        error: what was raised.
    """
    if _failed_hook(error) is not None:
        return False
    try:
        inspect.signature(start.forward).bind(None)
    except TypeError:
        return True
    except ValueError:  # it has no signature
        pass
    return isinstance(error, (TypeError, IndexError, AttributeError, ValueError, KeyError)) and (
        _OF_FORM.search(str(error)) is not None
    )


def _is_of_size(error: Exception) -> bool:
    kinds = (RuntimeError, ValueError, AssertionError, IndexError)
    return isinstance(error, kinds) and _OF_SIZE.search(str(error)) is not None


def _frames(error: Exception) -> Iterator[FrameType]:
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _failed_hook(error: Exception) -> tuple[nn.Module, Any] | None:
    """The hook, not of ours, in which an error was raised, and the module it is on; None where it was in none."""
    found = None
    frames = list(_frames(error))
    for frame, inside in itertools.pairwise(frames):
        hook = frame.f_locals.get("hook")
        if hook is None or frame.f_code.co_name not in _CALLS or not _is_torchs(frame.f_code):
            continue
        if inside.f_code is _code(hook) and not (_is_ours(inside.f_code) or _is_torchs(inside.f_code)):
            found = frame.f_locals["self"], hook
    return found


def _code(hook: Any) -> CodeType | None:
    while isinstance(hook, functools.partial):
        hook = hook.func
    called = hook if hasattr(hook, "__code__") or hasattr(hook, "__func__") else type(hook).__call__
    code: CodeType | None = getattr(called, "__code__", None)
    return code


def _name(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return repr(getattr(hook, "__qualname__", type(hook).__qualname__))


def _place(error: Exception) -> str:
    """In which function of the user's an error was raised."""
    frames = [frame for frame in _frames(error) if not (_is_ours(frame.f_code) or _is_torchs(frame.f_code))]
    if not frames:
        return "outside of any function of yours"
    code = frames[-1].f_code
    line = next(trace for trace in _traces(error) if trace.tb_frame is frames[-1]).tb_lineno
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11 has the class's name, too
    return f"in {name} (line {line} of {os.path.basename(code.co_filename)})"


def _traces(error: Exception) -> Iterator[TracebackType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace
        trace = trace.tb_next


def _is_torchs(code: CodeType) -> bool:
    return code.co_filename.startswith(os.path.dirname(torch.__file__) + os.sep)


def _is_ours(code: CodeType) -> bool:
    return code.co_filename.startswith(os.path.dirname(os.path.dirname(__file__)) + os.sep)
