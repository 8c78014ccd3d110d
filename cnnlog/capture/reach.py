"""What can be reached from a model: kept as it is, and put back in place, where others may hold the same object."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import nn

from cnnlog.capture.before import Before
from cnnlog.capture.contents import CELL, OF_CLASSES, names_in, plain_copy, slots_of, value_of, vars_of
from cnnlog.capture.kept import SMALL, size
from cnnlog.capture.kinds_of_state import CONSTANT, State, is_foreign, own_packages, state_of

OBJECTS_LIMIT = 10_000
BYTES_LIMIT = 64_000_000
_LONG, _BYTES_EACH = 1000, 64  # of longer containers each element counts as so many bytes: to compare them takes time
_BELOW = frozenset(("builtins", "torch", "lightning", "pytorch_lightning", "lightning_fabric", "cnnlog"))
_PLAIN_CONTAINERS = frozenset((dict, OrderedDict, list, set))
# Where each module keeps its hooks; nearly always there are none.
_HOOKS = tuple(key for key, value in vars(nn.Module()).items() if type(value) in _PLAIN_CONTAINERS and "hook" in key)
_HOOK_NAMES = frozenset(_HOOKS)
_hooks_of = itemgetter(*_HOOKS)

Where = tuple["Where | None", object]
"""A place below the model: the place of its owner, and the name, key or index there."""


class Reach:
    """Everything that can be reached from some modules, as it is now.

    Containers, objects, closures, arrays and random number generators are looked into and kept, at any depth; so are
    modules that are no registered sub-modules, what the classes of the model hold, and what the functions of the user's
    own files find in their globals. Tensors are found, and left to others to keep.

    Args:
        modules: all of a model's, itself first.
        roots: what else to begin at, with its place.
        packages: the top-level packages whose objects are put back; by default those of the modules.

    Attributes:
        modules: those given, and those that were found beside them.
        parameters: id -> tensor, of all modules.
        buffers: id -> tensor, of all modules.
        gradients: id -> tensor, of all parameters that have one.
        tensors: id -> tensor, of those that are none of these.
        generators: random number generators.
        foreign: what can only be watched, with its place.
        loggers: the places of loggers and writers.
        stopped: where more than 10,000 objects or 64 MB had been found, and nothing further was looked at; or None.
    """

    def __init__(
        self,
        modules: Sequence[nn.Module],
        roots: Iterable[tuple[object, Where]] = (),
        packages: frozenset[str] | None = None,
    ) -> None:
        self.modules = [*modules]
        self.parameters: dict[int, torch.Tensor] = {}
        self.buffers: dict[int, torch.Tensor] = {}
        self.gradients: dict[int, torch.Tensor] = {}
        self.tensors: dict[int, torch.Tensor] = {}
        self.generators: list[object] = []
        self.foreign: list[tuple[object, Where]] = []
        self.loggers: list[Where] = []
        self.stopped: Where | None = None
        self._packages = own_packages(self.modules) if packages is None else packages
        self._before = Before()
        self._bytes = 0
        self._seen: set[int] = {*map(id, self.modules)}
        self._files: set[tuple[int, frozenset[str]]] = set()
        self._queue: list[tuple[Any, Where]] = []  # it also keeps alive what has been seen
        for module in self.modules:
            self._keep_module(module, (None, module))
        for cls in {*map(type, self.modules)}:
            self._keep_class(cls)
        for thing, where in roots:
            self._look_at(thing, where)
        limit = OBJECTS_LIMIT + 10 * len(self.modules)  # settings of a module's own do not count
        for found, (thing, where) in enumerate(self._queue):  # it grows meanwhile
            if found >= limit:
                self.stopped = where
                break
            self._keep(thing, where)
        for key in chain(self.parameters, self.buffers, self.gradients):
            self.tensors.pop(key, None)

    # ---- looking

    def _keep_module(self, module: nn.Module, where: Where, *, found: bool = False) -> None:
        attributes = module.__dict__.copy()
        self._before.attributes.append((module, attributes))
        self._before.classes.append((module, type(module)))
        registered = attributes.get("_parameters")
        empty = self._before.empty
        hooks = _hooks_of(attributes) if attributes.keys() >= _HOOK_NAMES else ()
        known = () if any(hooks) else _HOOK_NAMES
        empty += hooks if known else ()
        for key, value in attributes.items():
            if key in known:
                continue
            cls = type(value)
            if cls in CONSTANT or value is registered:
                continue
            if cls in _PLAIN_CONTAINERS and not value:
                empty.append(value)
            elif key == "_buffers" or (key == "_modules" and not found):
                held = dict(value.items())
                if isinstance(value, dict):  # of a scripted module it is none, and cannot be written
                    self._before.contents.append((value, held))
                if key == "_buffers":
                    self._keep_buffers(held, where)
            else:
                self._look_at(value, (where, key))
        if registered is not None:
            before = dict(registered.items())
            if isinstance(registered, dict):
                self._before.registered.append((registered, before))
            for tensor in before.values():
                if tensor is not None and id(tensor) not in self.parameters:
                    self.parameters[id(tensor)] = tensor
                    self._keep_parameter(tensor, where)

    def _keep_buffers(self, held: dict[str, Any], where: Where) -> None:
        for tensor in held.values():
            if tensor is not None and id(tensor) not in self.buffers:
                self.buffers[id(tensor)] = tensor
                self._keep_attributes(tensor, where)

    def _keep_parameter(self, parameter: Any, where: Where) -> None:
        gradient = parameter.grad
        self._before.gradients.append((parameter, gradient))
        if gradient is not None:
            self.gradients[id(gradient)] = gradient
        self._keep_attributes(parameter, where)

    def _keep_attributes(self, tensor: Any, where: Where) -> None:
        """What somebody has written onto a tensor."""
        attributes = tensor.__dict__
        if not attributes:
            self._before.empty.append(attributes)
            return
        self._before.objects.append((attributes, attributes.copy()))
        for key, value in attributes.items():
            self._look_at(value, (where, key))

    def _look_at(self, thing: Any, where: Where) -> None:
        cls: Any = type(thing)
        if cls in CONSTANT or id(thing) in self._seen or (cls is tuple and {*map(type, thing)} <= CONSTANT):
            return
        self._seen.add(id(thing))
        self._queue.append((thing, where))

    def _keep(self, thing: Any, where: Where) -> None:
        state = state_of(thing, self._packages)
        if state is State.CONTAINER:
            self._keep_container(thing, where)
        elif state is State.TUPLE:
            self._look_into(thing, where)
        elif state is State.TENSOR:
            self._keep_attributes(thing, where)
            if thing.is_nested:
                self.foreign.append((thing, where))
            elif size(thing) >= SMALL or self._fits(size(thing), where):
                self.tensors[id(thing)] = thing
        elif state is State.MODULE:
            self.modules.append(thing)
            self._keep_class(type(thing))
            self._keep_module(thing, where, found=True)
        elif state is State.OBJECT:
            self._keep_object(thing, where)
        elif state is State.ARRAY:
            self._keep_array(thing, where)
        elif state is State.GENERATOR:
            self.generators.append(thing)
        elif state is State.FOREIGN:
            self.foreign.append((thing, where))
        elif state is State.LOGGER:
            self.loggers.append(where)
        elif state is not State.NOTHING:
            self._look_at_callable(thing, state, where)

    def _keep_container(self, thing: Any, where: Where) -> None:
        content = plain_copy(thing)
        if len(content) > _LONG and not self._fits(_BYTES_EACH * len(content), where):
            return
        self._before.contents.append((thing, content))
        self._look_into(content, where)
        if type(thing) not in _PLAIN_CONTAINERS and not isinstance(thing, deque):
            self._keep_object(thing, where)

    def _look_into(self, content: Any, where: Where) -> None:
        parts = content.values() if isinstance(content, dict) else content
        if {*map(type, parts)} <= CONSTANT:
            return
        if len(parts) > OBJECTS_LIMIT:
            self.stopped = self.stopped or where
            return
        for key, part in content.items() if isinstance(content, dict) else enumerate(content):
            self._look_at(part, (where, key))

    def _keep_object(self, thing: Any, where: Where) -> None:
        attributes = vars_of(thing)
        if type(attributes) is dict:
            before = attributes.copy()
            self._before.objects.append((attributes, before))
            self._before.held.append((thing, attributes))
            for key, value in before.items():
                self._look_at(value, (where, key))
        for slot in slots_of(thing):
            value = value_of(slot, thing)
            self._before.slots.append((slot, thing, value))
            self._look_at(value, (where, slot.__name__))
        self._keep_class(type(thing))

    def _keep_array(self, thing: Any, where: Where) -> None:
        array = isinstance(thing, np.ndarray)
        if array and not thing.flags.writeable:
            return
        if self._fits(thing.nbytes if array else len(memoryview(thing).cast("B")), where):
            plain = thing.view(np.ndarray) if array and type(thing) is not np.ndarray else thing
            self._before.contents.append((plain, plain.copy() if array else plain[:]))
            if plain is not thing:  # a masked array has its mask among its attributes
                self._keep_object(thing, where)
            if array and thing.dtype.hasobject:
                self._look_into(thing.ravel().tolist(), where)

    def _look_at_callable(self, thing: Any, state: State, where: Where) -> None:
        if state is State.METHOD:
            self._look_at(thing.__self__, where)
            self._look_at(getattr(thing, "__func__", None), where)  # methods of lists have none
        elif state is State.PARTIAL:
            for part in (thing.func, *thing.args, thing.keywords):
                self._look_at(part, where)
        elif isinstance(thing, property):
            for part in (thing.fget, thing.fset):
                self._look_at(part, where)
        elif isinstance(thing, (classmethod, staticmethod)):
            self._look_at(thing.__func__, where)
        else:
            self._keep_function(thing, where)

    def _keep_function(self, function: types.FunctionType, where: Where) -> None:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            if id(cell) not in self._seen:
                self._seen.add(id(cell))
                value = value_of(CELL, cell)
                self._before.slots.append((CELL, cell, value))
                self._look_at(value, (where, name))
        for part in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self._look_at(part, where)
        if function.__dict__:
            self._keep_object(function, where)
        if not is_foreign((function.__module__ or "").partition(".")[0]):
            self._keep_globals(function.__globals__, names_in(function.__code__))

    def _keep_globals(self, variables: dict[str, Any], names: frozenset[str]) -> None:
        """What a function of the user's own finds in its file, and in others of the user's files.

        Args:
            variables: of the file.
            names: of variables, and of attributes.
        """
        bound = {name: variables[name] for name in names if name in variables}
        self._before.bound.append((variables, bound))
        file = variables.get("__name__")
        for name, value in bound.items():
            if isinstance(value, types.ModuleType):
                others = vars(value)
                key = (id(others), names)
                if not is_foreign(value.__name__.partition(".")[0]) and key not in self._files:
                    self._files.add(key)
                    self._keep_globals(others, names)
            elif isinstance(value, type):
                self._keep_class(value)
            else:
                self._look_at(value, (None, f"{name} of {file}"))

    def _keep_class(self, cls: type) -> None:
        """What a class of the model's packages holds: attributes of its own, and what its functions keep."""
        if id(cls) in self._seen:
            return
        self._seen.add(id(cls))
        for base in cls.__mro__:
            home = base.__module__.partition(".")[0]
            if home in _BELOW or (home not in self._packages and is_foreign(home)):
                continue
            bound = {name: value for name, value in vars(base).items() if name not in OF_CLASSES}
            self._before.bound.append((base, bound))
            for name, value in bound.items():
                self._look_at(value, ((None, base), name))

    def _fits(self, more: int, where: Where) -> bool:
        self._bytes += more
        if self._bytes > BYTES_LIMIT:
            self._bytes -= more
            self.stopped = self.stopped or where
            return False
        return True

    def trains(self) -> bool:
        """Whether a parameter has got another gradient; see `Before.trains`."""
        return self._before.trains()

    def put_back(self, *, registered: bool) -> list[Exception]:
        """Make everything what it was; see `Before.put_back`.

        Args:
            registered: also modules' parameters that have been bound anew. FSDP2 swaps them in forward itself.

        Returns:
            What went wrong on the way.
        """
        return self._before.put_back(registered=registered)
