"""Models whose parameters are distributed over several processes: FSDP2 (`fully_shard`) and tensor parallelism.

Their parameters are `DTensor`s. To gather one, and a forward pass through such a model, are collective operations:
every process of the training must do the same, in the same order, or all of them hang.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import nn

# The state that FSDP2 keeps of a forward pass. The backward pass clears it, but ours has none, so the next training
# step would see leftover FSDP state. torch's own `reset_iter_state` throws the user's gradients away as well.
_NOTES = (
    "_training_state",
    "_modules_to_run_forward",
    "_post_forward_indices",
    "iter_forward_root",
    "post_forward_order",
)


def is_sharded(modules: Iterable[nn.Module]) -> bool:
    """Whether every process must take part in whatever is done with a model.

    Args:
        modules: all of the model's.
    """
    distributed = _dtensor_class()
    if distributed is None:
        return False
    modules = [*modules]
    if _fsdp_modules(modules):
        return True
    # Classes are looked at, not tensors: a large model has thousands of tensors, of two or three classes.
    classes = {type(tensor) for module in modules for tensor in module._parameters.values()}
    return any(issubclass(cls, distributed) for cls in classes)


def is_distributed(tensor: torch.Tensor) -> bool:
    """Whether every process has only a part of a tensor, so that it is a `DTensor`.

    Args:
        tensor: any.
    """
    cls = _dtensor_class()
    return cls is not None and isinstance(tensor, cls)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor, gathered from all processes if it is distributed over them. That is a collective operation.

    Args:
        tensor: distributed or not.
    """
    distributed: Any = tensor
    full: torch.Tensor = distributed.full_tensor() if is_distributed(tensor) else tensor
    return full


@contextmanager
def gathered_parameters(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let modules find their own parameters gathered, for computations that `DTensor` does not know.

    This is a collective operation. Do not use it around a forward pass, because FSDP2 swaps the same entries there.

    Args:
        modules: whose own parameters are gathered.
    """
    distributed = [
        (module._parameters, name, parameter)
        for module in modules
        for name, parameter in module._parameters.items()
        if parameter is not None and is_distributed(parameter)
    ]
    try:
        for entries, name, parameter in distributed:
            entries[name] = nn.Parameter(gathered(parameter), requires_grad=parameter.requires_grad)
        yield
    finally:
        for entries, name, parameter in distributed:
            entries[name] = parameter


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that lies in this process, not copied. It is all of the tensor unless it is distributed.

    Args:
        tensor: distributed or not.
    """
    distributed: Any = tensor
    part: torch.Tensor = distributed.to_local() if is_distributed(tensor) else tensor
    return part


def plain_type(module: nn.Module) -> type[nn.Module]:
    """The class that a module was written as: `fully_shard` makes an `FSDPConv2d` of a `Conv2d`.

    Args:
        module: any.
    """
    cls: Any = type(module)
    return _plain(cls, _fsdp_class())


@lru_cache(1024)  # a large model has hundreds of modules, of few classes
def _plain(cls: Any, fsdp: type | None) -> type[nn.Module]:
    classes: tuple[type[nn.Module], ...] = cls.__mro__
    return next(base for base in classes if fsdp is None or not issubclass(base, fsdp))


def refuse_flattened(modules: Sequence[nn.Module]) -> None:
    """Refuse a model whose layers do not have their weights.

    Args:
        modules: all of the model's, itself first.

    Raises:
        ValueError: FSDP 1 or DeepSpeed ZeRO 3 has flattened its parameters.
    """
    fsdp1 = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    deepspeed = "deepspeed" in sys.modules
    if not deepspeed and not (fsdp1 is not None and any(issubclass(cls, fsdp1) for cls in {*map(type, modules)})):
        return
    for module in modules:
        how = "FullyShardedDataParallel (FSDP 1)" if fsdp1 is not None and isinstance(module, fsdp1) else ""
        if deepspeed and any(hasattr(parameter, "ds_tensor") for parameter in module._parameters.values()):
            how = "DeepSpeed ZeRO stage 3"
        if how:
            name = next(name for name, other in modules[0].named_modules() if other is module)
            raise ValueError(
                f"Expected a model whose layers have their weights, or one sharded by fully_shard (FSDP2), but {how} "
                f"has flattened those of {name or 'the model'!r}. Use torch.distributed.fsdp.fully_shard; in "
                "Lightning, do so in configure_model, with ModelParallelStrategy."
            )


def reshard(modules: Iterable[nn.Module]) -> None:
    """Let go of what FSDP2 has gathered. The parameters are then the `DTensor`s that the optimiser trains.

    Args:
        modules: all of a model's; those that are not sharded are left alone.
    """
    for module in _fsdp_modules(modules):
        module.reshard()


@contextmanager
def sharded(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Lend an FSDP2 model in its sharded state. Afterwards it is in the state that it was in, also after an exception.

    What was gathered, as the outermost parameters are after validation, is gathered again, and FSDP2's state of forward
    passes is as before. For any other model this does nothing.

    Args:
        modules: all of the model's, itself first.
    """
    ours = _fsdp_modules(modules)
    if not ours:
        yield
        return
    _initialise(ours)
    notes = [_Note(thing, name) for thing in _notebooks(ours) for name in _NOTES if name in vars(thing)]
    were_gathered = [module for module in ours if _reshard_one(module)]
    try:
        yield
    finally:
        for note in notes:
            note.give_back()
        for module in ours:
            if any(getattr(group, "_all_gather_result", None) is not None for group in _groups(module)):
                module.unshard()  # prefetched for a forward pass that did not come to it: wait, then drop it
            module.reshard()
        for module in were_gathered:
            module.unshard()


class _Note:
    """One attribute that FSDP2 keeps, and what it was."""

    def __init__(self, thing: Any, name: str) -> None:
        self._thing, self._name, self._object = thing, name, getattr(thing, name)
        self._content = [*self._object] if isinstance(self._object, (list, set)) else None

    def give_back(self) -> None:
        if self._content is not None:  # in place: hooks hold the same object
            self._object.clear()
            (self._object.extend if isinstance(self._object, list) else self._object.update)(self._content)
        setattr(self._thing, self._name, self._object)


def _initialise(modules: list[Any]) -> None:
    """What FSDP2 does at its first forward pass, from its outermost modules on.

    Else the probe's would decide which module is the outermost, and the hooks for `state_dict` that FSDP2 then
    registers would be taken off again with all that was not there when the model was lent.
    """
    inside: set[int] = set()
    for module in modules:
        if id(module) not in inside:
            module._get_fsdp_state()._lazy_init()
            inside.update(map(id, module.modules()))


def _reshard_one(module: Any) -> bool:
    """Reshard this module's own parameters; whether they lay gathered."""
    before = [*module.parameters()]
    module.reshard()
    return any(old is not new for old, new in zip(before, module.parameters(), strict=True))


def _notebooks(modules: list[Any]) -> list[Any]:
    things = []
    for module in modules:
        state = module._get_fsdp_state()
        things += [state, state._state_ctx, state._comm_ctx, *_groups(module)]
    return [*{id(thing): thing for thing in things}.values()]


def _groups(module: Any) -> list[Any]:
    state = module._get_fsdp_state()
    several = getattr(state, "_fsdp_param_groups", None)  # one, in older versions of torch
    return [*several] if several is not None else [group for group in (state._fsdp_param_group,) if group is not None]


def _fsdp_modules(modules: Iterable[nn.Module]) -> list[Any]:
    fsdp = _fsdp_class()
    if fsdp is None:
        return []
    modules = [*modules]
    ours = {cls for cls in {*map(type, modules)} if issubclass(cls, fsdp)}
    return [module for module in modules if type(module) in ours] if ours else []


# Where nobody has imported these nothing is sharded, and importing them costs time.
def _dtensor_class() -> type | None:
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def _fsdp_class() -> type | None:
    return getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
