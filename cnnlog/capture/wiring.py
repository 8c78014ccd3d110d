"""What lies behind a layer: the norm and the activation that its output goes through, and whether it makes the scores.

It is found out once, while the survey runs the probe, by watching torch's functions and which tensors they take and
give. Later snapshots need only know at which module to look.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from cnnlog.capture.axes import Axes, tensors_in
from cnnlog.capture.used_weights import convolves, is_convolution, weight_shape

# Activations whose output is above 0 just where their input is, so that the input tells which channels are dead.
_ACTIVATIONS: dict[Any, str] = {
    function: name
    for name, functions in {
        "ReLU": (F.relu, F.relu_, torch.relu, torch.relu_, torch.Tensor.relu, torch.Tensor.relu_),
        "ReLU6": (F.relu6,),
        "LeakyReLU": (F.leaky_relu, F.leaky_relu_),
        "ELU": (F.elu, F.elu_),
        "SELU": (F.selu, F.selu_, torch.selu, torch.selu_),
        "CELU": (F.celu, F.celu_, torch.celu, torch.celu_),
        "GELU": (F.gelu,),
        "SiLU": (F.silu,),
        "Mish": (F.mish,),
        "Hardswish": (F.hardswish,),
        "Tanh": (F.tanh, torch.tanh, torch.tanh_, torch.Tensor.tanh, torch.Tensor.tanh_),
        "Softsign": (F.softsign,),
    }.items()
    for function in functions
}
_CLAMPS = {torch.clamp, torch.clamp_, torch.clip, torch.Tensor.clamp, torch.Tensor.clamp_, torch.Tensor.clip}
_CLAMPS_FROM = {torch.clamp_min, torch.clamp_min_, torch.Tensor.clamp_min, torch.Tensor.clamp_min_}
_NORMS = {
    F.batch_norm,
    F.group_norm,
    F.layer_norm,
    F.instance_norm,
    torch.batch_norm,
    torch.group_norm,
    torch.layer_norm,
    torch.instance_norm,
}
# What leaves the values as they are in a network that does not train.
_SAME = {
    F.dropout,
    F.dropout1d,
    F.dropout2d,
    F.dropout3d,
    F.alpha_dropout,
    F.feature_alpha_dropout,
    torch.dropout,
    torch.Tensor.contiguous,
    torch.Tensor.clone,
    torch.clone,
    torch.Tensor.detach,
    torch.Tensor.to,
    torch.Tensor.float,
    torch.Tensor.requires_grad_,
}
_NORM_NAME = re.compile(r"norm", re.IGNORECASE)


@dataclass(frozen=True)
class Behind:
    """What lies behind a layer.

    Attributes:
        at: the name of the module whose output goes into the activation: the layer itself, or the norm behind it; None
            where there is no activation, or it cannot be seen.
        activation: its name, such as `"ReLU"`; None without `at`.
        normalised: whether a batch, group, layer or instance norm follows directly.
        scores: whether nothing that has weights follows, so that the layer makes the network's scores.
    """

    at: str | None = None
    activation: str | None = None
    normalised: bool = False
    scores: bool = False


@dataclass
class _Chain:
    """The way of a layer's output, up to its activation."""

    layer: str
    at: str
    normalised: bool = False
    activation: str | None = None
    settled: bool = False


@dataclass
class _Trace:
    """What is known of a tensor: whose output it is, and from which layers it comes with no other between."""

    chain: _Chain | None = None
    reach: frozenset[str] = frozenset()


class Wiring(TorchFunctionMode):
    """Watches a forward pass, and says what lies behind each layer. Enter it around the pass.

    Args:
        layers: module -> its name, for all modules that have weights to convolve or multiply with, or may have.
        norms: module -> its name, for all modules that may normalise.
        modules: all that are hooked, to follow the axis of the channels; None hooks the layers and norms alone.

    Attributes:
        axes: which axis of each output holds the channels.
        convolved: the layers that convolved with their weights.
    """

    def __init__(
        self,
        layers: Mapping[nn.Module, str],
        norms: Mapping[nn.Module, str],
        modules: Collection[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.axes, self.convolved = Axes(), set[nn.Module]()
        self._layers, self._norms = layers, norms
        self._modules = {**layers, **norms} if modules is None else modules
        self._shapes = {layer: weight_shape(layer) for layer in layers}  # some compute their weight when asked
        self._running: list[nn.Module] = []  # layers
        self._traces: dict[int, tuple[Callable[[], torch.Tensor | None], _Trace]] = {}
        self._chains: dict[str, _Chain] = {}
        self._followed: set[str] = set()
        self._calls: dict[str, int] = {}
        self._within: list[tuple[nn.Module, _Chain | None]] = []  # norms that are running, and whose output they take

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for layer in self._running[::-1]:
            # A wrapper that has no weight of its own shows that of what it runs.
            if (layer is self._running[-1] or "weight" not in layer._parameters) and convolves(
                layer, self._shapes[layer], func, args, kwargs
            ):
                self.convolved.add(layer)
        given = list(tensors_in((args, kwargs)))
        traces = [trace for tensor in given if (trace := self._trace(tensor)) is not None]
        result = func(*args, **kwargs)
        self._saw(func, args, kwargs, traces, result)
        self.axes.saw(func, args, kwargs, result)
        return result

    def behind(self, name: str) -> Behind | None:
        """What lies behind a layer; None if it did not run.

        Args:
            name: the layer.
        """
        chain = self._chains.get(name)
        if chain is None:
            return None
        scores = name not in self._followed
        seen = chain.activation is not None and not scores
        return Behind(
            at=chain.at if seen else None,
            activation=chain.activation if seen else None,
            normalised=chain.normalised,
            scores=scores,
        )

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Hear of every call of the modules meanwhile."""
        handles: list[RemovableHandle] = []
        try:
            for module in self._modules:
                handles.append(module.register_forward_pre_hook(self._starts))
                handles.append(module.register_forward_hook(self._ended))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def around(self, run: Callable[[nn.Module, torch.Tensor], object]) -> Callable[[nn.Module, torch.Tensor], object]:
        """The same forward pass, watched.

        Args:
            run: executes the forward pass.
        """

        def watched(module: nn.Module, tensor: torch.Tensor) -> object:
            with self:
                self.axes.begin(tensor)
                return run(module, tensor)

        return watched

    def forget(self) -> None:
        """Know nothing of any layer."""
        self._chains.clear()
        self.convolved.clear()
        self._running.clear()
        self.axes = Axes()

    # ---- told by hooks

    def _starts(self, module: nn.Module, args: Any) -> None:
        traces = [trace for tensor in tensors_in(args) if (trace := self._trace(tensor)) is not None]
        if module in self._layers:
            self._running.append(module)
            for trace in traces if self._is_product(module) else ():
                self._followed |= trace.reach
        if module in self._norms:
            chain = next((t.chain for t in traces if t.chain is not None and not t.chain.settled), None)
            self._within.append((module, chain))

    def _ended(self, module: nn.Module, args: Any, output: Any) -> None:
        self.axes.passed(args, output)
        name = self._layers.get(module)
        if name is not None and module in self._running:
            del self._running[self._running.index(module) :]
            name = name if self._is_product(module) else None
        given = frozenset().union(*(t.reach for tensor in tensors_in(args) if (t := self._trace(tensor)) is not None))
        if name is not None:
            self._followed |= given
            first = name not in self._chains
            chain = _Chain(name, name) if first else None
            if chain is not None:
                self._chains[name] = chain
            for tensor in tensors_in(output):
                self._keep(tensor, _Trace(chain, frozenset({name})))
                chain = None  # of several outputs the first one is what is looked at
        elif self._within and self._within[-1][0] is module:
            self._norm_ended(module, self._within.pop()[1], output)

    def _norm_ended(self, module: nn.Module, chain: _Chain | None, output: Any) -> None:
        name = self._norms[module]
        calls = self._calls[name] = self._calls.get(name, 0) + 1
        if chain is None or (chain.settled and chain.activation is None):
            return
        if calls > 1:  # it runs for several layers, and its first output is another's
            chain.settled, chain.activation = True, None
            return
        chain.at = name
        tensor = next(tensors_in(output), None)
        trace = None if tensor is None else self._trace(tensor)
        if tensor is not None:
            self._keep(tensor, _Trace(chain, trace.reach if trace is not None else frozenset()))

    # ---- told by torch's functions

    def _saw(self, func: Any, args: Any, kwargs: Any, traces: list[_Trace], result: Any) -> None:
        if not traces:
            return
        self._go_on_elsewhere(func, args, kwargs, traces)
        reach = frozenset().union(*(trace.reach for trace in traces))
        passed = None
        for chain in {id(t.chain): t.chain for t in traces if t.chain is not None and not t.chain.settled}.values():
            if self._goes_on(chain, func, args, kwargs):
                passed = chain
        if self._within and passed is None:
            passed = self._within[-1][1]  # what a norm computes is of the layer before it until it ends
            if passed is not None and (name := _activation(func, args, kwargs)) is not None:
                passed.activation, passed.settled = name, True
        for tensor in tensors_in(result):
            self._keep(tensor, _Trace(passed, reach))

    def _goes_on(self, chain: _Chain, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether what a function gives is still the layer's output on its way to the activation."""
        if self._within and self._within[-1][1] is chain:
            if func in _NORMS:
                chain.normalised = chain.normalised or chain.at == chain.layer
            elif (name := _activation(func, args, kwargs)) is not None:  # a norm that has its activation within
                chain.activation, chain.settled = name, True
            return True
        if func in _SAME or _is_reading(func):
            return True
        chain.settled = True
        if func in _NORMS:  # called as a function: what goes into the activation is no module's output
            chain.normalised = chain.normalised or chain.at == chain.layer
            return False
        chain.activation = _activation(func, args, kwargs)
        return False

    def _go_on_elsewhere(self, func: Any, args: Any, kwargs: Any, traces: list[_Trace]) -> None:
        """Where what goes into an activation is used again (a skip, a CReLU), a channel that is never above 0 lives."""
        if _is_reading(func) or func in _SAME or _activation(func, args, kwargs) is not None:
            return
        for trace in traces:
            if trace.chain is not None and trace.chain.settled:
                trace.chain.activation = None

    def _is_product(self, module: nn.Module) -> bool:
        """Whether a layer convolves or multiplies: by its class, or because it has been seen to."""
        return isinstance(module, nn.Linear) or is_convolution(module) or module in self.convolved

    # ---- tensors

    def _keep(self, tensor: torch.Tensor, trace: _Trace) -> None:
        self._traces[id(tensor)] = (ref(tensor), trace)

    def _trace(self, tensor: torch.Tensor) -> _Trace | None:
        known = self._traces.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None


def is_norm(module: nn.Module) -> bool:
    """Whether a module's name says that it normalises; frozen ones, which only multiply, and ones with an activation.

    Args:
        module: any module.
    """
    return _NORM_NAME.search(type(module).__name__) is not None and not any(True for _ in _convolving(module))


def _convolving(module: nn.Module) -> Iterator[nn.Module]:
    """The parts of a module that have weights to convolve or multiply with."""
    return (part for part in module.modules() if isinstance(part, (nn.modules.conv._ConvNd, nn.Linear)))


def _activation(func: Any, args: Any, kwargs: Any) -> str | None:
    if func in _ACTIVATIONS:
        return _ACTIVATIONS[func]
    if func in (F.hardtanh, F.hardtanh_):
        low = kwargs.get("min_val", args[1] if len(args) > 1 else -1.0)
        return "ReLU6" if low == 0 else "Hardtanh" if low < 0 else None
    if func in _CLAMPS | _CLAMPS_FROM:
        low = kwargs.get("min", args[1] if len(args) > 1 else None)
        return "ReLU" if isinstance(low, (int, float)) and low == 0 else None
    return None


def _is_reading(func: Any) -> bool:
    """Whether a function only reads a tensor's shape, type or the like."""
    return getattr(func, "__name__", "") in ("__get__", "size", "dim", "stride", "numel", "is_contiguous", "__len__")
