"""Parts of a model that take no hooks or have no shape yet: they may stand beside what is watched, but not be it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy


class Unwatchable(ValueError):
    """What was asked for lies in a part of the model that cannot be watched."""


def unwatchable(modules: Mapping[str, nn.Module]) -> dict[str, str]:
    """The modules that cannot be watched: name -> a sentence that says why, and what to do.

    Args:
        modules: by their names; the model's own is empty.
    """
    if not _is_suspect([*modules.values()]):
        return {}
    found: dict[str, str] = {}
    for name, module in modules.items():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"layer {name!r}" if name else "the model"
            found[name] = (
                f"A ScriptModule cannot be watched, and {where} is one ({type(module).__name__}): its inner "
                "layers take no hooks. Train the nn.Module it was scripted or traced from"
            )
        elif (key := _lazy_key(module)) is not None:
            found[name] = (
                f"Layer {name!r} ({type(module).__name__}) is lazy and its {key!r} has no shape yet: "
                "run the model once on a batch before training, so that every parameter is initialised"
            )
    return found


def refuse_scripted(modules: Mapping[str, nn.Module], reasons: Mapping[str, str], start: nn.Module) -> None:
    """Refuse to run the probe through a scripted module alone: nothing of it could be watched.

    Args:
        modules: by their names.
        reasons: what `unwatchable` found.
        start: where the probe goes in.

    Raises:
        Unwatchable: it is one.
    """
    if isinstance(start, torch.jit.ScriptModule):
        raise Unwatchable(f"{next(reasons[name] for name in reasons if modules[name] is start)}.")


@contextmanager
def kept_lazy(modules: Mapping[str, nn.Module], reasons: Mapping[str, str]) -> Iterator[None]:
    """Refuse to run what is lazy meanwhile: the probe would give it its shape, and not the first batch.

    Args:
        modules: by their names.
        reasons: what `unwatchable` found.

    Raises:
        Unwatchable: a lazy layer was about to run.
    """

    def refuse(name: str) -> Any:
        raise Unwatchable(f"{reasons[name]}.")

    lazy = [name for name in reasons if not isinstance(modules[name], torch.jit.ScriptModule)]
    handles = [
        modules[name].register_forward_pre_hook(lambda *_, name=name: refuse(name), prepend=True) for name in lazy
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def without_lazy(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Take what has no shape yet out of the modules meanwhile.

    Args:
        modules: whose parameters and buffers.
    """
    taken: list[tuple[dict[str, Any], str, torch.Tensor]] = []
    own: dict[str, Any]
    for module in modules:
        for own in (module._parameters, module._buffers):
            taken += [(own, key, tensor) for key, tensor in own.items() if tensor is not None and is_lazy(tensor)]
    try:
        for own, key, _ in taken:
            own[key] = None
        yield
    finally:
        for own, key, tensor in taken:
            own[key] = tensor


def _lazy_key(module: nn.Module) -> str | None:
    """The name of a parameter or buffer that has no shape yet."""
    own = {**module._parameters, **module._buffers}
    return next((key for key, tensor in own.items() if tensor is not None and is_lazy(tensor)), None)


def _is_suspect(modules: Sequence[nn.Module]) -> bool:
    """Whether any module is scripted, or any tensor lazy, by their classes: there are thousands of them, of few."""
    if any(issubclass(cls, torch.jit.ScriptModule) for cls in {*map(type, modules)}):
        return True
    tensors = (tensor for module in modules for own in (module._parameters, module._buffers) for tensor in own.values())
    return any(issubclass(cls, (UninitializedBuffer, UninitializedParameter)) for cls in {*map(type, tensors)})
