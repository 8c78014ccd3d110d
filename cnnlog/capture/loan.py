"""Lends a model out, and gives it back byte for byte.

The tests of inertness show, over a zoo of awkward models, what has to be kept still and why.
"""

from __future__ import annotations

import sys
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain
from operator import is_
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from cnnlog.capture.rng import generators_in, kept_rng
from cnnlog.capture.sharding import local_part, refuse_flattened, sharded
from cnnlog.capture.used_weights import unmerges

_ALWAYS_COPIED = 2**20  # bytes: smaller tensor attributes are copied at every loan, larger ones as parameters are
_CONSTANT = frozenset((bool, int, float, complex, str, bytes, type(None), type))  # types of values that never change
_CONTAINERS = (dict, set, list, deque)
_LAZY: tuple[type, ...] = (UninitializedBuffer, UninitializedParameter)
_LOG = ("log", "log_dict")  # what forward may call in Lightning
_SAME_SIZE_INT = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# Does this model's forward write into its own parameters (momentum encoders do)? Known after its first loan.
_writes_parameters: weakref.WeakKeyDictionary[nn.Module, bool] = weakref.WeakKeyDictionary()


@contextmanager
def borrow(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Lend a model for forward passes in eval mode without gradients, and give everything back afterwards.

    These are given back, also after an exception: training flags, buffers, sub-modules, attributes (and one level of
    what is in lists, dicts, sets, deques and arrays), parameters, and the states of all random number generators.
    Meanwhile `self.log` in forward does nothing, and a compiled model runs eagerly; it is not compiled again for that.

    Parameters are copied on a model's first loan, and on later ones only if forward wrote into them on an earlier one.
    If a model is sharded over several processes (FSDP2, DTensor), all of them must borrow it at the same time.

    Yields all of its modules, itself first.

    Args:
        model: any module.

    Raises:
        ValueError: the model is sharded by FSDP 1 or ZeRO 3.
        RuntimeError: forward wrote into parameters of which there was no copy.
    """
    modules = list(model.modules())  # to walk through a large model costs more than what is done at each module
    refuse(modules)
    with ExitStack() as stack:
        stack.enter_context(sharded(modules))
        loan = _Loan(modules)
        stack.enter_context(kept_rng(generators_in(loan.values, depth=1)))
        # The cache of a training step around us keeps no cast of ours, which has no graph.
        stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        stack.callback(loan.give_back)
        loan.still()
        # not inference_mode: a tensor that forward caches would fail in later training.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        if "torch._dynamo" in sys.modules:  # else nothing can be compiled, and importing it costs seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield modules


def may_write_parameters(model: nn.Module) -> bool:
    """Whether a model's forward writes into its own parameters, as far as is known; before its first loan it may.

    Args:
        model: any module.
    """
    return _writes_parameters.get(model, True)


def refuse(modules: Sequence[nn.Module]) -> None:
    """Refuse a model that cannot be looked at.

    Args:
        modules: all of the model's, itself first.

    Raises:
        ValueError: it has parameters that are flattened.
    """
    refuse_flattened(modules)


def _unmerging(modules: Sequence[nn.Module]) -> bool:
    """Whether the forward of any module will take an adapter out of a base weight, through `.data`."""
    adapters = {cls for cls in {*map(type, modules)} if hasattr(cls, "get_base_layer")}
    return any(unmerges(module) for module in modules if type(module) in adapters)


class _Loan:
    """What a model was before it was lent.

    `_parameters` is never bound to another object, because FSDP2 swaps its entries in forward and would lose track.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self.model = modules[0]
        self.modules = modules
        self._attributes = [dict(module.__dict__) for module in self.modules]
        self._elsewhere = [(module, module.training) for module in self.modules if "training" not in module.__dict__]
        self._parameter_names = [[*module._parameters.keys()] for module in self.modules]
        # What is lazy has no bytes yet, and is not run; to ask `isinstance` of thousands would cost more than the type.
        parameters = {
            id(p): p
            for module in self.modules
            for p in module._parameters.values()
            if p is not None and type(p) not in _LAZY
        }
        buffers = {
            id(b): b
            for module in self.modules
            for b in module._buffers.values()
            if b is not None and type(b) not in _LAZY
        }

        self._contents: list[tuple[Any, Any]] = []
        self._empty: list[Any] = []  # as most containers of a module are
        self.values: list[Any] = []
        plain: dict[int, torch.Tensor] = {}  # tensors that are neither parameters nor buffers
        for key, value in chain.from_iterable(attributes.items() for attributes in self._attributes):
            if type(value) in _CONSTANT or key == "_parameters":
                continue
            if isinstance(value, _CONTAINERS) and not value:
                self._empty.append(value)
            else:
                self.values.append(value)
                self._keep_contents(value, plain)
        self._copied = _writes_parameters.get(self.model, True) or _unmerging(modules)
        small = {key: tensor for key, tensor in plain.items() if _bytes(tensor) < _ALWAYS_COPIED}
        with torch.no_grad():
            self._always = [_Kept(tensor) for tensor in ({**small, **buffers}).values()]
            self._seldom = [
                _Kept(tensor)
                for key, tensor in ({**plain, **parameters}).items()
                if key not in small and key not in buffers
            ]
            self._groups = _copy(self._always + (self._seldom if self._copied else []))

    def _keep_contents(self, value: Any, plain: dict[int, torch.Tensor]) -> None:
        if isinstance(value, _CONTAINERS):
            plainly = next(cls for cls in _CONTAINERS if isinstance(value, cls))
            self._contents.append((value, plainly(value)))
        elif isinstance(value, np.ndarray):
            self._contents.append((value, value.copy()))
        elif isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
            plain[id(value)] = value
        if isinstance(value, (dict, list, deque)):
            for part in value.values() if isinstance(value, dict) else value:
                if isinstance(part, torch.Tensor):
                    self._keep_contents(part, plain)

    def still(self) -> None:
        """Eval mode, flag by flag (`.eval()` merges LoRA, `.train()` thaws what the user froze), and no logging."""
        logging = {cls for cls in {*map(type, self.modules)} if any(hasattr(cls, name) for name in _LOG)}
        for module, attributes in zip(self.modules, self._attributes, strict=True):
            if attributes.get("training"):
                module.__dict__["training"] = False
            cls = type(module)
            if not (cls in logging or "log" in attributes or "log_dict" in attributes):
                continue
            if all(callable(attributes.get(name, getattr(cls, name, None))) for name in _LOG):
                module.__dict__["log"] = module.__dict__["log_dict"] = lambda *_, **__: None
        for module, _ in self._elsewhere:
            module.training = False

    def give_back(self) -> None:
        """Undo everything, in place where others may hold the same object."""
        for module, attributes in zip(self.modules, self._attributes, strict=True):
            if "training" in attributes:
                module.__dict__["training"] = attributes["training"]
            if not _same_items(module.__dict__, attributes):
                _refill(module.__dict__, attributes, except_for="_parameters")
        for module, names in zip(self.modules, self._parameter_names, strict=True):
            for name in {*module._parameters.keys()}.difference(names):  # scripted ones cannot be walked through alone
                del module._parameters[name]
        for empty in self._empty:
            if empty:
                empty.clear()
        for container, content in self._contents:
            _restore_content(container, content)
        for module, training in self._elsewhere:
            module.training = training
        with torch.no_grad():
            touched = {kept for kept in [*self._always, *self._seldom] if kept.put_in_place()}
            first = self.model not in _writes_parameters
            same = {kept for group in self._groups for kept in group.unchanged()}
            changed = {kept for kept in self._always if kept not in same and kept.changed(tell=False)}
            changed |= {kept for kept in self._seldom if kept not in same and kept.changed(tell=first)}
            _copy_back(changed)
        written = [kept for kept in self._seldom if kept in touched or kept in changed]
        _writes_parameters[self.model] = bool(written) or _writes_parameters.get(self.model, False)
        lost = [kept for kept in written if kept.copy is None and kept.written]
        if lost:
            shapes = ", ".join(str(list(kept.tensor.shape)) for kept in lost[:3])
            raise RuntimeError(
                f"{type(self.model).__name__}.forward in eval mode wrote into parameters {shapes}, which it did not do "
                "when it was first run: this probe has changed them. From now on they are copied before each probe."
            )


class _Kept:
    """One tensor: where it pointed to, and a copy of its bytes, unless it is large and nobody writes into it."""

    __slots__ = ("_local", "_pointer", "_requires_grad", "_version", "alias", "copy", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.copy: torch.Tensor | None = None
        # A process's own part can be compared without the others.
        self._local = local_part(tensor) if _is_wrapper(tensor) else tensor
        self.alias = self._local.detach()
        self._version = _version(self._local)
        self._pointer = _pointer(self._local)
        self._requires_grad = tensor.requires_grad

    @property
    def written(self) -> bool:
        """Whether anybody has written into the tensor in a way that torch counts."""
        return _version(self._local) != self._version

    def put_in_place(self) -> bool:
        """Point to the old memory again; tells whether the tensor pointed elsewhere, or was written."""
        if self.tensor.requires_grad != self._requires_grad:
            self.tensor.requires_grad_(self._requires_grad)
        moved = _pointer(self._local) != self._pointer or self._local.shape != self.alias.shape
        touched = moved or self.written
        if moved:
            self._local.data = self.alias
        return touched

    def changed(self, *, tell: bool) -> bool:
        """Whether the bytes differ from those of the copy.

        Args:
            tell: find out for certain. Otherwise True may also mean that finding out would make this thread wait.
        """
        if self.copy is None:
            return False
        if self.alias.layout is not torch.strided or self.alias.is_meta:  # whose bytes cannot be compared
            return self.written
        if not tell and _comparing_waits(self.alias) and not _is_expanded(self.alias):
            return True
        return not _same_bytes(self.alias, self.copy)


class _Group:
    """Small tensors of one device and type, whose bytes are copied, and compared, all at once.

    Args:
        members: the tensors. They get their copies.
    """

    def __init__(self, members: Sequence[_Kept]) -> None:
        self._members = members
        self._bytes = self._now()
        parts = torch.split(self._bytes, [kept.alias.numel() for kept in members])
        for kept, part in zip(members, parts, strict=True):
            kept.copy = part.view(kept.alias.shape)

    def unchanged(self) -> Sequence[_Kept]:
        """All of them if no byte of any has changed, else none; none, too, where to find out would make us wait."""
        if _comparing_waits(self._bytes):
            return ()
        return self._members if _same_bytes(self._now(), self._bytes) else ()

    def _now(self) -> torch.Tensor:
        return torch.cat([kept.alias.reshape(-1) for kept in self._members])


def _copy(all_kept: Sequence[_Kept]) -> list[_Group]:
    """Copy the bytes of each tensor; small ones of one type all at once, because the call costs more than the bytes."""
    groups: dict[object, list[_Kept]] = {}
    for kept in all_kept:
        tensor = kept.alias
        if _is_plain(tensor) and tensor.nbytes < _ALWAYS_COPIED:
            groups.setdefault((tensor.device, tensor.dtype), []).append(kept)
        else:
            kept.copy = tensor.clone()
    return [_Group(members) for members in groups.values()]


def _copy_back(changed: Iterable[_Kept]) -> None:
    # through aliases without a version counter of their users: a graph that saved a tensor stays valid
    pairs = [(kept.alias.data, kept.copy) for kept in changed if kept.copy is not None]
    plain = [pair for pair in pairs if _is_plain(pair[0])]
    if plain:
        torch._foreach_copy_([tensor for tensor, _ in plain], [copy for _, copy in plain])
    for tensor, copy in pairs:
        if not _is_plain(tensor):
            tensor.copy_(copy)


def _version(tensor: torch.Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _pointer(tensor: torch.Tensor) -> int:
    return tensor.data_ptr() if tensor.layout is torch.strided and not _is_wrapper(tensor) else id(tensor)


def _is_wrapper(tensor: torch.Tensor) -> bool:
    """A tensor subclass without storage of its own (torchao)."""
    return type(tensor) not in (torch.Tensor, nn.Parameter, nn.Buffer)


def _is_plain(tensor: torch.Tensor) -> bool:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return False
    return not _is_wrapper(tensor)


def _bytes(tensor: torch.Tensor) -> int:
    """How many bytes a tensor holds; sparse ones do not say, and are taken for small."""
    return tensor.nbytes if tensor.layout is torch.strided else 0


def _comparing_waits(tensor: torch.Tensor) -> bool:
    """Whether a comparison would make this thread wait until the device has done all its work. A copy would not."""
    return tensor.is_cuda and not _is_wrapper(tensor)


def _is_expanded(tensor: torch.Tensor) -> bool:
    """Whether several elements share one place in memory, so that nothing can be written to them."""
    pairs = zip(tensor.stride(), tensor.shape, strict=True) if tensor.layout is torch.strided else ()
    return any(stride == 0 and size > 1 for stride, size in pairs)


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """NaN equals NaN, and -0.0 differs from 0.0."""
    integer = _SAME_SIZE_INT.get(a.element_size())
    if integer is None or not _is_plain(a):
        return torch.equal(a, b)
    return torch.equal(a.view(integer), b.view(integer))


def _refill(now: MutableMapping[str, Any], before: Mapping[str, Any], *, except_for: str) -> None:
    for key in [key for key in now if key not in before and key != except_for]:
        del now[key]
    for key, value in before.items():
        if key != except_for and (key not in now or now[key] is not value):
            now[key] = value


def _same_items(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """The very same objects, in the same order."""
    return len(a) == len(b) and all(map(is_, a, b)) and all(map(is_, a.values(), b.values()))


def _restore_content(container: Any, content: Any) -> None:
    """Put back what was in a container. One that is as it was is left alone, so that no guard on it is invalidated."""
    if isinstance(container, dict):
        if not _same_items(container, content):
            container.clear()
            container.update(content)
    elif isinstance(container, np.ndarray):
        if container.tobytes() != content.tobytes():
            np.copyto(container, content)
    elif isinstance(container, set):
        if container != content:
            container.clear()
            container.update(content)
    elif [*map(id, container)] != [*map(id, content)]:
        container.clear()
        container.extend(content)
