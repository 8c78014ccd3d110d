"""Lends a model out, and gives it back byte for byte.

The tests of inertness show, over a zoo of awkward models and a family of drawn ones, what has to be kept still and why.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter, is_lazy

from cnnlog.capture.flags import kept_flags
from cnnlog.capture.foreign import Watched, place
from cnnlog.capture.kept import SMALL, copied, copy_back, size
from cnnlog.capture.lent_tensors import lend
from cnnlog.capture.muted import Muted
from cnnlog.capture.reach import Reach, Where
from cnnlog.capture.rng import PASS_SEED, kept_rng
from cnnlog.capture.sharding import is_sharded, refuse_flattened, sharded
from cnnlog.capture.write_guard import unwatched
from cnnlog.messages import some

_WATCHED_LATER = 100  # of what cannot be given back, after a model's first loan
_LOG = ("log", "log_dict")  # what forward may call in Lightning


@dataclass
class _Known:
    """What earlier loans of a model have shown.

    Attributes:
        writes: whether its forward writes into its own parameters, as momentum encoders do.
        unseen: whether it does so in a way that only a copy of all of them can undo.
        told: what has been warned of.
    """

    writes: bool = False
    unseen: bool = False
    told: set[str] = field(default_factory=set)


_known: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()  # none before a model's first loan
_has_run: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models through which a probe has gone while they were lent
_unguarded: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that do not run while torch's functions are watched


@contextmanager
def borrow(
    model: nn.Module, modules: Sequence[nn.Module] | None = None, *, runs: bool = True
) -> Iterator[Sequence[nn.Module]]:
    """Lend a model for forward passes in eval mode without gradients, and give everything back afterwards.

    These are given back, also after an exception: training flags, buffers, parameters, sub-modules, attributes, and
    what can be reached from them, at any depth: containers, objects of the model's packages and of the user's files,
    modules in plain lists, closures, what hooks collect, arrays, and the states of all random number generators; the
    switches of torch and NumPy, too. All generators start from one state, so that a network that draws in forward draws
    the same at every loan. Meanwhile `self.log`, loggers and writers in forward do nothing, and a compiled model runs
    eagerly; it is not compiled again for that.

    Until a probe has gone through a model, all its parameters are copied at each loan. Later, one is copied just before
    forward writes into it. What forward changes and nobody can give back is warned of once: the place in a file or of
    an iterator, and objects of other packages.

    If a model is sharded over several processes (FSDP2, DTensor), all of them must borrow it at the same time.

    Yields all of its modules, itself first.

    Args:
        model: any module.
        modules: all of its modules, itself first, for those who have them already: to walk through a large model costs
            more than what is done at each module.
        runs: it will run. If it is only read, no parameter is copied.

    Raises:
        ValueError: the model is sharded by FSDP 1 or ZeRO 3.
        RuntimeError: forward wrote into parameters of which there was no copy.
    """
    modules = list(model.modules()) if modules is None else modules
    refuse_flattened(modules)
    with ExitStack() as stack:
        stack.enter_context(kept_flags())
        stack.enter_context(sharded(modules))
        loan = _Loan(modules, runs=runs)
        stack.enter_context(kept_rng(loan.reach.generators, seed=PASS_SEED))
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
        stack.enter_context(loan.guard)
        yield modules
    loan.tell()


@contextmanager
def unguarded(model: nn.Module) -> Iterator[None]:
    """Let a model that is lent for the first time run unwatched, and copy its parameters at every later loan.

    Args:
        model: one that does not run while torch's functions are watched.
    """
    with unwatched():
        yield
    _unguarded.add(model)


def may_write_parameters(model: nn.Module) -> bool:
    """Whether a model's forward writes into its own parameters, as far as is known; before its first loan it may.

    Args:
        model: any module.
    """
    return model not in _has_run or _known.get(model, _Known()).writes


def has_run(model: nn.Module) -> None:
    """Tell that a probe has gone through a lent model, so that from now on it is known what its forward does.

    Args:
        model: the one that was lent.
    """
    _has_run.add(model)


class _Loan:
    """What a model was before it was lent.

    Args:
        modules: all of the model's, itself first.
        runs: it will run.

    Attributes:
        reach: what can be reached from it.
        guard: to be active while it runs.
    """

    def __init__(self, modules: Sequence[nn.Module], *, runs: bool) -> None:
        self.model = modules[0]
        self.modules = modules
        self.reach = Reach(modules, _roots(modules))
        self._first = runs and self.model not in _has_run
        self._sharded = is_sharded(modules)
        self._elsewhere = [(module, module.training) for module in modules if "training" not in module.__dict__]
        self._foreign = Watched(self.reach.foreign if self._first else self.reach.foreign[:_WATCHED_LATER])
        reach = self.reach
        with torch.no_grad():
            always = reach.buffers | {key: t for key, t in reach.tensors.items() if size(t) < SMALL}
            seldom = {key: t for key, t in (reach.tensors | reach.parameters).items() if key not in always}
            self._groups, self._always = copied(_without_lazy(always).values())
            copy_all = self.model in _unguarded or _known.get(self.model, _Known()).unseen
            self._seldom = lend(_without_lazy(seldom), reach.gradients, first=self._first, copy_all=copy_all)
        self.guard: AbstractContextManager[Any] = nullcontext() if self.model in _unguarded else self._seldom.guard

    def still(self) -> None:
        """Eval mode, flag by flag (`.eval()` merges LoRA, `.train()` thaws what the user froze), and no logging."""
        logging = {cls for cls in {*map(type, self.modules)} if any(hasattr(cls, name) for name in _LOG)}
        for module in self.modules:
            attributes = module.__dict__
            if attributes.get("training"):
                attributes["training"] = False
            if type(module) in logging or "log" in attributes or "log_dict" in attributes:
                _mute(module)
        for owner, key in self.reach.loggers:
            held = None if owner is None else owner[1]
            if isinstance(held, nn.Module):  # others would have to be written anew
                held.__dict__[str(key)] = Muted(held.__dict__[str(key)])
        for module, _ in self._elsewhere:
            module.training = False

    def give_back(self) -> None:
        """Undo everything, in place where others may hold the same object."""
        with torch.no_grad():  # tensors first: they matter most
            for kept in self._always:
                kept.put_in_place()
            copy_back(kept for kept in self._always if kept.changed(tell=False))
            for group in self._groups:
                group.put_back()
            found = self._seldom.put_back()
        trains = self._first and self.reach.trains()
        errors = self.reach.put_back(registered=not self._sharded)
        for module, training in self._elsewhere:
            module.training = training
        known = _known.setdefault(self.model, _Known())
        known.writes |= found.written
        known.unseen |= found.unseen or trains
        if found.lost:
            shapes = ", ".join(str(list(tensor.shape)) for tensor in found.lost[:3])
            raise RuntimeError(
                f"{type(self.model).__name__}.forward in eval mode wrote into parameters {shapes}, which it did not do "
                "when it was first run, and in a way that cannot be seen before: this probe has changed them. From now "
                "on they are copied before each probe."
            )
        if errors:
            raise errors[0]

    def tell(self) -> None:
        """Warn of what could not be given back, of each thing once."""
        name, told = type(self.model).__name__, _known[self.model].told
        moved = [place(where, self.model) for where in self._foreign.moved()]
        stopped = None if self.reach.stopped is None else place(self.reach.stopped, self.model)
        new = [where for where in dict.fromkeys(moved) if where not in told]
        if new:
            told.update(new)
            warnings.warn(
                f"cnnlog: a forward pass of {name} changes what nobody can give back afterwards: {some(new)}. Each "
                "snapshot changes it as another batch would; let forward change it only if self.training.",
                stacklevel=4,
            )
        if stopped is not None and not any(where.startswith("(stopped)") for where in told):
            told.add(f"(stopped) {stopped}")
            warnings.warn(
                f"cnnlog: {name} holds more than 10,000 objects or 64 MB beside its parameters. What lies at {stopped} "
                "and beyond is not given back after a snapshot, if a forward pass changes it.",
                stacklevel=4,
            )


def _mute(module: Any) -> None:
    """Let nothing be logged by a module that can: not by Lightning's methods, nor by loggers that it holds.

    Args:
        module: a `LightningModule`, or a module with methods of these names.
    """
    attributes = module.__dict__
    if all(callable(attributes.get(name, getattr(type(module), name, None))) for name in _LOG):
        attributes["log"] = attributes["log_dict"] = lambda *_, **__: None
    for name in ("_trainer", "_fabric"):
        if attributes.get(name) is not None:
            attributes[name] = Muted(attributes[name])


def _without_lazy(tensors: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
    if not any(
        issubclass(cls, (UninitializedBuffer, UninitializedParameter)) for cls in {*map(type, tensors.values())}
    ):
        return tensors
    return {key: tensor for key, tensor in tensors.items() if not is_lazy(tensor)}


def _roots(modules: Sequence[nn.Module]) -> Iterator[tuple[Any, Where]]:
    """What forward can reach beside the modules: hooks of all modules, and what Lightning trains with."""
    for hooks in (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks):
        yield from ((hook, (None, "a global hook of torch")) for hook in hooks.values())
    trainer = modules[0].__dict__.get("_trainer")
    if trainer is not None:
        yield from ((optimizer, (None, "an optimiser")) for optimizer in getattr(trainer, "optimizers", None) or ())
